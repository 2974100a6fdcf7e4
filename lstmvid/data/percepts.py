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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch
from torch import Tensor

from lstmvid.data.files import written_whole

if TYPE_CHECKING:
    import h5py

VERSION = 1

_NAME_BYTES = 512
_CHUNK_VALUES = 2**16  # 256 KiB: a clip of 16 frames touches a chunk or two, whatever the features' number
_COPY_BYTES = 2**26
_TABLES = ("features", "labels", "names", "lengths")  # in the order in which they are written


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
        for table, rows, start in zip(_TABLES, values, starts, strict=True):
            data = self._file[table]
            data.resize(start + len(rows), axis=0)
            data[start:] = rows
            data.flush()
        self._names[name] = None
        self._frames += len(features)

    def _begun(self, attributes: dict[str, Any]) -> h5py.File:
        import h5py

        with written_whole(self.path) as partial, _hdf5(partial, "w", libver="latest") as file:
            _create_tables(file, self.feature_size)
            for name, value in attributes.items():
                file.attrs[name] = value
            if self.classes is not None:
                file.attrs.create("classes", list(self.classes), dtype=h5py.string_dtype())
            file.attrs["lstmvid"] = VERSION
        return _hdf5(self.path, "r+", libver="latest")

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
            return _hdf5(self.path, "r+", libver="latest")
        except OSError:
            pass  # a killed writer's file is marked as open for good; a copy isn't
        try:
            self._copy_what_counts()
            return _hdf5(self.path, "r+", libver="latest")
        except OSError as error:
            raise ValueError(f"{self.path} can't be written to, perhaps because it is being read: {error}") from error

    def _copy_what_counts(self) -> None:
        with (
            written_whole(self.path) as partial,
            _hdf5(self.path, "r", swmr=True) as old,
            _hdf5(partial, "w", libver="latest") as new,
        ):
            _create_tables(new, self.feature_size)
            for name, value in old.attrs.items():
                new.attrs[name] = value
            lengths = old["lengths"][:]
            counts = dict.fromkeys(_TABLES, len(lengths)) | {"features": int(lengths.sum())}
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


