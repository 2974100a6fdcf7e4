"""Persistent CUDA kernels: the recurrence of a whole sequence in one launch; dense products by the library."""

from .lstm_sequence import architecture, backward, forward, unavailable

__all__ = ["architecture", "backward", "forward", "unavailable"]
