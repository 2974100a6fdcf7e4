"""`closed_loop` of the backend `triton` under Triton's interpreter, on the CPU, against the float64 reference.

Run by test_interpreted.py in a process of its own with TRITON_INTERPRET=1. A graph here is a list of launches made
again: as of a captured one, all that a replay can know of a call is what the graph's table says.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import lstmvid
from lstmvid.backends.triton import closed_loop_kernels as kernels
from lstmvid.backends.triton import closed_loop_steps, configuration, gate_sums, graphs, launch, record_kernels
from lstmvid.backends.windows import Window
from lstmvid.testing import LoopCase, check, run_loop

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {
    "plain": {},
    "one of everything": {"steps": 1, "batch": 1, "frame_size": 1, "hidden_size": 1},
    "one sequence": {"batch": 1, "peephole": True, "first": True},
    "one step on a frame": {"steps": 1, "first": True, "mixed": True, "peephole": True},
    "three layers": {"num_layers": 3, "peephole": True, "hidden_size": 9, "first": True, "steps": 3},
    "no bias, no nonlinearity": {"bias": False, "hidden_size": 17, "link": "identity"},
    "rectified": {"link": "rectifier", "mixed": True},
    "some true frames": {"mixed": True, "num_layers": 2, "peephole": True, "batch": 7, "steps": 4},
    "some true frames, linear": {"mixed": True, "first": True, "link": "identity", "steps": 4},
    "a tile exactly": {"batch": 16, "hidden_size": 16, "frame_size": 16, "steps": 3},
    "several tiles": {"batch": 17, "hidden_size": 35, "frame_size": 70, "steps": 2, "mixed": True},
    "small frames": {"frame_size": 2, "hidden_size": 33, "link": "rectifier", "steps": 3},
    "long": {"steps": 12, "batch": 2, "hidden_size": 5, "frame_size": 3, "mixed": True},
}


@pytest.fixture(autouse=True)
def short_sums(monkeypatch):
    """Rows that aren't there are walked through one block after the other here."""
    monkeypatch.setattr(gate_sums, "PART_ROWS", 32)


def test_it_is_the_interpreter_that_runs():
    assert launch.is_interpreted()


@pytest.mark.parametrize("name", CASES)
def test_agrees(name):
    """A dtype for each case, in turn."""
    check(LoopCase(dtype=DTYPES[list(CASES).index(name) % 3], **CASES[name]), "triton")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", CASES)
def test_agrees_in_every_dtype(name, dtype):
    check(LoopCase(dtype=dtype, **CASES[name]), "triton")


@pytest.mark.parametrize("name", ["three layers", "some true frames", "one step on a frame"])
def test_without_gradients(name):
    with torch.no_grad():
        check(LoopCase(**CASES[name]), "triton", backward=False)


MIXED = {"steps": 3, "batch": 2, "num_layers": 2, "hidden_size": 5, "frame_size": 3}
MIXED |= {"mixed": True, "first": True, "peephole": True}


def assert_same(case: LoopCase, expected: dict[str, torch.Tensor], *, backward: bool = True) -> None:
    for name, value in run_loop(case, "triton", backward=backward).values.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("length", "dtype"), [(1, torch.float32), (2, torch.bfloat16)])
def test_pieces_change_no_bit(length, dtype, monkeypatch):
    """As long as a graph; what crosses them is in full precision."""
    case = LoopCase(**MIXED, dtype=dtype)
    whole = run_loop(case, "triton").values
    monkeypatch.setattr(closed_loop_steps, "GRAPH_STEPS", length)
    assert_same(case, whole)


@torch.no_grad()
def test_work_that_is_not_kept_is_bounded(monkeypatch):
    case = LoopCase(**MIXED)
    whole = run_loop(case, "triton", backward=False).values
    monkeypatch.setattr(closed_loop_steps, "WORK_BYTES", 0)  # one step at a time
    assert_same(case, whole, backward=False)


