"""Gradients of biases and peepholes on Triton: both in one pass over the gates' gradients."""

from __future__ import annotations

import triton
from torch import Tensor

from ..layers import Weights
from ..weight_gradients import Saved
from .gate_sum_kernels import gate_sums_kernel
from .launch import on

PART_ROWS = 1024  # that one program adds up: decides how many parts there are, and so the order of the sums
BLOCK_R, BLOCK_H, WARPS = 16, 64, 4


def vector_gradients(weights: Weights, grad_gates: Tensor, saved: Saved, reverse: bool) -> list[Tensor]:
    """As `backends.weight_gradients.vector_gradients`: [4H] of the bias, [3H] of the peepholes, where there are any."""
    if weights.bias is None and weights.peephole is None:
        return []
    steps, batch, size = saved.cells.shape
    rows = steps * batch
    count = triton.cdiv(rows, PART_ROWS)
    parts = saved.cells.new_empty(count, 7, size)
    with on(parts.device):
        gate_sums_kernel[(triton.cdiv(size, BLOCK_H), count)](
            *(grad_gates, saved.cells, saved.c_0, parts, rows, batch, size),
            IS_REVERSE=reverse,
            HAS_PEEPHOLE=weights.peephole is not None,
            PART_ROWS=PART_ROWS,
            BLOCK_R=BLOCK_R,
            BLOCK_H=BLOCK_H,
            num_warps=WARPS,
        )
    total = parts.sum(0).to(grad_gates.dtype)
    gradients = [total[:4].flatten()] if weights.bias is not None else []
    return gradients + ([total[4:].flatten()] if weights.peephole is not None else [])
