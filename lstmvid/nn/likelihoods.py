"""How a frame is read from the top layer: mean and loss of each likelihood, on the head's output `z = W_out h + b_out`.

Losses are summed over a frame's values and averaged over frames and batch (Srivastava et al., 2015, section 2.2).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


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
