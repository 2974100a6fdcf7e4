"""The model files of the original authors: `.pbtxt` (the model) and `.h5` (its checkpoint).

The released programs of "Unsupervised Learning of Video Representations using LSTMs" (Srivastava, Mansimov and
Salakhutdinov, 2015; arXiv 1502.04681) describe a model in protobuf text and keep its parameters in HDF5. `read_model`
reads the text; the functions below it turn it into constructor arguments and state dicts of `lstmvid.FusedComposite`
and `lstmvid.SequenceClassifier`.

The gate order of the files (i, f, a, o) is ours (i, f, g, o), so nothing is permuted. Their one bias vector is our
`bias_ih_l{k}`; `bias_hh_l{k}` is zero and frozen, since two trained ones would double the learning rate of their sum.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lstmvid.compat.pbtxt import Identifier, parse

if TYPE_CHECKING:
    import h5py

_CONSTANT = Identifier("CONSTANT")


@dataclass(frozen=True)
class OriginalBlock:
    """How one parameter starts and is trained. A block left out of the text means a constant 0, never trained."""

    init_type: Identifier = _CONSTANT
    scale: float = 0.0
    epsilon: float = 0.0
    momentum: float = 0.0
    l2_decay: float = 0.0
    gradient_clip: float = 0.0
    eps_decay_factor: float = 1.0
    eps_decay_after: int = 0
    file_name: str = ""
    dataset_name: str = ""


@dataclass(frozen=True)
class OriginalLSTM:
    """One layer. Sizes of 0 were left out of the text and follow from the neighbours."""

    name: str
    num_hid: int
    w_dense: OriginalBlock | None = None
    w_diag: OriginalBlock | None = None
    b: OriginalBlock | None = None
    w_input: OriginalBlock | None = None
    w_output: OriginalBlock | None = None
    b_output: OriginalBlock | None = None
    has_input: bool = False
    has_output: bool = False
    use_relu: bool = False
    input_dims: int = 0
    output_dims: int = 0
    input_dropprob: float = 0.0
    output_dropprob: float = 0.0


@dataclass(frozen=True)
class OriginalLogreg:
    """A logistic regression. The format has it for a program of its own; no LSTM model uses it."""

    name: str
    num_inputs: int
    num_outputs: int
    w: OriginalBlock | None = None
    b: OriginalBlock | None = None
    dropprob: float = 0.0


@dataclass(frozen=True)
class OriginalModel:
    """A whole model file; `source` is where it was read from. The field names are the format's."""

    source: str
    name: str = ""
    lstm: tuple[OriginalLSTM, ...] = ()
    lstm_dec: tuple[OriginalLSTM, ...] = ()
    lstm_future: tuple[OriginalLSTM, ...] = ()
    dec_seq_length: int | None = None
    future_seq_length: int | None = None
    dec_conditional: bool = False
    future_conditional: bool = False
    decoder_copy_init_state: bool = False
    future_copy_init_state: bool = False
    binary_data: bool = False
    relu_data: bool = False
    squash_relu: bool = False
    squash_relu_lambda: float = 2.0
    timestamp: tuple[str, ...] = ()
    checkpoint_dir: str = ""
    max_iters: int = 0
    print_after: int = 1
    validate_after: int = 0
    save_after: int = 0
    display_after: int = 0
    logreg: OriginalLogreg | None = None


@dataclass(frozen=True)
class _Stack:
    """The layers that become one part of a module of ours, and the sizes they must have (0: no input, no output)."""

    field: str  # what the text calls each layer: "lstm", "lstm_dec" or "lstm_future"
    part: str
    layers: tuple[OriginalLSTM, ...]
    input_size: int
    output_size: int = 0
    head: str = ""


@dataclass(frozen=True)
class _Slot:
    """One parameter and where the files keep it. Without a block it is zero and never trained."""

    parameter: str | None  # None: ours has no such parameter
    shape: tuple[int, ...]
    dataset: str | None = None  # None: the files have no such parameter
    block: OriginalBlock | None = None


def read_model(path: str | os.PathLike[str]) -> OriginalModel:
    """Read a model file (`.pbtxt`).

    Raises `ValueError` with file and line if it can't be read, has a field that the format has not, or a value of the
    wrong type. Whether a module of ours can be this model is for `composite_arguments` and `classifier_arguments`.
    """
    source = os.fspath(path)
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise ValueError(f"{source}: can't read the model file ({reason.strerror})") from reason
    except UnicodeDecodeError as reason:
        raise ValueError(f"{source}: the model file is not UTF-8 text ({reason})") from reason
    return parse(text, OriginalModel, source=source, given={"source": source})


