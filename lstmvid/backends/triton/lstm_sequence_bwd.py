"""`lstm_sequence_bwd` on Triton: recurrent kernels a layer at a time, then products and sums over many steps at once.

Over all steps or, where gates weren't kept, over a window of time, last one first, whose gates are computed again just
before: a dense product, and a scan for the cells. Then no memory but the hidden states' own grows with the unroll.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..dense import allows_tf32, input_gradient_into, products_in_tf32
from ..layers import Weights, layer_weights
from ..recompute import preactivations_into
from ..streaming import Reader, outputs_read, readers
from ..weight_gradients import Saved, Totals, gradients_of_nothing, weight_gradients
from ..windows import Window, origins, windows
from .gate_sums import vector_gradients
from .recurrence import Record, Recurrence


class _Layer(NamedTuple):
    """One layer of all groups; states [G, B, H], sequences [G, T, B, ...]; G may be strided."""

    inputs: list[Reader]  # of each group, or none
    weights: list[Weights]
    reverse: list[bool]
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    cells: Tensor  # [G, T, B, H], or [G, windows, B, H]: those that each window starts from
    has_all_cells: bool
    gates: Tensor | None  # if they were kept
    grad_output: Tensor | None
    grad_cells: Tensor | None
    grad_h: Tensor  # float32: of the state after the steps, then of that before them
    grad_c: Tensor


class _Kept(NamedTuple):
    """Gates [G, n, B, 4H] and cells [G, n, B, H] of a window, and the cells [G, B, H] that it starts from."""

    gates: Tensor
    cells: Tensor
    start: Tensor


class _Run:
    """A layer on its way through the windows, last one first."""

    def __init__(self, layer: _Layer, longest: int, lengths: Tensor | None) -> None:
        groups, self.steps, batch, size = layer.output.shape
        self.layer, self.lengths = layer, lengths
        self.recurrence = Recurrence(
            layer.h_0,
            backward=True,
            HAS_PEEPHOLE=layer.weights[0].peephole is not None,
            IS_RAGGED=lengths is not None,
            HAS_GRAD_OUTPUT=layer.grad_output is not None,
            HAS_GRAD_CELLS=layer.grad_cells is not None,
        )
        self.grad_gates = layer.output.new_empty(groups, longest, batch, 4 * size)
        if layer.gates is None:  # memory that the windows share
            self.gates = torch.empty_like(self.grad_gates)
            self.cells = layer.c_0.new_empty(groups, longest, batch, size)

    def window(self, index: int, part: Window) -> _Kept:
        """Run the steps of the window of that index; leaves `grad_gates`."""
        if self.layer.gates is None:
            kept = self._compute_again(index, part)
        else:
            kept = _Kept(self.layer.gates, self.layer.cells, self.layer.c_0.contiguous())
        self.recurrence.run(part, lambda group, piece: self._record(group, piece, part, kept))
        return kept

    def saved(self, group: int, part: Window, kept: _Kept) -> Saved:
        """What the weights' gradients of a group are made of, beside those of the gates."""
        layer, back = self.layer, self.layer.reverse[group]
        times, x = part.times(self.steps, back), layer.inputs[group] if layer.inputs else None
        origin = origins(layer.h_0[group], self.lengths, part, self.steps, back)
        cells = kept.cells[group, : part.end - part.first]
        return Saved(x, times, cells, kept.start[group], layer.output[group], origin)

    def _record(self, group: int, piece: Window, part: Window, kept: _Kept) -> Record:
        layer, weights, back = self.layer, self.layer.weights[group], self.layer.reverse[group]
        times, first = piece.times(self.steps, back), part.times(self.steps, back).start
        here = slice(times.start - first, times.stop - first)  # in what the window has
        start = kept.start[group]
        if piece.first > part.first:
            start = kept.cells[group, here.stop if back else here.start - 1]
        return {
            "weight_hh": weights.weight_hh,
            "peephole": weights.peephole,
            "lengths": self.lengths,
            "reverse": int(back),
            "first_time": times.start,
            "cells": kept.cells[group, here],
            "gates": kept.gates[group, here],
            "c_start": start,
            "grad_output": None if layer.grad_output is None else layer.grad_output[group, times],
            "grad_cells": None if layer.grad_cells is None else layer.grad_cells[group, times],
            "grad_gates": self.grad_gates[group, here],
            "grad_h": layer.grad_h[group],
            "grad_c": layer.grad_c[group],
        }

    def _compute_again(self, index: int, part: Window) -> _Kept:
        layer, count = self.layer, part.end - part.first
        start = torch.stack([self._start(group, index, part) for group in range(len(layer.weights))])
        records: list[Record] = []
        for group, weights in enumerate(layer.weights):
            back, x = layer.reverse[group], layer.inputs[group] if layer.inputs else None
            times, z = part.times(self.steps, back), self.gates[group, :count]
            origin = origins(layer.h_0[group], self.lengths, part, self.steps, back)
            preactivations_into(z, x, times, layer.output[group], weights, origin)
            sequences = {"gates": z, "cells": self.cells[group, :count], "c_start": start[group]}
            options = {"peephole": weights.peephole, "lengths": self.lengths, "reverse": int(back)}
            records.append(sequences | options | {"first_time": times.start})
        self.recurrence.scan_gates(count, records)
        return _Kept(self.gates, self.cells, start)

    def _start(self, group: int, index: int, part: Window) -> Tensor:
        """The cells that a window starts from, as forward kept them."""
        layer, back = self.layer, self.layer.reverse[group]
        if not layer.has_all_cells:
            return layer.cells[group, index]
        if index == 0:
            return layer.c_0[group]
        times = part.times(self.steps, back)
        return layer.cells[group, times.stop if back else times.start - 1]


