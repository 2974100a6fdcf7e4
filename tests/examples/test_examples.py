"""The programs in examples/: with and without the one line they train to the same losses, step by step."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lstmvid

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_training(plain: list[float], accelerated: list[float], steps: int, *, rtol: float = 1e-5) -> None:
    assert len(plain) == len(accelerated) == steps
    assert accelerated == pytest.approx(plain, rel=rtol)
    assert min(plain[-3:]) < 0.98 * plain[0]  # it learns


@pytest.fixture
def one_thread(restored_threads):
    torch.set_num_threads(1)


def test_word_language_model(one_thread):
    """With dropout between the layers: its draws are torch.nn.LSTM's."""
    example = load("word_language_model")
    runs = []
    for swap in ([], ["--accelerate"]):
        arguments = example.parse([*swap, "--hidden", "64", "--dropout", "0.2"])
        model, text = example.build(arguments)
        assert (type(model.lstm) is lstmvid.LSTM) == bool(swap)
        runs.append(list(example.losses(model, text, steps=30)))
    assert_same_training(*runs, 30)


def test_forecasting():
    pytest.importorskip("darts", reason="darts is not installed: it is no dependency of the tests, being large")
    example = load("forecasting")
    series = example.read_series()[:500]
    (plain, expected), (swapped, actual) = (example.train(series, accelerate=swap) for swap in (False, True))
    assert (type(plain.model.rnn), type(swapped.model.rnn)) == (torch.nn.LSTM, lstmvid.LSTM)
    assert len(expected) > 5
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "package"), [("lightning_trainer", "pytorch_lightning"), ("hugging_face_trainer", "transformers")]
)
def test_trainers(name, package, one_thread):
    pytest.importorskip(package, reason=f"{package} is not installed")
    example = load(name)
    plain, accelerated = (example.train(accelerate=swap, steps=10) for swap in (False, True))
    assert_same_training(plain, accelerated, 10, rtol=1e-4)


DRIVER = """
import importlib.util, json, sys
import torch.distributed as dist
spec = importlib.util.spec_from_file_location("ddp", sys.argv[1])
ddp = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ddp)
dist.init_process_group("gloo")
losses = [ddp.train(accelerate=swap, steps=15) for swap in (False, True)]
if dist.get_rank() == 0:
    print(json.dumps(losses))
dist.destroy_process_group()
"""


def test_ddp(tmp_path):
    """Two processes, gradients averaged by gloo."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(driver)]
    result = subprocess.run(
        [*command, str(EXAMPLES / "ddp.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same_training(*json.loads(result.stdout.splitlines()[-1]), 15, rtol=1e-4)
