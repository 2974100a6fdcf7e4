"""Activity of hidden units over time, a row of a heat map for each."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch

_SHOWN = 0.99  # share of the values within the scale: a few units whose cells grow for ever would hide all others


def trace_png(
    traces: Mapping[str, torch.Tensor | np.ndarray], *, start: int = 1, trained_until: int | None = None
) -> bytes:
    """Heat maps of units (vertical) over time steps (horizontal) side by side, as the content of a PNG file.

    Args:
        traces: ``(steps, units)`` by label; those with values from 0 to 1, as of gates, are drawn on that scale, others
            around zero, the largest 1% of them saturated. Not-a-number is left white.
        start: the time step of the first one.
        trained_until: the last step that training predicted, drawn as a line.

    Raises:
        ValueError: naming the trace, what was given and what was expected.
    """
    from matplotlib.figure import Figure

    if not traces:
        raise ValueError("traces is empty, expected at least one")
    figure = Figure(figsize=(3.2 * len(traces), 4.4), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(traces), sharey=True, squeeze=False)[0]
    for plot, (label, values) in zip(axes, traces.items(), strict=True):
        values = np.asarray(values.detach().cpu().double() if isinstance(values, torch.Tensor) else values)
        if values.ndim != 2 or not values.size or np.isinf(values).any():
            raise ValueError(f"trace {label!r} has shape {values.shape}, expected finite (steps, units), not empty")
        low, high = np.nanmin(values), np.nanmax(values)
        is_gate = low >= 0 and high <= 1
        bound = max(np.nanquantile(np.abs(values), _SHOWN), 1e-12)
        colours, limits = ("Greys", (0, 1)) if is_gate else ("RdBu_r", (-bound, bound))
        extent = (start - 0.5, start + len(values) - 0.5, values.shape[1] + 0.5, 0.5)
        image = plot.imshow(values.T, cmap=colours, aspect="auto", interpolation="nearest", extent=extent)
        image.set_clim(*limits)
        if trained_until is not None and start <= trained_until < start + len(values) - 1:
            plot.axvline(trained_until + 0.5, color="tab:orange", linewidth=1.2)
        plot.set(title=label, xlabel="predicted frame")
        figure.colorbar(image, ax=plot, orientation="horizontal", shrink=0.8)
    axes[0].set_ylabel("unit")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
