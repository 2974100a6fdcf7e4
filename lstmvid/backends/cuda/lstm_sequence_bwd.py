"""`lstm_sequence_bwd` on NVIDIA GPUs: recurrent kernels a layer at a time, and library GEMMs for what they leave.

The kernel leaves the gradients of the gates' pre-activations; the others are made of them, many steps at once: over
all of them or, where gates weren't kept, over a window of time, last one first, whose gates are computed again just
before. Then no memory but the hidden states' own grows with the unroll.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..dense import input_gradient_into, products_in_tf32
from ..layers import Weights, layer_weights
from ..recompute import preactivations_into
from ..streaming import Reader, outputs_read, readers
from ..weight_gradients import Saved, Totals, gradients_of_nothing, weight_gradients
from ..windows import Window, origins, windows
from . import wavefront
from .recurrence import How, arguments, choose, choose_wavefront, launch, workspace
from .wavefront import Seeds, Stack


class _Layer(NamedTuple):
    """One layer of the groups of one launch; states [g, B, H], sequences [g, T, B, ...]; g may be strided."""

    inputs: list[Reader]  # of each group, or none
    weights: list[Weights]
    reverse: list[bool]
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    cells: Tensor  # [g, T, B, H], or [g, windows, B, H]: those that each window starts from
    has_all_cells: bool
    gates: Tensor | None  # if they were kept
    seeds: dict[str, Tensor | None]  # gradients of what forward returned, by the kernel's names
    grad_h_0: Tensor
    grad_c_0: Tensor


class _Piece(NamedTuple):
    """The gradients of a group's gates in some steps, and what the others are made of."""

    group: int
    times: slice
    grad_gates: Tensor  # [n, B, 4H]
    saved: Saved


class _Windows:
    """Gates and cells of a window, computed again in memory that the windows share."""

    def __init__(self, layer: _Layer, length: int, lengths: Tensor | None, how: How) -> None:
        groups, self.steps, batch, size = layer.output.shape
        self.layer, self.lengths, self.target = layer, lengths, how.target
        self.gates = layer.output.new_empty(groups, length, batch, 4 * size)
        # In order of time, and beside them the cells that the window starts from.
        self.cells = layer.c_0.new_empty(groups, length + 1, batch, size)
        call = arguments(layer.output.shape[1:], layer.weights, layer.reverse, lengths, how)
        names = ("steps", "batch", "hidden", "groups", "dtype", "reverse", "peephole", "lengths")
        self.call = {name: call[name] for name in names}

    def compute(self, index: int, window: Window) -> dict[str, list[int]]:
        """The window of that index: gates and cells as the kernels take tensors of all the steps."""
        layer = self.layer
        batch, size = layer.h_0.shape[1:]
        times = [window.times(self.steps, back) for back in layer.reverse]
        starts = torch.stack([self._start(group, index, time) for group, time in enumerate(times)])
        for group, time in enumerate(times):
            self._project(group, window, time)
            self.cells[group, self._before(group, time)] = starts[group]
        row, groups = batch * size, len(times)
        first_cells = [time.start - (not back) for time, back in zip(times, layer.reverse, strict=True)]
        tensors = {
            "gates": _native.group_addresses(self.gates, groups, [4 * row * time.start for time in times]),
            "cells": _native.group_addresses(self.cells, groups, [row * first for first in first_cells]),
        }
        _native.lstm_gates_cuda(
            **self.call,
            **tensors,
            c_0=_native.group_addresses(starts, groups),
            first_step=window.first,
            end_step=window.end,
            device=self.target.ordinal,
            stream=self.target.stream,
        )
        return tensors

    def cells_of(self, group: int, time: slice) -> tuple[Tensor, Tensor]:
        """The cells [n, B, H] after the window's steps, and those [B, H] that it starts from."""
        first, count = int(not self.layer.reverse[group]), time.stop - time.start
        return self.cells[group, first : first + count], self.cells[group, self._before(group, time)]

    def _before(self, group: int, time: slice) -> int:
        return time.stop - time.start if self.layer.reverse[group] else 0

    def _start(self, group: int, index: int, time: slice) -> Tensor:
        layer = self.layer
        if not layer.has_all_cells:
            return layer.cells[group, index]
        if index == 0:
            return layer.c_0[group]
        return layer.cells[group, time.stop if layer.reverse[group] else time.start - 1]

    def _project(self, group: int, window: Window, time: slice) -> None:
        layer = self.layer
        x = layer.inputs[group] if layer.inputs else None
        origin = origins(layer.h_0[group], self.lengths, window, self.steps, layer.reverse[group])
        z = self.gates[group, : time.stop - time.start]
        preactivations_into(z, x, time, layer.output[group], layer.weights[group], origin)


