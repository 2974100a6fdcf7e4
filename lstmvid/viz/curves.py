"""Curves over training steps or time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lstmvid.viz.files import checked_path, write


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
    path = checked_path(path, ".png")
    write(path, loss_curve_png(records, curves=curves, floors=floors, x=x, ylabel=ylabel))


def loss_curve_png(
    records: str | Path | Iterable[Mapping[str, Any]],
    *,
    curves: Mapping[str, str],
    floors: Mapping[str, float] | None = None,
    x: str = "step",
    ylabel: str = "loss",
) -> bytes:
    """The content of the file that `loss_curve` writes."""
    from matplotlib.figure import Figure

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
    return buffer.getvalue()


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
