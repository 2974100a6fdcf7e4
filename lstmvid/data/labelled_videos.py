"""Labelled videos, as classifiers want them: of frames decoded from video files, or of percepts; and who is for what.

Anything with `names`, `labels` (int64, -1 where there is none), `lengths`, `classes`, `frame_shape`, `path` and
``read(video, first, last)`` will do; `lstmvid.data.percepts.Percepts` is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lstmvid.data.video_splits import read_split, video_name


class LabelledVideos(Protocol):
    """Videos of frames with their classes."""

    path: Path
    names: tuple[str, ...]
    labels: Tensor
    lengths: Tensor
    classes: tuple[str, ...] | None

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of a single frame."""

    def read(self, index: int, first: int, last: int) -> Tensor:
        """Frames `first` to before `last` of a video, ``(T, *frame_shape)``, uint8 or float32."""


class FrameVideos:
    """Patches in the middle of the frames of a folder's videos, uint8; folders of the first level are the classes.

    Args:
        folder: of the videos.
        size: height and width of the patch.
        short_side: pixels to which a frame's shorter side is scaled before the patch is cut out of the middle.
        cache: folder of the decoded frames, ``<folder>.frames`` by default.
        workers: threads that decode.

    Raises:
        FileNotFoundError: there is no such folder, or no video in it.
        ValueError: no video can be read.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int = 32,
        short_side: int = 32,
        cache: str | Path | None = None,
        workers: int = 1,
    ) -> None:
        from lstmvid.data.video_cache import FrameCache
        from lstmvid.data.video_frames import FrameFormat, list_videos

        self.path = Path(folder)
        if short_side < size:
            raise ValueError(f"short_side is {short_side}, expected at least the patch's {size}")
        cache = cache or self.path.with_name(f"{self.path.name}.frames")
        self._cache = FrameCache(self.path, cache, FrameFormat(short_side=short_side))
        there, _ = self._cache.fill(list_videos(self.path), workers=workers)
        self._videos = [video.video for video in there]
        if not self._videos:
            raise ValueError(f"none of the videos in {folder} could be read")
        folders = [video.partition("/")[0] if "/" in video else None for video in self._videos]
        self.classes: tuple[str, ...] | None = tuple(sorted({name for name in folders if name})) or None
        places = {name: place for place, name in enumerate(self.classes or ())}
        self.labels = torch.tensor([places.get(name, -1) for name in folders])
        self.names = tuple(map(video_name, self._videos))
        self.lengths = torch.tensor([video.shape[0] for video in there])
        self.frame_shape = (3, size, size)

    def read(self, index: int, first: int, last: int) -> Tensor:
        """Frames `first` to before `last` of a video: uint8 ``(T, 3, size, size)``."""
        frames = self._cache.frames(self._videos[index])[first:last]
        size = self.frame_shape[-1]
        top, left = ((side - size) // 2 for side in frames.shape[1:3])
        patch = frames[:, top : top + size, left : left + size]
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(patch, -1, 1)))


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Which videos are for what.

    Args:
        training, validation, test: places of videos; they share none.
        labels: int64 ``(V,)`` of all videos.
        classes: names of the classes.
    """

    training: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    labels: Tensor
    classes: tuple[str, ...]


def official_membership(
    videos: LabelledVideos, layout: str, folder: str | Path, number: int, *, allow_missing: bool = False
) -> Membership:
    """By the official split files of UCF-101 or HMDB-51, which give the classes too.

    Raises:
        FileNotFoundError: a split file is missing.
        ValueError: a split file can't be understood, or `videos` lack some and `allow_missing` isn't set.
    """
    split = read_split(layout, folder, number)
    named = [video.name for part in (split.train, split.test) for video in part]
    _check_missing(videos, named, f"split {number} in {folder}", allow_missing)
    places = {name: place for place, name in enumerate(videos.names)}
    labels = torch.full((len(videos.names),), -1)
    for video in (*split.train, *split.test):
        if video.name in places:
            labels[places[video.name]] = video.label
    training, test = (
        tuple(places[video.name] for video in part if video.name in places) for part in (split.train, split.test)
    )
    return Membership(training=training, validation=(), test=test, labels=labels, classes=split.classes)