class _Call(NamedTuple):
    """What all layers share, and the gradients that it leaves room for; shapes as in the operator's schema."""

    lengths: Tensor | None
    parts: list[Window]
    is_shared: bool  # one input for several groups
    grad_inputs: list[Tensor]  # none if not needed
    totals: Totals | None  # if needed


def _run_layer(call: _Call, index: int, num_layers: int, layer: _Layer, below: Tensor | None) -> None:
    """Fill in the layer's gradients; `below` [G, T, B, H]: of the hidden states that are its input."""
    run = _Run(layer, call.parts[0].end, call.lengths)
    for number, part in reversed(list(enumerate(call.parts))):
        kept = run.window(number, part)
        for group, (weights, back) in enumerate(zip(layer.weights, layer.reverse, strict=True)):
            times, grad_gates = part.times(run.steps, back), run.grad_gates[group, : part.end - part.first]
            if call.totals is not None:
                saved = run.saved(group, part, kept)
                gradients = weight_gradients(weights, grad_gates, saved, back, vector_gradients)
                call.totals.add(group * num_layers + index, gradients)
            if below is not None:
                input_gradient_into(below[group, times], grad_gates, weights.weight_ih)
            elif call.grad_inputs:
                rows, places = layer.inputs[group].frames.places(times)
                target = call.grad_inputs[0 if call.is_shared else group][places]
                input_gradient_into(target, grad_gates[rows], weights.weight_ih, add=call.is_shared)


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
    if batch == 0 or steps == 0:
        return gradients_of_nothing(h_0, c_0, inputs, weights, grad_h_n, grad_c_n, need_inputs, need_weights)
    grad_y, grad_cells = (None if seed is None else seed.contiguous() for seed in (grad_output, grad_cells))
    parts = windows(steps, chunk if recompute else steps)
    call = _Call(
        lengths=None if lengths is None else lengths.to(h_0.device).contiguous(),
        parts=parts,
        is_shared=groups > 1 and len(inputs) == 1,
        # Several groups add up the gradient of an input that they share.
        grad_inputs=[h_0.new_zeros(x.shape) for x in inputs if need_inputs],
        totals=Totals(groups * layers, len(parts) > 1, c_0.dtype) if need_weights else None,
    )
    xs, lanes = readers(inputs, groups, steps, reverse, h_0)
    every = layer_weights(weights, bool(inputs), layers, bias, peephole)
    # Of each state, the gradient goes from that after the steps to that before them in the same memory.
    grad_h = torch.zeros_like(c_0, memory_format=torch.contiguous_format)
    grad_c = torch.zeros_like(grad_h)
    for total, seed in ((grad_h, grad_h_n), (grad_c, grad_c_n)):
        if seed is not None:
            total.copy_(seed)
    below = torch.empty_like(output) if layers > 1 else None
    with products_in_tf32(h_0.dtype, allows_tf32(h_0.dtype)):
        for index in reversed(range(layers)):
            part = (slice(None), index)
            layer = _Layer(
                inputs=outputs_read(hidden[:, index - 1].unbind(0), reverse) if index else xs,
                weights=every[index::layers],
                reverse=list(reverse),
                h_0=h_0[part],
                c_0=c_0[part],
                output=output if index == layers - 1 else hidden[part],
                cells=cells[part],
                has_all_cells=all_cells or not recompute,
                gates=None if recompute else gates[part],
                grad_output=grad_y,
                grad_cells=None if grad_cells is None else grad_cells[part],
                grad_h=grad_h[part],
                grad_c=grad_c[part],
            )
            _run_layer(call, index, layers, layer, below if index else None)
            grad_y = below
    for lane in lanes:
        lane.finish()
    grad_weights = [] if call.totals is None else call.totals.flat(h_0.dtype)
    return call.grad_inputs, grad_h.to(h_0.dtype), grad_c, grad_weights
