"""Export to ONNX: an LSTM as ONNX's own LSTM operator, peepholes included, and a composite's encoder.

The graph is built from the weights, not traced: one standard `LSTM` node a layer, which any runtime has a fused kernel
for. ONNX orders gates i, o, f, c and peepholes i, o, f, where torch has i, f, g, o and we have i, f, o.

Needs the extra ``onnx``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..nn import FusedComposite

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSET = 17  # LSTM itself is unchanged since 14
_LARGEST = 2**31 - 1  # bytes of a protobuf message


class _Cell(NamedTuple):
    """One direction of one layer: [4H, D], [4H, H], [4H] or None twice, [3H] or None."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    peephole: Tensor | None


def export(
    module: nn.Module,
    path: str | os.PathLike,
    *,
    state: bool = False,
    lengths: bool = False,
    uint8: bool = False,
) -> None:
    """Write `module` as an ONNX file for inference in float32, with any number of steps and any batch.

    An `nn.LSTM` or `lstmvid.LSTM` takes ``input (T, B, D)`` (``(B, T, D)`` if it is batch first) and gives ``output``,
    ``h_n``, ``c_n`` in `nn.LSTM`'s shapes. A `FusedComposite` exports its `encode`: ``frames`` in, ``h_n`` and ``c_n``
    ``(L, B, H)`` out. There is no dropout.

    Args:
        path: the file; an existing one is replaced as a whole, and only by a graph that ONNX's checker accepts.
        state: an LSTM also takes ``h_0`` and ``c_0``; otherwise it starts from zeros.
        lengths: also take ``lengths (B,)``, int32: steps of each sequence, as a `PackedSequence` has them. Output is
            zero behind them.
        uint8: a composite's frames are bytes, scaled by 1/255 in the graph.

    Raises:
        TypeError: `module` is none of these.
        ValueError: it has projections, which ONNX's operator has not, or takes more than 2 GiB, or an option doesn't
            suit it.
    """
    if isinstance(module, FusedComposite):
        model = _composite_graph(module, state, lengths, uint8)
    elif isinstance(module, nn.LSTM):
        model = _lstm_graph(module, state, lengths, uint8)
    else:
        raise TypeError(f"module must be an LSTM or a FusedComposite, got {type(module).__name__}")
    _write(model, Path(path))


def _lstm_graph(module: nn.LSTM, state: bool, lengths: bool, uint8: bool) -> ModelProto:
    if module.proj_size:
        raise ValueError(f"proj_size is {module.proj_size}: ONNX's LSTM has no projections")
    if uint8:
        raise ValueError("uint8 is for the frames of a FusedComposite, got an LSTM")
    graph, size = _Graph(), module.hidden_size
    directions = ("", "_reverse") if module.bidirectional else ("",)
    layers = [[_cell(module, f"l{k}{suffix}") for suffix in directions] for k in range(module.num_layers)]
    order = ("B", "T") if module.batch_first else ("T", "B")
    x = graph.input("input", [*order, module.input_size])
    state_shape = [len(layers) * len(directions), "B", size]
    states = [graph.input(name, state_shape) for name in ("h_0", "c_0")] if state else []
    if module.batch_first:
        x = graph.node("Transpose", [x], perm=[1, 0, 2])
    output, h_n, c_n = graph.layers(x, layers, states, graph.lengths() if lengths else "")
    if module.batch_first:
        output = graph.node("Transpose", [output], perm=[1, 0, 2])
    graph.output("output", output, [*order, len(directions) * size])
    graph.output("h_n", h_n, state_shape)
    graph.output("c_n", c_n, state_shape)
    return graph.model("lstm")


def _composite_graph(module: FusedComposite, state: bool, lengths: bool, uint8: bool) -> ModelProto:
    from onnx import TensorProto

    if state:
        raise ValueError("state is for an LSTM: an encoder starts from zeros")
    graph, encoder = _Graph(), module.encoder
    layers = [[_Cell(*weights)] for weights in encoder.layer_weights()]
    order = ("B", "T") if module.batch_first else ("T", "B")
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    x = graph.input("frames", [*order, *module.frame_shape], kind)
    if uint8:
        x = graph.node("Cast", [x], to=TensorProto.FLOAT)
        x = graph.node("Div", [x, graph.constant(torch.tensor(255.0))])
    x = graph.node("Reshape", [x, graph.constant(torch.tensor([0, 0, -1]))])
    if module.batch_first:
        x = graph.node("Transpose", [x], perm=[1, 0, 2])
    _, h_n, c_n = graph.layers(x, layers, [], graph.lengths() if lengths else "")
    state_shape = [encoder.num_layers, "B", encoder.hidden_size]
    graph.output("h_n", h_n, state_shape)
    graph.output("c_n", c_n, state_shape)
    return graph.model("encode")


