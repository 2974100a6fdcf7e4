"""`lstmvid.explain`: what a call would run on, for people and for programs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import lstmvid
from lstmvid import FusedComposite, backends, explain


def sizes(plan) -> list[tuple]:
    """(name, T, D, H, L, G) of each call."""
    return [
        (call.name, r.steps, r.input_size, r.hidden_size, r.num_layers, r.groups)
        for call in plan.calls
        for r in [call.request]
    ]


def test_what_runs_is_what_resolves():
    """On the CPU: the very backend that the module's call takes."""
    for options in ({}, {"backend": "reference"}, {"peephole": True}, {"proj_size": 3}, {"recompute": "gates"}):
        lstm = lstmvid.LSTM(5, 8, **options)
        (call,) = explain(lstm, steps=3, batch=2).calls
        assert call.backend == lstm._resolve(torch.zeros(3, 2, 5), None)
        assert set(call.reasons) == set(backends.NAMES) - {"auto", call.backend}
        assert all(call.reasons.values())


def test_a_shape():
    plan = explain((7, 3, 5, 8, 2), device="cpu")
    assert (plan.device, plan.is_here, plan.training) == ("cpu", True, True)
    assert sizes(plan) == [("LSTM", 7, 5, 8, 2, 1)]
    assert plan.calls[0].forward is plan.calls[0].backward is None
    assert sizes(explain((7, 3, None, 8), device="cpu")) == [("LSTM", 7, None, 8, 1, 1)]


def test_a_gpu_that_is_not_here():
    plan = explain((100, 80, 4096, 2048), device="h100", dtype=torch.bfloat16)
    (call,) = plan.calls
    assert (plan.device, plan.is_here, call.backend) == ("H100", False, "torch")
    assert "only by name" in call.reasons["cuda"]
    assert call.forward.total > call.forward.limit > 0
    assert call.backward.plan.cluster == 8
    text = str(plan)
    for part in (
        "on H100, which isn't here",
        "T=100 B=80 D=4096 H=2048",
        "us a step, bound by",
        "the device's limit is",
    ):
        assert part in text


def test_by_name_and_where_it_is_proven(monkeypatch):
    (call,) = explain((9, 3, 5, 8), device="A100", backend="cuda").calls
    assert (call.backend, call.reasons["torch"]) == ("cuda", "'cuda' is asked for")
    monkeypatch.setattr(backends, "_PROVEN_ARCHITECTURES", (80,))
    (call,) = explain((9, 3, 5, 8), device="A100").calls
    assert (call.backend, call.reasons["torch"]) == ("cuda", "cuda comes first")
    assert "would run it" not in str(explain((9, 3, 5, 8), device="A100"))


def test_what_cannot_run_says_why():
    plan = explain(lstmvid.LSTM(5, 8, backend="cuda"), device="cpu")
    (call,) = plan.calls
    assert call.backend is None
    assert call.reasons["cuda"] == backends.unavailable("cuda", call.request)
    assert "none can run it" in str(plan)
    (call,) = explain((9, 3, 5, 8), device="H100", dtype=torch.float64).calls
    assert "float64" in call.reasons["cuda"]
    assert call.forward is None


def test_layers_that_cannot_share_a_call():
    both = [("LSTM, layer 0", 20, 5, 8, 1, 2), ("LSTM, layer 1", 20, 16, 8, 1, 2)]
    assert sizes(explain(nn.LSTM(5, 8, 2, bidirectional=True))) == both
    apart = [("LSTM, layer 0", 20, 5, 8, 1, 1), ("LSTM, layer 1", 20, 8, 8, 1, 1)]
    assert sizes(explain(nn.LSTM(5, 8, 2, dropout=0.5))) == apart
    assert sizes(explain(nn.LSTM(5, 8, 2, dropout=0.5), training=False)) == [("LSTM", 20, 5, 8, 2, 1)]


def test_lstms_in_a_model_of_somebody():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(5, 5), nn.LSTM(5, 8)), "b": nn.LSTM(5, 4, 3)})
    assert sizes(explain(model, steps=6)) == [("a.1", 6, 5, 8, 1, 1), ("b", 6, 5, 4, 3, 1)]
    classifier = lstmvid.SequenceClassifier(5, 8, 2, num_classes=3)
    assert [call[1:] for call in sizes(explain(classifier))] == [(20, 5, 8, 2, 1)]


@pytest.mark.parametrize(
    ("options", "decoders"),
    [
        ({"predict": "unconditional"}, [("reconstructor and predictor", 20, None, 8, 2, 2)]),
        ({}, [("reconstructor", 20, None, 8, 2, 1), ("predictor", 20, 12, 8, 2, 1)]),
        ({"copy_state": "predict"}, [("reconstructor", 20, None, 8, 2, 1), ("predictor", 19, 12, 8, 2, 1)]),
        ({"reconstruct": None}, [("predictor", 20, 12, 8, 2, 1)]),
    ],
)
def test_a_composite_model(options, decoders):
    model = FusedComposite(12, 8, 2, device="meta", **options)
    plan = explain(model, device="H100")
    assert sizes(plan) == [("encoder", 20, 12, 8, 2, 1), *decoders]
    assert all(call.request.peephole for call in plan.calls)


def test_numbers_for_programs():
    plan = explain((9, 3, 5, 8), device="H100", dtype=torch.bfloat16)
    read = json.loads(json.dumps(plan.as_dict()))
    (call,) = read["calls"]
    assert (read["device"], call["steps"], call["dtype"], call["backend"]) == ("H100", 9, "bfloat16", "torch")
    assert call["forward"]["plan"]["cluster"] == plan.calls[0].forward.plan.cluster
    assert call["backward"]["total"] == plan.calls[0].backward.total
    inference = explain((9, 3, 5, 8), device="H100", training=False).as_dict()["calls"][0]
    assert (inference["backward"], inference["kept_bytes"]) == (None, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (nn.Linear(2, 2), {}, ValueError, "Linear contains no LSTM"),
        ((1, 2, 3), {}, TypeError, r"a shape is \(T, B, D, H\)"),
        ("20 16", {}, TypeError, "a shape is"),
        ((0, 2, 3, 4), {}, ValueError, "steps must be a positive integer, got 0"),
        ((1, 2, 3, None), {}, ValueError, "hidden_size must be a positive integer, got None"),
        ((1, 2, 3, 4), {"steps": 4}, ValueError, "a shape has its own"),
        ((1, 2, 3, 4), {"device": "V100"}, ValueError, "device must be cpu, cuda, or one of A100"),
        ((1, 2, 3, 4), {"device": "mps"}, ValueError, "device must be cpu, cuda"),
        ((1, 2, 3, 4), {"backend": "fast"}, ValueError, "backend must be one of auto"),
        (nn.LSTM(2, 2), {"batch": -1}, ValueError, "batch must be a positive integer, got -1"),
    ],
)
def test_errors(arguments, options, error, words):
    with pytest.raises(error, match=words):
        explain(arguments, **{"device": "cpu"} | options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_should_be_here():
    with pytest.raises(ValueError, match="there is no GPU here for device 'cuda'"):
        explain((1, 2, 3, 4), device="cuda")
