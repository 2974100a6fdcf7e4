"""The operators' flat list of weights, taken apart, and their gradients, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """One layer's: [4H, D] or None (no input), [4H, H], [4H] or None, [3H] or None."""

    weight_ih: Tensor | None
    weight_hh: Tensor
    bias: Tensor | None
    peephole: Tensor | None


def layer_weights(
    weights: Sequence[Tensor], has_input: bool, num_layers: int, bias: bool, peephole: bool
) -> list[Weights]:
    """Every layer's of every group, contiguous, in the operator's order."""
    queue, layers = iter([w.contiguous() for w in weights]), []
    while (first := next(queue, None)) is not None:
        projected = has_input or len(layers) % num_layers > 0
        layers.append(
            Weights(
                first if projected else None,
                next(queue) if projected else first,
                next(queue) if bias else None,
                next(queue) if peephole else None,
            )
        )
    return layers


class WeightTotals:
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
    """The results of a call without a step or without a sequence."""
    ends = [
        torch.zeros_like(state) if grad is None else grad.clone() for state, grad in ((h_0, grad_h_n), (c_0, grad_c_n))
    ]
    none = [[torch.zeros_like(tensor) for tensor in given] for given in (inputs, weights)]
    return none[0] if need_inputs else [], *ends, none[1] if need_weights else []
