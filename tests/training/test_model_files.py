from __future__ import annotations

import json
import os

import pytest
import safetensors
import torch

import lstmvid
from lstmvid.training.checkpoint import load_model, read_checkpoint, save_model, written_whole


@pytest.fixture
def model():
    torch.manual_seed(0)
    return lstmvid.FusedComposite((1, 4, 4), 3, 2, reconstruct="conditional", copy_state=["predict"])


def test_round_trip(model, tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    save_model(model, path, data={"seed": 7})
    loaded, data = load_model(path)
    assert data == {"seed": 7}
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert os.listdir(path.parent) == ["model.safetensors"]
    assert load_model(path.parent)[0].config == model.config


def test_round_trip_of_a_classifier(tmp_path):
    torch.manual_seed(0)
    options = {"peephole": False, "input_dropout": 0.25, "dropout": 0.125, "output_dropout": 0.5, "batch_first": True}
    classifier = lstmvid.SequenceClassifier(5, 3, 2, 4, **options)
    save_model(classifier, tmp_path / "c.safetensors", data={"classes": ["a", "b", "c", "d"]})
    loaded, data = load_model(tmp_path / "c.safetensors", kind=lstmvid.SequenceClassifier)
    assert data == {"classes": ["a", "b", "c", "d"]}
    assert type(loaded) is lstmvid.SequenceClassifier
    assert loaded.config == classifier.config
    assert options.items() <= loaded.config.items()
    x = torch.rand(2, 6, 5)
    assert torch.equal(loaded(x), classifier.eval()(x))
    with pytest.raises(ValueError, match=r"c\.safetensors holds a SequenceClassifier, expected a FusedComposite"):
        load_model(tmp_path / "c.safetensors", kind=lstmvid.FusedComposite)


def test_an_encoder_goes_on_in_a_classifier_that_can_be_saved(model, tmp_path):
    classifier = lstmvid.SequenceClassifier.from_encoder(model, 7, dropout=0.5)
    save_model(classifier, tmp_path / "c.safetensors")
    loaded, _ = load_model(tmp_path / "c.safetensors")
    assert loaded.config == classifier.config
    assert torch.equal(loaded.encoder.weight_ih_l0, model.encoder.weight_ih_l0)


def test_frozen_parameters_stay_frozen(model, tmp_path):
    model.encoder.bias_hh_l1.requires_grad_(False)
    save_model(model, tmp_path / "m.safetensors")
    loaded, _ = load_model(tmp_path / "m.safetensors")
    assert [n for n, parameter in loaded.named_parameters() if not parameter.requires_grad] == ["encoder.bias_hh_l1"]


def test_metadata_is_json(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        description = json.loads(file.metadata()["lstmvid"])
    assert description["class"] == "FusedComposite"
    assert description["version"] == lstmvid.__version__
    assert description["config"]["frame_shape"] == [1, 4, 4]


def test_backend_is_chosen_where_it_is_loaded(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", backend="reference")[0].encoder.backend == "reference"


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model file .*nothing\.safetensors"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no model file .*model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 100])
def test_damaged(tmp_path, suffix, content):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\{suffix} is not a .*damaged"):
        load_model(path)


def test_truncated(model, tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"half\.safetensors is not a safetensors file, or is damaged"):
        load_model(path)


def test_files_of_others(model, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"other\.safetensors is not a model file of lstmvid"):
        load_model(path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is not a checkpoint of lstmvid"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    "change",
    [
        {"class": "Path"},
        {"config": {"frame_shape": [1, 4, 4], "hidden_size": 5}},
        {"config": {"hidden": 1}},
        {"class": "SequenceClassifier"},
        {"frozen": ["encoder.nothing"]},
    ],
    ids=["class", "sizes", "arguments", "other class", "frozen"],
)
def test_description_that_does_not_fit(model, tmp_path, change):
    path = tmp_path / "odd.safetensors"
    description = {"class": "FusedComposite", "config": model.config} | change
    path.write_bytes(safetensors.torch.save(model.state_dict(), {"lstmvid": json.dumps(description)}))
    with pytest.raises(ValueError, match=r"odd\.safetensors does not describe a model") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"lstmvid": Attack()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt is not a checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "attacked").exists()


def test_failed_writing_leaves_the_old_file(tmp_path):
    def write_half():
        with written_whole(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
