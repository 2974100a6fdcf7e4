"""What the CUDA backend hands to its kernels, with stand-ins for them that compute on the CPU by the reference.

They read and write the very addresses that they are given, in float32.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch

from lstmvid import _native
from lstmvid.backends import cuda, dense, reference, streaming, windows
from lstmvid.backends import weight_gradients as gradients
from lstmvid.backends.cuda import launch, recurrence
from lstmvid.backends.plan import DEVICES, Plan, plan
from lstmvid.testing import Case, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def memory(address: int, *shape: int) -> torch.Tensor:
    """float32 at an address."""
    size = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_float * size).from_address(address), dtype=torch.float32).view(shape)


class Group:
    """One group's tensors of a call."""

    def __init__(self, call: dict, group: int) -> None:
        self.call, self.group = call, group
        self.steps, self.batch, self.size = call["steps"], call["batch"], call["hidden"]
        self.back = bool(call["reverse"] >> group & 1)
        self.lengths = None
        if call["lengths"]:
            buffer = (ctypes.c_int64 * self.batch).from_address(call["lengths"])
            self.lengths = torch.frombuffer(buffer, dtype=torch.int64)

    def tensor(self, name: str, *shape: int) -> torch.Tensor | None:
        address = self.call[name][self.group]
        return memory(address, *shape) if address else None


class StandIn:
    """The native functions that the backend calls; keeps the calls and, as a workspace would, the state."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.state: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def lstm_sequence_fwd_cuda_workspace(self, **call) -> int:
        return 1000

    def lstm_sequence_bwd_cuda_workspace(self, **call) -> int:
        return 1000

    def _take(self, call: dict) -> None:
        self.calls.append(call)
        assert call["workspace"] % 256 == 0
        assert call["dtype"] == _native.DTYPES[torch.float32]

    def lstm_sequence_fwd_cuda(self, **call) -> None:
        self._take(call)
        for group in range(call["groups"]):
            self._forward(Group(call, group))

    def lstm_sequence_bwd_cuda(self, **call) -> None:
        self._take(call)
        assert (call["first_step"], call["end_step"]) == (0, call["steps"] + 1)
        for group in range(call["groups"]):
            self._backward(Group(call, group))

    def _forward(self, one: Group) -> None:
        call, steps, batch, size = one.call, one.steps, one.batch, one.size
        first, end = call["first_step"], call["end_step"]
        start = steps - end if one.back else first  # of the times that this launch runs
        times = end - first
        states = (one.tensor(name, batch, size) for name in ("h_0", "c_0"))
        h, c = states if first == 0 else self.state[one.group]
        part = None if one.lengths is None else (one.lengths - start).clamp(0, times)
        identity, x = None, None
        if call["projection"][one.group]:
            address = call["projection"][one.group] + start * 4 * batch * 4 * size
            identity, x = torch.eye(4 * size), memory(address, times, batch, 4 * size)
        weights = [identity, one.tensor("weight_hh", 4 * size, size), one.tensor("bias", 4 * size)]
        weights = [w for w in (*weights, one.tensor("peephole", 3 * size)) if w is not None]
        options = (call["bias"][one.group] != 0, call["peephole"][one.group] != 0, [one.back])
        output, h_n, c_n, _, cells, gates = reference.forward(
            *([] if x is None else [x],), h[None, None], c[None, None], weights, part, times, *options,
            *(True, True, False, 256),
        )  # fmt: skip
        self.state[one.group] = h_n[0, 0].clone(), c_n[0, 0].clone()
        for name, value in (("output", output[0]), ("cells", cells[0, 0]), ("gates", gates[0, 0])):
            target = one.tensor(name, steps, *value.shape[1:])
            if target is not None:
                target[start : start + times] = value
        if end == steps:
            one.tensor("h_n", batch, size).copy_(h_n[0, 0])
            one.tensor("c_n", batch, size).copy_(c_n[0, 0])

    def _backward(self, one: Group) -> None:
        steps, batch, size = one.steps, one.batch, one.size
        seeds = [one.tensor("grad_output", 1, steps, batch, size)]
        seeds += [one.tensor(name, 1, 1, batch, size) for name in ("grad_h_n", "grad_c_n")]
        seeds += [one.tensor("grad_cells", 1, 1, steps, batch, size)]
        cells, c_0 = one.tensor("cells", 1, 1, steps, batch, size), one.tensor("c_0", 1, 1, batch, size)
        # With the identity as W_ih, the input's gradient is that of the gates' pre-activations.
        weights = [torch.eye(4 * size), one.tensor("weight_hh", 4 * size, size), one.tensor("peephole", 3 * size)]
        output = torch.zeros(1, steps, batch, size)
        (grad_gates,), grad_h_0, grad_c_0, _ = reference.backward(
            *seeds, [torch.zeros(steps, batch, 4 * size)], torch.zeros_like(c_0), c_0,
            [weight for weight in weights if weight is not None], one.lengths, output, output[:0], cells,
            one.tensor("gates", 1, 1, steps, batch, 4 * size), steps, False, weights[2] is not None, [one.back],
            *(True, False, 256, True, False),
        )  # fmt: skip
        one.tensor("grad_gates", steps, batch, 4 * size).copy_(grad_gates)
        one.tensor("grad_h_0", batch, size).copy_(grad_h_0[0, 0])
        one.tensor("grad_c_0", batch, size).copy_(grad_c_0[0, 0])


@pytest.fixture
def stand_in(monkeypatch):
    result = StandIn()
    monkeypatch.setattr(_native, "_C", result)
    monkeypatch.setattr(recurrence, "target_of", lambda device: recurrence.Target(DEVICES["H100"], 3, 17))
    return result


def arguments(case: Case, save: bool) -> list:
    """The operator's arguments up to the backend."""
    inputs, state, weights = ([t.float() for t in case.tensors[key]] for key in ("inputs", "state", "weights"))
    inputs = [x.to(torch.uint8) for x in inputs] if case.pixels else inputs
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    reverse = list(case.reverse) * (case.groups // len(case.reverse))
    options = (case.steps, case.bias, case.peephole, reverse, save, case.all_cells, False, 256)
    return [inputs, *state, weights, lengths, *options]


def force(chosen: Plan, groups: int, monkeypatch) -> None:
    """Let this be the plan, with so many groups in a launch."""
    forced = replace(chosen, groups=groups)
    monkeypatch.setattr(recurrence, "plan", lambda *sizes, **options: forced)


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
    "pixels, first step without a frame": {"pixels": True, "blind": True, "num_layers": 2},
    "first step without a frame, two directions": {"blind": True, "groups": 2, "reverse": (False, True), "bias": False},
    "one step without a frame": {"blind": True, "steps": 1},
}


