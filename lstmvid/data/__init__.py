"""Sequences of frames as tensors, time first; nothing in here knows of models."""

from __future__ import annotations

from lstmvid.data.digits import load_digits, split_digits
from lstmvid.data.moving_mnist import MovingMNIST, read_moving_mnist, trajectories
from lstmvid.data.percepts import PerceptClips, Percepts, PerceptsWriter
from lstmvid.data.registry import open_source, source_names
from lstmvid.data.sequences import Cut, ShuffledBatches, Splits, Windows
from lstmvid.data.video import VideoClips

__all__ = [
    "Cut",
    "MovingMNIST",
    "PerceptClips",
    "Percepts",
    "PerceptsWriter",
    "ShuffledBatches",
    "Splits",
    "VideoClips",
    "Windows",
    "load_digits",
    "open_source",
    "read_moving_mnist",
    "source_names",
    "split_digits",
    "trajectories",
]
