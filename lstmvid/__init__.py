"""Fused LSTM encoder-decoders for video: a drop-in for `torch.nn.LSTM` and the composite model built on it."""

from . import functional
from .backends import BackendUnavailable
from .compat.accelerate import accelerate, patched, restore
from .explanation import explain
from .nn import LSTM, CompositeOutput, FusedComposite, SequenceClassifier

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "BackendUnavailable",
    "CompositeOutput",
    "FusedComposite",
    "SequenceClassifier",
    "accelerate",
    "explain",
    "functional",
    "patched",
    "restore",
]
