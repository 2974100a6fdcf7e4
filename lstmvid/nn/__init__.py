"""Modules: parameters and the algebra between operators, no kernels."""

from .classifier import SequenceClassifier
from .composite import CompositeOutput, FusedComposite
from .lstm import LSTM
from .stack import LSTMStack

__all__ = ["LSTM", "CompositeOutput", "FusedComposite", "LSTMStack", "SequenceClassifier"]
