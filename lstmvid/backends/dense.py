"""The dense products around a recurrence, by library GEMM, over all steps at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`x [..., K] @ weight [N, K]^T + bias [N]` into memory that is there already: `out [..., N]`, contiguous."""
    flat, target, columns = x.flatten(0, -2), out.view(-1, out.size(-1)), weight.t()
    if bias is None:
        torch.mm(flat, columns, out=target)
    else:
        torch.addmm(bias, flat, columns, out=target)


def add_linear(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """`out [..., N] += x [..., K] @ weight [N, K]^T`; `out` contiguous."""
    out.view(-1, out.size(-1)).addmm_(x.flatten(0, -2), weight.t())


def input_gradient_into(out: Tensor, grad_gates: Tensor, weight_ih: Tensor, *, add: bool = False) -> None:
    """`dx [T, B, D]` of a projection, from `grad_gates [T, B, 4H]`, into `out`, contiguous, or added to it."""
    flat, target = grad_gates.flatten(0, -2), out.view(-1, out.size(-1))
    if add:
        target.addmm_(flat, weight_ih)
    else:
        torch.mm(flat, weight_ih, out=target)


def add_weight_gradient(total: Tensor | None, grad_gates: Tensor, operand: Tensor) -> Tensor:
    """`[4H, K]`: the sum over steps and batch of gradients times operands, added in place to a total if given."""
    rows, columns = grad_gates.flatten(0, -2).t(), operand.flatten(0, -2)
    return torch.mm(rows, columns) if total is None else total.addmm_(rows, columns)


def allows_tf32(dtype: torch.dtype) -> bool:
    """Whether float32 products may be computed in tf32: by cuDNN's setting for RNNs, as in `torch.nn.LSTM`."""
    return dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32"


@contextmanager
def products_in_tf32(dtype: torch.dtype, allowed: bool) -> Iterator[None]:
    """The library's float32 products as the recurrence's own, not by the setting for products.

    The newer setting, which a product reads; the older ones, which refuse a mixture, are as before when this ends.
    """
    if dtype != torch.float32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
