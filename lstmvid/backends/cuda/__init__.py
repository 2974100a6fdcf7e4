"""Persistent CUDA kernels: the recurrence of a whole sequence in one launch; dense products by the library."""

from .launch import architecture, unavailable
from .lstm_sequence_bwd import backward
from .lstm_sequence_fwd import forward

__all__ = ["architecture", "backward", "forward", "unavailable"]
