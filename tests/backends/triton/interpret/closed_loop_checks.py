"""`closed_loop` of the backend `triton` under Triton's interpreter, on the CPU, against the float64 reference.

Run by test_interpreted.py in a process of its own with TRITON_INTERPRET=1. What holds for both ways to run a loop, and
what is of one launch alone; closed_loop_graph_checks.py has what is of launches a step.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import lstmvid
from lstmvid.backends.triton import closed_loop_fwd, closed_loop_steps, gate_sums, launch
from lstmvid.backends.triton import closed_loop_whole_kernels as kernels
from lstmvid.testing import LoopCase, check, run_loop

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {
    "plain": {},
    "one of everything": {"steps": 1, "batch": 1, "frame_size": 1, "hidden_size": 1},
    "one sequence": {"batch": 1, "peephole": True, "first": True},
    "one step on a frame": {"steps": 1, "first": True, "mixed": True, "peephole": True},
    "two layers": {"num_layers": 2, "peephole": True, "hidden_size": 9, "first": True, "steps": 3},
    "no bias, no nonlinearity": {"bias": False, "hidden_size": 17, "link": "identity"},
    "rectified": {"link": "rectifier", "mixed": True},
    "some true frames": {"mixed": True, "num_layers": 2, "peephole": True, "batch": 7, "steps": 4},
    "some true frames, linear": {"mixed": True, "first": True, "link": "identity", "steps": 4},
    "a tile exactly": {"batch": 16, "hidden_size": 16, "frame_size": 16, "steps": 3},
    "several tiles": {"batch": 17, "hidden_size": 35, "frame_size": 70, "steps": 2, "mixed": True},
    "small frames": {"frame_size": 2, "hidden_size": 33, "link": "rectifier", "steps": 3},
    "large frames": {"frame_size": 70, "hidden_size": 2, "num_layers": 2, "mixed": True, "steps": 2},
    "long": {"steps": 12, "batch": 2, "hidden_size": 5, "frame_size": 3, "mixed": True},
}


@pytest.fixture(autouse=True)
def short_sums(monkeypatch):
    """Rows that aren't there are walked through one block after the other here."""
    monkeypatch.setattr(gate_sums, "PART_ROWS", 32)


@pytest.fixture(params=["all_steps", "product"], ids=["one launch", "by steps"])
def way(request, monkeypatch) -> SimpleNamespace:
    """Both ways to run a loop: what launches it, by name, and the names of what was launched."""
    made = []

    def watched(name: str):
        method = getattr(closed_loop_steps.Steps, name)

        def call(*arguments, **flags) -> None:
            made.append(name)
            method(*arguments, **flags)

        return call

    for name in ("all_steps", "product"):
        monkeypatch.setattr(closed_loop_steps.Steps, name, watched(name))
    if request.param == "product":
        monkeypatch.setattr(closed_loop_steps, "choose_whole", lambda *sizes, **options: None)
    return SimpleNamespace(name=request.param, made=made)


def test_it_is_the_interpreter_that_runs():
    assert launch.is_interpreted()


@pytest.mark.parametrize("name", CASES)
def test_agrees(way, name):
    """A dtype for each case, in turn."""
    check(LoopCase(dtype=DTYPES[list(CASES).index(name) % 3], **CASES[name]), "triton")
    assert set(way.made) == {way.name}
    assert way.name == "product" or len(way.made) == 2  # forward and backward


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", CASES)
def test_agrees_in_every_dtype(way, name, dtype):
    check(LoopCase(dtype=dtype, **CASES[name]), "triton")


@pytest.mark.parametrize("name", ["two layers", "some true frames", "one step on a frame"])
def test_without_gradients(way, name):
    with torch.no_grad():
        check(LoopCase(**CASES[name]), "triton", backward=False)


def test_three_layers_go_by_steps():
    loop = closed_loop_steps.Steps(torch.zeros(3, 2, 9), 7, backward=False)
    assert loop.whole is None
    check(LoopCase(num_layers=3, peephole=True, hidden_size=9, first=True, steps=3), "triton")


MIXED = {"steps": 3, "batch": 2, "num_layers": 2, "hidden_size": 5, "frame_size": 3}
MIXED |= {"mixed": True, "first": True, "peephole": True}


def layers_of(way: SimpleNamespace) -> int:
    """As many as go that way in float32 backward as well."""
    return 1 if way.name == "all_steps" else 2


def watched_kernel(monkeypatch, name: str) -> list[tuple[tuple[int, ...], dict]]:
    """Grid and flags of each launch of forward's kernel of that name, as they come."""
    kernel, seen = getattr(closed_loop_fwd, name), []

    class Watched:
        def __getitem__(self, grid):
            def launch(*arguments, **flags) -> None:
                seen.append((grid, flags))
                kernel[grid](*arguments, **flags)

            return launch

    monkeypatch.setattr(closed_loop_fwd, name, Watched())
    return seen


