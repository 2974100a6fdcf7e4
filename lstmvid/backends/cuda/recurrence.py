"""Launches of the recurrent kernels, as both directions make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..dense import allows_tf32
from ..layers import Weights
from ..plan import Plan, plan
from ..wavefront import wavefront
from ..windows import Window
from .launch import Target, target_of

# The cheapest poll takes about ten nanoseconds, so that this is more than a second, far beyond the longest step; the
# dearest, of a flag in another block's reach, about a microsecond: then a broken launch ends within three minutes.
MAX_POLLS = 1 << 27


class How(NamedTuple):
    """How the recurrence of one direction is launched."""

    plan: Plan
    target: Target
    allow_tf32: bool

    def launches(self, groups: int) -> list[slice]:
        """The groups that run side by side, of each launch."""
        together = self.plan.groups
        return [slice(first, min(first + together, groups)) for first in range(0, groups, together)]


def choose(h_0: Tensor, *, backward: bool, in_parts: bool = False) -> How:
    """For `h_0` [G, L, B, H], where its device is; `in_parts`: in several launches that carry the state on."""
    groups, _, batch, size = h_0.shape
    target, allow_tf32 = target_of(h_0.device), allows_tf32(h_0.dtype)
    options = {"groups": groups, "tf32": allow_tf32, "backward": backward, "in_parts": in_parts and backward}
    return How(plan(size, batch, h_0.dtype, target.limits, **options), target, allow_tf32)


def choose_wavefront(h_0: Tensor, steps: int, *, backward: bool, window: int | None = None) -> tuple[int, How] | None:
    """The steps of a window and the launch, where a stack's layers (`h_0` [1, L, B, H]) run faster side by side."""
    groups, layers, batch, size = h_0.shape
    if groups > 1:
        return None
    target, allow_tf32 = target_of(h_0.device), allows_tf32(h_0.dtype)
    options = {"tf32": allow_tf32, "backward": backward, "window": window}
    found = wavefront(steps, size, batch, layers, h_0.dtype, target.limits, **options)
    return None if found is None else (found.window, How(found.plan, target, allow_tf32))


def arguments(
    sizes: tuple[int, int, int],
    weights: Sequence[Weights],
    reverse: Sequence[bool],
    lengths: Tensor | None,
    how: How,
    **tensors: Tensor | None,
) -> dict:
    """What the kernels of both directions take; sizes are (T, B, H), tensors [g, ...]."""
    steps, batch, size = sizes
    return {
        "steps": steps,
        "batch": batch,
        "hidden": size,
        "groups": len(weights),
        "dtype": weights[0].weight_hh.dtype,
        "allow_tf32": how.allow_tf32,
        "reverse": sum(1 << group for group, back in enumerate(reverse) if back),
        "max_polls": MAX_POLLS,
        "weight_hh": [layer.weight_hh for layer in weights],
        "peephole": [layer.peephole for layer in weights],
        "lengths": lengths,
        **{name: _native.group_addresses(tensor, len(weights)) for name, tensor in tensors.items()},
        **how.plan.kernel_arguments(),
    }


def workspace(direction: str, call: dict, steps: int, like: Tensor) -> tuple[Tensor, int]:
    """Memory for launches of at most so many steps, and the aligned address in it."""
    size = _native.lstm_sequence_cuda_workspace(direction, **call, first_step=0, end_step=steps, workspace=0)
    memory = like.new_empty(size + 256, dtype=torch.uint8)
    return memory, (memory.data_ptr() + 255) // 256 * 256


def launch(direction: str, call: dict, steps: Window, address: int, target: Target) -> None:
    """Run the steps of a call; `address`: of its workspace."""
    _native.lstm_sequence_cuda(
        direction,
        **call,
        first_step=steps.first,
        end_step=steps.end,
        workspace=address,
        device=target.ordinal,
        stream=target.stream,
    )
