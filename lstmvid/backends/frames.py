"""An input as a call was given it, and what its steps see of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def as_operand(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """`uint8` frames as `dtype`, scaled by 1/255 to [0, 1]; others in `dtype`."""
    return frames.to(dtype).div_(255) if frames.dtype == torch.uint8 else frames.to(dtype)


def stretch(sequence: Tensor | None, time: slice) -> Tensor | None:
    """Of a sequence [T, ...] the steps `time`, itself where these are all; None of None."""
    if sequence is None or time.stop - time.start == sequence.size(0):
        return sequence
    return sequence[time]


class Frames(NamedTuple):
    """`given` [T, B, D], or [T - 1, B, D]: then the step that runs first sees nothing, and the others one frame each.

    `dtype` is that of the operands; `uint8` frames become them a stretch of time at a time.
    """

    given: Tensor
    steps: int
    reverse: bool
    dtype: torch.dtype

    def places(self, time: slice) -> tuple[slice, slice]:
        """Of a stretch of time: which of its steps see a frame, and where these frames are in `given`."""
        if self.given.size(0) == self.steps:
            return slice(0, time.stop - time.start), time
        if self.reverse:  # the last step runs first
            stop = min(time.stop, self.steps - 1)
            return slice(0, stop - time.start), slice(time.start, stop)
        blind = int(time.start == 0)
        return slice(blind, time.stop - time.start), slice(time.start - 1 + blind, time.stop - 1)

    def seen(self, time: slice) -> tuple[slice, Tensor]:
        """Of a stretch of time: which of its steps see a frame, and these frames [n, B, D]."""
        rows, places = self.places(time)
        return rows, as_operand(stretch(self.given, places), self.dtype)

    def whole(self) -> Tensor:
        """[T, B, D]: what every step sees, zeros for nothing."""
        frames = as_operand(self.given, self.dtype)
        if frames.size(0) == self.steps:
            return frames
        nothing = frames.new_zeros(1, *frames.shape[1:])
        return torch.cat([frames, nothing] if self.reverse else [nothing, frames])

    def gradient(self, of_whole: Tensor) -> Tensor:
        """Of what was given, from that of what every step sees."""
        if self.given.size(0) == self.steps:
            return of_whole
        return of_whole[:-1] if self.reverse else of_whole[1:]
