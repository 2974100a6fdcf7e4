"""Every backend's `closed_loop`, forward and in each gradient, against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmvid import BackendUnavailable
from lstmvid.nn.likelihoods import LIKELIHOODS
from lstmvid.ops import LayerWeights, closed_loop
from lstmvid.ops.closed_loop import LINKS
from lstmvid.ops.lstm_sequence import state_dtype
from lstmvid.testing import LoopCase, check, run_loop

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BACKENDS = ["reference", "cpu"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
CASES = {
    "plain": {},
    "one of everything": {"steps": 1, "batch": 1, "frame_size": 1, "hidden_size": 1},
    "one step on a frame": {"steps": 1, "first": True, "mixed": True, "peephole": True},
    "layers": {"num_layers": 3, "peephole": True, "hidden_size": 19, "first": True},
    "no bias": {"bias": False, "hidden_size": 17, "link": "identity"},
    "some true frames": {"mixed": True, "num_layers": 2, "peephole": True, "batch": 13},
    "wide": {"batch": 101, "frame_size": 130, "hidden_size": 70, "steps": 3, "mixed": True, "link": "rectifier"},
    "no lane to spare": {"frame_size": 64, "hidden_size": 64, "num_layers": 2, "batch": 6},
    "small frames": {"frame_size": 2, "hidden_size": 70, "link": "rectifier"},
    "long": {"steps": 60, "batch": 2, "link": "identity", "mixed": True},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(backend, dtype, name):
    check(LoopCase(dtype=dtype, **CASES[name]), backend)


@st.composite
def _cases(draw):
    return LoopCase(
        steps=draw(st.integers(1, 7)),
        batch=draw(st.integers(1, 14)),
        frame_size=draw(st.integers(1, 140)),
        hidden_size=draw(st.integers(1, 70)),
        num_layers=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        peephole=draw(st.booleans()),
        mixed=draw(st.booleans()),
        first=draw(st.booleans()),
        link=draw(st.sampled_from(["identity", "sigmoid"])),  # a rectifier's slope jumps where rounding decides
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=_cases())
def test_cpu_on_drawn_shapes(case):
    check(case, "cpu")


@pytest.mark.parametrize("batch", [17, 50, 97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpu_on_many_rows(batch, dtype):
    """Row tiles of every number and height, and depths of several blocks that end within a tile."""
    case = LoopCase(steps=3, batch=batch, hidden_size=70, frame_size=300, num_layers=2, mixed=True, dtype=dtype)
    check(case, "cpu")


@pytest.mark.parametrize("instruction_set", ["avx512bf16", "avx512", "avx2", "portable"])
def test_other_instruction_sets(instruction_set):
    """The kernels for lesser processors, each in a process of its own: the choice is made once."""
    script = (
        "import torch; from lstmvid.testing import LoopCase, check\n"
        "for dtype in (torch.float64, torch.float32, torch.bfloat16):\n"
        "    check(LoopCase(batch=11, hidden_size=37, frame_size=75, num_layers=2, mixed=True, dtype=dtype), 'cpu')\n"
    )
    environment = os.environ | {"LSTMVID_CPU": instruction_set}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _arguments(case: LoopCase, *, requires_grad: bool = False, save: bool = True) -> list:
    """The operator's arguments up to the backend."""

    def leaf(tensor):
        return tensor.to(case.dtype, copy=True).requires_grad_(requires_grad)

    keys = ("first", "state", "weights", "head", "truth")
    first, (h_0, c_0), weights, head, truth = (list(map(leaf, case.tensors[key])) for key in keys)
    c_0 = c_0.detach().to(state_dtype(case.dtype)).requires_grad_(requires_grad)
    own = [draws > 0 for draws in case.tensors["own"]]
    frame, true, mask = (tensors[0] if tensors else None for tensors in (first, truth, own))
    options = (case.steps, case.bias, case.peephole, case.link, save)
    return [frame, h_0, c_0, weights, *head, true, mask, *options]


