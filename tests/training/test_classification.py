"""Whole runs of the classifier, tiny: what is learned, resumed, kept and refused."""

from __future__ import annotations

import csv
import io
import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import lstmvid
from lstmvid.data import PerceptsWriter
from lstmvid.evaluation.recognition import Scores
from lstmvid.training.checkpoint import load_model, read_checkpoint, save_model
from lstmvid.training.classification import classify
from lstmvid.training.classification_config import ClassificationConfig
from lstmvid.training.classification_data import Blocks, RecognitionModule, TrainingBlocks, VideoBlocks

SIZE, CLASSES, VIDEOS = 6, ("left", "right", "still"), 24


@pytest.fixture(scope="session")
def percepts_file(tmp_path_factory) -> Path:
    """Videos of a bump that moves to the left, to the right, or not: nothing in a single frame says which."""
    path = tmp_path_factory.mktemp("percepts") / "percepts.h5"
    with PerceptsWriter(path, SIZE, classes=CLASSES) as writer:
        for video in range(VIDEOS):
            for label, step in enumerate((-1, 1, 0)):
                places = (video + step * torch.arange(6 + video % 4)) % SIZE
                writer.append(f"{CLASSES[label]}/{video}", torch.eye(SIZE)[places], label=label)
    return path


@pytest.fixture
def settings(percepts_file, tmp_path) -> dict:
    return {
        "output": str(tmp_path / "run"),
        "seed": 3,
        "model": {"hidden_size": 8, "num_layers": 1, "output_dropout": 0.1, "backend": "reference"},
        "data": {
            "percepts": str(percepts_file),
            "test_fraction": 0.25,
            "validation_fraction": 0.25,
            "frames": 5,
            "test_stride": 2,
            "batch_size": 4,
        },
        "optimizer": {"warmup_steps": 2, "learning_rate": 0.02},
        "trainer": {"max_steps": 8, "validation_interval": 3, "log_interval": 1, "accelerator": "cpu"},
    }


