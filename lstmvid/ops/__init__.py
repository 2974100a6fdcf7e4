"""Operators: schema, fake implementation, autograd and the public function, one file an operator."""

from .closed_loop import closed_loop, serves_closed_loop
from .frame_loss import frame_loss
from .lstm_sequence import LayerWeights, LSTMResult, autocast_dtype, in_function_transform, lstm_sequence

__all__ = [
    "LSTMResult",
    "LayerWeights",
    "autocast_dtype",
    "closed_loop",
    "frame_loss",
    "in_function_transform",
    "lstm_sequence",
    "serves_closed_loop",
]
