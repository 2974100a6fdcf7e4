"""Where the parameters of an original model go in a module of ours, and which models can't be one.

A model is a few stacks of layers; `parameter_slots` lists every parameter with its place in the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lstmvid.compat.original_messages import OriginalBlock, OriginalLSTM, OriginalModel


@dataclass(frozen=True)
class Stack:
    """The layers that become one part of a module of ours, and the sizes they must have (0: no input, no output)."""

    field: str  # what the text calls each layer: "lstm", "lstm_dec" or "lstm_future"
    part: str
    layers: tuple[OriginalLSTM, ...]
    input_size: int
    output_size: int = 0
    head: str = ""


@dataclass(frozen=True)
class Slot:
    """One parameter and where the files keep it. Without a block it is zero and never trained."""

    parameter: str | None  # None: ours has no such parameter
    shape: tuple[int, ...]
    dataset: str | None = None  # None: the files have no such parameter
    block: OriginalBlock | None = None


def is_classifier(model: OriginalModel) -> bool:
    """Whether `model` is a classifier: it has an output, but no decoder."""
    return not _decoders(model) and any(layer.has_output for layer in model.lstm)


def model_stacks(model: OriginalModel) -> tuple[Stack, ...]:
    """The stacks of a model of either kind, checked."""
    return classifier_stacks(model) if is_classifier(model) else composite_stacks(model)


def composite_stacks(model: OriginalModel) -> tuple[Stack, ...]:
    """Encoder and existing decoders of a composite model, checked."""
    if not model.lstm:
        raise ValueError(f"{model.source}: has no lstm block")
    decoders = _decoders(model)
    # The same size wherever a frame enters or leaves the model; the first one written counts.
    sizes = (model.lstm[0].input_dims, *(layers[-1].output_dims for _, _, _, layers, _ in decoders))
    frame_size = next(filter(None, sizes), 0)
    stacks = [Stack("lstm", "encoder", model.lstm, frame_size)]
    for field, part, head, layers, conditional in decoders:
        stacks.append(Stack(field, part, layers, frame_size if conditional else 0, frame_size, head))
    _check(model, stacks)
    return tuple(stacks)


def _decoders(model: OriginalModel) -> list[tuple[str, str, str, tuple[OriginalLSTM, ...], bool]]:
    """The decoders that exist: field, part and head of ours, layers, whether it is conditional."""
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
    return decoders


def classifier_stacks(model: OriginalModel) -> tuple[Stack, ...]:
    """The one stack of a classifier, checked."""
    if decoders := _decoders(model):
        raise ValueError(f"{model.source}: has {decoders[0][0]}, so it is a composite model and not a classifier")
    if not model.lstm:
        raise ValueError(f"{model.source}: has no lstm block")
    top = model.lstm[-1]
    if top.output_dims < 1:
        raise ValueError(f"{model.source}: lstm {top.name!r} lacks output_dims, the number of classes")
    stack = Stack("lstm", "encoder", model.lstm, model.lstm[0].input_dims, top.output_dims, "head")
    _check(model, [stack])
    return (stack,)


def _check(model: OriginalModel, stacks: list[Stack]) -> None:
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


def _check_layer(source: str, stack: Stack, depth: int, hidden_size: int) -> None:
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


def has_peepholes(stacks: tuple[Stack, ...]) -> bool:
    """Whether any layer has them; then the module has them in all, zero and never trained where the text has none."""
    return any(layer.w_diag is not None for stack in stacks for layer in stack.layers)


def parameter_slots(stacks: tuple[Stack, ...]) -> Iterator[Slot]:
    """Every parameter of the module, and those of the files that must be zero because the module has none."""
    peephole = has_peepholes(stacks)
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
                yield Slot(parameter, shape, f"{layer.name}:{block}", getattr(layer, block))
            yield Slot(f"{stack.part}.bias_hh_l{depth}", (4 * hidden_size,))
        if stack.head:
            top = stack.layers[-1]
            yield Slot(f"{stack.head}.weight", (stack.output_size, hidden_size), f"{top.name}:w_output", top.w_output)
            yield Slot(f"{stack.head}.bias", (stack.output_size,), f"{top.name}:b_output", top.b_output)
