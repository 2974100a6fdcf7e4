"""A run so small that it trains in a second, and digits of its own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory) -> Path:
    """Twenty blobs as an IDX file."""
    blobs = torch.zeros(20, 28, 28, dtype=torch.uint8)
    for number, blob in enumerate(blobs):
        blob[4 + number % 5 : 20, 6 : 14 + number % 7] = 255 - number
    path = tmp_path_factory.mktemp("digits") / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4i", 0x803, 20, 28, 28) + blobs.numpy().tobytes())
    return path


@pytest.fixture
def settings(digits_file, tmp_path) -> dict:
    return {
        "output": str(tmp_path / "run"),
        "seed": 5,
        "model": {"hidden_size": 6, "num_layers": 2, "dropout": 0.2, "backend": "reference"},
        "data": {
            "digits": str(digits_file),
            "validation_fraction": 0.25,
            "validation_sequences": 5,
            "batch_size": 2,
            "input_frames": 3,
            "target_frames": 2,
            "frame_size": 32,
        },
        "optimizer": {"warmup_steps": 2},
        "trainer": {
            "max_steps": 8,
            "validation_interval": 3,
            "log_interval": 1,
            "feedback": 0.9,
            "accelerator": "cpu",
        },
    }
