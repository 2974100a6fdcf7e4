"""`closed_loop` on Triton, forward: allocates, and launches all steps at once or a graph's length at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import Weights, layer_weights
from ..windows import Window
from .closed_loop_kernels import loop_head_kernel, loop_projection_kernel
from .closed_loop_steps import Steps
from .closed_loop_whole_kernels import loop_whole_fwd_kernel
from .recurrence import Record


class _Kept(NamedTuple):
    """What backward needs, as in the operator's schema."""

    hidden: Tensor
    cells: Tensor
    gates: Tensor


class _Call(NamedTuple):
    """What a call was given and where its results go, contiguous, as in the operator's schema."""

    layers: list[Weights]
    head_weight: Tensor
    head_bias: Tensor
    link: str
    truth: Tensor | None
    own: Tensor | None
    z: Tensor
    c_n: Tensor  # holds the cells from step to step
    kept: _Kept | None


class _Run:
    """A call on its way through the steps.

    What isn't kept is work of a window: the hidden states, and one layer's projections at a time. One launch for all
    steps has none.
    """

    def __init__(self, call: _Call, first: Tensor | None, h_0: Tensor) -> None:
        num_layers, batch, size = h_0.shape
        self.call, self.steps, self.size = call, len(call.z), size
        self.frame = call.z.new_zeros(batch, call.z.size(-1))  # what the next step sees: at first maybe nothing
        if first is not None:
            self.frame.copy_(first)
        self.launcher = Steps(
            h_0,
            call.z.size(-1),
            backward=False,
            HAS_PROJECTION=True,
            HAS_BIAS=False,  # it comes with the projection
            HAS_PEEPHOLE=call.layers[0].peephole is not None,
            SAVE_CELLS=call.kept is not None,
            SAVE_GATES=call.kept is not None,
        )
        is_whole = self.launcher.whole is not None
        # Steps read h in one and write it into the other; one launch for all of them in the same.
        self.h = h_0.new_empty(1 if is_whole else 2, num_layers, batch, size)
        self.h[0] = h_0
        step_bytes = 0 if call.kept else (num_layers + 4) * batch * size * h_0.element_size()
        self.pieces = self.launcher.pieces(self.steps, step_bytes)
        self.hidden = self.projection = None
        if call.kept is None and not is_whole:
            longest = self.pieces[0].end
            self.hidden = h_0.new_empty(num_layers, longest, batch, size)
            self.projection = h_0.new_empty(longest, batch, 4 * size)

    def run(self) -> Tensor:
        """All steps; returns the final h [L, B, H]."""
        call, indices = self.call, range(len(self.call.layers))
        for piece in self.pieces:
            count, has_next = piece.end - piece.first, piece.end < self.steps
            key = (count, has_next, call.layers[0].bias is not None, call.link, call.own is not None)
            recurrences = [self._recurrence(index, piece) for index in indices]
            products = [*(self._projection(index, piece) for index in indices), self._head(piece)]
            self.launcher.run(
                *(key, recurrences, products),
                lambda table, aligned, count=count, has_next=has_next: self._launch(table, aligned, count, has_next),
            )
        return self.h[self.steps % len(self.h)]

    def _launch(self, table: Tensor, aligned: bool, steps: int, has_next: bool) -> None:
        call, launcher, size, frame = self.call, self.launcher, self.size, self.call.z.size(-1)
        num_layers, has_bias = len(call.layers), call.layers[0].bias is not None
        if launcher.whole is not None:
            flags = {"LINK": call.link, "HAS_BIAS": has_bias, "HAS_PEEPHOLE": call.layers[0].peephole is not None}
            flags |= {"HAS_TRUTH": call.own is not None, "SAVE": call.kept is not None}
            launcher.all_steps(loop_whole_fwd_kernel, table, steps, aligned, **flags)
            return
        for position in range(steps):
            for index in range(num_layers):
                depth = size if index else frame
                flags = {"HAS_BIAS": has_bias, "FROM_FRAME": index == 0}
                launcher.product(loop_projection_kernel, table, index, position, depth, 4 * size, aligned, **flags)
                launcher.step(table, index, position, steps, aligned)
            flags = {"LINK": call.link, "HAS_TRUTH": call.own is not None}
            flags["HAS_NEXT"] = has_next or position + 1 < steps
            launcher.product(loop_head_kernel, table, num_layers, position, size, frame, aligned, **flags)

    def _hidden(self, index: int, piece: Window) -> Tensor | None:
        """Of a layer, [n, B, H], if anything is to have them."""
        if self.call.kept is not None:
            return self.call.kept.hidden[index, piece.first : piece.end]
        return None if self.hidden is None else self.hidden[index, : piece.end - piece.first]

    def _gates(self, index: int, piece: Window) -> Tensor | None:
        """[n, B, 4H]: the projections of a layer and, where they are kept, its gates."""
        if self.call.kept is not None:
            return self.call.kept.gates[index, piece.first : piece.end]
        return None if self.projection is None else self.projection[: piece.end - piece.first]

    def _recurrence(self, index: int, piece: Window) -> Record:
        layer, kept = self.call.layers[index], self.call.kept
        h_from, h_to = (self.h[(piece.first + after) % len(self.h), index] for after in (0, 1))
        return {
            "weight_hh": layer.weight_hh,
            "projection": self._gates(index, piece),
            "peephole": layer.peephole,
            "h_from": h_from,
            "h_to": h_to,
            "c": self.call.c_n[index],
            "output": self._hidden(index, piece),
            "cells": None if kept is None else kept.cells[index, piece.first : piece.end],
            "gates": None if kept is None else self._gates(index, piece),
        }

    def _projection(self, index: int, piece: Window) -> Record:
        layer = self.call.layers[index]
        return {
            "source": self._hidden(index - 1, piece) if index else self.frame,
            "weight": layer.weight_ih,
            "bias": layer.bias,
            "target": self._gates(index, piece),
        }

    def _head(self, piece: Window) -> Record:
        call = self.call
        record: Record = {
            "source": self._hidden(len(call.layers) - 1, piece),
            "weight": call.head_weight,
            "bias": call.head_bias,
            "target": call.z[piece.first : piece.end],
            "frame": self.frame,
        }
        if call.own is not None and piece.first < len(call.own):
            # A byte's address may be anything: as a number it isn't asked for its alignment.
            record |= {"truth": call.truth[piece.first :], "own": call.own[piece.first :].data_ptr()}
        return record


