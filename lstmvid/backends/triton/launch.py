"""Where the Triton kernels run, and why they can't: all that asks Triton, torch or a driver."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

from ..plan import DEVICES, DeviceLimits, limits_from, too_old

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Constant while a process runs, so that torch.compile need not look inside.
@torch.compiler.assume_constant_result
def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU's tensors: TRITON_INTERPRET when they are defined.

    Triton has to be installed, so ask `why_missing` first.
    """
    from .record_kernels import lstm_record_kernel

    return type(lstm_record_kernel).__name__ == "InterpretedFunction"


@torch.compiler.assume_constant_result
def why_missing() -> str:
    """Why there is no Triton to run anything with; empty if there is."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'lstmvid[triton]')"
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return "" if version >= (3, 6) else f"it needs Triton 3.6 or newer, installed is {triton.__version__}"


@torch.compiler.assume_constant_result
def _why_not_here() -> str:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    major, minor = torch.cuda.get_device_capability()
    return "" if is_amd() else too_old(10 * major + minor)


def unavailable(request) -> str | None:
    """Why the Triton kernels can't serve the request, or None."""
    if reason := why_missing():
        return reason
    if is_interpreted():
        if request.device != "cpu":
            return f"TRITON_INTERPRET is set: it runs on the CPU, the tensors are on {request.device}"
    elif request.device != "cuda":
        return f"it runs on GPUs, the tensors are on {request.device}"
    elif reason := _why_not_here():
        return reason
    return _why_not(request)


def unavailable_on(arch: int, request) -> str | None:
    """The same for an NVIDIA GPU of that architecture (10 * major + minor), which needn't be here."""
    return why_missing() or too_old(arch) or _why_not(request)


def _why_not(request) -> str | None:
    if request.dtype not in DTYPES:
        return f"it computes in float32, bfloat16 and float16, got {request.dtype}"
    return "it has no projections (proj_size)" if request.proj_size else None


@lru_cache
def _limits(ordinal: int) -> DeviceLimits:
    device = torch.cuda.get_device_properties(ordinal)
    return limits_from(
        {
            "name": device.name,
            "compute_capability": 10 * device.major + device.minor,
            "multiprocessors": device.multi_processor_count,
            "shared_bytes_per_block_opt_in": getattr(device, "shared_memory_per_block_optin", 64 << 10),
            "registers_per_multiprocessor": getattr(device, "regs_per_multiprocessor", 64 << 10),
            "l2_bytes": device.L2_cache_size,
            "memory_bytes": device.total_memory,
            "active_clusters": (device.multi_processor_count, 0, 0, 0),  # of single blocks: Triton has no others here
        }
    )


def limits_of(device: torch.device) -> DeviceLimits:
    """The device's, or for the interpreter an H100's."""
    if device.type == "cpu":
        return DEVICES["H100"]
    return _limits(torch.cuda.current_device() if device.index is None else device.index)


def on(device: torch.device) -> AbstractContextManager:
    """Triton launches where torch's current device is."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def is_amd() -> bool:
    """Whether the GPUs here are AMD's: torch calls them "cuda" as well."""
    return torch.version.hip is not None


def products(dtype: torch.dtype, allow_tf32: bool) -> str:
    """How Triton's float32 products are computed; of 16 bits there is one way."""
    return "tf32" if dtype == torch.float32 and allow_tf32 and not is_amd() else "ieee"


def cache_folder() -> str:
    """The user's own, for what was measured on this machine."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lstmvid")
