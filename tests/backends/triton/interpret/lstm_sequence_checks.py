"""`backend="triton"` under Triton's interpreter, on the CPU's tensors, against the float64 reference.

Run by test_interpreted.py in a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import warnings

import pytest
import torch

import lstmvid
from lstmvid.backends import reference, triton
from lstmvid.backends.triton import configuration, launch, lstm_sequence_fwd, record_kernels, recurrence, tuning
from lstmvid.backends.triton import lstm_sequence_kernels as kernels
from lstmvid.backends.triton.configuration import Config
from lstmvid.backends.windows import Window
from lstmvid.nn import likelihoods
from lstmvid.testing import GPU_CASES, Case, check

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = GPU_CASES | {
    "one step without input": {"steps": 1, "input_size": None, "bias": False},
    "a tile exactly": {"batch": 16, "hidden_size": 32, "input_size": 16, "steps": 3},
    "odd": {"batch": 17, "hidden_size": 37, "steps": 2, "peephole": True},
    # Fewer and smaller than in GPU_CASES: a group or a tile more is seconds more here.
    "two directions": {"groups": 2, "reverse": (False, True), "peephole": True, "hidden_size": 35, "steps": 3},
    "groups": {"groups": 3, "shared_input": False, "num_layers": 2, "hidden_size": 18, "steps": 2},
    "more groups than a launch takes": {"groups": 9, "hidden_size": 5, "steps": 1},
    "groups without input": {"groups": 2, "input_size": None, "peephole": True, "reverse": (True, False)},
    "long": {"steps": 12, "batch": 2, "hidden_size": 5, "input_size": 3},
}
# Several tiles of sequences, of units and of K, and one program for all units.
WAYS = {"a launch a step": Config(False, 16, 32, 32, 4, 3), "one launch": Config(True, 16, 0, 0, 4, 1)}


def force(monkeypatch, way: str) -> None:
    config = WAYS[way]

    def choose(hidden: int, *_, **__) -> Config:
        whole = max(16, 1 << (hidden - 1).bit_length())
        return config._replace(block_h=whole) if config.loops else config

    monkeypatch.setattr(tuning, "choose", choose)


def turn(way: str, name: str) -> torch.dtype:
    """A dtype for each case: in turn, so that each way meets all of them."""
    return DTYPES[(list(CASES).index(name) + list(WAYS).index(way)) % 3]


def test_it_is_the_interpreter_that_runs():
    assert launch.is_interpreted()


@pytest.mark.parametrize("name", CASES)
def test_a_launch_a_step(name, monkeypatch):
    force(monkeypatch, "a launch a step")
    check(Case(dtype=turn("a launch a step", name), **CASES[name]), "triton")


@pytest.mark.parametrize("name", CASES)
def test_one_launch(name, monkeypatch):
    force(monkeypatch, "one launch")
    check(Case(dtype=turn("one launch", name), **CASES[name]), "triton")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_in_every_dtype(name, way, dtype, monkeypatch):
    force(monkeypatch, way)
    check(Case(dtype=dtype, **CASES[name]), "triton")


@pytest.mark.parametrize("name", ["plain", "two directions", "ragged"])
def test_agrees_as_planned(name):
    check(Case(dtype=torch.bfloat16, **CASES[name]), "triton")


AGAIN = {"plain": 2, "no input": 3, "no bias": 256, "two directions": 2, "ragged, reverse, with an empty one": 1}
AGAIN |= {"all cells, ragged, reverse": 2, "one step": 1}


@pytest.mark.parametrize("name", AGAIN)
def test_gates_computed_again(name, monkeypatch):
    """In windows of so many steps, in one way or the other."""
    place, options = list(AGAIN).index(name), CASES[name] | {"recompute": "gates", "chunk": AGAIN[name]}
    force(monkeypatch, list(WAYS)[place % 2])
    check(Case(dtype=DTYPES[place % 3], **options), "triton")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2, 3, 256])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GPU_CASES)
def test_gates_computed_again_in_windows_of_any_length(name, way, chunk, monkeypatch):
    force(monkeypatch, way)
    check(Case(dtype=DTYPES[chunk % 3], **GPU_CASES[name] | {"recompute": "gates", "chunk": chunk}), "triton")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["plain", "no input", "two directions"])
def test_without_gradients(name, way, monkeypatch):
    force(monkeypatch, way)
    with torch.no_grad():
        check(Case(**CASES[name]), "triton", backward=False)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_projections_in_windows(way, monkeypatch):
    """What isn't kept is projected some steps at a time, each direction's own."""
    force(monkeypatch, way)
    lstm, x = lstmvid.LSTM(9, 20, bidirectional=True, backend="triton"), torch.randn(7, 3, 9)
    whole = lstm(x)
    monkeypatch.setattr(lstm_sequence_fwd, "MIN_CHUNK", 3)
    monkeypatch.setattr(lstm_sequence_fwd, "CHUNK_BYTES", 0)
    torch.testing.assert_close(lstm(x), whole, rtol=1e-5, atol=1e-6)  # a product of fewer rows has other roundings


@pytest.mark.parametrize("lengths", [None, (7, 2, 5)])
def test_pieces_of_a_window_change_no_bit(lengths, monkeypatch):
    """As long as a graph, forward and backward; what crosses them is in full precision."""
    force(monkeypatch, "a launch a step")
    case = Case(steps=7, lengths=lengths, groups=2, reverse=(False, True), peephole=True, hidden_size=9)
    whole = lstmvid.testing.run(case, "triton").values
    monkeypatch.setattr(recurrence, "_GRAPH_STEPS", 3)
    in_pieces = lstmvid.testing.run(case, "triton").values
    for name, value in whole.items():
        assert torch.equal(in_pieces[name], value), name


@torch.no_grad()
def test_what_is_saved_for_backward():
    """Gates and cell states, which autograd hides: those of the reference."""
    case = Case(steps=3, hidden_size=40, num_layers=2, peephole=True, batch=9)
    inputs, (h_0, c_0), weights = ([t.float() for t in case.tensors[k]] for k in ("inputs", "state", "weights"))
    options = (inputs, h_0, c_0, weights, None, case.steps, True, True, [False], True, False, False, 256)
    ours, expected = (torch.ops.lstmvid.lstm_sequence(*options, name) for name in ("triton", "reference"))
    for tensor, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_offsets_beyond_32_bits(monkeypatch):
    """The last step of a window of more than 2^31 gates, forward and backward; memory that nobody touches is free."""
    torch.use_deterministic_algorithms(False)  # else all of it would be filled
    force(monkeypatch, "a launch a step")
    batch, hidden = 3, 16
    steps = (1 << 31) // (batch * 4 * hidden) + 2
    state, weight = torch.zeros(1, batch, hidden), torch.zeros(4 * hidden, hidden)
    gates, grad_gates = (torch.empty(steps, batch, 4 * hidden) for _ in range(2))
    output, cells, ones = (torch.empty(steps, batch, hidden) for _ in range(3))
    grad_h, grad_c, ones[-1] = torch.zeros_like(state), torch.zeros_like(state), 1.0
    record = {"weight_hh": weight, "h_from": state, "h_to": state.clone(), "c": state.clone(), "gates": gates}
    record |= {"output": output, "cells": cells, "c_start": state, "grad_gates": grad_gates, "grad_output": ones}
    record |= {"grad_h": grad_h, "grad_c": grad_c}
    flags = {"HAS_PEEPHOLE": False, "IS_RAGGED": False, "ALIGNED": True, "BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 16}
    forward = {"HAS_PROJECTION": False, "HAS_BIAS": False, "SAVE_CELLS": True, "SAVE_GATES": True}
    backward = {"HAS_GRAD_OUTPUT": True, "HAS_GRAD_CELLS": False}
    one = recurrence.Recurrence(state, backward=False)
    recurrence._write(one.table, [record])
    sizes, gates[-1], cells[-2] = (steps - 1, steps, batch, hidden), float("nan"), 0.0
    kernels.lstm_step_fwd_kernel[(1, 1, 1)](one.table, *sizes, **one.flags, **flags, **forward)
    kernels.lstm_step_bwd_kernel[(1, 1, 1)](one.table, *sizes, **one.flags, **flags, **backward)
    expected = torch.tensor([0.5, 0.5, 0.0, 0.5]).repeat_interleave(hidden)
    assert torch.equal(gates[-1], expected.expand(batch, -1))
    expected = torch.tensor([0.0, 0.0, 0.25, 0.0]).repeat_interleave(hidden)  # dz_g = dh o i
    assert torch.equal(grad_gates[-1], expected.expand(batch, -1))


def test_tensors_that_begin_anywhere():
    """Weights that are parts of a larger tensor, at an odd element."""
    flat = torch.randn(4 * 16 * 16 + 4 * 16 * 5 + 1) * 0.2
    weight_hh, weight_ih = flat[1 : 1 + 1024].view(64, 16), flat[1025:].view(64, 5)
    assert weight_hh.data_ptr() % 16
    x, state = torch.randn(4, 2, 5), torch.zeros(1, 2, 16)
    ours, plain = (
        lstmvid.functional.lstm(x, (state, state), [weight_ih, weight_hh], backend=name)
        for name in ("triton", "reference")
    )
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("wanted", "output"), [("input", 1), ("h_0", 2), ("weight", 0)])
def test_gradients_of_a_part(wanted, output):
    """Frozen weights, a frozen input, and only some of the results used."""
    case = Case(steps=3, hidden_size=20, num_layers=2, peephole=True, batch=5)
    inputs, (h_0, c_0), weights = ([t.float() for t in case.tensors[k]] for k in ("inputs", "state", "weights"))
    leaf = {"input": inputs[0], "h_0": h_0, "weight": weights[1]}[wanted].requires_grad_()
    options = (inputs, h_0, c_0, weights, None, case.steps, True, True, [False], True, False, False, 256)

    def gradient(name: str) -> torch.Tensor:
        result = torch.ops.lstmvid.lstm_sequence(*options, name)[output]
        return torch.autograd.grad(result.square().sum(), leaf)[0]

    torch.testing.assert_close(gradient("triton"), gradient("reference"), rtol=1e-4, atol=1e-5)


def test_a_training_step_of_the_composite():
    model = lstmvid.FusedComposite(30, 20, backend="triton")
    other = lstmvid.FusedComposite(30, 20, backend="reference")
    other.load_state_dict(model.state_dict())
    frames, targets = torch.rand(2, 3, 30), torch.rand(2, 3, 30)
    for each in (model, other):
        each(frames, targets).loss.backward()
    for (name, ours), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(model.predict(frames, 2), other.predict(frames, 2), rtol=1e-4, atol=1e-5)


IN_HOST_MEMORY = {
    "pixels": {"pixels": True, "num_layers": 2},
    "two directions, first step without a frame": {"groups": 2, "reverse": (False, True), "blind": True},
    "ragged, reverse": {"lengths": (5, 1, 3), "reverse": (True,), "peephole": True},
    "one step without a frame": {"steps": 1, "blind": True},
}


@pytest.mark.parametrize("pins", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", IN_HOST_MEMORY)
def test_frames_in_host_memory(name, recompute, pins, stands_for_a_gpu, monkeypatch):
    """In windows and pieces of two steps, with copies that come late: the results of frames on the device."""
    case = Case(**IN_HOST_MEMORY[name])
    monkeypatch.setattr(lstm_sequence_fwd, "MIN_CHUNK", 2)
    monkeypatch.setattr(lstm_sequence_fwd, "CHUNK_BYTES", 0)
    inputs, state, weights = ([t.float() for t in case.tensors[key]] for key in ("inputs", "state", "weights"))
    inputs = [x.to(torch.uint8) for x in inputs] if case.pixels else inputs
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    layout = (case.steps, case.bias, case.peephole, list(case.reverse))
    call = (inputs, *state, weights, lengths, *layout)
    seeds = [*(seed.float() for seed in case.tensors["seeds"][:3]), None]

    def results(of) -> list[torch.Tensor]:
        output, h_n, c_n, *kept = of.forward(*call, True, False, recompute, 2)
        back = of.backward(*seeds, *call[:5], output, *kept, *layout, False, recompute, 2, False, True)
        plain = of.forward(*call, False, False, False, 2)[:3]
        return [output, h_n, c_n, *plain, *back[1:3], *back[3]]

    expected = results(reference)
    device = stands_for_a_gpu(*inputs, piece_bytes=2 * case.batch * case.input_size * 4, pins=pins)
    with device:
        actual = results(triton)
        for x in inputs:
            x.zero_()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["uint8", "float32"])
def test_a_training_step_on_a_video_in_host_memory(dtype, stands_for_a_gpu, monkeypatch):
    options = {"reconstruct": "conditional", "batch_first": True}
    model = lstmvid.FusedComposite(30, 20, **options, backend="triton")
    other = lstmvid.FusedComposite(30, 20, **options, backend="reference")
    other.load_state_dict(model.state_dict())
    frames, targets = (torch.randint(0, 256, (2, 5, 30), dtype=torch.uint8) for _ in range(2))
    frames, targets = ((x if dtype == torch.uint8 else x / 255) for x in (frames, targets))
    expected = [other(frames, targets), other(frames, targets, feedback=0.5), other.predict(frames, 2)]
    expected[0].loss.backward()
    device = stands_for_a_gpu(frames, targets, piece_bytes=2 * 2 * 30 * 4)
    monkeypatch.setattr(likelihoods, "WINDOW_BYTES", 2 * 2 * 30 * 4)
    torch.manual_seed(0)
    out = model(frames, targets)
    out.loss.backward()
    torch.testing.assert_close(out[:2] + out[3:], expected[0][:2] + expected[0][3:], rtol=1e-4, atol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(model.predict(frames, 2), expected[2], rtol=1e-4, atol=1e-5)
    assert model(frames, targets, feedback=0.5).loss.isfinite()
    assert max(len(source) for _, source in device.copies) == 2
    assert len(device.copies) > 20


def test_the_layer_reads_an_input_in_host_memory(stands_for_a_gpu):
    lstm, x = lstmvid.LSTM(9, 20, 2, bidirectional=True, batch_first=True, backend="triton"), torch.randn(3, 7, 9)
    expected = lstm(x)
    device = stands_for_a_gpu(x, piece_bytes=3 * 3 * 9 * 4)
    torch.testing.assert_close(lstm(x), expected, rtol=1e-5, atol=1e-6)
    assert {len(source) for _, source in device.copies} == {3, 1}
    with pytest.raises(ValueError, match="input is in host memory and can't have a gradient there"):
        lstm(x.requires_grad_())


def test_it_compiles_as_a_whole():
    """And what chooses the backend leaves nothing for the compiler to look into."""
    stack, x = lstmvid.nn.stack.LSTMStack(3, 5, backend="triton"), torch.randn(2, 4, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Dynamo detected")
        compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")(x, stack.zero_state(4))
    torch.testing.assert_close(compiled, stack(x, stack.zero_state(4)))


def test_a_record_has_the_places_that_the_kernels_read():
    for place, name in enumerate(recurrence.FIELDS):
        assert getattr(record_kernels, name.upper()).value == place
    assert record_kernels.RECORD.value == len(recurrence.FIELDS)


def test_why_it_cannot_run():
    asks = lstmvid.backends.Request
    unavailable = lstmvid.backends.triton.unavailable
    assert unavailable(asks("cpu", torch.float16, peephole=True, lengths=True, recompute="gates")) is None
    assert "TRITON_INTERPRET" in unavailable(asks("cuda", torch.float32))
    assert "float64" in unavailable(asks("cpu", torch.float64))
    assert "proj_size" in unavailable(asks("cpu", torch.float32, proj_size=3))
    assert lstmvid.backends.resolve("auto", asks("cpu", torch.float32)) != "triton"


def test_the_planner_chooses_for_the_interpreter_too():
    config = configuration.choose(20, 3, "ieee", launch.limits_of(torch.device("cpu")))
    assert config.loops
    one = recurrence.Recurrence(torch.zeros(1, 3, 300), backward=False)
    assert not one.config.loops
    assert one.pieces(Window(5, 600)) == [Window(5, 261), Window(261, 517), Window(517, 600)]


@pytest.mark.parametrize(
    ("dtype", "options", "loops"),
    [
        (torch.float32, {"IS_RAGGED": True, "HAS_PEEPHOLE": False}, False),
        (torch.float32, {"IS_RAGGED": True, "HAS_PEEPHOLE": True}, True),
        (torch.float32, {"IS_RAGGED": False, "HAS_PEEPHOLE": False}, True),
        (torch.bfloat16, {"IS_RAGGED": True, "HAS_PEEPHOLE": False}, True),
    ],
)
def test_what_aborts_the_compiler_goes_by_steps(dtype, options, loops, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    flags = {"HAS_GRAD_OUTPUT": True, "HAS_GRAD_CELLS": False} | options
    assert recurrence.Recurrence(torch.zeros(1, 3, 20, dtype=dtype), backward=True, **flags).config.loops == loops
