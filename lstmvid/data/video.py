"""Clips of real videos: patches or whole frames, from a cache of decoded frames, each a function of index and seed.

The layouts of UCF-101 and HMDB-51 are folders of videos by class; `lstmvid.data.video_splits` reads their official
split files, which say what to give as `videos`. Any other folder will do as well::

    split = read_split("ucf101", "ucfTrainTestlist", 1)
    clips = VideoClips("UCF-101", videos=[video.path for video in split.train], num_frames=29, short_side=64)
    clips[0]  # uint8 (29, 3, 32, 32)
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from lstmvid.data.arguments import integer
from lstmvid.data.video_cache import CachedVideo, FrameCache
from lstmvid.data.video_frames import FrameFormat, list_videos

CROPS = ("random", "centre", "grid", "whole")
_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a clip is: its video, its first frame, and the upper left corner of its patch."""

    video: str
    start: int
    top: int
    left: int


class VideoClips:
    """A finite data set of clips, uint8 ``(T, C, H, W)``; item ``i`` is the same each time, by `seed` and ``i`` alone.

    Videos are decoded into the cache first, with a bar; when that is interrupted, it goes on where it was. Broken
    videos, and those too short or too small for a clip, are logged as a warning and left out.

    Args:
        folder: of the videos.
        videos: paths relative to it; all that are in it and its folders by default.
        cache: folder of the decoded frames, ``<folder>.frames`` by default; data sets may share one. It takes
            ``T * H * W * C`` bytes a video in the size that `size`, `crop` and `short_side` make of it.
        num_frames: frames ``T`` of a clip.
        size: height and width of a patch, or one number for both.
        grey: one channel instead of red, green and blue.
        crop: where the patch is in the frame: at ``"random"`` (one place for all frames of a clip), in the
            ``"centre"``, at every place of a ``"grid"``, or the ``"whole"`` frame squeezed to `size`.
        short_side: pixels to which a frame's shorter side is scaled before a patch is cut out; the video's own by
            default.
        patch_stride: pixels between the places of the grid; by default `size`, so that they don't overlap.
        frame_step: take every n-th frame.
        clip_stride: frames from the start of a clip to that of the next; by default clips don't overlap.
        count: draw this many clips at random instead, every start of every video being equally likely.
        fraction: use this part of each video's frames, such as (0, 0.8): adjacent parts share no frame.
        seconds: use the frames shown from the first to before the second time; instead of `fraction`.
        seed: of random places and draws.
        workers: threads that decode.
        progress: show a bar, if in a terminal.

    Attributes:
        frame_shape: ``(C, H, W)``.
        broken: what is wrong with each video that couldn't be decoded or isn't there.
        unused: videos that are too short or too small.

    Raises:
        FileNotFoundError: there is no such folder, or none of the videos is in it.
        ValueError: an argument is wrong, or no video has a clip; the message names it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        videos: Sequence[str] | None = None,
        cache: str | Path | None = None,
        num_frames: int = 29,
        size: int | tuple[int, int] = 32,
        grey: bool = False,
        crop: Literal["random", "centre", "grid", "whole"] = "random",
        short_side: int | None = None,
        patch_stride: int | tuple[int, int] | None = None,
        frame_step: int = 1,
        clip_stride: int | None = None,
        count: int | None = None,
        fraction: tuple[float, float] = (0.0, 1.0),
        seconds: tuple[float, float] | None = None,
        seed: int = 0,
        workers: int = 1,
        progress: bool = True,
    ) -> None:
        self.num_frames = integer("num_frames", num_frames)
        self.frame_step = integer("frame_step", frame_step)
        self.size = _pair("size", size)
        self.patch_stride = self.size if patch_stride is None else _pair("patch_stride", patch_stride)
        self.span = self.frame_step * (self.num_frames - 1) + 1
        self.clip_stride = self.span if clip_stride is None else integer("clip_stride", clip_stride)
        self.count = None if count is None else integer("count", count)
        self.seed = integer("seed", seed, minimum=0)
        self.crop = crop
        if crop not in CROPS:
            raise ValueError(f"crop is {crop!r}, expected one of {', '.join(CROPS)}")
        if crop == "whole" and short_side is not None:
            raise ValueError(
                f"short_side is {short_side}, expected none with crop 'whole', which squeezes frames to size"
            )
        if self.count is not None and clip_stride is not None:
            raise ValueError(f"clip_stride is {clip_stride}, expected none with count, which draws clips at random")
        self.fraction, self.seconds = _range("fraction", fraction, 1.0), None
        if seconds is not None:
            if self.fraction != (0.0, 1.0):
                raise ValueError(f"fraction is {fraction} and seconds is {seconds}, expected one of them at most")
            self.seconds = _range("seconds", seconds, math.inf)
        frame_format = FrameFormat(grey, self.size if crop == "whole" else None, short_side)
        self.frame_shape = (frame_format.channels, *self.size)

        folder = Path(folder)
        found, absent = _present(folder, list_videos(folder) if videos is None else videos)
        self._cache = FrameCache(
            folder, folder.with_name(f"{folder.name}.frames") if cache is None else cache, frame_format
        )
        there, self.broken = self._cache.fill(found, workers=workers, progress=progress)
        self.broken |= dict.fromkeys(absent, "there is no such file")
        self._index(folder, there)

    def __len__(self) -> int:
        return self._total if self.count is None else self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        place = self.place(index)
        frames = self._cache.frames(place.video)
        height, width = self.size
        clip = frames[
            place.start : place.start + self.span : self.frame_step,
            place.top : place.top + height,
            place.left : place.left + width,
        ]
        return torch.from_numpy(np.array(np.moveaxis(clip, -1, 1), order="C"))

    def place(self, index: int) -> Place:
        """Where clip `index` is."""
        index = range(len(self))[index]  # IndexError past the end, as iteration needs it
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(index,))))
        number = index if self.count is None else int(rng.integers(self._total))
        position = bisect.bisect_right(self._ends, number)
        offset = number - (self._ends[position - 1] if position else 0)
        video, (first, _) = self._videos[position]
        rows, columns = self._places(video)
        start, spot = divmod(offset, rows * columns)
        top, left = self._corner(video, *divmod(spot, columns), rng)
        return Place(video.video, first + start * self._start_stride, top, left)

    @property
    def videos(self) -> list[str]:
        """The videos that clips come from."""
        return [video.video for video, _ in self._videos]

    def statistics(self, clips: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel, of values in [0, 1].

        Args:
            clips: how many to look at, evenly spread over the data set; all if there are fewer.

        Returns:
            float64 ``(C,)`` each.
        """
        count = min(clips, len(self))
        total, squares, values = 0.0, 0.0, 0
        for number in range(count):
            clip = self[number * len(self) // count].numpy() / 255.0
            total = total + clip.sum(axis=(0, 2, 3))
            squares = squares + np.square(clip).sum(axis=(0, 2, 3))
            values += clip.size // clip.shape[1]
        mean = total / values
        return mean, np.sqrt(np.maximum(squares / values - np.square(mean), 0))

    @property
    def _start_stride(self) -> int:
        return self.clip_stride if self.count is None else 1

    def _index(self, folder: Path, there: list[CachedVideo]) -> None:
        """Count each video's clips, and leave out those that have none."""
        self._videos, counts, self.unused = [], [], []
        for video in there:
            first, last = self._frames_of(video)
            starts = (last - first - self.span) // self._start_stride + 1 if last - first >= self.span else 0
            fits = video.shape[1] >= self.size[0] and video.shape[2] >= self.size[1]
            if starts and fits:
                self._videos.append((video, (first, last)))
                counts.append(starts * math.prod(self._places(video)))
            else:
                self.unused.append(video.video)
        self._ends = list(itertools.accumulate(counts))
        self._total = self._ends[-1] if counts else 0
        needed = f"{self.span} frames of {self.size[0]} x {self.size[1]} pixels"
        if not counts:
            raise ValueError(
                f"{folder} has no video with {needed} in the part asked for: "
                f"{len(self.broken)} are broken, {len(self.unused)} too short or too small"
            )
        if self.unused:
            _log.warning("%d of %d videos in %s have no %s: left out", len(self.unused), len(there), folder, needed)

    def _frames_of(self, video: CachedVideo) -> tuple[int, int]:
        """First and last frame (exclusive) of the part asked for."""
        if self.seconds is None:
            return tuple(math.floor(part * video.shape[0]) for part in self.fraction)
        return tuple(int(number) for number in np.searchsorted(video.times(), self.seconds))

    def _places(self, video: CachedVideo) -> tuple[int, int]:
        """Rows and columns of patches in a frame."""
        if self.crop != "grid":
            return 1, 1
        sizes = zip(video.shape[1:3], self.size, self.patch_stride, strict=True)
        rows, columns = ((side - patch) // stride + 1 for side, patch, stride in sizes)
        return rows, columns

    def _corner(self, video: CachedVideo, row: int, column: int, rng: np.random.Generator) -> tuple[int, int]:
        margins = [side - patch for side, patch in zip(video.shape[1:3], self.size, strict=True)]
        if self.crop == "random":
            top, left = (int(rng.integers(margin + 1)) for margin in margins)
        elif self.crop == "grid":
            top, left = row * self.patch_stride[0], column * self.patch_stride[1]
        else:
            top, left = (margin // 2 for margin in margins)
        return top, left


def _present(folder: Path, videos: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are there, and those that aren't, which are logged in one line."""
    present = {video: (folder / video).is_file() for video in videos}
    absent = [video for video, there in present.items() if not there]
    if absent and len(absent) == len(present):
        raise FileNotFoundError(f"{folder} has none of the {len(absent)} videos asked for, such as {absent[0]}")
    if absent:
        _log.warning("%d of %d videos are not in %s, such as %s", len(absent), len(present), folder, absent[0])
    return [video for video, there in present.items() if there], absent


def _pair(name: str, value: Any) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"{name} is {value!r}, expected one integer, or two for height and width")
    return integer(name, sides[0]), integer(name, sides[1])


def _range(name: str, value: Any, end: float) -> tuple[float, float]:
    try:
        first, last = (float(part) for part in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}, expected two numbers") from error
    if not 0 <= first < last <= end:
        raise ValueError(
            f"{name} is {value}, expected two numbers, rising, from 0 {f'to {end:g}' if end < 2 else 'on'}"
        )
    return first, last
