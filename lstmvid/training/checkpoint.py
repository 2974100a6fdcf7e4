"""Files of a run: model files (safetensors) and resumable checkpoints, neither of which holds code.

A model file carries its class, its constructor's arguments and the data it was trained on as JSON in its metadata. Both
kinds are written beside their name and then renamed, so that a name never stands for half a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

import lstmvid
from lstmvid.data.files import written_whole

MODEL_FILE = "model.safetensors"
RESUME_FILE = "last.ckpt"

Model = lstmvid.FusedComposite | lstmvid.SequenceClassifier
ModelT = TypeVar("ModelT", lstmvid.FusedComposite, lstmvid.SequenceClassifier)

_CLASSES: dict[str, type[Model]] = {
    kind.__name__: kind for kind in (lstmvid.FusedComposite, lstmvid.SequenceClassifier)
}
_METADATA_KEY = "lstmvid"
_MODEL_PREFIX = "model."  # of the state dict in a resumable checkpoint, where the model is the training module's child


def save_model(
    model: Model,
    path: str | Path,
    *,
    data: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Write a model with all that it takes to build it again.

    Args:
        model: any `FusedComposite` or `SequenceClassifier`.
        path: usually ``*.safetensors``; an existing file is replaced as a whole.
        data: plain settings of the data it was trained on, for evaluation to find the digits it never saw.
        tensors: its state dict, where the model itself holds only a rank's share of it.
    """
    tensors = model.state_dict() if tensors is None else tensors
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_METADATA_KEY: json.dumps(describe_model(model, data))}
    with written_whole(Path(path)) as partial:
        # Not save_file, which makes a file that nobody else may read.
        partial.write_bytes(safetensors.torch.save(tensors, metadata=metadata))


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    kind: type[ModelT] | None = None,
) -> tuple[ModelT, dict[str, Any]]:
    """Build a model from a model file, a resumable checkpoint, or the folder of a run.

    Args:
        path: ``*.safetensors``; ``*.ckpt``, whose last weights are taken; or a folder, whose best model is taken.
        device: where to put it.
        backend: who runs its LSTMs.
        kind: the class that it has to be, if not either.

    Returns:
        ``(model, data)``: the model in eval mode and the settings of the data it was trained on. Parameters that were
        frozen when it was saved are frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not a model of ours, or not of the class `kind`; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no model file {path}")
    description, tensors = _read_checkpoint(path) if path.suffix == ".ckpt" else _read_safetensors(path)
    try:
        if description["class"] not in _CLASSES:
            raise ValueError(f"its class is {description['class']}, expected {' or '.join(_CLASSES)}")
        arguments = dict(description["config"]) | {"backend": backend}
        if "frame_shape" in arguments:
            arguments["frame_shape"] = _as_frame_shape(arguments["frame_shape"])
        model = _CLASSES[description["class"]](**arguments, dtype=next(iter(tensors.values())).dtype)
        model.load_state_dict(tensors)
        for name in description.get("frozen", ()):
            model.get_parameter(name).requires_grad_(False)
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RuntimeError) as error:
        reason = " ".join(str(error).split())  # load_state_dict's reports run over many lines
        raise ValueError(f"{path} does not describe a model that can be built: {reason}") from error
    if kind is not None and not isinstance(model, kind):
        raise ValueError(f"{path} holds a {description['class']}, expected a {kind.__name__}")
    return model.eval().to(device), description.get("data", {})


def describe_model(model: Model, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `load_model` needs beside the weights, as plain values: class, arguments, frozen parameters, data."""
    return {
        # By name of the base class: that of a copy whose weights are shared out among ranks is another.
        "class": next(name for name, kind in _CLASSES.items() if isinstance(model, kind)),
        "config": model.config,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "version": lstmvid.__version__,
        "data": data or {},
    }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a resumable checkpoint, unpickling nothing but tensors and plain values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not such a checkpoint; the message names the file.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no checkpoint {path}") from error
    except Exception as error:  # what torch raises on junk depends on the junk
        raise ValueError(f"{path} is not a checkpoint, or is damaged") from error
    if not isinstance(checkpoint, dict) or _METADATA_KEY not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of lstmvid")
    return checkpoint


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    if _METADATA_KEY not in metadata:
        raise ValueError(f"{path} is not a model file of lstmvid: its metadata lacks '{_METADATA_KEY}'")
    try:
        return json.loads(metadata[_METADATA_KEY]), tensors
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: its metadata is not JSON ({error})") from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint = read_checkpoint(path)
    tensors = {name.removeprefix(_MODEL_PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
    return checkpoint[_METADATA_KEY]["description"], tensors


def _as_frame_shape(value: int | list[int]) -> int | tuple[int, ...]:
    """JSON knows no tuples."""
    return value if isinstance(value, int) else tuple(value)
