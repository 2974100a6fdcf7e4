"""What every data set has in common: clips of frames, windows of long sequences, batches that can be resumed.

A finite data set is anything with ``len(clips)``, ``clips[i]``, one clip ``(T, *frame_shape)`` as uint8 (0 to 255,
which models scale to [0, 1]) or float32, and ``clips.frame_shape``. An endless supply is anything with
``batch(index, size)``, ``(T, B, *frame_shape)``, a pure function of its arguments, and ``frame_shape``.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch


class Clips(Protocol):
    """A finite data set: clips of one length and one frame shape."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of a single frame, as ``(channels, height, width)`` or ``(features,)``."""

    def __len__(self) -> int:
        """How many clips."""

    def __getitem__(self, index: int) -> torch.Tensor:
        """One clip, ``(T, *frame_shape)``, uint8 or float32."""


class Batches(Protocol):
    """An endless supply of batches."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of a single frame."""

    def batch(self, index: int, batch_size: int) -> torch.Tensor:
        """One batch, ``(T, B, *frame_shape)``, a function of the arguments alone."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a data set is cut into clips, and what is held out of it.

    Args:
        input_frames: frames of a clip that the encoder sees.
        target_frames: frames after those.
        validation_fraction: share of the training data to validate with, where the data set has no such part.
        seed: of the draw of what is held out.
    """

    input_frames: int
    target_frames: int
    validation_fraction: float = 0.1
    seed: int = 0

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.input_frames + self.target_frames


