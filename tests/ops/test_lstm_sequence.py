"""Every backend's `lstm_sequence`, forward and in each gradient, against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import lstmvid
from lstmvid import backends, testing
from lstmvid.backends import Request, reference, windows
from lstmvid.ops.lstm_sequence import state_dtype
from lstmvid.testing import Case, check, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Triton's kernels take the CPU's tensors in its interpreter only: tests/backends/triton/interpret runs this file so.
BACKENDS = ["reference", "cpu"] + (["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else [])
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EXACT = {"triton": torch.float32}  # where it isn't float64: the widest dtype of a backend

# Sizes of one, odd ones, none that a tile divides, and every option by itself and with the others.
CASES = {
    "plain": {},
    "one of everything": {"steps": 1, "batch": 1, "input_size": 1, "hidden_size": 1},
    "one step": {"steps": 1, "peephole": True, "num_layers": 2},
    "one step without input": {"steps": 1, "input_size": None, "bias": False},
    "no input": {"input_size": None, "num_layers": 2},
    "no bias": {"bias": False, "hidden_size": 17},
    "peepholes": {"peephole": True, "num_layers": 3, "hidden_size": 19},
    "wide": {"batch": 101, "hidden_size": 130, "steps": 3},
    "no unit to spare": {"batch": 6, "hidden_size": 64, "input_size": 32},
    "reverse": {"reverse": (True,), "num_layers": 2},
    "two directions": {"groups": 2, "reverse": (False, True), "peephole": True},
    "groups": {"groups": 3, "shared_input": False, "num_layers": 2, "hidden_size": 33},
    "groups without input": {"groups": 2, "input_size": None, "peephole": True},
    "ragged": {"lengths": (5, 1, 3), "num_layers": 2, "peephole": True},
    "ragged, reverse, with an empty one": {"lengths": (0, 4, 2), "reverse": (True,), "num_layers": 2},
    "all cells": {"all_cells": True, "num_layers": 2, "peephole": True},
    "all cells, ragged, reverse": {"all_cells": True, "lengths": (2, 5, 3), "reverse": (True,), "peephole": True},
    "first step without a frame": {"blind": True, "num_layers": 2, "peephole": True},
    "first step without a frame, reverse": {"blind": True, "reverse": (True,), "bias": False},
    "first step without a frame, two directions": {"blind": True, "groups": 2, "reverse": (False, True)},
    "one step without a frame": {"blind": True, "steps": 1},
    "pixels": {"pixels": True, "num_layers": 2},
    "pixels, first step without a frame": {"pixels": True, "blind": True, "steps": 70, "reverse": (True,)},
    "long": {"steps": 70, "batch": 2, "hidden_size": 5, "input_size": 3},
}


def serves(backend: str, dtype: torch.dtype) -> None:
    """Skip what is no test of this backend: a dtype that it doesn't compute in."""
    if reason := backends.unavailable(backend, Request("cpu", dtype)):
        pytest.skip(reason)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(backend, dtype, name):
    serves(backend, dtype)
    check(Case(dtype=dtype, **CASES[name]), backend)


@st.composite
def _cases(draw):
    steps, batch = draw(st.integers(1, 9)), draw(st.integers(1, 14))
    groups = draw(st.integers(1, 3))
    lengths = draw(st.none() | st.tuples(*[st.integers(0, steps)] * batch))
    return Case(
        steps=steps,
        batch=batch,
        input_size=draw(st.none() | st.integers(1, 40)),
        hidden_size=draw(st.integers(1, 70)),
        num_layers=draw(st.integers(1, 3)),
        groups=groups,
        shared_input=draw(st.booleans()),
        bias=draw(st.booleans()),
        peephole=draw(st.booleans()),
        lengths=lengths,
        reverse=tuple(draw(st.booleans()) for _ in range(groups)),
        all_cells=draw(st.booleans()),
        blind=draw(st.booleans()) and lengths is None,
        pixels=draw(st.booleans()),
        recompute=draw(st.sampled_from(["none", "gates"])),
        chunk=draw(st.integers(1, 10)),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=_cases())
def test_cpu_on_drawn_shapes(case):
    check(case, "cpu")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, (5, 1, 3)])
