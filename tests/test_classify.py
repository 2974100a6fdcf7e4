"""``lstmvid classify`` as a user types it: training and test, fusing of streams, means over splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import lstmvid
from lstmvid.cli import main
from lstmvid.data import PerceptsWriter
from lstmvid.evaluation.recognition import Scores
from lstmvid.training.checkpoint import save_model

SIZE = 3


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """A config beside the percepts of eight videos of two classes, and their UCF-101 split files."""
    folder = tmp_path_factory.mktemp("classify")
    generator = torch.Generator().manual_seed(0)
    names = [f"{name}/v_{name}_g{number:02d}" for name in ("Archery", "Bowling") for number in range(1, 5)]
    with PerceptsWriter(folder / "rgb.h5", SIZE) as writer:
        for name in names:
            noise = 0.1 * torch.randn(6, SIZE, generator=generator)
            writer.append(name, noise + (1.0 if name[0] == "A" else -1.0))
    (folder / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    for split, test in ((1, "1"), (2, "2")):
        parts = {"train": [n for n in names if n[-1] != test], "test": [n for n in names if n[-1] == test]}
        for part, members in parts.items():
            (folder / f"{part}list0{split}.txt").write_text("".join(f"{name}.avi\n" for name in members))
    settings = {
        "model": {"hidden_size": 4, "num_layers": 1, "backend": "reference"},
        "data": {
            **{"percepts": str(folder / "rgb.h5"), "layout": "ucf101", "splits": str(folder)},
            **{"frames": 4, "test_stride": 2, "batch_size": 4, "validation_fraction": 0.3},
        },
        "optimizer": {"learning_rate": 0.05, "warmup_steps": 1},
        "trainer": {"max_steps": 20, "validation_interval": 10, "accelerator": "cpu"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def runs(config_file) -> list[Path]:
    """Both splits."""
    folders = [config_file.parent / f"split{number}" for number in (1, 2)]
    for number, folder in enumerate(folders, start=1):
        arguments = ["--config", str(config_file), "--output", str(folder), "--data.split", str(number)]
        assert main(["classify", *arguments]) == 0
    return folders


def test_train_and_test(runs):
    for number, folder in enumerate(runs, start=1):
        results = json.loads((folder / "results.json").read_text())
        assert results["accuracy"] == 1.0
        assert results["settings"]["data"]["split"] == number
        scores = Scores.load(folder / "scores.npz")
        assert scores.names == tuple(f"{name}/v_{name}_g0{number}" for name in ("Archery", "Bowling"))
        assert scores.classes == ("Archery", "Bowling")


def test_a_finished_run_is_tested_again(runs, capsys):
    (runs[0] / "scores.npz").unlink()
    assert main(["classify", "--output", str(runs[0]), "--resume"]) == 0
    assert "accuracy 100.00% of 2 test videos" in capsys.readouterr().out
    assert (runs[0] / "scores.npz").exists()


def test_pretrained_encoder(config_file, tmp_path, capsys):
    composite = lstmvid.FusedComposite(SIZE, 5, likelihood="gaussian")
    save_model(composite, tmp_path / "composite.safetensors")
    changes = ["--model.encoder", str(tmp_path / "composite.safetensors"), "--model.hidden_size", "null"]
    arguments = ["--config", str(config_file), "--output", str(tmp_path / "run"), "--trainer.max_steps", "2"]
    assert main(["classify", *arguments, *changes, "--model.num_layers", "2"]) == 0
    assert "6 videos to train with" not in capsys.readouterr().out  # one of each class is held out


def test_fuse(runs, tmp_path, capsys):
    first = Scores.load(runs[0] / "scores.npz")
    flipped = Scores(
        names=first.names[::-1],
        probabilities=1 - first.probabilities.flip(0),
        labels=first.labels.flip(0),
        classes=first.classes,
    )
    flipped.save(tmp_path / "flow.npz")
    inputs = [str(runs[0]), str(tmp_path / "flow.npz")]
    assert main(["classify", "fuse", *inputs, "--weights", "1", "3", "--output", str(tmp_path / "fused")]) == 0
    output = capsys.readouterr().out
    assert "accuracy 100.00%" in output
    assert "accuracy 0.00% of 2 test videos" in output.replace("\n", " ")
    fused = Scores.load(tmp_path / "fused" / "scores.npz")
    torch.testing.assert_close(fused.probabilities, (first.probabilities + 3 * (1 - first.probabilities)) / 4)
    assert json.loads((tmp_path / "fused" / "results.json").read_text())["settings"]["weights"] == [1.0, 3.0]
    assert (tmp_path / "fused" / "pictures" / "confusion.png").exists()
    assert main(["classify", "fuse", *inputs, "--output", str(tmp_path / "alike")]) == 0


def test_mean(runs, tmp_path, capsys):
    wrong = Scores.load(runs[1] / "scores.npz")
    Scores(names=wrong.names, probabilities=1 - wrong.probabilities, labels=wrong.labels, classes=wrong.classes).save(
        tmp_path / "wrong.npz"
    )
    assert (
        main(["classify", "mean", str(runs[0]), str(tmp_path / "wrong.npz"), "--json", str(tmp_path / "m.json")]) == 0
    )
    assert "50.00% ± 70.71" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text())["mean"] == 0.5
    assert main(["classify", "mean", str(runs[0]), "--json", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["standard_deviation"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "data.nothing is given, expected one of data.percepts, data.videos"),
        (["--data.frames", "0"], 2, "--data.frames is 0, expected an integer of at least 1"),
        (["--model.dropouts", "0"], 2, "unrecognized arguments: --model.dropouts"),
        (["--resume"], 1, "runs/classify holds no run to resume"),
        (["fuse", "nowhere.npz", "--output", "x"], 1, "There is no file of scores nowhere.npz"),
        (["mean", "nowhere"], 1, "There is no file of scores nowhere"),
    ],
)
def test_one_sentence_for_what_is_wrong(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["classify", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_weights(runs, tmp_path, capsys):
    assert main(["classify", "fuse", str(runs[0]), "--weights", "1", "2", "--output", str(tmp_path / "x")]) == 1
    assert "there are 2 weights for 1 streams" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("action", [[], ["fuse"], ["mean"]])
def test_help(action, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["classify", *action, "--help"])
    assert stop.value.code == 0
    assert f"usage: {' '.join(['lstmvid', 'classify', *action])}" in capsys.readouterr().out
