"""`lstmvid features` and `lstmvid report` as a user types them, on models of all kinds of data."""

from __future__ import annotations

import base64
import os
import re
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lstmvid
from lstmvid.cli import main
from lstmvid.training.checkpoint import save_model
from lstmvid.training.config import DataConfig

UNITS = 5


@pytest.fixture
def moving_mnist(tmp_path) -> dict:
    """Settings of small Moving MNIST on digits of its own."""
    blobs = torch.zeros(8, 28, 28, dtype=torch.uint8)
    for number, blob in enumerate(blobs):
        blob[4 + number : 20, 6 : 14 + number] = 255 - number
    digits = tmp_path / "train-images-idx3-ubyte"
    digits.write_bytes(struct.pack(">4i", 0x803, 8, 28, 28) + blobs.numpy().tobytes())
    settings = DataConfig(digits=str(digits), validation_fraction=0.5, input_frames=3, target_frames=2, frame_size=32)
    return asdict(settings) | {"seed": 3}


def frames(tmp_path, shape: tuple[int, ...]) -> dict:
    """Settings of sequences in a NumPy file."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, *shape)).astype(np.float32))
    settings = DataConfig(
        source="frames", path=str(tmp_path / "x.npy"), validation_fraction=0.3, input_frames=3, target_frames=2
    )
    return asdict(settings) | {"seed": 3}


def report(tmp_path, model, data, *arguments: str) -> str:
    path = tmp_path / "run" / "model.safetensors"
    save_model(model, path, data=data)
    assert main(["report", str(path.parent), "--sequences", "3", "--steps", "23", "--examples", "2", *arguments]) == 0
    assert sorted(os.listdir(path.parent)) == ["model.safetensors", "report.html"]
    html = (path.parent / "report.html").read_text()
    assert not re.search(r"https?:", html)
    return html


def pictures(html: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", html)


def sections(html: str) -> dict[str, str]:
    parts = re.split(r"<h2[^>]*>(.*?)</h2>", html)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_moving_mnist(moving_mnist, tmp_path, capsys):
    model = lstmvid.FusedComposite((1, 32, 32), UNITS, 2)
    html = report(tmp_path, model, moving_mnist, "--pictures", str(tmp_path / "pictures"), "--features", "4")
    folder = tmp_path / "pictures"
    assert sorted(os.listdir(folder)) == sorted(
        [
            *(f"sequence_{number}.{kind}" for number in (1, 2) for kind in ("png", "gif")),
            *("rollout.png", "rollout.gif", "digits_1.png", "digits_3.png", "traces_layer_1.png", "traces_layer_2.png"),
            *(f"input_features_{part}.png" for part in ("input", "input_gate", "forget_gate", "output_gate")),
            *("output_features_reconstruction.png", "output_features_prediction.png"),
        ]
    )
    assert len(pictures(html)) == len(os.listdir(folder))
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "run" / "report.html"),
        *(str(folder / name) for name in _in_order(html, folder)),
    ]
    assert Image.open(folder / "rollout.gif").n_frames == 23
    # Four features in one row, magnified twice.
    assert Image.open(folder / "input_features_input.png").height == 2 * 12 + 64
    found = sections(html)
    assert list(found) == [
        *("Settings", "Training", "Figures", "Predictions", "Long roll-out", "Other numbers of digits"),
        *("Hidden units over time", "Features"),
    ]
    assert "<td>hidden_size</td><td>5</td>" in found["Settings"]
    assert "There is no log" in found["Training"]
    assert "floor: mean image" in found["Figures"]
    assert "2 (as in training)" in found["Other numbers of digits"]
    assert "5 random units of the predictor&#x27;s layer 2 of 2 over 23 steps" in found["Hidden units over time"]


def _in_order(html: str, folder: Path) -> list[str]:
    """The pictures' names in the order of the page, found by their content."""
    contents = {base64.b64encode((folder / name).read_bytes()).decode(): name for name in os.listdir(folder)}
    return [contents[data] for data in re.findall(r'base64,([^"]+)"', html)]


def test_the_training_log_of_the_run(moving_mnist, tmp_path):
    folder = tmp_path / "run"
    save_model(
        lstmvid.FusedComposite((1, 32, 32), 3, 1, reconstruct=None), folder / "model.safetensors", data=moving_mnist
    )
    (folder / "metrics.csv").write_text(
        "step,learning_rate,train/loss,train/reconstruction,train/prediction,validation/prediction\n"
        "1,0.1,5,,5,\n2,0.1,4,,4,4.5\n"
    )
    (folder / "config.yaml").write_text("optimizer: {preset: original}\ntrainer: {max_steps: 1234}\n")
    for checkpoint in (folder, folder / "model.safetensors"):
        arguments = ["report", str(checkpoint), "--sequences", "2", "--steps", "3", "--examples", "1"]
        assert main([*arguments, "--output", str(tmp_path / "out" / "r.html")]) == 0
        found = sections((tmp_path / "out" / "r.html").read_text())
        assert len(pictures(found["Training"])) == 1
        assert len(pictures(found["Features"])) == 5  # no reconstruction decoder
        assert "<td>method</td><td>sgd</td>" in found["Settings"]
        assert "<td>max_steps</td><td>1234</td>" in found["Settings"]


