"""What the units of a predictor do while it runs on its own output, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import lstmvid


@dataclass(frozen=True)
class UnitTraces:
    """States and gates of one predictor layer, each ``(steps, B, H)``, and the frames that it predicted meanwhile.

    With ``copy_state`` no LSTM step is taken at the first frame: its gates are not-a-number.
    """

    hidden: Tensor
    cell: Tensor
    input_gate: Tensor
    forget_gate: Tensor
    output_gate: Tensor
    frames: Tensor  # (steps, B, *frame_shape)


@torch.no_grad()
def unit_traces(model: lstmvid.FusedComposite, frames: Tensor, steps: int, *, layer: int = -1) -> UnitTraces:
    """Run the predictor on its own output and keep what one of its layers did.

    Args:
        model: in eval mode, time first, with a predictor.
        frames: the input, ``(T_in, B, *frame_shape)``.
        steps: how many frames to predict.
        layer: which one, the top one by default.

    Raises:
        ValueError: there is no predictor or no such layer, or `steps` is less than 1.
    """
    predictor = model.predictor
    if predictor is None:
        raise ValueError("the model has no predictor, whose units could be traced")
    if not -predictor.num_layers <= layer < predictor.num_layers:
        raise ValueError(f"layer is {layer}, expected one of {predictor.num_layers} layers")
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    layer %= predictor.num_layers
    state = model.encode(frames)
    batch = state[0].shape[1]
    seen = state[0].new_zeros(1, batch, model.prediction_head.out_features)
    conditional = model.predict_mode == "conditional"
    hidden, cell, gates, predicted = [], [], [], []
    for step in range(steps):
        if step == 0 and "predict" in model.copy_state:
            gates.append(torch.full((3, *state[0].shape[1:]), torch.nan, device=seen.device, dtype=seen.dtype))
        else:
            before = state
            x = seen if conditional else None
            _, state = predictor(x, before, steps=1)
            below = state[0][layer - 1] if layer else (x[0] if conditional else None)
            gates.append(_gates(model, layer, below, before, state))
        hidden.append(state[0][layer])
        cell.append(state[1][layer])
        seen = model.likelihood.mean(model.prediction_head(state[0][-1:]))
        predicted.append(seen[0])
    input_gate, forget_gate, output_gate = torch.stack(gates, dim=1)
    return UnitTraces(
        hidden=torch.stack(hidden),
        cell=torch.stack(cell),
        input_gate=input_gate,
        forget_gate=forget_gate,
        output_gate=output_gate,
        frames=torch.stack(predicted).unflatten(2, model.frame_shape),
    )


def _gates(
    model: lstmvid.FusedComposite,
    layer: int,
    below: Tensor | None,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
) -> Tensor:
    """Input, forget and output gate ``(3, B, H)`` of the step between two states, which kernels don't hand out."""
    weights = model.predictor.layer_weights()[layer]
    z = before[0][layer] @ weights.weight_hh.T + weights.bias_ih + weights.bias_hh
    if below is not None:
        z = z + below @ weights.weight_ih.T
    i, f, _, o = z.chunk(4, dim=1)
    if weights.peephole is not None:
        w_i, w_f, w_o = weights.peephole.chunk(3)
        c_before, c_after = before[1][layer], after[1][layer]
        i, f, o = i + w_i * c_before, f + w_f * c_before, o + w_o * c_after
    return torch.sigmoid(torch.stack([i, f, o]))
