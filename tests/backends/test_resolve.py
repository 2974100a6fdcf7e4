"""Who runs what, and why not: `lstmvid.backends.resolve`."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from lstmvid import LSTM, BackendUnavailable, _native, backends
from lstmvid.backends import Request, resolve

NOT_INTERPRETED = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or its interpreter runs the kernels",
)


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
        # A plain LSTM goes where it was measured to train faster.
        (Request("cpu", torch.float32, 20, 16, 4096, 256), "cpu"),
        (Request("cpu", torch.float32, 20, 16, 512, 512), "cpu"),
        (Request("cpu", torch.float32, 20, 16, 512, 256), "torch"),
        (Request("cpu", torch.float64, 20, 16, 512, 256), "cpu"),
        (Request("cpu", torch.bfloat16, 100, 2, 256, 256), "cpu"),
        (Request("cpu", torch.bfloat16, 20, 16, 256, 256), "torch"),
        (Request("cpu", torch.float32, 20, 16, 256, 256, peephole=True), "cpu"),
        (Request("cuda", torch.float32), "torch"),
        (Request("cuda", torch.float32, lengths=True, packed=True), "torch"),
        (Request("cuda", torch.float32, peephole=True), "reference"),
        (Request("meta", torch.float32), "reference"),
    ],
)
def test_auto(request_, expected):
    assert resolve("auto", request_) == expected


@pytest.mark.parametrize(("instruction_set", "expected"), [("avx512bf16", "cpu"), ("amx", "torch")])
def test_auto_knows_the_matrix_unit(instruction_set, expected, monkeypatch):
    """oneDNN uses it, too."""
    monkeypatch.setattr(_native, "INSTRUCTION_SET", instruction_set)
    assert resolve("auto", Request("cpu", torch.bfloat16, 100, 16, 256, 256)) == expected


@pytest.mark.parametrize(
    ("name", "request_", "reason"),
    [
        pytest.param(
            "triton", Request("cpu", torch.float32), "runs on GPUs, the tensors are on cpu", marks=NOT_INTERPRETED
        ),
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


@pytest.fixture
def triton_on_a_gpu(monkeypatch):
    """As if there were Triton and a GPU of compute capability 9.0."""
    monkeypatch.setattr(backends.triton.launch, "why_missing", lambda: "")
    monkeypatch.setattr(backends.triton.launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_by_name_only(dtype, triton_on_a_gpu, monkeypatch):
    request = Request("cuda", dtype, peephole=True, lengths=True, all_cells=True, groups=3, needs_grad=True)
    for recompute in ("none", "gates", "auto"):
        assert resolve("triton", request._replace(recompute=recompute)) == "triton"
    # No GPU has proven it, whatever is proven of others.
    monkeypatch.setattr(backends, "_PROVEN_ARCHITECTURES", (90,))
    assert resolve("auto", request) != "triton"
    assert resolve("auto", Request("cuda", dtype)) != "triton"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cpu", torch.float32), "runs on GPUs, the tensors are on cpu"),
        (Request("cuda", torch.float64), "float64"),
        (Request("cuda", torch.float32, proj_size=3), "proj_size"),
    ],
)
def test_reasons_of_triton(request_, reason, triton_on_a_gpu):
    with pytest.raises(BackendUnavailable, match=reason):
        resolve("triton", request_)


def test_triton_on_a_gpu_it_cannot_serve(triton_on_a_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "compute capability 8.0, this GPU has 7.5" in backends.triton.unavailable(Request("cuda", torch.float32))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no GPU" in backends.triton.unavailable(Request("cuda", torch.float32))


WITHOUT_TRITON = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util, torch
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *of: None if name == "triton" else found(name, *of)
import lstmvid
try:
    lstmvid.LSTM(2, 3, backend="triton")(torch.zeros(1, 1, 2))
except lstmvid.BackendUnavailable as error:
    print(error)
"""


def test_without_triton():
    """The package works, and says what to install."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True)
    assert "Triton is not installed (pip install 'lstmvid[triton]')" in done.stdout


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
    with pytest.raises(BackendUnavailable, match=r"torch: .*; cpu: .*; reference: "):
        resolve("auto", Request("cpu", torch.float32, proj_size=3, peephole=True))


def test_on_a_gpu_that_is_not_here(monkeypatch):
    request = Request("cuda", torch.bfloat16)
    assert resolve("cuda", request, arch=90) == "cuda"
    assert resolve("triton", request, arch=90) == "triton"
    assert resolve("auto", request, arch=90) == "torch"
    monkeypatch.setattr(backends, "_PROVEN_ARCHITECTURES", (90,))
    assert resolve("auto", request, arch=90) == "cuda"
    assert resolve("auto", request, arch=80) == "torch"
    with pytest.raises(BackendUnavailable, match=r"compute capability 8\.0, this GPU has 7\.5"):
        resolve("cuda", request, arch=75)
    for name in ("cuda", "triton"):
        with pytest.raises(BackendUnavailable, match="float64"):
            resolve(name, request._replace(dtype=torch.float64), arch=90)


def test_without_the_native_module(monkeypatch):
    monkeypatch.setattr(_native, "WHY_MISSING", "the native module is not built")
    assert resolve("auto", Request("cpu", torch.float32)) == "torch"
    for name in ("cpu", "cuda"):
        with pytest.raises(BackendUnavailable, match="not built"):
            resolve(name, Request("cpu", torch.float32))