@pytest.mark.parametrize("all_cells", [False, True])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.float64), ("cpu", torch.float64), ("cpu", torch.float32), ("cpu", torch.bfloat16)],
    ids=["reference", "cpu-float64", "cpu-float32", "cpu-bfloat16"],
)
def test_recomputed_gates(chunk, reverse, lengths, all_cells, backend, dtype):
    case = Case(
        recompute="gates",
        chunk=chunk,
        reverse=(reverse,),
        lengths=lengths,
        all_cells=all_cells,
        num_layers=2,
        peephole=True,
        dtype=dtype,
    )
    check(case, backend)


@pytest.mark.parametrize("name", CASES)
def test_gates_computed_again_on_the_cpu(name):
    check(Case(**CASES[name] | {"recompute": "gates", "chunk": 2}), "cpu")


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made, workspaces aside."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.uint8:
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_recomputing_on_the_cpu_keeps_no_gates():
    """What is as long as the sequence are the hidden states, the inputs and the gradients of both."""
    steps, batch, size = 40, 3, 16
    largest = {}
    for recompute in (False, True):
        case = Case(steps=steps, batch=batch, hidden_size=size, input_size=2, num_layers=2)
        arguments = _arguments(case, requires_grad=True)
        arguments[11], arguments[12] = recompute, 4
        with Largest() as of:
            output, *_ = torch.ops.lstmvid.lstm_sequence(*arguments, "cpu")
            output.sum().backward()
        largest[recompute] = of.elements
    assert largest == {False: 2 * steps * batch * 4 * size, True: steps * batch * size}


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "two directions", "ragged, reverse, with an empty one", "no input", "long"])
def test_windows_of_time_change_nothing(name, monkeypatch):
    """But for the order in which the library's products add up, which depends on their sizes."""
    case = Case(dtype=torch.float64, **CASES[name])
    whole = run(case, "cpu", backward=False).values
    monkeypatch.setitem(windows.MIN_STEPS, "cpu", 2)
    monkeypatch.setitem(windows.WINDOW_BYTES, "cpu", 0)
    for key, value in run(case, "cpu", backward=False).values.items():
        torch.testing.assert_close(value, whole[key], rtol=0, atol=1e-14)


def test_a_hundred_thousand_steps():
    """In one call as in ten with the state carried over, forward to the bit; with gradients that end."""
    steps, batch, size = 100_000, 2, 8
    lstm = lstmvid.LSTM(3, size, backend="cpu", recompute="gates")
    x = torch.randn(steps, batch, 3, requires_grad=True)
    output, (h_n, c_n) = lstm(x)
    with torch.no_grad():
        state, parts = None, []
        for part in x.split(steps // 10):
            y, state = lstm(part, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts), output)
    torch.testing.assert_close(state, (h_n, c_n))
    output[-1].sum().backward()
    assert x.grad[-1].abs().max() > 0
    assert torch.isfinite(x.grad).all()


def test_recomputing_saves_memory():
    """Saved: h of each step, c once a chunk, no gates."""
    case = Case(steps=10, dtype=torch.float32)
    arguments = _arguments(case)
    arguments[11], arguments[12] = True, 4
    output, _, _, hidden, cells, gates = torch.ops.lstmvid.lstm_sequence(*arguments, "reference")
    assert hidden.numel() == gates.numel() == 0
    assert cells.shape == (1, 1, 3, *output.shape[2:])


