"""`lstmvid convert` as a user types it, on files as the released programs write them."""

from __future__ import annotations

import os

import pytest
import torch

import lstmvid
from lstmvid.cli import main
from lstmvid.compat import original
from lstmvid.training import OriginalSGD
from lstmvid.training.checkpoint import load_model, save_model


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def refusal(capsys, *arguments) -> str:
    capsys.readouterr()
    assert convert(*arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("kind", ["composite", "classifier"])
def test_either_kind(files, tmp_path, capsys, kind):
    message = files.composite(12, 3, 2, binary_data=True) if kind == "composite" else files.classifier(12, 3, 2, 4)
    pbtxt, h5 = files.write_model(message), files.write_checkpoint(files.parameters(message))
    output = tmp_path / "new" / "ours.safetensors"
    assert convert(pbtxt, h5, "--output", output) == 0
    assert load_model(output)[1] == {}
    model = load_model(output)[0]
    original = type(model).from_original(pbtxt, h5)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        name: p.requires_grad for name, p in original.named_parameters()
    }
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in model.state_dict().items())
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: {kind}")
    assert said.endswith(f"weights of {h5}\n")
    trained = sum(value.size for value in files.parameters(message).values())  # one bias a gate, as theirs
    assert f"2 layers of 3 units, {trained:,} trained parameters" in said
    x = torch.rand(3, 2, 12)
    if kind == "composite":
        assert torch.equal(model.predict(x, 4), original.predict(x, 4))
        assert "unconditional reconstruction, conditional prediction; bernoulli" in said
    else:
        assert torch.equal(model.predict_proba(x), original.eval().predict_proba(x))


def test_frames_become_images(files, tmp_path):
    message = files.composite(12, 3, 1)
    pbtxt, h5 = files.write_model(message), files.write_checkpoint(files.parameters(message))
    assert convert(pbtxt, h5, "--frame-shape", "3,2,2") == 0
    model, _ = load_model(tmp_path / "model.safetensors", kind=lstmvid.FusedComposite)
    assert model.frame_shape == (3, 2, 2)


def test_the_checkpoint_of_the_last_timestamp_is_found(files, tmp_path, capsys):
    message = files.composite(5, 3, 1) | {"timestamp": ["20151230175240", "20160101000000"]}
    pbtxt = files.write_model(message)
    error = refusal(capsys, pbtxt)
    assert "names the checkpoint" in error
    assert "lstm_combo_20160101000000.h5, which is not there" in error
    h5 = files.write_checkpoint(files.parameters(message), "lstm_combo_20160101000000.h5")
    assert convert(pbtxt) == 0
    assert capsys.readouterr().out.endswith(f"weights of {h5}\n")


def test_weights_are_drawn_only_if_asked_for(files, tmp_path, capsys):
    pbtxt = files.write_model(files.composite(5, 3, 1))
    assert "names no checkpoint: give its .h5 file, or --draw-weights" in refusal(capsys, pbtxt)
    assert os.listdir(tmp_path) == ["model.pbtxt"]
    states = []
    for seed in (1, 1, 2):
        assert convert(pbtxt, "--draw-weights", "--seed", seed) == 0
        assert f"weights drawn with seed {seed}" in capsys.readouterr().out
        states.append(load_model(tmp_path / "model.safetensors")[0].encoder.weight_hh_l0)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_faults_leave_an_old_file_as_it_was(files, tmp_path, capsys):
    message = files.composite(5, 3, 1)
    pbtxt, h5 = files.write_model(message), files.write_checkpoint(files.parameters(message))
    old = tmp_path / "model.safetensors"
    old.write_text("old")
    relu = files.write_model(files.text(message).replace("num_hid: 3", "num_hid: 3 use_relu: true", 1), "relu.pbtxt")
    for words, arguments in {
        "use_relu: true, expected false": (relu, h5, "--output", old),
        "can't read the model file": (tmp_path / "absent.pbtxt", h5, "--output", old),
        "absent.h5: not a readable HDF5 checkpoint": (pbtxt, tmp_path / "absent.h5"),
        "so it is a composite model and not a classifier": (pbtxt, h5, "--kind", "classifier"),
        "(1, 2, 2), but": (pbtxt, h5, "--frame-shape", "1,2,2"),
        "expected one of them": (pbtxt, h5, "--draw-weights"),
        "expected a file name that ends in .safetensors": (pbtxt, h5, "--output", "x.h5"),
    }.items():
        assert words in refusal(capsys, *arguments)
    assert old.read_text() == "old"
    classifier = files.write_model(files.classifier(), "c.pbtxt")
    assert "for composite models" in refusal(capsys, classifier, "--draw-weights", "--frame-shape", "1,5")
    assert "has_output: true, expected false" in refusal(capsys, classifier, "--draw-weights", "--kind", "composite")
    with pytest.raises(SystemExit):
        convert(pbtxt, h5, "--frame-shape", "1,x")


