"""Whole runs, tiny: resumption, interruption, and what is left behind when something is wrong."""

from __future__ import annotations

import copy
import csv
import io
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import lstmvid
from lstmvid.data import MovingMNIST
from lstmvid.training.checkpoint import load_model, read_checkpoint
from lstmvid.training.config import RunConfig
from lstmvid.training.data import VALIDATION, FixedBatches, sequences
from lstmvid.training.module import CompositeTraining
from lstmvid.training.run import train


def run(settings: dict, **options) -> Path:
    train(RunConfig.from_dict(settings), console=Console(file=io.StringIO()), **options)
    return Path(settings["output"])


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, other: Path) -> None:
    """The same numbers in every log entry and every weight, to the last bit."""
    assert metrics(one) == metrics(other)
    first, second = read_checkpoint(one / "last.ckpt"), read_checkpoint(other / "last.ckpt")
    assert first["global_step"] == second["global_step"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.fixture
def interrupt_at(monkeypatch):
    """Makes Ctrl-C happen while batch `index` is made."""

    def arrange(index: int) -> None:
        original = MovingMNIST.batch

        def batch(self, which: int, size: int):
            if self.seed % 3 == 0 and which == index:
                monkeypatch.setattr(MovingMNIST, "batch", original)
                signal.raise_signal(signal.SIGINT)
            return original(self, which, size)

        monkeypatch.setattr(MovingMNIST, "batch", batch)

    return arrange


def elsewhere(settings: dict, name: str) -> dict:
    changed = copy.deepcopy(settings)
    changed["output"] = str(Path(settings["output"]).with_name(name))
    return changed


def test_run_folder(settings):
    folder = run(settings)
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "last.ckpt",
        "metrics.csv",
        "model.safetensors",
        "pictures",
        "tensorboard",
    }
    assert sorted(os.listdir(folder / "pictures")) == [f"step_{step:07d}.png" for step in (3, 6, 8)]
    assert RunConfig.from_dict(yaml.safe_load((folder / "config.yaml").read_text())) == RunConfig.from_dict(settings)
    rows = metrics(folder)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(1, 9))
    validated = {int(row["step"]): float(row["validation/prediction"]) for row in rows if row["validation/prediction"]}
    assert list(validated) == [3, 6, 8]

    # The model file is the best of the validated ones, and reproduces its loss.
    model, data = load_model(folder)
    assert data["digits"] == settings["data"]["digits"]
    config = RunConfig.from_dict(settings)
    module = CompositeTraining(config)
    module.model.load_state_dict(model.state_dict())
    batches = FixedBatches(sequences(config.data, config.seed, VALIDATION), 5, 2)
    module.eval()
    with torch.no_grad():
        total = sum(
            batch.shape[1] * module(batch, 1.0).prediction_loss.item() for batch in map(batches.__getitem__, range(3))
        )
    assert total / 5 == pytest.approx(min(validated.values()), rel=1e-6)


# Batches are made one step ahead; steps 3 and 6 are validated.
@pytest.mark.parametrize("index", [1, 3, 4, 5, 6])
def test_interrupted_run_continues_exactly(settings, interrupt_at, index):
    straight = run(elsewhere(settings, "straight"))
    interrupt_at(index)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    folder = Path(settings["output"])
    assert 0 < read_checkpoint(folder / "last.ckpt")["global_step"] < 8
    assert_same_run(run(settings, resume=True), straight)


def test_longer_run_continues_exactly(settings):
    """N steps and N more are 2N steps, where the learning rate does not depend on the length."""
    settings["optimizer"] = {"preset": "original_rmsprop"}
    settings["trainer"] |= {"max_steps": 6, "feedback": 0.0}
    straight = elsewhere(settings, "straight")
    straight["trainer"]["max_steps"] = 12
    run(settings)
    settings["trainer"]["max_steps"] = 12
    assert_same_run(run(settings, resume=True), run(straight))


def test_finished_run_can_be_resumed_without_harm(settings):
    folder = run(settings)
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    run(settings, resume=True)
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


