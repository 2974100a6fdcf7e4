"""Pictures: strips of frames, animations and loss curves, written whole or not at all.

Rows of frames are given as ``{label: frames}``, frames being ``(T, H, W)`` or ``(T, C, H, W)`` with 1 or 3 channels,
float in [0, 1] (clipped) or uint8. `starts` says at which time step, counted from 1, a row's first frame lies: rows
that overlap in time are aligned, in a strip as in a GIF::

    rows = {"input": frames, "reconstruction": out.reconstruction, "truth": targets, "prediction": out.prediction}
    strip(rows, "strip.png", starts={"truth": 11, "prediction": 11})
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

Rows = Mapping[str, "torch.Tensor | np.ndarray"]

_PAPER, _INK, _QUIET = (255, 255, 255), (30, 30, 30), (120, 120, 120)
_FONT_SIZE = 14
_GAP = 4
_MARGIN = 12
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
    path = _checked_path(path, ".png")
    _write(path, _encode_png(strip_image(rows, starts=starts, scale=scale)))


def strip_image(rows: Rows, *, starts: Mapping[str, int] | None = None, scale: int | None = None) -> Image.Image:
    """The picture that `strip` writes, for a logger."""
    panels = _panels(rows, starts, _magnification(rows, scale, _FRAME_SIDE))
    blocks = _blocks(panels)
    height, width = _panel_size(panels)
    font = _font()
    left = 2 * _MARGIN + math.ceil(max(font.getlength(label) for label in panels))
    columns = max(len(steps) for steps, _ in blocks)
    size = (
        left + columns * (width + _GAP) - _GAP + _MARGIN,
        len(blocks) * (_MARGIN + _FONT_SIZE + _GAP) + len(panels) * (height + _GAP) - _GAP + _MARGIN,
    )
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    y = 0
    for steps, labels in blocks:
        across = {step: left + column * (width + _GAP) for column, step in enumerate(steps)}
        y += _MARGIN
        for step, x in across.items():
            draw.text((x + width // 2, y + _FONT_SIZE // 2), str(step), fill=_QUIET, font=font, anchor="mm")
        y += _FONT_SIZE + _GAP
        for label in labels:
            draw.text((left - _MARGIN, y + height // 2), label, fill=_INK, font=font, anchor="rm")
            for step, frame in panels[label].items():
                picture.paste(frame, (across[step], y))
            y += height + _GAP
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
    path = _checked_path(path, ".gif")
    if not 0 < fps <= 50:
        raise ValueError(f"fps is {fps}, expected more than 0 and at most 50, which is the most that viewers show")
    panels = _panels(rows, starts, _magnification(rows, scale, 2 * _FRAME_SIDE))
    steps = sorted({step for panel in panels.values() for step in panel})
    first, *others = (_gif_picture(panels, step) for step in steps)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=round(100 / fps) * 10, loop=0)
    _write(path, buffer.getvalue())


def loss_curve(
    records: str | Path | Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    curves: Mapping[str, str],
    floors: Mapping[str, float] | None = None,
    x: str = "step",
    ylabel: str = "loss",
) -> None:
    """Draw losses over training as a PNG, with floors as dashed lines.

    Args:
        records: a CSV file with a header (such as Lightning's ``metrics.csv``) or a mapping a record; a record need
            not have every column.
        path: the file, ``.png``; its folder is made if need be.
        curves: which columns to draw and what to call them, e.g. ``{"train_loss": "training"}``.
        floors: labelled values that a model should get below.
        x: the column of the horizontal axis.
        ylabel: what is drawn, with its unit.

    Raises:
        ValueError: no record has both a curve's column and `x`, or an entry is not a number.
        FileNotFoundError: there is no such CSV file.
    """
    from matplotlib.figure import Figure

    path = _checked_path(path, ".png")
    records = _read_csv(Path(records)) if isinstance(records, str | Path) else list(records)
    # A bare Figure has a canvas of its own: pyplot would settle the whole process's backend.
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for column, label in curves.items():
        points = _points(records, x, column)
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.8, marker="." if len(points) < 30 else "")
    for number, (label, value) in enumerate((floors or {}).items()):
        axes.axhline(value, color=str(0.3 + 0.2 * (number % 3)), linestyle="--", linewidth=1.2, label=label)
    axes.set(xlabel=x, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    _write(path, buffer.getvalue())


def _panels(rows: Rows, starts: Mapping[str, int] | None, scale: int) -> dict[str, dict[int, Image.Image]]:
    """Each row as pictures by time step."""
    starts = starts or {}
    if unknown := sorted(set(starts) - set(rows)):
        raise ValueError(f"starts names {', '.join(unknown)}, expected labels of rows: {', '.join(rows)}")
    panels = {}
    for label, frames in rows.items():
        pictures = [Image.fromarray(frame).convert("RGB") for frame in _as_bytes(label, frames)]
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


def _as_bytes(label: str, frames: torch.Tensor | np.ndarray) -> np.ndarray:
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
    font = _font()
    # A label may be wider than its panel.
    column = max(width, *(math.ceil(font.getlength(label)) for label in panels)) + _MARGIN
    top = _MARGIN + _FONT_SIZE + _GAP
    picture = Image.new("RGB", (_MARGIN + len(panels) * column, top + height + _GAP + _FONT_SIZE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    for position, (label, panel) in enumerate(panels.items()):
        x = _MARGIN + position * column
        middle = x + (column - _MARGIN) // 2
        draw.text((middle, _MARGIN + _FONT_SIZE // 2), label, fill=_INK, font=font, anchor="mm")
        corner = (middle - width // 2, top)
        if step in panel:
            picture.paste(panel[step], corner)
        else:
            draw.rectangle((*corner, corner[0] + width - 1, top + height - 1), outline=(220, 220, 220))
    # The number also keeps Pillow from merging frames that look alike.
    draw.text(
        (picture.width // 2, top + height + _GAP + _FONT_SIZE // 2), str(step), fill=_QUIET, font=font, anchor="mm"
    )
    return picture


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_FONT_SIZE)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file of losses {path}") from error


def _points(records: Iterable[Mapping[str, Any]], x: str, column: str) -> list[tuple[float, float]]:
    """The records' pairs of ``(x, column)``, but for empty entries: a logger writes only some columns at a time."""
    pairs = [(record.get(x), record.get(column)) for record in records]
    pairs = [pair for pair in pairs if not {None, ""} & set(pair)]
    if not pairs:
        found = sorted({name for record in records for name in record})
        raise ValueError(f"no record has both {x!r} and {column!r}; the columns are: {', '.join(found) or 'none'}")
    try:
        return [(float(across), float(up)) for across, up in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the columns {x!r} and {column!r} hold an entry that is not a number: {error}") from error


def _encode_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _checked_path(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"path is {path}, expected a file name that ends in {suffix}")
    return path


def _write(path: Path, content: bytes) -> None:
    """Write a file at one stroke: an old one is replaced only once the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
