"""Percepts: features of each frame of a set of videos, in one HDF5 file that is appended to and read lazily.

The file, version 1 (``V`` videos, ``N`` frames of all of them, ``D`` features a frame):

=============  ============================  ==========================================================
``features``   float32 ``(N, D)``            the videos' frames, one after the other, in the videos' order
``lengths``    int64 ``(V,)``                frames of each video; written last: it says how many videos there are
``labels``     int64 ``(V,)``                class of each video, -1 if it isn't known
``names``      UTF-8 of 512 bytes ``(V,)``   name of each video, usually its path below the data set's folder
=============  ============================  ==========================================================

Attributes: ``lstmvid`` (the version), ``classes`` (the classes' names, if there are any) and whatever the writer was
given. Rows beyond what `lengths` accounts for are what a killed writer left, and are ignored.

The layout of the files of arXiv 1502.04681's authors is read too: one data set with all videos' frames, and beside it
text files with the number of frames and the label of each video, one a line.
"""

from __future__ import annotations

import bisect
import fcntl
import itertools
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from torch import Tensor

from lstmvid.data.files import written_whole
from lstmvid.data.percepts_reader import TABLES, VERSION, Percepts, open_hdf5

if TYPE_CHECKING:
    import h5py

__all__ = ["PerceptClips", "Percepts", "PerceptsWriter"]

_NAME_BYTES = 512
_CHUNK_VALUES = 2**16  # 256 KiB: a clip of 16 frames touches a chunk or two, whatever the features' number
_COPY_BYTES = 2**26


