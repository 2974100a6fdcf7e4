"""Triton kernels: a launch a step under a CUDA graph or, for few units, all steps in one; products by the library.

Triton is imported by the first call that needs it: the package works without.
"""

from .launch import unavailable, unavailable_on

__all__ = ["backward", "compute_frame_loss", "forward", "unavailable", "unavailable_on"]


def forward(*arguments):
    """As the operator's schema says (`lstmvid/ops/lstm_sequence.py`)."""
    from .lstm_sequence_fwd import forward

    return forward(*arguments)


def backward(*arguments):
    """As the schema of the operator's backward says."""
    from .lstm_sequence_bwd import backward

    return backward(*arguments)


def compute_frame_loss(*arguments):
    """As the operator's schema says (`lstmvid/ops/frame_loss.py`)."""
    from .frame_loss import frame_loss

    return frame_loss(*arguments)
