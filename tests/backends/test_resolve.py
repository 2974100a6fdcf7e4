"""Who runs what, and why not: `lstmvid.backends.resolve`."""

from __future__ import annotations

import pytest
import torch

from lstmvid import BackendUnavailable, backends
from lstmvid.backends import Request, resolve


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request("cpu", torch.float32, peephole=True), "cpu"),
        (Request("cpu", torch.bfloat16, input_size=None), "cpu"),
        (Request("cpu", torch.float16), "torch"),
        (Request("cpu", torch.float16, peephole=True), "reference"),
        (Request("cpu", torch.float32, proj_size=3), "torch"),
        (Request("cpu", torch.float32, recompute="gates"), "reference"),
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
        ("cuda", Request("cuda", torch.float32), "not part of this version"),
        ("triton", Request("cuda", torch.float32), "not part of this version"),
        ("cpu", Request("cuda", torch.float32), "on cuda"),
        ("cpu", Request("cpu", torch.float16), "float16"),
        ("torch", Request("cpu", torch.float32, peephole=True), "peepholes"),
        ("torch", Request("cpu", torch.float32, lengths=True), "PackedSequence"),
        ("torch", Request("cpu", torch.float32, recompute="gates"), "keeps its gates"),
        ("reference", Request("cpu", torch.float32, proj_size=3), "proj_size"),
    ],
)
def test_reasons(name, request_, reason):
    with pytest.raises(BackendUnavailable, match=reason):
        resolve(name, request_)


def test_nobody_can():
    with pytest.raises(BackendUnavailable, match=r"cpu: .*; torch: .*; reference: "):
        resolve("auto", Request("cpu", torch.float16, proj_size=3, peephole=True))


def test_report():
    rows = {name: (available, reason) for name, available, reason in backends.report()}
    assert set(rows) == set(backends.NAMES) - {"auto"}
    assert rows["cpu"] == (True, "")
    assert all(available or reason for available, reason in rows.values())


def test_without_the_native_module(monkeypatch):
    from lstmvid import _native

    monkeypatch.setattr(_native, "WHY_MISSING", "the native module is not built")
    assert resolve("auto", Request("cpu", torch.float32)) == "torch"
    with pytest.raises(BackendUnavailable, match="not built"):
        resolve("cpu", Request("cpu", torch.float32))