class PerceptsWriter:
    """Appends videos' features to a file; one that exists is gone on with.

    Every video is on the disk when `append` returns, and a reader may look at the file meanwhile. A killed process
    loses the video under way: HDF5's single-writer mode orders what is written, and `lengths` comes last. Use it in a
    ``with`` block.

    Args:
        path: the HDF5 file; its folder is made if need be.
        feature_size: features a frame, ``D``.
        classes: the classes' names; labels are positions in it.
        attributes: strings or numbers to keep with the file, such as where the features come from. A file that exists
            has to have the same.

    Raises:
        ValueError: the file is not one of percepts, or was begun with other settings; the message names both.
    """

    def __init__(
        self,
        path: str | Path,
        feature_size: int,
        *,
        classes: Sequence[str] | None = None,
        attributes: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        if type(feature_size) is not int or feature_size < 1:
            raise ValueError(f"feature_size is {feature_size!r}, expected an integer of at least 1")
        self.path, self.feature_size = Path(path), feature_size
        self.classes = None if classes is None else tuple(classes)
        settings = dict(attributes or {})
        if reserved := sorted({"lstmvid", "classes"} & set(settings)):
            raise ValueError(f"attributes names {', '.join(reserved)}, which the file has already for its own use")
        self._lock = _only_writer(self.path)
        try:
            self._file = self._resumed(settings) if self.path.exists() else self._begun(settings)
            self._cut_off()
        except BaseException:
            self._unlock()
            raise

    def _cut_off(self) -> None:
        """Drop what an interrupted writer left beyond the videos that count, and begin to write."""
        lengths = self._file["lengths"][:]
        self._frames = int(lengths.sum())
        self._file["features"].resize(self._frames, axis=0)
        for table in ("labels", "names"):
            self._file[table].resize(len(lengths), axis=0)
        self._names = dict.fromkeys(self._file["names"].asstr()[:])
        self._file.swmr_mode = True

    def __enter__(self) -> PerceptsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be appended after it."""
        self._file.close()
        self._unlock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the videos in the file, in its order: those to leave out when a run is resumed."""
        return tuple(self._names)

    def append(self, name: str, features: Tensor | np.ndarray, label: int = -1) -> None:
        """Add a video.

        Args:
            name: unlike those of all others in the file.
            features: floating point ``(T, feature_size)`` with ``T`` of at least 1; kept as float32.
            label: position in `classes`, -1 if it isn't known.

        Raises:
            ValueError: naming the argument, what was given and what was expected; the file stays as it is.
        """
        features = _float32(name, features, self.feature_size)
        label = operator.index(label)
        if label < -1 or (self.classes is not None and label >= len(self.classes)):
            known = "" if self.classes is None else f" below {len(self.classes)}"
            raise ValueError(f"label of {name!r} is {label}, expected -1 or a class{known}")
        if name in self._names:
            raise ValueError(f"{self.path} has a video {name!r} already")
        encoded = name.encode()
        if not 0 < len(encoded) <= _NAME_BYTES:
            raise ValueError(f"name {name!r} takes {len(encoded)} bytes, expected 1 to {_NAME_BYTES}")
        values = (features, [label], [encoded], [len(features)])
        starts = (self._frames, *(len(self._names) for _ in values[1:]))
        for table, rows, start in zip(TABLES, values, starts, strict=True):
            data = self._file[table]
            data.resize(start + len(rows), axis=0)
            data[start:] = rows
            data.flush()
        self._names[name] = None
        self._frames += len(features)

    def _begun(self, attributes: dict[str, Any]) -> h5py.File:
        import h5py

        with written_whole(self.path) as partial, open_hdf5(partial, "w", libver="latest") as file:
            _create_tables(file, self.feature_size)
            for name, value in attributes.items():
                file.attrs[name] = value
            if self.classes is not None:
                file.attrs.create("classes", list(self.classes), dtype=h5py.string_dtype())
            file.attrs["lstmvid"] = VERSION
        return open_hdf5(self.path, "r+", libver="latest")

    def _resumed(self, attributes: dict[str, Any]) -> h5py.File:
        before = Percepts(self.path)  # which closes the file again
        if before.feature_size != self.feature_size:
            raise ValueError(
                f"{self.path} holds {before.feature_size} features a frame, expected {self.feature_size} to go on with"
            )
        if before.classes != self.classes:
            raise ValueError(
                f"{self.path} was begun with the classes {_listed(before.classes)}, but is to be gone on with "
                f"{_listed(self.classes)}"
            )
        for name in {**before.attributes, **attributes}:
            was, now = before.attributes.get(name), attributes.get(name)
            if was != now:
                raise ValueError(f"{self.path} was begun with {name} {was!r}, but is to be gone on with {now!r}")
        try:
            return open_hdf5(self.path, "r+", libver="latest")
        except OSError:
            pass  # a killed writer's file is marked as open for good; a copy isn't
        try:
            self._copy_what_counts()
            return open_hdf5(self.path, "r+", libver="latest")
        except OSError as error:
            raise ValueError(f"{self.path} can't be written to, perhaps because it is being read: {error}") from error

    def _copy_what_counts(self) -> None:
        with (
            written_whole(self.path) as partial,
            open_hdf5(self.path, "r", swmr=True) as old,
            open_hdf5(partial, "w", libver="latest") as new,
        ):
            _create_tables(new, self.feature_size)
            for name, value in old.attrs.items():
                new.attrs[name] = value
            lengths = old["lengths"][:]
            counts = dict.fromkeys(TABLES, len(lengths)) | {"features": int(lengths.sum())}
            for table, count in counts.items():
                new[table].resize(count, axis=0)
                row_bytes = new[table].dtype.itemsize * math.prod(new[table].shape[1:])
                step = max(1, _COPY_BYTES // row_bytes)
                for first in range(0, count, step):
                    last = min(first + step, count)
                    new[table][first:last] = old[table][first:last]

    def _unlock(self) -> None:
        if self._lock is not None:
            os.unlink(self._lock.name)
            self._lock.close()
            self._lock = None


class PerceptClips:
    """All clips of a number of successive frames in a percepts file: a finite data set, for models of sequences.

    Args:
        percepts: the videos; those shorter than a clip give none.
        frames: frames of a clip, ``T``.
        stride: frames from the start of a clip to the next one's.

    Attributes:
        frame_shape: ``(D,)``.

    Raises:
        ValueError: no video is as long as a clip.
    """

    def __init__(self, percepts: Percepts, frames: int, stride: int = 1) -> None:
        for name, value in (("frames", frames), ("stride", stride)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")
        self.percepts, self.frames, self.stride = percepts, frames, stride
        self.frame_shape = (percepts.feature_size,)
        counts = [max(0, (length - frames) // stride + 1) for length in percepts.lengths.tolist()]
        self._ends = list(itertools.accumulate(counts))
        if not sum(counts):
            longest = max(percepts.lengths.tolist(), default=0)
            raise ValueError(f"{percepts.path} has no video of {frames} frames: the longest has {longest}")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Tensor:
        """Clip `index`, in the videos' order: float32 ``(T, D)``."""
        video, first = self.locate(index)
        return self.percepts.read(video, first, first + self.frames)

    def locate(self, index: int) -> tuple[int, int]:
        """Which video clip `index` lies in, and its first frame there."""
        index = range(len(self))[index]
        video = bisect.bisect_right(self._ends, index)
        before = self._ends[video - 1] if video else 0
        return video, (index - before) * self.stride


def _only_writer(path: Path) -> TextIO:
    """A locked file beside `path`: HDF5's own lock is given up in its single-writer mode, for readers to come in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ValueError(f"{path} is being written to already, by another process or in this one") from error
    return lock


def _create_tables(file: h5py.File, feature_size: int) -> None:
    import h5py

    kinds = {
        "features": ((feature_size,), np.float32, max(1, _CHUNK_VALUES // feature_size)),
        "labels": ((), np.int64, 512),
        "names": ((), h5py.string_dtype(length=_NAME_BYTES), 64),
        "lengths": ((), np.int64, 512),
    }
    for name, (shape, dtype, chunk) in kinds.items():
        file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape))


def _float32(name: str, features: Tensor | np.ndarray, size: int) -> np.ndarray:
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        features = (features.float() if features.is_floating_point() else features).numpy()  # NumPy has no bfloat16
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] != size or not len(features):
        raise ValueError(f"features of {name!r} have shape {features.shape}, expected (T, {size}) with T > 0")
    if not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features of {name!r} are {features.dtype}, expected floating point")
    with np.errstate(over="ignore"):  # told as not finite
        features = features.astype(np.float32)
    if not np.isfinite(features).all():
        raise ValueError(f"features of {name!r} contain values that are not finite")
    return features


def _listed(classes: Sequence[str] | None) -> str:
    return "(none)" if classes is None else ", ".join(classes)