def test_pieces():
    assert closed_loop_steps.pieces(3, 0) == [Window(0, 3)]
    assert closed_loop_steps.pieces(257, 0) == [Window(0, 129), Window(129, 257)]
    assert closed_loop_steps.pieces(3, 1 << 40) == [Window(0, 1), Window(1, 2), Window(2, 3)]
    assert closed_loop_steps.pieces(100, closed_loop_steps.WORK_BYTES // 51) == [Window(0, 50), Window(50, 100)]


class Replayed(SimpleNamespace):
    """In a captured graph's place: the launches of the call that captured it, of the graph's own table."""

    def replay(self) -> None:
        self.count += 1
        self.launches(self.table)


@pytest.fixture
def captured(monkeypatch) -> SimpleNamespace:
    """Graphs on the CPU while they are `on`: those that were captured, and the stream on which launches are made."""
    seen = SimpleNamespace(graphs=[], stream=1, on=True)

    def capture(launches, table):
        seen.graphs.append(Replayed(launches=launches, table=table, count=0))
        return graphs.Captured(seen.graphs[-1], table)

    def stream(_device):
        return SimpleNamespace(device_index=0, cuda_stream=seen.stream)

    monkeypatch.setattr(graphs, "GRAPHS", graphs.GraphCache())
    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(graphs, "_is_short_of_memory", lambda device: False)
    monkeypatch.setattr(graphs, "can_capture", lambda device: seen.on)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    return seen


def one_by_one(case: LoopCase, captured: SimpleNamespace, *, backward: bool = True) -> dict[str, torch.Tensor]:
    captured.on = False
    values = run_loop(case, "triton", backward=backward).values
    captured.on = True
    return values


def test_a_replayed_graph_gives_the_same_bits(captured, monkeypatch):
    """As launches one by one; a graph each for the first and the last piece, forward and backward."""
    monkeypatch.setattr(closed_loop_steps, "GRAPH_STEPS", 2)
    case = LoopCase(**MIXED | {"steps": 4, "mixed": False})  # no mask to hide what lies beyond the last step
    expected = one_by_one(case, captured)
    for _ in range(3):
        assert_same(case, expected)
    assert [graph.count for graph in captured.graphs] == [2] * 4


def test_a_graph_serves_other_tensors(captured):
    """Other weights, states, frames and choices at other addresses, and the first ones again."""
    cases = [LoopCase(**MIXED, seed=seed) for seed in (1, 2)]
    expected = [one_by_one(case, captured) for case in cases]
    for number in (0, 0, 1, 0):
        assert_same(cases[number], expected[number])
    assert not torch.equal(expected[0]["z"], expected[1]["z"])
    assert [graph.count for graph in captured.graphs] == [3, 3]


def test_weights_that_changed_are_seen(captured):
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
    assert [graph.count for graph in captured.graphs] == [3]


def test_each_stream_has_a_graph_of_its_own(captured):
    case = LoopCase(**MIXED)
    expected = one_by_one(case, captured, backward=False)
    for captured.stream in (1, 2, 2, 1):
        assert_same(case, expected, backward=False)
    assert [graph.count for graph in captured.graphs] == [1, 1]
    assert len({graph.table.data_ptr() for graph in captured.graphs}) == 2


def test_what_a_graph_is_of(monkeypatch):
    """All that launches depend on: each of these calls has graphs of its own, forward and backward."""
    keys = []
    monkeypatch.setattr(graphs, "run", lambda key, launches, table, write: keys.append(key))
    others = [{"link": "identity"}, {"mixed": False}, {"peephole": False}, {"steps": 2}, {"batch": 3}]
    others += [{"num_layers": 1}, {"frame_size": 4}, {"hidden_size": 6}, {"dtype": torch.float16}]
    for other in ({}, *others):
        run_loop(LoopCase(**MIXED | other), "triton")
    run_loop(LoopCase(**MIXED), "triton", backward=False)  # forward alone, keeps nothing
    run_loop(LoopCase(**MIXED | {"bias": False}), "triton", backward=False)  # in backward it makes no difference
    assert len(keys) == len(set(keys)) == 2 * (1 + len(others)) + 2


def test_tensors_that_begin_anywhere(monkeypatch):
    """Parts of a larger tensor, at an odd element: then nobody promises the compiler more."""
    case, promised = LoopCase(**MIXED | {"hidden_size": 16, "frame_size": 16, "steps": 2}), []
    product = closed_loop_steps.Steps.product

    def watched(self, kernel, table, number, position, depth, columns, aligned, **flags) -> None:
        promised.append(aligned)
        product(self, kernel, table, number, position, depth, columns, aligned, **flags)

    monkeypatch.setattr(closed_loop_steps.Steps, "product", watched)
    tensors = {key: [tensor.float() for tensor in given] for key, given in case.tensors.items()}

    def call() -> list[torch.Tensor]:
        frames = tensors["first"][0], *tensors["state"]
        mixture = tensors["truth"][0], tensors["own"][0] > 0
        options = (case.steps, True, True, "sigmoid", False, "triton")
        return torch.ops.lstmvid.closed_loop(*frames, tensors["weights"], *tensors["head"], *mixture, *options)

    expected = call()
    assert set(promised) == {True}
    promised.clear()
    for key, given in tensors.items():
        tensors[key] = [torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape) for tensor in given]
    assert tensors["weights"][0].data_ptr() % 16
    for ours, wanted in zip(call(), expected, strict=True):
        assert torch.equal(ours, wanted)
    assert set(promised) == {False}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_some_results_are_used(which):
    """Backward of z, of h_n or of c_n alone: what wasn't used has no gradient to be read."""
    case = LoopCase(**MIXED)
    tensors = case.tensors
    results = []
    for backend in ("triton", "reference"):
        leaves = [t.float().requires_grad_() for key in ("first", "state", "weights", "head") for t in tensors[key]]
        first, h_0, c_0, *weights, head, bias = leaves
        call = (first, h_0, c_0, weights, head, bias, tensors["truth"][0].float(), tensors["own"][0] > 0)
        outputs = torch.ops.lstmvid.closed_loop(*call, case.steps, True, True, "sigmoid", True, backend)
        results.append(torch.autograd.grad(outputs[which].square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_offsets_beyond_32_bits():
    """The last step of a window of more than 2^31 values, in all products; memory that nobody touches is free."""
    torch.use_deterministic_algorithms(False)  # else all of it would be filled
    batch, size = 3, 64
    steps = (1 << 31) // (batch * size) + 2
    source, target, truth, grad = (torch.empty(steps, batch, size) for _ in range(4))
    own, frame = torch.empty(steps, batch, dtype=torch.uint8), torch.zeros(batch, size)
    source[-1], truth[-1], grad[-1], own[-1] = 1.0, 3.0, 5.0, 0
    own[-1, 1] = 1
    weight, bias = torch.eye(size), torch.full((size,), 0.5)
    record = {"source": source, "weight": weight, "bias": bias, "target": target, "frame": frame, "truth": truth}
    record |= {"own": own.data_ptr(), "z": source, "grad_z": grad}
    loop = closed_loop_steps.Steps(torch.zeros(1, batch, size), 1, backward=True)

    def last(kernel, **flags) -> torch.Tensor:
        sizes = (steps - 1, size, size)
        loop.run((), [{}], [record], lambda table, aligned: loop.product(kernel, table, 0, *sizes, aligned, **flags))
        return target[-1]

    assert (last(kernels.loop_projection_kernel, HAS_BIAS=True, FROM_FRAME=False) == 1.5).all()
    assert (last(kernels.loop_head_kernel, LINK="identity", HAS_TRUTH=True, HAS_NEXT=True) == 1.5).all()
    assert frame[:, 0].tolist() == [3.0, 1.5, 3.0]
    flags = {"LINK": "rectifier", "HAS_TRUTH": True, "HAS_LATER": True, "HAS_GRAD_Z": True}
    assert last(kernels.loop_frame_bwd_kernel, **flags)[:, 0].tolist() == [5.0, 6.0, 5.0]
    assert (last(kernels.loop_back_kernel) == 1.0).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "rectified"])
