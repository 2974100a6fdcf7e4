"""The dense products around a recurrence, by library GEMM, over all steps at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Multiply-adds from which oneDNN's faster product makes up for its slower call.
_WORTH_ONE_DNN = 1 << 20

# On a CPU the same bits for any number of threads: a library that divides long sums among them, which it does in narrow
# products, is given no sums as long as that (how these were found: docs/performance.md).
_MKL_DEPTH = {torch.float32: 256, torch.float64: 128}
_ONE_DNN_DEPTH = 4096


def _one_dnn_serves(x: Tensor, weight: Tensor) -> bool:
    # In float32 torch's own products go to MKL, which reaches half of oneDNN's speed on AMD processors
    # (docs/performance.md); in bfloat16 both are oneDNN.
    columns, depth = weight.shape
    return (
        x.dtype == torch.float32
        and (
            x.numel() * columns >= _WORTH_ONE_DNN
            or depth > _MKL_DEPTH[x.dtype]
            or columns == 1
            or x.numel() == depth  # one row
        )
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [..., K] @ weight [N, K]^T + bias [N]`."""
    if x.device.type != "cpu" or x.dtype not in _MKL_DEPTH or x.numel() == 0:
        return torch.nn.functional.linear(x, weight, bias)
    has_one_dnn, depth = _one_dnn_serves(x, weight), weight.size(1)
    part = _ONE_DNN_DEPTH if has_one_dnn else _MKL_DEPTH[x.dtype]
    total = None
    for first in range(0, depth, part):
        terms = slice(first, first + part)
        operands = (x, weight) if depth <= part else (x[..., terms].contiguous(), weight[:, terms].contiguous())
        if has_one_dnn:
            product = torch.ops.mkldnn._linear_pointwise(*operands, bias, "none", [], "")
        else:
            product = torch.nn.functional.linear(*operands, bias)
        total, bias = product if total is None else total.add_(product), None
    return total


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`linear` into memory that is there already: `out [..., N]`, contiguous."""
    flat, target, columns = x.flatten(0, -2), out.view(-1, out.size(-1)), weight.t()
    if bias is None:
        torch.mm(flat, columns, out=target)
    else:
        torch.addmm(bias, flat, columns, out=target)


def add_linear(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """`out [..., N] += x [..., K] @ weight [N, K]^T`; `out` contiguous."""
    out.view(-1, out.size(-1)).addmm_(x.flatten(0, -2), weight.t())


def input_gradient(grad_gates: Tensor, weight_ih: Tensor) -> Tensor:
    """`dx [T, B, D]` of a projection, from `grad_gates [T, B, 4H]`."""
    return linear(grad_gates, weight_ih.t().contiguous())


def turned(sequence: Tensor) -> Tensor:
    """`[K, T B]` of a sequence `[T, B, K]`, contiguous: as the products over steps and batch take it."""
    return sequence.flatten(0, -2).t().contiguous()


def weight_gradient(grad_gates: Tensor, operand: Tensor) -> Tensor:
    """`[4H, K]`: the sum over steps and batch of `grad_gates [4H, T B]` times `operand [K, T B]`, both turned."""
    return linear(grad_gates, operand)


def input_gradient_into(out: Tensor, grad_gates: Tensor, weight_ih: Tensor, *, add: bool = False) -> None:
    """`input_gradient` into memory that is there already, or added to what it holds: `out [T, B, D]`, contiguous."""
    flat, target = grad_gates.flatten(0, -2), out.view(-1, out.size(-1))
    if add:
        target.addmm_(flat, weight_ih)
    else:
        torch.mm(flat, weight_ih, out=target)


def add_weight_gradient(total: Tensor | None, grad_gates: Tensor, operand: Tensor) -> Tensor:
    """`weight_gradient` without copies of its operands, added in place to a total where there is one."""
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
