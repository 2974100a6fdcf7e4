"""Stretches of a sequence: a call that runs its steps in parts, and what the steps of each part started from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# By device type: what a window costs besides its steps shouldn't count. A launch on a GPU loads the weights that it
# keeps on the chip once more; a CPU packs them in a few steps' time, and memory used again stays in its caches.
MIN_STEPS = {"cuda": 256, "cpu": 64}
WINDOW_BYTES = {"cuda": 64 << 20, "cpu": 8 << 20}  # of projections; more steps than MIN_STEPS only within it


class Window(NamedTuple):
    """The steps [first, end) in order of processing."""

    first: int
    end: int

    def times(self, steps: int, reverse: bool) -> slice:
        """Where they lie in a sequence of `steps`."""
        return slice(steps - self.end, steps - self.first) if reverse else slice(self.first, self.end)


def windows(steps: int, length: int) -> list[Window]:
    """All steps, so many at a time; the last window may be shorter."""
    return [Window(first, min(first + length, steps)) for first in range(0, steps, max(length, 1))]


def even_windows(steps: int, step_bytes: int, device: str) -> list[Window]:
    """All steps in windows of about one length, whose projections of `step_bytes` each take bounded memory."""
    if 0 < steps <= MIN_STEPS[device]:
        return [Window(0, steps)]
    count = -(-steps // max(MIN_STEPS[device], WINDOW_BYTES[device] // max(step_bytes, 1)))
    return windows(steps, -(-steps // max(count, 1)))


class Origins(NamedTuple):
    """The hidden states that the steps of a window started from, as parts of tensors that are there.

    Of the window's steps `rest` (all `count` but one at most) they are `output[neighbours]`; to those comes, of each
    sequence's step `first` (one for all, or one for each), `start` [B, H].
    """

    count: int
    rest: slice
    neighbours: slice
    first: int | Tensor
    start: Tensor | None

    def add_first(self, total: Tensor, part: Tensor) -> None:
        """`total` [n, B, K] += `part` [B, K] at the steps `first`."""
        if isinstance(self.first, Tensor):
            columns = torch.arange(total.size(1), device=total.device)
            total[self.first, columns] = total[self.first, columns] + part
        else:
            total[self.first] += part

    def states(self, output: Tensor) -> Tensor:
        """[n, B, H]: all of them, a view of `output` [T, B, H] where that has them side by side."""
        rows = output[self.neighbours]
        if self.start is None:
            return rows
        if not isinstance(self.first, Tensor):
            start = self.start.unsqueeze(0)
            return torch.cat([rows, start] if self.first else [start, rows])
        gap = output.new_zeros(self.count - rows.size(0), *rows.shape[1:])
        states = torch.cat([rows, gap])
        self.add_first(states, self.start)
        return states

    def take_first(self, tensor: Tensor) -> Tensor:
        """[B, K]: of `tensor` [n, B, K] the steps `first`."""
        if isinstance(self.first, Tensor):
            return tensor[self.first, torch.arange(tensor.size(1), device=tensor.device)]
        return tensor[self.first]


def origins(h_0: Tensor, lengths: Tensor | None, window: Window, steps: int, reverse: bool) -> Origins:
    """What the steps of a window started from; `h_0` [B, H] is the sequence's own.

    In padding the output is zero, so that there a neighbour adds nothing to a product.
    """
    times = window.times(steps, reverse)
    count = times.stop - times.start
    if not reverse:
        if times.start == 0:
            return Origins(count, slice(1, count), slice(0, times.stop - 1), 0, h_0)
        return Origins(count, slice(0, count), slice(times.start - 1, times.stop - 1), 0, None)
    whole = times.stop < steps
    rest = slice(0, count if whole else count - 1)
    neighbours = slice(times.start + 1, times.stop + 1 if whole else times.stop)
    if lengths is None:
        return Origins(count, rest, neighbours, count - 1, None if whole else h_0)
    # Running backwards, a short sequence starts at its own last frame, whose successor is padding.
    starts_here = (lengths > times.start) & (lengths <= times.stop)
    first = (lengths - 1 - times.start).clamp(0, count - 1)
    return Origins(count, rest, neighbours, first, torch.where(starts_here.unsqueeze(1), h_0, 0))