@pytest.mark.parametrize("instruction_set", ["avx512bf16", "avx512", "avx2", "portable"])
def test_other_instruction_sets(instruction_set):
    """The kernels for lesser processors, each in a process of its own: the choice is made once."""
    script = (
        "import torch; from lstmvid import _native; from lstmvid.testing import Case, check\n"
        f"assert _native.INSTRUCTION_SET in ('portable', {instruction_set!r}), _native.INSTRUCTION_SET\n"
        "for dtype in (torch.float64, torch.float32, torch.bfloat16):\n"
        "    check(Case(batch=11, hidden_size=37, peephole=True, num_layers=2, dtype=dtype), 'cpu')\n"
        "    check(Case(batch=3, hidden_size=8, lengths=(1, 5, 2), reverse=(True,), dtype=dtype), 'cpu')\n"
    )
    environment = os.environ | {"LSTMVID_CPU": instruction_set}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("batch", [17, 33, 50, 97, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpu_on_many_rows(batch, dtype):
    """Row tiles of every number and height, a last one alone, and a depth of several blocks that ends within a tile."""
    check(Case(steps=3, batch=batch, input_size=5, hidden_size=300, peephole=True, dtype=dtype), "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpu_rows_do_not_depend_on_their_neighbours(dtype):
    """A sequence has the same bits alone and among others, which no row tile shows that reads beyond its own."""
    case = Case(steps=4, batch=50, input_size=None, hidden_size=70, dtype=dtype)
    (h_0, c_0), weights = case.tensors["state"], [w.to(dtype) for w in case.tensors["weights"]]

    def run(rows):
        state = h_0[:, :, rows].to(dtype), c_0[:, :, rows].to(state_dtype(dtype))
        options = (case.bias, case.peephole, list(case.reverse), False, False, False, 64)
        return torch.ops.lstmvid.lstm_sequence([], *state, weights, None, case.steps, *options, "cpu")[0]

    together = run(slice(None))
    for rows in (slice(0, 1), slice(7, 24), slice(30, 50), slice(49, 50)):
        assert torch.equal(run(rows), together[:, :, rows])


def _arguments(case: Case, *, requires_grad: bool = False) -> list:
    """The operator's arguments up to the backend."""

    def leaf(tensor):
        return tensor.to(case.dtype, copy=True).requires_grad_(requires_grad)

    inputs, (h_0, c_0), weights = (list(map(leaf, case.tensors[key])) for key in ("inputs", "state", "weights"))
    c_0 = c_0.detach().to(state_dtype(case.dtype)).requires_grad_(requires_grad)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    options = (case.bias, case.peephole, list(case.reverse), True, case.all_cells, False, case.chunk)
    return [inputs, h_0, c_0, weights, lengths, case.steps, *options]


@pytest.mark.parametrize("lengths", [None, (1, 3)])
def test_gradcheck_of_the_reference(lengths):
    """The gradients written out in the reference are those of its forward, by finite differences."""
    case = Case(
        steps=3,
        batch=2,
        input_size=2,
        hidden_size=2,
        num_layers=2,
        peephole=True,
        lengths=lengths,
        all_cells=True,
        dtype=torch.float64,
    )
    inputs, h_0, c_0, weights, *rest = _arguments(case, requires_grad=True)

    def function(x, h, c, *w):
        output, h_n, c_n, _, cells, _ = torch.ops.lstmvid.lstm_sequence([x], h, c, list(w), *rest, "reference")
        return output, h_n, c_n, cells

    leaves = (*inputs, h_0, c_0, *weights)
    assert torch.autograd.gradcheck(function, leaves)
    # Of plain torch code, which gradcheck sees through, too.
    assert torch.autograd.gradcheck(
        lambda x, h, c, *w: reference.forward([x], h, c, list(w), *rest)[0], leaves, nondet_tol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("all_cells", [False, True])
def test_double_backward(backend, all_cells):
    serves(backend, torch.float64)
    case = Case(steps=2, batch=2, input_size=2, hidden_size=2, peephole=True, all_cells=all_cells, dtype=torch.float64)
    inputs, h_0, c_0, weights, *rest = _arguments(case, requires_grad=True)

    def function(x, h, c, *w):
        output, h_n, c_n, _, cells, _ = torch.ops.lstmvid.lstm_sequence([x], h, c, list(w), *rest, backend)
        return (output, h_n, c_n, cells) if all_cells else (output, h_n, c_n)

    assert torch.autograd.gradgradcheck(function, (*inputs, h_0, c_0, *weights))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"all_cells": True, "lengths": (5, 1, 3)}, {"input_size": None}])
def test_opcheck(backend, options):
    case = Case(num_layers=2, peephole=True, **options)
    arguments = (*_arguments(case, requires_grad=True), backend)
    result = torch.library.opcheck(torch.ops.lstmvid.lstm_sequence.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype, restored_threads):
    case = Case(steps=4, batch=13, input_size=None, hidden_size=200, peephole=True, dtype=dtype)
    arguments = _arguments(case)
    results = []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        forward = torch.ops.lstmvid.lstm_sequence(*arguments, "cpu")
        output, h_n, c_n, hidden, cells, gates = forward
        backward = torch.ops.lstmvid.lstm_sequence_bwd(
            *(output, h_n, c_n, None, *arguments[:5], output, hidden, cells, gates, case.steps, True, True, [False]),
            *(False, False, 256, False, False, "cpu"),
        )
        results.append((*forward, *backward))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_arguments(backend):
    case = Case(num_layers=2, dtype=EXACT.get(backend, torch.float64))
    expected = run(case, backend).values
    for key, tensors in case.tensors.items():
        case.tensors[key] = [_strided(tensor) for tensor in tensors]
    actual = run(case, backend).values
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-12, atol=1e-12, msg=name)


