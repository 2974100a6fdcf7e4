"""What autograd and the modes around it see of an operator, and how much Python a small call costs beside `nn.LSTM`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

import lstmvid
from lstmvid.functional import lstm
from lstmvid.ops import LayerWeights, closed_loop

BACKENDS = ["cpu", "reference"]
STEPS, BATCH, SIZE = 4, 3, 5


class Sequence:
    """A call of `lstm_sequence`, two layers with biases, and the leaves that it differentiates in."""

    operator = "lstm_sequence"

    def __init__(self, backend: str, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(1)
        self.backend = backend
        weights = [weight.detach() for weight in nn.LSTM(SIZE, SIZE, num_layers=2, dtype=dtype).parameters()]
        x, h, c = (torch.randn(*shape, dtype=dtype) for shape in ((STEPS, BATCH, SIZE), *[(2, BATCH, SIZE)] * 2))
        self.leaves = [tensor.requires_grad_() for tensor in (x, h, c, *weights)]

    def __call__(self) -> torch.Tensor:
        x, h, c, *weights = self.leaves
        return lstm(x, (h, c), weights, backend=self.backend)[0]


class Loop(Sequence):
    """A call of `closed_loop`, two layers with biases and a first frame."""

    operator = "closed_loop"

    def __init__(self, backend: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(backend, dtype)
        head, bias = torch.randn(SIZE, SIZE, dtype=dtype), torch.randn(SIZE, dtype=dtype)
        self.leaves[0] = torch.randn(BATCH, SIZE, dtype=dtype, requires_grad=True)
        self.leaves += [head.requires_grad_(), bias.requires_grad_()]

    def __call__(self) -> torch.Tensor:
        first, h, c, *weights, head, bias = self.leaves
        layers = [LayerWeights(*weights[:4]), LayerWeights(*weights[4:])]
        return closed_loop(first, h, c, layers, head, bias, steps=STEPS, link="sigmoid", backend=self.backend).z


CALLS = [(call, backend) for call in (Sequence, Loop) for backend in BACKENDS]
each_call = pytest.mark.parametrize(("make", "backend"), CALLS, ids=[f"{c.operator}-{b}" for c, b in CALLS])


def gradients(call: Sequence) -> list[torch.Tensor]:
    return list(torch.autograd.grad(call().square().sum(), call.leaves))


# ---- What is saved ----


@each_call
def test_saved_tensors_go_through_hooks(make, backend):
    """All that backward reads, and it reads what the hooks give back."""
    call = make(backend)
    expected, packed = gradients(call), []

    def pack(tensor):
        packed.append(tensor.numel())
        return tensor.detach().clone()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call().square().sum()
    assert len(packed) > len(call.leaves)
    assert packed.count(2 * STEPS * BATCH * 4 * SIZE) == 1  # the gates
    assert all(map(torch.equal, torch.autograd.grad(output, call.leaves), expected))
    with save_on_cpu():
        output = call().square().sum()
    assert all(map(torch.equal, torch.autograd.grad(output, call.leaves), expected))


@each_call
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(make, backend, reentrant):
    """What a call saved is dropped and made again."""
    call = make(backend)
    expected = gradients(call)
    checkpoint(lambda _: call(), call.leaves[0], use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(leaf.grad, grad) for leaf, grad in zip(call.leaves, expected, strict=True))


@each_call
def test_a_change_in_place_of_what_is_saved_is_refused(make, backend):
    """Of an argument, in a list or not, as of a result."""
    for index in (0, 1, 3):
        call = make(backend)
        loss = call().sum()
        with torch.no_grad():
            call.leaves[index].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    call = make(backend)
    output = call()
    output.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@each_call
def test_no_graph_where_nothing_needs_a_gradient(make, backend):
    call = make(backend)
    with torch.no_grad():
        assert call().grad_fn is None
    assert call().requires_grad
    for leaf in call.leaves:
        leaf.requires_grad_(False)
    output = call()
    assert output.grad_fn is None
    assert not output.requires_grad


@each_call
def test_gradients_that_nobody_asks_for(make, backend):
    """One leaf at a time, from a list or not: the others get none, and its own is the same."""
    expected = gradients(make(backend))
    for index in range(len(expected)):
        call = make(backend)
        for other, leaf in enumerate(call.leaves):
            leaf.requires_grad_(other == index)
        call().square().sum().backward()
        torch.testing.assert_close(call.leaves[index].grad, expected[index])
        assert [leaf.grad is not None for leaf in call.leaves].count(True) == 1


@each_call
def test_double_backward(make, backend):
    """The gradient of a gradient's norm, in each leaf, is the reference's."""
    results = []
    for name in (backend, "reference"):
        call = make(name, torch.float64)
        first = torch.autograd.grad(call().square().sum(), call.leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), call.leaves))
    torch.testing.assert_close(*results)


@each_call
def test_without_create_graph_backward_makes_no_graph(make, backend):
    assert all(grad.grad_fn is None for grad in gradients(make(backend)))


@each_call
def test_no_garbage_is_left_to_the_collector(make, backend):
    """Tensors that only Python's garbage collector frees would fill the memory before it runs."""
    call = make(backend)
    gradients(call)
    gc.collect()
    gc.disable()
    found = []
    try:
        for _ in range(3):  # a step's own is found each time, what an earlier test left behind is not
            gradients(call)
            found.append(gc.collect())
    finally:
        gc.enable()
    assert 0 in found, found


