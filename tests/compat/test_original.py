"""The original authors' model files: what is read, what is refused, and where every parameter goes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from lstmvid.compat.original import (
    classifier_arguments,
    classifier_state,
    composite_arguments,
    composite_state,
    frozen_parameters,
    read_model,
)

# As the released files are laid out: comments aside, their text is of this kind.
TEXT = """
name: "lstm_combo"
checkpoint_dir: "/models"
print_after: 10
validate_after: 100
max_iters: 10000000
dec_seq_length: 10
future_seq_length: 13
dec_conditional: true
binary_data: false
relu_data: true
future_copy_init_state: true
timestamp: "20151230175240"
timestamp: "20160101000000"
lstm {
  name: "lstm_1_enc"
  num_hid: 4
  has_input: true
  input_dims: 6
  input_dropprob: 0.2
  w_dense {
    init_type: UNIFORM
    scale: 0.01
    epsilon: 0.0001
    momentum: 0.9
    l2_decay: 0.0001
    gradient_clip: 0.0001
    eps_decay_factor: 0.9
    eps_decay_after: 10000
  }
  b { init_type: CONSTANT scale: 5.0 }  # no peepholes here
}

lstm_dec {
  name: "lstm_1_dec" num_hid: 4 has_input: true has_output: true input_dims: 6 output_dims: 6
  w_diag { init_type: PRETRAINED file_name: "other.h5" dataset_name: "lstm_1_dec:w_diag" }
}
lstm_future { name: "lstm_1_fut" num_hid: 4 has_output: true output_dims: 6 }
"""


def test_a_model_file_is_read_in_full(files):
    path = files.write_model(TEXT)
    model = read_model(path)
    assert model.source == str(path)
    assert (model.name, model.checkpoint_dir, model.max_iters) == ("lstm_combo", "/models", 10000000)
    assert (model.print_after, model.validate_after, model.save_after) == (10, 100, 0)
    assert (model.dec_seq_length, model.future_seq_length) == (10, 13)
    assert (model.dec_conditional, model.future_conditional) == (True, False)
    assert (model.decoder_copy_init_state, model.future_copy_init_state) == (False, True)
    assert (model.binary_data, model.relu_data, model.squash_relu, model.squash_relu_lambda) == (
        False,
        True,
        False,
        2.0,
    )
    assert model.timestamp == ("20151230175240", "20160101000000")
    (encoder,), (decoder,), (future,) = model.lstm, model.lstm_dec, model.lstm_future
    assert (encoder.name, encoder.num_hid, encoder.input_dims, encoder.output_dims) == ("lstm_1_enc", 4, 6, 0)
    assert (encoder.has_input, encoder.has_output, encoder.use_relu) == (True, False, False)
    assert encoder.input_dropprob == float(np.float32(0.2))
    assert encoder.w_diag is encoder.w_input is None
    dense = encoder.w_dense
    assert (dense.init_type, dense.eps_decay_after) == ("UNIFORM", 10000)
    settings = (dense.scale, dense.epsilon, dense.momentum, dense.l2_decay, dense.gradient_clip, dense.eps_decay_factor)
    assert settings == tuple(float(np.float32(value)) for value in (0.01, 1e-4, 0.9, 1e-4, 1e-4, 0.9))
    assert (encoder.b.scale, encoder.b.eps_decay_factor) == (5.0, 1.0)
    assert (decoder.w_diag.file_name, decoder.w_diag.dataset_name) == ("other.h5", "lstm_1_dec:w_diag")
    assert (future.has_input, future.has_output, future.output_dims) == (False, True, 6)


def test_composite_arguments(files):
    assert composite_arguments(read_model(files.write_model(TEXT))) == {
        "frame_shape": 6,
        "hidden_size": 4,
        "num_layers": 1,
        "reconstruct": "conditional",
        "predict": "unconditional",
        "likelihood": "rectified",
        "copy_state": ("predict",),
        "peephole": True,
        "dropout": 0.0,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"binary_data": True}, {"likelihood": "bernoulli"}),
        ({"binary_data": True, "relu_data": True}, {"likelihood": "bernoulli"}),
        ({"relu_data": True}, {"likelihood": "rectified"}),
        ({}, {"likelihood": "gaussian", "copy_state": (), "reconstruct": "unconditional", "predict": "conditional"}),
        ({"decoder_copy_init_state": True}, {"copy_state": ("reconstruct",)}),
        (
            {"decoder_copy_init_state": True, "future_copy_init_state": True},
            {"copy_state": ("reconstruct", "predict")},
        ),
        ({"dec_seq_length": 0, "decoder_copy_init_state": True}, {"reconstruct": None, "copy_state": ()}),
        ({"future_seq_length": 0}, {"predict": None}),
        ({"logreg": {"name": "unused", "num_inputs": 3, "num_outputs": 2}}, {"num_layers": 2}),
    ],
)
def test_flags(files, changes, expected):
    arguments = composite_arguments(read_model(files.write_model(files.composite(**changes))))
    assert arguments == {**arguments, **expected}


def test_absent_decoders_and_lengths_that_are_left_out(files):
    message = files.composite(reconstruct=None)
    del message["future_seq_length"]
    arguments = composite_arguments(read_model(files.write_model(message)))
    assert (arguments["reconstruct"], arguments["predict"]) == (None, "conditional")
    arguments = composite_arguments(read_model(files.write_model(files.composite(predict=None))))
    assert (arguments["reconstruct"], arguments["predict"]) == ("unconditional", None)


def test_sizes_that_are_left_out_follow_from_the_others(files):
    message = files.composite(frame=5, reconstruct="conditional")
    for layer in (*message["lstm"], *message["lstm_dec"], message["lstm_future"][0]):
        layer.pop("input_dims", None)
    message["lstm_dec"][1].pop("output_dims")
    model = read_model(files.write_model(message))
    assert composite_arguments(model)["frame_shape"] == 5
    whole = read_model(files.write_model(files.composite(frame=5, reconstruct="conditional")))
    assert {name: value.shape for name, value in composite_state(model).items()} == {
        name: value.shape for name, value in composite_state(whole).items()
    }


def test_composite_state_takes_every_dataset_as_it_is(files):
    message = files.composite(frame=5, num_hid=3, num_layers=2)
    values = files.parameters(message)
    state = composite_state(read_model(files.write_model(message)), files.write_checkpoint(values))
    expected = {}
    for part, short in (("encoder", "enc"), ("reconstructor", "dec"), ("predictor", "fut")):
        for depth in (0, 1):
            for ours, theirs in (("weight_ih", "w_input"), ("weight_hh", "w_dense")):
                if f"lstm_{depth + 1}_{short}:{theirs}" in values:
                    expected[f"{part}.{ours}_l{depth}"] = values[f"lstm_{depth + 1}_{short}:{theirs}"]
            expected[f"{part}.bias_ih_l{depth}"] = values[f"lstm_{depth + 1}_{short}:b"][0]
            expected[f"{part}.bias_hh_l{depth}"] = np.zeros(12, np.float32)
            expected[f"{part}.weight_peephole_l{depth}"] = values[f"lstm_{depth + 1}_{short}:w_diag"][0]
    for head, short in (("reconstruction_head", "dec"), ("prediction_head", "fut")):
        expected[f"{head}.weight"] = values[f"lstm_2_{short}:w_output"]
        expected[f"{head}.bias"] = values[f"lstm_2_{short}:b_output"][0]
    assert "reconstructor.weight_ih_l0" not in expected
    assert "predictor.weight_ih_l0" in expected
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == torch.float32
        np.testing.assert_array_equal(value.numpy(), expected[name], err_msg=name)


def test_an_unused_input_of_an_unconditional_decoder_has_no_counterpart(files):
    message = files.composite(frame=5)
    message["lstm_dec"][0] = files.layer("lstm_1_dec", 3, input_dims=9)
    model = read_model(files.write_model(message))
    state = composite_state(model, files.write_checkpoint(files.parameters(message)))
    assert composite_arguments(model)["reconstruct"] == "unconditional"
    assert "reconstructor.weight_ih_l0" not in state


def test_a_frame_of_one_value_keeps_its_head_a_matrix(files):
    message = files.composite(frame=1, num_hid=3)
    state = composite_state(read_model(files.write_model(message)), files.write_checkpoint(files.parameters(message)))
    assert state["prediction_head.weight"].shape == (1, 3)
    assert state["prediction_head.bias"].shape == (1,)


def test_classifier(files):
    message = files.classifier(features=5, num_hid=3, num_layers=3, classes=4)
    for layer, input_dropprob, output_dropprob in zip(message["lstm"], (0.25, 0.5, 0.5), (0.125, 0, 0.75), strict=True):
        layer |= {"input_dropprob": input_dropprob, "output_dropprob": output_dropprob}
    model = read_model(files.write_model(message))
    assert classifier_arguments(model) == {
        "input_size": 5,
        "hidden_size": 3,
        "num_layers": 3,
        "num_classes": 4,
        "peephole": True,
        "input_dropout": 0.25,
        "dropout": 0.5,
        "output_dropout": 0.75,
    }
    values = files.parameters(message)
    state = classifier_state(model, files.write_checkpoint(values))
    per_layer = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
    names = {f"encoder.{stem}_l{depth}" for stem in per_layer for depth in range(3)}
    assert state.keys() == names | {"head.weight", "head.bias"}
    np.testing.assert_array_equal(state["head.weight"].numpy(), values["lstm_3_cls:w_output"])
    np.testing.assert_array_equal(state["encoder.weight_ih_l0"].numpy(), values["lstm_1_cls:w_input"])
    assert frozen_parameters(model) == tuple(f"encoder.bias_hh_l{depth}" for depth in range(3))


def test_frozen_are_the_second_biases_and_left_out_blocks(files):
    message = files.composite(num_layers=1)
    message["lstm"] = [files.layer("lstm_1_enc", 3, 5, without=("w_diag", "b"))]
    message["lstm_future"] = [
        files.layer("lstm_1_fut", 3, 5, 5, without=("w_dense", "w_input", "w_output", "b_output"))
    ]
    model = read_model(files.write_model(message))
    expected = {
        *("encoder.bias_hh_l0", "encoder.weight_peephole_l0", "encoder.bias_ih_l0", "reconstructor.bias_hh_l0"),
        *("predictor.bias_hh_l0", "predictor.weight_hh_l0", "predictor.weight_ih_l0"),
        *("prediction_head.weight", "prediction_head.bias"),
    }
    assert set(frozen_parameters(model)) == expected
    values = files.parameters(message)
    for checkpoint in (
        files.write_checkpoint(values),  # the released programs store the zeros
        files.write_checkpoint({name: value for name, value in values.items() if value.any()}),
    ):
        state = composite_state(model, checkpoint)
        assert set(frozen_parameters(model)) <= state.keys()
        for name, value in state.items():
            assert bool(value.any()) == (name not in expected), name


def test_without_any_w_diag_there_are_no_peepholes(files):
    message = files.classifier(num_layers=1)
    del message["lstm"][0]["w_diag"]
    model = read_model(files.write_model(message))
    assert classifier_arguments(model)["peephole"] is False
    values = files.parameters(message)
    state = classifier_state(model, files.write_checkpoint(values))
    assert not any("peephole" in name for name in (*state, *frozen_parameters(model)))
    values["lstm_1_cls:w_diag"][0, 1] = 1.0
    with pytest.raises(ValueError, match=r"model\.h5: dataset 'lstm_1_cls:w_diag' holds other values than 0"):
        classifier_state(model, files.write_checkpoint(values))


def test_without_a_checkpoint_the_values_are_drawn_as_the_text_says(files):
    values = {"somewhere:peepholes": np.arange(60, dtype=np.float32)}
    files.write_checkpoint(values, "pretrained.h5")
    layer = files.layer("lstm_1", 20, 30, 10, without=("b_output",))
    layer["w_input"] = {"init_type": layer["w_dense"]["init_type"], "scale": 0.5}
    layer["w_dense"] = {"init_type": type(layer["w_dense"]["init_type"])("GAUSSIAN"), "scale": 0.1}
    layer["b"] = {"scale": 5.0}  # CONSTANT is the format's default
    layer["w_diag"] = {
        "init_type": type(layer["w_dense"]["init_type"])("PRETRAINED"),
        "file_name": "/gone/with/its/authors/pretrained.h5",  # found beside the model file
        "dataset_name": "somewhere:peepholes",
    }
    model = read_model(files.write_model({"lstm": [layer]}))
    state = classifier_state(model, generator=torch.Generator().manual_seed(1))
    uniform, normal = state["encoder.weight_ih_l0"], state["encoder.weight_hh_l0"]
    assert 0.48 < uniform.max() <= 0.5
    assert -0.5 <= uniform.min() < -0.48
    assert abs(uniform.mean()) < 0.03
    assert 0.09 < normal.std() < 0.11
    assert normal.abs().max() > 0.25
    assert (state["encoder.bias_ih_l0"] == 5.0).all()
    assert not state["head.bias"].any()
    np.testing.assert_array_equal(state["encoder.weight_peephole_l0"].numpy(), np.arange(60))
    again = classifier_state(model, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_unknown_init_types_matter_only_where_values_are_drawn(files):
    message = files.composite(num_layers=1)
    text = files.text(message).replace("UNIFORM", "ORTHOGONAL")
    model = read_model(files.write_model(text))
    composite_state(model, files.write_checkpoint(files.parameters(message)))
    with pytest.raises(ValueError, match="'lstm_1_enc:w_input' has init_type: ORTHOGONAL, expected CONSTANT, GAUSSIAN"):
        composite_state(model)


def change(field: str, index: int, **settings):
    """A change of one layer of a composite message; a setting of None is left out."""

    def apply(message):
        layer = message[field][index]
        layer |= settings
        for name in [name for name, value in settings.items() if value is None]:
            del layer[name]

    return apply


@pytest.mark.parametrize(
    ("apply", "sentence"),
    [
        (change("lstm", 1, use_relu=True), "lstm 'lstm_2_enc' has use_relu: true, expected false"),
        (change("lstm_dec", 1, num_hid=4), "lstm_dec 'lstm_2_dec' has num_hid: 4, expected 3"),
        (lambda message: message.update(squash_relu=True), "squash_relu: true is not supported"),
        (change("lstm_future", 0, input_dims=6), "lstm_future 'lstm_1_fut' has input_dims: 6, expected 5"),
        (change("lstm_dec", 1, input_dims=5), "lstm_dec 'lstm_2_dec' has input_dims: 5, expected 3"),
        (change("lstm_dec", 1, output_dims=7), "lstm_dec 'lstm_2_dec' has output_dims: 7, expected 5"),
        (change("lstm_dec", 1, has_output=False), "lstm_dec 'lstm_2_dec' has has_output: false, expected true"),
        (change("lstm_dec", 0, has_output=True), "lstm_dec 'lstm_1_dec' has has_output: true, expected false"),
        (change("lstm", 1, has_output=True), "lstm 'lstm_2_enc' has has_output: true, expected false"),
        (change("lstm", 0, has_input=False), "lstm 'lstm_1_enc' has has_input: false, expected true"),
        (change("lstm_future", 0, has_input=None), "lstm_future 'lstm_1_fut' has has_input: false, expected true"),
        (change("lstm", 1, input_dropprob=1.0), "lstm 'lstm_2_enc' has input_dropprob: 1, expected 0 or more and less"),
        (change("lstm", 1, name="lstm_1_dec"), "two layers have the name 'lstm_1_dec'"),
        (lambda message: message["lstm_dec"].pop(), "1 lstm_dec layers, expected 2"),
        (lambda message: message.pop("lstm_dec"), "dec_seq_length is 10, but there is no lstm_dec block"),
        (lambda message: message.pop("lstm"), "has no lstm block"),
    ],
)
def test_what_a_composite_can_t_be_is_refused(files, apply, sentence):
    message = files.composite()
    apply(message)
    model = read_model(files.write_model(message))
    for function in (composite_arguments, composite_state, frozen_parameters):
        with pytest.raises(ValueError, match=rf"model\.pbtxt: .*{sentence}"):
            function(model)


@pytest.mark.parametrize("num_hid", [0, -3])
def test_an_empty_layer_is_refused(files, num_hid):
    model = read_model(
        files.write_model({"lstm": [{"name": "a", "num_hid": num_hid, "has_input": True, "input_dims": 2}]})
    )
    with pytest.raises(ValueError, match=f"'a' has num_hid: {num_hid}, expected at least 1"):
        composite_arguments(model)


def test_a_frame_without_a_size_is_refused(files):
    model = read_model(files.write_model({"lstm": [{"name": "a", "num_hid": 2, "has_input": True}]}))
    with pytest.raises(ValueError, match="lstm 'a' lacks input_dims"):
        composite_arguments(model)


def test_a_model_of_the_other_kind_is_refused(files):
    with pytest.raises(ValueError, match="lstm 'lstm_2_cls' has has_output: true, expected false"):
        composite_arguments(read_model(files.write_model(files.classifier())))
    with pytest.raises(ValueError, match="has lstm_dec, so it is a composite model"):
        classifier_arguments(read_model(files.write_model(files.composite())))


def test_what_a_classifier_can_t_be_is_refused(files):
    message = files.classifier(num_layers=3)
    message["lstm"][1]["input_dropprob"] = 0.5
    with pytest.raises(ValueError, match=r"'lstm_3_cls' has input_dropprob: 0, expected 0\.5 as in 'lstm_2_cls'"):
        classifier_arguments(read_model(files.write_model(message)))
    del message["lstm"][2]["output_dims"]
    with pytest.raises(ValueError, match="lstm 'lstm_3_cls' lacks output_dims, the number of classes"):
        classifier_arguments(read_model(files.write_model(message)))
    with pytest.raises(ValueError, match="has no lstm block"):
        classifier_arguments(read_model(files.write_model("")))


def test_faults_of_the_text_name_file_and_line(files):
    with pytest.raises(ValueError, match=r"model\.pbtxt:2: unknown field 'squash'"):
        read_model(files.write_model("name: 'a'\nsquash: true"))
    with pytest.raises(ValueError, match=r"model\.pbtxt:3: unknown field 'source'"):
        read_model(files.write_model("\n\nsource: 'a'"))
    with pytest.raises(ValueError, match=r"model\.pbtxt:1: the required field 'num_hid' is missing"):
        read_model(files.write_model("lstm { name: 'a' }"))


def test_an_unreadable_model_file(files, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.pbtxt: can't read the model file \(No such file"):
        read_model(tmp_path / "absent.pbtxt")
    (tmp_path / "binary.pbtxt").write_bytes(b"name: '\xff\xfe'")
    with pytest.raises(ValueError, match=r"binary\.pbtxt: the model file is not UTF-8 text"):
        read_model(tmp_path / "binary.pbtxt")


def test_faults_of_the_checkpoint_name_file_and_dataset(files, tmp_path):
    message = files.composite()
    model = read_model(files.write_model(message))
    values = files.parameters(message)

    def refused(sentence, **changed):
        changed = {name.replace("__", ":"): value for name, value in changed.items()}
        kept = {name: value for name, value in {**values, **changed}.items() if value is not None}
        with pytest.raises(ValueError, match=rf"model\.h5: {sentence}"):
            composite_state(model, files.write_checkpoint(kept))

    refused(
        r"dataset 'lstm_2_fut:w_dense' is absent, expected \(12, 3\) of float32",
        lstm_2_fut__w_dense=None,
    )
    refused(
        r"dataset 'lstm_1_enc:w_input' is \(5, 12\) of float32, expected \(12, 5\) of float32",
        lstm_1_enc__w_input=values["lstm_1_enc:w_input"].T,
    )
    refused(r"dataset 'lstm_1_enc:b' is \(1, 9\) of float32, expected \(1, 12\)", lstm_1_enc__b=np.zeros((1, 9), "f4"))
    refused(r"dataset 'lstm_1_enc:b' is \(1, 12\) of int32, expected", lstm_1_enc__b=np.zeros((1, 12), "i4"))
    with pytest.raises(ValueError, match=r"absent\.h5: not a readable HDF5 checkpoint"):
        composite_state(model, tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    with pytest.raises(ValueError, match=r"text\.h5: not a readable HDF5 checkpoint"):
        composite_state(model, tmp_path / "text.h5")


def test_a_truncated_checkpoint_is_refused(files):
    message = files.composite(frame=64, num_hid=64)
    path = files.write_checkpoint(files.parameters(message))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.h5: not a readable HDF5 checkpoint"):
        composite_state(read_model(files.write_model(message)), path)


def test_a_missing_h5py_names_what_to_install(files, monkeypatch):
    model = read_model(files.write_model(files.composite()))
    monkeypatch.setitem(sys.modules, "h5py", None)
    composite_state(model)  # drawing values needs no HDF5
    with pytest.raises(ModuleNotFoundError, match=r"h5py: pip install 'lstmvid\[train\]'"):
        composite_state(model, "model.h5")
