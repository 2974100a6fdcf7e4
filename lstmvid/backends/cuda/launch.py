"""Where the CUDA kernels run, and why they can't: all that asks torch or the driver for a GPU."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ... import _native
from ..plan import CLUSTER_SIZES, ELEMENT_BYTES, DeviceLimits, limits_from, too_old


class Target(NamedTuple):
    """Where kernels are launched."""

    limits: DeviceLimits
    ordinal: int
    stream: int


@lru_cache
def limits_of(ordinal: int) -> DeviceLimits:
    """Of a device that is here, as its driver says."""
    device = _native.cuda_device_limits(ordinal)
    # Fewer under MPS or MIG than the multiprocessors would say, and clusters don't fill a chip.
    device["active_clusters"] = [
        _native.cuda_active_clusters(ordinal, size, device["shared_bytes_per_block_opt_in"])
        if size == 1 or device["has_clusters"]
        else 0
        for size in CLUSTER_SIZES
    ]
    return limits_from(device)


def target_of(device: torch.device) -> Target:
    """The device's limits, and the stream that is current on it."""
    stream = torch.cuda.current_stream(device)
    return Target(limits_of(stream.device_index), stream.device_index, stream.cuda_stream)


@torch.compiler.assume_constant_result
def architecture() -> int:
    """Of the current device, 10 * major + minor; 0 where there is none."""
    if not _native.cuda_device_count()[0]:
        return 0
    return _native.cuda_device_limits(torch.cuda.current_device())["compute_capability"]


@lru_cache
def _why_not_on(ordinal: int) -> str:
    if reason := too_old(_native.cuda_device_limits(ordinal)["compute_capability"]):
        return reason
    try:
        limits_of(ordinal)
    except RuntimeError as error:
        return f"its kernels can't run on this GPU ({error}); built for another one? LSTMVID_CUDA_ARCHS chooses"
    return ""


# Constant while a process runs, so that torch.compile need not look inside.
@torch.compiler.assume_constant_result
def _why_none() -> str:
    return _native.WHY_MISSING or _native.cuda_device_count()[1]


@torch.compiler.assume_constant_result
def _why_not_here() -> str:
    return _why_not_on(torch.cuda.current_device())


def unavailable(request) -> str | None:
    """Why the CUDA kernels can't serve the request, or None."""
    if reason := _why_none():
        return reason
    if request.device != "cuda":
        return f"it runs on NVIDIA GPUs, the tensors are on {request.device}"
    return _why_not_here() or _why_not(request)


def unavailable_on(arch: int, request) -> str | None:
    """The same for a GPU of that architecture (10 * major + minor), which needn't be here."""
    return too_old(arch) or _why_not(request)


def _why_not(request) -> str | None:
    if request.dtype not in ELEMENT_BYTES:
        return f"it computes in float32, bfloat16 and float16, got {request.dtype}"
    return "it has no projections (proj_size)" if request.proj_size else None
