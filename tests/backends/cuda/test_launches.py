"""What the CUDA backend hands to its kernel, with a stand-in for the kernel that computes on the CPU by the reference.

The stand-in reads and writes the very addresses that it is given, in float32.
"""

from __future__ import annotations

import ctypes

import pytest
import torch

from lstmvid import _native
from lstmvid.backends import reference
from lstmvid.backends.cuda import lstm_sequence as backend
from lstmvid.backends.plan import DEVICES, plan
from lstmvid.testing import Case, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def memory(address: int, *shape: int) -> torch.Tensor:
    """float32 at an address."""
    size = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_float * size).from_address(address), dtype=torch.float32).view(shape)


class StandIn:
    """The native functions that the backend calls; keeps the calls and, as a workspace would, the state."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.state: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def lstm_sequence_fwd_cuda_workspace(self, **call) -> int:
        return 1000

    def lstm_sequence_fwd_cuda(self, **call) -> None:
        self.calls.append(call)
        assert call["workspace"] % 256 == 0
        assert call["dtype"] == _native.DTYPES[torch.float32]
        for group in range(call["groups"]):
            self._group(group, call)

    def _group(self, group: int, call: dict) -> None:
        steps, batch, size = call["steps"], call["batch"], call["hidden"]
        back = bool(call["reverse"] >> group & 1)

        def tensor(name: str, *shape: int) -> torch.Tensor | None:
            return memory(call[name] + 4 * group * call[f"{name}_stride"], *shape) if call[name] else None

        def weight(name: str, *shape: int) -> torch.Tensor | None:
            return memory(call[name][group], *shape) if call[name][group] else None

        lengths = None
        if call["lengths"]:
            buffer = (ctypes.c_int64 * batch).from_address(call["lengths"])
            lengths = torch.frombuffer(buffer, dtype=torch.int64)
        first, end = call["first_step"], call["end_step"]
        start = steps - end if back else first  # of the times that this launch runs
        times = end - first
        h, c = (tensor(name, batch, size) for name in ("h_0", "c_0")) if first == 0 else self.state[group]
        part = None if lengths is None else (lengths - start).clamp(0, times)
        identity, x = None, None
        if call["projection"]:
            row = 4 * batch * 4 * size
            address = call["projection"] + 4 * group * call["projection_stride"] + start * row
            identity, x = torch.eye(4 * size), memory(address, times, batch, 4 * size)
        weights = [identity, weight("weight_hh", 4 * size, size), weight("bias", 4 * size)]
        weights = [w for w in (*weights, weight("peephole", 3 * size)) if w is not None]
        options = (call["bias"][group] != 0, call["peephole"][group] != 0, [back])
        output, h_n, c_n, _, cells, gates = reference.forward(
            *([] if x is None else [x],), h[None, None], c[None, None], weights, part, times, *options,
            *(True, True, False, 256),
        )  # fmt: skip
        self.state[group] = h_n[0, 0].clone(), c_n[0, 0].clone()
        for name, value in (("output", output[0]), ("cells", cells[0, 0]), ("gates", gates[0, 0])):
            target = tensor(name, steps, *value.shape[1:])
            if target is not None:
                target[start : start + times] = value
        if end == steps:
            tensor("h_n", batch, size).copy_(h_n[0, 0])
            tensor("c_n", batch, size).copy_(c_n[0, 0])


@pytest.fixture
def stand_in(monkeypatch):
    result = StandIn()
    monkeypatch.setattr(_native, "_C", result)
    monkeypatch.setattr(backend, "target_of", lambda device: backend.Target(DEVICES["H100"], 3, 17))
    return result


def arguments(case: Case, save: bool) -> list:
    """The operator's arguments up to the backend."""
    inputs, state, weights = ([t.float() for t in case.tensors[key]] for key in ("inputs", "state", "weights"))
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    reverse = list(case.reverse) * (case.groups // len(case.reverse))
    options = (case.steps, case.bias, case.peephole, reverse, save, case.all_cells, False, 256)
    return [inputs, *state, weights, lengths, *options]


CASES = {
    "plain": {},
    "no input": {"input_size": None, "num_layers": 2},
    "no bias, peepholes, layers": {"bias": False, "peephole": True, "num_layers": 3},
    "reverse, ragged": {"reverse": (True,), "lengths": (5, 1, 3)},
    "ragged with an empty one, all cells": {"lengths": (0, 4, 2), "all_cells": True, "num_layers": 2},
    "two directions": {"groups": 2, "reverse": (False, True), "num_layers": 2},
    "two directions, ragged": {"groups": 2, "reverse": (True, False), "lengths": (2, 5, 3)},
    "groups": {"groups": 3, "shared_input": False, "peephole": True, "num_layers": 2},
    "groups without input": {"groups": 2, "input_size": None},
    "groups in different directions": {"groups": 4, "reverse": (True, False)},
}


@pytest.mark.parametrize("save", [False, True], ids=["no-grad", "saved"])
@pytest.mark.parametrize("chunk", [2, 3, 256])
@pytest.mark.parametrize("side_by_side", [8, 1])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name, side_by_side, chunk, save, stand_in, monkeypatch):
    case = Case(**CASES[name])
    monkeypatch.setattr(backend, "MIN_CHUNK", chunk)
    monkeypatch.setattr(backend, "CHUNK_BYTES", 0)
    chosen = plan(case.hidden_size, case.batch, torch.float32, DEVICES["H100"])
    forced = chosen.__class__(**chosen.__dict__ | {"groups": min(side_by_side, case.groups)})
    monkeypatch.setattr(backend, "plan", lambda *sizes, **options: forced)
    given = arguments(case, save)
    actual = torch.ops.lstmvid.lstm_sequence(*given, "cuda")
    expected = torch.ops.lstmvid.lstm_sequence(*given, "reference")
    names = ("output", "h_n", "c_n", "hidden", "cells", "gates")
    for which, ours, theirs in zip(names, actual, expected, strict=True):
        assert ours.shape == theirs.shape, which
        ended = torch.zeros(0) if case.lengths is None else torch.tensor(case.lengths)
        if which == "gates" and ended.numel() and theirs.numel():  # in padding they mean nothing
            times = torch.arange(case.steps)[:, None]
            ours, theirs = (x * (times < ended)[None, None, :, :, None] for x in (ours, theirs))
        torch.testing.assert_close(ours, theirs, msg=which)
    assert all(call["device"] == 3 and call["stream"] == 17 for call in stand_in.calls)


