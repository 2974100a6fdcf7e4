"""The only importer of the native module `_C`: what was built, and tensors as the pointers that kernels take."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    _C = importlib.import_module("lstmvid._C")
except ImportError as error:  # a source tree that was never built, or built for another Python
    _C = None
    WHY_MISSING = f"the native module is not built ({error}); run `pip install -e .`"
else:
    WHY_MISSING = ""

INSTRUCTION_SET: str = _C.cpu_instruction_set() if _C is not None else "none"
WITH_CUDA: bool = _C is not None and _C.WITH_CUDA
DTYPES: dict[torch.dtype, int] = (
    {torch.float32: _C.FLOAT32, torch.float64: _C.FLOAT64, torch.bfloat16: _C.BFLOAT16} if _C is not None else {}
)


# From here on a buffer is worth pages of its own.
_LARGE = 4 << 20


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU, large ones on huge pages where the system has them."""
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.nbytes >= _LARGE:
        _C.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _arguments(named: dict) -> dict:
    """Tensors as addresses, absent ones as 0."""

    def convert(value):
        if value is None:
            return 0
        if isinstance(value, Tensor):
            return value.data_ptr()
        return DTYPES[value] if isinstance(value, torch.dtype) else value

    return {name: convert(value) for name, value in named.items()}


def lstm_sequence_cpu(direction: str, **named) -> None:
    """One layer's recurrence, `"fwd"` or `"bwd"`; arguments as in csrc/include/lstmvid/lstm_sequence.h.

    Tensors must be contiguous and of the right dtype and shape: that is the caller's promise.
    """
    arguments = _arguments(named | {"threads": torch.get_num_threads(), "workspace": None})
    size = getattr(_C, f"lstm_sequence_{direction}_workspace")(**arguments)
    workspace = empty([size + 64], torch.uint8)
    arguments["workspace"] = (workspace.data_ptr() + 63) // 64 * 64
    getattr(_C, f"lstm_sequence_{direction}_cpu")(**arguments)


def cuda_device_count() -> tuple[int, str]:
    """How many NVIDIA devices the driver shows, and why there is none."""
    if not WITH_CUDA:
        return 0, WHY_MISSING or "built without CUDA"
    return _C.cuda_device_count()


def cuda_device_limits(ordinal: int) -> dict[str, int | bool | str]:
    """What the planner has to know of an NVIDIA device (csrc/include/lstmvid/device_limits.h), read from its driver."""
    if not WITH_CUDA:
        raise RuntimeError(cuda_device_count()[1])
    return _C.cuda_device_limits(ordinal)
