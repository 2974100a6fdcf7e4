"""The dense products around a recurrence on the CPU, over all steps at once.

By a kernel of ours (csrc/cpu/matrix_product_kernels.cpp): it takes factors as they lie, adds to what is there, and
gives the same bits for any number of threads, which the libraries do not (docs/performance.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _native

_LIBRARY_DEPTH = 4096  # oneDNN divides sums longer than that among threads


def _library_is_faster(left: Tensor, right: Tensor) -> bool:
    """Of a single row: packing the other factor takes as long as three products by it."""
    return (
        left.size(0) == 1
        and left.dtype == torch.float32
        and left.size(1) <= _LIBRARY_DEPTH
        and right.stride(0) == 1
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(left: Tensor, right: Tensor, total: Tensor | None = None) -> Tensor:
    """`left [M, K] @ right [K, N]`, added in place to a total where there is one, which may have a wider dtype.

    Of each factor the rows or the columns are contiguous; of a total the rows.
    """
    rows, depth, columns = *left.shape, right.size(1)
    if depth == 0:
        return left.new_zeros(rows, columns) if total is None else total
    if _library_is_faster(left, right):
        out = torch.ops.mkldnn._linear_pointwise(left.contiguous(), right.t().contiguous(), None, "none", [], "")
        return out if total is None else total.add_(out)
    if total is not None and total.dtype == left.dtype:
        _native.matrix_product_cpu(left, right, total, add=True)
        return total
    out = _native.empty([rows, columns], left.dtype)
    _native.matrix_product_cpu(left, right, out, add=False)
    return out if total is None else total.add_(out)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x [..., K] @ weight [N, K]^T`."""
    return product(x.flatten(0, -2), weight.t()).view(*x.shape[:-1], weight.size(0))


def input_gradient(grad_gates: Tensor, weight: Tensor) -> Tensor:
    """`dx [..., K]` of what `linear` made, from `grad_gates [..., N]`."""
    return product(grad_gates.flatten(0, -2), weight).view(*grad_gates.shape[:-1], weight.size(1))


def over_steps(left: Tensor, right: Tensor, total: Tensor | None = None) -> Tensor:
    """`[M, N]`: the sum over steps and batch of `left [T, B, M]` times `right [T, B, N]`, added to a total likewise."""
    return product(left.flatten(0, -2).t(), right.flatten(0, -2), total)
