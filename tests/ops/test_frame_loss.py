"""Every backend's `frame_loss`, and each gradient, against the float64 reference, which autograd differentiates."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from lstmvid import BackendUnavailable, testing
from lstmvid.backends import reference, streaming
from lstmvid.nn.likelihoods import LIKELIHOODS
from lstmvid.ops import frame_loss

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Triton's kernels take the CPU's tensors in its interpreter only: tests/backends/triton/interpret runs this file so.
BACKENDS = ["reference"] + (["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else [])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (T, B, H, D): one of everything, odd, several tiles, a tile exactly.
SIZES = {"ones": (1, 1, 1, 1), "odd": (3, 5, 19, 7), "tiles": (5, 17, 70, 67), "exact": (4, 16, 64, 64)}


def draw(sizes, dtype, likelihood, *, with_bias=True, as_bytes=False, scale=1.0):
    steps, batch, hidden, features = sizes
    of = {"generator": torch.Generator().manual_seed(3), "dtype": torch.float64}
    tensors = [torch.randn(steps, batch, hidden, **of), torch.randn(features, hidden, **of) * scale * hidden**-0.5]
    tensors += [torch.randn(features, **of)] if with_bias else [None]
    values = torch.randn if likelihood == "gaussian" else torch.rand
    target = values(steps, batch, features, **of)
    if as_bytes:
        target = (target.abs().clamp(max=1) * 255).to(torch.uint8)
    rounded = [None if tensor is None else tensor.to(dtype).double() for tensor in tensors]
    return *rounded, target if as_bytes else target.to(dtype).double()


def results(tensors, target, likelihood, dtype, compute) -> dict[str, torch.Tensor]:
    """The loss and the gradients by `compute`, as float64."""
    leaves = [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in tensors]
    target = target if target.dtype == torch.uint8 else target.to(dtype)
    loss = compute(*leaves, target, likelihood)
    there = {name: leaf for name, leaf in zip(("hidden", "weight", "bias"), leaves, strict=True) if leaf is not None}
    gradients = torch.autograd.grad(loss, list(there.values()))
    return {"loss": loss.detach().double()} | {n: g.double() for n, g in zip(there, gradients, strict=True)}


def plainly(hidden, weight, bias, target, likelihood):
    """`nn.Linear` and the model's likelihood: what a user would write."""
    target = target.to(hidden.dtype) / 255 if target.dtype == torch.uint8 else target
    return LIKELIHOODS[likelihood].loss(torch.nn.functional.linear(hidden, weight, bias), target)


def agree(backend, dtype, likelihood, sizes, **options):
    *tensors, target = draw(sizes, dtype, likelihood, **options)
    expected = results(tensors, target, likelihood, torch.float64, plainly)
    plain = results(tensors, target, likelihood, dtype, plainly)

    def ours(*arguments):
        return frame_loss(*arguments, backend=backend)

    for name, value in results(tensors, target, likelihood, dtype, ours).items():
        magnitude = max(expected[name].abs().max().item(), 1.0)
        bound = 2 * testing.error(plain[name], expected[name]) + testing.FLOORS[dtype] * magnitude
        assert testing.error(value, expected[name]) <= bound, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_reference(backend, dtype, likelihood, size):
    agree(backend, dtype, likelihood, SIZES[size])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("options", [{"with_bias": False}, {"as_bytes": True}])
