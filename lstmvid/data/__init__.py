"""Sequences of frames as tensors, time first; nothing in here knows of models."""

from __future__ import annotations

from lstmvid.data.digits import load_digits, split_digits
from lstmvid.data.moving_mnist import MovingMNIST, read_moving_mnist, trajectories
from lstmvid.data.percepts import PerceptClips, Percepts, PerceptsWriter

__all__ = [
    "MovingMNIST",
    "PerceptClips",
    "Percepts",
    "PerceptsWriter",
    "load_digits",
    "read_moving_mnist",
    "split_digits",
    "trajectories",
]
