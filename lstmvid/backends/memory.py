"""Whether backward reads saved gates or computes them again, where the caller leaves it open."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .estimate import kept_bytes

# What a call may keep for backward: this share of the device's memory. A model has several calls, and more to keep.
SHARE = 1 / 8


def _cpu_bytes() -> int:
    """The machine's memory, or what its container may have of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


CPU_BYTES = _cpu_bytes()  # once: what is decided by it is decided in graphs, too


def total_bytes(device: str) -> int | None:
    """Of the CPU or the current GPU; None for a device that has no memory of its own."""
    if device == "cpu":
        return CPU_BYTES
    return torch.cuda.get_device_properties().total_memory if device == "cuda" else None


def recomputes(name: str, request, total: int | None = None) -> bool:
    """Whether backend `name` computes gates again in backward of the request.

    Depends on shape, dtype and the device's total memory alone (`total`, for a device that isn't here), not on what is
    free of it, so that the same call always gives the same bits.
    """
    if request.recompute != "auto":
        return request.recompute == "gates"
    if not request.needs_grad or name == "torch" or torch.compiler.is_compiling():  # a graph serves many shapes
        return False
    total = total_bytes(request.device) if total is None else total
    return total is not None and kept_bytes(request) > SHARE * total
