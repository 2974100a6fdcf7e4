"""`lstm_sequence` on NVIDIA GPUs: allocates, projects the inputs, launches the recurrent kernel a layer at a time.

All groups of a layer run side by side in one launch where that is faster, by `backends/plan.py`. What isn't kept for
backward is projected in time chunks, so that memory doesn't grow with the unroll; the kernel's workspace carries the
state from one to the next. `target_of` and `architecture` alone ask torch for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..dense import linear_into
from ..layers import Weights, layer_weights
from ..plan import CLUSTER_SIZES, ELEMENT_BYTES, DeviceLimits, Plan, limits_from, plan

# The cheapest poll takes about ten nanoseconds, so that this is more than a second, far beyond the longest step; the
# dearest, of a flag in another block's reach, about a microsecond: then a broken launch ends within three minutes.
MAX_POLLS = 1 << 27

# A launch loads the weights that it keeps on the chip once more, so that a chunk shouldn't be short.
MIN_CHUNK = 256
CHUNK_BYTES = 64 << 20  # of projections; more steps than MIN_CHUNK only within it


class Target(NamedTuple):
    """Where kernels are launched."""

    limits: DeviceLimits
    ordinal: int
    stream: int


@lru_cache
def _limits(ordinal: int) -> DeviceLimits:
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
    return Target(_limits(stream.device_index), stream.device_index, stream.cuda_stream)


@torch.compiler.assume_constant_result
def architecture() -> int:
    """Of the current device, 10 * major + minor; 0 where there is none."""
    if not _native.cuda_device_count()[0]:
        return 0
    return _native.cuda_device_limits(torch.cuda.current_device())["compute_capability"]


@lru_cache
def _why_not_on(ordinal: int) -> str:
    arch = _native.cuda_device_limits(ordinal)["compute_capability"]
    if arch < 80:
        return f"it needs compute capability 8.0, this GPU has {arch / 10}"
    try:
        _limits(ordinal)
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
    if reason := _why_not_here():
        return reason
    if request.dtype not in ELEMENT_BYTES:
        return f"it computes in float32, bfloat16 and float16, got {request.dtype}"
    if request.needs_grad:
        return "its backward pass is not part of this version; under torch.no_grad() it runs"
    return "it has no projections (proj_size)" if request.proj_size else None


@contextmanager
def _products_in_tf32(allowed: bool) -> Iterator[None]:
    """The library's float32 products as the recurrence's own: by cuDNN's setting for RNNs, not by that for products."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _Layer(NamedTuple):
    """One layer of the groups of one launch; states [g, B, H], sequences [g, T, B, ...]; g may be strided."""

    inputs: list[Tensor]  # of each group [T, B, D], or none
    weights: list[Weights]
    reverse: list[bool]
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None


