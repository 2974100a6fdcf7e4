"""The official split files of UCF-101 and HMDB-51: which videos are for training, which for testing, of which class.

Both kinds give a `VideoSplit`. A video's *name*, by which its percepts are found, is its path relative to the folder of
videos without the suffix, such as ``Archery/v_Archery_g01_c01``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

LAYOUTS = ("ucf101", "hmdb51")


class LabelledVideo(NamedTuple):
    """A video of a split.

    Args:
        path: relative to the folder of videos, with ``/``, such as ``Archery/v_Archery_g01_c01.avi``.
        label: its class's place in `VideoSplit.classes`, from 0.
    """

    path: str
    label: int

    @property
    def name(self) -> str:
        """The path without its suffix: what the video's percepts are called."""
        return video_name(self.path)


@dataclass(frozen=True)
class VideoSplit:
    """Training and test videos, which share none, and the names of the classes.

    Args:
        classes: names, in the order of their labels.
        train, test: the videos, in the files' order.
    """

    classes: tuple[str, ...]
    train: tuple[LabelledVideo, ...]
    test: tuple[LabelledVideo, ...]


def read_split(layout: str, folder: str | Path, number: int = 1) -> VideoSplit:
    """Read a split by its data set's name.

    Args:
        layout: ``"ucf101"`` or ``"hmdb51"``.
        folder: where the split files are.
        number: which of the three splits, from 1.

    Raises:
        ValueError, FileNotFoundError: as `read_ucf101_split` and `read_hmdb51_split`, or the layout is unknown.
    """
    readers = {"ucf101": read_ucf101_split, "hmdb51": read_hmdb51_split}
    if layout not in readers:
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    return readers[layout](folder, number)


def read_ucf101_split(folder: str | Path, number: int = 1) -> VideoSplit:
    """Read ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt``.

    A class in ``classInd.txt`` has a number from 1, which ``trainlist`` repeats beside each video; labels count from 0.

    Args:
        folder: of the files ("ucfTrainTestlist").
        number: the ``N``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: naming the file and the line that can't be understood.
    """
    folder = Path(folder)
    classes, index_file = {}, folder / "classInd.txt"
    for place, line in _lines(index_file):
        matched = re.fullmatch(r"(\d+)\s+(\S+)", line)
        if not matched or int(matched[1]) in classes:
            raise ValueError(f"{place} is {line!r}, expected a new number and a class, such as '1 ApplyEyeMakeup'")
        classes[int(matched[1])] = matched[2]
    if sorted(classes) != list(range(1, len(classes) + 1)):
        raise ValueError(f"{index_file} has the numbers {sorted(classes)}, expected 1, 2, 3 and so on")
    labels = {name: index - 1 for index, name in classes.items()}

    def videos(path: Path) -> tuple[LabelledVideo, ...]:
        found = []
        for place, line in _lines(path):
            matched = re.fullmatch(r"(([^/]+)/.+?\.\w+)(?:\s+(\d+))?", line)
            if not matched or matched[2] not in labels:
                raise ValueError(f"{place} is {line!r}, expected a video in the folder of a class of {index_file}")
            label = labels[matched[2]]
            if matched[3] is not None and int(matched[3]) != label + 1:
                raise ValueError(f"{place} gives {matched[2]} the number {matched[3]}, but {index_file} {label + 1}")
            found.append(LabelledVideo(matched[1], label))
        return tuple(found)

    train, test = (videos(folder / f"{subset}list{_number(number):02d}.txt") for subset in ("train", "test"))
    return _checked(VideoSplit(tuple(classes[index] for index in sorted(classes)), train, test), folder)


def read_hmdb51_split(folder: str | Path, number: int = 1) -> VideoSplit:
    """Read ``<class>_test_splitN.txt`` of every class.

    A line is a video and 1 (training), 2 (test) or 0 (neither). Classes have the order of their names.

    Args:
        folder: of the files ("testTrainMulti_7030_splits").
        number: the ``N``.

    Raises:
        FileNotFoundError: there is no file of the split.
        ValueError: naming the file and the line that can't be understood.
    """
    folder = Path(folder)
    ending = f"_test_split{_number(number)}.txt"
    files = sorted(folder.glob(f"*{ending}"), key=lambda path: path.name.removesuffix(ending))
    if not files:
        raise FileNotFoundError(f"The folder {folder} has no files <class>{ending}")
    classes = tuple(path.name.removesuffix(ending) for path in files)
    subsets: dict[str, list[LabelledVideo]] = {"0": [], "1": [], "2": []}
    for label, path in enumerate(files):
        for place, line in _lines(path):
            matched = re.fullmatch(r"(.+\.\w+)\s+([012])", line)
            if not matched:
                raise ValueError(f"{place} is {line!r}, expected a video and 0, 1 or 2")
            subsets[matched[2]].append(LabelledVideo(f"{classes[label]}/{matched[1]}", label))
    return _checked(VideoSplit(classes, tuple(subsets["1"]), tuple(subsets["2"])), folder)


def video_name(path: str) -> str:
    """A video's relative path without its suffix."""
    return Path(path).with_suffix("").as_posix()


def _number(number: int) -> int:
    if type(number) is not int or number < 1:
        raise ValueError(f"number is {number!r}, expected that of a split, from 1")
    return number


def _lines(path: Path) -> Iterable[tuple[str, str]]:
    """``(place, line)`` of every line that isn't empty; the files come with either kind of line end."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")  # as the names in the file system
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no split file {path}") from error
    lines = [(f"{path}, line {number},", line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(place, line) for place, line in lines if line]


def _checked(split: VideoSplit, folder: Path) -> VideoSplit:
    both = {video.name for video in split.train} & {video.name for video in split.test}
    if both:
        raise ValueError(f"The split files in {folder} have {sorted(both)[0]} for training and for testing")
    if not split.train or not split.test:
        raise ValueError(f"The split files in {folder} have {len(split.train)} training and {len(split.test)} tests")
    return split