def test_grids_with_other_than_one_or_three_channels(tmp_path):
    model = lstmvid.FusedComposite((2, 12, 14), UNITS, 1, likelihood="gaussian")
    found = sections(report(tmp_path, model, frames(tmp_path, (2, 12, 14))))
    assert "not Moving MNIST" in found["Other numbers of digits"]
    assert "RMSE" in found["Figures"]
    assert [len(pictures(found[name])) for name in ("Predictions", "Long roll-out", "Features")] == [4, 2, 6]


def test_colours(tmp_path):
    model = lstmvid.FusedComposite((3, 12, 14), UNITS, 1, likelihood="gaussian", copy_state=["predict"])
    found = sections(report(tmp_path, model, frames(tmp_path, (3, 12, 14))))
    assert [len(pictures(found[name])) for name in ("Predictions", "Long roll-out", "Features")] == [4, 2, 6]


def test_vectors_have_figures_curves_and_traces_only(tmp_path):
    model = lstmvid.FusedComposite((7,), UNITS, 1, likelihood="gaussian")
    found = sections(report(tmp_path, model, frames(tmp_path, (7,))))
    assert "no images: there is nothing to draw" in found["Long roll-out"]
    assert "no images: their features can&#x27;t be drawn" in found["Features"]
    assert [len(pictures(found[name])) for name in ("Predictions", "Long roll-out", "Features")] == [2, 0, 0]
    assert len(pictures(found["Hidden units over time"])) == 1
    assert "reconstruction" in found["Figures"]


def test_without_a_predictor(moving_mnist, tmp_path):
    model = lstmvid.FusedComposite((1, 32, 32), 3, 1, predict=None)
    found = sections(report(tmp_path, model, moving_mnist))
    for name in ("Long roll-out", "Hidden units over time"):
        assert "The model has no predictor." in found[name]
    assert len(pictures(found["Features"])) == 5
    assert "The reconstruction on 3 new sequences" in found["Other numbers of digits"]


def fails(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_report_refuses(moving_mnist, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    save_model(lstmvid.SequenceClassifier(4, 2, 1, 2), path)
    assert "holds a SequenceClassifier, expected a FusedComposite" in fails(capsys, "report", path)
    assert "expected a FusedComposite" in fails(capsys, "evaluate", path)
    save_model(lstmvid.FusedComposite((1, 32, 32), 2, 1), path, data=moving_mnist)
    assert "r.pdf, expected a file name that ends in .html" in fails(capsys, "report", path, "--output", "r.pdf")
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "train-images-idx3-ubyte"]
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "m.safetensors").rename(tmp_path / "model.safetensors")
    assert "config.yaml is not the settings of a run, or is damaged" in fails(capsys, "report", tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_features_need_no_data(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    save_model(lstmvid.FusedComposite((1, 8, 6), UNITS, 1, predict=None), path)
    assert main(["features", str(path), "--count", "4", "--columns", "2"]) == 0
    parts = [f"input_features_{part}" for part in ("input", "input_gate", "forget_gate", "output_gate")]
    expected = [tmp_path / "features" / f"{part}.png" for part in (*parts, "output_features_reconstruction")]
    assert capsys.readouterr().out.split() == [str(name) for name in expected]
    for name in expected:
        assert Image.open(name).size == (2 * 12 + 2 * 36 + 2, 2 * 12 + 2 * 48 + 2)


def test_features_of_vectors_and_classifiers(tmp_path, capsys):
    path, output = tmp_path / "m.safetensors", tmp_path / "out"
    for model, count in ((lstmvid.FusedComposite(12, 3, 1), 6), (lstmvid.SequenceClassifier(12, 3, 1, 2), 4)):
        save_model(model, path)
        assert "takes vectors of 12 values: where they are images, give --frame-shape" in fails(
            capsys, "features", path, "--output", output
        )
        assert "has 12 values a frame" in fails(capsys, "features", path, "--frame-shape", "1,3,3", "--output", output)
        assert not output.exists()
        assert main(["features", str(path), "--frame-shape", "3,2,2", "--output", str(output)]) == 0
        assert len(os.listdir(output)) == count
        for file in output.iterdir():
            file.unlink()
        output.rmdir()
