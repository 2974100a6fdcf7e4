"""Whether a stack's layers run as a wavefront: one window of time behind each other, side by side in one launch.

A small layer's step takes little but the exchange of h, whatever the number of groups on the chip: layers side by side
take the time of one. An upper layer runs a window behind the one below, whose output is projected in between. That
costs a launch a window, and windows in which not all layers have work at both ends.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .plan import MAX_GROUPS, DeviceLimits, Plan, plan

# Microseconds of a launch: preparations and the weights' way onto the chip, beside the small products before it.
# An estimate until it is measured.
LAUNCH = 30.0
_SHORTEST = 250.0  # microseconds that a window runs at least: in less, Python hasn't launched the next one
_GAIN = 0.9  # of the time layer by layer: less isn't worth the rounding of more, smaller sums


class Wavefront(NamedTuple):
    """Steps of a window, the launch for as many groups as there are layers, and the microseconds of a call."""

    window: int
    plan: Plan
    microseconds: float


@lru_cache(maxsize=1024)
def wavefront(
    steps: int,
    hidden: int,
    batch: int,
    layers: int,
    dtype: torch.dtype,
    limits: DeviceLimits,
    *,
    tf32: bool = True,
    backward: bool = False,
    window: int | None = None,
) -> Wavefront | None:
    """The best wavefront, by prediction, if it is faster than one layer after the other; `window`: that one or none."""
    if layers < 2 or layers > MAX_GROUPS:
        return None
    options = {"tf32": tf32, "backward": backward}
    together = plan(hidden, batch, dtype, limits, groups=layers, **options)
    if together.groups < layers:
        return None
    alone = plan(hidden, batch, dtype, limits, **options).microseconds
    candidates = [window] if window else [-(-steps // count) for count in (2, 4, 8, 16, 32, 64, 128)]
    best = None
    for length in candidates:
        if length * together.microseconds < _SHORTEST or length >= steps:
            continue
        launches = -(-steps // length) + layers - 1
        time = launches * (length * together.microseconds + LAUNCH)
        if best is None or time < best.microseconds:
            best = Wavefront(length, together, time)
    if best is None or best.microseconds > _GAIN * layers * (steps * alone + LAUNCH):
        return None
    return best
