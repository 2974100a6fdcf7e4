"""Gradients of a layer's weights from those of its gates' pre-activations, over all steps at once.

Library GEMMs and reductions, in a fixed order; no sequence is copied for them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dense import add_weight_gradient
from ..layers import Weights

CHUNK_BYTES = 64 << 20  # of the products that a reduction adds up, at a time


class Saved(NamedTuple):
    """What the forward pass left of one layer of one group: x [T, B, D], y and cells [T, B, H], h_0 and c_0 [B, H]."""

    x: Tensor | None
    y: Tensor
    h_0: Tensor
    c_0: Tensor
    cells: Tensor


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


def hidden_gradient(grad_gates: Tensor, output: Tensor, h_0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """[4H, H], of `weight_hh`: the operand is the hidden states that the steps started from.

    In padding both the gradients and the output are zero, so that a sequence's own first step is all that is apart.
    """
    first, later, before = (-1, grad_gates[:-1], output[1:]) if reverse else (0, grad_gates[1:], output[:-1])
    start = grad_gates[first]
    if reverse and lengths is not None:
        start = grad_gates[(lengths - 1).clamp_min(0), torch.arange(len(lengths), device=lengths.device)]
    return add_weight_gradient(add_weight_gradient(None, start, h_0), later, before)


def weight_gradients(
    weights: Weights, grad_gates: Tensor, saved: Saved, lengths: Tensor | None, reverse: bool
) -> list[Tensor]:
    """In the operator's order, those that the layer has; `grad_gates` [T, B, 4H]."""
    gradients = [] if saved.x is None else [add_weight_gradient(None, grad_gates, saved.x)]
    gradients.append(hidden_gradient(grad_gates, saved.y, saved.h_0, lengths, reverse))
    if weights.bias is not None:
        gradients.append(grad_gates.sum((0, 1)))  # accumulates in float32
    if weights.peephole is not None:
        gradients.append(peephole_gradient(grad_gates, saved.cells, saved.c_0, reverse).to(grad_gates.dtype))
    return gradients
