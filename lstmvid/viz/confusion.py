"""Confusion matrices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lstmvid.viz.files import checked_path, write

_MOST_NUMBERS = 20  # classes: of more, the numbers in the fields could not be read


def confusion_matrix(
    matrix: torch.Tensor | np.ndarray, classes: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """Draw which classes were taken for which as a PNG.

    Args:
        matrix: ``(C, C)``, counts of true classes (rows) and chosen ones (columns); shades are shares of a row.
        classes: their names.
        path: the file, ``.png``; its folder is made if need be.
        title: above the picture.

    Raises:
        ValueError: sizes that differ.
    """
    from matplotlib.figure import Figure

    path = checked_path(path, ".png")
    counts = np.asarray(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix has shape {counts.shape}, expected ({len(classes)}, {len(classes)}) for its classes")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3 + 0.35 * len(classes), 18)
    figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = max(10 - len(classes) // 12, 4)
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set(xlabel="chosen class", ylabel="true class", title=title)
    if len(classes) <= _MOST_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=size)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write(path, buffer.getvalue())
