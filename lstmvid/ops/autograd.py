"""Autograd of an operator: `torch.library.register_autograd` for those with lists of tensors, without its trees.

torch's own takes all arguments, results and gradients apart as trees of any kind and puts them together again, forward
and backward: more calls of Python than all else that a small sequence costs. Here the operator's schema says where its
tensors are, and autograd gets them in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("lstmvid", "FRAGMENT")  # what it registers lives as long as it does


def register_autograd(name: str, backward: Callable, *, setup_context: Callable) -> None:
    """Make the operator `lstmvid::<stem>` differentiable, as `torch.library.register_autograd` does.

    `setup_context(ctx, inputs, output)` is as there. `backward(ctx, *grads)` has one gradient for each tensor that the
    operator returned, and `ctx.needs_input_grad` one truth for each that it took, absent ones included: those of lists
    in a row with the others, in the schema's order. It returns gradients in this row, up to the last that is not None.
    """
    stem = name.removeprefix("lstmvid::")
    operator = getattr(torch.ops.lstmvid, stem).default
    kinds = [str(argument.type) for argument in operator._schema.arguments]
    tensors = [(index, kind == "List[Tensor]") for index, kind in enumerate(kinds) if "Tensor" in kind]

    def below_autograd(keys, arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    def forward(ctx, *row_and_call):
        keys, arguments = row_and_call[-2:]
        result = below_autograd(keys, arguments)
        setup_context(ctx, arguments, result)
        return tuple(result)

    def backward_of_row(ctx, *grads):
        of_row = backward(ctx, *grads)
        return *of_row, *[None] * (len(ctx.needs_input_grad) - len(of_row))

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward_of_row)}
    differentiable = type(stem, (torch.autograd.Function,), members)

    def autograd(keys, *arguments):
        row = []
        for index, is_list in tensors:
            row += arguments[index] if is_list else [arguments[index]]
        if torch.is_grad_enabled() and True in [tensor is not None and tensor.requires_grad for tensor in row]:
            return differentiable.apply(*row, keys, arguments)
        return below_autograd(keys, arguments)

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
