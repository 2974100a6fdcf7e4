"""`backend="triton"` on a GPU, against the float64 reference; what only a GPU shows: graphs, streams, the same bits."""

from __future__ import annotations

import os

import pytest
import torch

import lstmvid
from lstmvid.backends import Request
from lstmvid.backends.triton import unavailable
from lstmvid.nn.likelihoods import LIKELIHOODS
from lstmvid.ops import frame_loss
from lstmvid.testing import GPU_CASES, Case, check

WHY_NOT = unavailable(Request("cuda", torch.float32))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.usefixtures("poisoned_memory", "exact_products"),
]

# cuBLAS wants this where torch's deterministic mode is on, in which fresh memory is poisoned.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = GPU_CASES | {
    "wide": {"batch": 101, "hidden_size": 130, "steps": 3},
    "aligned": {"batch": 16, "hidden_size": 256, "input_size": 64, "steps": 20},
    "odd": {"batch": 33, "hidden_size": 517, "steps": 9, "peephole": True},
    "long, one launch": {"steps": 700, "batch": 2, "hidden_size": 5, "input_size": 3},
    "long, several graphs": {"steps": 600, "batch": 2, "hidden_size": 140, "input_size": 3},
    "the paper's size": {"batch": 80, "hidden_size": 2048, "steps": 4, "input_size": 64},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(name, dtype):
    case = Case(dtype=dtype, **CASES[name])
    for _ in range(3):  # launches one by one, then captured, then the graph alone
        check(case, "triton", device="cuda")


@pytest.mark.parametrize("chunk", [1, 2, 5, 256])
@pytest.mark.parametrize("name", CASES)
def test_gates_computed_again(name, chunk):
    check(
        Case(dtype=DTYPES[chunk % 3], **CASES[name] | {"recompute": "gates", "chunk": chunk}), "triton", device="cuda"
    )


@pytest.mark.parametrize("name", ["plain", "odd", "the paper's size"])
def test_tf32_is_as_exact_as_plain_products_in_tf32(name, allow_tf32):
    allow_tf32(True)
    check(Case(**CASES[name]), "triton", device="cuda")


def layer(**options) -> lstmvid.LSTM:
    sizes = {"input_size": 24, "hidden_size": 136, "num_layers": 2, "device": "cuda"}
    return lstmvid.LSTM(**sizes | options, backend="triton")


def gradients(lstm: lstmvid.LSTM, x: torch.Tensor) -> list[torch.Tensor]:
    output, (h_n, c_n) = lstm(x)
    return list(torch.autograd.grad(output.square().sum() + h_n.sum() + c_n.sum(), list(lstm.parameters())))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"peephole": True}, {"hidden_size": 40}])
def test_the_same_bits_every_time(options):
    lstm, noise = layer(dtype=torch.bfloat16, **options), torch.randn(3000, 3000, device="cuda")
    x = torch.randn(50, 33, 24, device="cuda", dtype=torch.bfloat16)
    expected = [lstm(x)[0], *gradients(lstm, x)]
    for _ in range(6):  # with and without a graph
        noise @ noise  # something else on the chip just before
        assert all(torch.equal(a, b) for a, b in zip([lstm(x)[0], *gradients(lstm, x)], expected, strict=True))


@torch.no_grad()
def test_a_graph_serves_other_tensors_of_the_same_shape():
    one, other = layer(), layer()
    xs = [torch.randn(20, 5, 24, device="cuda") for _ in range(2)]
    pairs = [(lstm, x) for lstm in (one, other) for x in xs]
    first = [lstm(x)[0] for lstm, x in pairs]
    for lstm in (one, other):
        lstm.backend = "reference"
    plain = [lstm(x)[0] for lstm, x in pairs]
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_on_a_stream_of_its_own():
    lstm, x = layer(), torch.randn(20, 5, 24, device="cuda")
    expected = [lstm(x)[0] for _ in range(3)][-1]
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    for _ in range(3):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # so that a launch in the wrong stream would overtake
            late.copy_(x)
            actual = lstm(late)[0]
        stream.synchronize()
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("hidden_size", [40, 136])
def test_a_training_step_in_a_graph_of_the_callers(hidden_size):
    lstm, x = layer(peephole=True, hidden_size=hidden_size), torch.randn(20, 5, 24, device="cuda")
    stream = torch.cuda.Stream()  # not the default one, whose work a capture would take for its own
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            gradients(lstm, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(lstm, x)
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, gradients(lstm, x), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
def test_on_the_second_device():
    check(Case(num_layers=2, peephole=True, hidden_size=77), "triton", device="cuda:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_frame_loss(likelihood, dtype):
    of = {"device": "cuda", "dtype": dtype}
    hidden, weight = torch.randn(7, 30, 200, **of, requires_grad=True), torch.randn(333, 200, **of, requires_grad=True)
    bias = torch.randn(333, **of, requires_grad=True)
    target = torch.randint(0, 256, (7, 30, 333), dtype=torch.uint8, device="cuda")
    results = []
    for backend in ("triton", "reference"):
        loss = frame_loss(hidden, weight, bias, target, likelihood, backend=backend)
        results.append([loss, *torch.autograd.grad(loss, [hidden, weight, bias])])
    rtol = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


@torch.no_grad()
def test_tuning(tmp_path, monkeypatch):
    from lstmvid.backends.triton import tuning

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._measured.cache_clear()
    found = tuning.tune(160, torch.bfloat16)
    assert len(found) == 2
    check(Case(hidden_size=160, dtype=torch.bfloat16), "triton", device="cuda", backward=False)
    monkeypatch.undo()
    tuning._measured.cache_clear()