class Percepts:
    """The videos of a percepts file; an item is one video's features, float32 ``(T, D)``, read when it is asked for.

    Only the tables of names, labels and lengths are in memory. Each process opens the file for itself, so that it may
    be handed to the workers of a `torch.utils.data.DataLoader`.

    Args:
        path: a file that `PerceptsWriter` wrote, finished or not, or one of the authors' layout, which needs the
            following.
        frame_counts: text file with the number of frames of each video, one a line.
        labels: text file with the class number of each video, one a line; -1 for all if not given.
        names: text file with the name of each video, one a line; its number by default.
        dataset: HDF5 data set with the features; needed if there are several.

    Attributes:
        names: tuple of ``V`` strings.
        labels, lengths: int64 tensors ``(V,)``: class numbers, -1 where there is none; frames.
        classes: names of the classes, None if the file doesn't say.
        feature_size: ``D``.
        attributes: what else the writer noted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or doesn't fit together; the message names the file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frame_counts: str | Path | None = None,
        labels: str | Path | None = None,
        names: str | Path | None = None,
        dataset: str | None = None,
    ) -> None:
        self.path = Path(path)
        self._opened: tuple[int, h5py.File] | None = None
        file = self._open()
        self.is_original = "lstmvid" not in file.attrs
        if self.is_original:
            self._read_original(file, frame_counts, labels, names, dataset)
        else:
            if given := [n for n, v in (("frame_counts", frame_counts), ("labels", labels), ("names", names)) if v]:
                raise ValueError(f"{self.path} has everything in itself: {', '.join(given)} can't be given with it")
            self._read_own(file)
        ends = self.lengths.cumsum(0)
        self._starts = ends - self.lengths
        rows, self.feature_size = self._features(file).shape
        counted = int(self.lengths.sum())
        if counted > rows or (self.is_original and counted < rows):
            raise ValueError(f"{self.path} holds {rows} frames, but {frame_counts or 'it'} counts {counted}")
        self.close()  # until frames are asked for

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[index]  # IndexError past the end, as iteration needs it
        return self.read(index, 0, int(self.lengths[index]))

    def read(self, index: int, first: int, last: int) -> Tensor:
        """Frames `first` to before `last` of a video: float32 ``(last - first, D)``."""
        length = int(self.lengths[index])
        if not 0 <= first < last <= length:
            raise ValueError(f"frames {first} to {last} of {self.names[index]!r} don't exist: it has {length}")
        start = int(self._starts[index])
        frames = self._features(self._open())[start + first : start + last]
        return torch.from_numpy(frames.astype(np.float32, copy=False))

    def subset(self, indices: Iterable[int]) -> Percepts:
        """The same file with some of its videos only, in the order given."""
        chosen = torch.tensor([range(len(self))[index] for index in indices], dtype=torch.int64)
        part = object.__new__(Percepts)
        part.__dict__ = self.__getstate__() | {
            "names": tuple(self.names[index] for index in chosen),
            "labels": self.labels[chosen],
            "lengths": self.lengths[chosen],
            "_starts": self._starts[chosen],
        }
        return part

    def shuffled(self, seed: int, epoch: int = 0) -> Percepts:
        """The same videos in an order that seed and epoch alone decide."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,))))
        return self.subset(rng.permutation(len(self)).tolist())

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _open(self) -> h5py.File:
        """This process's own: HDF5 files don't survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            if not self.path.is_file():
                raise FileNotFoundError(f"There is no percepts file {self.path}")
            try:
                file = self._read_only()
            except OSError as error:
                raise ValueError(f"{self.path} is not an HDF5 file, or is damaged: {error}") from error
            self._opened = os.getpid(), file
        return self._opened[1]

    def _read_only(self) -> h5py.File:
        try:
            return _hdf5(self.path, "r")
        except OSError as error:
            # In the other mode HDF5 waits for what is missing; nobody would write the rest of these.
            if "truncated" in str(error) or "signature" in str(error):
                raise
            return _hdf5(self.path, "r", swmr=True)  # it is being written, or a killed writer left it

    def _features(self, file: h5py.File) -> h5py.Dataset:
        return file[self._dataset]

    def _read_own(self, file: h5py.File) -> None:
        if (version := int(file.attrs["lstmvid"])) != VERSION:
            raise ValueError(f"{self.path} is of version {version}, expected {VERSION}")
        if missing := [table for table in _TABLES if table not in file]:
            raise ValueError(f"{self.path} is damaged: it lacks {', '.join(missing)}")
        self._dataset = "features"
        self.lengths = torch.from_numpy(file["lengths"][:])
        count = len(self.lengths)
        self.labels = torch.from_numpy(file["labels"][:count])
        self.names = tuple(file["names"].asstr()[:count])
        self.classes = tuple(map(str, file.attrs["classes"])) if "classes" in file.attrs else None
        self.attributes = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in file.attrs.items()
            if name not in ("lstmvid", "classes")
        }

    def _read_original(
        self,
        file: h5py.File,
        frame_counts: str | Path | None,
        labels: str | Path | None,
        names: str | Path | None,
        dataset: str | None,
    ) -> None:
        if frame_counts is None:
            raise ValueError(f"{self.path} isn't a percepts file of lstmvid's: frame_counts is needed to read it")
        found = [name for name, data in file.items() if getattr(data, "ndim", 0) == 2]
        self._dataset = dataset if dataset is not None else found[0] if len(found) == 1 else None
        if self._dataset not in found:
            raise ValueError(
                f"{self.path} has the two-dimensional data sets {', '.join(found) or '(none)'}: "
                f"dataset is {dataset!r}, expected one of them"
            )
        self.lengths = torch.tensor(_integers(frame_counts, minimum=1), dtype=torch.int64)
        count = len(self.lengths)
        self.labels = torch.tensor([-1] * count if labels is None else _integers(labels, minimum=-1))
        self.names = tuple(map(str, range(count)) if names is None else _lines(names))
        self.classes, self.attributes = None, {}
        for what, path, given in (("labels", labels, len(self.labels)), ("names", names, len(self.names))):
            if given != count:
                raise ValueError(f"{path} has {given} {what}, but {frame_counts} has {count} videos")


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


def _hdf5(path: Path, mode: str, **options: Any) -> h5py.File:
    """Without HDF5's file locks, which some network file systems lack: the format's own marks tell who writes."""
    import h5py

    return h5py.File(path, mode, locking=False, **options)


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


def _lines(path: str | Path) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _integers(path: str | Path, *, minimum: int) -> list[int]:
    numbers = []
    for line_number, line in enumerate(_lines(path), start=1):
        try:
            numbers.append(int(line))
        except ValueError:
            numbers.append(minimum - 1)
        if numbers[-1] < minimum:
            raise ValueError(f"{path}, entry {line_number} is {line!r}, expected an integer of at least {minimum}")
    return numbers


def _listed(classes: Sequence[str] | None) -> str:
    return "(none)" if classes is None else ", ".join(classes)
