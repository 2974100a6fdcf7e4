"""`lstmvid train` on several processes: the losses of one process with all of their batches, however it is done."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from lstmvid.data import MovingMNIST
from lstmvid.training.checkpoint import load_model, read_checkpoint
from lstmvid.training.config import RunConfig
from lstmvid.training.run import train
from lstmvid.training.sharding import is_first_process

COMMAND = str(Path(sys.executable).with_name("lstmvid"))


def metrics(folder: str | Path) -> list[dict[str, float]]:
    with Path(folder, "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def same(actual: list[dict], expected: list[dict]) -> None:
    assert [list(row) for row in actual] == [list(row) for row in expected]
    for a, b in zip(actual, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.fixture
def launch(tmp_path):
    """Runs the command on two processes, and says what it said if it failed."""

    def launch(settings: dict, *launcher: str, resume: bool = False) -> Path:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = [*(launcher or (sys.executable,)), COMMAND, "train", "--config", str(config)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [*command, *(["--resume"] * resume)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return Path(settings["output"])

    return launch


@pytest.fixture
def two(settings, tmp_path) -> dict:
    """Two processes with batches of 2; nothing that a rank draws for itself."""
    settings["output"] = str(tmp_path / "two")
    settings["model"]["dropout"] = 0.0
    settings["data"]["validation_sequences"] = 4
    settings["trainer"] |= {"feedback": 0.0, "devices": 2, "max_steps": 4, "validation_interval": 2}
    return settings


@pytest.fixture
def one(two, tmp_path, monkeypatch) -> Path:
    """The run of one process with batches of 4, made of the batches that the two ranks take."""
    original = MovingMNIST.batch

    def batch(self, index: int, size: int):
        assert size == 4
        return torch.cat([original(self, 2 * index + rank, 2) for rank in range(2)], dim=1)

    monkeypatch.setattr(MovingMNIST, "batch", batch)
    settings = {name: dict(value) if isinstance(value, dict) else value for name, value in two.items()}
    settings["output"] = str(tmp_path / "one")
    settings["data"]["batch_size"] = 4
    settings["trainer"]["devices"] = 1
    train(RunConfig.from_dict(settings), console=Console(file=io.StringIO()))
    return Path(settings["output"])


@pytest.mark.parametrize("strategy", ["auto", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_are_one_with_the_doubled_batch(launch, two, one, strategy):
    two["trainer"]["strategy"] = strategy
    folder = launch(two)
    same(metrics(folder), metrics(one))
    # Every weight, too; the model file is whole and tells nothing of how it was trained.
    ours, theirs = (load_model(path)[0].state_dict() for path in (folder, one))
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_resume_exactly(launch, two, strategy, tmp_path):
    two["trainer"] |= {"strategy": strategy, "max_steps": 4}
    two["optimizer"] = {"preset": "original_rmsprop"}  # whose schedule doesn't depend on the run's length
    folder = launch(two)
    two["trainer"]["max_steps"] = 6
    launch(two, resume=True)
    two["output"] = str(tmp_path / "straight")
    straight = launch(two)
    assert metrics(folder) == metrics(straight)
    ours, theirs = (read_checkpoint(path / "last.ckpt")["state_dict"] for path in (folder, straight))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.slow
def test_torchrun(launch, two, one):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    same(metrics(launch(two, *torchrun)), metrics(one))


@pytest.mark.parametrize(
    ("rank", "variables", "first"),
    [(0, {}, True), (1, {}, False), (0, {"NODE_RANK": "0"}, True), (0, {"NODE_RANK": "1"}, False)],
)
def test_who_is_first(monkeypatch, rank, variables, first):
    monkeypatch.setattr("lstmvid.training.sharding.rank_zero_only.rank", rank)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_every_process_needs_something_to_validate(settings):
    settings["trainer"]["devices"] = 4
    with pytest.raises(ValueError, match=r"data\.validation_sequences is 5, 3 batches of 2, expected .* 4 processes"):
        train(RunConfig.from_dict(settings))
    assert not Path(settings["output"]).exists()


def test_a_run_begun_before_there_were_strategies(settings, monkeypatch):
    """Its checkpoint doesn't know of the setting: it has the default."""
    config = RunConfig.from_dict(settings)
    train(config, console=Console(file=io.StringIO()))
    checkpoint = read_checkpoint(Path(config.output) / "last.ckpt")
    for name in ("strategy", "nodes"):
        del checkpoint["lstmvid"]["run"]["trainer"][name]
    torch.save(checkpoint, Path(config.output) / "last.ckpt")
    config.trainer.max_steps += 1
    train(config, resume=True, console=Console(file=io.StringIO()))
    assert read_checkpoint(Path(config.output) / "last.ckpt")["global_step"] == config.trainer.max_steps
