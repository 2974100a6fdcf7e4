"""Persistent CUDA kernels: the recurrence of a whole sequence in one launch; dense products by the library."""

from .launch import allows_tf32, architecture, limits_of, unavailable, unavailable_on
from .lstm_sequence_bwd import backward
from .lstm_sequence_fwd import forward

__all__ = ["allows_tf32", "architecture", "backward", "forward", "limits_of", "unavailable", "unavailable_on"]
