"""The only importer of the native module `_C`: what was built, and tensors as the pointers that kernels take."""

from __future__ import annotations

import functools
import importlib
import os
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
# The kernels' numbers for the dtypes that some of them compute in, and the CPU's share of these.
DTYPES: dict[torch.dtype, int] = {
    getattr(torch, name.lower()): getattr(_C, name)
    for name in ("FLOAT32", "FLOAT64", "BFLOAT16", "FLOAT16")
    if hasattr(_C, name)
}
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

# From here on a buffer is worth pages of its own.
_LARGE = 4 << 20


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU, large ones on huge pages where the system has them."""
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.nbytes >= _LARGE:
        _C.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _convert(value):
    if value is None:
        return 0
    if isinstance(value, Tensor):
        return value.data_ptr()
    return DTYPES[value] if isinstance(value, torch.dtype) else value


def _arguments(named: dict) -> dict:
    """Tensors as addresses, absent ones as 0."""
    return {name: value if type(value) in (int, bool) else _convert(value) for name, value in named.items()}


def _threads() -> int:
    """How many a kernel on the CPU may use: torch's number."""
    threads = torch.get_num_threads()
    if threads > 1:
        _prepare_for_forks()
    return threads


@functools.cache
def _prepare_for_forks() -> None:
    """Processes forked from one that has computed with several threads begin with one, as a `DataLoader`'s workers do.

    Of OpenMP's threads, which torch and the kernels share, only the one that forks lives on in the child, and GCC's
    library waits there for the others forever, in torch's own operators just as in `torch.nn.LSTM`.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


@functools.cache
def _workspace_bytes(direction: str, hidden: int, batch: int, dtype: int, has_weight: bool) -> int:
    """What a call of `lstm_sequence_cpu` of these sizes needs."""
    return getattr(_C, f"lstm_sequence_{direction}_workspace")(hidden, batch, dtype, has_weight)


class Workspace:
    """Memory of a kernel on the CPU, and what it may keep there for a next call: the packed weights."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._is_of: tuple | None = None

    def address(self, size: int) -> int:
        """Of `size` bytes, a multiple of 64; what was there is lost if there was less."""
        if self._memory is None or self._memory.nbytes < size + 64:
            self._memory, self._is_of = empty([size + 64], torch.uint8), None
        return (self._memory.data_ptr() + 63) // 64 * 64

    def holds(self, packed: tuple) -> bool:
        """Whether the last call was of the same; from now on it is."""
        before, self._is_of = self._is_of, packed
        return before == packed


def lstm_sequence_cpu(direction: str, workspace: Workspace | None = None, **named) -> None:
    """One layer's recurrence, `"fwd"` or `"bwd"`; arguments as in csrc/include/lstmvid/lstm_sequence.h.

    Calls that get the same workspace and the same weights, unchanged, pack them once. Tensors must be contiguous and of
    the right dtype and shape: that is the caller's promise.
    """
    workspace = workspace or Workspace()
    arguments = _arguments(named)
    sizes = (arguments["hidden"], arguments["batch"], arguments["dtype"], arguments["weight_hh"] != 0)
    arguments["threads"] = _threads()
    arguments["workspace"] = workspace.address(_workspace_bytes(direction, *sizes))
    arguments["packed"] = workspace.holds((direction, arguments["weight_hh"], *sizes))
    getattr(_C, f"lstm_sequence_{direction}_cpu")(**arguments)


def matrix_product_cpu(left: Tensor, right: Tensor, out: Tensor, *, add: bool) -> None:
    """`out [M, N]` = `left [M, K] @ right [K, N]`, or += it. Each has rows or columns that are contiguous, and one
    dtype of `CPU_DTYPES`: that is the caller's promise.
    """
    (rows, depth), columns = left.shape, right.size(1)
    call = [rows, depth, columns, DTYPES[out.dtype], _threads(), add]
    for matrix in (left, right, out):
        call += matrix.data_ptr(), *matrix.stride()
    arguments = tuple(call)
    workspace = Workspace()
    _C.matrix_product_cpu(arguments, workspace.address(_C.matrix_product_workspace(arguments)))


