"""Decoded frames on disk, for clips to be read from anywhere in a video.

A cache is a folder, and in it a folder for each `FrameFormat`::

    cache/rgb-short120/index.jsonl                            a line for each video that is there
    cache/rgb-short120/Archery/v_Archery_g01_c01.avi.npy      its frames, uint8 (T, H, W, C), memory-mapped when read

A video's file is renamed into its place when it is whole, and only then does the index get its line: whenever a
process is killed, the video under way is all that is lost. One process at a time fills a cache; others wait for it and
then find everything there. A video whose file has changed since is decoded again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lstmvid.data.files import written_whole
from lstmvid.data.video_frames import FrameFormat, VideoError, read_frames

_INDEX = "index.jsonl"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedVideo:
    """What the index knows of a video.

    Args:
        video: its path relative to the folder of videos.
        shape: ``(T, H, W, C)`` of its frames.
        clock: seconds of a tick, as numerator and denominator.
        ticks: from each frame to the next, as ``[ticks, how often in a row]``; a constant frame rate is a single pair.
        bytes, modified_ns: size and time of the file that the frames come from.
    """

    video: str
    shape: tuple[int, int, int, int]
    clock: tuple[int, int]
    ticks: tuple[tuple[int, int], ...]
    bytes: int
    modified_ns: int

    def times(self) -> np.ndarray:
        """Seconds since the first frame: float64 ``(T,)``."""
        steps = [np.full(count, ticks, dtype=np.int64) for ticks, count in self.ticks]
        return np.cumsum(np.concatenate([[0], *steps])) * float(Fraction(*self.clock))

    @classmethod
    def from_json(cls, line: str) -> CachedVideo:
        """The video of an index's line."""
        values = json.loads(line)
        for name in ("shape", "clock"):
            values[name] = tuple(values[name])
        values["ticks"] = tuple(tuple(pair) for pair in values["ticks"])
        return cls(**values)


