"""`closed_loop` on the CPU: one call of the kernel for all steps, and dense products for the weights' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..layers import Weights, layer_weights
from ..reference.closed_loop import frames_read
from ..weight_gradients import loop_gradients_of_nothing
from .products import input_gradient, over_steps


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _layer(h_0: Tensor, steps: int, weights: Weights) -> dict[str, Any]:
    """What both directions say of a layer, as csrc/include/lstmvid/lstm_sequence.h has it."""
    _, batch, size = h_0.shape
    return {
        "steps": steps,
        "batch": batch,
        "hidden": size,
        "dtype": h_0.dtype,
        "reverse": False,
        "lengths": None,
        "weight_hh": weights.weight_hh,
        "peephole": weights.peephole,
    }


def forward(
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
    truth: Tensor | None,
    own: Tensor | None,
    steps: int,
    bias: bool,
    peephole: bool,
    link: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator's schema says (`lstmvid/ops/closed_loop.py`)."""
    num_layers, batch, size = h_0.shape
    h_0, c_0 = h_0.contiguous(), c_0.contiguous()
    layers = layer_weights(weights, True, num_layers, bias, peephole)
    z = _native.empty([steps, batch, len(head_bias)], h_0.dtype)
    h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
    hidden = _native.empty([num_layers, steps, batch, size], h_0.dtype)
    cells = _native.empty([num_layers, steps if save else 0, batch, size], c_0.dtype)
    gates = _native.empty([num_layers, steps if save else 0, batch, 4 * size], h_0.dtype)
    if batch == 0 or steps == 0:
        return z, h_n.copy_(h_0), c_n.copy_(c_0), hidden, cells, gates
    calls = [
        _layer(h_0, steps, layer)
        | {
            "blind": False,
            "projection": None,
            "bias": layer.bias,
            "h_0": h_0[index],
            "c_0": c_0[index],
            "output": hidden[index],
            "h_n": h_n[index],
            "c_n": c_n[index],
            "cells": cells[index] if save else None,
            "gates": gates[index] if save else None,
        }
        for index, layer in enumerate(layers)
    ]
    _native.closed_loop_cpu(
        "fwd",
        layers=calls,
        weight_ih=[layer.weight_ih for layer in layers],
        link=link,
        frame=len(head_bias),
        head_weight=head_weight.contiguous(),
        head_bias=head_bias.contiguous(),
        first=_contiguous(first),
        truth=_contiguous(truth),
        own=_contiguous(own),
        z=z,
    )
    return z, h_n, c_n, hidden if save else hidden[:, :0], cells, gates


def _frame_gradients(
    grad_gates: Tensor, weight_ih: Tensor, first: Tensor | None, truth: Tensor | None, own: Tensor | None
) -> list[Tensor]:
    """Of `first` and of `truth`, where they are there, from the bottom layer's `grad_gates [T, B, 4H]`."""
    of_first = [] if first is None else [input_gradient(grad_gates[:1], weight_ih)[0]]
    if truth is None:
        return of_first
    below = input_gradient(grad_gates[1:], weight_ih)
    return [*of_first, below.masked_fill_(own.unsqueeze(-1), 0)]


def backward(
    grad_z: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    head_weight: Tensor,
    truth: Tensor | None,
    own: Tensor | None,
    z: Tensor,
    hidden: Tensor,
    cells: Tensor,
    gates: Tensor,
    steps: int,
    bias: bool,
    peephole: bool,
    link: str,
    need_frames: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """As the operator's schema says; lists are empty where not needed."""
    num_layers, batch, _ = h_0.shape
    h_0, c_0, own = h_0.contiguous(), c_0.contiguous(), _contiguous(own)
    grad_z, grad_h_n, grad_c_n = _contiguous(grad_z), _contiguous(grad_h_n), _contiguous(grad_c_n)
    layers = layer_weights(weights, True, num_layers, bias, peephole)
    if batch == 0 or steps == 0:
        given, ends = (first, truth, weights, head_weight), (h_0, c_0, grad_h_n, grad_c_n)
        return loop_gradients_of_nothing(*given, *ends, need_frames, need_weights)
    grad_frames, grad_gates = _native.empty(z.shape, z.dtype), _native.empty(gates.shape, gates.dtype)
    grad_h_0, grad_c_0 = torch.empty_like(h_0), torch.empty_like(c_0)
    peepholes = [torch.empty_like(w.peephole) if peephole and need_weights else None for w in layers]
    calls = [
        _layer(h_0, steps, layer)
        | {
            "c_0": c_0[index],
            "cells": cells[index],
            "gates": gates[index],
            "grad_output": None,
            "grad_h_n": None if grad_h_n is None else grad_h_n[index],
            "grad_c_n": None if grad_c_n is None else grad_c_n[index],
            "grad_cells": None,
            "grad_gates": grad_gates[index],
            "grad_h_0": grad_h_0[index],
            "grad_c_0": grad_c_0[index],
            "grad_peephole": peepholes[index],
        }
        for index, layer in enumerate(layers)
    ]
    _native.closed_loop_cpu(
        "bwd",
        layers=calls,
        weight_ih=[layer.weight_ih for layer in layers],
        link=link,
        frame=z.size(-1),
        head_weight=head_weight.contiguous(),
        own=own,
        z=z,
        grad_z=grad_z,
        grad_frames=grad_frames,
    )
    of_frames = _frame_gradients(grad_gates[0], layers[0].weight_ih, first, truth, own) if need_frames else []
    if not need_weights:
        return grad_h_0, grad_c_0, of_frames, []
    x = frames_read(link, z, first, truth, own)
    of_weights = []
    for index, layer in enumerate(layers):
        dz = grad_gates[index]
        before = torch.cat([h_0[index][None], hidden[index, :-1]])
        of_weights += [over_steps(dz, x), over_steps(dz, before)]
        of_weights += [] if layer.bias is None else [dz.sum((0, 1))]
        of_weights += [] if peepholes[index] is None else [peepholes[index]]
        x = hidden[index]
    of_weights += [over_steps(grad_frames, x), grad_frames.sum((0, 1))]
    return grad_h_0, grad_c_0, of_frames, of_weights
