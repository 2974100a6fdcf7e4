"""Sequences whose elements no 32-bit index reaches."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

import pytest
import torch
from torch import Tensor

import lstmvid
from lstmvid import _native, testing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it maps memory as Linux does"),
]

BATCH, SIZE, STEPS = 1 << 15, 16, 1030
LATE = 5  # last steps, which are looked at
ALIASED = 64 << 20  # bytes of memory behind a range of many times as many addresses; several steps' worth

assert STEPS * BATCH * 4 * SIZE > (1 << 31) + LATE * BATCH * 4 * SIZE


_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # Linux's, which Python has no names for
_RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


class Addresses:
    """Tensors of many gigabytes in little memory: zeros that are read, and results of which the last are kept."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.mmap.restype = ctypes.c_void_p
        self._c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        self._c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._ranges: list[tuple[int, int]] = []

    def _map(self, address: int | None, size: int, flags: int, file: int) -> int:
        access = mmap.PROT_READ | mmap.PROT_WRITE
        result = self._c.mmap(address, size, access, flags, file, 0)
        if result in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        return result

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Pages are made as they are written to; what is only read costs nothing."""
        size = torch.Size(shape).numel() * dtype.itemsize
        start = self._map(None, size, _RESERVE, -1)
        return self._tensor(start, size, shape, dtype)

    def aliased(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """The same memory again and again: of what is written to it the last `ALIASED` bytes are kept."""
        size = -(-torch.Size(shape).numel() * dtype.itemsize // ALIASED) * ALIASED
        file = os.memfd_create("aliased")
        os.ftruncate(file, ALIASED)
        start = self._map(None, size, _RESERVE, -1)
        for offset in range(0, size, ALIASED):
            self._map(start + offset, ALIASED, mmap.MAP_SHARED | _MAP_FIXED, file)
        os.close(file)
        return self._tensor(start, size, shape, dtype)

    def _tensor(self, start: int, size: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self._ranges.append((start, size))
        memory = (ctypes.c_char * size).from_address(start)
        return torch.frombuffer(memory, dtype=dtype, count=torch.Size(shape).numel()).view(shape)

    def free(self) -> None:
        for start, size in self._ranges:
            self._c.munmap(start, size)


@pytest.fixture
def addresses():
    result = Addresses()
    yield result
    result.free()


def test_forward_kernel(addresses):
    """Zeros leave a zero state as it is, so that the last steps are those of a short sequence."""
    kind = {"dtype": torch.bfloat16}
    projection = addresses.zeros(STEPS, BATCH, 4 * SIZE, **kind)
    projection[-LATE:, ::1000] = torch.randn(LATE, len(range(0, BATCH, 1000)), 4 * SIZE)

    def kernel(steps: int, projection: Tensor, output: Tensor, gates: Tensor) -> list[Tensor]:
        h_0, c_0 = torch.zeros(BATCH, SIZE, **kind), torch.zeros(BATCH, SIZE)
        h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
        sizes = {"steps": steps, "batch": BATCH, "hidden": SIZE, "reverse": False, "blind": False, **kind}
        none = dict.fromkeys(("bias", "weight_hh", "peephole", "lengths", "cells"))
        results = {"output": output, "h_n": h_n, "c_n": c_n, "gates": gates}
        _native.lstm_sequence_cpu("fwd", **sizes, projection=projection, h_0=h_0, c_0=c_0, **results, **none)
        return [output[-LATE:].clone(), gates[-LATE:].clone(), h_n, c_n]

    late = kernel(
        STEPS,
        projection,
        addresses.aliased(STEPS, BATCH, SIZE, **kind),
        addresses.aliased(STEPS, BATCH, 4 * SIZE, **kind),
    )
    short = (torch.empty(LATE, BATCH, size, **kind) for size in (SIZE, 4 * SIZE))
    expected = kernel(LATE, projection[-LATE:].clone(), *short)
    assert expected[0].abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(late, expected, strict=True))


def test_backward_kernel(addresses):
    """In reverse, so that backward ends at the far end; gates of zero let no gradient through from before."""
    kind = {"dtype": torch.bfloat16}
    some = slice(None, None, 1000)
    gates = addresses.zeros(STEPS, BATCH, 4 * SIZE, **kind)
    cells = addresses.zeros(STEPS, BATCH, SIZE, dtype=torch.float32)
    seeds = addresses.zeros(STEPS, BATCH, SIZE, **kind)
    for tensor in (gates, cells, seeds):
        part = tensor[-LATE:, some]
        part.copy_(torch.rand(part.shape))
    weight = (torch.randn(4 * SIZE, SIZE) / 4).to(torch.bfloat16)

    def kernel(steps: int, gates: Tensor, cells: Tensor, seeds: Tensor, grad_gates: Tensor) -> list[Tensor]:
        grad_h_0, grad_c_0 = torch.empty(BATCH, SIZE, **kind), torch.empty(BATCH, SIZE)
        sizes = {"steps": steps, "batch": BATCH, "hidden": SIZE, "reverse": True, **kind}
        given = {"weight_hh": weight, "c_0": torch.zeros(BATCH, SIZE), "cells": cells, "gates": gates}
        none = dict.fromkeys(("peephole", "lengths", "grad_h_n", "grad_c_n", "grad_cells", "grad_peephole"))
        results = {"grad_gates": grad_gates, "grad_h_0": grad_h_0, "grad_c_0": grad_c_0}
        _native.lstm_sequence_cpu("bwd", **sizes, **given, grad_output=seeds, **results, **none)
        return [grad_gates[-LATE:].clone(), grad_h_0, grad_c_0]

    late = kernel(STEPS, gates, cells, seeds, addresses.aliased(STEPS, BATCH, 4 * SIZE, **kind))
    parts = (tensor[-LATE:].clone() for tensor in (gates, cells, seeds))
    expected = kernel(LATE, *parts, torch.empty(LATE, BATCH, 4 * SIZE, **kind))
    assert expected[0].abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(late, expected, strict=True))


@torch.no_grad()
def test_a_whole_call():
    """Its last steps are the reference's from the state reached; with closed forget gates that is h alone."""
    steps, batch, size, late = 131_100, 256, 16, 6
    assert steps * batch * 4 * size > 1 << 31
    lstm = lstmvid.LSTM(1, size, backend="cpu", dtype=torch.bfloat16)
    lstm.bias_ih_l0[size : 2 * size] = -100
    x = torch.randn(steps, batch, 1, dtype=torch.bfloat16)
    output, (h_n, c_n) = lstm(x)
    state = output[-late - 1].unsqueeze(0).clone(), torch.zeros(1, batch, size, dtype=torch.bfloat16)
    lstm.backend = "reference"
    expected, (h, c) = lstm(x[-late:].clone(), state)
    rounding = {"rtol": 0.02, "atol": testing.FLOORS[torch.bfloat16]}
    torch.testing.assert_close(output[-late:], expected, **rounding)
    torch.testing.assert_close(h_n, h, **rounding)
    torch.testing.assert_close(c_n, c, **rounding)