SMALL = {"steps": 3, "batch": 2, "frame_size": 2, "hidden_size": 2, "num_layers": 2, "peephole": True}


def _function(case: LoopCase, backend: str):
    """The operator of its differentiable tensors alone, and these."""
    arguments = _arguments(case, requires_grad=True)
    first, h_0, c_0, weights, head, bias, truth, own, *options = arguments

    def function(h, c, w_out, b_out, *others):
        frames, w = others[: 2 * case.mixed], others[2 * case.mixed :]
        x, true = frames if case.mixed else (None, None)
        call = (x, h, c, list(w), w_out, b_out, true, own, *options, backend)
        return torch.ops.lstmvid.closed_loop(*call)[:3]

    frames = [first, truth] if case.mixed else []
    return function, (h_0, c_0, head, bias, *frames, *weights)


@pytest.mark.parametrize("link", LINKS)
def test_gradcheck_of_the_reference(link):
    """The gradients written out in the reference are those of its forward, by finite differences."""
    case = LoopCase(**SMALL, mixed=True, first=True, link=link, dtype=torch.float64)
    function, leaves = _function(case, "reference")
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_double_backward(backend, mixed):
    case = LoopCase(**SMALL, mixed=mixed, first=mixed, dtype=torch.float64)
    function, leaves = _function(case, backend)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"mixed": True, "first": True, "peephole": True}])