def _cell(module: nn.LSTM, suffix: str) -> _Cell:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
    return _Cell(*(getattr(module, f"{name}_{suffix}", None) for name in names))


class _Graph:
    """An ONNX graph under construction; values are known by their names."""

    def __init__(self) -> None:
        self.nodes, self.inputs, self.outputs, self.initializers = [], [], [], []

    def input(self, name: str, shape: Sequence[int | str], kind: int | None = None) -> str:
        from onnx import TensorProto, helper

        self.inputs.append(helper.make_tensor_value_info(name, kind or TensorProto.FLOAT, shape))
        return name

    def lengths(self) -> str:
        from onnx import TensorProto

        return self.input("lengths", ["B"], TensorProto.INT32)

    def constant(self, tensor: Tensor) -> str:
        from onnx import numpy_helper

        tensor = tensor.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes):
        """The name of its output, or a list of names where there are several."""
        from onnx import helper

        names = [f"{kind.lower()}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        from onnx import TensorProto, helper

        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def layers(
        self, x: str, layers: Sequence[Sequence[_Cell]], states: Sequence[str], lengths: str
    ) -> tuple[str, str, str]:
        """A stack on ``x [T, B, D]``: the top layer's ``[T, B, H]`` and the final states."""
        directions, size = len(layers[0]), layers[0][0].weight_hh.size(1)
        pieces = [["", ""]] * len(layers)
        if states:
            sizes = self.constant(torch.full((len(layers),), directions))
            split = [self.node("Split", [s, sizes], outputs=len(layers), axis=0) for s in states]
            pieces = list(zip(*([s] if isinstance(s, str) else s for s in split), strict=True))
        final: list[list[str]] = [[], []]
        for cells, (h_0, c_0) in zip(layers, pieces, strict=True):
            y, *last = self.node(
                "LSTM",
                [x, *self._weights(cells), lengths, h_0, c_0, self._peepholes(cells)],
                outputs=3,
                hidden_size=size,
                direction="bidirectional" if directions == 2 else "forward",
            )
            # [T, directions, B, H] -> [T, B, directions * H]
            y = self.node("Transpose", [y], perm=[0, 2, 1, 3])
            x = self.node("Reshape", [y, self.constant(torch.tensor([0, 0, -1]))])
            for names, name in zip(final, last, strict=True):
                names.append(name)
        h_n, c_n = (self.node("Concat", names, axis=0) for names in final)
        return x, h_n, c_n

    def _weights(self, cells: Sequence[_Cell]) -> list[str]:
        """W [directions, 4H, D], R [directions, 4H, H], B [directions, 8H] or nothing."""
        w = torch.stack([_reordered(cell.weight_ih) for cell in cells])
        r = torch.stack([_reordered(cell.weight_hh) for cell in cells])
        if cells[0].bias_ih is None:
            return [self.constant(w), self.constant(r), ""]
        b = torch.stack([torch.cat([_reordered(cell.bias_ih), _reordered(cell.bias_hh)]) for cell in cells])
        return [self.constant(w), self.constant(r), self.constant(b)]

    def _peepholes(self, cells: Sequence[_Cell]) -> str:
        """P [directions, 3H] or nothing."""
        if cells[0].peephole is None:
            return ""
        rows = []
        for cell in cells:
            i, f, o = cell.peephole.chunk(3)
            rows.append(torch.cat([i, o, f]))
        return self.constant(torch.stack(rows))

    def model(self, name: str) -> ModelProto:
        from onnx import helper

        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", _OPSET)]
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="lstmvid")


def _reordered(gates: Tensor) -> Tensor:
    """Blocks i, f, g, o of the first dimension as ONNX has them: i, o, f, c."""
    i, f, g, o = gates.chunk(4)
    return torch.cat([i, o, f, g])


def _write(model: ModelProto, path: Path) -> None:
    from onnx import checker

    size = model.ByteSize()
    if size > _LARGEST:
        raise ValueError(f"the model takes {size} bytes, an ONNX file holds {_LARGEST} at most")
    checker.check_model(model, full_check=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(model.SerializeToString())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
