"""Groups of stacks on `torch.lstm`, one group after another, for the requests it can serve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def unavailable(request) -> str | None:
    """Why `torch.lstm` can't serve the request, or None."""
    if request.peephole:
        return "torch.nn.LSTM has no peepholes"
    if request.all_cells:
        return "torch.nn.LSTM returns the last cell state only"
    if request.lengths and not request.packed:
        return "torch.nn.LSTM takes ragged batches as PackedSequence only"
    if request.recompute == "gates":
        return "torch.nn.LSTM always keeps its gates"
    return None


def _flat(group, like: Tensor) -> list[Tensor]:
    flat = []
    for layer in group:
        # A layer without input reads a zero of width one: the narrowest request that torch.lstm takes.
        weight_ih = like.new_zeros(layer.weight_hh.size(0), 1) if layer.weight_ih is None else layer.weight_ih
        biases = () if layer.bias_ih is None else (layer.bias_ih, layer.bias_hh)
        flat += [w.to(like.dtype) for w in (weight_ih, layer.weight_hh, *biases)]
    return flat


def forward(
    inputs: Sequence[Tensor], h_0: Tensor, c_0: Tensor, weights, steps: int, reverse: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [G, T, B, H], h_n, c_n [G, L, B, H]); `weights[group][layer]`, `inputs` as the operator's."""
    train = torch.is_grad_enabled()  # cuDNN keeps what backward needs in training mode only; there is no dropout
    outputs, h_n, c_n = [], [], []
    for group, (stack, back) in enumerate(zip(weights, reverse, strict=True)):
        if inputs:
            x = inputs[group if len(inputs) > 1 else 0]
        else:
            x = h_0.new_zeros(steps, h_0.size(2), 1)
        state = (h_0[group].contiguous(), c_0[group].to(h_0.dtype).contiguous())
        has_bias = stack[0].bias_ih is not None
        y, h, c = torch.lstm(
            x.flip(0) if back else x, state, _flat(stack, h_0), has_bias, len(stack), 0.0, train, False, False
        )
        outputs.append(y.flip(0) if back else y)
        h_n.append(h)
        c_n.append(c)
    return torch.stack(outputs), torch.stack(h_n), torch.stack(c_n)
