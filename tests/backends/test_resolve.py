"""Who runs what, and why not: `lstmvid.backends.resolve`."""

from __future__ import annotations

import re

import pytest
import torch

from lstmvid import LSTM, BackendUnavailable, _native, backends
from lstmvid.backends import Request, resolve


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request("cpu", torch.float32, peephole=True), "cpu"),
        (Request("cpu", torch.bfloat16, input_size=None), "cpu"),
        (Request("cpu", torch.float16), "reference"),
        (Request("cpu", torch.float16, proj_size=3), "torch"),
        (Request("cpu", torch.float32, transformed=True), "reference"),
        (Request("cpu", torch.float32, transformed=True, proj_size=3), "torch"),
        (Request("cpu", torch.float32, traced=True), "torch"),
        (Request("cpu", torch.float32, traced=True, peephole=True), "reference"),
        (Request("cpu", torch.float32, proj_size=3), "torch"),
        (Request("cpu", torch.float32, recompute="gates"), "cpu"),
        (Request("cuda", torch.float32), "torch"),
        (Request("cuda", torch.float32, lengths=True, packed=True), "torch"),
        (Request("cuda", torch.float32, peephole=True), "reference"),
        (Request("meta", torch.float32), "reference"),
    ],
)
def test_auto(request_, expected):
    assert resolve("auto", request_) == expected


@pytest.mark.parametrize(
    ("name", "request_", "reason"),
    [
        ("triton", Request("cuda", torch.float32), "not part of this version"),
        ("cpu", Request("cuda", torch.float32), "on cuda"),
        ("cpu", Request("cpu", torch.float16), "float16"),
        ("cpu", Request("cpu", torch.float32, transformed=True), "torch.func transforms"),
        ("cpu", Request("cpu", torch.float32, traced=True), "torch.jit.trace"),
        ("torch", Request("cpu", torch.float32, peephole=True), "peepholes"),
        ("torch", Request("cpu", torch.float32, lengths=True), "PackedSequence"),
        ("torch", Request("cpu", torch.float32, recompute="gates"), "keeps its gates"),
        ("reference", Request("cpu", torch.float32, proj_size=3), "proj_size"),
    ],
)
def test_reasons(name, request_, reason):
    with pytest.raises(BackendUnavailable, match=reason):
        resolve(name, request_)


@pytest.fixture
def device_90(monkeypatch):
    """As if there were a GPU of compute capability 9.0."""
    monkeypatch.setattr(_native, "WHY_MISSING", "")
    monkeypatch.setattr(_native, "cuda_device_count", lambda: (1, ""))
    monkeypatch.setattr(backends.cuda.launch, "_why_not_here", lambda: "")
    monkeypatch.setattr(backends.cuda, "architecture", lambda: 90)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cpu", torch.float32), "the tensors are on cpu"),
        (Request("cuda", torch.float64), "float64"),
        (Request("cuda", torch.float32, proj_size=3), "proj_size"),
    ],
)
def test_reasons_of_cuda(request_, reason, device_90):
    with pytest.raises(BackendUnavailable, match=reason):
        resolve("cuda", request_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_by_name(dtype, device_90):
    request = Request("cuda", dtype, peephole=True, lengths=True, all_cells=True, recompute="gates", groups=3)
    assert resolve("cuda", request) == "cuda"
    for recompute in ("none", "gates", "auto"):
        assert resolve("cuda", request._replace(needs_grad=True, recompute=recompute)) == "cuda"


def test_auto_takes_cuda_on_proven_architectures_only(device_90, monkeypatch):
    request = Request("cuda", torch.bfloat16)
    assert resolve("auto", request) == "torch"
    monkeypatch.setattr(backends, "_PROVEN_ARCHITECTURES", (80,))
    assert resolve("auto", request) == "torch"
    monkeypatch.setattr(backends, "_PROVEN_ARCHITECTURES", (80, 90))
    assert resolve("auto", request) == "cuda"
    assert resolve("auto", request._replace(needs_grad=True)) == "cuda"
    assert resolve("auto", request._replace(needs_grad=True, recompute="gates")) == "cuda"


def test_cuda_on_a_gpu_it_cannot_serve(monkeypatch):
    why = backends.cuda.launch._why_not_on
    why.cache_clear()
    limits = {"compute_capability": 75, "shared_bytes_per_block_opt_in": 1, "has_clusters": False}
    monkeypatch.setattr(_native, "cuda_device_limits", lambda ordinal: dict(limits))
    assert "compute capability 8.0, this GPU has 7.5" in why(0)

    def fail(*_):
        raise RuntimeError("no kernel image is available")

    why.cache_clear()
    limits["compute_capability"] = 87
    monkeypatch.setattr(_native, "cuda_active_clusters", fail)
    assert re.search("no kernel image is available.*LSTMVID_CUDA_ARCHS", why(0))
    why.cache_clear()


@pytest.mark.parametrize("why", ["no NVIDIA driver is installed", "built without CUDA"])
def test_cuda_without_a_device_says_why(why, monkeypatch):
    monkeypatch.setattr(_native, "cuda_device_count", lambda: (0, why))
    for device in ("cpu", "cuda"):
        with pytest.raises(BackendUnavailable, match=why):
            resolve("cuda", Request(device, torch.float32))


@pytest.mark.skipif(_native.cuda_device_count()[0] > 0, reason="there is a GPU here")
def test_the_layer_says_why_cuda_cannot_run():
    layer = LSTM(3, 4, backend="cuda")
    with torch.no_grad(), pytest.raises(BackendUnavailable, match=re.escape(_native.cuda_device_count()[1])):
        layer(torch.zeros(2, 1, 3))


def test_the_layer_asks_for_what_it_needs(monkeypatch):
    asked = []
    monkeypatch.setattr(backends.cpu, "unavailable", lambda request: asked.append(request.needs_grad))
    layer, frames = LSTM(3, 4, backend="cpu"), torch.zeros(2, 1, 3)
    layer(frames)
    with torch.no_grad():
        layer(frames)
    layer.requires_grad_(False)
    layer(frames)
    assert asked == [True, True, False, False, False, False]  # the layer and the operator's function each


def test_nobody_can():
    with pytest.raises(BackendUnavailable, match=r"cpu: .*; torch: .*; reference: "):
        resolve("auto", Request("cpu", torch.float32, proj_size=3, peephole=True))


def test_on_a_gpu_that_is_not_here(monkeypatch):
    request = Request("cuda", torch.bfloat16)
    assert resolve("cuda", request, arch=90) == "cuda"
    assert resolve("auto", request, arch=90) == "torch"
    monkeypatch.setattr(backends, "_PROVEN_ARCHITECTURES", (90,))
    assert resolve("auto", request, arch=90) == "cuda"
    assert resolve("auto", request, arch=80) == "torch"
    with pytest.raises(BackendUnavailable, match=r"compute capability 8\.0, this GPU has 7\.5"):
        resolve("cuda", request, arch=75)
    with pytest.raises(BackendUnavailable, match="float64"):
        resolve("cuda", request._replace(dtype=torch.float64), arch=90)


def test_without_the_native_module(monkeypatch):
    monkeypatch.setattr(_native, "WHY_MISSING", "the native module is not built")
    assert resolve("auto", Request("cpu", torch.float32)) == "torch"
    for name in ("cpu", "cuda"):
        with pytest.raises(BackendUnavailable, match="not built"):
            resolve(name, Request("cpu", torch.float32))
