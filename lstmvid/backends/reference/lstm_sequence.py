r"""LSTM over a whole sequence in plain torch: the equations, and their gradients written out.

One layer, with diagonal peepholes (Srivastava et al., 2015, section 2.1; gate order i, f, g, o):

    i_t = sigmoid(W_xi x_t + W_hi h_{t-1} + w_ci * c_{t-1} + b_i)
    f_t = sigmoid(W_xf x_t + W_hf h_{t-1} + w_cf * c_{t-1} + b_f)
    g_t = tanh   (W_xg x_t + W_hg h_{t-1}                  + b_g)
    c_t = f_t * c_{t-1} + i_t * g_t
    o_t = sigmoid(W_xo x_t + W_ho h_{t-1} + w_co * c_t     + b_o)
    h_t = o_t * tanh(c_t)

Operands are rounded to the input's dtype, everything else is computed in the *state dtype*: float32 for bfloat16 and
float16, otherwise the input's own. `forward` is differentiable by autograd; `backward` is what a kernel computes.

The arguments and the shapes of the results are those of the operator, `lstmvid/ops/lstm_sequence.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class _Layer(NamedTuple):
    """One layer's weights: `weight_ih` [4H, D], `weight_hh` [4H, H], `bias` [4H], `peephole` [3H] (i, f, o)."""

    weight_ih: Tensor | None
    weight_hh: Tensor
    bias: Tensor | None
    peephole: Tensor | None


class _Trace(NamedTuple):
    """What one layer's run leaves behind: states [T, B, H] and activated gates [T, B, 4H], by time index."""

    output: Tensor
    cells: Tensor
    gates: Tensor
    h_n: Tensor
    c_n: Tensor


def take_layers(weights: Sequence[Tensor], groups: int, num_layers: int, has_input: bool, bias: bool, peephole: bool):
    """The flat weight list of the operator as `layers[group][layer]`."""
    queue = iter(weights)
    return [
        [
            _Layer(
                next(queue) if has_input or layer > 0 else None,
                next(queue),
                next(queue) if bias else None,
                next(queue) if peephole else None,
            )
            for layer in range(num_layers)
        ]
        for _ in range(groups)
    ]


def _state_dtype(operand: torch.dtype) -> torch.dtype:
    return torch.float32 if operand in (torch.bfloat16, torch.float16) else operand


def _seen(frames: Tensor, h_0: Tensor, steps: int, reverse: bool) -> Tensor:
    """[T, B, D]: what each step sees; zeros for the one that runs first where there is a frame less than steps."""
    frames = frames.to(h_0.device)
    frames = frames.to(h_0.dtype) / 255 if frames.dtype == torch.uint8 else frames
    if len(frames) == steps:
        return frames
    nothing = frames.new_zeros(1, *frames.shape[1:])
    return torch.cat([frames, nothing] if reverse else [nothing, frames])


def _active(lengths: Tensor | None, time: int) -> Tensor | None:
    """[B, 1]: which sequences still run at this time step; None when all do."""
    return None if lengths is None else (lengths > time).unsqueeze(-1)


