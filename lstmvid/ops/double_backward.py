"""Second derivatives of the operators: the reference is differentiable, so its first derivative is taken once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Again = Callable[[list[Tensor | None]], tuple[Sequence[Tensor], Sequence[Tensor | None], Sequence[Tensor]]]


def second_derivatives(
    saved: Sequence[Tensor | None], grads: Sequence[Tensor | None], again: Again
) -> list[Tensor | None]:
    """Gradients of an operator's backward, of each of its tensors that was `saved`.

    `grads` are those of what backward returned. `again(leaves)` runs the reference's forward on fresh leaves of what
    was saved and returns its results, their seeds among the leaves (None: unused), and the leaves whose gradients
    backward returned, in its order.
    """
    with torch.enable_grad():
        leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in saved]
        results, seeds, wanted = again(leaves)
        seeded = [(y, seed) for y, seed in zip(results, seeds, strict=True) if seed is not None]
        first = torch.autograd.grad(
            [y for y, _ in seeded],
            wanted,
            [seed for _, seed in seeded],
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        there = [leaf for leaf in leaves if leaf is not None]
        # A gradient that depends on nothing (of an unused cell state, say) has no derivative to add.
        pairs = [(y, g) for y, g in zip(first, grads, strict=True) if g is not None and y.requires_grad]
        second = iter(
            torch.autograd.grad([y for y, _ in pairs], there, [g for _, g in pairs], allow_unused=True)
            if pairs
            else [None] * len(there)
        )
    return [None if leaf is None else next(second) for leaf in leaves]