@pytest.mark.parametrize("save", [False, True], ids=["no-grad", "saved"])
@pytest.mark.parametrize("chunk", [2, 3, 256])
@pytest.mark.parametrize("side_by_side", [8, 1])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name, side_by_side, chunk, save, stand_in, monkeypatch):
    case = Case(**CASES[name])
    monkeypatch.setitem(windows.MIN_STEPS, "cuda", chunk)
    monkeypatch.setitem(windows.WINDOW_BYTES, "cuda", 0)
    chosen = plan(case.hidden_size, case.batch, torch.float32, DEVICES["H100"])
    force(chosen, min(side_by_side, case.groups), monkeypatch)
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


@pytest.mark.parametrize("seeds", [(0, 1, 2, 3), (0,), (1,), (2,)], ids=str)
@pytest.mark.parametrize("side_by_side", [8, 1])
@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_the_reference(name, side_by_side, seeds, stand_in, monkeypatch):
    case = Case(**CASES[name])
    chosen = plan(case.hidden_size, case.batch, torch.float32, DEVICES["H100"], backward=True)
    force(chosen, min(side_by_side, case.groups), monkeypatch)
    monkeypatch.setattr(gradients, "CHUNK_BYTES", 300)
    inputs, h_0, c_0, weights, lengths, *options = arguments(case, True)
    steps, bias, peephole, reverse, _, all_cells, *_ = options
    output, _, _, hidden, cells, gates = torch.ops.lstmvid.lstm_sequence(*arguments(case, True), "reference")
    drawn = [seed.float() for seed in case.tensors["seeds"]]
    given = [drawn[i] if i in seeds and (i < 3 or all_cells) else None for i in range(4)]
    given += [inputs, h_0, c_0, weights, lengths, output, hidden, cells, gates, steps, bias, peephole, reverse]
    takes_gradients = bool(inputs) and not case.pixels
    for need_inputs, need_weights in ((True, True), (takes_gradients, False), (False, True), (False, False)):
        call = (*given, all_cells, False, 256, takes_gradients and need_inputs, need_weights)
        actual = torch.ops.lstmvid.lstm_sequence_bwd(*call, "cuda")
        expected = torch.ops.lstmvid.lstm_sequence_bwd(*call, "reference")
        assert len(actual) == len(expected)
        for which, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, msg=lambda text, which=which: f"{which}: {text}")
    assert all(call["device"] == 3 and call["stream"] == 17 for call in stand_in.calls)
    top = stand_in.calls[0]  # of which layer nobody but the caller knows the gradients
    assert [any(top[name]) for name in ("grad_output", "grad_h_n", "grad_c_n")] == [i in seeds for i in range(3)]


