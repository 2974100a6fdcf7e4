"""Who can run a call, who does, and why not the others.

A backend is a module with `unavailable(request) -> str | None`, the reason why it can't serve a request. Those in
`KERNELS` implement the operators' `forward` and `backward`; `torch` is `torch.nn.LSTM`'s own path and differentiates
itself, so it is called above the operators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as _torch

from .. import _native
from . import cpu, cuda, reference, torch, triton

NAMES = ("auto", "cuda", "triton", "cpu", "torch", "reference")
KERNELS = {"reference": reference, "cpu": cpu, "cuda": cuda, "triton": triton}
RECOMPUTE = ("none", "gates", "auto")

# GPU architectures, 10 * major + minor, on which the tests have passed and whose benchmark result is committed.
# `"auto"` takes cuda on these only.
_PROVEN_ARCHITECTURES: tuple[int, ...] = ()


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run this call; the message says why."""


class Request(NamedTuple):
    """What a call needs of a backend: sizes as in `lstmvid.ops.lstm_sequence`; `input_size` is None without input."""

    device: str
    dtype: _torch.dtype
    steps: int = 1
    batch: int = 1
    input_size: int | None = 1
    hidden_size: int = 1
    num_layers: int = 1
    groups: int = 1
    peephole: bool = False
    lengths: bool = False
    packed: bool = False  # the lengths come as a PackedSequence
    all_cells: bool = False
    recompute: str = "auto"
    proj_size: int = 0
    needs_grad: bool = False
    transformed: bool = False  # inside a torch.func transform
    traced: bool = False  # by torch.jit.trace
    closed_loop: bool = False  # its input is its own output (lstmvid.ops.closed_loop), of as many features


def check_names(backend: str, recompute: str) -> None:
    """Raise ValueError where there is no backend or no recompute mode of that name."""
    if backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {backend!r}")
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute must be one of {', '.join(RECOMPUTE)}, got {recompute!r}")


def unavailable(name: str, request: Request, arch: int | None = None) -> str | None:
    """Why backend `name` can't serve the request, or None if it can.

    `arch`: on a GPU of that architecture (10 * major + minor), which needn't be here.
    """
    if (request.transformed or request.traced) and name not in ("torch", "reference"):
        return f"{'torch.func transforms' if request.transformed else 'torch.jit.trace'} can't see into its kernels"
    if request.closed_loop and name not in ("cpu", "triton", "reference"):
        return "it runs a closed loop step by step, not as one call"
    if name == "triton":
        return triton.unavailable(request) if arch is None else triton.unavailable_on(arch, request)
    if name == "cuda":
        return cuda.unavailable(request) if arch is None else cuda.unavailable_on(arch, request)
    if name == "cpu":
        return cpu.unavailable(request)
    if name == "torch":
        return torch.unavailable(request)
    return "it has no projections (proj_size)" if request.proj_size else None


def _is_faster_on_cpu(request: Request) -> bool:
    """Whether the backend cpu trains faster than oneDNN, as measured on two processors (docs/performance.md).

    It does where products are large, by most where frames are; small calls are bound by what a call costs. With or
    without gradients it is the same backend, and so the same bits.
    """
    if request.input_size is None or request.dtype not in (_torch.float32, _torch.bfloat16):
        return True
    if _torch.compiler.is_compiling():
        return True  # one operator in the graph, for any steps and batch
    has_wide_input = request.input_size >= max(1024, 4 * request.hidden_size)
    if has_wide_input or request.hidden_size >= 512:
        return True
    # oneDNN has the matrix unit, too, where there is one, and uses it well from a few rows on.
    most_rows = 4 if _native.INSTRUCTION_SET == "amx" else 32
    return request.dtype == _torch.bfloat16 and request.steps >= 64 and request.batch <= most_rows


def preference(request: Request, arch: int | None = None) -> tuple[str, ...]:
    """What `"auto"` tries, fastest first as measured for this shape, device and dtype (docs/performance.md).

    Nowhere `triton`, also for a closed loop, which on a GPU is plain torch: it is taken by name until a GPU's result is
    committed.
    """
    if request.transformed and not request.proj_size:
        return ("reference",)  # plain torch, which vmap and jvp see through too
    if request.traced:
        return ("torch", "reference")
    if request.closed_loop:
        return ("cpu", "reference")
    if request.device == "cpu" and request.dtype == _torch.float16:
        return ("cpu", "reference", "torch")  # torch's own loop over steps is slower, and oneDNN refuses autocast's
    if request.device == "cpu":
        return ("cpu", "torch", "reference") if _is_faster_on_cpu(request) else ("torch", "cpu", "reference")
    if request.device == "meta":
        return ("reference",)  # nothing runs: any operator gives the shapes
    proven = _PROVEN_ARCHITECTURES and (cuda.architecture() if arch is None else arch) in _PROVEN_ARCHITECTURES
    return (*(("cuda",) if proven else ()), "torch", "reference")


def resolve(backend: str, request: Request, arch: int | None = None) -> str:
    """The backend that runs the request: the one named, or for `"auto"` the fastest that can.

    Depends on the request alone, so the same call always gets the same backend, and with it the same bits; and on
    `arch`, where it is asked for a GPU that needn't be here.

    Raises:
        ValueError: no backend or recompute mode has that name.
        BackendUnavailable: the one named can't run it, or none can; the message has the reason.
    """
    check_names(backend, request.recompute)
    if backend != "auto":
        reason = unavailable(backend, request, arch)
        if reason is not None:
            raise BackendUnavailable(f"backend {backend!r} can't run this call: {reason}")
        return backend
    reasons = []
    for name in preference(request, arch):
        reason = unavailable(name, request, arch)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise BackendUnavailable("no backend can run this call: " + "; ".join(reasons))