def test_without_bias_and_of_bytes(backend, likelihood, options):
    agree(backend, torch.float32, likelihood, SIZES["odd"], **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
def test_frames_at_a_time(backend, chunk_bytes, monkeypatch):
    monkeypatch.setattr(sys.modules["lstmvid.ops.frame_loss"], "CHUNK_BYTES", chunk_bytes)
    agree(backend, torch.float32, "bernoulli", (5, 3, 10, 6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_logits_beyond_what_exp_can_hold(backend, dtype):
    """A sigmoid first, and its logarithm is infinite here."""
    agree(backend, dtype, "bernoulli", SIZES["odd"], scale=3000.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_of_nearly_nothing_keeps_its_digits(backend):
    """Where targets are certain and right it is exp(-z), far below what 1 + exp(-z) can tell from 1."""
    hidden, weight = torch.ones(1, 1, 1, dtype=torch.float32), torch.full((4, 1), 25.0)
    loss = frame_loss(hidden, weight, None, torch.ones(1, 1, 4), backend=backend)
    torch.testing.assert_close(loss, 4 * torch.exp(torch.tensor(-25.0)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients(backend):
    *tensors, target = draw(SIZES["odd"], torch.float32, "bernoulli")
    tensors, target = [tensor.float() for tensor in tensors], target.float()
    with torch.no_grad():
        loss = frame_loss(*tensors, target, backend=backend)
    torch.testing.assert_close(loss, plainly(*tensors, target, "bernoulli"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_at_all(backend):
    hidden, weight, bias = torch.zeros(3, 0, 4, requires_grad=True), torch.zeros(2, 4, requires_grad=True), None
    loss, *gradients = torch.ops.lstmvid.frame_loss(
        hidden, weight, bias, torch.zeros(3, 0, 2), "gaussian", True, 1, backend
    )
    assert loss == 0
    assert [tuple(gradient.shape) for gradient in gradients] == [(3, 0, 4), (2, 4), (0,)]
    assert (gradients[1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_nan_is_not_hidden(backend, likelihood):
    hidden = torch.ones(2, 2, 3)
    hidden[1, 0, 2] = float("nan")
    assert frame_loss(hidden, torch.ones(4, 3), None, torch.zeros(2, 2, 4), likelihood, backend=backend).isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck(backend, save, with_bias):
    *tensors, target = draw(SIZES["odd"], torch.float32, "bernoulli", with_bias=with_bias)
    leaves = [None if tensor is None else tensor.float().requires_grad_(save) for tensor in tensors]
    arguments = (*leaves, target.float(), "bernoulli", save, 2, backend)
    result = torch.library.opcheck(torch.ops.lstmvid.frame_loss.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_and_theirs_by_finite_differences(likelihood, with_bias):
    *tensors, target = draw((2, 3, 3, 2), torch.float64, likelihood, with_bias=with_bias)
    leaves = [tensor.requires_grad_() for tensor in tensors if tensor is not None]

    def function(hidden, weight, bias=None):
        return frame_loss(hidden, weight, bias, target, likelihood, backend="reference")

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_it_compiles_as_a_whole():
    *tensors, target = draw(SIZES["odd"], torch.float32, "bernoulli")
    leaves = [tensor.float().requires_grad_() for tensor in tensors]
    loss = torch.compile(frame_loss, fullgraph=True, backend="aot_eager")(*leaves, target.float())
    torch.testing.assert_close(loss, plainly(*leaves, target.float(), "bernoulli"))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves))


def test_no_logits_of_all_frames_in_memory():
    """The reference, whose largest tensor but the frames themselves is a chunk's."""
    steps, batch, features = 50, 2, 40
    *tensors, target = draw((steps, batch, 3, features), torch.float32, "bernoulli", as_bytes=True)
    leaves = [tensor.float().requires_grad_() for tensor in tensors]
    made = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            made.extend(
                t.untyped_storage().nbytes()
                for t in (result if isinstance(result, tuple) else (result,))
                if isinstance(t, torch.Tensor)
            )
            return result

    with Sizes():
        reference.frame_loss(*leaves, target, "bernoulli", True, 5)
    assert max(made) <= max(5 * batch * features * 4, steps * batch * features)  # the frames are bytes


def test_autocast():
    *tensors, target = draw(SIZES["odd"], torch.float32, "gaussian")
    tensors, target = [tensor.float() for tensor in tensors], target.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = frame_loss(*tensors, target, "gaussian")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plainly(*tensors, target, "gaussian"), rtol=0.02, atol=0.02)


def arguments(**changes):
    given = {"hidden": torch.zeros(2, 3, 4), "weight": torch.zeros(5, 4), "bias": torch.zeros(5)}
    return given | {"target": torch.zeros(2, 3, 5)} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": torch.zeros(2, 4)}, ValueError, r"hidden must be \(T, B, H\)"),
        ({"weight": torch.zeros(5, 3)}, ValueError, r"weight must be \(5, 4\)"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \(5,\)"),
        ({"target": torch.zeros(2, 3, 4)}, ValueError, r"target must be \(2, 3, 5\)"),
        ({"target": torch.zeros(2, 3, 5, dtype=torch.int64)}, TypeError, "target must be torch.float32"),
        ({"weight": torch.zeros(5, 4).double()}, TypeError, "weight must be torch.float32"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be one of bernoulli"),
        ({"target": torch.zeros(2, 3, 5, requires_grad=True)}, ValueError, "target has no gradient"),
        ({"backend": "cpu"}, BackendUnavailable, "has none, only reference and triton"),
        ({"backend": "fastest"}, ValueError, "backend must be one of"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        frame_loss(**arguments(**changes))


def test_backward_needs_what_was_saved():
    given = arguments(hidden=torch.zeros(2, 3, 4, requires_grad=True))
    loss = torch.ops.lstmvid.frame_loss(*given.values(), "gaussian", False, 1, "reference")[0]
    with pytest.raises(RuntimeError, match="save=False"):
        loss.backward()


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_in_host_memory(backend, as_bytes, monkeypatch):
    """A chunk at a time, with and without gradients: the loss and the gradients of targets on the device."""
    *tensors, target = draw(SIZES["odd"], torch.float32, "bernoulli", as_bytes=as_bytes)
    target = target if as_bytes else target.float()

    def loss(*arguments):
        return frame_loss(*arguments, backend=backend)

    expected = results(tensors, target, "bernoulli", torch.float32, loss)
    monkeypatch.setattr(sys.modules["lstmvid.ops.frame_loss"], "CHUNK_ROWS", 1)
    monkeypatch.setattr(streaming, "is_elsewhere", lambda given, _: given.data_ptr() == target.data_ptr())
    actual = results(tensors, target, "bernoulli", torch.float32, loss)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        alone = loss(*(tensor.float() for tensor in tensors), target, "bernoulli")
    torch.testing.assert_close(alone.double(), expected["loss"], rtol=1e-5, atol=1e-5)


def test_nothing_mixes_devices():
    """On the device "meta", which keeps no values, and with targets in host memory."""
    hidden, weight, bias = (torch.empty(size, device="meta") for size in ((4, 3, 6), (5, 6), (5,)))
    target = torch.randint(0, 256, (4, 3, 5), dtype=torch.uint8)
    found = reference.frame_loss(hidden, weight, bias, target, "gaussian", True, 2)
    assert all(tensor.is_meta for tensor in found)
    with pytest.raises(ValueError, match="target is on cpu, hidden on meta"):
        frame_loss(hidden, weight, bias, target)
