"""Sequences whose frames are image files or a cached video, read when a clip is asked for; both slice like arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lstmvid.data.video_cache import CachedVideo, FrameCache

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})


@dataclass(frozen=True)
class ImageFiles:
    """Image files as one sequence ``(T, channels, size, size)`` of uint8.

    Args:
        files: a frame each, in the order of time.
        size: side to which whole frames are squeezed.
        grey: one channel, the luma, instead of red, green and blue.
    """

    files: Sequence[Path]
    size: int
    grey: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As an array has it."""
        return len(self.files), 1 if self.grey else 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice) -> np.ndarray:
        return np.stack([self._read(file) for file in self.files[index]])

    def _read(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(path) as image:
                image = image.convert("L" if self.grey else "RGB")
                if image.size != (self.size, self.size):
                    image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
                pixels = np.asarray(image)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no frame {path}") from error
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on junk depends on the junk
            raise ValueError(f"{path} is not an image, or is damaged: {error}") from error
        return pixels[None] if self.grey else np.moveaxis(pixels, -1, 0)


@dataclass(frozen=True)
class CachedFrames:
    """A video of a cache as a sequence ``(T, channels, H, W)`` of uint8, from frame `first` to before frame `last`.

    Its file is opened for each clip: hundreds of open ones would be more than a process may have.
    """

    cache: FrameCache
    video: CachedVideo
    first: int = 0
    last: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As an array has it."""
        frames, height, width, channels = self.video.shape
        return len(range(frames)[self.first : self.last]), channels, height, width

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> np.ndarray:
        frames = self.cache.frames(self.video.video)[self.first : self.last]
        return np.moveaxis(frames[index], -1, 1)


def numbered_images(folder: Path) -> list[tuple[int, Path]]:
    """The images of a folder with the last number in their names, in the order of those numbers."""
    found = [
        (int(numbers[-1]), path)
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and (numbers := re.findall(r"\d+", path.stem))
    ]
    return sorted(found)
