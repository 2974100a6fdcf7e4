"""How pictures become files: whole, or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image


def encode_png(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def checked_path(path: str | Path, suffix: str) -> Path:
    """The path, whose name has to end in `suffix`."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"path is {path}, expected a file name that ends in {suffix}")
    return path


def write(path: Path, content: bytes) -> None:
    """Write a file at one stroke: an old one is replaced only once the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
