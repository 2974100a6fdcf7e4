"""Percepts as a data set to train on: features of frames by official split files, or with videos held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lstmvid.data.percepts import PerceptClips, Percepts
from lstmvid.data.sequences import Cut, Splits, existing, held_out
from lstmvid.data.video_splits import LAYOUTS, read_split


def open_percepts(
    path: str | Path,
    cut: Cut,
    *,
    stride: int = 1,
    test_stride: int = 8,
    layout: str = "",
    splits: str = "",
    split: int = 1,
    frame_counts: str = "",
    names: str = "",
    dataset: str = "",
) -> Splits:
    """Cut clips out of a file of percepts; frames are vectors ``(features,)`` of float32.

    With a layout, the data set's official split files say by the videos' names which are for test; videos that they
    don't name are for nothing. Otherwise videos are held out at random, the share of each of validation and test being
    that of the cut.

    Args:
        path: a file that `lstmvid.data.percepts.PerceptsWriter` wrote, or one in the layout of the authors of
            arXiv 1502.04681.
        cut: how long clips are, and what is held out; the paper has 16 frames in and 13 to predict.
        stride: frames from the start of a training clip to that of the next.
        test_stride: the same for validation and test.
        layout: ``ucf101`` or ``hmdb51``.
        splits: the folder of that layout's split files.
        split: which of the three.
        frame_counts, names, dataset: of the authors' layout, see `lstmvid.data.percepts.Percepts`.

    Raises:
        FileNotFoundError: there is no such file, or a split file is missing.
        ValueError: the file is damaged, or a part has no clip; the message names it.
    """
    path = existing(path, "file of percepts")
    if bool(layout) != bool(splits):
        raise ValueError("options.layout and options.splits go together: the layout and its folder of split files")
    if layout and layout not in LAYOUTS:
        raise ValueError(f"options.layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    percepts = Percepts(path, frame_counts=frame_counts or None, names=names or None, dataset=dataset or None)
    if layout:
        official = read_split(layout, splits, split)
        training, test = (_named(percepts, [video.name for video in part]) for part in (official.train, official.test))
        if not training or not test:
            raise ValueError(f"{path} has {len(training)} training and {len(test)} test videos of {splits}")
    else:
        if len(percepts) < 3:
            raise ValueError(f"{path} has {len(percepts)} videos, expected at least 3 to hold some out")
        training, test = held_out(len(percepts), cut.validation_fraction, cut.seed)
    kept, away = held_out(len(training), cut.validation_fraction, cut.seed)
    parts = {
        "training": ([training[number] for number in kept], stride),
        "validation": ([training[number] for number in away], test_stride),
        "test": (test, test_stride),
    }
    clips = {}
    for part, (videos, step) in parts.items():
        try:
            clips[part] = PerceptClips(percepts.subset(videos), cut.num_frames, step)
        except ValueError as error:
            raise ValueError(f"{error} (the {part} part)") from error
    return Splits(**clips)


def _named(percepts: Percepts, wanted: Sequence[str]) -> list[int]:
    """Videos by their names, those that are there."""
    places = {name: place for place, name in enumerate(percepts.names)}
    return [places[name] for name in wanted if name in places]
