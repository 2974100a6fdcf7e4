"""KTH actions: six kinds of motion by 25 people, in grey; people 1 to 16 are for training, as in the benchmarks."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from lstmvid.data.image_files import CachedFrames, ImageFiles, numbered_images
from lstmvid.data.sequences import Cut, Splits, Windows, existing, held_out
from lstmvid.data.video_cache import FrameCache
from lstmvid.data.video_frames import SUFFIXES, FrameFormat

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
_FAST = {"jogging": 3, "running": 3}  # frames from clip to clip: these have few frames with somebody in them
_TRAINING_PEOPLE = range(1, 17)
_NAME = re.compile(r"person(\d+)_")
_RANGES_FILE = "00sequences.txt"


class Recording(NamedTuple):
    """Frames without a gap between them, who is seen in them and doing what."""

    person: int
    action: str
    frames: CachedFrames | ImageFiles


def open_kth(path: str | Path, cut: Cut, *, size: int = 128, cache: str = "") -> Splits:
    """Cut clips out of a folder for each action, with videos or folders of images named ``person01_boxing_d1...``.

    Videos (``.avi``) are decoded into a cache first. Where the data set's ``00sequences.txt`` lies beside the folders,
    only the frames that it names are taken, in which somebody is seen; images are taken as they are, and a gap in their
    numbers ends a sequence. Clips follow each other without overlap, in jogging and running every 3 frames, counted
    from the last frame of a sequence on, as in PredRNN's and OpenSTL's loaders. The clips for validation are of some of
    the people for training.

    Args:
        path: the folder with the folders of the actions.
        cut: how long clips are; the benchmarks have 10 frames in, and 20 or 40 to predict.
        size: side to which frames are squeezed.
        cache: folder of decoded videos, ``<path>.frames`` by default.

    Raises:
        FileNotFoundError: there is no such folder, a folder of an action is missing, or it has nothing to read.
        ValueError: a name or a line is not understood, people are missing, or nothing is long enough.

    Source: Schuldt, Laptev and Caputo, "Recognizing Human Actions" (ICPR 2004).
    """
    path = existing(path, "KTH folder")
    if size < 1:
        raise ValueError(f"options.size is {size}, expected at least 1")
    for action in ACTIONS:
        existing(path / action, "folder of KTH")
    frames = FrameCache(path, cache or path.with_name(f"{path.name}.frames"), FrameFormat(True, (size, size)))
    recordings = [*_of_videos(path, frames), *_of_images(path, size)]
    if not recordings:
        raise FileNotFoundError(f"There are no videos and no folders of images in the folders of {path}")
    training = sorted({recording.person for recording in recordings if recording.person in _TRAINING_PEOPLE})
    if len(training) < 2:
        raise ValueError(f"{path} has the people {training} of 1 to 16 for training, expected at least 2")
    kept, away = held_out(len(training), cut.validation_fraction, cut.seed)
    people = {
        "training": {training[number] for number in kept},
        "validation": {training[number] for number in away},
        "test": {recording.person for recording in recordings} - set(training),
    }
    clips = {}
    for part, members in people.items():
        try:
            clips[part] = _windows([recording for recording in recordings if recording.person in members], cut)
        except ValueError as error:
            raise ValueError(f"{path} has too little for {part}, people {sorted(members)}: {error}") from error
    return Splits(**clips)


def _windows(recordings: list[Recording], cut: Cut) -> Windows:
    """Clips from the end of each recording backwards."""
    sequences, strides = [], []
    for recording in recordings:
        stride = _FAST.get(recording.action, cut.num_frames)
        surplus = max(len(recording.frames) - cut.num_frames, 0) % stride
        sequences.append(_part(recording.frames, surplus, len(recording.frames)))
        strides.append(stride)
    return Windows(sequences, cut.num_frames, stride=strides)


def _part(frames: CachedFrames | ImageFiles, first: int, last: int) -> CachedFrames | ImageFiles:
    """Some of the frames, not yet read."""
    if isinstance(frames, ImageFiles):
        return ImageFiles(frames.files[first:last], frames.size, frames.grey)
    return CachedFrames(frames.cache, frames.video, frames.first + first, frames.first + last)


def _of_videos(path: Path, cache: FrameCache) -> list[Recording]:
    found = {
        file.relative_to(path).as_posix(): action
        for action in ACTIONS
        for file in sorted((path / action).iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    }
    if not found:
        return []
    ranges = _ranges(path / _RANGES_FILE)
    people = {video: _person(path / video) for video in found}
    there, broken = cache.fill(list(found))
    if broken:
        video, reason = next(iter(broken.items()))
        raise ValueError(f"{path / video} can't be decoded: {reason}")
    recordings = []
    for video in there:
        name = Path(video.video).stem.removesuffix("_uncomp")
        for first, last in ranges.get(name, [(1, video.shape[0])]):
            frames = CachedFrames(cache, video, first - 1, min(last, video.shape[0]))
            recordings.append(Recording(people[video.video], found[video.video], frames))
    return recordings


def _of_images(path: Path, size: int) -> list[Recording]:
    recordings = []
    for action in ACTIONS:
        for folder in sorted(entry for entry in (path / action).iterdir() if entry.is_dir()):
            person = _person(folder)
            images = numbered_images(folder)
            # Numbers less places are the same as long as there is no gap.
            for _, run in itertools.groupby(enumerate(images), key=lambda item: item[1][0] - item[0]):
                files = [file for _, (_, file) in run]
                recordings.append(Recording(person, action, ImageFiles(files, size, grey=True)))
    return recordings


def _person(path: Path) -> int:
    if not (matched := _NAME.match(path.name)):
        raise ValueError(f"{path} is no name of KTH, expected such as person01_boxing_d1_uncomp.avi")
    return int(matched[1])


def _ranges(path: Path) -> dict[str, list[tuple[int, int]]]:
    """First and last frame, from 1, of a video's sequences; lines are ``person01_boxing_d1  frames  1-95, ...``."""
    if not path.exists():
        return {}
    ranges = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip().startswith("person"):
            continue  # the file begins with an explanation
        name, _, rest = line.strip().partition("frames")
        found = [(int(first), int(last)) for first, last in re.findall(r"(\d+)\s*-\s*(\d+)", rest)]
        if not found and "missing" not in line:
            raise ValueError(f"{path}, line {number}, is {line.strip()!r}, expected a name and ranges of frames")
        if found:
            ranges[name.strip()] = found
    return ranges