def composite_arguments(model: OriginalModel) -> dict[str, Any]:
    """Constructor arguments of the `FusedComposite` that `model` describes.

    A decoder exists if its layers do, unless its sequence length is written out as 0. `dropout` is 0 whatever the
    file's dropout settings are: the released composite program applies none in its forward pass. If the first layer of
    an unconditional decoder has a `w_input`, no frame ever meets it, and it has no counterpart here.

    Raises `ValueError` naming the setting that can't be honoured or that contradicts another.
    """
    encoder, *decoders = stacks = _composite_stacks(model)
    parts = {stack.part for stack in decoders}
    mode = {True: "conditional", False: "unconditional"}
    copies = {
        "reconstruct": "reconstructor" in parts and model.decoder_copy_init_state,
        "predict": "predictor" in parts and model.future_copy_init_state,
    }
    return {
        "frame_shape": encoder.input_size,
        "hidden_size": encoder.layers[0].num_hid,
        "num_layers": len(encoder.layers),
        "reconstruct": mode[model.dec_conditional] if "reconstructor" in parts else None,
        "predict": mode[model.future_conditional] if "predictor" in parts else None,
        "likelihood": "bernoulli" if model.binary_data else "rectified" if model.relu_data else "gaussian",
        "copy_state": tuple(option for option, copied in copies.items() if copied),
        "peephole": _has_peepholes(stacks),
        "dropout": 0.0,
    }


def classifier_arguments(model: OriginalModel) -> dict[str, Any]:
    """Constructor arguments of the `SequenceClassifier` that `model` describes.

    `output_dropprob` counts on the top layer only, where the readout is. Raises `ValueError` naming the setting that
    can't be honoured or that contradicts another.
    """
    (stack,) = _classifier_stacks(model)
    first, *further = stack.layers
    for layer in further[1:]:
        if layer.input_dropprob != further[0].input_dropprob:
            raise ValueError(
                f"{model.source}: lstm {layer.name!r} has input_dropprob: {layer.input_dropprob:g}, expected "
                f"{further[0].input_dropprob:g} as in {further[0].name!r} (all layers above the first share one)"
            )
    return {
        "input_size": stack.input_size,
        "hidden_size": first.num_hid,
        "num_layers": len(stack.layers),
        "num_classes": stack.output_size,
        "peephole": _has_peepholes((stack,)),
        "input_dropout": first.input_dropprob,
        "dropout": further[0].input_dropprob if further else 0.0,
        "output_dropout": stack.layers[-1].output_dropprob,
    }


