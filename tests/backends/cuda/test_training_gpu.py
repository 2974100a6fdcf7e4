"""Training through the CUDA backend on a GPU: graphs, scaled losses, the composite model, `lstmvid train`."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest
import torch

import lstmvid
from lstmvid.backends import plan as planner
from lstmvid.backends.cuda import recurrence as backend
from lstmvid.backends.wavefront import Wavefront
from lstmvid.cli import main
from lstmvid.testing import Case, check

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory", "exact_products")]


def layer(**options) -> lstmvid.LSTM:
    sizes = {"input_size": 24, "hidden_size": 136, "num_layers": 2, "device": "cuda"}
    return lstmvid.LSTM(**sizes | options, backend="cuda")


def test_a_training_step_in_a_graph_replayed_twice():
    lstm, x = layer(peephole=True), torch.randn(20, 5, 24, device="cuda")

    def gradients() -> list[torch.Tensor]:
        output, (h_n, c_n) = lstm(x)
        return list(torch.autograd.grad(output.square().sum() + h_n.sum() + c_n.sum(), list(lstm.parameters())))

    stream = torch.cuda.Stream()  # not the default one, whose work a capture would take for its own
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            gradients()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        for ours, expected in zip(captured, gradients(), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("predict", ["conditional", "unconditional"])
def test_composite(predict):
    model = lstmvid.FusedComposite(30, 72, 2, predict=predict, backend="cuda", device="cuda")
    other = lstmvid.FusedComposite(30, 72, 2, predict=predict, backend="reference", device="cuda")
    other.load_state_dict(model.state_dict())
    frames, targets = torch.rand(6, 5, 30, device="cuda"), torch.rand(6, 5, 30, device="cuda")
    ours, expected = model(frames, targets), other(frames, targets)
    for name in ("reconstruction", "prediction", "loss"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.predict(frames, 7), other.predict(frames, 7), rtol=1e-4, atol=1e-5)
    for each in (ours, expected):
        each.loss.backward()
    for (name, parameter), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_composite_compiles_as_a_whole():
    model = lstmvid.FusedComposite(30, 72, 2, backend="cuda", device="cuda")
    frames, targets = torch.rand(6, 5, 30, device="cuda"), torch.rand(4, 5, 30, device="cuda")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(frames, targets)
    plain = model(frames, targets)
    torch.testing.assert_close(compiled.loss, plain.loss)
    ours, expected = (torch.autograd.grad(result.loss, list(model.parameters())) for result in (compiled, plain))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scaled_training_step_under_autocast(dtype):
    lstm, x = layer(peephole=True), torch.randn(8, 4, 24, device="cuda")
    expected = torch.autograd.grad(lstm(x)[0].square().mean(), list(lstm.parameters()))
    before = [parameter.detach().clone() for parameter in lstm.parameters()]
    optimizer, scaler = torch.optim.SGD(lstm.parameters(), 1.0), torch.amp.GradScaler("cuda", init_scale=1024.0)
    with torch.autocast("cuda", dtype):
        loss = lstm(x)[0].float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1024.0  # nothing overflowed, so that the step was taken
    for parameter, old, gradient in zip(lstm.parameters(), before, expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        scale = gradient.abs().max().item()
        torch.testing.assert_close(old - parameter.detach(), gradient, rtol=0.05, atol=0.03 * scale)


def test_a_whole_training_step_in_a_graph():
    """Forward, backward and the optimiser's step, captured and replayed: the weights that steps by hand lead to."""
    options = {"predict": "unconditional", "backend": "cuda", "device": "cuda"}
    captured, plain = (lstmvid.FusedComposite(30, 72, 2, **options) for _ in range(2))
    plain.load_state_dict(captured.state_dict())
    frames, targets = (torch.rand(6, 5, 30, device="cuda") for _ in range(2))

    def step(model, optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)
        model(frames, targets).loss.backward()
        optimizer.step()

    adam = {"lr": 1e-3, "capturable": True}
    one, other = (torch.optim.Adam(model.parameters(), **adam) for model in (captured, plain))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(captured, one)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, one)
    for _ in range(3):
        graph.replay()
    for _ in range(5):  # two to warm up, and three replays: a capture runs nothing
        step(plain, other)
    torch.cuda.synchronize()
    for ours, expected in zip(captured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)


STACKS = {
    "two layers": {"num_layers": 2, "hidden_size": 40},
    "four layers without input": {"num_layers": 4, "input_size": None, "hidden_size": 70, "peephole": True},
    "backwards": {"num_layers": 3, "hidden_size": 33, "reverse": (True,), "all_cells": True},
    "gates computed again": {"num_layers": 3, "hidden_size": 40, "recompute": "gates", "chunk": 4},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", STACKS)
def test_layers_side_by_side(name, dtype, monkeypatch):
    def together(_steps, hidden, batch, layers, *of, backward, window, **options) -> Wavefront:
        launch = planner.plan(hidden, batch, *of, groups=layers, backward=backward, **options)
        return Wavefront(window or 5, launch, 0.0)

    monkeypatch.setattr(backend, "wavefront", together)
    check(Case(steps=17, batch=9, dtype=dtype, **STACKS[name]), "cuda", device="cuda")


def test_computing_gates_again_takes_less_memory():
    peaks = {}
    for recompute in ("none", "gates"):
        lstm = layer(recompute=recompute)
        x = torch.randn(2000, 16, 24, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        lstm(x)[0].sum().backward()
        peaks[recompute] = torch.cuda.max_memory_allocated() - before
    assert peaks["gates"] < 0.5 * peaks["none"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_from_the_command_line(precision, tmp_path):
    digits = tmp_path / "train-images-idx3-ubyte"
    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8).numpy().tobytes()
    digits.write_bytes(struct.pack(">4i", 0x803, 20, 28, 28) + images)
    model = ["--model.hidden_size", "64", "--model.predict", "unconditional", "--model.backend", "cuda"]
    data = ["--data.digits", str(digits), "--data.batch_size", "8", "--data.validation_sequences", "8"]
    trainer = ["--trainer.accelerator", "gpu", "--trainer.precision", precision, "--trainer.max_steps", "20"]
    trainer += ["--trainer.validation_interval", "10", "--trainer.log_interval", "1"]
    folder = tmp_path / "run"
    assert main(["train", "--output", str(folder), *model, *data, *trainer]) == 0
    assert (folder / "model.safetensors").is_file()
    losses = training_losses(folder)
    assert len(losses) == 20
    assert losses[-1] < 0.9 * losses[0]


def training_losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