def _strided(tensor):
    """The same values, every second one of a larger tensor in the last dimension, dimensions stored in reverse."""
    order = list(reversed(range(tensor.dim())))
    stored = torch.full((*tensor.permute(order).shape, 2), float("nan"), dtype=tensor.dtype)
    stored[..., 0] = tensor.permute(order)
    return stored[..., 0].permute(order)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    values = run(Case(batch=0, num_layers=2, peephole=True), backend).values
    assert values["output"].shape == (1, 5, 0, 6)
    assert all((values[name] == 0).all() for name in values if name.startswith("grad_weight"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates(backend, dtype):
    """Pre-activations beyond exp's range: sigmoid and tanh reach their limits, gradients vanish, nothing is NaN."""
    serves(backend, dtype)
    case = Case(dtype=dtype, peephole=True, batch=20, hidden_size=20)
    case.tensors["inputs"] = [x * 1000 for x in case.tensors["inputs"]]
    check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_propagates(backend):
    """A NaN in one sequence reaches its own results, as in torch, and no other sequence's."""
    case = Case(batch=4)
    case.tensors["inputs"][0][2, 1] = float("nan")
    output = torch.ops.lstmvid.lstm_sequence(*_arguments(case), backend)[0][0]
    assert output[2:, 1].isnan().all()
    assert output[:2].isfinite().all()
    assert output[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_never_read(backend):
    case = Case(lengths=(5, 1, 3), num_layers=2, peephole=True)
    expected = run(case, backend).values
    case.tensors["inputs"][0][3:, 1] = 1e30
    actual = run(case, backend).values
    for name in ("output", "h_n", "c_n", "grad_h_0", "grad_c_0", "grad_weight_1"):
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_weights_and_inputs(backend):
    """Only what needs a gradient is computed, and it is the same."""
    case = Case(num_layers=2, dtype=EXACT.get(backend, torch.float64))
    expected = run(case, backend).values
    for frozen in ("inputs", "weights"):
        inputs, h_0, c_0, weights, *rest = _arguments(case, requires_grad=True)
        for tensor in inputs if frozen == "inputs" else weights:
            tensor.requires_grad_(False)
        output, h_n, c_n, *_ = torch.ops.lstmvid.lstm_sequence(inputs, h_0, c_0, weights, *rest, backend)
        seeds = [seed.to(case.dtype) for seed in case.tensors["seeds"]]
        torch.autograd.backward([output, h_n, c_n], seeds[:3])
        assert torch.equal(h_0.grad, expected["grad_h_0"])
        kept = weights[0].grad if frozen == "inputs" else inputs[0].grad
        assert torch.equal(kept, expected["grad_weight_0" if frozen == "inputs" else "grad_input_0"])
        assert all(t.grad is None for t in (inputs if frozen == "inputs" else weights))


def test_backward_needs_what_was_saved():
    arguments = _arguments(Case(), requires_grad=True)
    arguments[9] = False
    output = torch.ops.lstmvid.lstm_sequence(*arguments, "cpu")[0]
    with pytest.raises(RuntimeError, match="save=False"):
        output.sum().backward()


def test_check_can_fail():
    """A backend that is off by little is caught: here by a weight that differs in the sixth digit."""
    case = Case()
    wrong = Case(tensors={key: [t.clone() for t in tensors] for key, tensors in case.tensors.items()})
    wrong.tensors["weights"][1][0] *= 1.0001
    expected = run(case.with_dtype(torch.float64), None).values
    actual = run(wrong, "cpu").values
    plain = run(case, None).values
    off = testing.error(actual["output"], expected["output"])
    assert off > 2 * testing.error(plain["output"], expected["output"]) + testing.FLOORS[torch.float32]


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_wrong_tensors_never_reach_a_kernel(index, wrong):
    arguments = _arguments(Case(lengths=(5, 1, 3)))
    target = arguments[index][0] if isinstance(arguments[index], list) else arguments[index]
    bad = target[..., :-1] if wrong == "shape" else target.to(torch.float16)
    arguments[index] = [bad, *arguments[index][1:]] if isinstance(arguments[index], list) else bad
    with pytest.raises(ValueError, match="must be"):
        torch.ops.lstmvid.lstm_sequence(*arguments, "cpu")