def composite_state(
    model: OriginalModel,
    checkpoint_h5: str | os.PathLike[str] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """`state_dict` (float32, CPU) of the `FusedComposite` that `model` describes.

    The values are the checkpoint's or, without one, drawn as the text's `init_type` and `scale` say: uniform in
    [-scale, scale], normal with standard deviation `scale`, the constant `scale`, or `PRETRAINED`: a dataset of another
    HDF5 file, which is looked for where `file_name` says and then beside the model file.

    Raises `ValueError` naming file and dataset if one is missing, has the wrong shape, or holds other values than 0
    where the text leaves the block out; `ModuleNotFoundError` if h5py is needed and not installed.
    """
    return _state(model, _composite_stacks(model), checkpoint_h5, generator)


def classifier_state(
    model: OriginalModel,
    checkpoint_h5: str | os.PathLike[str] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """`state_dict` (float32, CPU) of the `SequenceClassifier` that `model` describes; see `composite_state`."""
    return _state(model, _classifier_stacks(model), checkpoint_h5, generator)


def frozen_parameters(model: OriginalModel) -> tuple[str, ...]:
    """Names of the parameters that the original programs don't train, of either kind of model.

    These are the ones whose block is left out of the text and every `bias_hh_l{k}`. A block with `epsilon: 0` is not
    among them: step sizes are the optimiser's business.
    """
    classifies = not (model.lstm_dec or model.lstm_future) and any(layer.has_output for layer in model.lstm)
    stacks = _classifier_stacks(model) if classifies else _composite_stacks(model)
    return tuple(slot.parameter for slot in _slots(stacks) if slot.block is None and slot.parameter is not None)


def _composite_stacks(model: OriginalModel) -> tuple[_Stack, ...]:
    """Encoder and existing decoders of a composite model, checked."""
    if not model.lstm:
        raise ValueError(f"{model.source}: has no lstm block")
    decoders = []
    for field, part, head, length_field, conditional in (
        ("lstm_dec", "reconstructor", "reconstruction_head", "dec_seq_length", model.dec_conditional),
        ("lstm_future", "predictor", "prediction_head", "future_seq_length", model.future_conditional),
    ):
        layers, length = getattr(model, field), getattr(model, length_field)
        if not layers and (length or 0) > 0:
            raise ValueError(f"{model.source}: {length_field} is {length}, but there is no {field} block")
        if layers and (length is None or length > 0):
            decoders.append((field, part, head, layers, conditional))
    # The same size wherever a frame enters or leaves the model; the first one written counts.
    sizes = (model.lstm[0].input_dims, *(layers[-1].output_dims for _, _, _, layers, _ in decoders))
    frame_size = next(filter(None, sizes), 0)
    stacks = [_Stack("lstm", "encoder", model.lstm, frame_size)]
    for field, part, head, layers, conditional in decoders:
        stacks.append(_Stack(field, part, layers, frame_size if conditional else 0, frame_size, head))
    _check(model, stacks)
    return tuple(stacks)


def _classifier_stacks(model: OriginalModel) -> tuple[_Stack, ...]:
    """The one stack of a classifier, checked."""
    for field in ("lstm_dec", "lstm_future"):
        if getattr(model, field):
            raise ValueError(f"{model.source}: has {field}, so it is a composite model and not a classifier")
    if not model.lstm:
        raise ValueError(f"{model.source}: has no lstm block")
    top = model.lstm[-1]
    if top.output_dims < 1:
        raise ValueError(f"{model.source}: lstm {top.name!r} lacks output_dims, the number of classes")
    stack = _Stack("lstm", "encoder", model.lstm, model.lstm[0].input_dims, top.output_dims, "head")
    _check(model, [stack])
    return (stack,)


def _check(model: OriginalModel, stacks: list[_Stack]) -> None:
    """Refuse what no module of ours can be, and what contradicts itself."""
    if model.squash_relu:
        raise ValueError(f"{model.source}: squash_relu: true is not supported (it never worked in the released code)")
    encoder = stacks[0]
    if encoder.input_size < 1:
        raise ValueError(f"{model.source}: lstm {encoder.layers[0].name!r} lacks input_dims, the size of a frame")
    names = set()
    for stack in stacks:
        if len(stack.layers) != len(encoder.layers):
            raise ValueError(
                f"{model.source}: {len(stack.layers)} {stack.field} layers, expected {len(encoder.layers)}: "
                "as many as lstm layers, whose states they start from"
            )
        for depth, layer in enumerate(stack.layers):
            _check_layer(model.source, stack, depth, encoder.layers[0].num_hid)
            if layer.name in names:
                raise ValueError(f"{model.source}: two layers have the name {layer.name!r}, which names their datasets")
            names.add(layer.name)


def _check_layer(source: str, stack: _Stack, depth: int, hidden_size: int) -> None:
    layer = stack.layers[depth]
    where = f"{source}: {stack.field} {layer.name!r}"
    input_size = hidden_size if depth else stack.input_size
    output_size = stack.output_size if depth == len(stack.layers) - 1 else 0
    checks: list[tuple[str, tuple[int, ...], str]] = [
        ("use_relu", (False,), "that cell is not supported"),
        ("num_hid", (hidden_size,), "layers of unequal size are not supported"),
        ("has_output", (output_size > 0,), "the top layer of a decoder or classifier has the output, no other one has"),
    ]
    if input_size:
        reason = "the layer below's num_hid" if depth else "the size of a frame"
        checks += [("has_input", (True,), "the layer has an input"), ("input_dims", (0, input_size), reason)]
    if output_size:
        checks += [("output_dims", (0, output_size), "the size of an output")]
    for setting, allowed, reason in checks:
        given = getattr(layer, setting)
        if given not in allowed:
            raise ValueError(f"{where} has {setting}: {_text(given)}, expected {_text(allowed[-1])} ({reason})")
    if layer.num_hid < 1:
        raise ValueError(f"{where} has num_hid: {layer.num_hid}, expected at least 1")
    for setting in ("input_dropprob", "output_dropprob"):
        if not 0.0 <= getattr(layer, setting) < 1.0:
            raise ValueError(f"{where} has {setting}: {getattr(layer, setting):g}, expected 0 or more and less than 1")


def _text(value: int) -> str:
    return str(value).lower()  # True is "true" in protobuf text


def _has_peepholes(stacks: tuple[_Stack, ...]) -> bool:
    return any(layer.w_diag is not None for stack in stacks for layer in stack.layers)


def _slots(stacks: tuple[_Stack, ...]) -> Iterator[_Slot]:
    """Every parameter of the module, and those of the files that must be zero because the module has none."""
    peephole = _has_peepholes(stacks)
    for stack in stacks:
        hidden_size = stack.layers[0].num_hid
        for depth, layer in enumerate(stack.layers):
            input_size = hidden_size if depth else stack.input_size
            rows = [
                ("weight_ih", (4 * hidden_size, input_size), "w_input"),
                ("weight_hh", (4 * hidden_size, hidden_size), "w_dense"),
                ("bias_ih", (4 * hidden_size,), "b"),
                ("weight_peephole", (3 * hidden_size,), "w_diag"),
            ]
            for stem, shape, block in rows if input_size else rows[1:]:
                parameter = f"{stack.part}.{stem}_l{depth}" if peephole or block != "w_diag" else None
                yield _Slot(parameter, shape, f"{layer.name}:{block}", getattr(layer, block))
            yield _Slot(f"{stack.part}.bias_hh_l{depth}", (4 * hidden_size,))
        if stack.head:
            top = stack.layers[-1]
            yield _Slot(f"{stack.head}.weight", (stack.output_size, hidden_size), f"{top.name}:w_output", top.w_output)
            yield _Slot(f"{stack.head}.bias", (stack.output_size,), f"{top.name}:b_output", top.b_output)


def _state(
    model: OriginalModel,
    stacks: tuple[_Stack, ...],
    checkpoint: str | os.PathLike[str] | None,
    generator: torch.Generator | None,
) -> dict[str, torch.Tensor]:
    state = {}
    with _open_checkpoint(checkpoint) if checkpoint is not None else contextlib.nullcontext() as file:
        for slot in _slots(stacks):
            value = _initial(slot, model.source, generator) if file is None else _stored(file, slot)
            if slot.parameter is not None:
                state[slot.parameter] = value
    return state


def _initial(slot: _Slot, source: str, generator: torch.Generator | None) -> torch.Tensor:
    """What a parameter is before training."""
    block = slot.block
    if block is None:
        return torch.zeros(slot.shape)
    if block.init_type == "CONSTANT":
        return torch.full(slot.shape, block.scale)
    if block.init_type == "GAUSSIAN":
        return torch.randn(slot.shape, generator=generator) * block.scale
    if block.init_type == "UNIFORM":
        return (torch.rand(slot.shape, generator=generator) - 0.5) * (2 * block.scale)
    if block.init_type == "PRETRAINED":
        written = Path(block.file_name)
        with _open_checkpoint(written if written.is_file() else Path(source).parent / written.name) as file:
            return _dataset(file, block.dataset_name, slot.shape)
    raise ValueError(
        f"{source}: {slot.dataset!r} has init_type: {block.init_type}, "
        "expected CONSTANT, GAUSSIAN, UNIFORM or PRETRAINED"
    )


def _stored(file: h5py.File, slot: _Slot) -> torch.Tensor:
    """A parameter's value in a checkpoint."""
    if slot.dataset is None:
        return torch.zeros(slot.shape)
    value = _dataset(file, slot.dataset, slot.shape, optional=slot.block is None)
    if slot.block is None and value.any():
        raise ValueError(
            f"{file.filename}: dataset {slot.dataset!r} holds other values than 0, "
            "which is what its block's absence from the model file means"
        )
    return value


def _dataset(file: h5py.File, name: str, shape: tuple[int, ...], *, optional: bool = False) -> torch.Tensor:
    """One dataset as a float32 tensor of `shape`; zeros if it is absent and `optional`."""
    import h5py

    stored = (1, *shape) if len(shape) == 1 else shape  # the files keep vectors as matrices of one row
    values = None
    try:
        dataset = file.get(name)
        if isinstance(dataset, h5py.Dataset):
            found = f"{dataset.shape} of {dataset.dtype}"
            if dataset.shape in (stored, shape) and dataset.dtype.kind == "f":
                values = np.asarray(dataset[()], dtype=np.float32)
        elif optional and dataset is None:
            return torch.zeros(shape)
        else:
            found = "absent"
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as reason:  # whichever a damaged file leads h5py to
        raise ValueError(f"{file.filename}: dataset {name!r} can't be read ({reason})") from reason
    if values is None:
        raise ValueError(f"{file.filename}: dataset {name!r} is {found}, expected {stored} of float32")
    return torch.from_numpy(values).reshape(shape)


def _open_checkpoint(path: str | os.PathLike[str]) -> h5py.File:
    try:
        import h5py
    except ModuleNotFoundError as reason:
        raise ModuleNotFoundError("reading HDF5 checkpoints needs h5py: pip install 'lstmvid[train]'") from reason
    try:
        return h5py.File(path, "r")
    except OSError as reason:
        raise ValueError(f"{os.fspath(path)}: not a readable HDF5 checkpoint ({reason})") from reason