@pytest.mark.parametrize("pins", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("name", [name for name, options in CASES.items() if options.get("input_size", 1)])
def test_frames_in_host_memory(name, pins, stand_in, stands_for_a_gpu, monkeypatch):
    """Forward in windows, backward, with copies that come late: the results of frames that lie on the device."""
    case = Case(**CASES[name])
    monkeypatch.setitem(windows.MIN_STEPS, "cuda", 2)
    monkeypatch.setitem(windows.WINDOW_BYTES, "cuda", 0)
    given = arguments(case, True)
    inputs, kept = given[0], reference.forward(*given)
    output, hidden, cells, gates = kept[0], *kept[3:]
    seeds = [seed.float() for seed in case.tensors["seeds"][: 3 + case.all_cells]] + [None] * (not case.all_cells)
    ends = (*seeds, *given[:5], output, hidden, cells, gates, *given[5:9])
    ends += (case.all_cells, False, 256, False, True)
    expected = reference.backward(*ends)
    device = stands_for_a_gpu(*inputs, piece_bytes=2 * case.batch * case.input_size * 4, pins=pins)
    with device:
        saved, plain = (cuda.forward(*given[:9], save, *given[10:]) for save in (True, False))
        actual = cuda.backward(*ends)
        for x in inputs:
            x.zero_()
    torch.testing.assert_close(saved[:3], kept[:3])
    torch.testing.assert_close(plain[:3], kept[:3])
    torch.testing.assert_close(actual[1:], expected[1:])
    assert device.copies or case.steps == case.blind


def test_time_chunks(stand_in, monkeypatch):
    """The projection never exists for all steps, unless the gates are kept."""
    case = Case(steps=1000, batch=2, input_size=3, hidden_size=4)
    monkeypatch.setitem(windows.WINDOW_BYTES, "cuda", 0)
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


@pytest.mark.parametrize("batch", [0, 3])
def test_no_gradients_to_compute(batch, stand_in):
    steps = 0 if batch else 4
    given = [torch.zeros(steps, batch, 2), torch.ones(1, 1, batch, 3), torch.ones(1, 1, batch, 3)]
    x, h_0, c_0, *weights = (tensor.requires_grad_() for tensor in (*given, torch.zeros(12, 2), torch.zeros(12, 3)))
    options = (None, steps, False, False, [False], True, False, False, 256)
    output, h_n, c_n, *_ = torch.ops.lstmvid.lstm_sequence([x], h_0, c_0, weights, *options, "cuda")
    (output.sum() + 2 * h_n.sum() + 3 * c_n.sum()).backward()
    assert stand_in.calls == []
    assert torch.equal(h_0.grad, torch.full_like(h_0, 2.0))
    assert torch.equal(c_0.grad, torch.full_like(c_0, 3.0))
    for tensor in (x, *weights):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize(("setting", "expected"), [(True, "tf32"), (False, "ieee")])
def test_products_obey_the_setting_for_recurrent_networks(setting, expected, stand_in, monkeypatch):
    """As `torch.nn.LSTM` does, whose products are all cuDNN's; and the setting for other products stays what it was."""
    before = torch.backends.cuda.matmul.fp32_precision
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", setting)

    def seeing(function):
        return lambda *tensors: (seen.append(torch.backends.cuda.matmul.fp32_precision), function(*tensors))[1]

    monkeypatch.setattr(streaming, "linear_into", seeing(streaming.linear_into))
    for module in (streaming, gradients):
        monkeypatch.setattr(module, "add_weight_gradient", seeing(module.add_weight_gradient))
    given = arguments(Case(), True)
    given[3][0].requires_grad_()
    torch.ops.lstmvid.lstm_sequence(*given, "cuda")[0].sum().backward()
    assert [call["allow_tf32"] for call in stand_in.calls] == [setting, setting]
    assert seen == [expected] * 4
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_where_groups_begin():
    tensor = torch.zeros(3, 4)
    assert _native.group_addresses(tensor, 3, [0, 8, 1]) == [tensor.data_ptr() + 4 * at for at in (0, -4, 7)]
    assert _native.group_addresses(None, 2) == [0, 0]


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
    launch.limits_of.cache_clear()
    limits = launch.limits_of(0)
    launch.limits_of.cache_clear()
    assert (limits.arch, limits.active_clusters) == (90, (14, 7, 3, 1))
    assert plan(2048, 80, torch.bfloat16, limits).clusters <= 7


def test_run_of_testing_still_refuses_without_a_device():
    """`run` goes through the public function, which asks for a device first."""
    if _native.cuda_device_count()[0]:
        pytest.skip("there is a GPU here")
    with pytest.raises(Exception, match="can't run this call"):
        run(Case(), "cuda", backward=False)


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("before", [None, True, False])
def test_the_setting_for_products_is_as_before(before, allowed):
    """Newer and older settings alike; the older ones refuse to be read where the two don't agree."""
    matmul, precision = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        if before is not None:
            matmul.allow_tf32 = before
        settings = (matmul.fp32_precision, matmul.allow_tf32, torch.get_float32_matmul_precision())
        with dense.products_in_tf32(torch.float32, allowed):
            assert matmul.fp32_precision == ("tf32" if allowed else "ieee")
        assert (matmul.fp32_precision, matmul.allow_tf32, torch.get_float32_matmul_precision()) == settings
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = precision
