"""`lstm_sequence` on the CPU: allocates, projects the inputs, calls the recurrent kernel a layer at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _native
from ..dense import input_gradient, linear, weight_gradient
from ..layers import layer_weights


def unavailable(request) -> str | None:
    """Why the CPU kernels can't serve the request, or None."""
    if _native.WHY_MISSING:
        return _native.WHY_MISSING
    if request.device != "cpu":
        return f"it runs on the CPU, the tensors are on {request.device}"
    if request.dtype not in _native.CPU_DTYPES:
        return f"it computes in float32, float64 and bfloat16, got {request.dtype}"
    if request.recompute == "gates":
        return "it can't recompute gates yet"
    return "it has no projections (proj_size)" if request.proj_size else None


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
    lengths = None if lengths is None else lengths.contiguous()
    layers = layer_weights(weights, bool(inputs), num_layers, bias, peephole)
    keep_cells = steps if save or all_cells else 0
    output = _native.empty([groups, steps, batch, size], h_0.dtype)
    h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
    hidden = _native.empty([groups, num_layers - 1 if save else 0, steps, batch, size], h_0.dtype)
    cells = _native.empty([groups, num_layers, keep_cells, batch, size], c_0.dtype)
    gates = _native.empty([groups, num_layers, steps if save else 0, batch, 4 * size], h_0.dtype)
    for group in range(groups):
        x = inputs[group if len(inputs) > 1 else 0] if inputs else None
        for index in range(num_layers):
            weight_ih, weight_hh, b, peepholes = layers[group * num_layers + index]
            projection = None if x is None else linear(x, weight_ih, b)
            if steps == 1:
                # One product only: packing the weights would cost more than it.
                b = b if x is None else None
                product = linear(h_0[group, index], weight_hh, b)
                projection = product if projection is None else projection.add_(product)
                weight_hh = b = None
            if index == num_layers - 1:
                y = output[group]
            else:
                y = hidden[group, index] if save else torch.empty_like(output[group])
            _native.lstm_sequence_cpu(
                "fwd",
                steps=steps,
                batch=batch,
                hidden=size,
                dtype=h_0.dtype,
                reverse=reverse[group],
                projection=projection,
                bias=b if projection is None else None,
                weight_hh=weight_hh,
                peephole=peepholes,
                h_0=h_0[group, index],
                c_0=c_0[group, index],
                lengths=lengths,
                output=y,
                h_n=h_n[group, index],
                c_n=c_n[group, index],
                cells=cells[group, index] if keep_cells else None,
                gates=gates[group, index] if save else None,
            )
            x = y
    return output, h_n, c_n, hidden, cells, gates


def _previous(output: Tensor, h_0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """The hidden states [T, B, H] that the steps started from."""
    if not reverse:
        return torch.cat([h_0[None], output[:-1]])
    before = torch.cat([output[1:], h_0[None]])
    if lengths is not None:
        # Running backwards, a short sequence starts at its own last frame, whose successor is padding.
        last = (lengths - 1).clamp_min(0)
        before[last, torch.arange(len(last))] = h_0
    return before


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
    lengths = None if lengths is None else lengths.contiguous()
    grad_output, grad_h_n, grad_c_n, grad_cells = (
        None if grad is None else grad.contiguous() for grad in (grad_output, grad_h_n, grad_c_n, grad_cells)
    )
    layers = layer_weights(weights, bool(inputs), num_layers, bias, peephole)
    grad_h_0, grad_c_0 = torch.empty_like(h_0), torch.empty_like(c_0)
    grad_inputs: list[Tensor] = []
    grad_weights: list[list[Tensor]] = [[] for _ in layers]
    for group in range(groups):
        grad_y = None if grad_output is None else grad_output[group]
        for index in reversed(range(num_layers)):
            weight_ih, weight_hh, _, peepholes = layers[group * num_layers + index]
            grad_gates = _native.empty(gates[group, index].shape, gates.dtype)
            grad_peephole = torch.empty_like(peepholes) if peephole and need_weights else None
            _native.lstm_sequence_cpu(
                "bwd",
                steps=steps,
                batch=batch,
                hidden=size,
                dtype=h_0.dtype,
                reverse=reverse[group],
                weight_hh=weight_hh,
                peephole=peepholes,
                c_0=c_0[group, index],
                cells=cells[group, index],
                gates=gates[group, index],
                lengths=lengths,
                grad_output=grad_y,
                grad_h_n=None if grad_h_n is None else grad_h_n[group, index],
                grad_c_n=None if grad_c_n is None else grad_c_n[group, index],
                grad_cells=None if grad_cells is None else grad_cells[group, index],
                grad_gates=grad_gates,
                grad_h_0=grad_h_0[group, index],
                grad_c_0=grad_c_0[group, index],
                grad_peephole=grad_peephole,
            )
            x = hidden[group, index - 1] if index else (inputs[group if len(inputs) > 1 else 0] if inputs else None)
            if need_weights:
                y = output[group] if index == num_layers - 1 else hidden[group, index]
                before = _previous(y, h_0[group, index], lengths, reverse[group])
                gradients = [] if x is None else [weight_gradient(grad_gates, x)]
                gradients.append(weight_gradient(grad_gates, before))
                gradients += [grad_gates.sum((0, 1))] if bias else []
                grad_weights[group * num_layers + index] = gradients + ([grad_peephole] if peephole else [])
            if index or need_inputs:
                grad_y = input_gradient(grad_gates, weight_ih)
        if need_inputs:
            grad_inputs.append(grad_y)
    if need_inputs and len(inputs) < groups:
        grad_inputs = [torch.stack(grad_inputs).sum(0)]
    return grad_inputs, grad_h_0, grad_c_0, [gradient for layer in grad_weights for gradient in layer]
