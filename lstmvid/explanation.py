"""`explain`: which backend and which kernels a call would take, why, and how long it would take by prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from . import backends
from .backends import Request, cuda
from .backends import plan as planner
from .backends.dense import allows_tf32
from .backends.estimate import Estimate, estimate, kept_bytes
from .backends.memory import recomputes
from .nn.calls import Call, calls_of


@dataclass(frozen=True)
class CallPlan:
    """One call of the operator.

    `backend` runs it (None: none can); `reasons` says of each other backend why it doesn't. `forward` and `backward`
    are what the CUDA kernels would do on a GPU, whoever runs it; None where they can't, or where it isn't asked for.
    """

    name: str
    request: Request
    backend: str | None
    reasons: dict[str, str]
    forward: Estimate | None
    backward: Estimate | None

    @property
    def kept_bytes(self) -> int:
        """What forward keeps for backward besides inputs and output."""
        return kept_bytes(self.request)


@dataclass(frozen=True)
class Plan:
    """All calls of a module or shape on a device; `str` of it is for people, `as_dict` for programs."""

    device: str
    is_here: bool
    training: bool
    calls: tuple[CallPlan, ...]

    def __str__(self) -> str:
        where = "" if self.is_here else ", which isn't here"
        lines = [f"on {self.device}{where}; {'training' if self.training else 'inference'}"]
        for call in self.calls:
            lines += _describe(call)
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; times in microseconds."""

        def direction(found: Estimate | None) -> dict | None:
            if found is None:
                return None
            return found._asdict() | {"plan": asdict(found.plan), "total": found.total}

        calls = [
            {
                "name": call.name,
                **call.request._asdict(),
                "dtype": str(call.request.dtype).removeprefix("torch."),
                "backend": call.backend,
                "reasons": call.reasons,
                "kept_bytes": call.kept_bytes if self.training else 0,
                "forward": direction(call.forward),
                "backward": direction(call.backward),
            }
            for call in self.calls
        ]
        return {"device": self.device, "is_here": self.is_here, "training": self.training, "calls": calls}


def explain(
    module_or_shape: nn.Module | Sequence[int | None],
    *,
    device: torch.device | str | None = None,
    steps: int | None = None,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    training: bool = True,
) -> Plan:
    """Which backend and which kernel plan a call would take, why, and its predicted time beside the device's limit.

    Args:
        module_or_shape: a module, for all LSTMs in it (`lstmvid`'s and `torch.nn.LSTM`, which counts as if it were
            swapped); or `(T, B, D, H)` or `(T, B, D, H, L)` of a plain LSTM, D None without input.
        device: `"cpu"`, `"cuda"`, or the name of a GPU that needn't be here (a key of `backends.plan.DEVICES`, such as
            `"H100"`). By default the module's, or for a shape the GPU if there is one.
        steps, batch: of a call of the module; 20 and 16 by default. For a composite, frames to see, and as many again
            to predict, teacher-forced.
        dtype: of the operands; by default the module's, or float32.
        backend: instead of the module's own, or of `"auto"`.
        training: with gradients of the weights.

    Raises:
        ValueError, TypeError: no such shape, device, backend, or no LSTM in the module.
    """
    where = _Device(device if device is not None else _device_of(module_or_shape))
    if isinstance(module_or_shape, nn.Module):
        found = dtype or next((p.dtype for p in module_or_shape.parameters()), torch.float32)
        base = Request(
            where.type,
            found,
            steps=_positive("steps", 20 if steps is None else steps),
            batch=_positive("batch", 16 if batch is None else batch),
        )
        calls = list(calls_of(module_or_shape, base._replace(needs_grad=training)))
        if not calls:
            raise ValueError(f"{type(module_or_shape).__name__} contains no LSTM")
    else:
        if steps is not None or batch is not None:
            raise ValueError("steps and batch come with a module; a shape has its own")
        request = _shape_request(module_or_shape, Request(where.type, dtype or torch.float32, needs_grad=training))
        calls = [Call("LSTM", request, "auto")]
    plans = (_plan(call.name, call.request, backend or call.backend, where) for call in calls)
    return Plan(where.name, where.is_here, training, tuple(plans))


class _Device:
    """Where a call runs: the CPU, a GPU that is here, or one of the table."""

    def __init__(self, device: torch.device | str) -> None:
        table = {name.lower(): limits for name, limits in planner.DEVICES.items()}
        self.limits = table.get(str(device).lower())
        self.is_here, self.type = self.limits is None, "cuda"
        if self.limits is not None:
            self.name, self.arch = self.limits.name, self.limits.arch
            return
        known = f"cpu, cuda, or one of {', '.join(planner.DEVICES)}"
        try:
            found = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device must be {known}, got {device!r}") from None
        self.type, self.name, self.arch = found.type, found.type, None
        if found.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError(f"there is no GPU here for device {str(device)!r}: name {known}")
            ordinal = torch.cuda.current_device() if found.index is None else found.index
            self.name = torch.cuda.get_device_name(ordinal)
            if cuda.unavailable(Request("cuda", torch.float32)) is None:
                self.limits = cuda.limits_of(ordinal)
        elif found.type not in ("cpu", "meta"):
            raise ValueError(f"device must be {known}, got {device!r}")


