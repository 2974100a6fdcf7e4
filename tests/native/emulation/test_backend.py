"""`backend="cuda"` as users call it, with the emulated kernels in the native module's place and tensors on the CPU.

The planner, the backend's Python, the bindings and the kernels' own source together, against the float64 reference.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lstmvid
from lstmvid.backends import plan as planner
from lstmvid.backends import windows
from lstmvid.backends.cuda import recurrence
from lstmvid.backends.wavefront import Wavefront
from lstmvid.testing import GPU_CASES, Case, check

CASES = GPU_CASES | {
    "odd": {"batch": 33, "hidden_size": 117, "steps": 3, "peephole": True},
    "aligned": {"batch": 16, "hidden_size": 128, "input_size": 64},
}


@pytest.mark.usefixtures("cuda", "poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(name, dtype):
    check(Case(dtype=dtype, **CASES[name]), "cuda")


@pytest.mark.usefixtures("cuda", "poisoned_memory")
@pytest.mark.parametrize("chunk", [1, 2, 3, 256])
@pytest.mark.parametrize("name", CASES)
def test_gates_computed_again(name, chunk):
    dtype = (torch.float32, torch.bfloat16, torch.float16)[chunk % 3]
    check(Case(dtype=dtype, **CASES[name] | {"recompute": "gates", "chunk": chunk}), "cuda")


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.uint8:  # a workspace
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.usefixtures("cuda")
def test_recomputing_keeps_no_gates():
    """What is as long as the sequence are the hidden states, the inputs and the gradients of both."""
    steps, batch, size = 40, 3, 16
    largest = {}
    for recompute in ("none", "gates"):
        inputs, state = [torch.rand(steps, batch, 2)], torch.zeros(1, 2, batch, size)
        shapes = ((64, 2), (64, 16), (64, 16), (64, 16))
        weights = [torch.rand(shape, requires_grad=True) for shape in shapes]
        options = (None, steps, False, False, [False], True, False, recompute == "gates", 4)
        with Largest() as of:
            output, *_ = torch.ops.lstmvid.lstm_sequence(inputs, state, state, weights, *options, "cuda")
            output.sum().backward()
        largest[recompute] = of.elements
    assert largest == {"none": 2 * steps * batch * 4 * size, "gates": steps * batch * size}


@torch.no_grad()
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_time_chunks_change_no_bit(monkeypatch, options):
    lstm, x = lstmvid.LSTM(24, 72, 2, **options, backend="cuda"), torch.randn(11, 9, 24)
    expected = lstm(x)
    monkeypatch.setitem(windows.MIN_STEPS, "cuda", 3)
    monkeypatch.setitem(windows.WINDOW_BYTES, "cuda", 0)
    actual = lstm(x)
    assert torch.equal(actual[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(actual[1], expected[1], strict=True))


@torch.no_grad()
@pytest.mark.usefixtures("cuda", "poisoned_memory")
def test_what_is_saved_for_backward():
    """Gates and cell states, which autograd hides: those of the reference."""
    case = Case(hidden_size=40, num_layers=2, peephole=True, batch=9)
    inputs, (h_0, c_0), weights = ([t.float() for t in case.tensors[k]] for k in ("inputs", "state", "weights"))
    options = (inputs, h_0, c_0, weights, None, case.steps, True, True, [False], True, False, False, 256)
    ours, expected = (torch.ops.lstmvid.lstm_sequence(*options, name) for name in ("cuda", "reference"))
    for tensor, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("predict", ["conditional", "unconditional"])
def test_composite_without_gradients(predict):
    model = lstmvid.FusedComposite(30, 40, 2, predict=predict, backend="cuda")
    other = lstmvid.FusedComposite(30, 40, 2, predict=predict, backend="reference")
    other.load_state_dict(model.state_dict())
    frames, targets = torch.rand(4, 5, 30), torch.rand(3, 5, 30)
    ours, expected = model(frames, targets), other(frames, targets)
    for name in ("reconstruction", "prediction", "loss"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.predict(frames, 3), other.predict(frames, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("predict", ["conditional", "unconditional"])
def test_a_training_step(predict):
    model = lstmvid.FusedComposite(30, 40, 2, predict=predict, peephole=True, backend="cuda")
    other = lstmvid.FusedComposite(30, 40, 2, predict=predict, peephole=True, backend="reference")
    other.load_state_dict(model.state_dict())
    # As many frames to predict as to reconstruct: decoders that are alike share their launches.
    frames, targets = torch.rand(4, 5, 30), torch.rand(4, 5, 30)
    for each in (model, other):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        each(frames, targets).loss.backward()
        optimizer.step()
    for (name, ours), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("cuda", "poisoned_memory")
@pytest.mark.parametrize(("wanted", "output"), [("input", 1), ("h_0", 2), ("weight", 0)])
def test_gradients_of_a_part(wanted, output):
    """Frozen weights, a frozen input, and only some of the results used."""
    case = Case(hidden_size=40, num_layers=2, peephole=True, batch=9)
    inputs, (h_0, c_0), weights = ([t.float() for t in case.tensors[k]] for k in ("inputs", "state", "weights"))
    leaf = {"input": inputs[0], "h_0": h_0, "weight": weights[1]}[wanted].requires_grad_()
    options = (inputs, h_0, c_0, weights, None, case.steps, True, True, [False], True, False, False, 256)

    def gradient(name: str) -> torch.Tensor:
        result = torch.ops.lstmvid.lstm_sequence(*options, name)[output]
        return torch.autograd.grad(result.square().sum(), leaf)[0]

    torch.testing.assert_close(gradient("cuda"), gradient("reference"), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("cuda")
def test_an_empty_batch():
    lstm = lstmvid.LSTM(3, 8, backend="cuda")
    output, (h_n, c_n) = lstm(torch.zeros(5, 0, 3))
    assert (output.shape, h_n.shape, c_n.shape) == ((5, 0, 8), (1, 0, 8), (1, 0, 8))
    output.sum().backward()
    assert all(torch.equal(weight.grad, torch.zeros_like(weight)) for weight in lstm.parameters())


IN_A_WAVEFRONT = {
    "two layers": {"num_layers": 2},
    "three layers, peepholes, backwards": {"num_layers": 3, "peephole": True, "reverse": (True,), "hidden_size": 19},
    "no input, no bias": {"num_layers": 2, "input_size": None, "bias": False},
    "no input": {"num_layers": 4, "input_size": None, "hidden_size": 40, "batch": 9},
    "all cells": {"num_layers": 2, "all_cells": True, "peephole": True},
    "windows as long as the sequence": {"num_layers": 2, "steps": 3},
    "gates computed again": {"num_layers": 3, "recompute": "gates", "chunk": 2},
}


@pytest.fixture
def in_a_wavefront(cuda, monkeypatch) -> list[str]:
    """Windows of three steps, however slow a launch is; tells the directions that ran like that."""
    seen = []

    def side_by_side(steps, hidden, batch, layers, *of, backward, window, **options):
        seen.append("backward" if backward else "forward")
        together = planner.plan(hidden, batch, *of, groups=layers, backward=backward, **options)
        assert together.groups == layers
        return Wavefront(window or 3, together, 0.0)

    monkeypatch.setattr(recurrence, "wavefront", side_by_side)
    return seen


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", IN_A_WAVEFRONT)
def test_layers_side_by_side(name, dtype, in_a_wavefront):
    case = Case(dtype=dtype, **{"steps": 7} | IN_A_WAVEFRONT[name])
    check(case, "cuda")
    check(case, "cuda", backward=False)
    backward = [] if case.recompute == "gates" else ["backward"]
    assert in_a_wavefront == ["forward", *backward, "forward"]


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 5, 7])
def test_a_wavefront_changes_no_bit(window, in_a_wavefront, small_gpu, monkeypatch):
    """With one division of the work it is the same sums, layer by layer or side by side."""
    together = recurrence.wavefront
    monkeypatch.setattr(recurrence, "wavefront", lambda *of, **options: together(*of, **options | {"window": window}))
    lstm, x = lstmvid.LSTM(24, 40, 3, backend="cuda"), torch.randn(7, 9, 24)
    expected = lstm(x)
    division = planner.plan(40, 9, torch.float32, small_gpu, groups=3)
    monkeypatch.setattr(recurrence, "plan", lambda *of, **options: division)
    monkeypatch.setattr(recurrence, "wavefront", lambda *of, **options: None)
    actual = lstm(x)
    assert torch.equal(actual[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(actual[1], expected[1], strict=True))