def _pieces(layer: _Layer, parts: list[Window], lengths: Tensor | None, how: How) -> Iterator[_Piece]:
    """Run the layer backwards; it is done with a piece's memory before the next one comes."""
    groups, steps, batch, size = layer.output.shape
    longest = parts[0].end
    grad_gates = layer.output.new_empty(groups, longest, batch, 4 * size)
    call = arguments(
        (steps, batch, size),
        layer.weights,
        layer.reverse,
        lengths,
        how,
        **layer.seeds,
        **{name: getattr(layer, name) for name in ("c_0", "cells", "gates", "grad_h_0", "grad_c_0")},
    )
    again = _Windows(layer, longest, lengths, how) if layer.gates is None else None
    call["grad_gates"] = _native.group_addresses(grad_gates, groups)
    _memory, address = workspace("bwd", call, longest + 1, layer.output)
    for index, part in reversed(list(enumerate(parts))):
        times = [part.times(steps, back) for back in layer.reverse]
        skipped = [time.start * batch * 4 * size for time in times]
        call["grad_gates"] = _native.group_addresses(grad_gates, groups, skipped)
        if again is not None:
            call |= again.compute(index, part)
        # Counted from the last step back; one more behind the first leaves the gradients of the initial states.
        last = steps - part.first + (part.first == 0)
        launch("bwd", call, Window(steps - part.end, last), address, how.target)
        for group, time in enumerate(times):
            x, back = layer.inputs[group] if layer.inputs else None, layer.reverse[group]
            if again is not None:
                cells, c_0 = again.cells_of(group, time)
            else:
                cells, c_0 = layer.cells[group], layer.c_0[group]
            origin = origins(layer.h_0[group], lengths, part, steps, back)
            saved = Saved(x, time, cells, c_0, layer.output[group], origin)
            yield _Piece(group, time, grad_gates[group, : part.end - part.first], saved)


class _Call(NamedTuple):
    """Arguments, contiguous, and the gradients that they leave room for; shapes as in the operator's schema."""

    inputs: list[Reader]  # of each group, or none
    weights: list[Weights]
    lengths: Tensor | None
    reverse: list[bool]
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    hidden: Tensor
    cells: Tensor
    gates: Tensor
    has_all_cells: bool
    seeds: Seeds  # of all groups
    parts: list[Window]
    grad_inputs: list[Tensor]  # none if not needed
    grad_h_0: Tensor
    grad_c_0: Tensor
    totals: Totals | None  # if needed

    def seeds_of(self, part: tuple, grad_y: Tensor | None) -> dict[str, Tensor | None]:
        """By the kernel's names; `grad_y` is that of the layer's own output."""
        of_states = {f"grad_{name}": getattr(self.seeds, name) for name in ("h_n", "c_n", "cells")}
        parts = {name: None if seed is None else seed[part] for name, seed in of_states.items()}
        return parts | {"grad_output": None if grad_y is None else grad_y[part[0]]}


def _layers_side_by_side(call: _Call, window: int, how: How) -> None:
    """Fill in the gradients of a single stack: all layers in each launch."""
    outputs = [*call.hidden[0].unbind(0), call.output[0]]
    source = call.inputs[0] if call.inputs else None
    stack = Stack(
        call.weights, source, call.h_0[0], call.c_0[0], outputs, call.cells[0], call.gates[0], call.reverse[0]
    )
    seeds = Seeds(*(None if seed is None else seed[0] for seed in call.seeds))
    grad_input = call.grad_inputs[0] if call.grad_inputs else None
    pieces = wavefront.backward(stack, seeds, call.grad_h_0[0], call.grad_c_0[0], grad_input, window, how)
    for index, grad_gates, saved in pieces:
        if call.totals is not None:
            call.totals.add(index, weight_gradients(call.weights[index], grad_gates, saved, call.reverse[0]))


