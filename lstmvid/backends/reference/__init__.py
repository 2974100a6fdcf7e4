"""The definition: plain torch, any device, float64-capable. Every other backend is tested against it."""

from .lstm_sequence import backward, forward

__all__ = ["backward", "forward"]
