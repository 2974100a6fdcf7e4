"""Frames of a video file, decoded one after the other by PyAV (FFmpeg), and the video files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)


class VideoError(ValueError):
    """A video that can't be decoded or has no frames. The message says why; who catches it knows which."""


class Frame(NamedTuple):
    """One decoded frame: uint8 pixels ``(H, W, C)`` and seconds since the video's first frame."""

    pixels: np.ndarray
    time: Fraction


@dataclass(frozen=True)
class FrameFormat:
    """What frames are turned into while they are decoded.

    Args:
        grey: one channel, the luma, instead of red, green and blue.
        whole: squeeze whole frames to this ``(height, width)``, whatever their aspect ratio.
        short_side: scale frames so that their shorter side has this many pixels, keeping the aspect ratio.

    Raises:
        ValueError: both sizes are given, or one isn't made of integers of at least 1.
    """

    grey: bool = False
    whole: tuple[int, int] | None = None
    short_side: int | None = None

    def __post_init__(self) -> None:
        if self.whole is not None and self.short_side is not None:
            raise ValueError(f"whole is {self.whole} and short_side is {self.short_side}, expected one of them at most")
        for name, value, sides in (("whole", self.whole, self.whole), ("short_side", self.short_side, None)):
            sides = sides if name == "whole" else (value,)
            if value is not None and not all(type(side) is int and side >= 1 for side in sides):
                raise ValueError(f"{name} is {value}, expected integers of at least 1")

    @property
    def channels(self) -> int:
        """Channels of a frame."""
        return 1 if self.grey else 3

    @property
    def name(self) -> str:
        """A name for files: formats of one name give the same frames."""
        size = "full"
        if self.whole is not None:
            size = "whole{}x{}".format(*self.whole)
        elif self.short_side is not None:
            size = f"short{self.short_side}"
        return f"{'grey' if self.grey else 'rgb'}-{size}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """``(height, width)`` that frames of a given size get."""
        if self.whole is not None:
            return self.whole
        if self.short_side is None:
            return height, width
        scale = Fraction(self.short_side, min(height, width))
        return max(round(height * scale), 1), max(round(width * scale), 1)


def read_frames(
    path: str | Path, frame_format: FrameFormat | None = None, *, threads: int | None = None
) -> Iterator[Frame]:
    """Decode a video's first video stream, a frame at a time.

    Args:
        path: the file, in any container and codec that FFmpeg knows.
        frame_format: what to turn frames into; RGB of the video's own size by default. Frames of a video that changes
            its size on the way all get the first one's.
        threads: that decode side by side; by default as FFmpeg sees fit.

    Yields:
        `Frame`, in the order in which they are shown.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it is no video, is broken, or has no frames; possibly only after frames were given out.
        ModuleNotFoundError: PyAV is not installed.
    """
    av = _pyav()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no video file {path}")
    frame_format = frame_format or FrameFormat()
    count = 0
    try:
        # "file:", for a colon in a name would else be taken for a protocol. Old files have tags in any encoding.
        with av.open(f"file:{path}", metadata_errors="ignore") as container:
            if not container.streams.video:
                raise VideoError("it has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("FFmpeg has no decoder for it")
            stream.thread_type = "AUTO"
            if threads is not None:
                stream.codec_context.thread_count = threads
            clock = _Clock(stream)
            size = None
            for frame in container.decode(stream):
                size = size or frame_format.size(frame.height, frame.width)
                yield Frame(_pixels(frame, frame_format, size), clock.time(frame, count))
                count += 1
    except VideoError:
        raise
    except Exception as error:  # what comes of junk depends on the junk
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(f"decoding failed after {count} frames: {reason}" if count else f"{reason}") from error
    if not count:
        raise VideoError("it has no frames")


def list_videos(folder: str | Path) -> list[str]:
    """Find the video files of a folder and all folders in it, links among them, by their suffix.

    Hidden files and folders are left out.

    Returns:
        Paths relative to the folder, with ``/``, sorted.

    Raises:
        FileNotFoundError: there is no such folder, or it has no video.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of videos {folder}")
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            found += [
                Path(parent, name).relative_to(folder).as_posix()
                for name in files
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
            ]
        seen.add(real)
    if not found:
        raise FileNotFoundError(f"The folder {folder} has no video files (such as .avi, .mp4, .mkv, .webm)")
    return sorted(found)


class _Clock:
    """Seconds since a video's first frame; by the frame rate, where a stream carries no time stamps."""

    def __init__(self, stream: Any) -> None:
        self.base = stream.time_base
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.first: int | None = None

    def time(self, frame: Any, number: int) -> Fraction:
        base = frame.time_base or self.base
        if frame.pts is None or base is None:
            return number / self.rate
        if self.first is None:
            self.first = frame.pts
        return (frame.pts - self.first) * Fraction(base)


def _pixels(frame: Any, frame_format: FrameFormat, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    frame = frame.reformat(
        width=width, height=height, format="gray" if frame_format.grey else "rgb24", interpolation="AREA"
    )
    return frame.to_ndarray().reshape(height, width, frame_format.channels)


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Videos are decoded by the package av (PyAV), which is not installed: run `pip install 'lstmvid[video]'`."
        ) from error
    return av
