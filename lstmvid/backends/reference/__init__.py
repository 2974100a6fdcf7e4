"""The definition: plain torch, any device, float64-capable. Every other backend is tested against it."""

from .frame_loss import frame_loss, summed_loss
from .lstm_sequence import backward, forward

__all__ = ["backward", "forward", "frame_loss", "summed_loss"]
