"""Gates that weren't kept: their pre-activations again, for many steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .dense import add_linear
from .layers import Weights
from .streaming import Reader, project_into
from .windows import Origins


def preactivations_into(
    z: Tensor, x: Reader | None, time: slice, output: Tensor, weights: Weights, origins: Origins
) -> None:
    """Fill `z` [n, B, 4H], contiguous, with the gates' pre-activations but for the peepholes' part.

    x: what the layer reads, or None, and the window's time; output [T, B, H] of all steps, and which of it the window's
    steps started from.
    """
    if x is not None:
        project_into(z, x, time, weights)
    elif weights.bias is not None:
        z.copy_(weights.bias.expand_as(z))
    else:
        z.zero_()
    add_linear(z[origins.rest], output[origins.neighbours], weights.weight_hh)
    if origins.start is not None:
        origins.add_first(z, torch.mm(origins.start, weights.weight_hh.t()))
