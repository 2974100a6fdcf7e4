"""`closed_loop_bwd` on Triton: launches of the steps, last one first, then products and sums over all steps at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..dense import add_weight_gradient, allows_tf32, input_gradient_into, products_in_tf32
from ..layers import Weights, layer_weights
from ..reference.closed_loop import frames_read
from ..streaming import outputs_read
from ..weight_gradients import Saved, loop_gradients_of_nothing, weight_gradients
from ..windows import Window, origins
from .closed_loop_kernels import loop_back_kernel, loop_frame_bwd_kernel
from .closed_loop_steps import Steps
from .closed_loop_whole_kernels import loop_whole_bwd_kernel
from .gate_sums import vector_gradients
from .recurrence import Record


class _Call(NamedTuple):
    """What forward was given and left, contiguous, as in the operator's schema."""

    layers: list[Weights]
    head_weight: Tensor
    link: str
    own: Tensor | None
    c_0: Tensor
    z: Tensor
    cells: Tensor
    gates: Tensor
    grad_z: Tensor | None


class _Run:
    """A call on its way back through the steps: leaves `grad_frames` [T, B, D], of z, and `grad_gates` [L, T, B, 4H].

    `grad_h` and `grad_c` [L, B, H], float32: of the state after the steps, then of that before them.
    """

    def __init__(self, call: _Call, grad_h: Tensor, grad_c: Tensor) -> None:
        self.call, self.grad_h, self.grad_c = call, grad_h, grad_c
        self.num_layers, self.steps, batch, size = call.cells.shape
        self.grad_frames, self.grad_gates = torch.empty_like(call.z), torch.empty_like(call.gates)
        self.launcher = Steps(
            call.gates[:, 0, :, :size],  # of the sizes of a state
            call.z.size(-1),
            backward=True,
            HAS_PEEPHOLE=call.layers[0].peephole is not None,
            HAS_GRAD_OUTPUT=True,
            HAS_GRAD_CELLS=False,
        )
        self.pieces = self.launcher.pieces(self.steps, batch * size * call.z.element_size())
        # Work of a window, each layer's in turn: the gradient of its output. One launch for all steps has none.
        self.above = None
        if self.launcher.whole is None:
            self.above = call.z.new_empty(self.pieces[0].end, batch, size)

    def run(self) -> None:
        """All steps."""
        call = self.call
        for piece in reversed(self.pieces):
            count, has_later = piece.end - piece.first, piece.end < self.steps
            key = (count, has_later, call.link, call.own is not None, call.grad_z is not None)
            recurrences = [self._recurrence(index, piece) for index in range(self.num_layers)]
            products = [self._frame(piece), *(self._above(index, piece) for index in range(self.num_layers))]
            self.launcher.run(
                *(key, recurrences, products),
                lambda table, aligned, count=count, has_later=has_later: self._launch(table, aligned, count, has_later),
            )

    def _launch(self, table: Tensor, aligned: bool, steps: int, has_later: bool) -> None:
        call, launcher, top = self.call, self.launcher, self.num_layers - 1
        size, frame = call.cells.size(-1), call.z.size(-1)
        flags = {"LINK": call.link, "HAS_TRUTH": call.own is not None, "HAS_GRAD_Z": call.grad_z is not None}
        if launcher.whole is not None:
            flags["HAS_PEEPHOLE"] = call.layers[0].peephole is not None
            launcher.all_steps(loop_whole_bwd_kernel, table, steps, aligned, **flags)
            return
        for position in reversed(range(steps)):
            flags["HAS_LATER"] = has_later or position + 1 < steps
            launcher.product(loop_frame_bwd_kernel, table, 0, position, 4 * size, frame, aligned, **flags)
            for index in reversed(range(self.num_layers)):
                depth = frame if index == top else 4 * size
                launcher.product(loop_back_kernel, table, 1 + index, position, depth, size, aligned)
                launcher.step(table, index, position, steps, aligned)
        for index in range(self.num_layers):  # leaves the gradients of the state before the steps
            launcher.step(table, index, -1, steps, aligned)

    def _recurrence(self, index: int, piece: Window) -> Record:
        call, times = self.call, slice(piece.first, piece.end)
        return {
            "weight_hh": call.layers[index].weight_hh,
            "peephole": call.layers[index].peephole,
            "cells": call.cells[index, times],
            "gates": call.gates[index, times],
            "c_start": call.cells[index, piece.first - 1] if piece.first else call.c_0[index],
            "grad_output": self.above,
            "grad_gates": self.grad_gates[index, times],
            "grad_h": self.grad_h[index],
            "grad_c": self.grad_c[index],
        }

    def _frame(self, piece: Window) -> Record:
        """Of z, from the bottom layer's gates a step later and from what was given."""
        call, times = self.call, slice(piece.first, piece.end)
        record: Record = {
            "source": self.grad_gates[0, piece.first + 1 :] if piece.first + 1 < self.steps else None,
            "weight": call.layers[0].weight_ih,
            "target": self.grad_frames[times],
            "z": call.z[times],
            "grad_z": None if call.grad_z is None else call.grad_z[times],
        }
        if call.own is not None and piece.first < len(call.own):
            record["own"] = call.own[piece.first :].data_ptr()
        return record

    def _above(self, index: int, piece: Window) -> Record:
        """Of a layer's output: from the head's, or from the gates of the layer above it."""
        times, is_top = slice(piece.first, piece.end), index + 1 == self.num_layers
        return {
            "source": self.grad_frames[times] if is_top else self.grad_gates[index + 1, times],
            "weight": self.call.head_weight if is_top else self.call.layers[index + 1].weight_ih,
            "target": self.above,
        }