def test_time_limit_stops_the_run_and_is_validated(settings):
    settings["trainer"] |= {"max_minutes": 1e-6, "validation_interval": 8}
    folder = run(settings)
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 1
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("missing", ["predict", "reconstruct"])
def test_a_decoder_may_be_missing(settings, missing):
    settings["model"][missing] = None
    rows = metrics(run(settings))
    column = {"predict": "prediction", "reconstruct": "reconstruction"}[missing]
    assert all(row[f"validation/{column}"] == "" for row in rows)
    assert all(float(row["train/loss"]) > 0 for row in rows if row["train/loss"])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precisions(settings, precision):
    settings["trainer"] |= {"precision": precision, "max_steps": 2, "validation_interval": 2}
    model, _ = load_model(run(settings))
    expected = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert next(model.parameters()).dtype == expected


def test_summed_gradients(settings):
    """The loss that the original presets descend is the sum over frames and batch, the logged one the mean."""
    settings["optimizer"] = {"preset": "original"}
    settings["model"]["dropout"] = 0.0
    config = RunConfig.from_dict(settings)
    module = CompositeTraining(config)
    module._trainer = type("Trainer", (), {"world_size": 2, "global_step": 0})()
    module.log_dict = module.log = lambda *_, **__: None
    module.optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1.0)
    frames = torch.randint(0, 256, (5, 4, 1, 32, 32), dtype=torch.uint8)
    out = module(frames, 0.0)
    expected = 2 * 4 * (3 * out.reconstruction_loss + 2 * out.prediction_loss)
    torch.testing.assert_close(module.training_step(frames, 0), expected)


def test_old_run_is_not_overwritten(settings):
    folder = run(settings)
    before = (folder / "last.ckpt").read_bytes()
    with pytest.raises(
        FileExistsError, match="already holds a run: pass --resume to go on with it, or another --output"
    ):
        run(settings)
    assert (folder / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("section", "name", "value"), [("model", "hidden_size", 7), ("data", "batch_size", 3), ("trainer", "devices", 2)]
)
def test_resuming_another_run_is_refused(settings, section, name, value):
    run(settings)
    settings[section][name] = value
    with pytest.raises(
        ValueError, match=rf"last\.ckpt can't be resumed with {section}\.{name} {value}: the run has \d"
    ):
        run(settings, resume=True)


def test_a_run_from_before_there_were_other_data_sets_can_be_resumed(settings):
    folder = run(settings)
    path = folder / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for data in (checkpoint["lstmvid"]["run"]["data"], checkpoint["lstmvid"]["description"]["data"]):
        for name in ("source", "path", "options"):
            del data[name]
    torch.save(checkpoint, path)
    settings["trainer"]["max_steps"] = 9
    run(settings, resume=True)
    assert read_checkpoint(path)["global_step"] == 9


def test_damaged_checkpoint_is_named(settings):
    folder = run(settings)
    path = folder / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint, or is damaged"):
        run(settings, resume=True)
    assert path.stat().st_size == 1000


@pytest.mark.parametrize(
    ("section", "changes", "error", "message"),
    [
        ("data", {"digits": "nowhere"}, FileNotFoundError, "no digit file nowhere"),
        ("model", {"backend": "cuda"}, lstmvid.BackendUnavailable, "backend 'cuda' can't run"),
        ("model", {"copy_state": ["predict"], "predict": None}, ValueError, "copy_state names 'predict'"),
        ("optimizer", {"learning_rate": 3e38}, FloatingPointError, "loss is (nan|inf) at step"),
    ],
)
def test_nothing_is_left_behind(settings, section, changes, error, message):
    settings[section] |= changes
    settings["trainer"]["validation_interval"] = 8
    with pytest.raises(error, match=message):
        run(settings)
    assert not Path(settings["output"]).exists()


def test_no_gpu(settings):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    settings["trainer"]["accelerator"] = "gpu"
    with pytest.raises(ValueError, match=r"trainer\.accelerator gpu, devices 1, .* don't go together here"):
        run(settings)
    assert not Path(settings["output"]).exists()
