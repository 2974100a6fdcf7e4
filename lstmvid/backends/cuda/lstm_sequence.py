"""`lstm_sequence` on NVIDIA GPUs: allocates, launches recurrent kernels a layer at a time, multiplies around them.

All groups of a layer run side by side in one launch where that is faster, by `backends/plan.py`. Forward, what isn't
kept for backward is projected in time chunks, so that memory doesn't grow with the unroll; the kernel's workspace
carries the state from one to the next. Backward, the kernel leaves the gradients of the gates' pre-activations; the
others are made of them over all steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..dense import input_gradient_into, linear_into
from ..layers import Weights, layer_weights
from ..plan import Plan, plan
from .launch import Target, allows_tf32, products_in_tf32, target_of
from .weight_gradients import Saved, weight_gradients

# The cheapest poll takes about ten nanoseconds, so that this is more than a second, far beyond the longest step; the
# dearest, of a flag in another block's reach, about a microsecond: then a broken launch ends within three minutes.
MAX_POLLS = 1 << 27

# A launch loads the weights that it keeps on the chip once more, so that a chunk shouldn't be short.
MIN_CHUNK = 256
CHUNK_BYTES = 64 << 20  # of projections; more steps than MIN_CHUNK only within it


class _How(NamedTuple):
    """How the recurrence of one direction is launched."""

    plan: Plan
    target: Target
    allow_tf32: bool


def _how(h_0: Tensor, *, backward: bool) -> _How:
    groups, _, batch, size = h_0.shape
    target, allow_tf32 = target_of(h_0.device), allows_tf32(h_0.dtype)
    chosen = plan(size, batch, h_0.dtype, target.limits, groups=groups, tf32=allow_tf32, backward=backward)
    return _How(chosen, target, allow_tf32)


def _arguments(
    sizes: tuple[int, int, int],
    weights: Sequence[Weights],
    reverse: Sequence[bool],
    lengths: Tensor | None,
    how: _How,
    **tensors: Tensor | None,
) -> dict:
    """What the kernels of both directions take; sizes are (T, B, H), tensors [g, ...]."""
    steps, batch, size = sizes
    return {
        "steps": steps,
        "batch": batch,
        "hidden": size,
        "groups": len(weights),
        "dtype": weights[0].weight_hh.dtype,
        "allow_tf32": how.allow_tf32,
        "reverse": sum(1 << group for group, back in enumerate(reverse) if back),
        "max_polls": MAX_POLLS,
        "weight_hh": [layer.weight_hh for layer in weights],
        "peephole": [layer.peephole for layer in weights],
        "lengths": lengths,
        **{name: _native.grouped(tensor) for name, tensor in tensors.items()},
        **how.plan.kernel_arguments(),
    }


def _workspace(direction: str, call: dict, steps: int, like: Tensor) -> tuple[Tensor, int]:
    """Memory for launches of at most so many steps, and the aligned address in it."""
    size = _native.lstm_sequence_cuda_workspace(direction, **call, first_step=0, end_step=steps, workspace=0)
    memory = like.new_empty(size + 256, dtype=torch.uint8)
    return memory, (memory.data_ptr() + 255) // 256 * 256


def _launch(direction: str, call: dict, first: int, end: int, workspace: int, target: Target) -> None:
    """Run the steps [first, end) of a call."""
    _native.lstm_sequence_cuda(
        direction,
        **call,
        first_step=first,
        end_step=end,
        workspace=workspace,
        device=target.ordinal,
        stream=target.stream,
    )


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


def _run(layer: _Layer, lengths: Tensor | None, how: _How) -> None:
    """Fill in the layer's results."""
    groups, steps, batch, size = layer.output.shape
    has_input = bool(layer.inputs)
    names = ("h_0", "c_0", "output", "h_n", "c_n", "cells", "gates")
    call = _arguments(
        (steps, batch, size),
        layer.weights,
        layer.reverse,
        lengths,
        how,
        projection=None,
        **{name: getattr(layer, name) for name in names},
    )
    call["bias"] = [None if has_input else weights.bias for weights in layer.weights]
    chunks = _chunks(layer)
    longest = chunks[0][1]
    _memory, workspace = _workspace("fwd", call, longest, layer.output)
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
        _launch("fwd", call, first, end, workspace, how.target)


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

    how = _how(h_0, backward=False)
    xs = [inputs[group if len(inputs) > 1 else 0] for group in range(groups)] if inputs else []
    with products_in_tf32(h_0.dtype, how.allow_tf32):
        for index in range(num_layers):
            if index == num_layers - 1:
                y = output
            else:
                y = hidden[:, index] if save else torch.empty_like(output)
            for first in range(0, groups, how.plan.groups):
                part = slice(first, first + how.plan.groups)
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
                _run(layer, lengths, how)
            xs = list(y.unbind(0))
    return output, h_n, c_n, hidden, cells, gates


