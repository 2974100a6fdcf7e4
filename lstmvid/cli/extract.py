"""``lstmvid extract``: a pretrained convnet over the frames of videos, into an HDF5 file of percepts."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from lstmvid.cli.sources import chosen_device, positive
from lstmvid.compat.convnets import NETWORKS, Convnet, load_convnet
from lstmvid.data.percepts import PerceptsWriter
from lstmvid.data.video_frames import FrameFormat, VideoError, list_videos, read_frames
from lstmvid.data.video_source import video_folder
from lstmvid.data.video_splits import LAYOUTS, read_split, video_name

CROPS = ("centre", "whole")
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Extract percepts, or go on with it."""
    options = _parser().parse_args(arguments)
    folder = video_folder(options.videos)
    videos = list_videos(folder)
    classes, labels = _labels(options, videos)
    twice = [name for name, count in Counter(map(video_name, videos)).items() if count > 1]
    if twice:
        raise ValueError(f"{options.videos} has several videos {twice[0]}, of different suffixes, expected one")
    convnet = load_convnet(
        options.network,
        weights=options.weights,
        size=options.size,
        mean=options.mean,
        std=options.std,
        device=chosen_device(options.device),
    )
    attributes = convnet.description | {"crop": options.crop, "frame_step": options.frame_step}
    with PerceptsWriter(options.output, convnet.feature_size, classes=classes, attributes=attributes) as writer:
        there = set(writer.names)
        broken = extract(
            convnet,
            folder,
            [video for video in videos if video_name(video) not in there],
            writer,
            labels=labels,
            crop=options.crop,
            frame_step=options.frame_step,
            batch_size=options.batch_size,
        )
        count = len(writer.names)
    if not count:
        raise ValueError(f"none of the {len(videos)} videos in {options.videos} could be read")
    new = count - len(there)
    print(f"{options.output}: {count} videos, {new} of them new, {convnet.feature_size} features a frame")
    if broken:
        print(f"left out: {len(broken)} that could not be decoded")
    return 0


def extract(
    convnet: Convnet,
    folder: str | Path,
    videos: Sequence[str],
    writer: PerceptsWriter,
    *,
    labels: Mapping[str, int] | None = None,
    crop: str = "centre",
    frame_step: int = 1,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, str]:
    """Append the features of videos to a file; each is there as a whole or not at all.

    A video that can't be decoded is logged as a warning and left out.

    Args:
        convnet: makes a vector of a frame.
        folder: of the videos.
        videos: paths relative to it; what they are called in the file is the path without the suffix.
        writer: of the file.
        labels: class number by path, -1 for those that are missing.
        crop: the ``"centre"`` square of a frame, scaled to the network's size, or the ``"whole"`` frame squeezed to it.
        frame_step: take every n-th frame.
        batch_size: frames that the network sees at once.
        progress: show a bar, if in a terminal.

    Returns:
        Of each video that was left out, what is wrong.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[frames]} frames"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    broken: dict[str, str] = {}
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task, frames = bar.add_task("extracting", total=len(videos), frames=0), 0
        for video in videos:
            features = []
            try:
                for batch in _batches(Path(folder, video), convnet.size, crop, frame_step, batch_size):
                    features.append(convnet.features(batch))
                    frames += len(batch)
                    bar.update(task, frames=frames)
            except (VideoError, FileNotFoundError) as error:
                _log.warning("%s is left out: %s", Path(folder, video), error)
                broken[video] = str(error)
            else:
                writer.append(video_name(video), torch.cat(features), (labels or {}).get(video, -1))
            bar.advance(task)
    return broken


def _batches(path: Path, size: int, crop: str, frame_step: int, batch_size: int) -> Iterator[Tensor]:
    """A video's frames, uint8 ``(B, size, size, 3)``."""
    if crop not in CROPS:
        raise ValueError(f"crop is {crop!r}, expected one of {', '.join(CROPS)}")
    frame_format = FrameFormat(whole=(size, size)) if crop == "whole" else FrameFormat(short_side=size)
    frames = itertools.islice(read_frames(path, frame_format), 0, None, frame_step)
    while batch := list(itertools.islice(frames, batch_size)):
        yield torch.from_numpy(np.stack([_centre(frame.pixels, size) for frame in batch]))


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def _labels(options: argparse.Namespace, videos: Sequence[str]) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """The classes, and the class of each video, by the folder that it is in."""
    if (options.layout in LAYOUTS) != (options.splits is not None):
        raise ValueError(f"--splits goes with --layout {' or '.join(LAYOUTS)}, and they with it")
    if options.layout == "none":
        return None, {}
    folders = {video: video.split("/")[0] for video in videos if "/" in video}
    if options.layout == "folders":
        classes = tuple(sorted(set(folders.values())))
        if not classes:
            raise ValueError(f"{options.videos} has no folders with videos, expected one a class")
    else:
        split = read_split(options.layout, options.splits, options.split)
        classes = split.classes
        missing = {video.path for video in (*split.train, *split.test)} - set(videos)
        if missing:
            _log.warning(
                "%d videos of split %d are not in %s, such as %s",
                len(missing),
                options.split,
                options.videos,
                min(missing),
            )
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {video: numbers[folder] for video, folder in folders.items() if folder in numbers}
    if not labels:
        raise ValueError(f"{options.videos} has no video in a folder of a class, such as {classes[0]}")
    return classes, labels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lstmvid extract",
        description="Run a pretrained convnet over the frames of videos, into an HDF5 file. Run again after an "
        "interruption, it goes on with the videos that are missing.",
    )
    parser.add_argument("videos", help="folder of videos, those in folders below it included, or package:name/folder")
    parser.add_argument("--output", required=True, help="HDF5 file of the percepts")
    parser.add_argument(
        "--network",
        default="vgg16-fc6",
        help=f"{', '.join(NETWORKS)}, or package.module:factory, which is called for a torch.nn.Module that makes a "
        "vector of each frame (default: %(default)s)",
    )
    parser.add_argument("--weights", help="state dict, .safetensors or .pth (default: the network's own)")
    parser.add_argument("--size", type=positive, default=224, help="side of the network's frames (default: 224)")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help="of values in [0, 1] (default: its own)"
        )
    parser.add_argument(
        "--crop",
        choices=CROPS,
        default="centre",
        help="the centre square of a frame, or the whole frame squeezed to a square (default: centre)",
    )
    parser.add_argument("--frame-step", type=positive, default=1, help="take every n-th frame (default: 1)")
    parser.add_argument(
        "--layout",
        choices=(*LAYOUTS, "folders", "none"),
        default="none",
        help="where labels come from: the split files' classes, the names of the folders, or nowhere (default: none)",
    )
    parser.add_argument("--splits", metavar="FOLDER", help="the official split files, with --layout ucf101 or hmdb51")
    parser.add_argument(
        "--split", type=positive, default=1, help="whose videos to look for; all are extracted (default: 1)"
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="frames at once (default: 32)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    return parser
