"""The optimiser of the paper's released code, from its settings or from the original files, velocities included."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lstmvid.compat import original
from lstmvid.nn import CompositeOutput


class OriginalSGD(torch.optim.Optimizer):
    """The released code's update, which bounds the accumulated velocity and not the gradient::

        g = dW + weight_decay * w
        velocity = clip(momentum * velocity - lr * g, -clip, clip)
        w += velocity

    ``dW`` is the gradient of the loss *summed* over frames and batch, where the models' losses are means: step on
    ``summed_loss(out)`` or on ``classifier.loss(x, labels) * len(labels)``.

    Args:
        params: parameters or groups of them.
        lr: learning rate (their ``epsilon``).
        momentum: share of the velocity that is kept.
        clip: bound of each element of the velocity (their ``gradient_clip``).
        weight_decay: L2 penalty (their ``l2_decay``).

    The state of a parameter is its ``velocity`` and the number of ``updates`` it has had.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-4,
        momentum: float = 0.9,
        clip: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "clip": clip, "weight_decay": weight_decay})

    @classmethod
    def from_original(
        cls,
        model: nn.Module,
        model_pbtxt: str | os.PathLike[str],
        checkpoint_h5: str | os.PathLike[str] | None = None,
    ) -> OriginalSGD:
        """The optimiser that an original model file describes, with the velocities of its checkpoint if one is given.

        Settings are each parameter block's own. Their decay of the learning rate (`eps_decay_factor`,
        `eps_decay_after`) is not applied, as the released code computes but never uses it.

        Args:
            model: what ``from_original`` built from the same files, or the same model loaded from a file of ours.

        Raises:
            ValueError: `model` has not the parameters that the file describes, or a file is damaged; naming which.
        """
        description = original.read_model(model_pbtxt)
        parameters = dict(model.named_parameters())
        expected = {*original.trained_blocks(description), *original.frozen_parameters(description)}
        if parameters.keys() != expected:
            odd = sorted(parameters.keys() ^ expected)
            raise ValueError(
                f"model is not the one that {description.source} describes: only one of them has {', '.join(odd)}"
            )
        groups: dict[tuple[float, ...], list[Tensor]] = {}
        for name, block in original.trained_blocks(description).items():
            clip = block.gradient_clip if block.gradient_clip > 0 else math.inf
            settings = (block.epsilon, block.momentum, clip, block.l2_decay)
            groups.setdefault(settings, []).append(parameters[name])
        keys = ("lr", "momentum", "clip", "weight_decay")
        optimizer = cls({"params": params} | dict(zip(keys, values, strict=True)) for values, params in groups.items())
        if checkpoint_h5 is not None:
            for name, (velocity, updates) in original.velocities(description, checkpoint_h5).items():
                weight = parameters[name]
                if velocity.shape != weight.shape:
                    raise ValueError(
                        f"model has {name} of shape {tuple(weight.shape)}, {description.source} of "
                        f"{tuple(velocity.shape)}"
                    )
                optimizer.state[weight] = {"velocity": velocity.to(weight), "updates": updates}
        return optimizer

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient; `closure`, if given, computes the loss once more."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad.add(weight, alpha=group["weight_decay"])
                state = self.state[weight]
                if not state:
                    state["velocity"] = torch.zeros_like(weight)
                velocity = state["velocity"]
                velocity.mul_(group["momentum"]).sub_(gradient, alpha=group["lr"])
                weight.add_(velocity.clamp_(-group["clip"], group["clip"]))
                state["updates"] = state.get("updates", 0) + 1
        return loss


def summed_loss(out: CompositeOutput) -> Tensor:
    """The loss of a composite model summed over frames and batch, whose gradient the original optimisers take.

    Args:
        out: of a training call: of `lstmvid.FusedComposite` with targets, or without a predictor.

    Raises:
        ValueError: `out` has no loss.
    """
    pairs = ((out.reconstruction_loss, out.reconstruction), (out.prediction_loss, out.prediction))
    # Both of the first two dimensions are averaged over, in whichever order they are.
    sums = [loss * (frames.shape[0] * frames.shape[1]) for loss, frames in pairs if loss is not None]
    if not sums:
        raise ValueError("out has no loss: call the model with targets")
    return sum(sums[1:], sums[0])
