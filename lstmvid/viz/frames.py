"""Frames of sequences: strips, side by side in time, and animations.

Rows of frames are given as ``{label: frames}``, frames being ``(T, H, W)`` or ``(T, C, H, W)`` with 1 or 3 channels,
float in [0, 1] (clipped) or uint8. `starts` says at which time step, counted from 1, a row's first frame lies: rows
that overlap in time are aligned, in a strip as in a GIF::

    rows = {"input": frames, "reconstruction": out.reconstruction, "truth": targets, "prediction": out.prediction}
    strip(rows, "strip.png", starts={"truth": 11, "prediction": 11})
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from lstmvid.viz.files import checked_path, encode_png, write
from lstmvid.viz.layout import FONT_SIZE, GAP, INK, MARGIN, PAPER, QUIET, font

Rows = Mapping[str, "torch.Tensor | np.ndarray"]

_FRAME_SIDE = 64  # smaller frames are magnified to about this many pixels in a strip, and twice as many in a GIF


def strip(rows: Rows, path: str | Path, *, starts: Mapping[str, int] | None = None, scale: int | None = None) -> None:
    """Write labelled rows of frames, side by side in time, as a PNG.

    Args:
        rows: see the module's first lines; lengths may differ, frame sizes may not.
        path: the file, ``.png``; its folder is made if need be.
        starts: the time step of a row's first frame, 1 if not given.
        scale: whole-number magnification; by default small frames grow to about 64 pixels.

    Raises:
        ValueError: naming the row or argument, what was given and what was expected.
    """
    path = checked_path(path, ".png")
    write(path, encode_png(strip_image(rows, starts=starts, scale=scale)))


def strip_image(rows: Rows, *, starts: Mapping[str, int] | None = None, scale: int | None = None) -> Image.Image:
    """The picture that `strip` writes, for a logger."""
    panels = _panels(rows, starts, _magnification(rows, scale, _FRAME_SIDE))
    blocks = _blocks(panels)
    height, width = _panel_size(panels)
    letters = font()
    left = 2 * MARGIN + math.ceil(max(letters.getlength(label) for label in panels))
    columns = max(len(steps) for steps, _ in blocks)
    size = (
        left + columns * (width + GAP) - GAP + MARGIN,
        len(blocks) * (MARGIN + FONT_SIZE + GAP) + len(panels) * (height + GAP) - GAP + MARGIN,
    )
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    y = 0
    for steps, labels in blocks:
        across = {step: left + column * (width + GAP) for column, step in enumerate(steps)}
        y += MARGIN
        for step, x in across.items():
            draw.text((x + width // 2, y + FONT_SIZE // 2), str(step), fill=QUIET, font=letters, anchor="mm")
        y += FONT_SIZE + GAP
        for label in labels:
            draw.text((left - MARGIN, y + height // 2), label, fill=INK, font=letters, anchor="rm")
            for step, frame in panels[label].items():
                picture.paste(frame, (across[step], y))
            y += height + GAP
    return picture


def gif(
    rows: Rows,
    path: str | Path,
    *,
    fps: float = 5.0,
    starts: Mapping[str, int] | None = None,
    scale: int | None = None,
) -> None:
    """Write rows of frames as an endless animated GIF, the rows side by side under their labels.

    A row that has no frame at a time step shows a blank panel.

    Args:
        rows, starts, scale: as for `strip`, but frames grow to about 128 pixels.
        path: the file, ``.gif``; its folder is made if need be.
        fps: frames a second; GIF keeps time in hundredths of a second.

    Raises:
        ValueError: naming the row or argument, what was given and what was expected.
    """
    path = checked_path(path, ".gif")
    write(path, gif_bytes(rows, fps=fps, starts=starts, scale=scale))


def gif_bytes(
    rows: Rows, *, fps: float = 5.0, starts: Mapping[str, int] | None = None, scale: int | None = None
) -> bytes:
    """The content of the file that `gif` writes."""
    if not 0 < fps <= 50:
        raise ValueError(f"fps is {fps}, expected more than 0 and at most 50, which is the most that viewers show")
    panels = _panels(rows, starts, _magnification(rows, scale, 2 * _FRAME_SIDE))
    steps = sorted({step for panel in panels.values() for step in panel})
    first, *others = (_gif_picture(panels, step) for step in steps)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=round(100 / fps) * 10, loop=0)
    return buffer.getvalue()


def _panels(rows: Rows, starts: Mapping[str, int] | None, scale: int) -> dict[str, dict[int, Image.Image]]:
    """Each row as pictures by time step."""
    starts = starts or {}
    if unknown := sorted(set(starts) - set(rows)):
        raise ValueError(f"starts names {', '.join(unknown)}, expected labels of rows: {', '.join(rows)}")
    panels = {}
    for label, frames in rows.items():
        pictures = [Image.fromarray(frame).convert("RGB") for frame in as_bytes(label, frames)]
        size = scale * pictures[0].width, scale * pictures[0].height
        magnified = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
        panels[label] = dict(enumerate(magnified, start=starts.get(label, 1)))
    sizes = {label: next(iter(panel.values())).size for label, panel in panels.items()}
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{label} {height // scale} x {width // scale}" for label, (width, height) in sizes.items())
        raise ValueError(f"rows have frames of different sizes ({given}), expected one size")
    return panels


def _blocks(panels: Mapping[str, Mapping[int, Image.Image]]) -> list[tuple[list[int], list[str]]]:
    """Group rows for a strip: ``(time steps, labels)`` of neighbours that overlap in time.

    Without it, a prediction that starts where the input ends would leave half of the picture empty.
    """
    blocks: list[tuple[set[int], list[str]]] = []
    for label, panel in panels.items():
        if not blocks or blocks[-1][0].isdisjoint(panel):
            blocks.append((set(), []))
        steps, labels = blocks[-1]
        steps |= set(panel)
        labels.append(label)
    return [(sorted(steps), labels) for steps, labels in blocks]


def as_bytes(label: str, frames: torch.Tensor | np.ndarray) -> np.ndarray:
    """Frames as uint8 ``(T, H, W)`` or ``(T, H, W, 3)``."""
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        # NumPy has no bfloat16.
        frames = (frames.float() if frames.is_floating_point() else frames).numpy()
    if frames.ndim not in (3, 4) or not frames.size or (frames.ndim == 4 and frames.shape[1] not in (1, 3)):
        raise ValueError(
            f"row {label!r} has shape {frames.shape}, expected (T, H, W) or (T, C, H, W) with C 1 or 3, not empty"
        )
    if frames.ndim == 4:
        frames = frames[:, 0] if frames.shape[1] == 1 else np.moveaxis(frames, 1, -1)
    if frames.dtype == np.uint8:
        return np.ascontiguousarray(frames)
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"row {label!r} is {frames.dtype}, expected uint8 or floating point in [0, 1]")
    if not np.isfinite(frames).all():
        raise ValueError(f"row {label!r} contains values that are not finite")
    return np.ascontiguousarray(np.round(np.clip(frames, 0, 1) * 255).astype(np.uint8))


def _magnification(rows: Rows, scale: int | None, side: int) -> int:
    if not rows:
        raise ValueError("rows is empty, expected at least one row of frames")
    if scale is None:
        return max(1, round(side / max(max(frames.shape[-2:], default=1) or 1 for frames in rows.values())))
    if scale != int(scale) or scale < 1:
        raise ValueError(f"scale is {scale}, expected a whole number of at least 1")
    return int(scale)


def _panel_size(panels: Mapping[str, Mapping[int, Image.Image]]) -> tuple[int, int]:
    width, height = next(iter(next(iter(panels.values())).values())).size
    return height, width


def _gif_picture(panels: Mapping[str, Mapping[int, Image.Image]], step: int) -> Image.Image:
    """One time step: the rows' panels side by side, labels above, the step's number below."""
    height, width = _panel_size(panels)
    letters = font()
    # A label may be wider than its panel.
    column = max(width, *(math.ceil(letters.getlength(label)) for label in panels)) + MARGIN
    top = MARGIN + FONT_SIZE + GAP
    picture = Image.new("RGB", (MARGIN + len(panels) * column, top + height + GAP + FONT_SIZE + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for position, (label, panel) in enumerate(panels.items()):
        x = MARGIN + position * column
        middle = x + (column - MARGIN) // 2
        draw.text((middle, MARGIN + FONT_SIZE // 2), label, fill=INK, font=letters, anchor="mm")
        corner = (middle - width // 2, top)
        if step in panel:
            picture.paste(panel[step], corner)
        else:
            draw.rectangle((*corner, corner[0] + width - 1, top + height - 1), outline=(220, 220, 220))
    # The number also keeps Pillow from merging frames that look alike.
    draw.text(
        (picture.width // 2, top + height + GAP + FONT_SIZE // 2), str(step), fill=QUIET, font=letters, anchor="mm"
    )
    return picture
