"""`lstmvid.functional.lstm`: without input, ragged, with cell states, and every wrong argument by name."""

from __future__ import annotations

import pytest
import torch

import lstmvid
from lstmvid.functional import lstm

LAYERS, BATCH, FEATURES, HIDDEN = 2, 3, 5, 7


@pytest.fixture
def module():
    return torch.nn.LSTM(FEATURES, HIDDEN, LAYERS)


@pytest.fixture
def state():
    return torch.randn(LAYERS, BATCH, HIDDEN), torch.randn(LAYERS, BATCH, HIDDEN)


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch", "reference"])
def test_is_nn_lstm(module, state, backend):
    x = torch.randn(4, BATCH, FEATURES)
    expected, (h_n, c_n) = module(x, state)
    actual, final = lstm(x, state, list(module.parameters()), backend=backend)
    torch.testing.assert_close((actual, *final), (expected, h_n, c_n))


def test_bytes_are_scaled(module, state):
    x = torch.randint(0, 256, (4, BATCH, FEATURES), dtype=torch.uint8)
    weights = list(module.parameters())
    torch.testing.assert_close(lstm(x, state, weights)[0], lstm(x / 255, state, weights)[0])


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_without_input(module, state, backend):
    """No input is the same as zeros, without the weights that would multiply them."""
    weights = list(module.parameters())
    expected, _ = module(torch.zeros(4, BATCH, FEATURES), state)
    actual, _ = lstm(None, state, weights[1:], steps=4, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ragged_with_cells(module, state, backend):
    x, lengths = torch.randn(4, BATCH, FEATURES), torch.tensor([4, 1, 2])
    peephole = [torch.randn(3 * HIDDEN) for _ in range(LAYERS)]
    options = {"peephole": peephole, "all_cells": True, "backend": backend}
    weights = list(module.parameters())
    output, (h_n, c_n), cells = lstm(x, state, weights, lengths=lengths, **options)
    for b, length in enumerate(lengths):
        alone = tuple(s[:, b : b + 1] for s in state)
        expected, (h, c), c_all = lstm(x[:length, b : b + 1], alone, weights, **options)
        torch.testing.assert_close(output[:length, b : b + 1], expected)
        assert not output[length:, b].any()
        torch.testing.assert_close((h_n[:, b : b + 1], c_n[:, b : b + 1]), (h, c))
        torch.testing.assert_close(cells[:length, b : b + 1], c_all)


def test_compiles_as_one_graph(module, state):
    weights = list(module.parameters())
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (4, 9):
        x = torch.randn(steps, BATCH, FEATURES)
        torch.testing.assert_close(compiled(x, state, weights)[0], lstm(x, state, weights)[0])


X = torch.randn(4, BATCH, FEATURES)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input": X[0]}, ValueError, "input must be"),
        ({"input": X[:, :2]}, ValueError, "input must be"),
        ({"input": X[:0]}, ValueError, "empty sequence"),
        ({"input": X.double()}, TypeError, "input has dtype"),
        ({"input": X[..., :4]}, ValueError, "weight_ih of layer 0"),
        ({"input": None}, ValueError, "steps"),
        ({"input": None, "steps": 3}, ValueError, "one less: no input"),
        ({"steps": 3}, ValueError, "steps is 3, but input has 4"),
        ({"state": (torch.zeros(1, 2), torch.zeros(1, 2))}, ValueError, "state must be"),
        ({"state": (torch.zeros(2, 3, 7), torch.zeros(2, 3, 6))}, ValueError, "state must be"),
        ({"state": (torch.zeros(2, 3, 7).long(),) * 2}, TypeError, "floating point"),
        ({"weights": []}, ValueError, "weights must hold"),
        ({"peephole": [torch.zeros(21)]}, ValueError, "peephole must hold"),
        ({"peephole": [torch.zeros(21), torch.zeros(20)]}, ValueError, "peephole of layer 1"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths must be"),
        ({"lengths": torch.tensor([1.0, 2.0, 3.0])}, TypeError, "integers"),
        ({"lengths": torch.tensor([1, 2, 5])}, ValueError, "must lie in"),
        ({"lengths": torch.tensor([1, -2, 3])}, ValueError, "must lie in"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
        ({"backend": "cuda"}, lstmvid.BackendUnavailable, "cuda"),
        ({"backend": "torch", "all_cells": True}, lstmvid.BackendUnavailable, "last cell state"),
    ],
)
def test_wrong_arguments(module, state, arguments, error, words):
    defaults = {"input": X, "state": state, "weights": list(module.parameters())}
    with pytest.raises(error, match=words):
        lstm(**defaults | arguments)
