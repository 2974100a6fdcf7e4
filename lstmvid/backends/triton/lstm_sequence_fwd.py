"""`lstm_sequence` on Triton: allocates, projects windows of steps, launches the recurrence a layer at a time.

All groups of a layer are in one launch. What isn't kept for backward is projected in windows of time, so that memory
doesn't grow with the unroll; the state goes from one window to the next through the tensors of the final states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..dense import allows_tf32, products_in_tf32
from ..layers import Weights, layer_weights
from ..streaming import Reader, outputs_read, project_into, readers
from ..windows import Window, windows
from .recurrence import Record, Recurrence

MIN_CHUNK = 256  # steps of a window at least: shorter ones make small products
CHUNK_BYTES = 64 << 20  # of projections; more steps than MIN_CHUNK only within it


class _Layer(NamedTuple):
    """One layer of all groups; states [G, B, H], sequences [G, T, B, ...]; G may be strided."""

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
    checkpoints: Tensor | None  # [G, number of windows, B, H]: the cells that each window starts from


def _windows(layer: _Layer, chunk: int) -> list[Window]:
    """The steps that are projected at once."""
    groups, steps, batch, size = layer.output.shape
    if layer.checkpoints is not None:
        return windows(steps, chunk)
    if not layer.inputs or layer.gates is not None:  # gates that are kept take the whole projection's memory anyway
        return windows(steps, steps)
    step_bytes = groups * batch * 4 * size * layer.output.element_size()
    count = -(-steps // max(MIN_CHUNK, CHUNK_BYTES // step_bytes))
    return windows(steps, -(-steps // count))


class _Run:
    """A layer on its way through the windows."""

    def __init__(self, layer: _Layer, longest: int, lengths: Tensor | None) -> None:
        groups, self.steps, batch, size = layer.output.shape
        self.layer, self.lengths = layer, lengths
        first = layer.weights[0]
        self.recurrence = Recurrence(
            layer.h_0,
            backward=False,
            HAS_PROJECTION=bool(layer.inputs),
            HAS_BIAS=first.bias is not None and not layer.inputs,
            HAS_PEEPHOLE=first.peephole is not None,
            IS_RAGGED=lengths is not None,
            SAVE_CELLS=layer.cells is not None,
            SAVE_GATES=layer.gates is not None,
        )
        self.projection = None  # of a window, [G, n, B, 4H]
        if layer.inputs and layer.gates is None:
            self.projection = layer.output.new_empty(groups, longest, batch, 4 * size)
        # Steps read h in one and write it into the other.
        self.h = layer.h_0.new_empty(2, groups, batch, size)
        self.h[0] = layer.h_0
        layer.c_n.copy_(layer.c_0)

    def window(self, index: int, part: Window) -> None:
        """Run the steps of the window of that index."""
        layer = self.layer
        if layer.checkpoints is not None:
            layer.checkpoints[:, index] = layer.c_n
        for group, (x, weights) in enumerate(zip(layer.inputs, layer.weights, strict=False)):
            times = part.times(self.steps, layer.reverse[group])
            project_into(self._projection_of(group, times, times), x, times, weights)
        self.recurrence.run(part, lambda group, piece: self._record(group, piece, part))

    def finish(self) -> None:
        """Leave the final state; that of the cells is where it is kept all along."""
        self.layer.h_n.copy_(self.h[self._slot(self.steps)])

    def _slot(self, done: int) -> int:
        """Which of the two is h after so many steps."""
        return 0 if self.recurrence.config.loops else done % 2

    def _projection_of(self, group: int, times: slice, window: slice) -> Tensor:
        """Of some of the window's times, in memory that the projections of all steps have or the window's."""
        if self.projection is None:
            return self.layer.gates[group, times]
        return self.projection[group, times.start - window.start : times.stop - window.start]

    def _record(self, group: int, piece: Window, part: Window) -> Record:
        layer, weights, back = self.layer, self.layer.weights[group], self.layer.reverse[group]
        times, slot = piece.times(self.steps, back), self._slot(piece.first)
        return {
            "weight_hh": weights.weight_hh,
            "projection": self._projection_of(group, times, part.times(self.steps, back)) if layer.inputs else None,
            "bias": weights.bias,
            "peephole": weights.peephole,
            "lengths": self.lengths,
            "reverse": int(back),
            "first_time": times.start,
            "h_from": self.h[slot, group],
            "h_to": self.h[1 - slot, group],
            "c": layer.c_n[group],
            "output": layer.output[group, times],
            "cells": None if layer.cells is None else layer.cells[group, times],
            "gates": None if layer.gates is None else layer.gates[group, times],
        }


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
    keep_gates = save and not recompute
    keep_cells, keep_checkpoints = all_cells or keep_gates, save and not (all_cells or keep_gates)
    output = h_0.new_empty(groups, steps, batch, size)
    h_n, c_n = (torch.empty_like(state, memory_format=torch.contiguous_format) for state in (h_0, c_0))
    hidden = h_0.new_empty(groups, layers - 1 if save else 0, steps, batch, size)
    kept_cells = steps if keep_cells else -(-steps // chunk) if keep_checkpoints else 0
    cells = c_0.new_empty(groups, layers, kept_cells, batch, size)
    gates = h_0.new_empty(groups, layers, steps if keep_gates else 0, batch, 4 * size)
    results = (output, h_n, c_n, hidden, cells, gates)
    if batch == 0 or steps == 0:
        h_n.copy_(h_0)
        c_n.copy_(c_0)
        return results
    xs, lanes = readers(inputs, groups, steps, reverse, h_0)
    every = layer_weights(weights, bool(inputs), layers, bias, peephole)
    lengths = None if lengths is None else lengths.to(h_0.device).contiguous()
    with products_in_tf32(h_0.dtype, allows_tf32(h_0.dtype)):
        for index in range(layers):
            y = output if index == layers - 1 else hidden[:, index] if save else torch.empty_like(output)
            layer = _Layer(
                inputs=xs,
                weights=every[index::layers],
                reverse=list(reverse),
                h_0=h_0[:, index],
                c_0=c_0[:, index],
                output=y,
                h_n=h_n[:, index],
                c_n=c_n[:, index],
                cells=cells[:, index] if keep_cells else None,
                gates=gates[:, index] if keep_gates else None,
                checkpoints=cells[:, index] if keep_checkpoints else None,
            )
            parts = _windows(layer, chunk)
            run = _Run(layer, parts[0].end, lengths)
            for number, part in enumerate(parts):
                run.window(number, part)
            run.finish()
            xs = outputs_read(y.unbind(0), reverse)
    for lane in lanes:
        lane.finish()
    return results