def listed_membership(
    videos: LabelledVideos, train_list: str | Path, test_list: str | Path, *, allow_missing: bool = False
) -> Membership:
    """By two text files with a video's name in each line.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: `videos` have no labels or lack some and `allow_missing` isn't set, or both files have the same one.
    """
    places = {name: place for place, name in enumerate(videos.names)}
    parts = []
    for path in (train_list, test_list):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no list of videos {path}") from error
        names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        _check_missing(videos, names, str(path), allow_missing)
        parts.append(tuple(places[name] for name in names if name in places))
    if both := set(parts[0]) & set(parts[1]):
        raise ValueError(f"{train_list} and {test_list} both have the video {videos.names[min(both)]!r}")
    return _with_own_labels(videos, *parts)


def drawn_membership(videos: LabelledVideos, test_fraction: float, seed: int) -> Membership:
    """By chance: a share of each class's videos is for testing, at least one, and at least one isn't."""
    labelled = [place for place, label in enumerate(videos.labels.tolist()) if label >= 0]
    if not labelled:
        raise ValueError(f"{videos.path} has no labels: extract the videos with --layout, or give split files")
    training, test = hold_out(labelled, videos.labels, test_fraction, seed)
    return _with_own_labels(videos, training, test)


def hold_out(
    videos: Sequence[int], labels: Tensor, fraction: float, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Part videos at random, class by class.

    Args:
        videos: places of videos.
        labels: of all videos.
        fraction: share of each class that is held out, at least one video unless it is 0.
        seed: of the draw.

    Returns:
        ``(kept, held_out)``, ascending; of a class with one video nothing is held out.
    """
    kept, away = [], []
    for label, members in _by_class(videos, labels).items():
        order = _shuffled(members, seed, label)
        count = min(max(round(fraction * len(order)), 1), len(order) - 1) if fraction else 0
        away += order[:count]
        kept += order[count:]
    return tuple(sorted(kept)), tuple(sorted(away))


def few_of_each_class(videos: Sequence[int], labels: Tensor, count: int, seed: int) -> tuple[int, ...]:
    """At random `count` videos of each class, all of a class that has no more; with the same seed, a larger count adds
    to a smaller one's."""
    members = _by_class(videos, labels)
    return tuple(sorted(place for label, ones in members.items() for place in _shuffled(ones, seed, label)[:count]))


def _by_class(videos: Iterable[int], labels: Tensor) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for place in sorted(videos):
        members.setdefault(int(labels[place]), []).append(place)
    return members


def _shuffled(members: list[int], seed: int, label: int) -> list[int]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(label,))))
    return rng.permutation(members).tolist()


def _check_missing(videos: LabelledVideos, names: Sequence[str], source: str, allow: bool) -> None:
    known = set(videos.names)
    missing = [name for name in names if name not in known]
    if missing and not (allow and len(missing) < len(names)):
        raise ValueError(
            f"{videos.path} lacks {len(missing)} of the {len(names)} videos of {source}, such as {missing[0]!r}"
        )


def _with_own_labels(videos: LabelledVideos, training: tuple[int, ...], test: tuple[int, ...]) -> Membership:
    for place in (*training, *test):
        if videos.labels[place] < 0:
            raise ValueError(f"{videos.path} has no label for the video {videos.names[place]!r}")
    if not training or not test:
        raise ValueError(f"{videos.path} has {len(training)} training and {len(test)} test videos, expected some")
    count = int(videos.labels.max()) + 1
    classes = videos.classes or tuple(str(number) for number in range(count))
    return Membership(training=training, validation=(), test=test, labels=videos.labels, classes=classes)
