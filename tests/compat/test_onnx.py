"""ONNX export, run by onnxruntime: the same numbers as the module's own forward."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstmvid

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from lstmvid.compat.onnx import export  # noqa: E402


@pytest.fixture
def run(tmp_path):
    """Exports a module and runs the file."""

    def run(module, inputs, **options):
        path = tmp_path / "model.onnx"
        export(module, path, **options)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = {name: np.asarray(t) for name, t in inputs.items()}
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, session.run(None, feed)), strict=True))

    return run


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def lstm(**options):
    module = lstmvid.LSTM(5, 7, **options)
    for name, parameter in module.named_parameters():
        if "peephole" in name:
            nn.init.normal_(parameter)  # they start at zero, where a wrong order would not show
    return module.eval()


@pytest.mark.parametrize(
    "options",
    [
        dict(zip(("num_layers", "bidirectional", "batch_first", "bias", "peephole"), values, strict=True))
        for values in itertools.product((1, 3), (False, True), (False, True), (False, True), (False, True))
    ],
    ids=lambda options: ",".join(f"{name}={value:d}" for name, value in options.items()),
)
def test_lstm(run, options):
    module = lstm(**options)
    states = module.num_layers * (1 + module.bidirectional)
    for steps, batch in ((4, 3), (6, 1)):
        x = torch.randn(batch, steps, 5) if module.batch_first else torch.randn(steps, batch, 5)
        h_0, c_0 = torch.randn(states, batch, 7), torch.randn(states, batch, 7)
        with torch.no_grad():
            alone, started = module(x), module(x, (h_0, c_0))
        for inputs, (output, (h_n, c_n)), flags in (
            ({"input": x}, alone, {}),
            ({"input": x, "h_0": h_0, "c_0": c_0}, started, {"state": True}),
        ):
            actual = run(module, inputs, **flags)
            assert list(actual) == ["output", "h_n", "c_n"]
            close(actual["output"], output)
            close((actual["h_n"], actual["c_n"]), (h_n, c_n))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_ragged_batches(run, bidirectional):
    module, lengths = lstm(num_layers=2, bidirectional=bidirectional), torch.tensor([2, 5, 1])
    x = torch.randn(5, 3, 5)
    with torch.no_grad():
        packed, (h_n, c_n) = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    actual = run(module, {"input": x, "lengths": lengths.int()}, lengths=True)
    close(actual["output"], pad_packed_sequence(packed)[0])
    close((actual["h_n"], actual["c_n"]), (h_n, c_n))


def test_any_lstm(run):
    """torch's own, and one with computed weights; half precision is exported as float32."""
    x = torch.randn(4, 3, 5)
    theirs = nn.LSTM(5, 7, num_layers=2)
    close(run(theirs, {"input": x})["output"], theirs(x)[0].detach())
    normed = nn.utils.parametrizations.weight_norm(lstm(), "weight_hh_l0")
    close(run(normed, {"input": x})["output"], normed(x)[0].detach())
    half = lstm().bfloat16()
    close(run(half, {"input": x})["output"], half.float()(x)[0].detach())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
def test_encoder(run, batch_first, peephole):
    model = lstmvid.FusedComposite((2, 3, 4), 6, num_layers=2, batch_first=batch_first, peephole=peephole)
    for name, parameter in model.named_parameters():
        if "peephole" in name:
            nn.init.normal_(parameter)
    frames = torch.randint(0, 256, (4, 3, 2, 3, 4), dtype=torch.uint8)
    with torch.no_grad():
        h_n, c_n = model.encode(frames)
    for inputs, flags in ((frames, {"uint8": True}), (frames / 255, {})):
        actual = run(model, {"frames": inputs}, **flags)
        close((actual["h_n"], actual["c_n"]), (h_n, c_n))


def test_the_graph_is_made_of_the_standard_operator(tmp_path):
    export(lstm(num_layers=2, peephole=True), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [node.op_type for node in model.graph.node].count("LSTM") == 2


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (lambda: nn.Linear(2, 3), {}, TypeError, "must be an LSTM or a FusedComposite, got Linear"),
        (lambda: nn.LSTM(5, 7, proj_size=3), {}, ValueError, "proj_size is 3"),
        (lambda: nn.LSTM(5, 7), {"uint8": True}, ValueError, "uint8 is for the frames"),
        (lambda: lstmvid.FusedComposite(6, 5), {"state": True}, ValueError, "state is for an LSTM"),
    ],
)
def test_errors_leave_no_file(tmp_path, make, options, error, words):
    path = tmp_path / "model.onnx"
    path.write_text("the old one")
    with pytest.raises(error, match=words):
        export(make(), path, **options)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_beyond_what_a_file_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmvid.compat.onnx._LARGEST", 1000)
    with pytest.raises(ValueError, match=r"the model takes \d+ bytes, an ONNX file holds 1000 at most"):
        export(lstm(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
