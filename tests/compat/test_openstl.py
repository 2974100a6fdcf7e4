"""The composite as a method of OpenSTL's runner: against the real one where it is installed, else a stand-in.

OpenSTL is on no package index; the stand-in has its documented interface (openstl_stand_in.py).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from lstmvid.compat import openstl
from lstmvid.nn import FusedComposite

SETTINGS = {"dataname": "mmnist", "in_shape": [10, 1, 64, 64], "aft_seq_length": 10}


def load(path: Path):
    """A module from a file outside of any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runner(monkeypatch):
    if importlib.util.find_spec("openstl") is None:
        load(Path(__file__).with_name("openstl_stand_in.py")).install(monkeypatch)


def test_settings():
    assert openstl.composite_arguments(SETTINGS) == {
        "frame_shape": (1, 64, 64),
        "hidden_size": 2048,
        "num_layers": 2,
        "predict": "unconditional",
        "likelihood": "bernoulli",
        "batch_first": True,
    }
    other = {"dataname": "taxibj", "in_shape": (4, 2, 32, 32), "num_hidden": "64", "dropout": 0.1, "opt": "adam"}
    arguments = openstl.composite_arguments(other)
    assert (arguments["hidden_size"], arguments["num_layers"], arguments["likelihood"]) == (64, 1, "gaussian")
    assert arguments["dropout"] == 0.1
    FusedComposite(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden": "64,128"}, "num_hidden must be layers of one size"),
        ({"in_shape": [10, 64, 64]}, "in_shape must be"),
    ],
)
def test_wrong_settings(change, words):
    with pytest.raises(ValueError, match=words):
        openstl.composite_arguments(SETTINGS | change)


def test_method(runner, tmp_path):
    """Shapes, losses and what the network may see, in the runner's own terms."""
    method = openstl.register()(
        **SETTINGS, num_hidden="16", lr=0.01, test_mean=0, test_std=1, save_dir=str(tmp_path), metrics=["mse"]
    )
    frames, future = torch.rand(3, 10, 1, 64, 64), torch.rand(3, 10, 1, 64, 64)
    prediction = method(frames, future)
    assert prediction.shape == future.shape
    assert torch.equal(prediction, method(frames))  # the truth is not looked at
    method.log = lambda *_, **__: None
    loss = method.training_step((frames, future), 0)
    torch.testing.assert_close(loss, method.model(frames, future).loss)
    loss.backward()
    assert all(p.grad is not None for p in method.model.parameters())


def test_a_name_that_is_taken(runner):
    openstl.register("another")
    with pytest.raises(ValueError, match="has a method 'another' already"):
        openstl.register("another")


@pytest.mark.skipif(importlib.util.find_spec("openstl") is not None, reason="OpenSTL is installed")
def test_without_openstl():
    with pytest.raises(ModuleNotFoundError, match="openstl"):
        openstl.register()


def test_example(runner, tmp_path, monkeypatch):
    """Training, test and scores by the runner: the model leaves the grey frames behind with which it began."""
    monkeypatch.chdir(tmp_path)
    experiment = load(Path(__file__).parents[2] / "examples" / "openstl_benchmark.py").main(epochs=3, sequences=48)
    targets = torch.cat([batch_y for _, batch_y in experiment.data.test_dataloader()])
    assert targets.shape == (24, 10, 1, 64, 64)
    grey = (targets - 0.5).square().sum((2, 3, 4)).mean().item()
    assert 0 < experiment.method.scores["mse"] < 0.8 * grey
