"""`backend="cuda"` as users call it, with the emulated kernels in the native module's place and tensors on the CPU.

The planner, the backend's Python, the bindings and the kernels' own source together, against the float64 reference.
"""

from __future__ import annotations

import importlib.util

import pybind11
import pytest
import torch

import lstmvid
from lstmvid import _native, backends
from lstmvid.backends import plan as planner
from lstmvid.backends.cuda import lstm_sequence as backend
from lstmvid.testing import GPU_CASES, Case, check

CASES = GPU_CASES | {
    "odd": {"batch": 33, "hidden_size": 117, "steps": 3, "peephole": True},
    "aligned": {"batch": 16, "hidden_size": 128, "input_size": 64},
}
# An H100 with a few multiprocessors, so that few threads have to be emulated.
SMALL = planner.DEVICES["H100"]._replace(name="a small H100", multiprocessors=6, active_clusters=(6, 3, 1, 0))


@pytest.fixture(scope="module")
def emulated(emulation):
    found = f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"
    (path,) = emulation("lstmvid_emulated", 90, "none", found).glob("lstmvid_emulated*.so")
    spec = importlib.util.spec_from_file_location("lstmvid_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cuda(emulated, monkeypatch):
    """The backend, on the CPU's tensors."""
    monkeypatch.setattr(_native, "_C", emulated)
    monkeypatch.setattr(_native, "DTYPES", _native.DTYPES | {torch.float16: emulated.FLOAT16})
    monkeypatch.setattr(backend, "target_of", lambda device: backend.Target(SMALL, 0, 0))
    monkeypatch.setattr(backends.cuda, "unavailable", lambda request: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return backend


@pytest.mark.usefixtures("cuda", "poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(name, dtype):
    check(Case(dtype=dtype, **CASES[name]), "cuda")


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_time_chunks_change_no_bit(cuda, monkeypatch, options):
    lstm, x = lstmvid.LSTM(24, 72, 2, **options, backend="cuda"), torch.randn(11, 9, 24)
    expected = lstm(x)
    monkeypatch.setattr(cuda, "MIN_CHUNK", 3)
    monkeypatch.setattr(cuda, "CHUNK_BYTES", 0)
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
    frames, targets = torch.rand(4, 5, 30), torch.rand(3, 5, 30)
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
