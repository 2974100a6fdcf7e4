"""Predictions of whole calls: against sums written out, and in their order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmvid.backends import Request, cuda
from lstmvid.backends.estimate import CHUNK, estimate, kept_bytes
from lstmvid.backends.plan import DEVICES, MAX_GROUPS, plan
from lstmvid.backends.wavefront import LAUNCH, wavefront

H100 = DEVICES["H100"]
PAPER = Request("cuda", torch.bfloat16, steps=100, batch=80, input_size=4096, hidden_size=2048, needs_grad=True)


def test_a_layer_by_hand():
    """Forward: one product over all steps at 3450 FLOP a cycle, and the steps one after the other."""
    found = estimate(PAPER, H100)
    step = plan(2048, 80, torch.bfloat16, H100).microseconds
    assert (found.launches, found.window, found.plan.microseconds) == (1, 0, step)
    assert found.recurrence == pytest.approx(100 * step + LAUNCH)
    rate = 3450 * 132 * 1755
    assert found.products == pytest.approx(2 * 8000 * 4096 * 8192 / rate)
    assert found.total == found.recurrence + found.products
    assert found.limit == pytest.approx(2 * 8000 * (4096 + 2048) * 8192 / rate)


def test_backward_multiplies_for_both_weights_and_for_lower_layers():
    """dW_ih and dW_hh; the gradient of a layer's input only where a layer is below."""
    one = estimate(PAPER, H100, backward=True).products
    two = estimate(PAPER._replace(num_layers=2), H100, backward=True).products
    square = 2 * 8000 * 2048 * 8192 / (3450 * 132 * 1755)
    assert one == pytest.approx(3 * square)
    assert two == pytest.approx(one + 3 * square)


def test_without_input_there_is_no_product():
    found = estimate(PAPER._replace(input_size=None), H100)
    assert found.products == 0
    assert found.recurrence == estimate(PAPER, H100).recurrence


def test_what_small_products_move_bounds_them():
    """With one row, the weights through memory take longer than their FLOP."""
    found = estimate(PAPER._replace(steps=1, batch=1), H100)
    assert found.products == pytest.approx(2 * (4096 + 4096 * 8192 + 8192) / 3.0e6)


def test_computing_gates_again_takes_products_and_saves_memory():
    keeping, again = PAPER._replace(steps=1000), PAPER._replace(steps=1000, recompute="gates")
    assert estimate(again, H100, backward=True).products > estimate(keeping, H100, backward=True).products
    assert estimate(again, H100, backward=True).launches == -(-1000 // CHUNK)
    assert kept_bytes(keeping) == 1000 * 80 * 2048 * (4 * 2 + 4)
    assert kept_bytes(again) == -(-1000 // CHUNK) * 80 * 2048 * 4
    assert kept_bytes(again._replace(num_layers=3)) == 3 * kept_bytes(again) + 2 * 1000 * 80 * 2048 * 2


def test_what_is_not_kept_is_projected_in_windows():
    long = PAPER._replace(steps=2000)
    assert estimate(long, H100, save=False).launches == 8  # of 250 steps, whose projections take 328 MB
    assert estimate(long, H100, save=True).launches == 1


def test_small_layers_run_side_by_side():
    small = Request("cuda", torch.bfloat16, steps=4000, batch=8, input_size=None, hidden_size=256, num_layers=4)
    together = estimate(small, H100)
    found = wavefront(4000, 256, 8, 4, torch.bfloat16, H100)
    assert (together.window, together.plan, together.recurrence) == (found.window, found.plan, found.microseconds)
    assert together.plan.groups == 4
    assert together.launches == -(-4000 // found.window) + 3
    alone = estimate(small._replace(num_layers=1), H100)
    assert alone.window == 0
    assert together.recurrence < 0.5 * 4 * alone.recurrence
    # Not where a layer fills the chip, nor with lengths, nor where there are groups already.
    for other in ({"hidden_size": 2048, "batch": 80}, {"lengths": True}, {"groups": 2}):
        assert estimate(small._replace(**other), H100).window == 0


def test_exact_float32_is_slower_than_tf32():
    single = PAPER._replace(dtype=torch.float32)
    assert estimate(single, H100, tf32=False).products > 5 * estimate(single, H100, tf32=True).products


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    device=st.sampled_from(list(DEVICES.values())),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    steps=st.integers(1, 3000),
    batch=st.integers(1, 200),
    input_size=st.one_of(st.none(), st.integers(1, 5000)),
    hidden=st.integers(1, 3000),
    layers=st.integers(1, MAX_GROUPS + 1),
    groups=st.integers(1, 3),
    recompute=st.sampled_from(["none", "gates"]),
)
def test_no_call_beats_the_device(backward, device, dtype, steps, batch, input_size, hidden, layers, groups, recompute):
    request = Request("cuda", dtype, steps, batch, input_size, hidden, layers, groups, recompute=recompute)
    assert cuda.unavailable_on(device.arch, request) is None
    found = estimate(request, device, backward=backward)
    assert 0 < found.limit < found.total
    assert found.launches >= 1
    assert sum(found.weights.values()) == pytest.approx(1)
    assert min(found.weights.values()) >= 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": 1}, False),
        ({"layers": MAX_GROUPS + 1}, False),
        ({"steps": 50}, False),
        ({"hidden": 2048}, False),
        ({}, True),
        ({"backward": True}, True),
    ],
)
def test_when_a_wavefront_pays(options, expected):
    sizes = {"steps": 4000, "hidden": 256, "batch": 8, "layers": 4} | options
    found = wavefront(dtype=torch.bfloat16, limits=H100, **sizes)
    assert (found is not None) == expected
    if found is not None:
        alone = plan(256, 8, torch.bfloat16, H100, backward=sizes.get("backward", False)).microseconds
        assert found.microseconds < 0.9 * 4 * (4000 * alone + LAUNCH)
        assert found.plan.groups == 4
