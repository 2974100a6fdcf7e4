"""Sequences of any frames, images or features, in NumPy files of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lstmvid.data.sequences import Cut, Splits, Windows, existing, held_out

_PARTS = "train", "validation", "test"


def open_frames(path: str | Path, cut: Cut, *, stride: int = 1) -> Splits:
    """Cut clips out of ``.npy`` files, each a sequence ``(T, features)``, ``(T, H, W)`` or ``(T, C, H, W)``.

    uint8 frames are scaled to [0, 1] by the model, float ones are taken as they are. A file of five dimensions holds
    many sequences: ``(N, T, C, H, W)``. A folder with sub-folders ``train`` and ``test``, perhaps ``validation``, says
    itself which sequences are for what. Otherwise sequences are held out at random for validation and for test, the
    share of each being that of the cut; one or two sequences are cut in time instead, test frames being the last.

    Args:
        path: a file or a folder of them.
        cut: how long clips are, and what is held out.
        stride: frames from the start of a training clip to that of the next; others don't overlap.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
        ValueError: a file is no array of frames, is damaged, or sequences are too few or too short.
    """
    path = existing(path, "file or folder of frames")
    if stride < 1:
        raise ValueError(f"options.stride is {stride}, expected at least 1")
    if path.is_dir() and (path / "train").is_dir() and (path / "test").is_dir():
        training, validation, test = (_read_all(path / part) if (path / part).is_dir() else [] for part in _PARTS)
        if not validation:
            training, validation = _hold_out(training, cut)
    else:
        training, test = _hold_out(_read_all(path), cut)
        training, validation = _hold_out(training, cut)
    parts = dict(zip(_PARTS, (training, validation, test), strict=True))
    windows = {}
    for part, sequences in parts.items():
        try:
            windows[part] = Windows(sequences, cut.num_frames, stride=stride if part == "train" else cut.num_frames)
        except ValueError as error:
            raise ValueError(f"{path} has too little for the part {part}: {error}") from error
    if len({clips.frame_shape for clips in windows.values()}) > 1:
        raise ValueError(f"{path} has frames of different shapes in train, validation and test, expected one")
    return Splits(training=windows["train"], validation=windows["validation"], test=windows["test"])


def _hold_out(sequences: list[np.ndarray], cut: Cut) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Some sequences, or the last frames of each where they are one or two."""
    if len(sequences) > 2:
        kept, away = held_out(len(sequences), cut.validation_fraction, cut.seed)
        return [sequences[number] for number in kept], [sequences[number] for number in away]
    # Of the length of clips nothing may depend here: longer ones would reach into what training saw.
    ends = [len(sequence) - round(len(sequence) * cut.validation_fraction) for sequence in sequences]
    pairs = list(zip(sequences, ends, strict=True))
    return [sequence[:end] for sequence, end in pairs], [sequence[end:] for sequence, end in pairs]


def _read_all(path: Path) -> list[np.ndarray]:
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"There is no .npy file in {path}")
    return [sequence for file in files for sequence in _read(file)]


def _read(path: Path) -> list[np.ndarray]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # not np.load: that would also take archives and pickles
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a NumPy array file, or is damaged: {error}") from error
    floating = np.issubdtype(array.dtype, np.floating)
    if not 2 <= array.ndim <= 5 or not array.size or not (array.dtype == np.uint8 or floating):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected uint8 or floats of shape (T, features), "
            "(T, H, W), (T, C, H, W) or (N, T, C, H, W)"
        )
    if floating and array.dtype != np.float32:
        array = array.astype(np.float32)
    if floating and not np.isfinite(array).all():
        raise ValueError(f"{path} contains values that are not finite")
    if array.ndim == 5:
        return list(array)
    return [array[:, None] if array.ndim == 3 else array]