def _select(mask: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if mask is None else torch.where(mask, new, old)


def run_layer(x: Tensor | None, h: Tensor, c: Tensor, layer: _Layer, steps: int, lengths, reverse: bool) -> _Trace:
    """The recurrence of one layer, step by step. x: [T, B, D] or None; h, c: [B, H]."""
    operand, state = h.dtype, c.dtype
    weight_hh = layer.weight_hh.to(state)
    projection = h.new_zeros(1, 4 * h.size(-1), dtype=state) if layer.bias is None else layer.bias.to(state)[None]
    projection = projection.expand(steps, *projection.shape)
    if x is not None:
        projection = projection + x.to(state) @ layer.weight_ih.to(state).t()
    p_i = p_f = p_o = None
    if layer.peephole is not None:
        p_i, p_f, p_o = layer.peephole.to(state).chunk(3)

    outputs, cells, gates = [[None] * steps for _ in range(3)]
    for time in reversed(range(steps)) if reverse else range(steps):
        mask = _active(lengths, time)
        z_i, z_f, z_g, z_o = (projection[time] + h.to(state) @ weight_hh.t()).chunk(4, dim=-1)
        if layer.peephole is not None:
            z_i, z_f = z_i + p_i * c, z_f + p_f * c
        i, f, g = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.tanh(z_g)
        c_new = f * c + i * g
        o = torch.sigmoid(z_o if layer.peephole is None else z_o + p_o * c_new)
        h_new = (o * torch.tanh(c_new)).to(operand)
        h, c = _select(mask, h_new, h), _select(mask, c_new, c)
        outputs[time] = _select(mask, h_new, torch.zeros_like(h_new))
        cells[time] = c
        gates[time] = torch.cat([i, f, g, o], dim=-1).to(operand)
    return _Trace(torch.stack(outputs), torch.stack(cells), torch.stack(gates), h, c)


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
    """Every group and layer in turn. Returns (output, h_n, c_n, hidden, cells, gates) as the operator does."""
    groups, num_layers = h_0.shape[:2]
    layers = take_layers(weights, groups, num_layers, bool(inputs), bias, peephole)
    traces: list[list[_Trace]] = []
    for group in range(groups):
        x = _seen(inputs[group if len(inputs) > 1 else 0], h_0, steps, reverse[group]) if inputs else None
        traces.append([])
        for index, layer in enumerate(layers[group]):
            run = run_layer(x, h_0[group, index], c_0[group, index], layer, steps, lengths, reverse[group])
            traces[group].append(run)
            x = run.output

    def stack(field: str, first: int = 0, last: int = num_layers) -> Tensor:
        return torch.stack([torch.stack([getattr(run, field) for run in group[first:last]]) for group in traces])

    output, h_n, c_n = stack("output", num_layers - 1)[:, 0], stack("h_n"), stack("c_n")
    hidden = h_0.new_empty(groups, 0, *output.shape[1:])
    cells = c_0.new_empty(groups, num_layers, 0, *c_0.shape[2:])
    gates = h_0.new_empty(groups, num_layers, 0, h_0.size(2), 4 * h_0.size(3))
    if save and num_layers > 1:
        hidden = stack("output", 0, num_layers - 1)
    if all_cells or (save and not recompute):
        cells = stack("cells")
    elif save:
        every = stack("cells")
        cells = torch.stack([_checkpoints(every[g], c_0[g], chunk, reverse=reverse[g]) for g in range(groups)])
    if save and not recompute:
        gates = stack("gates")
    # A stack is a view, which autograd lets nobody overwrite where a function returns several.
    return output.clone(), h_n.clone(), c_n.clone(), hidden, cells, gates


def _checkpoints(cells: Tensor, c_0: Tensor, chunk: int, *, reverse: bool) -> Tensor:
    """The cell states [L, ceil(T/chunk), B, H] in which each chunk of steps, in order of processing, starts."""
    ordered = cells.flip(1) if reverse else cells
    return torch.cat([c_0.unsqueeze(1), ordered[:, chunk - 1 : -1 : chunk]], dim=1)


def _previous(states: Tensor, initial: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """The state [T, B, H] each step started from: its predecessor's, or the initial one where there is none."""
    before = torch.cat([states[1:], initial[None]]) if reverse else torch.cat([initial[None], states[:-1]])
    if lengths is None or not reverse:
        return before
    # Running backwards, a short sequence starts at its own last frame, whose successor is padding.
    successor = torch.arange(1, len(states) + 1, device=lengths.device)[:, None, None]
    return torch.where(successor < lengths[None, :, None], before, initial[None])


def _recompute(x, h_before: Tensor, checkpoints: Tensor, layer: _Layer, lengths, reverse: bool, chunk: int):
    """Gates [T, B, 4H] and cells [T, B, H] again: a dense product for each chunk of steps and a scan for the cells."""
    steps, state = len(h_before), checkpoints.dtype
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    gates = h_before.new_empty(steps, h_before.size(1), 4 * h_before.size(2), dtype=state)
    cells = gates.new_empty(h_before.shape)
    for index, start in enumerate(range(0, steps, chunk)):
        times = torch.tensor(list(order[start : start + chunk]), device=h_before.device)
        z = h_before[times].to(state) @ layer.weight_hh.to(state).t()
        if x is not None:
            z = z + x[times].to(state) @ layer.weight_ih.to(state).t()
        if layer.bias is not None:
            z = z + layer.bias.to(state)
        c = checkpoints[index]
        for position, time in enumerate(times.tolist()):
            z_i, z_f, z_g, z_o = z[position].chunk(4, dim=-1)
            if layer.peephole is not None:
                p_i, p_f, p_o = layer.peephole.to(state).chunk(3)
                z_i, z_f = z_i + p_i * c, z_f + p_f * c
            i, f, g = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.tanh(z_g)
            c_new = f * c + i * g
            o = torch.sigmoid(z_o if layer.peephole is None else z_o + p_o * c_new)
            c = cells[time] = _select(_active(lengths, time), c_new, c)
            gates[time] = torch.cat([i, f, g, o], dim=-1)
    return gates, cells


def backward_layer(
    layer: _Layer, gates, cells, c_before, grad_output, grad_h, grad_c, grad_cells, lengths, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates' pre-activations [T, B, 4H] and of the initial states [B, H], last step first."""
    state, steps = cells.dtype, len(cells)
    weight_hh, operand = layer.weight_hh.to(state), layer.weight_hh.dtype
    peephole = layer.peephole.to(state) if layer.peephole is not None else cells.new_zeros(3 * cells.size(-1))
    p_i, p_f, p_o = peephole.chunk(3)
    grad_gates = gates.new_empty(gates.shape, dtype=state)
    for time in range(steps) if reverse else reversed(range(steps)):
        mask = _active(lengths, time)
        i, f, g, o = gates[time].to(state).chunk(4, dim=-1)
        tanh_c = torch.tanh(cells[time])
        dh = grad_h + grad_output[time]
        dc = grad_c if grad_cells is None else grad_c + grad_cells[time]
        dz_o = dh * tanh_c * o * (1 - o)
        dc_all = dc + dh * o * (1 - tanh_c * tanh_c) + dz_o * p_o
        dz_i, dz_f = dc_all * g * i * (1 - i), dc_all * c_before[time] * f * (1 - f)
        dz_g = dc_all * i * (1 - g * g)
        # What crosses to the step before is rounded like every other operand of a matrix product.
        dz = torch.cat([dz_i, dz_f, dz_g, dz_o], dim=-1).to(operand).to(state)
        grad_gates[time] = _select(mask, dz, torch.zeros_like(dz))
        grad_h = _select(mask, dz @ weight_hh, grad_h)
        grad_c = _select(mask, dc_all * f + dz_i * p_i + dz_f * p_f, dc)
    return grad_gates, grad_h, grad_c


def weight_gradients(layer: _Layer, grad_gates, x, h_before, c_before, cells) -> list[Tensor]:
    """In the operator's order: weight_ih, weight_hh, bias, peephole; the ones that this layer has."""
    state, gradients = cells.dtype, []
    flat = grad_gates.flatten(0, 1)
    if layer.weight_ih is not None:
        gradients.append(flat.t() @ x.flatten(0, 1).to(state))
    gradients.append(flat.t() @ h_before.flatten(0, 1).to(state))
    if layer.bias is not None:
        gradients.append(flat.sum(0))
    if layer.peephole is not None:
        dz_i, dz_f, _, dz_o = grad_gates.chunk(4, dim=-1)
        gradients.append(
            torch.cat([(dz_i * c_before).sum((0, 1)), (dz_f * c_before).sum((0, 1)), (dz_o * cells).sum((0, 1))])
        )
    return [gradient.to(layer.weight_hh.dtype) for gradient in gradients]


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
    """Gradients (inputs, h_0, c_0, weights) from what `forward` saved; lists are empty where not needed."""
    groups, num_layers = h_0.shape[:2]
    state = _state_dtype(h_0.dtype)
    layers = take_layers(weights, groups, num_layers, bool(inputs), bias, peephole)
    grad_inputs = [torch.zeros_like(x) for x in inputs] if need_inputs else []
    grad_h_0, grad_c_0 = torch.empty_like(h_0), torch.empty_like(c_0)
    grad_weights: list[list[Tensor]] = [[] for _ in range(groups * num_layers)]
    for group in range(groups):
        source = group if len(inputs) > 1 else 0
        grad_top = torch.zeros_like(output[group]) if grad_output is None else grad_output[group]
        for index in reversed(range(num_layers)):
            layer, back = layers[group][index], reverse[group]
            x = _seen(inputs[source], h_0, steps, back) if inputs else None
            x = hidden[group, index - 1] if index else x
            h = output[group] if index == num_layers - 1 else hidden[group, index]
            h_before = _previous(h, h_0[group, index], lengths, back)
            c, activated = cells[group, index], gates[group, index]
            if recompute:
                starts = _checkpoints(c[None], c_0[group, index][None], chunk, reverse=back)[0] if all_cells else c
                activated, c = _recompute(x, h_before, starts, layer, lengths, back, chunk)
            # Cells carry their state through padding, so that a predecessor's is always the right one.
            c_before = _previous(c, c_0[group, index], None, back)

            def seed(gradient: Tensor | None, at: int = index, of: int = group) -> Tensor:
                return torch.zeros_like(c_0[of, at]) if gradient is None else gradient[of, at].to(state)

            grad_gates, grad_h, grad_c = backward_layer(
                layer,
                activated,
                c,
                c_before,
                grad_top.to(state) if lengths is None else _masked(grad_top.to(state), lengths),
                seed(grad_h_n),
                seed(grad_c_n),
                None if grad_cells is None else grad_cells[group, index],
                lengths,
                back,
            )
            grad_h_0[group, index], grad_c_0[group, index] = grad_h, grad_c
            if need_weights:
                grad_weights[group * num_layers + index] = weight_gradients(layer, grad_gates, x, h_before, c_before, c)
            if index or (need_inputs and inputs):
                grad_top = (grad_gates @ layer.weight_ih.to(state)).to(h_0.dtype)
        if need_inputs and inputs:
            if len(inputs[source]) < steps:
                grad_top = grad_top[:-1] if reverse[group] else grad_top[1:]
            grad_inputs[source] += grad_top
    return grad_inputs, grad_h_0, grad_c_0, [gradient for layer in grad_weights for gradient in layer]


def _masked(sequence: Tensor, lengths: Tensor) -> Tensor:
    """[T, B, ...] with zeros where a sequence has ended: padding is constant, so no gradient flows from it."""
    times = torch.arange(len(sequence), device=lengths.device)[:, None, None]
    return torch.where(times < lengths[None, :, None], sequence, torch.zeros_like(sequence))
