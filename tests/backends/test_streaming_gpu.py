"""A video in host memory and a model on a GPU: the bits of a video there, in bounded memory, beside other work."""

from __future__ import annotations

import csv
import struct

import pytest
import torch

import lstmvid
from lstmvid.backends import Request, streaming, unavailable
from lstmvid.ops import frame_loss

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]

STEPS, BATCH, SIZE, HIDDEN = 300, 8, 1024, 136


@pytest.fixture(params=["cuda", "triton"])
def backend(request) -> str:
    if reason := unavailable(request.param, Request("cuda", torch.float32)):
        pytest.skip(reason)
    return request.param


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Of some tens of steps."""
    monkeypatch.setattr(streaming, "PIECE_BYTES", 1 << 20)


def layers(backend: str, **options) -> lstmvid.nn.LSTMStack:
    return lstmvid.nn.LSTMStack(SIZE, HIDDEN, 2, backend=backend, device="cuda", **options)


def run(stack: lstmvid.nn.LSTMStack, x: torch.Tensor) -> torch.Tensor:
    return stack(x, stack.zero_state(x.size(1)))[0]


def results(stack: lstmvid.nn.LSTMStack, x: torch.Tensor) -> list[torch.Tensor]:
    output, (h_n, c_n) = stack(x, stack.zero_state(x.size(1)))
    loss = output.float().square().sum() + h_n.float().sum() + c_n.float().sum()
    return [output, h_n, c_n, *torch.autograd.grad(loss, list(stack.parameters()))]


@pytest.mark.parametrize("recompute", ["none", "gates"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("place", ["pageable", "pinned", "batch first"])
def test_bytes_give_the_bits_of_bytes_on_the_device(backend, place, dtype, recompute):
    lstm = layers(backend, recompute=recompute, dtype=dtype)
    video = torch.randint(0, 256, (STEPS, BATCH, SIZE), dtype=torch.uint8)
    expected = results(lstm, video.cuda())
    if place == "batch first":
        video = video.transpose(0, 1).contiguous().pin_memory().transpose(0, 1)
    elif place == "pinned":
        video = video.pin_memory()
    for _ in range(3):
        torch.cuda._sleep(20_000_000)  # so that the host is far ahead
        assert all(torch.equal(a, b) for a, b in zip(results(lstm, video), expected, strict=True))


@pytest.mark.parametrize("pins", [False, True], ids=["pageable", "pinned"])
def test_floats_agree(backend, pins):
    lstm, x = layers(backend), torch.rand(STEPS, BATCH, SIZE)
    expected = results(lstm, x.cuda())
    actual = results(lstm, x.pin_memory() if pins else x)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@torch.no_grad()
def test_the_callers_memory_may_be_written_when_the_call_returns(backend):
    lstm, video = layers(backend), torch.randint(0, 256, (STEPS, BATCH, SIZE), dtype=torch.uint8).pin_memory()
    expected = run(lstm, video).clone()
    for _ in range(3):
        kept = video.clone()
        torch.cuda._sleep(50_000_000)
        actual = run(lstm, video)
        video.zero_()
        assert torch.equal(actual, expected)
        video.copy_(kept)


@torch.no_grad()
def test_buffers_are_not_written_while_others_compute_with_their_memory(backend):
    """Memory that a stream's earlier work still reads comes back to it only."""
    lstm, video = layers(backend), torch.randint(0, 256, (STEPS, BATCH, SIZE), dtype=torch.uint8).pin_memory()
    run(lstm, video)
    for _ in range(3):
        before = torch.full((1 << 20,), 7, dtype=torch.uint8, device="cuda")
        torch.cuda._sleep(50_000_000)
        total = before.sum(dtype=torch.int64)
        del before
        run(lstm, video)
        assert total.item() == 7 << 20