def run(settings: dict, **options) -> Path:
    classify(ClassificationConfig.from_dict(settings), console=Console(file=io.StringIO()), **options)
    return Path(settings["output"])


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_learns_and_is_tested(settings):
    settings["trainer"] |= {"max_steps": 120, "validation_interval": 60}
    settings["model"] |= {"hidden_size": 16, "output_dropout": 0.0}
    settings["data"]["batch_size"], settings["optimizer"]["learning_rate"] = 16, 0.05
    folder = run(settings)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "last.ckpt", "metrics.csv", "model.safetensors", "pictures", "results.json", "scores.npz"),
        "tensorboard",
    }
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"] > 0.85  # chance: 0.33
    assert (results["videos"], results["classes"]) == (18, 3)
    assert results["settings"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert (folder / "pictures" / "confusion.png").stat().st_size > 1000
    rows = [row for row in metrics(folder) if row["validation/accuracy"]]
    assert [int(row["step"]) for row in rows] == [60, 120]

    # The scores are the protocol's, block by block, of the model that was kept.
    model, about = load_model(folder, kind=lstmvid.SequenceClassifier)
    assert about["task"] == "recognition"
    scores = Scores.load(folder / "scores.npz")
    data = RecognitionModule(ClassificationConfig.from_dict(settings).data, 4, 3)
    assert scores.names == tuple(data.videos.names[place] for place in data.parts.test)
    for place, probabilities in zip(data.parts.test, scores.probabilities, strict=True):
        frames = data.videos[place]
        blocks = torch.stack([frames[first : first + 5] for first in range(0, len(frames) - 4, 2)], 1)
        torch.testing.assert_close(probabilities, model.predict_proba(blocks).mean(0).double())


def test_same_seed_same_bits_and_other_seed_other(settings, tmp_path):
    first = run(settings)
    second = run(settings | {"output": str(tmp_path / "again")})
    third = run(settings | {"output": str(tmp_path / "other"), "seed": 4})
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert metrics(first) == metrics(second) != metrics(third)


@pytest.mark.parametrize("index", [2, 5])
def test_interrupted_run_continues_exactly(settings, tmp_path, monkeypatch, index):
    straight = run(settings | {"output": str(tmp_path / "straight")})
    original = Blocks.__getitem__
    calls = []

    def interrupted(self, which):
        calls.append(which)
        if len(calls) == 4 * index:  # a batch is read ahead of its step
            signal.raise_signal(signal.SIGINT)
        return original(self, which)

    monkeypatch.setattr(Blocks, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    folder = Path(settings["output"])
    assert 0 < read_checkpoint(folder / "last.ckpt")["global_step"] < 8
    assert not (folder / "scores.npz").exists()
    monkeypatch.undo()
    run(settings, resume=True)
    assert metrics(folder) == metrics(straight)
    assert (folder / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert Scores.load(folder / "scores.npz").names == Scores.load(straight / "scores.npz").names


def test_resumed_run_has_to_be_the_same(settings):
    run(settings)
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(settings)
    settings["data"]["frames"] = 4
    with pytest.raises(ValueError, match=r"can't be resumed with data\.frames 4: the run has 5"):
        run(settings, resume=True)


def test_without_validation_the_last_model_is_kept(settings):
    settings["data"]["validation_fraction"] = 0
    settings["optimizer"]["learning_rate"] = 0.5  # so high that the last model is hardly the best
    settings["trainer"]["max_steps"] = 30
    folder = run(settings)
    last = read_checkpoint(folder / "last.ckpt")["state_dict"]
    for name, tensor in load_model(folder)[0].state_dict().items():
        assert torch.equal(tensor, last[f"model.{name}"])


# ---- pretrained encoders ----


@pytest.fixture
def encoder(tmp_path) -> Path:
    composite = lstmvid.FusedComposite(SIZE, 7, 2, likelihood="gaussian", peephole=False)
    save_model(composite, tmp_path / "composite.safetensors")
    return tmp_path / "composite.safetensors"


@pytest.mark.parametrize("preset", ["default", "original"])
def test_starts_from_an_encoder_and_may_leave_it_as_it_is(settings, encoder, preset):
    settings["model"] = {"encoder": str(encoder), "train_encoder": False}
    settings["optimizer"] = {"preset": preset}
    settings["trainer"] |= {"max_steps": 3}
    model, _ = load_model(run(settings))
    composite, _ = load_model(encoder)
    assert model.config["hidden_size"] == 7
    x = torch.rand(4, 2, SIZE)
    mine, _ = model.encoder(x, model.encoder.zero_state(2))
    theirs, _ = composite.encoder(x, composite.encoder.zero_state(2))
    torch.testing.assert_close(mine, theirs)  # also where the two biases of a gate were joined
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_encoder_is_trained_unless_told_otherwise(settings, encoder):
    settings["model"] = {"encoder": str(encoder), "num_layers": 2}
    model, _ = load_model(run(settings))
    before = load_model(encoder)[0].encoder.weight_hh_l0
    assert not torch.equal(model.encoder.weight_hh_l0, before)
    assert (model.encoder.weight_hh_l0 - before).abs().max() < 0.5


@pytest.mark.parametrize(
    ("section", "changes", "error", "message"),
    [
        ("model", {"encoder": "nowhere"}, FileNotFoundError, "no model file nowhere"),
        ("model", {"hidden_size": 6}, ValueError, r"model\.hidden_size is 6, but that of model\.encoder .* is 7"),
        ("model", {"peephole": True}, ValueError, r"model\.peephole is True, but .* is False"),
        ("data", {"percepts": None}, ValueError, r"data\.nothing is given, expected one of data\.percepts, data\.v"),
        ("data", {"percepts": "nowhere"}, FileNotFoundError, "no percepts file nowhere"),
        ("data", {"test_fraction": None}, ValueError, r"expected one of data\.splits, data\.train_list"),
        (
            "data",
            {"train_list": "a", "test_list": "b"},
            ValueError,
            r"data\.train_list and data\.test_fraction are giv",
        ),
        ("data", {"frames": 12}, ValueError, r"no block of 12 frames|no training block of 12 frames"),
        ("trainer", {"devices": 9}, ValueError, "expected at least one for each of 9 processes"),
        ("optimizer", {"learning_rate": 3e38}, FloatingPointError, "loss is (nan|inf) at step"),
    ],
)
def test_nothing_is_left_behind(settings, encoder, section, changes, error, message):
    settings["model"] = {"encoder": str(encoder)}
    settings[section] |= changes
    with pytest.raises(error, match=message):
        run(settings)
    assert not Path(settings["output"]).exists()


def test_encoder_for_other_frames(settings, tmp_path):
    save_model(lstmvid.FusedComposite((1, 2, 2), 3), tmp_path / "other.safetensors")
    settings["model"] = {"encoder": str(tmp_path / "other.safetensors")}
    with pytest.raises(ValueError, match=r"is for frames of 4 values, the data have 6"):
        run(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"train_encoder": False}}, r"model\.train_encoder is False, expected true without a pretrained"),
        ({"model": {"input_dropout": 1}}, r"model\.input_dropout is 1, expected a number from 0 to below 1"),
        ({"data": {"layout": "ucf101"}}, r"data\.layout is 'ucf101', but splits is None: give both"),
        ({"data": {"test_list": "x"}}, r"data\.train_list is None, but test_list is 'x'"),
        ({"data": {"labels": "x"}}, r"data\.labels is of the authors' layout"),
        ({"data": {"validation_fraction": 1}}, r"data\.validation_fraction is 1, expected a number from 0 to below 1"),
        ({"trainer": {"strategy": "fsdp"}}, r"trainer\.strategy is 'fsdp', expected one of auto, ddp"),
        ({"model": {"hidden": 1}}, r"model\.hidden is no setting; model has encoder, train_encoder, hidden_size"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ClassificationConfig.from_dict(changes)


# ---- batches ----


def test_small_data_sets_grow_and_validation_stays(settings):
    data = ClassificationConfig.from_dict(settings).data
    everything = RecognitionModule(data, 4, 3).parts
    before: set[int] = set()
    for count in (1, 2, 5, 20):
        data.videos_per_class = count
        parts = RecognitionModule(data, 4, 3).parts
        assert (parts.validation, parts.test) == (everything.validation, everything.test)
        assert parts.labels[list(parts.training)].bincount().tolist() == [min(count, 14)] * 3
        assert before <= set(parts.training)
        before = set(parts.training)
    assert before == set(everything.training)
    assert not before & {*everything.validation, *everything.test}


def test_training_batches_are_of_the_step_alone(settings):
    data = RecognitionModule(ClassificationConfig.from_dict(settings).data, 4, 3)

    def batches(start: int, count: int, rank: int = 0, world_size: int = 1):
        source = TrainingBlocks(data.training, data.labels, 4, 3, start=start, rank=rank, world_size=world_size)
        return [next(iterator) for iterator in [iter(source)] for _ in range(count)]

    straight = batches(0, 6)
    for (frames, labels), (again, same) in zip(straight[2:], batches(2, 4), strict=True):
        assert torch.equal(frames, again)
        assert torch.equal(labels, same)
    for rank in (0, 1):
        for step, (frames, _) in enumerate(batches(0, 3, rank, 2)):
            assert torch.equal(frames, straight[2 * step + rank][0])
    one_pass = torch.cat([frames for frames, _ in batches(0, len(data.training) // 4)], 1)
    assert len(one_pass.unique(dim=1)[0]) == len(
        torch.stack([data.training[i] for i in range(len(data.training))], 1).unique(dim=1)[0]
    )
    for frames, labels in straight:
        steps = (frames.argmax(-1)[1] - frames.argmax(-1)[0] + 1) % SIZE - 1
        assert torch.equal(labels, torch.tensor([{-1: 0, 1: 1, 0: 2}[int(step)] for step in steps]))


def test_all_blocks_of_all_videos_are_scored_by_some_rank(tmp_path):
    with PerceptsWriter(tmp_path / "p.h5", 2) as writer:
        for number, length in enumerate((3, 9, 5, 2, 12)):
            writer.append(str(number), torch.full((length, 2), float(number)), label=0)
    from lstmvid.data import Percepts

    blocks = Blocks(Percepts(tmp_path / "p.h5"), [4, 0, 1, 3], 5, 3)
    assert blocks.video_of.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert blocks.lengths == [5, 5, 5, 3, 5, 5, 2]
    seen = []
    for rank in (0, 1):
        for frames, videos in map(
            VideoBlocks(blocks, 2, rank=rank, world_size=2).__getitem__, range(3 if rank == 0 else 2)
        ):
            assert frames.shape[1:] == (len(videos), 2)
            assert torch.equal(frames[0, :, 0], torch.tensor([4.0, 0, 1, 3])[videos])
            seen += videos.tolist()
    assert sorted(seen) == [0, 0, 0, 1, 2, 2, 3]
    assert len(Blocks(blocks.videos, [4, 0, 1, 3], 5, 3, whole=True)) == 5