@dataclass(frozen=True)
class LabelledSequence:
    """A whole test sequence in which some frames are marked as unusual.

    Args:
        name: of the sequence.
        frames: ``(T, *frame_shape)``, or what has a shape and slices like it.
        unusual: bool ``(T,)``.
    """

    name: str
    frames: np.ndarray
    unusual: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The parts of a data set.

    Args:
        training, validation, test: clips that share no frames.
        mean, std: what frames are to be multiplied by and moved by (``frame * std + mean``) to be in `unit`.
        unit: of the frames' values, for people to read.
        fixed_length: the data set has clips of one length only.
        labelled: test sequences to find what is unusual in.
    """

    training: Clips
    validation: Clips
    test: Clips
    mean: float = 0.0
    std: float = 1.0
    unit: str = ""
    fixed_length: bool = False
    labelled: tuple[LabelledSequence, ...] = ()


class Windows:
    """Clips that are cut out of longer sequences.

    Args:
        sequences: arrays ``(T_i, *frame_shape)``, uint8 or float32, or what has a shape and slices like them.
        num_frames: frames ``T`` of a clip.
        stride: frames from the start of a clip to that of the next one; or one for each sequence.
        step: frames from one of a clip to the next, 1 for all.

    Raises:
        ValueError: sequences of different frames, or none that is long enough.
    """

    def __init__(
        self, sequences: Iterable[np.ndarray], num_frames: int, *, stride: int | Sequence[int] = 1, step: int = 1
    ) -> None:
        self.sequences = list(sequences)
        self.strides = [stride] * len(self.sequences) if isinstance(stride, int) else list(stride)
        for name, value in (("num_frames", num_frames), ("stride", min(self.strides, default=1)), ("step", step)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        shapes = {sequence.shape[1:] for sequence in self.sequences}
        if len(shapes) > 1:
            raise ValueError(f"sequences have frames of different shapes, {sorted(shapes)}, expected one")
        self.num_frames, self.step = num_frames, step
        span = step * (num_frames - 1) + 1
        pairs = zip(self.sequences, self.strides, strict=True)
        counts = [max(0, (len(sequence) - span) // stride + 1) for sequence, stride in pairs]
        self._ends = np.cumsum(counts).tolist()
        if not sum(counts):
            longest = max(map(len, self.sequences), default=0)
            raise ValueError(f"the longest sequence has {longest} frames, expected at least {span} for a clip")
        self.frame_shape: tuple[int, ...] = tuple(shapes.pop())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> torch.Tensor:
        number = _checked_index(index, len(self))
        which = bisect.bisect_right(self._ends, number)
        first = self.strides[which] * (number - (self._ends[which - 1] if which else 0))
        frames = self.sequences[which][first : first + self.step * (self.num_frames - 1) + 1 : self.step]
        return torch.from_numpy(np.array(frames))


class Selection:
    """Some clips of a data set, in an order of their own.

    Args:
        clips: the data set.
        indices: which of them.
    """

    def __init__(self, clips: Clips, indices: Sequence[int]) -> None:
        if not len(indices):
            raise ValueError("indices is empty, expected at least one clip")
        self.clips, self.indices = clips, list(indices)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """That of the data set."""
        return self.clips.frame_shape

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.clips[self.indices[_checked_index(index, len(self))]]


class ShuffledBatches:
    """An endless supply of batches of a data set, every clip once before any comes again.

    The order is drawn anew for each pass over the data set, from the seed and the number of the pass alone. A run that
    resumes therefore only has to count on.

    Args:
        clips: the data set.
        seed: of the order.
    """

    def __init__(self, clips: Clips, seed: int) -> None:
        if not len(clips):
            raise ValueError("clips is empty, expected at least one clip")
        self.clips, self.seed = clips, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """That of the data set."""
        return self.clips.frame_shape

    def batch(self, index: int, batch_size: int) -> torch.Tensor:
        """Clips ``index * batch_size`` and those after it of the endless row: ``(T, B, *frame_shape)``."""
        return stack(self.clips, self.indices(index, batch_size))

    def indices(self, index: int, batch_size: int) -> list[int]:
        """Which clips those are."""
        first = index * batch_size
        return [self._clip(place) for place in range(first, first + batch_size)]

    def _clip(self, place: int) -> int:
        """Which clip stands at a place of the endless row."""
        number, offset = divmod(place, len(self.clips))
        if number != self._order[0]:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(number,))))
            self._order = number, rng.permutation(len(self.clips))
        return int(self._order[1][offset])


def stack(clips: Clips, indices: Iterable[int]) -> torch.Tensor:
    """Clips as one batch, ``(T, B, *frame_shape)``."""
    return torch.stack([clips[index] for index in indices], dim=1)


def spread(clips: Clips, count: int) -> Clips:
    """At most `count` clips, evenly spread over the data set."""
    if count >= len(clips):
        return clips
    return Selection(clips, [number * len(clips) // count for number in range(count)])


def held_out(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split numbers below `count` at random.

    Args:
        count: how many, at least 2.
        fraction: share of those held out; at least one number goes to each side.
        seed: the same seed gives the same split.

    Returns:
        ``(kept, held_out)``, both in ascending order.
    """
    if count < 2:
        raise ValueError(f"there is only {count} to split, expected at least 2")
    away = min(max(round(fraction * count), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[away:].tolist()), sorted(order[:away].tolist())


def check_clips(clips: Clips, cut: Cut, name: str) -> None:
    """Look at the first clip of a data set, so that what is wrong with it is said before any work begins.

    Raises:
        ValueError: it is no tensor of the promised shape or type.
    """
    if not len(clips):
        raise ValueError(f"{name} holds no clip of {cut.num_frames} frames")
    clip = clips[0]
    expected = (cut.num_frames, *clips.frame_shape)
    if clip.dtype not in (torch.uint8, torch.float32) or tuple(clip.shape) != expected:
        raise ValueError(
            f"{name} has clips of shape {tuple(clip.shape)} and type {clip.dtype}, "
            f"expected {expected} and torch.uint8 or torch.float32"
        )


def existing(path: str | Path, what: str) -> Path:
    """The path of a file or folder that has to be there.

    Raises:
        FileNotFoundError: it isn't; the sentence says what should be.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {what} {path}")
    return path


def _checked_index(index: int, count: int) -> int:
    number = int(index)
    if not -count <= number < count:
        raise IndexError(f"index is {index}, expected one of {count} clips")
    return number % count