@pytest.mark.parametrize("pins", [False, True], ids=["pageable", "pinned"])
def test_memory_is_bounded(backend, pins):
    """Of a video longer than a megabyte a piece, the device never holds more than some pieces."""
    lstm = layers(backend, recompute="gates")
    video = torch.randint(0, 256, (4000, BATCH, SIZE), dtype=torch.uint8)
    video = video.pin_memory() if pins else video
    results(lstm, video[:300])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(lstm, video)
    streamed = torch.cuda.max_memory_allocated() - before
    on_device = video.cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(lstm, on_device)
    resident = torch.cuda.max_memory_allocated() - before
    assert streamed < resident + (8 << 20)  # the video itself was there before, 33 MB


def test_a_composite(backend):
    options = {"hidden_size": 72, "reconstruct": "conditional", "device": "cuda"}
    model = lstmvid.FusedComposite((1, 16, 16), backend=backend, **options)
    video = torch.randint(0, 256, (20, 5, 1, 16, 16), dtype=torch.uint8)
    outs = [model(*x.split([12, 8])) for x in (video.cuda(), video, video.pin_memory())]
    gradients = [torch.autograd.grad(out.loss, list(model.parameters())) for out in outs]
    for out, gradient in zip(outs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(out[:2] + out[2], outs[0][:2] + outs[0][2])
        torch.testing.assert_close(out[3:], outs[0][3:], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-5)
    assert model(*video.split([12, 8]), feedback=0.5).loss.isfinite()


@pytest.mark.parametrize("options", [{}, {"fullgraph": True}])
def test_it_compiles(backend, options):
    model = lstmvid.FusedComposite(24, 40, backend=backend, device="cuda")
    video = torch.randint(0, 256, (12, 5, 24), dtype=torch.uint8)
    compiled = torch.compile(model, backend="aot_eager", **options)(*video.split([6, 6]))
    torch.testing.assert_close(compiled.loss, model(*video.split([6, 6])).loss)


def test_a_graph_of_the_callers_reads_pinned_frames(backend):
    lstm, video = layers(backend), torch.randint(0, 256, (40, BATCH, SIZE), dtype=torch.uint8).pin_memory()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            results(lstm, video)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(lstm, video)
    for _ in range(2):
        video.random_(0, 256)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, results(lstm, video), strict=True))


def test_training_on_batches_in_host_memory(backend, tmp_path):
    """The losses of batches that Lightning moves."""
    from lstmvid.cli import main

    digits = tmp_path / "train-images-idx3-ubyte"
    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8).numpy().tobytes()
    digits.write_bytes(struct.pack(">4i", 0x803, 20, 28, 28) + images)
    arguments = ["--model.hidden_size", "64", "--model.backend", backend, "--data.digits", str(digits)]
    arguments += ["--data.batch_size", "8", "--data.validation_sequences", "8", "--trainer.accelerator", "gpu"]
    arguments += ["--trainer.max_steps", "4", "--trainer.validation_interval", "4", "--trainer.log_interval", "1"]
    losses = {}
    for stays in ("false", "true"):
        folder = tmp_path / stays
        assert main(["train", "--output", str(folder), *arguments, "--data.in_host_memory", stays]) == 0
        with (folder / "metrics.csv").open(newline="") as file:
            losses[stays] = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses["true"]) == 4
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_frame_loss(name):
    hidden, weight = (torch.randn(size, device="cuda", requires_grad=True) for size in ((9, 5, 40), (70, 40)))
    target, found = torch.randint(0, 256, (9, 5, 70), dtype=torch.uint8), []
    for place in (target.cuda(), target, target.pin_memory()):
        loss = frame_loss(hidden, weight, None, place, backend=name)
        found.append([loss, *torch.autograd.grad(loss, [hidden, weight])])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_the_other_backends_take_it_whole(name):
    lstm, video = layers(name), torch.randint(0, 256, (20, 3, SIZE), dtype=torch.uint8)
    torch.testing.assert_close(run(lstm, video), run(lstm, video.cuda()))


def test_under_autocast(backend):
    lstm, x = layers(backend), torch.rand(50, BATCH, SIZE)
    with torch.autocast("cuda", torch.bfloat16):
        actual, expected = run(lstm, x), run(lstm, x.cuda())
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
