"""`closed_loop` on Triton, forward: allocates, and launches the steps a graph's length at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers import Weights, layer_weights
from ..windows import Window
from .closed_loop_kernels import loop_head_kernel, loop_projection_kernel
from .closed_loop_steps import Steps, pieces
from .recurrence import Record


class _Run:
    """A call on its way through the steps; tensors as in the operator's schema, contiguous."""

    def __init__(self, layers: list[Weights], head: tuple[Tensor, Tensor], link: str, h_0: Tensor, steps: int) -> None:
        num_layers, batch, size = h_0.shape
        self.layers, self.head, self.link, self.steps = layers, head, link, steps
        self.frame = h_0.new_zeros(batch, len(head[1]))  # what the next step sees: at first nothing
        # Steps read h in one and write it into the other.
        self.h = h_0.new_empty(2, num_layers, batch, size)
        self.h[0] = h_0
        self.truth = self.own = None

    def mix(self, truth: Tensor, own: Tensor) -> None:
        """Have the next frames be the decoder's own where `own`, else true ones."""
        self.truth, self.own = truth, own

    def prepare(self, z: Tensor, c: Tensor, kept: tuple[Tensor, Tensor, Tensor] | None) -> None:
        """Where results go: `c` [L, B, H] holds the cells from step to step; `kept`: (hidden, cells, gates) or none.

        What isn't kept is work of a window: the hidden states, and one layer's projections at a time.
        """
        self.z, self.c, self.kept = z, c, kept
        num_layers, batch, size = self.h.shape[1:]
        step_bytes = 0 if kept else (num_layers + 4) * batch * size * self.h.element_size()
        self.pieces = pieces(self.steps, step_bytes)
        if kept is None:
            longest = self.pieces[0].end
            self.hidden = self.h.new_empty(num_layers, longest, batch, size)
            self.projection = self.h.new_empty(longest, batch, 4 * size)
        first = self.layers[0]
        self.launcher = Steps(
            self.h[0],
            num_layers + 1,
            backward=False,
            HAS_PROJECTION=True,
            HAS_BIAS=False,  # it comes with the projection
            HAS_PEEPHOLE=first.peephole is not None,
            SAVE_CELLS=kept is not None,
            SAVE_GATES=kept is not None,
        )

    def run(self) -> Tensor:
        """All steps; returns the final h [L, B, H]."""
        for piece in self.pieces:
            count, has_next = piece.end - piece.first, piece.end < self.steps
            key = (count, has_next, len(self.head[1]), self.layers[0].bias is not None, self.link, self.own is not None)
            recurrences = [self._recurrence(index, piece) for index in range(len(self.layers))]
            products = [*(self._projection(index, piece) for index in range(len(self.layers))), self._head(piece)]
            self.launcher.run(
                *(key, recurrences, products),
                lambda table, aligned, count=count, has_next=has_next: self._launch(table, aligned, count, has_next),
            )
        return self.h[self.steps % 2]

    def _launch(self, table: Tensor, aligned: bool, steps: int, has_next: bool) -> None:
        launcher, frame, size = self.launcher, len(self.head[1]), self.h.size(-1)
        num_layers, has_bias = len(self.layers), self.layers[0].bias is not None
        for position in range(steps):
            for index in range(num_layers):
                depth = size if index else frame
                flags = {"HAS_BIAS": has_bias, "FROM_FRAME": index == 0}
                launcher.product(loop_projection_kernel, table, index, position, depth, 4 * size, aligned, **flags)
                launcher.step(table, index, position, steps, aligned)
            flags = {"LINK": self.link, "HAS_TRUTH": self.own is not None}
            flags["HAS_NEXT"] = has_next or position + 1 < steps
            launcher.product(loop_head_kernel, table, num_layers, position, size, frame, aligned, **flags)

    def _hidden(self, index: int, piece: Window) -> Tensor:
        """Of a layer, [n, B, H]."""
        if self.kept is None:
            return self.hidden[index, : piece.end - piece.first]
        return self.kept[0][index, piece.first : piece.end]

    def _gates(self, index: int, piece: Window) -> Tensor:
        """[n, B, 4H]: the projections of a layer and, where they are kept, its gates."""
        if self.kept is None:
            return self.projection[: piece.end - piece.first]
        return self.kept[2][index, piece.first : piece.end]

    def _recurrence(self, index: int, piece: Window) -> Record:
        slot, layer = piece.first % 2, self.layers[index]
        return {
            "weight_hh": layer.weight_hh,
            "projection": self._gates(index, piece),
            "peephole": layer.peephole,
            "h_from": self.h[slot, index],
            "h_to": self.h[1 - slot, index],
            "c": self.c[index],
            "output": self._hidden(index, piece),
            "cells": None if self.kept is None else self.kept[1][index, piece.first : piece.end],
            "gates": None if self.kept is None else self._gates(index, piece),
        }

    def _projection(self, index: int, piece: Window) -> Record:
        layer = self.layers[index]
        return {
            "source": self._hidden(index - 1, piece) if index else self.frame,
            "weight": layer.weight_ih,
            "bias": layer.bias,
            "target": self._gates(index, piece),
        }

    def _head(self, piece: Window) -> Record:
        record: Record = {
            "source": self._hidden(len(self.layers) - 1, piece),
            "weight": self.head[0],
            "bias": self.head[1],
            "target": self.z[piece.first : piece.end],
            "frame": self.frame,
        }
        if self.own is not None and piece.first < len(self.own):
            # A byte's address may be anything: as a number it isn't asked for its alignment.
            record |= {"truth": self.truth[piece.first :], "own": self.own[piece.first :].data_ptr()}
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
    layers = layer_weights(weights, True, num_layers, bias, peephole)
    run = _Run(layers, (head_weight.contiguous(), head_bias.contiguous()), link, h_0, steps)
    if first is not None:
        run.frame.copy_(first)
    if own is not None:
        run.mix(truth.contiguous(), own.contiguous())
    run.prepare(z, c_n, (hidden, cells, gates) if save else None)
    return z, h_n.copy_(run.run()), c_n, hidden, cells, gates
