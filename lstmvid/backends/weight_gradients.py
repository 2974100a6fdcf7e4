"""Gradients of a layer's weights from those of its gates' pre-activations, over many steps at once.

Library GEMMs and reductions, in a fixed order; no sequence is copied for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .dense import add_weight_gradient
from .layers import Weights
from .streaming import Reader, input_weight_gradient
from .windows import Origins

CHUNK_BYTES = 64 << 20  # of the products that a reduction adds up, at a time


class Saved(NamedTuple):
    """What there is beside the gradients of one layer's gates in a window of n steps.

    x: what the layer reads, or None, and the window's time; cells [n, B, H] and c_0 [B, H], that the window starts
    from; output [T, B, H] of all steps, and which of it the window's steps started from.
    """

    x: Reader | None
    time: slice
    cells: Tensor
    c_0: Tensor
    output: Tensor
    origins: Origins


def peephole_gradient(grad_gates: Tensor, cells: Tensor, c_0: Tensor, reverse: bool) -> Tensor:
    """[3H]: sums over steps and batch of dz_i c_{t-1}, dz_f c_{t-1} and dz_o c_t, in the cells' dtype.

    In padding the cells carry their state, so that a step's neighbour always has the cell that it started from.
    """
    steps, batch, size = cells.shape
    z = grad_gates.unflatten(-1, (4, size))
    first, later, before = (steps - 1, z[:-1], cells[1:]) if reverse else (0, z[1:], cells[:-1])
    length = max(CHUNK_BYTES // (2 * batch * size * cells.element_size()), 1)
    total = cells.new_empty(3, size)
    total[:2] = (z[first, :, :2] * c_0.unsqueeze(1)).sum(0)
    for part, c in zip(later.split(length), before.split(length), strict=True):
        total[:2] += (part[:, :, :2] * c.unsqueeze(2)).sum((0, 1))
    total[2] = 0
    for part, c in zip(z.split(length), cells.split(length), strict=True):
        total[2] += (part[:, :, 3] * c).sum((0, 1))
    return total.flatten()


def hidden_gradient(grad_gates: Tensor, output: Tensor, origins: Origins) -> Tensor:
    """[4H, H], of `weight_hh`: the operand is the hidden states that the steps started from.

    In padding both the gradients and the output are zero, so that a sequence's own first step is all that is apart.
    """
    total = None
    if origins.start is not None:
        total = add_weight_gradient(None, origins.take_first(grad_gates), origins.start)
    return add_weight_gradient(total, grad_gates[origins.rest], output[origins.neighbours])


def vector_gradients(weights: Weights, grad_gates: Tensor, saved: Saved, reverse: bool) -> list[Tensor]:
    """Of the bias and the peepholes, those that the layer has, by the library's reductions."""
    gradients = []
    if weights.bias is not None:
        gradients.append(grad_gates.sum((0, 1)))  # accumulates in float32
    if weights.peephole is not None:
        gradients.append(peephole_gradient(grad_gates, saved.cells, saved.c_0, reverse).to(grad_gates.dtype))
    return gradients


def weight_gradients(
    weights: Weights,
    grad_gates: Tensor,
    saved: Saved,
    reverse: bool,
    vectors: Callable[[Weights, Tensor, Saved, bool], list[Tensor]] = vector_gradients,
) -> list[Tensor]:
    """In the operator's order, those that the layer has; `grad_gates` [n, B, 4H]. `vectors`: who reduces."""
    gradients = []
    if saved.x is not None:
        gradients.append(input_weight_gradient(grad_gates, saved.x, saved.time, saved.cells.dtype))
    gradients.append(hidden_gradient(grad_gates, saved.output, saved.origins))
    return gradients + vectors(weights, grad_gates, saved, reverse)


class Totals:
    """The weights' gradients of all layers; in parts, sums over windows in the state's dtype."""

    def __init__(self, number: int, in_parts: bool, state: torch.dtype) -> None:
        self.sums: list[list[Tensor]] = [[] for _ in range(number)]
        self.dtype = state if in_parts else None

    def add(self, place: int, gradients: list[Tensor]) -> None:
        """Of one window, to those of a layer."""
        sums = self.sums[place]
        if not sums:
            sums += gradients if self.dtype is None else [gradient.to(self.dtype) for gradient in gradients]
            return
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient

    def flat(self, dtype: torch.dtype) -> list[Tensor]:
        """In the operator's order."""
        return [total.to(dtype) for sums in self.sums for total in sums]


def gradients_of_nothing(h_0, c_0, inputs, weights, grad_h_n, grad_c_n, need_inputs: bool, need_weights: bool):
    """What `backward` returns for a call without a step or without a sequence."""
    ends = [
        torch.zeros_like(state) if grad is None else grad.clone() for state, grad in ((h_0, grad_h_n), (c_0, grad_c_n))
    ]
    none = [[torch.zeros_like(tensor) for tensor in given] for given in (inputs, weights)]
    return none[0] if need_inputs else [], *ends, none[1] if need_weights else []


def loop_gradients_of_nothing(
    first, truth, weights, head_weight, h_0, c_0, grad_h_n, grad_c_n, need_frames: bool, need_weights: bool
):
    """What a closed loop's `backward` returns likewise."""
    frames = [x for x in (first, truth) if x is not None]
    every = [*weights, head_weight, head_weight.new_empty(len(head_weight))]
    ends = (grad_h_n, grad_c_n, need_frames, need_weights)
    of_frames, of_h, of_c, of_weights = gradients_of_nothing(h_0, c_0, frames, every, *ends)
    return of_h, of_c, of_frames, of_weights