def _run_backward(
    weights: Sequence[Weights],
    reverse: Sequence[bool],
    lengths: Tensor | None,
    how: _How,
    tensors: dict[str, Tensor | None],
) -> None:
    """Fill in the gradients among one layer's tensors, each [G, ...]; G may be strided."""
    _, steps, batch, width = tensors["grad_gates"].shape
    for first in range(0, len(weights), how.plan.groups):
        part = slice(first, first + how.plan.groups)
        given = {name: None if tensor is None else tensor[part] for name, tensor in tensors.items()}
        call = _arguments((steps, batch, width // 4), weights[part], reverse[part], lengths, how, **given)
        _memory, workspace = _workspace("bwd", call, steps + 1, tensors["grad_gates"])
        _launch("bwd", call, 0, steps + 1, workspace, how.target)


def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    inputs: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    output: Tensor,
    hidden: Tensor,
    cells: Tensor,
    gates: Tensor,
    steps: int,
    bias: bool,
    peephole: bool,
    reverse: Sequence[bool],
    all_cells: bool,
    recompute: bool,
    chunk: int,
    need_inputs: bool,
    need_weights: bool,
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """As the operator's schema says; lists are empty where not needed."""
    groups, num_layers, batch, size = h_0.shape
    h_0, c_0, inputs = h_0.contiguous(), c_0.contiguous(), [x.contiguous() for x in inputs]
    lengths = None if lengths is None else lengths.to(h_0.device).contiguous()
    grad_y, grad_h_n, grad_c_n, grad_cells = (
        None if grad is None else grad.contiguous() for grad in (grad_output, grad_h_n, grad_c_n, grad_cells)
    )
    if batch == 0 or steps == 0:
        ends = [
            torch.zeros_like(state) if grad is None else grad.clone()
            for state, grad in ((h_0, grad_h_n), (c_0, grad_c_n))
        ]
        none = [[torch.zeros_like(tensor) for tensor in given] for given in (inputs, weights)]
        return none[0] if need_inputs else [], *ends, none[1] if need_weights else []

    how = _how(h_0, backward=True)
    layers = layer_weights(weights, bool(inputs), num_layers, bias, peephole)
    grad_h_0, grad_c_0 = torch.empty_like(h_0), torch.empty_like(c_0)
    # Of one layer after the other: the gates' gradients, and those of the hidden states that it had as input.
    grad_gates = h_0.new_empty(groups, steps, batch, 4 * size)
    below = torch.empty_like(output) if num_layers > 1 else None
    grad_inputs = [torch.empty_like(x) for x in inputs] if need_inputs else []
    grad_weights: list[list[Tensor]] = [[] for _ in layers]
    with products_in_tf32(h_0.dtype, how.allow_tf32):
        for index in reversed(range(num_layers)):
            states = {"c_0": c_0, "cells": cells, "gates": gates, "grad_h_0": grad_h_0, "grad_c_0": grad_c_0}
            states |= {"grad_h_n": grad_h_n, "grad_c_n": grad_c_n, "grad_cells": grad_cells}
            tensors = {name: None if tensor is None else tensor[:, index] for name, tensor in states.items()}
            tensors |= {"grad_output": grad_y, "grad_gates": grad_gates}
            _run_backward(layers[index::num_layers], list(reverse), lengths, how, tensors)
            for group in range(groups):
                place, source = group * num_layers + index, group if len(inputs) > 1 else 0
                layer, gradient = layers[place], grad_gates[group]
                if need_weights:
                    saved = Saved(
                        x=hidden[group, index - 1] if index else (inputs[source] if inputs else None),
                        y=output[group] if index == num_layers - 1 else hidden[group, index],
                        h_0=h_0[group, index],
                        c_0=c_0[group, index],
                        cells=cells[group, index],
                    )
                    grad_weights[place] = weight_gradients(layer, gradient, saved, lengths, reverse[group])
                if index:
                    input_gradient_into(below[group], gradient, layer.weight_ih)
                elif need_inputs:
                    is_shared = group > 0 and source == 0
                    input_gradient_into(grad_inputs[source], gradient, layer.weight_ih, add=is_shared)
            grad_y = below
    return grad_inputs, grad_h_0, grad_c_0, [gradient for layer in grad_weights for gradient in layer]