@pytest.mark.parametrize("feedback", [1.0, 0.5])
def test_a_composite_sees_what_it_says(likelihood, feedback):
    """Generation, and a training step, on its own frames and with scheduled sampling."""
    options = {"num_layers": 2, "reconstruct": None, "likelihood": likelihood, "copy_state": ("predict",)}
    models = [lstmvid.FusedComposite(12, 8, **options, backend=name) for name in ("triton", "reference")]
    models[1].load_state_dict(models[0].state_dict())
    frames, targets, results = torch.rand(2, 3, 12), torch.rand(4, 3, 12), []
    for model in models:
        torch.manual_seed(1)
        loss = model(frames, targets, feedback=feedback).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss, *gradients, model.predict(frames, 5)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_record_has_the_places_that_the_kernels_read():
    for place, name in enumerate(closed_loop_steps.FIELDS):
        assert getattr(record_kernels, f"LOOP_{name.upper()}").value == place
    longest = max(len(closed_loop_steps.FIELDS), len(closed_loop_steps.numbers({})))
    assert longest <= record_kernels.LOOP_ROW.value


def test_the_planner_chooses_a_launch_a_step():
    loop = closed_loop_steps.Steps(torch.zeros(2, 3, 20), 3, backward=False)
    assert not loop.recurrence.config.loops
    assert loop._tile(64, 100) in set(configuration.product_tiles(loop.kind))
