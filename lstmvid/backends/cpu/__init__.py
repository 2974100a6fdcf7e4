"""C++ kernels for CPUs: the recurrence with packed weights and fused gates; dense products by the library."""

from .lstm_sequence import backward, forward, unavailable

__all__ = ["backward", "forward", "unavailable"]
