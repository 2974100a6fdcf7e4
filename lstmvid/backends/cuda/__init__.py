"""Persistent CUDA kernels: the recurrence of a whole sequence in one launch; dense products by the library."""

from .launch import architecture, limits_of, unavailable, unavailable_on
from .lstm_sequence_bwd import backward
from .lstm_sequence_fwd import forward

__all__ = ["architecture", "backward", "forward", "limits_of", "unavailable", "unavailable_on"]
