"""``lstmvid info``: what there is to run on, and why not on the rest. Needs nothing beyond torch and numpy."""

from __future__ import annotations

import argparse
import platform

import numpy as np
import torch

import lstmvid
from lstmvid import _native

_EXAMPLE = (20, 16, 1024, 1024)  # T, B, D, H; `lstmvid plan` shows others


def main(arguments: list[str]) -> int:
    """Print versions, the native module, devices and backends."""
    parser = argparse.ArgumentParser(
        prog="lstmvid info", description="Show versions, devices and which backends can run."
    )
    parser.parse_args(arguments)
    for name, value in _facts().items():
        print(f"{name:18}{value}")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        print(f"\n{lstmvid.explain(_EXAMPLE, device=device)}")
    return 0


def _facts() -> dict[str, str]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "lstmvid": lstmvid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "native module": _native.WHY_MISSING or f"built {'with' if _native.WITH_CUDA else 'without'} CUDA",
        "processor": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "instruction set": f"{_native.INSTRUCTION_SET} (native), {torch.backends.cpu.get_cpu_capability()} (torch)",
        "GPU": ", ".join(gpus) or "none",
    }
