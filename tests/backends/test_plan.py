"""The planner, over a table of devices: every plan fits, none is absurd, neighbours resemble each other."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmvid import _native
from lstmvid.backends import plan as planner
from lstmvid.backends.plan import (
    CLUSTER_SIZES,
    DEVICES,
    ELEMENT_BYTES,
    MAX_GROUPS,
    REGISTER_ARCH,
    REGISTER_ELEMENT_BYTES,
    REGISTER_ROUNDS,
    TILE_BLOCKS,
    WARP_GROUP_ARCH,
    WARP_GROUP_REGISTER_ROUNDS,
    WARP_GROUP_UNIT_BLOCKS,
    DeviceLimits,
    Plan,
    geometry,
    limits_from,
    plan,
    shared_bytes,
)

DTYPES = list(ELEMENT_BYTES)
SIZES = [1, 7, 200, 768, 1024, 1025, 2047, 3000, 8192]
BATCHES = [1, 9, 80, 500]
both_directions = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])


def check(
    chosen: Plan,
    hidden: int,
    batch: int,
    dtype: torch.dtype,
    limits: DeviceLimits,
    groups: int = 1,
    *,
    backward: bool = False,
) -> None:
    """Whatever the kernel and the launch demand."""
    element_bytes, unit_block = ELEMENT_BYTES[dtype], 32 if backward else 8
    division = ("cluster", "clusters", "replicas", "unit_blocks", "tile_columns", "warp_groups")
    g = geometry(hidden, batch, element_bytes, **{name: getattr(chosen, name) for name in division}, backward=backward)

    assert chosen.cluster in CLUSTER_SIZES
    assert limits.arch >= 90 or chosen.cluster == 1
    assert 1 <= chosen.groups <= min(groups, MAX_GROUPS)
    clusters = chosen.groups * chosen.replicas * chosen.clusters
    assert 1 <= clusters <= limits.active_clusters[CLUSTER_SIZES.index(chosen.cluster)]
    assert chosen.tile_columns % 8 == 0
    assert chosen.tile_columns // 8 in TILE_BLOCKS[element_bytes]
    assert shared_bytes(chosen, hidden, batch, element_bytes, backward=backward) <= limits.shared_bytes

    assert 1 <= chosen.unit_blocks <= 8
    assert chosen.clusters * g.passes * chosen.unit_blocks * unit_block >= hidden
    unit_blocks = math.ceil(hidden / unit_block)
    assert (chosen.clusters - 1) * math.ceil(unit_blocks / chosen.clusters) < unit_blocks  # none is without units
    assert chosen.replicas == 1 or (chosen.replicas - 1) * math.ceil(batch / chosen.replicas) < batch
    assert g.tiles * chosen.tile_columns * chosen.replicas >= batch

    streamed = g.rounds - chosen.register_rounds - chosen.resident_rounds
    assert min(streamed, chosen.resident_rounds) >= 0
    assert (chosen.weight_stages >= 2) if streamed else (chosen.weight_stages == 0)
    assert chosen.hidden_stages >= 2
    assert 1 <= chosen.hidden_stage_rounds <= g.rounds
    if chosen.warp_groups:
        assert chosen.unit_blocks in WARP_GROUP_UNIT_BLOCKS
        assert (element_bytes, limits.arch) == (2, WARP_GROUP_ARCH)
    if chosen.register_rounds:
        most = WARP_GROUP_REGISTER_ROUNDS if chosen.warp_groups else REGISTER_ROUNDS
        assert (chosen.register_rounds, g.passes) == (most, 1)
        assert element_bytes == REGISTER_ELEMENT_BYTES
        assert limits.arch == REGISTER_ARCH
    assert 0 < chosen.microseconds < math.inf
    assert chosen.bound


@both_directions
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_plan_fits(device, dtype, backward):
    for hidden, batch in itertools.product(SIZES, BATCHES):
        chosen = plan(hidden, batch, dtype, device, backward=backward)
        check(chosen, hidden, batch, dtype, device, backward=backward)


@both_directions
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    hidden=st.integers(1, 70000),
    batch=st.integers(1, 4096),
    groups=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    device=st.sampled_from(list(DEVICES.values())),
)
def test_any_shape_gets_a_plan_that_fits(backward, hidden, batch, groups, dtype, device):
    chosen = plan(hidden, batch, dtype, device, groups=groups, backward=backward)
    check(chosen, hidden, batch, dtype, device, groups, backward=backward)


@both_directions
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    hidden=st.integers(1, 5000),
    batch=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES),
    device=st.sampled_from(list(DEVICES.values())),
)
def test_neighbouring_shapes_do_not_jump(backward, hidden, batch, dtype, device):
    """Eight more units or one more sequence may take a further tile or pass, but not twice the time."""
    here, *neighbours = (
        plan(*shape, dtype, device, backward=backward).microseconds
        for shape in ((hidden, batch), (hidden + 8, batch), (hidden, batch + 1))
    )
    assert all(0.5 < neighbour / here < 2 for neighbour in neighbours)


@both_directions
@pytest.mark.parametrize("multiprocessors", [1, 2, 7, 14])
def test_a_slice_of_a_gpu_is_enough(multiprocessors, backward):
    driver = {
        "name": "a slice",
        "compute_capability": 90,
        "multiprocessors": multiprocessors,
        "shared_bytes_per_block_opt_in": 232448,
        "registers_per_multiprocessor": 65536,
        "l2_bytes": 5 << 20,
        "memory_bytes": 10 << 30,
        "active_clusters": [multiprocessors // size for size in CLUSTER_SIZES],
    }
    limits = limits_from(driver)
    for hidden, groups in ((1, 1), (1024, 2), (2048, 4), (3000, 1)):
        chosen = plan(hidden, 80, torch.bfloat16, limits, groups=groups, backward=backward)
        check(chosen, hidden, 80, torch.bfloat16, limits, groups, backward=backward)


def test_the_papers_size_on_an_h100():
    """H = 2048, B = 80: pairs of blocks, 32 units each, two tiles of 40 sequences that take turns.

    By warp groups, for which all weights stay on the chip: half of them in registers.
    """
    chosen = plan(2048, 80, torch.bfloat16, DEVICES["H100"])
    assert (chosen.cluster, chosen.clusters, chosen.replicas) == (2, 64, 1)
    assert (chosen.unit_blocks, chosen.tile_columns, chosen.warp_groups) == (4, 40, True)
    assert (chosen.register_rounds, chosen.resident_rounds) == (WARP_GROUP_REGISTER_ROUNDS, 16)
    assert 4 < chosen.microseconds < 6.5


@both_directions
def test_warp_groups_can_be_left_out(backward, monkeypatch):
    """By one constant: then every plan is by warps, and slower where warp groups were chosen."""
    shapes = list(itertools.product((1536, 2048), (80, 128)))
    device = DEVICES["H100"]
    usual = [plan(*shape, torch.bfloat16, device, backward=backward) for shape in shapes]
    assert any(chosen.warp_groups for chosen in usual)
    monkeypatch.setattr(planner, "WARP_GROUP_ARCH", 0)
    without = [plan.__wrapped__(*shape, torch.bfloat16, device, backward=backward) for shape in shapes]
    assert not any(chosen.warp_groups for chosen in without)
    monkeypatch.undo()
    assert without == [plan(*shape, torch.bfloat16, device, backward=backward, warp_groups=False) for shape in shapes]
    for chosen, other, (hidden, batch) in zip(usual, without, shapes, strict=True):
        check(other, hidden, batch, torch.bfloat16, device, backward=backward)
        assert chosen.microseconds <= other.microseconds


@pytest.mark.parametrize("device", ["A100", "B200", "RTX 4090"])
def test_other_chips_have_no_warp_groups(device):
    for dtype, hidden in itertools.product(DTYPES, SIZES):
        assert not plan(hidden, 80, dtype, DEVICES[device]).warp_groups


def test_the_papers_size_backward_on_an_h100():
    """Every block reads B * 4H / c gradients a step: clusters of 8, by prediction."""
    chosen = plan(2048, 80, torch.bfloat16, DEVICES["H100"], backward=True)
    assert chosen.cluster == 8
    assert chosen.register_rounds == REGISTER_ROUNDS
    assert 4 < chosen.microseconds < 18


@both_directions
def test_without_clusters_there_is_no_cluster(backward):
    assert plan(2048, 80, torch.bfloat16, DEVICES["A100"], backward=backward).cluster == 1


@pytest.mark.parametrize("hidden", [512, 1024])
def test_small_weights_are_replicated(hidden):
    chosen = plan(hidden, 80, torch.bfloat16, DEVICES["H100"])
    assert chosen.replicas >= 2
    assert chosen.cluster == 1
    assert chosen.weight_stages == 0


def test_small_weights_are_not_streamed():
    for batch in BATCHES:
        assert plan(256, batch, torch.bfloat16, DEVICES["H100"]).weight_stages == 0


def test_groups_run_side_by_side_where_the_chip_has_room():
    assert plan(512, 16, torch.bfloat16, DEVICES["H100"], groups=2).groups == 2
    large = plan(2048, 80, torch.bfloat16, DEVICES["H100"], groups=2)
    one = plan(2048, 80, torch.bfloat16, DEVICES["H100"])
    assert large.microseconds <= 2 * one.microseconds * 1.001


def test_exact_float32_takes_longer():
    fast, exact = (plan(1024, 128, torch.float32, DEVICES["H100"], tf32=tf32) for tf32 in (True, False))
    assert exact.microseconds > fast.microseconds


def test_shared_memory_of_a_block():
    """By hand, for one plan: each region, rounded up to 128 bytes."""
    chosen = Plan(2, 64, 1, 4, 40, 4, 8, 2, 3, 2, True)
    regions = [8 * (6 + 4 + 4 + 1 + 2), 3 * 40 * (2 * 2 * 64 + 16), 2 * 16384, 8 * 16384]
    regions += [2 * 5 * 4 * 1024, 2 * 40 * (4 * 8 * 2 * 2 + 16), 2 * 8 * 8 * 4, 2 * 2 * 5 * 64 * 4, 2 * 40 * 4]
    assert shared_bytes(chosen, 2048, 80, 2) == sum(math.ceil(region / 128) * 128 for region in regions)


def test_shared_memory_of_a_block_of_warp_groups():
    """No padding in a stage; one source of partial sums where the other has two."""
    chosen = Plan(2, 64, 1, 4, 40, 16, 8, 2, 3, 2, True, True)
    regions = [8 * (6 + 4 + 4 + 1 + 2), 3 * 40 * 2 * 64, 2 * 8192, 8 * 8192]
    regions += [2 * 5 * 2 * 1024, 2 * 40 * (4 * 8 * 2 * 2 + 16), 2 * 8 * 8 * 4, 2 * 2 * 5 * 64 * 4, 2 * 40 * 4]
    assert shared_bytes(chosen, 2048, 80, 2) == sum(math.ceil(region / 128) * 128 for region in regions)


def test_shared_memory_of_a_block_backward():
    """Inputs of 5 * 2 + 12 bytes a unit and row in one slot, 16 words of state a lane; K is four times as long."""
    chosen = Plan(8, 13, 1, 5, 40, 6, 8, 2, 4, 3, True)
    regions = [8 * (8 + 6 + 2 + 1 + 8), 4 * 40 * (2 * 64 + 16), 3 * 10240, 8 * 10240]
    regions += [5 * 8 * 1024, 40 * (22 * 32 + 16), 32 * 8 * 4, 2 * 5 * 32 * 16 * 4, 2 * 40 * 4]
    expected = sum(math.ceil(region / 128) * 128 for region in regions)
    assert shared_bytes(chosen, 2048, 80, 2, backward=True) == expected


@pytest.mark.skipif(not _native.WITH_CUDA, reason="built without CUDA")
@both_directions
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    hidden=st.integers(1, 20000),
    batch=st.integers(1, 1000),
    groups=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    device=st.sampled_from(list(DEVICES.values())),
)
def test_the_kernel_takes_the_plan_and_as_much_shared_memory(backward, hidden, batch, groups, dtype, device):
    chosen = plan(hidden, batch, dtype, device, groups=groups, backward=backward)
    call = {
        "steps": 5,
        "first_step": 0,
        "end_step": 5 + backward,
        "batch": batch,
        "hidden": hidden,
        "groups": chosen.groups,
    }
    call |= {"dtype": dtype, "allow_tf32": False, "reverse": 0, "max_polls": 0, "lengths": 0, "workspace": 0}
    call |= {name: [0] * chosen.groups for name in ("projection", "h_0", "c_0", "output", "h_n", "c_n")}
    call |= {name: [0] * chosen.groups for name in ("cells", "gates", "grad_output", "grad_h_n", "grad_c_n")}
    call |= {name: [0] * chosen.groups for name in ("grad_cells", "grad_gates", "grad_h_0", "grad_c_0")}
    call |= {name: [0] * chosen.groups for name in ("weight_hh", "bias", "peephole")}
    call |= chosen.kernel_arguments()
    direction, element_bytes = "bwd" if backward else "fwd", ELEMENT_BYTES[dtype]
    expected = shared_bytes(chosen, hidden, batch, element_bytes, backward=backward)
    assert _native.lstm_sequence_cuda_shared_bytes(direction, **call) == expected
    weights = 4 * hidden * hidden * element_bytes * chosen.groups
    assert _native.lstm_sequence_cuda_workspace(direction, **call) >= weights


def test_reasons_for_no_plan():
    old = DEVICES["A100"]._replace(name="V100", arch=70)
    with pytest.raises(ValueError, match=r"compute capability 8\.0, V100 has 7\.0"):
        plan(64, 8, torch.float32, old)
    with pytest.raises(ValueError, match="float64"):
        plan(64, 8, torch.float64, DEVICES["A100"])
    tiny = DEVICES["A100"]._replace(name="a toy", shared_bytes=4096)
    with pytest.raises(ValueError, match="4096 bytes of a toy"):
        plan(64, 8, torch.float32, tiny)


def test_constants_are_the_kernels():
    csrc = Path(__file__).resolve().parents[2] / "csrc"
    text = (csrc / "cuda/recurrence_geometry.h").read_text()
    text += (csrc / "include/lstmvid/lstm_sequence_cuda.h").read_text()
    constants = dict(re.findall(r"constexpr \w+ (k\w+) = (\d+);", text))
    assert int(constants["kRegisterRounds"]) == REGISTER_ROUNDS
    assert int(constants["kGroupRegisterRounds"]) == WARP_GROUP_REGISTER_ROUNDS
    assert int(constants["kMaxGroups"]) == MAX_GROUPS
    widest = re.search(r"kNarrowTileBlocks = (\d+), kWideTileBlocks = (\d+);", text)
    assert {2: tuple(range(1, int(widest[1]) + 1)), 4: tuple(range(1, int(widest[2]) + 1))} == TILE_BLOCKS


def test_the_kernels_own_fields():
    names = list(plan(64, 8, torch.float32, DEVICES["A100"]).kernel_arguments())
    assert names[0] == "cluster"
    assert names[-1] == "warp_groups"
    assert len(names) == 12