LINKS = ("identity", "sigmoid", "rectifier")  # as csrc/include/lstmvid/closed_loop.h numbers them


def closed_loop_cpu(direction: str, *, layers: list[dict], weight_ih: list[Tensor], link: str, **named) -> None:
    """All steps of a decoder on its own output, `"fwd"` or `"bwd"`; arguments as in
    csrc/include/lstmvid/closed_loop.h, each layer's as in lstm_sequence.h.

    Tensors must be contiguous and of the right dtype and shape: that is the caller's promise.
    """
    every = {"threads": _threads(), "workspace": 0, "packed": False}
    arguments = _arguments(named) | {"link": LINKS.index(link), "workspace": 0}
    arguments["layers"] = [_arguments(layer) | every for layer in layers]
    arguments["weight_ih"] = [weight.data_ptr() for weight in weight_ih]
    size = getattr(_C, f"closed_loop_{direction}_workspace")(**arguments)
    workspace = Workspace()
    arguments["workspace"] = workspace.address(size)
    getattr(_C, f"closed_loop_{direction}_cpu")(**arguments)


def group_addresses(tensor: Tensor | None, groups: int, skipped: Sequence[int] | None = None) -> list[int]:
    """Where each group's part of a tensor [G, ...] begins, each part contiguous; zeros for none.

    Where it holds only a part of what the kernel counts in, `skipped[g]` elements of group g are missing before it.
    """
    if tensor is None:
        return [0] * groups
    skipped = skipped or [0] * groups
    start, stride, size = tensor.data_ptr(), tensor.stride(0), tensor.element_size()
    return [start + size * (group * stride - before) for group, before in enumerate(skipped)]


def _cuda_arguments(named: dict) -> dict:
    """As `_arguments`; of a list each item."""
    return {
        name: [_convert(item) for item in value] if isinstance(value, list) else _convert(value)
        for name, value in named.items()
    }


def lstm_sequence_cuda_workspace(direction: str, **named) -> int:
    """Bytes of workspace that `lstm_sequence_cuda` needs for the same arguments."""
    return getattr(_C, f"lstm_sequence_{direction}_cuda_workspace")(**_cuda_arguments(named))


def lstm_sequence_cuda_shared_bytes(direction: str, **named) -> int:
    """Bytes of shared memory that a block of `lstm_sequence_cuda` takes with the same arguments."""
    return getattr(_C, f"lstm_sequence_{direction}_cuda_shared_bytes")(**_cuda_arguments(named))


def lstm_sequence_cuda(direction: str, *, device: int, stream: int, **named) -> None:
    """One layer's recurrence in every group, `"fwd"` or `"bwd"`; arguments, plan included, as in
    csrc/include/lstmvid/lstm_sequence_cuda.h.

    What each group has of its own are lists, one item for each. Dtypes, shapes and the workspace's alignment are the
    caller's promise.
    """
    run = getattr(_C, f"lstm_sequence_{direction}_cuda")
    run(device=device, stream=stream, **_cuda_arguments(named))


def lstm_gates_cuda(*, device: int, stream: int, **named) -> None:
    """Gates and cells of some steps of one layer again, in every group; arguments as in
    csrc/include/lstmvid/lstm_sequence_cuda.h.
    """
    _C.lstm_gates_cuda(device=device, stream=stream, **_cuda_arguments(named))


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


def cuda_active_clusters(ordinal: int, cluster: int, shared_bytes: int) -> int:
    """How many clusters of so many blocks of the recurrent kernel run at once, as this process may use the device."""
    return _C.lstm_sequence_fwd_cuda_active_clusters(ordinal, cluster, shared_bytes)
