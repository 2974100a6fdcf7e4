"""`closed_loop` of the backend `triton` on a GPU, against the float64 reference: in one launch and by steps.

What only a GPU shows: compiled kernels, graphs, streams, the same bits.
"""

from __future__ import annotations

import os

import pytest
import torch

import lstmvid
from lstmvid.backends import Request
from lstmvid.backends.triton import configuration, launch, unavailable
from lstmvid.backends.triton.configuration import WholeLoop
from lstmvid.nn.likelihoods import LIKELIHOODS
from lstmvid.testing import FLOORS, LoopCase, check, run_loop

WHY_NOT = unavailable(Request("cuda", torch.float32))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.usefixtures("poisoned_memory", "exact_products"),
]

# cuBLAS wants this where torch's deterministic mode is on, in which fresh memory is poisoned.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

closed_loop_steps = pytest.importorskip("lstmvid.backends.triton.closed_loop_steps", reason="Triton is not installed")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {
    "plain": {},
    "one of everything": {"steps": 1, "batch": 1, "frame_size": 1, "hidden_size": 1},
    "layers": {"num_layers": 3, "peephole": True, "hidden_size": 19, "first": True},
    "no bias": {"bias": False, "hidden_size": 17, "link": "identity"},
    "some true frames": {"mixed": True, "num_layers": 2, "peephole": True, "batch": 33, "frame_size": 130},
    "aligned": {"batch": 16, "hidden_size": 256, "frame_size": 64, "steps": 20, "link": "rectifier", "mixed": True},
    "long": {"steps": 600, "batch": 2, "hidden_size": 20, "frame_size": 3},
    "two layers": {"num_layers": 2, "hidden_size": 64, "frame_size": 64, "batch": 40, "mixed": True, "peephole": True},
    "large frames": {"hidden_size": 61, "frame_size": 251, "batch": 17, "link": "rectifier", "first": True},
    "the paper's size": {"batch": 80, "hidden_size": 2048, "frame_size": 4096, "num_layers": 2, "steps": 3},
}


@pytest.fixture(params=["one launch", "by steps"])
def way(request, monkeypatch) -> str:
    """Both ways to run a loop, where a program holds it."""
    if request.param == "by steps":
        monkeypatch.setattr(closed_loop_steps, "choose_whole", lambda *sizes, **options: None)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(way, name, dtype):
    for _ in range(3):  # launches one by one, then captured, then the graph alone
        check(LoopCase(dtype=dtype, **CASES[name]), "triton", device="cuda")


@pytest.mark.parametrize("sizes", [(30, 100, 1), (30, 30, 2), (64, 64, 1)])
def test_tf32_is_as_exact_as_plain_products_in_tf32(way, sizes, allow_tf32):
    allow_tf32(True)
    hidden, frame, layers = sizes
    check(LoopCase(batch=33, hidden_size=hidden, frame_size=frame, num_layers=layers), "triton", device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["16 bits", "tf32", "ieee"])
@pytest.mark.parametrize("backward", [False, True])
def test_every_configuration_of_one_launch_runs(kind, backward, allow_tf32, monkeypatch):
    """Each of the table that fits here, alone: of the sizes that it holds, to a whole frame and a whole tile."""
    allow_tf32(kind == "tf32")
    limits = launch.limits_of(torch.device("cuda"))
    for whole in configuration.whole_loops(kind, backward=backward, is_amd=launch.is_amd()):
        if whole.shared_bytes > limits.shared_bytes:
            continue

        def only(*sizes, backward: bool, whole=whole, wanted=backward, **options) -> WholeLoop | None:
            return whole if backward == wanted else None

        monkeypatch.setattr(closed_loop_steps, "choose_whole", only)
        for less in (0, 3):
            sizes = {"hidden_size": whole.units - less, "frame_size": whole.frame_size - less, "batch": 33 - less}
            case = LoopCase(**sizes, num_layers=whole.layers, mixed=True, peephole=True, first=True)
            check(case if kind != "16 bits" else case.with_dtype(torch.bfloat16), "triton", device="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_both_ways_agree(dtype, monkeypatch):
    """They differ in whether a projection is rounded before the sum with the state's part, and in the order of sums."""
    case = LoopCase(batch=40, hidden_size=60, frame_size=50, num_layers=1, steps=20, mixed=True, dtype=dtype)
    ours = run_loop(case, "triton", device="cuda").values
    monkeypatch.setattr(closed_loop_steps, "choose_whole", lambda *sizes, **options: None)
    for name, value in run_loop(case, "triton", device="cuda").values.items():
        error = (ours[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert error <= 10 * FLOORS[dtype], name


SMALL = {"hidden_size": 40, "frame_shape": 50}  # of a predictor that one program holds


def predictor(**options) -> lstmvid.FusedComposite:
    sizes = {"frame_shape": 100, "hidden_size": 136, "num_layers": 2, "reconstruct": None, "device": "cuda"}
    return lstmvid.FusedComposite(**sizes | options, backend="triton")


def loop_results(model: lstmvid.FusedComposite, frames: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Of generation, then of a training step with scheduled sampling."""
    torch.manual_seed(1)
    loss = model(frames, targets, feedback=0.5).loss
    return [model.predict(frames, 30), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["by steps", "one launch"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_same_bits_every_time(likelihood, sizes):
    model = predictor(likelihood=likelihood, dtype=torch.bfloat16, **sizes)
    noise = torch.randn(3000, 3000, device="cuda")
    frames, targets = torch.rand(2, 40, 33, sizes.get("frame_shape", 100), device="cuda", dtype=torch.bfloat16)
    expected = loop_results(model, frames, targets)
    for _ in range(6):  # with and without a graph
        noise @ noise  # something else on the chip just before
        assert all(torch.equal(a, b) for a, b in zip(loop_results(model, frames, targets), expected, strict=True))


@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["by steps", "one launch"])
def test_weights_that_changed_are_seen(sizes):
    """In place, as an optimiser does, and moved to other memory."""
    model, plain = predictor(**sizes), predictor(**sizes)
    for module in plain.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"
    frames, targets = torch.rand(2, 10, 5, sizes.get("frame_shape", 100), device="cuda")
    for change in (None, None, None, "in place", None, "moved", None):
        for parameter in model.parameters() if change else []:
            other = torch.randn_like(parameter) * 0.1
            with torch.no_grad():
                parameter.copy_(other) if change == "in place" else setattr(parameter, "data", other)
        plain.load_state_dict(model.state_dict())
        pairs = (loop_results(each, frames, targets) for each in (model, plain))
        for ours, expected in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * max(expected.abs().max().item(), 1.0))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [{"hidden_size": 512}, SMALL], ids=["by steps", "one launch"])
def test_on_two_streams(sizes):
    """At the same time, each with a graph of its own if there is one."""
    model, streams = predictor(**sizes), [torch.cuda.Stream() for _ in range(2)]
    inputs = [torch.rand(3, 16, sizes.get("frame_shape", 100), device="cuda") for _ in streams]
    expected = [model.predict(frames, 100) for frames in inputs]
    torch.cuda.synchronize()
    for _ in range(4):
        results = []
        for stream, frames in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(model.predict(frames, 100))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["by steps", "one launch"])
def test_in_a_graph_of_the_callers(sizes):
    model = predictor(peephole=True, **sizes)
    frames, targets = torch.rand(2, 10, 5, sizes.get("frame_shape", 100), device="cuda")

    def step() -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(frames, targets, feedback=1.0).loss, list(model.parameters())))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        frames.copy_(torch.rand_like(frames))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
