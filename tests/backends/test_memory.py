"""Which calls compute their gates again where the caller leaves it open."""

from __future__ import annotations

import pytest
import torch

import lstmvid
from lstmvid.backends import Request, memory
from lstmvid.backends.estimate import kept_bytes

REQUEST = Request("cpu", torch.float32, steps=100, batch=8, input_size=16, hidden_size=32, needs_grad=True)


@pytest.mark.parametrize("name", ["cpu", "cuda", "triton", "reference"])
def test_an_eighth_of_the_memory_is_the_limit(name):
    kept = kept_bytes(REQUEST)
    assert not memory.recomputes(name, REQUEST, total=8 * kept)
    assert memory.recomputes(name, REQUEST, total=8 * kept - 8)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"needs_grad": False}, "cpu"), ({"recompute": "none"}, "cpu"), ({}, "torch"), ({"device": "meta"}, "cpu")],
)
def test_nothing_to_compute_again(change, name):
    total = None if "device" in change else 1
    assert not memory.recomputes(name, REQUEST._replace(**change), total=total)


def test_what_is_asked_for_is_done():
    assert memory.recomputes("cpu", REQUEST._replace(recompute="gates"), total=1 << 60)


def test_total_memory():
    assert 1 << 28 < memory.total_bytes("cpu") <= memory.CPU_BYTES
    assert memory.total_bytes("meta") is None


def test_auto_decides_by_memory(monkeypatch):
    """An LSTM that would keep too much keeps hidden states only, and has the same gradients."""
    lstm = lstmvid.LSTM(3, 8, backend="cpu", dtype=torch.float64)
    x = torch.randn(200, 2, 3, dtype=torch.float64)
    gradients = []
    for total in (1 << 40, 1 << 10):
        monkeypatch.setattr(memory, "CPU_BYTES", total)
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output, _ = lstm(x)
        gradients.append(torch.autograd.grad(output.square().sum(), list(lstm.parameters())))
        assert (200 * 2 * 4 * 8 in kept) == (total == 1 << 40)  # the gates
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_explain_says_so(monkeypatch):
    module = lstmvid.LSTM(3, 8, peephole=True)
    assert "gates computed again" not in str(lstmvid.explain(module, device="cpu", steps=100, batch=4))
    monkeypatch.setattr(memory, "CPU_BYTES", 1 << 10)
    assert "gates computed again" in str(lstmvid.explain(module, device="cpu", steps=100, batch=4))
