"""The decoders of an encoder-decoder: from the encoder's last state on, without input or on the frames before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..functional import as_frames
from ..ops import LayerWeights, closed_loop, lstm_sequence, serves_closed_loop
from .likelihoods import Likelihood
from .stack import LSTMStack, State, run_groups


class DecoderRun(NamedTuple):
    """What one decoder does in a call: `steps` frames from `state`, each (L, B, H).

    At each step but its first it sees the frame before of `seen (T, B, D)`, or never anything. With `copy_state` its
    state at the first step *is* `state`, so that it takes one step less. `reverse`: it goes from the last frame to the
    first; `seen` and what it returns are in order of time.
    """

    stack: LSTMStack
    state: State
    steps: int
    seen: Tensor | None
    copy_state: bool
    reverse: bool = False

    @property
    def steps_to_take(self) -> int:
        return self.steps - self.copy_state

    def inputs(self) -> list[Tensor]:
        """A frame for each step, the first one of all aside; or nothing."""
        if self.seen is None:
            return []
        return [self.seen[1:] if self.reverse else self.seen[:-1]]


def are_alike(runs: Sequence[DecoderRun]) -> bool:
    """Whether stacks of one architecture take as many steps, all with or all without input of one kind."""

    def kind(run: DecoderRun):
        has_input = run.seen is not None
        return run.stack.input_size, run.steps_to_take, has_input and (run.copy_state, run.seen.dtype)

    return all(kind(run) == kind(runs[0]) for run in runs[1:])


def run_decoders(runs: Sequence[DecoderRun]) -> list[Tensor]:
    """Top-layer states `(T, B, H)` of each; in one call if they are alike (the composite model's two mostly are)."""
    if len(runs) > 1 and not are_alike(runs):
        return [hidden for run in runs for hidden in run_decoders([run])]
    steps = runs[0].steps_to_take if runs else 0
    outputs: Sequence[Tensor | None] = [None] * len(runs)
    if steps:
        inputs = [x for run in runs for x in run.inputs()]
        options = {"reverse": [run.reverse for run in runs]}
        output, _, _ = run_groups([run.stack for run in runs], inputs, [run.state for run in runs], steps, **options)
        outputs = output.unbind(0)
    results = []
    for run, hidden in zip(runs, outputs, strict=True):
        first = [run.state[0][-1:]] if run.copy_state else []
        later = [] if hidden is None else [hidden]
        parts = later + first if run.reverse else first + later
        results.append(torch.cat(parts) if len(parts) > 1 else parts[0])
    return results


def run_closed_loop(run: DecoderRun, head: nn.Linear, likelihood: Likelihood, own: Tensor | None) -> Tensor:
    """z `(T, B, D)`, which the likelihood reads, of a decoder that sees what it says; zeros at first.

    `own (T - 1, B)`: where it does so; elsewhere the step after t sees `run.seen[t]`. None: everywhere. One call, but
    for dropout between layers and for backends that have none.
    """
    stack, state = run.stack, run.state
    if own is None and likelihood.link == "identity" and folds(stack, state, run.steps):
        return run_folded(stack, head, state, run.steps, run.copy_state)
    drops = stack.training and stack.dropout > 0 and stack.num_layers > 1
    if drops or not serves_closed_loop(stack.backend):
        return _run_step_by_step(run, head, likelihood, own)
    truth = None if own is None else as_frames(run.seen[:-1].to(state[0].device), head.weight.dtype)
    said, first = [], None
    if run.copy_state:
        said.append(head(state[0][-1])[None])
        if run.steps == 1:
            return said[0]
        first = _next_frame(said[0][0], likelihood, 0, truth, own)
        truth, own = (None, None) if own is None else (truth[1:], own[1:])
    z, *_ = closed_loop(
        first,
        *state,
        stack.layer_weights(),
        head.weight,
        head.bias,
        steps=run.steps_to_take,
        link=likelihood.link,
        truth=truth,
        own=own,
        backend=stack.backend,
    )
    return torch.cat([*said, z]) if said else z


def _next_frame(z: Tensor, likelihood: Likelihood, step: int, truth: Tensor | None, own: Tensor | None) -> Tensor:
    """What the step after `step` sees, `(B, D)`."""
    frame = likelihood.mean(z)
    if own is None:
        return frame
    return torch.where(own[step].unsqueeze(-1), frame, as_frames(truth[step].to(z.device), frame.dtype))


def _run_step_by_step(run: DecoderRun, head: nn.Linear, likelihood: Likelihood, own: Tensor | None) -> Tensor:
    state, x, said = run.state, run.state[0].new_zeros(run.state[0].size(1), head.out_features), []
    for step in range(run.steps):
        if step == 0 and run.copy_state:
            hidden = state[0][-1]
        else:
            output, state = run.stack(x[None], state)
            hidden = output[0]
        said.append(head(hidden))
        if step + 1 < run.steps:
            x = _next_frame(said[-1], likelihood, step, run.seen, own)
    return torch.stack(said)


def folds(stack: LSTMStack, state: State, steps: int) -> bool:
    """Whether a decoder that sees its own linear output is better run as a recurrence without input.

    That is possible for a single layer, and worth the product of two weight matrices where a step costs a GPU launches,
    or where the steps would multiply by the input weights more often.
    """
    return stack.num_layers == 1 and (state[0].device.type == "cuda" or steps * state[0].size(1) >= stack.hidden_size)


def run_folded(stack: LSTMStack, head: nn.Linear, state: State, steps: int, copy_state: bool) -> Tensor:
    """Outputs `(T, B, D)` of a single-layer decoder that sees its own previous one, in one call; zeros at first.

    With x_t = W_out h_{t-1} + b_out, W_ih x_t + W_hh h_{t-1} + b is (W_hh + W_ih W_out) h_{t-1} + (b + W_ih b_out).
    """
    (layer,) = stack.layer_weights()
    if copy_state:
        first = state[0]
    else:
        first, state = _run_without_input(stack, layer, state, 1)
    if steps == 1:
        return head(first)
    weight_hh = torch.addmm(layer.weight_hh, layer.weight_ih, head.weight)
    folded = layer._replace(weight_hh=weight_hh, bias_ih=torch.addmv(layer.bias_ih, layer.weight_ih, head.bias))
    later, _ = _run_without_input(stack, folded, state, steps - 1)
    return head(torch.cat([first, later]))


def _run_without_input(stack: LSTMStack, layer: LayerWeights, state: State, steps: int) -> tuple[Tensor, State]:
    """Output `(T, B, H)` and final state of a single layer with weights that are not the stack's own."""
    h_0, c_0 = (tensor.unsqueeze(0) for tensor in state)
    options = {"steps": steps, "backend": stack.backend, "recompute": stack.recompute}
    output, h_n, c_n, _ = lstm_sequence([], h_0, c_0, [[layer._replace(weight_ih=None)]], **options)
    return output[0], (h_n[0], c_n[0])
