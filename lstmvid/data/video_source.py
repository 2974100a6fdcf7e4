"""Videos as a data set to train on: by official split files, or with videos or the ends of videos held out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lstmvid.data.sequences import Clips, Cut, Splits, held_out
from lstmvid.data.video import VideoClips
from lstmvid.data.video_frames import list_videos
from lstmvid.data.video_splits import LAYOUTS, read_split

_PACKAGE = "package:"
HOLD_OUT = ("videos", "time")


def open_video(
    path: str | Path,
    cut: Cut,
    *,
    layout: str = "folder",
    splits: str = "",
    split: int = 1,
    hold_out: str = "videos",
    videos: Sequence[str] = (),
    exclude: Sequence[str] = (),
    cache: str = "",
    size: int | Sequence[int] = 32,
    grey: bool = False,
    crop: str = "random",
    short_side: int | None = None,
    patch_stride: int | None = None,
    frame_step: int = 1,
    clip_stride: int | None = None,
    training_clips: int | None = None,
    test_clips: int | None = None,
    standardise: bool = False,
    workers: int = 1,
) -> Splits:
    """Open a folder of videos.

    Args:
        path: the folder, or a single video; ``package:name/folder`` is one inside an installed Python package, which
            isn't imported.
        cut: how long clips are, and what is held out.
        layout: ``"folder"`` of any videos, ``"ucf101"`` or ``"hmdb51"``, whose official split says what is for testing.
        splits: folder of the official split files; only with those two.
        split: which of the official splits, from 1.
        hold_out: what validation and test get of a folder without official split, the cut's `validation_fraction` each:
            whole ``"videos"`` at random, or in ``"time"``, of every video the last frames for testing and those before
            for validation. Validation gets videos of the official training part likewise; of UCF-101 whole groups,
            which are cut from one film.
        videos, exclude: those to use and those not to, relative to the folder; all and none by default.
        cache, size, grey, crop, short_side, patch_stride, frame_step, workers: see `lstmvid.data.VideoClips`.
        clip_stride: frames from the start of a training clip to that of the next; by default clips don't overlap.
        training_clips, test_clips: draw so many random clips for training, and for validation and test each; by default
            all clips that don't overlap.
        standardise: subtract the mean of the training clips and divide by their standard deviation.

    Raises:
        FileNotFoundError: there is no such folder, video or split file.
        ValueError: a setting is wrong, or too little is left for a part; the message names it.
    """
    folder = video_folder(path)
    if folder.is_file():
        folder, videos = folder.parent, [folder.name]
    if hold_out not in HOLD_OUT:
        raise ValueError(f"options.hold_out is {hold_out!r}, expected one of {', '.join(HOLD_OUT)}")
    parts, fractions = _parts(folder, cut, layout, splits, split, hold_out, videos)
    parts = [[video for video in part if video not in exclude] for part in parts]
    options: dict[str, Any] = {
        "cache": cache or None,
        "num_frames": cut.num_frames,
        "size": size if isinstance(size, int) else tuple(size),
        "grey": grey,
        "crop": crop,
        "short_side": short_side,
        "patch_stride": patch_stride,
        "frame_step": frame_step,
        "workers": workers,
    }
    clips = {}
    for number, part in enumerate(("training", "validation", "test")):
        try:
            clips[part] = VideoClips(
                folder,
                videos=parts[number],
                fraction=fractions[number],
                clip_stride=clip_stride if part == "training" else None,
                count=training_clips if part == "training" else test_clips,
                seed=3 * cut.seed + number,
                **options,
            )
        except ValueError as error:
            raise ValueError(f"{error} (the {part} part)") from error
    if not standardise:
        return Splits(**clips)
    means, stds = clips["training"].statistics()
    # One number for all channels, which are of equal weight.
    mean, std = float(means.mean()), float((stds**2 + (means - means.mean()) ** 2).mean() ** 0.5)
    if std == 0:
        raise ValueError(f"{folder} can't be standardised: its training clips are of one colour")
    return Splits(
        **{part: Standardised(of, mean, std) for part, of in clips.items()}, mean=mean, std=std, unit="intensity"
    )


class Standardised:
    """Clips as float32, less a mean and divided by a standard deviation, both of values in [0, 1].

    Args:
        clips: uint8.
        mean, std: plain numbers.
    """

    def __init__(self, clips: Clips, mean: float, std: float) -> None:
        self.clips, self.mean, self.std = clips, mean, std
        self.frame_shape = clips.frame_shape

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.clips[index].float() / 255 - self.mean) / self.std


def video_folder(path: str | Path) -> Path:
    """The folder that a path names, which may lie in an installed package: ``package:name/folder``.

    Raises:
        FileNotFoundError: the package isn't installed, or there is no such folder.
    """
    text = str(path)
    if not text.startswith(_PACKAGE):
        return Path(path)
    package, _, inside = text.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"There is no package {package}, in which {path} would be: install it first")
    return Path(spec.submodule_search_locations[0], inside)


def _parts(
    folder: Path, cut: Cut, layout: str, splits: str, split: int, hold_out: str, videos: Sequence[str]
) -> tuple[list[list[str]], list[tuple[float, float]]]:
    """Videos for training, validation and test, and what fraction of each in time."""
    whole = (0.0, 1.0)
    fraction = cut.validation_fraction
    if layout == "folder":
        if splits:
            raise ValueError(f"options.splits is {splits!r}, expected none with the layout folder")
        found = list(videos) or list_videos(folder)
        if hold_out == "time":
            if 2 * fraction >= 1:
                raise ValueError(
                    f"validation_fraction is {fraction}, expected less than 0.5: validation and test take it each"
                )
            return [found] * 3, [(0.0, 1 - 2 * fraction), (1 - 2 * fraction, 1 - fraction), (1 - fraction, 1.0)]
        if len(found) < 3:
            raise ValueError(f"{folder} has {len(found)} videos, expected at least 3 or options.hold_out time")
        training, test = _without(found, fraction, cut.seed, r"$")
        training, validation = _without(training, fraction, cut.seed, r"$")
        return [training, validation, test], [whole] * 3
    if layout not in LAYOUTS:
        raise ValueError(f"options.layout is {layout!r}, expected one of folder, {', '.join(LAYOUTS)}")
    if not splits:
        raise ValueError(f"options.splits is empty, expected the folder of the split files of {layout}")
    official = read_split(layout, splits, split)
    wanted = set(videos)
    training, test = (
        [video.path for video in part if not wanted or video.path in wanted] for part in (official.train, official.test)
    )
    if hold_out == "time":
        return [training, training, test], [(0.0, 1 - fraction), (1 - fraction, 1.0), whole]
    training, validation = _without(training, fraction, cut.seed, r"_c\d+\.\w+$" if layout == "ucf101" else r"$")
    return [training, validation, test], [whole] * 3


def _without(videos: list[str], fraction: float, seed: int, ending: str) -> tuple[list[str], list[str]]:
    """Hold out videos at random, those that differ in an ending only together."""
    groups: dict[str, list[str]] = {}
    for video in videos:
        groups.setdefault(re.sub(ending, "", video), []).append(video)
    names = sorted(groups)
    return tuple(
        [video for number in side for video in groups[names[number]]] for side in held_out(len(names), fraction, seed)
    )