class FrameCache:
    """Frames of the videos of a folder, decoded once.

    Args:
        videos: the folder of videos.
        folder: of the cache; made when it is filled. Several formats and programs may share one.
        frame_format: what frames are turned into.
    """

    def __init__(self, videos: str | Path, folder: str | Path, frame_format: FrameFormat | None = None) -> None:
        self.videos = Path(videos)
        self.frame_format = frame_format or FrameFormat()
        self.folder = Path(folder) / self.frame_format.name

    def fill(
        self, videos: Sequence[str], *, workers: int = 1, progress: bool = True
    ) -> tuple[list[CachedVideo], dict[str, str]]:
        """Decode the videos that aren't there yet.

        A video that is broken, empty or missing is logged as a warning and left out, and tried again the next time.

        Args:
            videos: paths relative to the folder of videos.
            workers: threads that decode a video each; with one, FFmpeg uses several for it.
            progress: show a bar, if in a terminal.

        Returns:
            ``(there, broken)``: the videos that can be read, in the given order, and of the others what is wrong.

        Raises:
            OSError: the cache can't be written, as where the disk is full. All videos before remain.
        """
        if type(workers) is not int or workers < 1:
            raise ValueError(f"workers is {workers!r}, expected an integer of at least 1")
        index = self._read_index()
        if all(self._is_current(video, index.get(video)) for video in videos):  # in a folder that is read-only, maybe
            return [index[video] for video in dict.fromkeys(videos)], {}
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / ".lock"):
            for leftover in self.folder.rglob(".*.partial"):
                leftover.unlink()
            index = self._read_index(mend=True)
            missing = [video for video in dict.fromkeys(videos) if not self._is_current(video, index.get(video))]
            broken: dict[str, str] = {}
            if missing:
                with (self.folder / _INDEX).open("a", encoding="utf-8") as lines:
                    for video, outcome in self._decoded(missing, workers, progress):
                        if isinstance(outcome, CachedVideo):
                            lines.write(json.dumps(asdict(outcome)) + "\n")
                            lines.flush()
                            index[video] = outcome
                        else:
                            _log.warning("%s is left out: %s", self.videos / video, outcome)
                            broken[video] = outcome
        return [index[video] for video in dict.fromkeys(videos) if video not in broken], broken

    def frames(self, video: str) -> np.ndarray:
        """A video's frames, uint8 ``(T, H, W, C)``, memory-mapped and read-only."""
        return np.lib.format.open_memmap(self._file(video), mode="r")

    def _file(self, video: str) -> Path:
        return self.folder / f"{video}.npy"

    def _read_index(self, mend: bool = False) -> dict[str, CachedVideo]:
        """All lines, the last one of each video; a line that was being written is ignored, or also cut off."""
        path, index = self.folder / _INDEX, {}
        if path.exists():
            whole, newline, torn = path.read_bytes().rpartition(b"\n")
            if torn and mend:
                with path.open("r+b") as file:
                    file.truncate(len(whole) + len(newline))
            for number, line in enumerate(whole.decode().splitlines(), start=1):
                try:
                    video = CachedVideo.from_json(line)
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{path}, line {number}, is damaged: delete the file to decode again") from error
                index[video.video] = video
        return index

    def _is_current(self, video: str, cached: CachedVideo | None) -> bool:
        if cached is None or not self._file(video).exists():
            return False
        with contextlib.suppress(FileNotFoundError):
            state = (self.videos / video).stat()
            return (cached.bytes, cached.modified_ns) == (state.st_size, state.st_mtime_ns)
        return False

    def _decoded(self, videos: list[str], workers: int, progress: bool) -> Iterator[tuple[str, CachedVideo | str]]:
        """Each video and what came of it, or why nothing did, as they get ready."""
        with _progress(len(videos), progress) as advance, ThreadPoolExecutor(workers) as pool:
            # A few ahead and not all at once, so that Ctrl-C has little to wait for.
            rest, pending, stop = iter(videos), {}, threading.Event()
            while True:
                for video in itertools.islice(rest, 2 * workers - len(pending)):
                    pending[pool.submit(self._decode, video, None if workers == 1 else 1, stop)] = video
                if not pending:
                    return
                try:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        video = pending.pop(future)
                        try:
                            outcome = future.result()
                        except (VideoError, FileNotFoundError) as error:
                            outcome = str(error)
                        yield video, outcome
                        advance()
                except BaseException:  # Ctrl-C, a full disk, or whoever iterates has gone
                    stop.set()
                    for future in pending:
                        future.cancel()
                    raise

    def _decode(self, video: str, threads: int | None, stop: threading.Event) -> CachedVideo:
        source = self.videos / video
        if not source.is_file():
            raise FileNotFoundError("there is no such file")
        state = source.stat()
        times = []
        with written_whole(self._file(video)) as partial, partial.open("wb") as file:
            writer = None
            for frame in read_frames(source, self.frame_format, threads=threads):
                if stop.is_set():
                    raise InterruptedError(f"decoding of {source} was interrupted")
                writer = writer or _ArrayWriter(file, frame.pixels.shape)
                writer.append(frame.pixels)
                times.append(frame.time)
            writer.finish()
        clock, ticks = _compressed(times)
        return CachedVideo(video, writer.shape, clock, ticks, state.st_size, state.st_mtime_ns)


class _ArrayWriter:
    """A NumPy array file whose first axis grows: the header says at the end how far."""

    def __init__(self, file: BinaryIO, item: tuple[int, ...]) -> None:
        self.file, self.item, self.count = file, tuple(item), 0
        self._write_header()
        self.start = file.tell()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.item)

    def append(self, pixels: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(pixels).data)
        self.count += 1

    def finish(self) -> None:
        self.file.seek(0)
        self._write_header()
        if self.file.tell() != self.start:  # NumPy leaves room for the first axis to grow
            raise RuntimeError("NumPy's header has changed its length")

    def _write_header(self) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)


def _compressed(times: list[Fraction]) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
    """Frame times as ``(clock, ticks)`` of `CachedVideo`."""
    steps = [after - before for before, after in itertools.pairwise(times)]
    denominator = math.lcm(*(step.denominator for step in steps))
    ticks = tuple((int(step * denominator), len(list(run))) for step, run in itertools.groupby(steps))
    return (1, denominator), ticks


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time, and let go of when that ends, however it does."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress(total: int, show: bool) -> Iterator[Any]:
    """A bar on the terminal; yields what to call after each video."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("decoding videos"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda: bar.advance(task)