def _frame_gradients(
    grad_gates: Tensor, weight_ih: Tensor, first: Tensor | None, truth: Tensor | None, own: Tensor | None
) -> list[Tensor]:
    """Of `first` and of `truth`, where they are there, from the bottom layer's `grad_gates [T, B, 4H]`."""
    gradients = []
    for given, part in ((first, grad_gates[:1]), (truth, grad_gates[1:])):
        if given is not None:
            gradient = torch.empty_like(given, memory_format=torch.contiguous_format)
            input_gradient_into(gradient.view(len(part), *given.shape[-2:]), part, weight_ih)
            gradients.append(gradient)
    if truth is not None:
        gradients[-1].masked_fill_(own.unsqueeze(-1), 0)
    return gradients


def _weight_gradients(run: _Run, h_0: Tensor, first: Tensor | None, truth: Tensor | None, hidden: Tensor):
    """In the operator's order: of each layer, then of the head."""
    call, gradients = run.call, []
    x = frames_read(call.link, call.z, first, truth, call.own)
    everything = Window(0, run.steps)
    for index, layer in enumerate(call.layers):
        origin = origins(h_0[index], None, everything, run.steps, False)
        (reader,) = outputs_read([x], [False])
        saved = Saved(
            reader, everything.times(run.steps, False), call.cells[index], call.c_0[index], hidden[index], origin
        )
        gradients += weight_gradients(layer, run.grad_gates[index], saved, False, vector_gradients)
        x = hidden[index]
    return [*gradients, add_weight_gradient(None, run.grad_frames, x), run.grad_frames.sum((0, 1))]


def backward(
    grad_z: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    head_weight: Tensor,
    truth: Tensor | None,
    own: Tensor | None,
    z: Tensor,
    hidden: Tensor,
    cells: Tensor,
    gates: Tensor,
    steps: int,
    bias: bool,
    peephole: bool,
    link: str,
    need_frames: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """As the operator's schema says; lists are empty where not needed."""
    if h_0.size(1) == 0 or steps == 0:
        given, ends = (first, truth, weights, head_weight), (h_0, c_0, grad_h_n, grad_c_n)
        return loop_gradients_of_nothing(*given, *ends, need_frames, need_weights)
    grad_h, grad_c = (torch.zeros_like(c_0, memory_format=torch.contiguous_format) for _ in range(2))
    for total, seed in ((grad_h, grad_h_n), (grad_c, grad_c_n)):
        if seed is not None:
            total.copy_(seed)
    layers = layer_weights(weights, True, len(h_0), bias, peephole)
    own, grad_z = (None if tensor is None else tensor.contiguous() for tensor in (own, grad_z))
    call = _Call(layers, head_weight.contiguous(), link, own, c_0.contiguous(), z, cells, gates, grad_z)
    run = _Run(call, grad_h, grad_c)
    run.run()
    of_frames, of_weights = [], []
    with products_in_tf32(h_0.dtype, allows_tf32(h_0.dtype)):
        if need_frames:
            of_frames = _frame_gradients(run.grad_gates[0], layers[0].weight_ih, first, truth, own)
        if need_weights:
            of_weights = _weight_gradients(run, h_0, first, truth, hidden)
    return grad_h.to(h_0.dtype), grad_c, of_frames, of_weights
