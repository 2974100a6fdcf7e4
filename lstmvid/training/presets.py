"""Optimiser presets: the two settings of the paper's released code and ours, with their initial weights.

The originals are those of arXiv 1502.04681's code: see `lstmvid.training.OriginalSGD` for its update rule. Their
gradients are sums over frames and batch, where the model's loss is a mean; they have one bias per gate, so the second
one of `torch.nn.LSTM` is frozen at zero. What is not known of the earlier release (`original_rmsprop`) is as in
`original`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import lstmvid
from lstmvid.training.original_sgd import OriginalSGD


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of an optimiser, of its learning rate's schedule and of the initial weights.

    Args:
        method: ``"adamw"``, or the released code's ``"sgd"`` or ``"rmsprop"``.
        batch_size: sequences per step and device.
        learning_rate: the highest of the schedule.
        momentum: of SGD and RMSProp; Adam's first beta.
        second_moment: RMSProp's decay; Adam's second beta.
        weight_decay: L2 penalty, decoupled for AdamW; never on biases, for AdamW not on peepholes either.
        clip: bound of the gradient's norm for AdamW, of each element's update otherwise.
        warmup_steps: steps in which the learning rate rises linearly.
        schedule: after that ``"cosine"`` to zero or ``"constant"``.
        sum_gradients: gradients are summed over frames, batch and devices, not averaged; one bias a gate is trained.
        weight_range: weights are drawn from U(-r, r); None keeps `torch.nn.LSTM`'s and `torch.nn.Linear`'s draws.
        peephole_range: likewise for peepholes, which start at zero otherwise.
        forget_bias: the forget gates' initial bias.
        logit_bias: the initial bias of the frame outputs under the Bernoulli likelihood.
    """

    method: Literal["adamw", "sgd", "rmsprop"]
    batch_size: int
    learning_rate: float
    momentum: float
    second_moment: float = 0.0
    weight_decay: float = 0.0
    clip: float = math.inf
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "constant"
    sum_gradients: bool = False
    weight_range: float | None = None
    peephole_range: float | None = None
    forget_bias: float = 0.0
    logit_bias: float = 0.0


PRESETS: dict[str, Preset] = {
    # Chosen by measurement; see docs/training.md.
    "default": Preset(
        method="adamw",
        batch_size=64,
        learning_rate=3e-3,
        momentum=0.5,
        second_moment=0.9,
        clip=1000.0,  # gradients have norms around 100: this only stops the rare outlier
        warmup_steps=50,
        schedule="cosine",
        forget_bias=1.0,
        logit_bias=-3.0,  # 5% of the pixels are ink: without it, the first hundreds of steps learn little but that
    ),
    "original": Preset(
        method="sgd",
        batch_size=80,
        learning_rate=1e-4,
        momentum=0.9,
        weight_decay=1e-4,
        clip=1e-4,
        sum_gradients=True,
        weight_range=0.01,
        peephole_range=0.1,
    ),
    "original_rmsprop": Preset(
        method="rmsprop",
        batch_size=80,
        learning_rate=1e-3,
        momentum=0.9,
        second_moment=0.95,
        weight_decay=1e-4,
        sum_gradients=True,
        weight_range=0.01,
        peephole_range=0.1,
        forget_bias=5.0,
    ),
}


@torch.no_grad()
def initialise(model: lstmvid.FusedComposite | lstmvid.SequenceClassifier, preset: Preset) -> None:
    """Draw the preset's initial weights into a model, from torch's global generator."""
    head_bias = preset.logit_bias if model.config.get("likelihood") == "bernoulli" else 0.0
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2]
        if kind.startswith("weight_peephole"):
            if preset.peephole_range is not None:
                parameter.uniform_(-preset.peephole_range, preset.peephole_range)
        elif kind.startswith("weight"):
            if preset.weight_range is not None:
                parameter.uniform_(-preset.weight_range, preset.weight_range)
        elif kind == "bias":
            parameter.fill_(head_bias)
        else:
            parameter.zero_()
            if kind.startswith("bias_ih"):
                parameter.chunk(4)[1].fill_(preset.forget_bias)  # gate order i f g o
            else:
                # Two trained biases would double the learning rate of what is one in the original.
                parameter.requires_grad_(not preset.sum_gradients)


def build_optimizer(model: nn.Module, preset: Preset) -> torch.optim.Optimizer:
    """The preset's optimiser over the model's trained parameters, at the highest learning rate."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weight = "bias" not in name if preset.sum_gradients else parameter.ndim > 1
            (decayed if weight else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": preset.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if preset.method == "adamw":
        betas = (preset.momentum, preset.second_moment)
        # Fused, because torch's usual AdamW reads and writes every weight many times: several times slower on a CPU.
        return torch.optim.AdamW(groups, lr=preset.learning_rate, betas=betas, fused=True)
    if preset.method == "rmsprop":
        return torch.optim.RMSprop(
            groups, lr=preset.learning_rate, alpha=preset.second_moment, momentum=preset.momentum
        )
    return OriginalSGD(groups, lr=preset.learning_rate, momentum=preset.momentum, clip=preset.clip)


def learning_rate_factor(preset: Preset, step: int, max_steps: int) -> float:
    """The learning rate of a step, from 0, as a fraction of the highest."""
    if step < preset.warmup_steps:
        return (step + 1) / preset.warmup_steps
    if preset.schedule == "constant":
        return 1.0
    progress = (step - preset.warmup_steps) / max(max_steps - preset.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
