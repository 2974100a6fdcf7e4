"""How it is measured: interleaved rounds, the machine's peaks, and peak memory.

On a GPU a time is that between two events on the stream, so that the host's queueing counts only where it is what the
device waits for, and nothing is running when the first one is recorded.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

Call = Callable[[], object]

MIN_ROUNDS, MAX_ROUNDS = 3, 50


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(call: Call, device: str) -> float:
    """How long one call takes on the device."""
    synchronize(device)
    if not device.startswith("cuda"):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        start.record()
        call()
        end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def interleaved(
    calls: Mapping[str, Call], device: str, *, rounds: int | None = None, budget: float = 10.0
) -> dict[str, list[float]]:
    """Seconds of each call in rounds A B C, B C A, ..., so that whatever slows the machine hits all of them.

    The order within a round is random: what ran just before leaves caches and clocks in a better or worse state.
    Without `rounds`, as many as start within `budget` seconds, at least `MIN_ROUNDS` and at most `MAX_ROUNDS`. Caches,
    allocators, thread pools and clocks are warm if the caller has made each call before.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffle, start = random.Random(0), time.monotonic()
    for done in range(rounds or MAX_ROUNDS):
        if rounds is None and done >= MIN_ROUNDS and time.monotonic() - start > budget:
            break
        for name in shuffle.sample(list(calls), len(calls)):
            times[name].append(seconds(calls[name], device))
    return times


def statistics(times: list[float], baseline: list[float] | None, flops: int, moved: int) -> dict:
    """Seconds and rates of a contestant, and its speed-up over the baseline of the same rounds."""
    minimum, q1, median, q3, maximum = np.percentile(times, [0, 25, 50, 75, 100]).tolist()
    result = {
        "rounds": len(times),
        "seconds": {"median": median, "min": minimum, "q1": q1, "q3": q3, "max": maximum},
        "flop_per_s": flops / median,
        "bytes_per_s": moved / median,
        "speedup": None,
    }
    if baseline is not None:
        # The spread of the ratio within a round: what slows the machine for longer than a round drops out of it.
        low, high = np.percentile(np.divide(baseline, times), [25, 75]).tolist()
        result |= {"speedup": float(np.median(baseline)) / median, "speedup_q1": low, "speedup_q3": high}
    return result


def set_tf32(on: bool) -> None:
    """Whether a GPU multiplies float32 in its short format, in cuDNN and in the plain products alike."""
    # The newer fp32_precision flags can't be mixed with these, which torch itself still reads, torch.export for one.
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def gemm_peak(dtype: torch.dtype, device: str) -> tuple[float, str]:
    """FLOP/s of the best large matrix product, and who made it."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: dict[str, Call] = {"torch.mm": lambda: torch.mm(a, b)}
    if device == "cpu" and dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available():
        # torch's own float32 product is MKL's, which isn't the fastest on every processor.
        products["oneDNN linear"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    times = interleaved(products, device, budget=0.6)
    best = min(times, key=lambda name: min(times[name]))
    return 2 * size**3 / min(times[best]), best


def copy_peak(device: str) -> float:
    """Bytes/s, read and written, of a copy too large for any cache."""
    source = torch.ones(2**26 if device == "cpu" else 2**29, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, device, budget=0.3)
    return 2 * source.numel() * source.element_size() / min(times["copy"])


def peak_memory(call: Call, device: str) -> int | None:
    """Bytes that a call needs beyond what was there before it (weights and frames); None where that can't be seen.

    On a GPU what torch's allocator handed out. On a CPU resident pages, which count the libraries' buffers, too: the
    heap is trimmed and Linux's high-water mark is set back before the call.
    """
    if device.startswith("cuda"):
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (AttributeError, OSError):  # another C library, or a sandbox
        return None
    call()
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def free_memory(device: str) -> int | None:
    """Bytes that the device has left, or None if that isn't known."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