def forward(
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
    truth: Tensor | None,
    own: Tensor | None,
    steps: int,
    bias: bool,
    peephole: bool,
    link: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator's schema says (`lstmvid/ops/closed_loop.py`)."""
    num_layers, batch, size = h_0.shape
    count = steps if save else 0
    z = h_0.new_empty(steps, batch, len(head_bias))
    h_n, c_n = (torch.empty_like(state, memory_format=torch.contiguous_format) for state in (h_0, c_0))
    c_n.copy_(c_0)
    hidden = h_0.new_empty(num_layers, count, batch, size)
    cells = c_0.new_empty(num_layers, count, batch, size)
    gates = h_0.new_empty(num_layers, count, batch, 4 * size)
    if batch == 0 or steps == 0:
        return z, h_n.copy_(h_0), c_n, hidden, cells, gates
    truth, own = (None if tensor is None else tensor.contiguous() for tensor in (truth, own))
    call = _Call(
        layers=layer_weights(weights, True, num_layers, bias, peephole),
        head_weight=head_weight.contiguous(),
        head_bias=head_bias.contiguous(),
        link=link,
        truth=truth,
        own=own,
        z=z,
        c_n=c_n,
        kept=_Kept(hidden, cells, gates) if save else None,
    )
    return z, h_n.copy_(_Run(call, first, h_0).run()), c_n, hidden, cells, gates
