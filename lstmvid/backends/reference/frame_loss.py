r"""The loss of frames that are read from a decoder's top layer, in plain torch: the equations, and their gradients.

With z = W_out h + b_out for each frame, v its target, summed over a frame's values (Srivastava et al., 2015, sec. 2.2):

    bernoulli   -v log p - (1 - v) log(1 - p),  p = sigmoid(z)      dz = p - v
    gaussian    (z - v)^2 / 2                                       dz = z - v
    rectified   (y - v)^2 / 2,                  y = max(0, z)       dz = y - v where z > 0, else 0

Operands are rounded to the input's dtype, everything else is computed in the *state dtype*: float32 for bfloat16 and
float16, otherwise the input's own. `summed_loss` is differentiable by autograd; `frame_loss` is what a kernel computes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _state_dtype(operand: torch.dtype) -> torch.dtype:
    return torch.float32 if operand in (torch.bfloat16, torch.float16) else operand


def _read(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    """z and v, in the state dtype; `uint8` targets are scaled by 1/255, those in host memory come to the others."""
    state, target = _state_dtype(hidden.dtype), target.to(hidden.device)
    z = hidden.to(state) @ weight.to(state).t()
    v = target.to(state) / 255 if target.dtype == torch.uint8 else target.to(state)
    return z if bias is None else z + bias.to(state), v


def _loss(z: Tensor, v: Tensor, likelihood: str) -> Tensor:
    if likelihood == "bernoulli":
        return F.binary_cross_entropy_with_logits(z, v, reduction="sum")
    return 0.5 * F.mse_loss(z if likelihood == "gaussian" else F.relu(z), v, reduction="sum")


def _gradient(z: Tensor, v: Tensor, likelihood: str) -> Tensor:
    if likelihood == "bernoulli":
        return torch.sigmoid(z) - v
    return z - v if likelihood == "gaussian" else torch.where(z > 0, z - v, 0)


def summed_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, likelihood: str) -> Tensor:
    """The sum over all frames, a scalar: hidden [T, B, H], weight [D, H], bias [D] or None, target [T, B, D]."""
    return _loss(*_read(hidden, weight, bias, target), likelihood)


def frame_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, likelihood: str, save: bool, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the operator does (`lstmvid/ops/frame_loss.py`): so many frames of each sequence at a time."""
    state = _state_dtype(hidden.dtype)
    loss = hidden.new_zeros((), dtype=state)
    grad_hidden = hidden.new_empty(hidden.shape if save else (0,))
    grad_weight = weight.new_zeros(weight.shape if save else (0,), dtype=state)
    grad_bias = weight.new_zeros(len(weight) if save and bias is not None else 0, dtype=state)
    for first in range(0, len(hidden), chunk):
        part = slice(first, first + chunk)
        z, v = _read(hidden[part], weight, bias, target[part])
        loss += _loss(z, v, likelihood)
        if save:
            dz = _gradient(z, v, likelihood).to(hidden.dtype).to(state).flatten(0, 1)
            grad_hidden[part] = (dz @ weight.to(state)).view(hidden[part].shape).to(hidden.dtype)
            grad_weight += dz.t() @ hidden[part].flatten(0, 1).to(state)
            if bias is not None:
                grad_bias += dz.sum(0)
    return loss, grad_hidden, grad_weight, grad_bias
