"""`closed_loop` of the backend `triton` by steps under Triton's interpreter: windows, graphs and single launches.

Run by test_interpreted.py in a process of its own with TRITON_INTERPRET=1. A graph here is a list of launches made
again: as of a captured one, all that a replay can know of a call is what the graph's table says.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import lstmvid
from lstmvid.backends.triton import closed_loop_kernels as kernels
from lstmvid.backends.triton import closed_loop_steps, configuration, graphs, record_kernels
from lstmvid.backends.windows import Window
from lstmvid.testing import LoopCase, run_loop

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MIXED = {"steps": 3, "batch": 2, "num_layers": 2, "hidden_size": 5, "frame_size": 3}
MIXED |= {"mixed": True, "first": True, "peephole": True}


@pytest.fixture(autouse=True)
def by_steps(monkeypatch):
    """A launch for each product of a step, where one program could hold all as well."""
    monkeypatch.setattr(closed_loop_steps, "choose_whole", lambda *sizes, **options: None)


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
    loop = closed_loop_steps.Steps(torch.zeros(1, batch, size), size, backward=True)

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


def test_a_record_has_the_places_that_the_kernels_read():
    for place, name in enumerate(closed_loop_steps.FIELDS):
        assert getattr(record_kernels, f"LOOP_{name.upper()}").value == place
    longest = max(len(closed_loop_steps.FIELDS), len(closed_loop_steps.numbers({})))
    assert longest <= record_kernels.LOOP_ROW.value


def test_tiles_are_those_of_the_table():
    loop = closed_loop_steps.Steps(torch.zeros(2, 3, 20), 100, backward=False)
    assert not loop.recurrence.config.loops
    assert loop._tile(64, 100) in set(configuration.product_tiles(loop.kind))
