"""C++ kernels for CPUs: the recurrence with packed weights and fused gates, and the dense products around it."""

from .lstm_sequence import backward, forward, unavailable

__all__ = ["backward", "forward", "unavailable"]
