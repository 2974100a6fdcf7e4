"""CUHK Avenue: a camera over a walkway; what is unusual in the test videos is marked frame by frame."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lstmvid.data.image_files import CachedFrames
from lstmvid.data.sequences import Cut, LabelledSequence, Splits, Windows, existing, held_out
from lstmvid.data.video_cache import FrameCache
from lstmvid.data.video_frames import FrameFormat, list_videos

_TRAINING, _TEST = "training_videos", "testing_videos"
_MASKS = "testing_label_mask", "ground_truth_demo/testing_label_mask"


def open_avenue(
    path: str | Path, cut: Cut, *, size: int = 64, grey: bool = True, stride: int = 5, masks: str = "", cache: str = ""
) -> Splits:
    """Open ``training_videos/*.avi``, ``testing_videos/*.avi`` and the masks of what is unusual, ``<n>_label.mat``.

    Videos are decoded into a cache first. A mask file has a cell array ``volLabel`` with a mask for each frame; a
    frame counts as unusual if any of its pixels does. Some training videos are held out for validation.

    Args:
        path: the folder with both folders of videos.
        cut: how long clips are.
        size: side to which frames are squeezed.
        grey: one channel instead of three.
        stride: frames from the start of a training clip to that of the next; other clips don't overlap.
        masks: folder of the mask files; by default ``testing_label_mask`` or ``ground_truth_demo/testing_label_mask``
            beside the videos.
        cache: folder of decoded videos, ``<path>.frames`` by default.

    Raises:
        FileNotFoundError: there is no such folder, or a test video has no mask file.
        ValueError: a video can't be decoded, or a mask file isn't one or has another number of frames than its video.

    Source: Lu, Shi and Jia, "Abnormal Event Detection at 150 FPS in MATLAB" (ICCV 2013).
    """
    path = existing(path, "Avenue folder")
    for name, value in (("size", size), ("stride", stride)):
        if value < 1:
            raise ValueError(f"options.{name} is {value}, expected at least 1")
    folder = _masks_folder(path, masks)
    mask_files = {video: _mask_file(folder, Path(video)) for video in list_videos(path / _TEST)}
    labels = {video: _labels(file) for video, file in mask_files.items()}
    frames = FrameCache(path, cache or path.with_name(f"{path.name}.frames"), FrameFormat(grey, (size, size)))
    training, test = (_decoded(path, part, frames) for part in (_TRAINING, _TEST))
    labelled = []
    for video, sequence in test.items():
        if len(labels[video]) != len(sequence):
            raise ValueError(
                f"{mask_files[video]} has {len(labels[video])} masks, expected {len(sequence)}, the frames of {video}"
            )
        labelled.append(LabelledSequence(Path(video).stem, sequence, labels[video]))
    sequences = list(training.values())
    kept, away = held_out(len(sequences), cut.validation_fraction, cut.seed)
    return Splits(
        training=_windows(path, [sequences[number] for number in kept], cut, stride),
        validation=_windows(path, [sequences[number] for number in away], cut, cut.num_frames),
        test=_windows(path, list(test.values()), cut, cut.num_frames),
        labelled=tuple(labelled),
    )


def _windows(path: Path, sequences: list[CachedFrames], cut: Cut, stride: int) -> Windows:
    try:
        return Windows(sequences, cut.num_frames, stride=stride)
    except ValueError as error:
        raise ValueError(f"{path} has too short videos: {error}") from error


def _decoded(path: Path, part: str, cache: FrameCache) -> dict[str, CachedFrames]:
    """The videos of a part by their names, in the order of those."""
    names = {f"{part}/{video}": video for video in list_videos(path / part)}
    there, broken = cache.fill(list(names))
    if broken:
        video, reason = next(iter(broken.items()))
        raise ValueError(f"{path / video} can't be decoded: {reason}")
    return {names[video.video]: CachedFrames(cache, video) for video in there}


def _masks_folder(path: Path, masks: str) -> Path:
    if masks:
        return existing(masks, "folder of masks")
    for name in _MASKS:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(f"There is no folder {_MASKS[0]} in {path}: give its place as options.masks")


def _mask_file(folder: Path, video: Path) -> Path:
    """``1_label.mat`` is of ``01.avi``."""
    numbers = re.findall(r"\d+", video.stem)
    if not numbers:
        raise ValueError(f"{video} is no name of Avenue, expected a number such as 01.avi")
    return existing(folder / f"{int(numbers[-1])}_label.mat", "mask file")


def _labels(path: Path) -> np.ndarray:
    """Which frames have anything marked, bool ``(T,)``."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        cells = loadmat(path, variable_names=["volLabel"])["volLabel"]
        if cells.dtype != object:
            raise ValueError(f"volLabel is {cells.dtype}, expected a cell array")
        return np.array([bool(np.any(mask)) for mask in cells.ravel()])
    except KeyError as error:
        raise ValueError(f"{path} lacks volLabel, the masks of a video") from error
    except NotImplementedError as error:
        raise ValueError(f"{path} is of MATLAB 7.3, expected one saved with -v7 or older") from error
    except (ValueError, TypeError, OSError, EOFError, MatReadError) as error:
        raise ValueError(f"{path} is not a file of masks, or is damaged: {error}") from error
