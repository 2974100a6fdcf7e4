"""`frame_loss` on Triton: a kernel for logits, loss and their gradient; the other gradients by library GEMMs."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .. import streaming
from ..dense import allows_tf32, products_in_tf32
from .configuration import operands
from .frame_loss_kernels import frame_loss_kernel
from .launch import on, products

WARPS, STAGES = 8, 3
BLOCKS = {  # a program's tile of rows, of frame values, and of K
    "16 bits": {"BLOCK_R": 64, "BLOCK_D": 64, "BLOCK_K": 64},
    "tf32": {"BLOCK_R": 64, "BLOCK_D": 64, "BLOCK_K": 32},
    "ieee": {"BLOCK_R": 32, "BLOCK_D": 64, "BLOCK_K": 16},
}


def _sum_and_gradient(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, likelihood: str, grad: Tensor | None
) -> Tensor:
    """The loss of `hidden` [R, H] and `target` [R, D], float64; fills in `grad` [R, D], that of the logits."""
    rows, size = hidden.shape
    features = len(weight)
    precision = products(hidden.dtype, allows_tf32(hidden.dtype))
    blocks = BLOCKS[operands(hidden.dtype, precision)]
    grid = (triton.cdiv(rows, blocks["BLOCK_R"]), triton.cdiv(features, blocks["BLOCK_D"]))
    parts = hidden.new_empty(grid, dtype=torch.float32)
    with on(hidden.device):
        frame_loss_kernel[grid](
            *(hidden, weight, weight if bias is None else bias, target, target if grad is None else grad, parts),
            *(rows, size, features),
            LIKELIHOOD=likelihood,
            PRECISION=precision,
            HAS_BIAS=bias is not None,
            IS_BYTES=target.dtype == torch.uint8,
            SAVE=grad is not None,
            **blocks,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return parts.sum(dtype=torch.float64)


def frame_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, likelihood: str, save: bool, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the operator does (`lstmvid/ops/frame_loss.py`): so many frames of each sequence at a time."""
    steps, batch, size = hidden.shape
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    hidden, target = hidden.contiguous().view(steps * batch, size), target.contiguous().view(steps * batch, len(weight))
    loss = hidden.new_zeros((), dtype=torch.float64)
    grad_hidden = hidden.new_empty((steps * batch, size) if save else (0,))
    grad_weight = weight.new_zeros(weight.shape if save else (0,), dtype=torch.float32)
    grad_bias = weight.new_zeros(len(weight) if save and bias is not None else 0, dtype=torch.float32)
    # The sum alone leaves nothing to keep small on the device, if the target is there.
    length = (chunk if save or streaming.is_elsewhere(target, hidden.device) else steps) * batch
    grad = hidden.new_empty(min(length, steps * batch), len(weight)) if save else None
    with products_in_tf32(hidden.dtype, allows_tf32(hidden.dtype)):
        for first in range(0, steps * batch, max(length, 1)):
            part = slice(first, min(first + length, steps * batch))
            dz = None if grad is None else grad[: part.stop - first]
            loss += _sum_and_gradient(hidden[part], weight, bias, target[part].to(hidden.device), likelihood, dz)
            if dz is not None:
                torch.mm(dz, weight, out=grad_hidden[part])
                grad_weight += torch.mm(dz.t(), hidden[part])
                if bias is not None:
                    grad_bias += dz.sum(0, dtype=torch.float32)
    return loss.float(), grad_hidden.view(steps, batch, size) if save else grad_hidden, grad_weight, grad_bias
