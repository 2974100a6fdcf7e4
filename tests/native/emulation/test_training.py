"""`lstmvid train` on the emulated kernels: the run that the reference makes."""

from __future__ import annotations

import csv
import io
import struct
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lstmvid import _native
from lstmvid.training.config import RunConfig
from lstmvid.training.run import train


def run(folder: Path, digits: Path, backend: str, model: dict, trainer: dict) -> list[dict[str, float]]:
    """The logs of a short run."""
    settings = {
        "output": str(folder / backend),
        "seed": 5,
        "model": {"hidden_size": 24, "num_layers": 2, "backend": backend} | model,
        "data": {"digits": str(digits), "validation_fraction": 0.25, "validation_sequences": 4, "batch_size": 4}
        | {"input_frames": 3, "target_frames": 3, "frame_size": 32},
        "optimizer": {"warmup_steps": 1},
        "trainer": {"max_steps": 4, "validation_interval": 2, "log_interval": 1, "accelerator": "cpu"} | trainer,
    }
    train(RunConfig.from_dict(settings), console=Console(file=io.StringIO()))
    with (folder / backend / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("model", "trainer", "tolerance"),
    [
        ({"predict": "unconditional"}, {}, 1e-4),
        ({"predict": "conditional"}, {"feedback": 0.5}, 1e-4),
        ({"predict": "unconditional"}, {"precision": "bf16-mixed"}, 2e-2),
    ],
    ids=["decoders side by side", "scheduled sampling", "bf16-mixed"],
)
def test_a_run_is_the_reference_s(model, trainer, tolerance, tmp_path, monkeypatch):
    launched, launch = [], _native.lstm_sequence_cuda
    monkeypatch.setattr(_native, "lstm_sequence_cuda", lambda *of, **named: launched.append(of) or launch(*of, **named))
    digits = tmp_path / "train-images-idx3-ubyte"
    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8).numpy().tobytes()
    digits.write_bytes(struct.pack(">4i", 0x803, 20, 28, 28) + images)
    ours, expected = (run(tmp_path, digits, backend, model, trainer) for backend in ("cuda", "reference"))
    assert {direction for (direction,) in launched} == {"fwd", "bwd"}
    assert len(ours) == len(expected) > 4
    for row, other in zip(ours, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if "second" not in name:  # how long it took
                assert value == pytest.approx(other[name], rel=tolerance), name
