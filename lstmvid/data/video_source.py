"""The data set of any real videos by name: `lstmvid.data.video.VideoClips` with what is to be held out of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from lstmvid.data.sequences import Cut, Splits, existing, held_out
from lstmvid.data.video import VideoClips
from lstmvid.data.video_frames import list_videos
from lstmvid.data.video_splits import LAYOUTS, read_split


def open_video(
    path: str | Path,
    cut: Cut,
    *,
    size: int = 32,
    short_side: int = 0,
    crop: str = "random",
    grey: bool = False,
    frame_step: int = 1,
    clip_stride: int = 0,
    patch_stride: int = 0,
    layout: str = "",
    splits: str = "",
    split: int = 1,
    cache: str = "",
    workers: int = 1,
) -> Splits:
    """Cut patches or whole frames out of a folder of videos, or of a single video.

    With a layout, the data set's official split files say which videos are for test. Otherwise some are held out, the
    share of each of validation and test being that of the cut; of one or two videos the last frames are.

    Args:
        path: the folder, whose videos may lie in folders of their own, or a file.
        cut: how long clips are; arXiv 1502.04681 has 16 frames in and 13 to predict for patches.
        size, crop, grey, frame_step: see `lstmvid.data.VideoClips`.
        short_side, clip_stride, patch_stride: likewise, with 0 for what it does by default.
        layout: ``ucf101`` or ``hmdb51``.
        splits: the folder of that layout's split files.
        split: which of the three.
        cache: folder of the decoded frames, ``<path>.frames`` by default.
        workers: threads that decode.

    Raises:
        FileNotFoundError: there is no such folder, or no video or split file in it.
        ValueError: a setting is wrong, or the videos are too few or too short.
    """
    path = existing(path, "video or folder of videos")
    if layout and layout not in LAYOUTS:
        raise ValueError(f"options.layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if bool(layout) != bool(splits):
        raise ValueError("options.layout and options.splits go together: the layout and its folder of split files")
    folder = path if path.is_dir() else path.parent
    videos = list_videos(path) if path.is_dir() else [path.name]
    options: dict[str, Any] = {
        "cache": cache or path.with_name(f"{path.name}.frames"),
        "num_frames": cut.num_frames,
        "size": size,
        "short_side": short_side or None,
        "crop": crop,
        "grey": grey,
        "frame_step": frame_step,
        "clip_stride": clip_stride or None,
        "patch_stride": patch_stride or None,
        "workers": workers,
        "seed": cut.seed,
    }
    share = cut.validation_fraction
    if layout:
        official = read_split(layout, splits, split)
        training, test = ([video.path for video in part] for part in (official.train, official.test))
        training, validation = _hold_out(training, cut)
    elif len(videos) > 2:
        training, test = _hold_out(videos, cut)
        training, validation = _hold_out(training, cut)
    else:
        if share >= 0.5:
            raise ValueError(f"validation_fraction is {share}, expected below 0.5: validation and test have it each")
        borders = (0.0, 1 - 2 * share, 1 - share, 1.0)
        parts = [
            VideoClips(folder, videos=videos, fraction=(first, last), **options)
            for first, last in itertools.pairwise(borders)
        ]
        return Splits(training=parts[0], validation=parts[1], test=parts[2])
    training, validation, test = (VideoClips(folder, videos=names, **options) for names in (training, validation, test))
    return Splits(training=training, validation=validation, test=test)


def _hold_out(videos: list[str], cut: Cut) -> tuple[list[str], list[str]]:
    kept, away = held_out(len(videos), cut.validation_fraction, cut.seed)
    return [videos[number] for number in kept], [videos[number] for number in away]
