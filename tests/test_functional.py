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
@pytest.mark.parametrize("lengths", [None, (7, 2, 5)])
@pytest.mark.parametrize("has_input", [True, False])
def test_truncated(state, backend, lengths, has_input):
    """The same output; the gradient of each stretch alone, as a loop over stretches with detached states has it."""
    steps, truncate = 7, 3
    lstm_module = torch.nn.LSTM(FEATURES, HIDDEN, LAYERS).double()
    weights = list(lstm_module.parameters())[0 if has_input else 1 :]
    h, c = (s.double().requires_grad_() for s in state)
    x = torch.randn(steps, BATCH, FEATURES).double().requires_grad_()
    lengths = None if lengths is None else torch.tensor(lengths)
    leaves = [h, c, *weights] + [x] * has_input
    options = {"backend": backend, "all_cells": True}

    def call(first, last, state, **more):
        of = {"lengths": None if lengths is None else (lengths - first).clamp(0, last - first)}
        return lstm(x[first:last] if has_input else None, state, weights, steps=last - first, **of, **options, **more)

    whole, final, cells = call(0, steps, (h, c), truncate=truncate)
    plain = call(0, steps, (h, c))
    torch.testing.assert_close((whole, *final, cells), (plain[0], *plain[1], plain[2]))
    gradients = torch.autograd.grad(whole.square().sum() + final[1].sum() + cells.sum(), leaves)

    loss, carried = 0, (h, c)
    for first in range(0, steps, truncate):
        output, carried, seen = call(first, min(first + truncate, steps), carried)
        loss = loss + output.square().sum() + seen.sum()
        if first + truncate < steps:
            carried = tuple(s.detach() for s in carried)
    expected = torch.autograd.grad(loss + carried[1].sum(), leaves)
    for actual, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    unlike = torch.autograd.grad(plain[0].square().sum() + plain[1][1].sum() + plain[2].sum(), leaves)
    assert not torch.allclose(unlike[2], gradients[2])


@pytest.mark.parametrize("truncate", [0, -1])
def test_truncate_is_at_least_one(module, state, truncate):
    with pytest.raises(ValueError, match=f"truncate must be at least 1, got {truncate}"):
        lstm(torch.randn(4, BATCH, FEATURES), state, list(module.parameters()), truncate=truncate)


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
