"""`lstm_sequence` on NVIDIA GPUs: allocates, launches recurrent kernels a layer at a time, multiplies around them.

All groups of a layer run side by side in one launch where that is faster, by `backends/plan.py`. What isn't kept for
backward is projected in windows of time, so that memory doesn't grow with the unroll; the kernel's workspace carries
the state from one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..dense import products_in_tf32
from ..layers import Weights, layer_weights
from ..streaming import Reader, outputs_read, project_into, readers
from ..windows import Window, even_windows, windows
from . import wavefront
from .recurrence import How, arguments, choose, choose_wavefront, launch, workspace
from .wavefront import Stack


class _Layer(NamedTuple):
    """One layer of the groups of one launch; states [g, B, H], sequences [g, T, B, ...]; g may be strided."""

    inputs: list[Reader]  # of each group, or none
    weights: list[Weights]
    reverse: list[bool]
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None
    checkpoints: Tensor | None  # [g, number of windows, B, H]: the cells that each window starts from


def _windows(layer: _Layer, chunk: int) -> list[Window]:
    """The steps of each launch."""
    steps, batch, size = layer.output.shape[1:]
    if layer.checkpoints is not None:
        return windows(steps, chunk)
    if not layer.inputs or layer.gates is not None:  # gates that are kept take the whole projection's memory anyway
        return windows(steps, steps)
    return even_windows(steps, len(layer.weights) * batch * 4 * size * layer.output.element_size(), "cuda")


def _run(layer: _Layer, parts: list[Window], lengths: Tensor | None, how: How) -> None:
    """Fill in the layer's results."""
    groups, steps, batch, size = layer.output.shape
    has_input = bool(layer.inputs)
    names = ("h_0", "c_0", "output", "h_n", "c_n", "cells", "gates")
    call = arguments(
        (steps, batch, size),
        layer.weights,
        layer.reverse,
        lengths,
        how,
        projection=None,
        **{name: getattr(layer, name) for name in names},
    )
    call["bias"] = [None if has_input else weights.bias for weights in layer.weights]
    longest = parts[0].end
    _memory, address = workspace("fwd", call, longest, layer.output)
    projection = None
    if has_input:
        projection = layer.gates
        if projection is None:
            projection = layer.output.new_empty(groups, longest, batch, 4 * size)
    for index, part in enumerate(parts):
        if layer.checkpoints is not None:
            layer.checkpoints[:, index] = layer.c_n if index else layer.c_0
        if projection is not None:
            times = [part.times(steps, back) for back in layer.reverse]
            for group, (x, weights, time) in enumerate(zip(layer.inputs, layer.weights, times, strict=True)):
                project_into(projection[group, : part.end - part.first], x, time, weights)
            skipped = [time.start * batch * 4 * size for time in times]
            call["projection"] = _native.group_addresses(projection, groups, skipped)
        launch("fwd", call, part, address, how.target)


class _Call(NamedTuple):
    """Arguments, contiguous, and the results that they leave room for; shapes as in the operator's schema."""

    inputs: list[Reader]  # of each group, or none
    weights: list[Weights]
    lengths: Tensor | None
    reverse: list[bool]
    chunk: int
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    h_n: Tensor
    c_n: Tensor
    hidden: Tensor
    cells: Tensor
    gates: Tensor
    keeps: str  # what of the cells: "all" of them, those of "checkpoints", or "none"

    def lower_output(self, index: int) -> Tensor:
        """[G, T, B, H], of a layer below the top: where it is kept, else memory of its own."""
        return self.hidden[:, index] if self.hidden.size(1) else torch.empty_like(self.output)

    def kept(self, what: str, part: tuple) -> Tensor | None:
        """A part of the cells, where it is these that are kept."""
        return self.cells[part] if self.keeps == what else None

    def gates_of(self, part: tuple) -> Tensor | None:
        """A part of the gates, where they are kept."""
        return self.gates[part] if self.gates.size(2) else None


