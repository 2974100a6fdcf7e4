"""The reader of percepts files: of ours (see `lstmvid.data.percepts`), and of the layout of the paper's authors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import h5py

VERSION = 1
_CACHE_BYTES, _CACHE_SLOTS = 2**26, 25_601  # of chunks of 256 KiB; a small file is then read once
TABLES = ("features", "labels", "names", "lengths")  # in the order in which they are written


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

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self.feature_size,)

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
            return open_hdf5(self.path, "r")
        except OSError as error:
            # In the other mode HDF5 waits for what is missing; nobody would write the rest of these.
            if "truncated" in str(error) or "signature" in str(error):
                raise
            return open_hdf5(self.path, "r", swmr=True)  # it is being written, or a killed writer left it

    def _features(self, file: h5py.File) -> h5py.Dataset:
        return file[self._dataset]

    def _read_own(self, file: h5py.File) -> None:
        if (version := int(file.attrs["lstmvid"])) != VERSION:
            raise ValueError(f"{self.path} is of version {version}, expected {VERSION}")
        if missing := [table for table in TABLES if table not in file]:
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


def open_hdf5(path: Path, mode: str, **options: Any) -> h5py.File:
    """Without HDF5's file locks, which some network file systems lack: the format's own marks tell who writes."""
    import h5py

    return h5py.File(path, mode, locking=False, rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=_CACHE_SLOTS, **options)


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