def test_one_launch_is_one_launch(monkeypatch):
    """However long, and no CUDA graph."""
    seen = watched_kernel(monkeypatch, "loop_whole_fwd_kernel")
    monkeypatch.setattr(closed_loop_steps, "GRAPH_STEPS", 2)
    monkeypatch.setattr(closed_loop_steps.graphs, "run", None)
    check(LoopCase(**MIXED | {"steps": 3, "batch": 33}), "triton", backward=False)
    assert [grid for grid, _ in seen] == [(3,)]


@torch.no_grad()
def test_one_launch_needs_no_work_that_is_not_kept(monkeypatch):
    """Forward without gradients: neither hidden states nor projections, for any number of steps."""
    made, run = [], closed_loop_fwd._Run.run

    def watched(self) -> torch.Tensor:
        made.append(self)
        return run(self)

    monkeypatch.setattr(closed_loop_fwd._Run, "run", watched)
    run_loop(LoopCase(**MIXED), "triton", backward=False)
    (call,) = made
    assert (call.hidden, call.projection, len(call.pieces)) == (None, None, 1)
    assert call.h.shape == (1, 2, 2, 5)


def test_sequences_know_nothing_of_each_other():
    """Bit for bit the same beside 16 others, whichever tile they are in."""
    case = LoopCase(**MIXED | {"batch": 19}, dtype=torch.bfloat16)
    alone = LoopCase(**MIXED | {"batch": 2}, dtype=torch.bfloat16)
    for key in ("first", "state", "truth", "own", "seeds"):
        alone.tensors[key] = [tensor[-2:] if key == "first" else tensor[:, -2:] for tensor in case.tensors[key]]
    for key in ("weights", "head"):
        alone.tensors[key] = case.tensors[key]
    together, values = (run_loop(each, "triton").values for each in (case, alone))
    for name in ("z", "h_n", "c_n", "grad_state_0", "grad_state_1"):
        assert torch.equal(values[name], together[name][:, -2:]), name


@torch.no_grad()
def test_a_frame_comes_from_z_as_it_is_returned(way):
    """Rounded: the same frames given as true ones change no bit."""
    case = LoopCase(steps=3, batch=4, frame_size=30, dtype=torch.bfloat16)
    tensors = {key: [tensor.bfloat16() for tensor in given] for key, given in case.tensors.items()}
    h_0, c_0 = tensors["state"]
    call = (None, h_0, c_0.float(), tensors["weights"], *tensors["head"])
    options = (case.steps, True, False, "sigmoid", False, "triton")
    z, h_n, _, *_ = torch.ops.lstmvid.closed_loop(*call, None, None, *options)
    frames = torch.sigmoid(z[:-1].float()).bfloat16()
    given = torch.ops.lstmvid.closed_loop(*call, frames, torch.zeros(2, 4, dtype=torch.bool), *options)
    assert torch.equal(given[0], z)
    assert torch.equal(given[1], h_n)


def test_weights_that_changed_are_seen(way):
    """In place, as an optimiser does, and moved to other memory."""
    model = lstmvid.FusedComposite(6, 5, num_layers=2, reconstruct=None, backend="triton")
    frames = torch.rand(1, 3, 6)
    for change in (None, None, "in place", "moved"):
        parameters = [*model.predictor.parameters(), *model.prediction_head.parameters()]
        for parameter in parameters if change else []:
            other = torch.randn_like(parameter) * 0.3
            with torch.no_grad():
                parameter.copy_(other) if change == "in place" else setattr(parameter, "data", other)
        plain = lstmvid.FusedComposite(6, 5, num_layers=2, reconstruct=None, backend="reference")
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(model.predict(frames, 3), plain.predict(frames, 3), rtol=1e-4, atol=1e-5)