# ---- Modes and compilers ----


class Seen(TorchDispatchMode):
    """The operators of ours that were called below autograd, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lstmvid":
            self.calls[function._opname] = args
        return function(*args, **kwargs or {})


@each_call
def test_a_dispatch_mode_sees_both_directions(make, backend):
    call = make(backend)
    with Seen() as seen:
        gradients(call)
    assert list(seen.calls) == [make.operator, f"{make.operator}_bwd"]


@each_call
def test_opcheck_of_backward(make, backend):
    """Which is an operator by itself, and differentiable. Compiled it is in other tests, in a minute less."""
    with Seen() as seen:
        gradients(make(backend))
    name = f"{make.operator}_bwd"
    arguments = tree_map_only(torch.Tensor, lambda t: t.detach().requires_grad_(), seen.calls[name])
    which = ("test_schema", "test_autograd_registration", "test_faketensor")
    result = torch.library.opcheck(getattr(torch.ops.lstmvid, name).default, arguments, test_utils=which)
    assert set(result.values()) == {"SUCCESS"}


@each_call
def test_a_transform_is_refused_by_the_operator_itself(make, backend):
    """The functions above it run plain torch code there; an error, and no gradient that is lost."""
    with Seen() as seen:
        make(backend)()
    operator, (frames, *others) = getattr(torch.ops.lstmvid, make.operator), seen.calls[make.operator]
    listed = isinstance(frames, list)
    x = frames[0] if listed else frames
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: operator([x] if listed else x, *others)[0].sum())(x.detach())


@each_call
def test_fake_tensors(make, backend):
    """Shapes of results and gradients without a kernel; a real call after it is a real one."""
    with FakeTensorMode():
        call = make(backend)
        output = call()
        grads = torch.autograd.grad(output.sum(), call.leaves)
        assert output.shape == (STEPS, BATCH, SIZE)
        assert [grad.shape for grad in grads] == [leaf.shape for leaf in call.leaves]
        assert type(grads[0]) is not torch.Tensor
    assert all(type(grad) is torch.Tensor and grad.isfinite().all() for grad in gradients(make(backend)))


class Marked(torch.Tensor):
    """A subclass that changes nothing."""


@each_call
def test_tensor_subclasses(make, backend):
    call = make(backend)
    expected = gradients(call)
    call.leaves = [leaf.detach().as_subclass(Marked).requires_grad_() for leaf in call.leaves]
    output = call()
    assert type(output) is Marked
    assert all(map(torch.equal, torch.autograd.grad(output.square().sum(), call.leaves), expected))


@each_call
def test_compiled_and_eager_in_turn(make, backend):
    """One graph without a break, joint with its backward; what ran eagerly before and after is the same."""
    call = make(backend)
    expected = gradients(call)
    compiled = torch.compile(lambda: call().square().sum(), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(list(torch.autograd.grad(compiled(), call.leaves)), expected)
        assert all(map(torch.equal, gradients(call), expected))


@each_call
def test_exported_with_gradients_to_come(make, backend):
    """The graph has the operator by its name and runs with gradients."""

    class Module(nn.Module):
        def forward(self, x):
            call.leaves[0] = x
            return call()

    call = make(backend)
    x, call.leaves[1:] = call.leaves[0], [leaf.detach() for leaf in call.leaves[1:]]
    program = torch.export.export(Module(), (x,))
    assert any(str(node.target).startswith(f"lstmvid.{make.operator}") for node in program.graph.nodes)
    call.leaves[0] = x
    torch.testing.assert_close(program.module()(x), call())


# ---- What a small call costs ----


def python_calls(function: Callable[[], None]) -> int:
    """Of Python and of C functions, made by one call that isn't the first."""
    function()
    count = 0

    def note(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_python_of_a_small_training_step():
    """Beside the same count of `nn.LSTM`'s in the same process, which has all of torch's own in it."""

    def step(module):
        output, _ = module(x)
        output.sum().backward()

    x = torch.randn(10, 4, 16)
    for backend, most in (("auto", 1.5), ("cpu", 6.5)):
        module, plain = lstmvid.LSTM(16, 16, backend=backend), nn.LSTM(16, 16)
        theirs = python_calls(lambda plain=plain: step(plain))
        ours = python_calls(lambda module=module: step(module))
        assert ours <= most * theirs, f"backend {backend}: {ours} calls, torch.nn.LSTM {theirs}"