def test_time_chunks(stand_in, monkeypatch):
    """The projection never exists for all steps, unless the gates are kept."""
    case = Case(steps=1000, batch=2, input_size=3, hidden_size=4)
    monkeypatch.setattr(backend, "CHUNK_BYTES", 0)
    torch.ops.lstmvid.lstm_sequence(*arguments(case, False), "cuda")
    assert [(call["first_step"], call["end_step"]) for call in stand_in.calls] == [
        (0, 250),
        (250, 500),
        (500, 750),
        (750, 1000),
    ]
    stand_in.calls.clear()
    torch.ops.lstmvid.lstm_sequence(*arguments(case, True), "cuda")
    assert [(call["first_step"], call["end_step"]) for call in stand_in.calls] == [(0, 1000)]


def test_gates_are_computed_where_the_projection_was(stand_in):
    torch.ops.lstmvid.lstm_sequence(*arguments(Case(groups=2), True), "cuda")
    (call,) = stand_in.calls
    assert call["projection"] == call["gates"]
    assert call["projection_stride"] == call["gates_stride"]


@pytest.mark.parametrize("batch", [0, 3])
def test_nothing_to_do(batch, stand_in):
    steps = 0 if batch else 4
    given = [[torch.zeros(steps, batch, 2)], torch.ones(1, 1, batch, 3), torch.full((1, 1, batch, 3), 2.0)]
    weights = [torch.zeros(12, 2), torch.zeros(12, 3)]
    given += [weights, None, steps, False, False, [False], False, False, False, 256]
    output, h_n, c_n, *_ = torch.ops.lstmvid.lstm_sequence(*given, "cuda")
    assert stand_in.calls == []
    assert output.shape == (1, steps, batch, 3)
    assert torch.equal(h_n, given[1])
    assert torch.equal(c_n, given[2])


@pytest.mark.parametrize(("setting", "expected"), [(True, "tf32"), (False, "ieee")])
def test_products_obey_the_setting_for_recurrent_networks(setting, expected, stand_in, monkeypatch):
    """As `torch.nn.LSTM` does, whose products are all cuDNN's; and the setting for other products stays what it was."""
    before = torch.backends.cuda.matmul.fp32_precision
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", setting)
    linear_into = backend.linear_into
    monkeypatch.setattr(
        backend,
        "linear_into",
        lambda *tensors: (seen.append(torch.backends.cuda.matmul.fp32_precision), linear_into(*tensors)),
    )
    torch.ops.lstmvid.lstm_sequence(*arguments(Case(), False), "cuda")
    assert [call["allow_tf32"] for call in stand_in.calls] == [setting]
    assert seen == [expected]
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_backward_says_that_it_is_missing():
    with pytest.raises(NotImplementedError, match="not part of this version"):
        backend.backward()


def test_uneven_distances_are_refused():
    tensor = torch.zeros(3, 4)
    assert _native.grouped(tensor, [0, 8, 16]) == (tensor.data_ptr(), -4)
    with pytest.raises(ValueError, match="even distances"):
        _native.grouped(tensor, [0, 8, 0])


def test_limits_are_read_from_what_the_driver_says(monkeypatch):
    driver = {
        "name": "a GPU",
        "compute_capability": 90,
        "multiprocessors": 16,  # a slice of one (MIG)
        "registers_per_multiprocessor": 65536,
        "shared_bytes_per_block_opt_in": 232448,
        "l2_bytes": 1 << 20,
        "memory_bytes": 1 << 30,
        "has_clusters": True,
    }
    monkeypatch.setattr(_native, "cuda_device_limits", lambda ordinal: driver)
    monkeypatch.setattr(_native, "cuda_active_clusters", lambda ordinal, cluster, shared: 14 // cluster)
    backend._limits.cache_clear()
    limits = backend._limits(0)
    backend._limits.cache_clear()
    assert (limits.arch, limits.active_clusters) == (90, (14, 7, 3, 1))
    assert plan(2048, 80, torch.bfloat16, limits).clusters <= 7


def test_run_of_testing_still_refuses_without_a_device():
    """`run` goes through the public function, which asks for a device first."""
    if _native.cuda_device_count()[0]:
        pytest.skip("there is a GPU here")
    with pytest.raises(Exception, match="can't run this call"):
        run(Case(), "cuda", backward=False)