def test_opcheck(backend, options):
    arguments = (*_arguments(LoopCase(num_layers=2, **options), requires_grad=True), backend)
    result = torch.library.opcheck(torch.ops.lstmvid.closed_loop.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype, restored_threads):
    case = LoopCase(steps=4, batch=13, frame_size=150, hidden_size=200, num_layers=2, peephole=True, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        results.append(torch.ops.lstmvid.closed_loop(*_arguments(case), "cpu"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_same_gradients_for_any_number_of_threads(restored_threads):
    """The kernel's own, of the states; the weights' are products of the library over all steps."""
    case = LoopCase(steps=4, batch=13, frame_size=150, hidden_size=200, num_layers=2, mixed=True, first=True)
    results = []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        values = run_loop(case, "cpu").values
        results.append([values[name] for name in ("grad_state_0", "grad_state_1")])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_not_saved_changes_nothing():
    case = LoopCase(num_layers=2, peephole=True, mixed=True)
    kept = torch.ops.lstmvid.closed_loop(*_arguments(case), "cpu")
    bare = torch.ops.lstmvid.closed_loop(*_arguments(case, save=False), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(kept[:3], bare[:3], strict=True))
    assert all(tensor.numel() == 0 for tensor in bare[3:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    values = run_loop(LoopCase(batch=0, num_layers=2, peephole=True, mixed=True, first=True), backend).values
    assert values["z"].shape == (5, 0, 7)
    assert all((value == 0).all() for name, value in values.items() if name.startswith("grad_weight"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_arguments(backend):
    case = LoopCase(num_layers=2, dtype=torch.float64, mixed=True, first=True)
    expected = run_loop(case, backend).values
    for key, tensors in case.tensors.items():
        case.tensors[key] = [torch.stack([tensor, tensor + 1], -1)[..., 0] for tensor in tensors]
    for name, value in run_loop(case, backend).values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_frozen_weights_and_frames():
    """Only what needs a gradient is computed, and it is the same."""
    case = LoopCase(num_layers=2, mixed=True, first=True)
    expected = run_loop(case, "cpu").values
    for frozen in ("frames", "weights"):
        first, h_0, c_0, weights, head, bias, truth, own, *options = _arguments(case, requires_grad=True)
        for tensor in (first, truth) if frozen == "frames" else (*weights, head, bias):
            tensor.requires_grad_(False)
        call = (first, h_0, c_0, weights, head, bias, truth, own, *options, "cpu")
        seeds = [seed.float() for seed in case.tensors["seeds"]]
        torch.autograd.backward(torch.ops.lstmvid.closed_loop(*call)[:3], seeds)
        assert torch.equal(h_0.grad, expected["grad_state_0"].float())
        assert (first.grad is None) == (truth.grad is None) == (frozen == "frames")
        assert (weights[0].grad is None) == (head.grad is None) == (frozen == "weights")
        kept, name = (head, "head_0") if frozen == "frames" else (truth, "truth_0")
        assert torch.equal(kept.grad, expected[f"grad_{name}"].float())


def test_true_frames_where_the_decoder_said_nothing():
    """A frame that isn't its own has no path back to what the decoder said before."""
    case = LoopCase(mixed=True, link="identity")
    case.tensors["own"] = [torch.full_like(case.tensors["own"][0], -1.0)]
    arguments = _arguments(case, requires_grad=True)
    z = torch.ops.lstmvid.closed_loop(*arguments, "cpu")[0]
    (of_bias,) = torch.autograd.grad(z[-1].sum(), arguments[5])
    assert torch.equal(of_bias, torch.full_like(of_bias, case.batch))  # from the last step's own head alone


def test_links_are_the_likelihoods_means():
    z = torch.randn(3, 4)
    first = {likelihood.link: likelihood.mean(z) for likelihood in LIKELIHOODS.values()}
    assert set(first) == set(LINKS)
    for link, frame in first.items():
        case = LoopCase(steps=2, batch=3, frame_size=4, link=link)
        weights = [w.float() for w in case.tensors["weights"]]
        head_weight, head_bias = torch.zeros(4, 6), torch.zeros(4)
        layers = [LayerWeights(*weights, torch.zeros_like(weights[2]))]
        state = torch.zeros(1, 3, 6), torch.zeros(1, 3, 6)
        # A head that says nothing but its bias: after one step the loop goes on from the link of that.
        for row in range(3):
            said = closed_loop(None, *state, layers, head_weight, head_bias + z[row], steps=2, link=link)
            seen = closed_loop(
                *(
                    None,
                    *state,
                    layers,
                    head_weight,
                    head_bias,
                ),
                **{"steps": 2, "link": link, "truth": frame[row].expand(1, 3, 4), "own": torch.zeros(1, 3).bool()},
            )
            torch.testing.assert_close(said.h_n, seen.h_n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link": "tanh"}, "link must be one of identity, sigmoid, rectifier, got 'tanh'"),
        ({"own": None}, "truth and own must both be given"),
        ({"truth": torch.zeros(3, 3, 7)}, r"truth must be \(4, 3, 7\)"),
        ({"own": torch.zeros(4, 3)}, r"own must be \(4, 3\) of torch.bool"),
        ({"first": torch.zeros(3, 6)}, r"first must be \(3, 7\)"),
        ({"head_bias": torch.zeros(6)}, r"head_bias must be \(7,\)"),
        ({"head_weight": torch.zeros(7, 6).double()}, "head_weight must be"),
        ({"weights": []}, "takes 6 weights, got 0"),
    ],
)
def test_wrong_arguments_never_reach_a_kernel(change, message):
    names = ("first", "h_0", "c_0", "weights", "head_weight", "head_bias", "truth", "own")
    names += ("steps", "bias", "peephole", "link", "save")
    arguments = dict(zip(names, _arguments(LoopCase(num_layers=2, mixed=True)), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        torch.ops.lstmvid.closed_loop(*arguments.values(), "cpu")


@pytest.mark.parametrize("backend", ["torch", "cuda", "triton"])
def test_backends_that_have_none(backend):
    with pytest.raises(BackendUnavailable, match="step by step, not as one call"):
        run_loop(LoopCase(), backend)


def test_backward_needs_what_was_saved():
    arguments = _arguments(LoopCase(), requires_grad=True, save=False)
    with pytest.raises(RuntimeError, match="save=False"):
        torch.ops.lstmvid.closed_loop(*arguments, "cpu")[0].sum().backward()