def _layers_side_by_side(call: _Call, window: int, how: How) -> None:
    """Fill in the results of a single stack: all layers in each launch."""
    layers = len(call.weights)
    stack = Stack(
        weights=call.weights,
        inputs=call.inputs[0] if call.inputs else None,
        h_0=call.h_0[0],
        c_0=call.c_0[0],
        outputs=[*(call.lower_output(index)[0] for index in range(layers - 1)), call.output[0]],
        cells=call.kept("all", (0,)),
        gates=call.gates_of((0,)),
        reverse=call.reverse[0],
    )
    wavefront.forward(stack, call.h_n[0], call.c_n[0], call.kept("checkpoints", (0,)), window, how)


def _layer_by_layer(call: _Call, how: How) -> None:
    """Fill in the results: as many groups in each launch as the plan says."""
    groups, layers = call.h_0.shape[:2]
    xs = call.inputs
    for index in range(layers):
        y = call.output if index == layers - 1 else call.lower_output(index)
        for together in how.launches(groups):
            part = (together, index)
            layer = _Layer(
                inputs=xs[together],
                weights=call.weights[index::layers][together],
                reverse=call.reverse[together],
                h_0=call.h_0[part],
                c_0=call.c_0[part],
                output=y[together],
                h_n=call.h_n[part],
                c_n=call.c_n[part],
                cells=call.kept("all", part),
                gates=call.gates_of(part),
                checkpoints=call.kept("checkpoints", part),
            )
            _run(layer, _windows(layer, call.chunk), call.lengths, how)
        xs = outputs_read(y.unbind(0), call.reverse)


def forward(
    inputs: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    steps: int,
    bias: bool,
    peephole: bool,
    reverse: Sequence[bool],
    save: bool,
    all_cells: bool,
    recompute: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator's schema says (`lstmvid/ops/lstm_sequence.py`)."""
    groups, layers, batch, size = h_0.shape
    h_0, c_0 = h_0.contiguous(), c_0.contiguous()
    keep_gates = save and not recompute
    keeps = "all" if all_cells or keep_gates else "checkpoints" if save else "none"
    kept_cells = {"all": steps, "checkpoints": -(-steps // chunk), "none": 0}[keeps]
    xs, lanes = readers(inputs, groups, steps, reverse, h_0)
    call = _Call(
        inputs=xs,
        weights=layer_weights(weights, bool(inputs), layers, bias, peephole),
        lengths=None if lengths is None else lengths.to(h_0.device).contiguous(),
        reverse=list(reverse),
        chunk=chunk,
        h_0=h_0,
        c_0=c_0,
        output=h_0.new_empty(groups, steps, batch, size),
        h_n=torch.empty_like(h_0),
        c_n=torch.empty_like(c_0),
        hidden=h_0.new_empty(groups, layers - 1 if save else 0, steps, batch, size),
        cells=c_0.new_empty(groups, layers, kept_cells, batch, size),
        gates=h_0.new_empty(groups, layers, steps if keep_gates else 0, batch, 4 * size),
        keeps=keeps,
    )
    if batch == 0 or steps == 0:
        call.h_n.copy_(h_0)
        call.c_n.copy_(c_0)
    else:
        _run_call(call, steps)
        for lane in lanes:
            lane.finish()
    return call.output, call.h_n, call.c_n, call.hidden, call.cells, call.gates


def _run_call(call: _Call, steps: int) -> None:
    found = None
    if call.lengths is None:
        window = call.chunk if call.keeps == "checkpoints" else None
        found = choose_wavefront(call.h_0, steps, backward=False, window=window)
    how = choose(call.h_0, backward=False) if found is None else found[1]
    with products_in_tf32(call.h_0.dtype, how.allow_tf32):
        if found is None:
            _layer_by_layer(call, how)
        else:
            _layers_side_by_side(call, *found)
