"""Every data set from its files to pictures, as a user goes: train, resume, evaluate, predict."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import savemat

from lstmvid.cli import main
from lstmvid.data.percepts import PerceptsWriter
from lstmvid.data.registry import SOURCES
from lstmvid.testing import write_video
from lstmvid.training.checkpoint import load_model, read_checkpoint

RNG = np.random.default_rng(0)
NO_VIDEO = "PyAV is missing: pip install 'lstmvid[video]'"


def taxibj(folder: Path) -> dict:
    sizes = {"X_train": 10, "Y_train": 10, "X_test": 3, "Y_test": 3}
    np.savez(folder / "dataset.npz", **{name: RNG.uniform(-1, 1, (n, 4, 2, 32, 32)) for name, n in sizes.items()})
    return {"input_frames": 4, "target_frames": 4}


def frames(folder: Path) -> dict:
    np.save(folder / "features.npy", RNG.normal(0, 3, (60, 7)).astype(np.float32))
    return {"input_frames": 3, "target_frames": 2, "options": {"stride": 2}, "likelihood": "gaussian"}


def weatherbench(folder: Path) -> dict:
    for year in (2010, 2016, 2017):
        with h5py.File(folder / f"2m_temperature_{year}_5.625deg.nc", "w") as file:
            file["time"] = np.arange(30)
            file["time"].attrs["units"] = f"hours since {year}-01-01 00:00:0.0"
            file["t2m"] = RNG.normal(280, 20, (30, 12, 24)).astype(np.float32)
            file["t2m"].attrs["units"] = "K"
    return {"input_frames": 6, "target_frames": 6, "options": {"stride": 3}, "likelihood": "gaussian"}


def kth(folder: Path) -> dict:
    pytest.importorskip("av", reason=NO_VIDEO)
    for action in ("boxing", "handclapping", "handwaving", "jogging", "running", "walking"):
        for person in (1, 2, 17):
            write_video(folder / action / f"person{person:02}_{action}_d1_uncomp.avi", 9, size=(24, 32))
    return {"input_frames": 3, "target_frames": 4, "options": {"size": 16}, "validation_fraction": 0.5}


def human36m(folder: Path) -> dict:
    (folder / "images").mkdir()
    for recording in ("S1_Walking.1_", "S1_Sitting.2_", "S11_Eating.3_"):
        for number in range(20):
            pixels = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{recording}{number:06}.jpg")
    (folder / "train.txt").write_text("images/S1_Walking.1_,0\nimages/S1_Sitting.2_,1\n")
    (folder / "test.txt").write_text("images/S11_Eating.3_,0\nimages/S11_Eating.3_,3\n")
    return {"input_frames": 2, "target_frames": 2, "options": {"size": 12}}


def avenue(folder: Path) -> dict:
    pytest.importorskip("av", reason=NO_VIDEO)
    for number in (1, 2, 3):
        write_video(folder / "training_videos" / f"{number:02}.avi", 9)
    for number in (1, 2):
        write_video(folder / "testing_videos" / f"{number:02}.avi", 12)
        masks = np.empty((1, 12), dtype=object)
        masks[0, :] = [np.full((2, 2), frame in (7, 8), dtype=np.uint8) for frame in range(12)]
        (folder / "testing_label_mask").mkdir(exist_ok=True)
        savemat(folder / "testing_label_mask" / f"{number}_label.mat", {"volLabel": masks})
    return {"input_frames": 3, "target_frames": 2, "options": {"size": 12, "stride": 2}}


def video(folder: Path) -> dict:
    pytest.importorskip("av", reason=NO_VIDEO)
    for number in range(5):
        write_video(folder / f"{number}.mp4", 20 + number, codec="libx264")
    (folder / "broken.avi").write_bytes(b"no video")
    options = {"size": 12, "short_side": 24, "training_clips": 9, "hold_out": "time"}
    return {"input_frames": 2, "target_frames": 2, "options": options, "likelihood": "gaussian"}


def percepts(folder: Path) -> dict:
    folder.rmdir()  # the data are a file of that name
    with PerceptsWriter(folder, 6) as writer:
        for number in range(6):
            writer.append(f"class/{number}", np.abs(RNG.normal(size=(9 + number, 6))).astype(np.float32), number % 2)
    return {"input_frames": 3, "target_frames": 2, "options": {"test_stride": 3}, "likelihood": "rectified"}


FILES: dict[str, Callable[[Path], dict]] = {
    "avenue": avenue,
    "frames": frames,
    "human36m": human36m,
    "kth": kth,
    "percepts": percepts,
    "taxibj": taxibj,
    "video": video,
    "weatherbench": weatherbench,
}


def test_every_source_is_here():
    assert set(FILES) == set(SOURCES)


@pytest.fixture(params=FILES, scope="module")
def config_file(request, tmp_path_factory) -> Path:
    """A config beside the files that it names."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data").mkdir()
    own = FILES[request.param](folder / "data")
    settings = {
        "output": str(folder / "run"),
        "model": {"hidden_size": 5, "num_layers": 1, "likelihood": own.pop("likelihood", "bernoulli")},
        "data": {
            "source": request.param,
            "path": str(folder / "data"),
            "validation_fraction": 0.25,
            "validation_sequences": 3,
            "batch_size": 2,
        }
        | own,
        "trainer": {"max_steps": 4, "validation_interval": 2, "log_interval": 1, "accelerator": "cpu"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def run_folder(config_file) -> Path:
    assert main(["train", "--config", str(config_file)]) == 0
    return config_file.with_name("run")


def test_resumed_run_is_the_same(config_file, run_folder, capsys):
    half, settings = config_file.with_name("half"), yaml.safe_load(config_file.read_text())
    arguments = ["train", "--config", str(config_file), "--output", str(half), "--optimizer.warmup_steps", "9"]
    assert main([*arguments, "--trainer.max_steps", "2"]) == 0
    assert main([*arguments, "--resume"]) == 0
    straight = config_file.with_name("straight")
    assert main([*arguments[:3], "--output", str(straight), *arguments[5:]]) == 0
    first, second = (read_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (half, straight))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    if settings["data"].get("options"):
        assert main([*arguments, "--resume", "--data.options", "{}"]) == 1
        assert "can't be resumed with data.options." in capsys.readouterr().err


def test_evaluate_and_predict(config_file, run_folder, tmp_path, capsys):
    settings = yaml.safe_load(config_file.read_text())
    target_frames = settings["data"]["target_frames"]
    scores_file = tmp_path / "scores.json"
    assert main(["evaluate", str(run_folder), "--json", str(scores_file), "--batch-size", "2"]) == 0
    scores = json.loads(scores_file.read_text())
    assert len(scores["prediction_per_step"]["mse"]) == target_frames
    assert {"prediction", "reconstruction", "floors", "sequences"} <= set(scores)
    assert all(np.isfinite(scores[name]["mse"]) for name in ("prediction", "reconstruction"))
    if settings["data"]["source"] == "avenue":
        found = scores["anomaly"]
        assert (found["videos"], found["frames"], found["unusual"]) == (2, 24, 4)
        assert all(0 <= found["auc"][name] <= 1 for name in ("prediction", "reconstruction", "sum"))
        assert f"{found['auc']['sum']:.3f}" in capsys.readouterr().out
    if settings["data"]["source"] == "weatherbench":
        table = capsys.readouterr().out
        assert "in K" in table
        assert f"{scores['floors']['copy_last']['rmse_per_pixel']:.1f}" in table
        assert "black" not in table

    capsys.readouterr()
    arguments = ["predict", str(run_folder), "--sequences", "2", "--output", str(tmp_path / "drawn")]
    assert main([*arguments, "--steps", str(target_frames + 1)]) == 0
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(str(tmp_path / "drawn" / name) for name in os.listdir(tmp_path / "drawn"))
    assert all(Image.open(path).width > 100 for path in written)
    images = len(load_model(run_folder)[0].frame_shape) == 3
    assert len(written) in ((2, 4) if images else (1, 2))  # of longer clips there may be one only
    assert (run_folder / "pictures").exists() == images


def test_data_that_moved(config_file, run_folder, tmp_path, capsys):
    data = config_file.with_name("data")
    moved = tmp_path / "elsewhere"
    data.rename(moved)
    try:
        for command in (["evaluate"], ["predict", "--output", str(tmp_path / "drawn")]):
            capsys.readouterr()
            assert main([command[0], str(run_folder), *command[1:]]) == 1
            error = capsys.readouterr().err
            assert "There is no " in error
            assert str(data) in error
            assert main([command[0], str(run_folder), *command[1:], "--path", str(moved)]) == 0
    finally:
        moved.rename(data)
    assert main(["evaluate", str(run_folder), "--digits", str(tmp_path)]) == 1
    assert "--digits is" in capsys.readouterr().err


def test_evaluate_gives_the_error_of_all_test_clips(config_file, run_folder, tmp_path):
    from lstmvid.training.config import RunConfig
    from lstmvid.training.data import open_streams

    config = RunConfig.from_dict(yaml.safe_load(config_file.read_text()))
    assert main(["evaluate", str(run_folder), "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    streams = open_streams(config.data, config.seed)
    clips = torch.stack([streams.test[index] for index in range(len(streams.test))], dim=1)
    assert scores["sequences"] == clips.shape[1]
    model, _ = load_model(run_folder)
    inputs, truth = clips.split([config.data.input_frames, config.data.target_frames])
    guess = model.predict(inputs, len(truth)).double()
    truth = truth.double() / (255 if clips.dtype == torch.uint8 else 1)
    error = (streams.splits.std * (guess - truth)).square().flatten(2).sum(2).mean().item()
    assert scores["prediction"]["mse"] == pytest.approx(error, rel=1e-5)
    last = inputs[-1].double() / (255 if clips.dtype == torch.uint8 else 1)
    error = (streams.splits.std * (last - truth)).square().flatten(2).mean().item()
    assert scores["floors"]["copy_last"]["mse_per_pixel"] == pytest.approx(error, rel=1e-5)


def test_bernoulli_wants_probabilities(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.full((40, 3), 2.5, dtype=np.float32))
    arguments = ["--data.source=frames", f"--data.path={tmp_path}/x.npy", f"--output={tmp_path}/run"]
    frames = ["--data.input_frames=2", "--data.target_frames=2", "--model.hidden_size=3"]
    assert main(["train", *arguments, *frames]) == 1
    error = capsys.readouterr().err
    assert "model.likelihood is bernoulli, but" in error
    assert "has values from 2.5 to 2.5, expected gaussian" in error
    assert os.listdir(tmp_path) == ["x.npy"]
