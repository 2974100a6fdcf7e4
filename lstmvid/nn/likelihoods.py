"""How a frame is read from the top layer: mean and loss of each likelihood, on the head's output `z = W_out h + b_out`.

Losses are summed over a frame's values and averaged over frames and batch (Srivastava et al., 2015, section 2.2).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..backends import streaming
from ..functional import as_frames

WINDOW_BYTES = 64 << 20  # of z, whose frames come from host memory at a time


class Likelihood(Protocol):
    """The distribution of a frame's values around what the decoder's head says."""

    link: str  # `mean` by the name that the operator `closed_loop` has for it

    def mean(self, z: Tensor) -> Tensor:
        """Expected frames, of `z`'s shape."""
        ...

    def loss(self, z: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of `target` in nats up to a constant: `z`, `target` (T, B, D), a scalar."""
        ...


def _per_frame(total: Tensor, z: Tensor) -> Tensor:
    return total / (z.size(0) * z.size(1))


class Bernoulli:
    """Values in [0, 1]; cross-entropy on logits."""

    link = "sigmoid"

    def mean(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def loss(self, z: Tensor, target: Tensor) -> Tensor:
        return _per_frame(F.binary_cross_entropy_with_logits(z, target.to(z.dtype), reduction="sum"), z)


class Gaussian:
    """Any values; half the squared error."""

    link = "identity"

    def mean(self, z: Tensor) -> Tensor:
        return z

    def loss(self, z: Tensor, target: Tensor) -> Tensor:
        return _per_frame(0.5 * F.mse_loss(self.mean(z), target.to(z.dtype), reduction="sum"), z)


class Rectified(Gaussian):
    """Values from 0 up (features after a rectifier); half the squared error of max(0, z)."""

    link = "rectifier"

    def mean(self, z: Tensor) -> Tensor:
        return F.relu(z)


LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": Bernoulli(), "gaussian": Gaussian(), "rectified": Rectified()}


def loss_of_frames(likelihood: Likelihood, z: Tensor, frames: Tensor) -> Tensor:
    """`likelihood.loss` against frames `(T, B, D)`, `uint8` or not, where `z` is or in host memory.

    From there they come a window of time at a time, and once more in backward: they are never all on the device.
    """
    if not streaming.is_elsewhere(frames, z.device):
        return likelihood.loss(z, as_frames(frames, z.dtype))

    def of_window(z: Tensor, frames: Tensor) -> Tensor:
        return likelihood.loss(z, as_frames(frames.to(z.device), z.dtype)) * (z.size(0) / steps)

    steps = z.size(0)
    length = max(WINDOW_BYTES // max(z[:1].numel() * z.element_size(), 1), 1)
    windows = zip(z.split(length), frames.split(length), strict=True)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    losses = [checkpoint(of_window, *window, **options) for window in windows]
    return torch.stack(losses).sum()