def randomised(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"reconstruct": "conditional", "predict": "unconditional", "copy_state": ["predict"]},
        {"reconstruct": None, "likelihood": "gaussian", "peephole": False},
        {"predict": None, "likelihood": "rectified", "copy_state": ["reconstruct"]},
    ],
)
def test_back_and_forth_again(tmp_path, options, capsys):
    """Our two biases become their one; all else is the same, to the last bit where there is one bias."""
    model = randomised(lstmvid.FusedComposite((1, 3, 4), 3, 2, dtype=torch.float64, **options))
    model.float()
    for name, parameter in model.named_parameters():
        if "bias_hh" in name:
            torch.nn.init.zeros_(parameter)
    save_model(model, tmp_path / "m.safetensors", data={"input_frames": 7, "target_frames": 4})
    assert convert(tmp_path / "m.safetensors", "--output", tmp_path / "out" / "theirs.pbtxt") == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["theirs.pbtxt", "theirs_converted.h5"]
    description = original.read_model(tmp_path / "out" / "theirs.pbtxt")
    assert (description.name, description.timestamp) == ("theirs", ("converted",))
    assert description.dec_seq_length == (None if model.reconstructor is None else 7)
    assert description.future_seq_length == (None if model.predictor is None else 4)
    assert convert(tmp_path / "out" / "theirs.pbtxt", "--frame-shape", "1,3,4") == 0
    again, _ = load_model(tmp_path / "out" / "theirs.safetensors")
    assert again.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    optimizer = OriginalSGD.from_original(
        again, tmp_path / "out" / "theirs.pbtxt", tmp_path / "out" / "theirs_converted.h5"
    )
    assert not any(state["velocity"].any() or state["updates"] for state in optimizer.state.values())


def test_two_biases_become_one(tmp_path):
    classifier = randomised(
        lstmvid.SequenceClassifier(5, 3, 3, 4, input_dropout=0.25, dropout=0.5, output_dropout=0.125)
    )
    save_model(classifier, tmp_path / "c.safetensors")
    assert convert(tmp_path / "c.safetensors") == 0
    assert convert(tmp_path / "c.pbtxt", "--output", tmp_path / "again.safetensors") == 0
    again, _ = load_model(tmp_path / "again.safetensors")
    assert again.config == classifier.config
    x = torch.rand(6, 2, 5)
    torch.testing.assert_close(again(x), classifier(x))
    assert not torch.equal(again.encoder.bias_ih_l0, classifier.encoder.bias_ih_l0)
    assert again.state_dict()["encoder.weight_peephole_l2"].equal(classifier.encoder.weight_peephole_l2)


def test_what_their_files_have_no_place_for(tmp_path, capsys):
    save_model(lstmvid.FusedComposite(5, 3, 2, dropout=0.25), tmp_path / "m.safetensors")
    assert "dropout is 0.25, which the original composite models don't apply" in refusal(
        capsys, tmp_path / "m.safetensors"
    )
    assert "--output is" in refusal(capsys, tmp_path / "m.safetensors", "--output", "x.safetensors")
    assert "frame-shape is given" in refusal(capsys, tmp_path / "m.safetensors", "--frame-shape", "1,5")
    assert "expected a SequenceClassifier" in refusal(capsys, tmp_path / "m.safetensors", "--kind", "classifier")
    assert os.listdir(tmp_path) == ["m.safetensors"]