def test_tensors_that_begin_anywhere(way, monkeypatch):
    """Parts of a larger tensor, at an odd element: then nobody promises the compiler more."""
    case = LoopCase(**MIXED | {"hidden_size": 16, "frame_size": 16, "steps": 2})
    seen = watched_kernel(monkeypatch, "loop_whole_fwd_kernel" if way.name == "all_steps" else "loop_head_kernel")
    tensors = {key: [tensor.float() for tensor in given] for key, given in case.tensors.items()}

    def call() -> list[torch.Tensor]:
        frames = tensors["first"][0], *tensors["state"]
        mixture = tensors["truth"][0], tensors["own"][0] > 0
        options = (case.steps, True, True, "sigmoid", False, "triton")
        return torch.ops.lstmvid.closed_loop(*frames, tensors["weights"], *tensors["head"], *mixture, *options)

    expected = call()
    assert {flags["ALIGNED"] for _, flags in seen} == {True}
    seen.clear()
    for key, given in tensors.items():
        tensors[key] = [torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape) for tensor in given]
    assert tensors["weights"][0].data_ptr() % 16
    for ours, wanted in zip(call(), expected, strict=True):
        assert torch.equal(ours, wanted)
    assert {flags["ALIGNED"] for _, flags in seen} == {False}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_some_results_are_used(way, which):
    """Backward of z, of h_n or of c_n alone: what wasn't used has no gradient to be read."""
    case = LoopCase(**MIXED | {"num_layers": layers_of(way)})
    tensors = case.tensors
    results = []
    for backend in ("triton", "reference"):
        leaves = [t.float().requires_grad_() for key in ("first", "state", "weights", "head") for t in tensors[key]]
        first, h_0, c_0, *weights, head, bias = leaves
        call = (first, h_0, c_0, weights, head, bias, tensors["truth"][0].float(), tensors["own"][0] > 0)
        outputs = torch.ops.lstmvid.closed_loop(*call, case.steps, True, True, "sigmoid", True, backend)
        results.append(torch.autograd.grad(outputs[which].square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert set(way.made) == {way.name}


@pytest.mark.parametrize(("likelihood", "feedback"), [("bernoulli", 0.5), ("gaussian", 1.0), ("rectified", 0.5)])
def test_a_composite_sees_what_it_says(way, likelihood, feedback):
    """Generation, and a training step, on its own frames and with scheduled sampling."""
    options = {"num_layers": layers_of(way), "reconstruct": None, "likelihood": likelihood, "copy_state": ("predict",)}
    models = [lstmvid.FusedComposite(12, 8, **options, backend=name) for name in ("triton", "reference")]
    models[1].load_state_dict(models[0].state_dict())
    frames, targets, results = torch.rand(2, 3, 12), torch.rand(4, 3, 12), []
    for model in models:
        torch.manual_seed(1)
        loss = model(frames, targets, feedback=feedback).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss, *gradients, model.predict(frames, 5)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert set(way.made) <= {way.name}  # a linear decoder on its own output needs no loop


@torch.no_grad()
def test_offsets_beyond_32_bits_in_one_launch():
    """Frames of more than 2^31 values, of which the first few sequences are run; memory that nobody touches is free."""
    torch.use_deterministic_algorithms(False)  # else all of it would be filled
    steps, frame, few = 10, 64, 3
    assert (steps - 1) * (1 << 22) * frame > 1 << 31
    truth, own, seeds = torch.randn(steps, few, frame), torch.rand(steps, few) < 0.5, torch.randn(steps, few, frame)
    weights = [torch.randn(4, frame), torch.randn(4, 1), torch.randn(frame, 1), torch.randn(frame)]

    def run(batch: int) -> list[torch.Tensor]:
        """z, the gates' gradients and those of z of the first few sequences of so many."""

        def wide(given: torch.Tensor) -> torch.Tensor:
            tensor = given.new_empty(steps, batch, *given.shape[2:])
            tensor[:, :few] = given
            return tensor

        state = torch.zeros(1, batch, 1)
        layer = {name: state.clone() for name in ("h_from", "c", "c_start", "grad_h", "grad_c")}
        layer |= {"output": torch.empty(steps, batch, 1), "cells": torch.empty(steps, batch, 1)}
        layer |= {"gates": torch.empty(steps, batch, 4), "grad_gates": torch.empty(steps, batch, 4)}
        layer |= {"weight_hh": weights[1]}
        z, of_z, mask = torch.empty(steps, batch, frame), torch.empty(steps, batch, frame), wide(own).byte()
        common = {"own": mask.data_ptr(), "z": z}
        head = common | {"weight": weights[2], "bias": weights[3], "target": z, "truth": wide(truth)}
        bottom = {"weight": weights[0], "source": torch.zeros(batch, frame)}
        above = {"weight": weights[2]}
        frames = common | {"weight": weights[0], "target": of_z, "grad_z": wide(seeds)}
        flags = {"DTYPE": kernels.tl.float32, "PRECISION": "ieee", "LAYERS": 1, "LINK": "sigmoid", "ALIGNED": True}
        flags |= {"HAS_PEEPHOLE": False, "HAS_TRUTH": True, "BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_D": frame}
        loop = closed_loop_steps.Steps(state, frame, backward=False)
        sizes = (steps, min(batch, 1 << 22), 1, frame)

        def forward(table, _aligned) -> None:
            kernels.loop_whole_fwd_kernel[(1,)](table, *sizes, HAS_BIAS=False, SAVE=True, **flags)

        def backward(table, _aligned) -> None:
            kernels.loop_whole_bwd_kernel[(1,)](table, *sizes, HAS_GRAD_Z=True, **flags)

        loop.run((), [layer], [bottom, head], forward)
        loop.run((), [layer], [frames, above], backward)
        return [tensor[:, :few].clone() for tensor in (z, layer["grad_gates"], of_z)]

    for ours, expected in zip(run(1 << 22), run(few), strict=True):
        assert torch.equal(ours, expected)