def _device_of(module_or_shape: nn.Module | Sequence) -> torch.device | str:
    if isinstance(module_or_shape, nn.Module):
        return next((p.device for p in module_or_shape.parameters()), torch.device("cpu"))
    return "cuda" if torch.cuda.is_available() else "cpu"


def _positive(name: str, size: int | None) -> int:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")
    return size


def _shape_request(shape: Sequence[int | None], base: Request) -> Request:
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) not in (4, 5):
        raise TypeError(f"a shape is (T, B, D, H) or (T, B, D, H, L), got {shape!r}")
    names = ("steps", "batch", "input_size", "hidden_size", "num_layers")
    sizes = dict(zip(names, shape, strict=False))
    for name, size in sizes.items():
        if size is not None or name != "input_size":
            _positive(name, size)
    return base._replace(**sizes)


def _plan(name: str, request: Request, backend: str, device: _Device) -> CallPlan:
    backends.check_names(backend, request.recompute)
    order = backends.preference(request, device.arch) if backend == "auto" else (backend,)
    reasons, chosen = {}, None
    for candidate in (*order, *(other for other in backends.NAMES[1:] if other not in order)):
        reason = backends.unavailable(candidate, request, device.arch)
        if reason is None and candidate in order and chosen is None:
            chosen = candidate
            continue
        if reason is None and candidate in order:
            reason = f"{chosen} comes first"
        elif reason is None and backend == "auto":
            reason = "only by name: no result of it on this architecture is committed"
        elif reason is None:
            reason = f"{backend!r} is asked for"
        reasons[candidate] = reason
    if chosen is not None and recomputes(chosen, request, device.limits.memory_bytes if device.limits else None):
        request = request._replace(recompute="gates")
    forward = backward = None
    if device.limits is not None and backends.unavailable("cuda", request, device.limits.arch) is None:
        options = {"tf32": allows_tf32(request.dtype)}
        forward = estimate(request, device.limits, save=request.needs_grad, **options)
        backward = estimate(request, device.limits, backward=True, **options) if request.needs_grad else None
    return CallPlan(name, request, chosen, reasons, forward, backward)


def _describe(call: CallPlan) -> list[str]:
    """Lines for people."""
    r = call.request
    sizes = f"T={r.steps} B={r.batch} D={r.input_size or 'none'} H={r.hidden_size} L={r.num_layers}"
    options = [f"{r.groups} groups"] if r.groups > 1 else []
    options += ["peepholes"] if r.peephole else []
    options += ["gates computed again"] if r.recompute == "gates" else []
    lines = ["", ", ".join([f"{call.name}: {sizes} {str(r.dtype).removeprefix('torch.')}", *options])]
    lines.append(f"  backend   {call.backend or 'none can run it'}")
    lines += [f"            not {name}: {reason}" for name, reason in call.reasons.items()]
    if r.needs_grad:
        lines.append(f"  memory    {_bytes(call.kept_bytes)} kept for backward, besides inputs and output")
    estimates = {"forward": call.forward, "backward": call.backward}
    if any(estimates.values()) and call.backend != "cuda":
        lines.append("  backend cuda would run it like this:")
    for direction, found in estimates.items():
        if found is not None:
            first, *rest = _lines(found)
            lines += [f"  {direction:10}{first}", *(f"            {line}" for line in rest)]
    return lines


def _lines(found: Estimate) -> list[str]:
    """Of one direction: how it is launched, where its weights lie, what it takes."""
    p = found.plan
    blocks = p.cluster * p.clusters
    clusters = f"clusters of {p.cluster}" if p.cluster > 1 else "single blocks"
    replicas = f", {p.replicas} replicas" if p.replicas > 1 else ""
    together = f", {p.groups} {'layers' if found.window else 'groups'} side by side" if p.groups > 1 else ""
    every = f", each {found.window} steps" if found.window else ""
    weights = ", ".join(f"{share:.0%} {where}" for where, share in found.weights.items() if share)
    return [
        f"{found.launches} launch{'es' if found.launches > 1 else ''}{every}: {blocks} blocks in {clusters}"
        f"{replicas}{together}; tiles of {p.tile_columns} sequences, by {p.multipliers}; weights {weights}",
        f"predicted {p.microseconds:.1f} us a step, bound by {p.bound}",
        f"predicted {_time(found.total)}: recurrence {_time(found.recurrence)}, library products "
        f"{_time(found.products)}; the device's limit is {_time(found.limit)}",
    ]


def _time(microseconds: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
