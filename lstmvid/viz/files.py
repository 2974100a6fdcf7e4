"""How pictures become files: whole, or not at all."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from lstmvid.data.files import written_whole


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
    with written_whole(path) as partial:
        partial.write_bytes(content)
