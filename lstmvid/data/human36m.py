"""Human3.6M: people filmed in a room, as images and lists of clips, the way the video-prediction benchmark has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lstmvid.data.image_files import ImageFiles
from lstmvid.data.sequences import Cut, Selection, Splits, existing, held_out


class Human36M:
    """Clips of a list.

    Args:
        starts: of each clip the files' common beginning and the number of its first image.
        cut: how long clips are.
        step: images from one frame to the next.
        size: side to which images are squeezed.
        grey: one channel instead of three.
    """

    def __init__(self, starts: list[tuple[Path, int]], cut: Cut, *, step: int, size: int, grey: bool) -> None:
        self.starts, self.num_frames, self.step, self.size, self.grey = starts, cut.num_frames, step, size, grey
        self.frame_shape = (1 if grey else 3, size, size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(ImageFiles(self.files(index), self.size, self.grey)[:]))

    def files(self, index: int) -> list[Path]:
        """The images of a clip."""
        prefix, first = self.starts[index]
        numbers = range(first, first + self.step * self.num_frames, self.step)
        return [prefix.with_name(f"{prefix.name}{number:06}.jpg") for number in numbers]


def open_human36m(path: str | Path, cut: Cut, *, step: int = 5, size: int = 256, grey: bool = False) -> Splits:
    """Open ``train.txt`` and ``test.txt``, whose lines are clips: ``images/S1_Walking.60457274_,1``, and the images.

    A line has the beginning of the images' names, relative to the folder, and the number of the first one; the images
    of a clip are ``<beginning>000001.jpg``, then every fifth. Some recordings of the training list are held out for
    validation.

    Args:
        path: the folder with the lists and the images.
        cut: how long clips are; the benchmark has 4 frames in and 4 to predict.
        step: images from one frame to the next.
        size: side to which images are squeezed; the benchmark has 256.
        grey: one channel instead of three.

    Raises:
        FileNotFoundError: there is no such folder or list, or a clip's first or last image is missing.
        ValueError: a line is not understood, or a list is empty.

    Source: Ionescu et al., "Human3.6M" (TPAMI 2014); lists and steps as in OpenSTL.
    """
    path = existing(path, "Human3.6M folder")
    for name, value in (("step", step), ("size", size)):
        if value < 1:
            raise ValueError(f"options.{name} is {value}, expected at least 1")
    options = {"step": step, "size": size, "grey": grey}
    training, test = (Human36M(_starts(path, name), cut, **options) for name in ("train.txt", "test.txt"))
    for clips, name in ((training, "train.txt"), (test, "test.txt")):
        _check_images(clips, path / name)
    recordings = sorted({prefix for prefix, _ in training.starts})
    if len(recordings) < 2:
        raise ValueError(f"{path / 'train.txt'} has clips of {len(recordings)} recording, expected at least 2")
    _, away = held_out(len(recordings), cut.validation_fraction, cut.seed)
    held = {recordings[number] for number in away}
    of_held = [prefix in held for prefix, _ in training.starts]
    return Splits(
        training=Selection(training, [index for index, out in enumerate(of_held) if not out]),
        validation=Selection(training, [index for index, out in enumerate(of_held) if out]),
        test=test,
    )


def _starts(path: Path, name: str) -> list[tuple[Path, int]]:
    starts = []
    lines = existing(path / name, "list of clips").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prefix, _, first = line.strip().partition(",")
            if not prefix or not first.strip().isdecimal():
                raise ValueError(
                    f"{path / name}, line {number}, is {line.strip()!r}, expected such as images/S1_Walking.60457274_,1"
                )
            starts.append((path / prefix.strip(), int(first)))
    if not starts:
        raise ValueError(f"{path / name} is empty, expected a line for each clip")
    return starts


def _check_images(clips: Human36M, name: Path) -> None:
    """That every clip begins and ends with an image that is there; to look for all would take minutes."""
    for index in range(len(clips)):
        files = clips.files(index)
        for file in (files[0], files[-1]):
            if not file.is_file():
                raise FileNotFoundError(f"There is no image {file}, which {name} has in a clip")
