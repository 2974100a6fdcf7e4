r"""A decoder on its own output in plain torch: the equations, and their gradients written out.

With the cell of `lstm_sequence`, the top layer's state h_t, and a link (the likelihood's mean):

    z_t = W_out h_t + b_out        x_{t+1} = link(z_t)  where the frame is the decoder's own, else the true one

The first step sees `first`, or nothing. Arguments and shapes are those of the operator, `lstmvid/ops/closed_loop.py`.
`forward` is differentiable by autograd; `backward` is what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .lstm_sequence import backward_layer, run_layer, take_layers, weight_gradients

LINKS = {"identity": lambda z: z, "sigmoid": torch.sigmoid, "rectifier": F.relu}


def _slope(link: str, z: Tensor) -> Tensor:
    """Of the link's output by its input."""
    if link == "sigmoid":
        y = torch.sigmoid(z)
        return y * (1 - y)
    return (z > 0).to(z.dtype) if link == "rectifier" else torch.ones_like(z)


def seen_frames(link: str, z: Tensor, truth: Tensor | None, own: Tensor | None) -> Tensor:
    """The frames that the steps after those of z [..., B, D] see, in their dtype."""
    frames = LINKS[link](z)
    return frames if own is None else torch.where(own.unsqueeze(-1), frames, truth)


def frames_read(link: str, z: Tensor, first: Tensor | None, truth: Tensor | None, own: Tensor | None) -> Tensor:
    """[T, B, D]: what each of the steps of z [T, B, D] saw, zeros for nothing."""
    start = torch.zeros_like(z[:1]) if first is None else first[None]
    return torch.cat([start, seen_frames(link, z[:-1], truth, own)])


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
    """Step by step, every layer in turn. Returns (z, h_n, c_n, hidden, cells, gates) as the operator does."""
    operand, state = h_0.dtype, c_0.dtype
    (layers,) = take_layers(weights, 1, len(h_0), True, bias, peephole)
    h, c, x = list(h_0), list(c_0), first
    outputs, kept = [], [[[] for _ in layers] for _ in range(3)]
    for step in range(steps):
        for index, layer in enumerate(layers):
            trace = run_layer(None if x is None else x[None], h[index], c[index], layer, 1, None, False)
            x, h[index], c[index] = trace.h_n, trace.h_n, trace.c_n
            for parts, part in zip(kept, (trace.output, trace.cells, trace.gates), strict=True):
                parts[index].append(part)
        z = (x.to(state) @ head_weight.to(state).t() + head_bias.to(state)).to(operand)
        outputs.append(z)
        if step + 1 < steps:
            x = seen_frames(link, z, None if truth is None else truth[step], None if own is None else own[step])
    if save and steps:
        hidden, cells, gates = (torch.stack([torch.cat(parts) for parts in of_layers]) for of_layers in kept)
    else:
        hidden, cells = (tensor.new_empty(len(layers), 0, *tensor.shape[1:]) for tensor in (h_0, c_0))
        gates = h_0.new_empty(*hidden.shape[:-1], 4 * h_0.size(-1))
    z = torch.stack(outputs) if steps else h_0.new_empty(0, h_0.size(1), len(head_bias))
    # A stack is a view, which autograd lets nobody overwrite where a function returns several.
    return z.clone(), torch.stack(h).clone(), torch.stack(c).clone(), hidden, cells, gates


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
    """Gradients (h_0, c_0, [first, truth], [weights, head's]): those that are there; no list where not needed."""
    state = c_0.dtype
    (layers,) = take_layers(weights, 1, len(h_0), True, bias, peephole)
    of_head, of_frame = head_weight.to(state), layers[0].weight_ih.to(state)
    dh, dc = (
        list((torch.zeros_like(start) if grad is None else grad).to(state))
        for start, grad in ((h_0, grad_h_n), (c_0, grad_c_n))
    )
    before = [torch.cat([start[:, None], after[:, :-1]], 1) for start, after in ((h_0, hidden), (c_0, cells))]
    grad_frames, grad_gates = torch.empty_like(z), torch.empty_like(gates, dtype=state)
    for step in reversed(range(steps)):
        dz = torch.zeros_like(z[step], dtype=state) if grad_z is None else grad_z[step].to(state)
        if step + 1 < steps:
            through = (grad_gates[0, step + 1] @ of_frame) * _slope(link, z[step].to(state))
            dz = dz + (through if own is None else through * own[step, :, None])
        grad_frames[step] = dz
        above = grad_frames[step].to(state) @ of_head  # rounded like every operand of a product
        for index in reversed(range(len(layers))):
            at, layer = (index, slice(step, step + 1)), layers[index]
            grad_gates[at], dh[index], dc[index] = backward_layer(
                *(layer, gates[at], cells[at], before[1][at], above[None], dh[index], dc[index], None, None, False)
            )
            above = grad_gates[index, step] @ layer.weight_ih.to(state)
    of_frames, of_weights = [], []
    if need_frames:
        below = (grad_gates[0] @ of_frame).to(h_0.dtype)
        of_frames += [] if first is None else [below[0]]
        of_frames += [] if truth is None else [torch.where(own.unsqueeze(-1), 0, below[1:])]
    if need_weights:
        x = frames_read(link, z, first, truth, own)
        for index, layer in enumerate(layers):
            of_weights += weight_gradients(
                layer, grad_gates[index], x, before[0][index], before[1][index], cells[index]
            )
            x = hidden[index]
        flat = grad_frames.to(state).flatten(0, 1)
        of_weights += [(flat.t() @ x.to(state).flatten(0, 1)).to(h_0.dtype), flat.sum(0).to(h_0.dtype)]
    return torch.stack(dh).to(h_0.dtype), torch.stack(dc), of_frames, of_weights
