"""The operators' flat list of weights, taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