def _chunks(layer: _Layer) -> list[tuple[int, int]]:
    """The steps of each launch, [first, end)."""
    steps, batch, size = layer.output.shape[1:]
    # Gates that are kept take the whole projection's memory anyway. Parts of three groups in different directions don't
    # lie at even distances, as the kernel wants them.
    whole = not layer.inputs or layer.gates is not None or (len(layer.reverse) > 2 and len(set(layer.reverse)) > 1)
    step_bytes = len(layer.weights) * batch * 4 * size * layer.output.element_size()
    most = steps if whole else max(MIN_CHUNK, CHUNK_BYTES // step_bytes)
    count = -(-steps // most)
    length = -(-steps // count)
    return [(first, min(first + length, steps)) for first in range(0, steps, length)]


def _run(layer: _Layer, lengths: Tensor | None, chosen: Plan, target: Target, allow_tf32: bool) -> None:
    """Fill in the layer's results."""
    groups, steps, batch, size = layer.output.shape
    has_input = bool(layer.inputs)
    call = {
        "steps": steps,
        "batch": batch,
        "hidden": size,
        "groups": groups,
        "dtype": layer.output.dtype,
        "allow_tf32": allow_tf32,
        "reverse": sum(1 << group for group, back in enumerate(layer.reverse) if back),
        "max_polls": MAX_POLLS,
        "weight_hh": [weights.weight_hh for weights in layer.weights],
        "bias": [None if has_input else weights.bias for weights in layer.weights],
        "peephole": [weights.peephole for weights in layer.weights],
        "lengths": lengths,
        "projection": _native.grouped(None),
        **{
            name: _native.grouped(getattr(layer, name))
            for name in ("h_0", "c_0", "output", "h_n", "c_n", "cells", "gates")
        },
        **chosen.kernel_arguments(),
    }
    chunks = _chunks(layer)
    longest = chunks[0][1]
    size_of_workspace = _native.lstm_sequence_fwd_cuda_workspace(**call, first_step=0, end_step=longest, workspace=0)
    memory = layer.output.new_empty(size_of_workspace + 256, dtype=torch.uint8)
    workspace = (memory.data_ptr() + 255) // 256 * 256
    projection = None
    if has_input:
        projection = layer.gates
        if projection is None:
            projection = layer.output.new_empty(groups, longest, batch, 4 * size)
    for first, end in chunks:
        if projection is not None:
            times = [steps - end if back else first for back in layer.reverse]
            for group, (x, weights, time) in enumerate(zip(layer.inputs, layer.weights, times, strict=True)):
                part = projection[group, : end - first]
                linear_into(part, x[time : time + end - first], weights.weight_ih, weights.bias)
            call["projection"] = _native.grouped(projection, [time * batch * 4 * size for time in times])
        _native.lstm_sequence_fwd_cuda(
            **call,
            first_step=first,
            end_step=end,
            workspace=workspace,
            device=target.ordinal,
            stream=target.stream,
        )


def forward(
    inputs: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    steps: int,
    bias: bool,
    peephole: bool,
    reverse: Sequence[bool],
    save: bool,
    all_cells: bool,
    recompute: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator's schema says (`lstmvid/ops/lstm_sequence.py`)."""
    groups, num_layers, batch, size = h_0.shape
    h_0, c_0, inputs = h_0.contiguous(), c_0.contiguous(), [x.contiguous() for x in inputs]
    lengths = None if lengths is None else lengths.to(h_0.device).contiguous()
    layers = layer_weights(weights, bool(inputs), num_layers, bias, peephole)
    output = h_0.new_empty(groups, steps, batch, size)
    h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
    hidden = h_0.new_empty(groups, num_layers - 1 if save else 0, steps, batch, size)
    cells = c_0.new_empty(groups, num_layers, steps if save or all_cells else 0, batch, size)
    gates = h_0.new_empty(groups, num_layers, steps if save else 0, batch, 4 * size)
    if batch == 0 or steps == 0:
        return output, h_n.copy_(h_0), c_n.copy_(c_0), hidden, cells, gates

    target = target_of(h_0.device)
    allow_tf32 = h_0.dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32"
    chosen = plan(size, batch, h_0.dtype, target.limits, groups=groups, tf32=allow_tf32)
    xs = [inputs[group if len(inputs) > 1 else 0] for group in range(groups)] if inputs else []
    with _products_in_tf32(allow_tf32) if h_0.dtype == torch.float32 else nullcontext():
        for index in range(num_layers):
            if index == num_layers - 1:
                y = output
            else:
                y = hidden[:, index] if save else torch.empty_like(output)
            for first in range(0, groups, chosen.groups):
                part = slice(first, first + chosen.groups)
                layer = _Layer(
                    inputs=xs[part],
                    weights=layers[index::num_layers][part],
                    reverse=list(reverse)[part],
                    h_0=h_0[part, index],
                    c_0=c_0[part, index],
                    output=y[part],
                    h_n=h_n[part, index],
                    c_n=c_n[part, index],
                    cells=cells[part, index] if save or all_cells else None,
                    gates=gates[part, index] if save else None,
                )
                _run(layer, lengths, chosen, target, allow_tf32)
            xs = list(y.unbind(0))
    return output, h_n, c_n, hidden, cells, gates


def backward(*_):
    """Not there yet; a call that needs gradients is refused before its forward pass (`unavailable`)."""
    raise NotImplementedError("backend 'cuda': its backward pass is not part of this version")