def _layer_by_layer(call: _Call, how: How) -> None:
    """Fill in the gradients: as many groups in each launch as the plan says."""
    groups, layers = call.h_0.shape[:2]
    is_shared = len(call.grad_inputs) < groups
    grad_y = call.seeds.output
    # Of one layer after the other: the gradients of the hidden states that it had as input.
    below = torch.empty_like(call.output) if layers > 1 else None
    for index in reversed(range(layers)):
        xs = outputs_read(call.hidden[:, index - 1].unbind(0), call.reverse) if index else call.inputs
        y = call.output if index == layers - 1 else call.hidden[:, index]
        for together in how.launches(groups):
            part = (together, index)
            layer = _Layer(
                inputs=xs[together],
                weights=call.weights[index::layers][together],
                reverse=call.reverse[together],
                h_0=call.h_0[part],
                c_0=call.c_0[part],
                output=y[together],
                cells=call.cells[part],
                has_all_cells=call.has_all_cells,
                gates=call.gates[part] if call.gates.size(2) else None,
                seeds=call.seeds_of(part, grad_y),
                grad_h_0=call.grad_h_0[part],
                grad_c_0=call.grad_c_0[part],
            )
            for piece in _pieces(layer, call.parts, call.lengths, how):
                group, weight = together.start + piece.group, layer.weights[piece.group]
                if call.totals is not None:
                    gradients = weight_gradients(weight, piece.grad_gates, piece.saved, call.reverse[group])
                    call.totals.add(group * layers + index, gradients)
                if index:
                    input_gradient_into(below[group, piece.times], piece.grad_gates, weight.weight_ih)
                elif call.grad_inputs:
                    rows, places = xs[group].frames.places(piece.times)
                    target = call.grad_inputs[0 if is_shared else group][places]
                    input_gradient_into(target, piece.grad_gates[rows], weight.weight_ih, add=is_shared)
        grad_y = below


def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    inputs: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    output: Tensor,
    hidden: Tensor,
    cells: Tensor,
    gates: Tensor,
    steps: int,
    bias: bool,
    peephole: bool,
    reverse: Sequence[bool],
    all_cells: bool,
    recompute: bool,
    chunk: int,
    need_inputs: bool,
    need_weights: bool,
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """As the operator's schema says; lists are empty where not needed."""
    groups, layers, batch, _ = h_0.shape
    seeds = [None if seed is None else seed.contiguous() for seed in (grad_output, grad_h_n, grad_c_n, grad_cells)]
    if batch == 0 or steps == 0:
        return gradients_of_nothing(h_0, c_0, inputs, weights, *seeds[1:3], need_inputs, need_weights)
    lengths = None if lengths is None else lengths.to(h_0.device).contiguous()
    parts = windows(steps, chunk if recompute else steps)
    found = None if recompute or lengths is not None else choose_wavefront(h_0, steps, backward=True)
    how = choose(h_0, backward=True, in_parts=len(parts) > 1) if found is None else found[1]
    # Several groups add up the gradient of an input that they share.
    room = h_0.new_zeros if groups > 1 and len(inputs) == 1 else h_0.new_empty
    xs, lanes = readers(inputs, groups, steps, reverse, h_0)
    call = _Call(
        inputs=xs,
        weights=layer_weights(weights, bool(inputs), layers, bias, peephole),
        lengths=lengths,
        reverse=list(reverse),
        h_0=h_0.contiguous(),
        c_0=c_0.contiguous(),
        output=output,
        hidden=hidden,
        cells=cells,
        gates=gates,
        has_all_cells=all_cells or not recompute,
        seeds=Seeds(*seeds),
        parts=parts,
        grad_inputs=[room(x.shape) for x in inputs] if need_inputs else [],
        grad_h_0=torch.empty_like(h_0, memory_format=torch.contiguous_format),
        grad_c_0=torch.empty_like(c_0, memory_format=torch.contiguous_format),
        totals=Totals(groups * layers, len(parts) > 1 or found is not None, c_0.dtype) if need_weights else None,
    )
    with products_in_tf32(h_0.dtype, how.allow_tf32):
        if found is None:
            _layer_by_layer(call, how)
        else:
            _layers_side_by_side(call, *found)
    for lane in lanes:
        lane.finish()
    grad_weights = [] if call.totals is None else call.totals.flat(h_0.dtype)
    return call.grad_inputs, call.grad_h_0, call.grad_c_0, grad_weights
