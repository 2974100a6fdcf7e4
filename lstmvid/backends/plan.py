"""The planner: how a launch of a persistent recurrent kernel divides its work on a GPU, and how long it will take.

Pure functions of sizes, dtype and the device's limits; no GPU is needed. A plan is the fastest by `_predict` of the
candidates that fit. Sizes: `T` steps, `B` batch, `H` hidden units, `G` groups. The words pass, round, pair, unit block
are those of csrc/include/lstmvid/lstm_sequence_cuda.h; `geometry` is csrc/cuda/recurrence_geometry.cpp once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch

ELEMENT_BYTES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
CLUSTER_SIZES = (1, 2, 4, 8)
MAX_GROUPS = 8  # in a launch
# What is compiled (csrc/cuda/recurrence_launch.cuh): widths of a batch tile, in 8 rows, by element bytes; and of them
# those for which weights can stay in registers, for how many rounds, and on which architecture.
TILE_BLOCKS = {2: (1, 2, 3, 4, 5, 6), 4: (1, 2, 3, 4)}
REGISTER_ELEMENT_BYTES = 2  # of the operands that may stay in registers
REGISTER_ROUNDS, REGISTER_ARCH = 6, 90
# Warp groups (wgmma) multiply 2-byte operands on this architecture; 0 here keeps every plan to warps by themselves.
WARP_GROUP_ARCH, WARP_GROUP_REGISTER_ROUNDS, WARP_GROUP_UNIT_BLOCKS = 90, 16, (4, 2)
_WARPS, _PAIR, _FRAGMENT = 8, 64, 2048


class DeviceLimits(NamedTuple):
    """What a plan has to keep to. `active_clusters`: how many clusters of `CLUSTER_SIZES` blocks run at once."""

    name: str
    arch: int  # 10 * major + minor
    multiprocessors: int
    shared_bytes: int  # a block may ask for
    registers: int  # of a multiprocessor, 32 bits each
    l2_bytes: int
    memory_bytes: int
    active_clusters: tuple[int, int, int, int]


def _active_clusters(arch: int, multiprocessors: int) -> tuple[int, int, int, int]:
    """With one block a multiprocessor. Larger clusters leave some idle: as on an H100, 30 of 4 blocks and 15 of 8."""
    if arch < 90:
        return multiprocessors, 0, 0, 0
    return multiprocessors, multiprocessors // 2, multiprocessors * 30 // 132, multiprocessors * 15 // 132


def too_old(arch: int) -> str:
    """Why kernels of ours can't run on an NVIDIA GPU of that architecture; empty if they can."""
    return f"it needs compute capability 8.0, this GPU has {arch / 10}" if arch < 80 else ""


def limits_from(device: dict) -> DeviceLimits:
    """From what `_native.cuda_device_limits` has read, and `active_clusters` beside it."""
    arch, multiprocessors = device["compute_capability"], device["multiprocessors"]
    return DeviceLimits(
        name=device["name"],
        arch=arch,
        multiprocessors=multiprocessors,
        shared_bytes=device["shared_bytes_per_block_opt_in"],
        registers=device["registers_per_multiprocessor"],
        l2_bytes=device["l2_bytes"],
        memory_bytes=device["memory_bytes"],
        active_clusters=tuple(device["active_clusters"]),
    )


def _device(name: str, arch: int, multiprocessors: int, shared_kib: int, l2_mib: int, memory_gib: int) -> DeviceLimits:
    sizes = (shared_kib << 10, 65536, l2_mib << 20, memory_gib << 30)
    return DeviceLimits(name, arch, multiprocessors, *sizes, _active_clusters(arch, multiprocessors))


# For planning without the device.
DEVICES = {
    device.name: device
    for device in (
        _device("A100", 80, 108, 163, 40, 80),
        _device("H100", 90, 132, 227, 50, 80),
        _device("H200", 90, 132, 227, 50, 141),
        _device("B200", 100, 148, 227, 126, 180),
        _device("RTX 4090", 89, 128, 99, 72, 24),
        _device("L4", 89, 58, 99, 48, 24),
    )
}


class _Rates(NamedTuple):
    """Of one multiprocessor and clock cycle, but for memory. Estimates (KERNELS.md) until they are measured."""

    clock: float  # cycles a microsecond
    flop: int  # of the kernels' matrix instructions on 16-bit operands; tf32 has half of it
    library_flop: int  # of the library's large products, likewise; and of warp groups
    l2_bytes: float
    remote_bytes: float  # distributed shared memory
    memory: float  # bytes a microsecond of the whole device


_RATES = {
    80: _Rates(1410, 2048, 1640, 24, 12, 1.8e6),
    86: _Rates(1700, 512, 400, 20, 12, 0.7e6),
    89: _Rates(2400, 512, 400, 20, 12, 0.6e6),
    90: _Rates(1755, 2240, 3450, 24, 11.4, 3.0e6),
    100: _Rates(1850, 2240, 6200, 24, 11.4, 7.0e6),
    120: _Rates(2400, 512, 400, 20, 11.4, 1.5e6),
}
_PLAIN_FLOP = 256  # of float32 without matrix instructions: the library's exact products
_EXCHANGE = 1.8  # microseconds from the last store of h to the first byte of it in another block
_COPY = 0.7  # microseconds from asking for a stage to its arrival
_ITEM = 0.2  # microseconds of gate arithmetic and barriers a tile and pass
_SHARED_BYTES_A_CYCLE = 128
_DEPENDENT_CYCLES = 33  # from one matrix instruction to the next one on the same sums
_GROUP_CYCLES = 16  # of a warp group's matrix instruction, at least


@dataclass(frozen=True)
class Plan:
    """One launch. The fields down to `warp_groups` are the kernel's `LstmSequencePlan`.

    `groups` is how many run side by side in a launch, where the rest has to wait; `microseconds` is predicted for a
    step of all groups, and `bound` names what takes the longest in it.
    """

    cluster: int
    clusters: int
    replicas: int
    unit_blocks: int
    tile_columns: int
    register_rounds: int
    resident_rounds: int
    hidden_stage_rounds: int
    hidden_stages: int
    weight_stages: int
    cells_in_shared: bool
    warp_groups: bool = False
    groups: int = 1
    microseconds: float = float("nan")
    bound: str = ""

    def kernel_arguments(self) -> dict[str, int | bool]:
        """The kernel's own fields, by name."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names[: names.index("groups")]}

    @property
    def multipliers(self) -> str:
        """Who multiplies, in words."""
        return "warp groups (wgmma)" if self.warp_groups else "warps (mma.sync)"


class _Shape(NamedTuple):
    """What tells the two directions apart: csrc/cuda/recurrence_geometry.h's `RecurrenceShape`."""

    unit_block: int  # units of 32 rows of the product
    k_of_unit: int  # operands that a unit leaves in the exchange
    input_bytes_of_unit: int  # that the gate arithmetic reads for a unit and row, besides the sums
    input_slots: int  # of their ring
    state_words_of_lane: int  # carried from step to step for its cells of a unit block and 8 rows


def _shape(element_bytes: int, backward: bool) -> _Shape:
    if backward:  # reads gates and grad_output in the operands' dtype; cells before and after, and grad_cells
        return _Shape(32, 4, 5 * element_bytes + 12, 1, 16)
    return _Shape(8, 1, 4 * element_bytes, 2, 2)  # reads projections


class Geometry(NamedTuple):
    """What follows from the sizes and from how a plan divides them, wherever the weights are then held."""

    passes: int
    own: int  # unit blocks of a pass that a block finalises
    k_warps: int  # or warp groups
    rounds: int  # of a pass
    tiles: int  # of a replica
    row_blocks: int  # of 8 batch rows, over all tiles


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def geometry(
    hidden: int,
    batch: int,
    element_bytes: int,
    *,
    cluster: int,
    clusters: int,
    replicas: int,
    unit_blocks: int,
    tile_columns: int,
    warp_groups: bool = False,
    backward: bool = False,
) -> Geometry:
    """The kernel's geometry for a plan's division."""
    shape = _shape(element_bytes, backward)
    cluster_unit_blocks = _ceil_div(_ceil_div(hidden, shape.unit_block), clusters)
    slice_pairs = _ceil_div(hidden * shape.k_of_unit, _PAIR // element_bytes * cluster)
    k_warps = (_WARPS // 2 if warp_groups else _WARPS) // unit_blocks
    rows = _ceil_div(batch, replicas)
    return Geometry(
        passes=_ceil_div(cluster_unit_blocks, unit_blocks),
        own=_ceil_div(unit_blocks, cluster),
        k_warps=k_warps,
        rounds=_ceil_div(slice_pairs, k_warps),
        tiles=_ceil_div(rows, tile_columns),
        row_blocks=_ceil_div(rows, 8),
    )


def _geometry_of(plan: Plan, hidden: int, batch: int, element_bytes: int, backward: bool) -> Geometry:
    names = ("cluster", "clusters", "replicas", "unit_blocks", "tile_columns", "warp_groups")
    return geometry(hidden, batch, element_bytes, **{name: getattr(plan, name) for name in names}, backward=backward)


def _stage_row(plan: Plan, g: Geometry) -> int:
    """Bytes of a batch row of a stage: padded where warps read it by themselves."""
    return plan.hidden_stage_rounds * g.k_warps * _PAIR + (0 if plan.warp_groups else 16)


def weight_shares(
    plan: Plan, hidden: int, batch: int, element_bytes: int, *, backward: bool = False
) -> dict[str, float]:
    """Of W_hh, what a launch of the plan holds where."""
    rounds = _geometry_of(plan, hidden, batch, element_bytes, backward).rounds
    held = {"in registers": plan.register_rounds / rounds, "in shared memory": plan.resident_rounds / rounds}
    return held | {"streamed from L2": 1 - sum(held.values())}


def _aligned(size: int) -> int:
    return _ceil_div(size, 128) * 128


def shared_bytes(plan: Plan, hidden: int, batch: int, element_bytes: int, *, backward: bool = False) -> int:
    """Shared memory of a block in bytes: the regions of the kernel in their order."""
    shape = _shape(element_bytes, backward)
    g = _geometry_of(plan, hidden, batch, element_bytes, backward)
    round_bytes = plan.unit_blocks * g.k_warps * _FRAGMENT
    streams = g.rounds > plan.register_rounds + plan.resident_rounds
    weight_stages = plan.weight_stages if streams else 0
    tile_blocks = plan.tile_columns // 8
    regions = (
        8 * (2 * plan.hidden_stages + 2 * weight_stages + 2 * shape.input_slots + 1 + plan.cluster),  # barriers
        plan.hidden_stages * plan.tile_columns * _stage_row(plan, g),
        weight_stages * round_bytes,
        g.passes * plan.resident_rounds * round_bytes,
        g.own * tile_blocks * plan.cluster * g.k_warps * 1024,  # partial sums
        shape.input_slots * plan.tile_columns * (shape.input_bytes_of_unit * shape.unit_block * g.own + 16),
        g.passes * g.own * shape.unit_block * 8 * 4,  # constants
        g.tiles * g.passes * g.own * tile_blocks * 32 * shape.state_words_of_lane * 4 * plan.cells_in_shared,
        g.tiles * plan.tile_columns * 4 * plan.cells_in_shared,  # lengths
    )
    return sum(map(_aligned, regions))


def _replicas(batch: int, element_bytes: int, most: int) -> list[int]:
    """Numbers of replicas, each with batch rows of its own: a few, and those whose rows fill one or two tiles."""
    rows = {8 * tiles * blocks for tiles in (1, 2) for blocks in TILE_BLOCKS[element_bytes]}
    numbers = {_ceil_div(batch, count) for count in rows} | {1, 2, 3, 4, 6, 8}
    return sorted(number for number in numbers if number <= min(most, _ceil_div(batch, 8)))


def _divisions(
    hidden: int, batch: int, element_bytes: int, backward: bool, limits: DeviceLimits, groups: int, warp_groups: bool
) -> Iterator[dict]:
    """Ways to divide the units, K and the batch of `groups` groups between blocks that all run at once."""
    has_warp_groups = warp_groups and limits.arch == WARP_GROUP_ARCH and element_bytes == 2
    total = _ceil_div(hidden, _shape(element_bytes, backward).unit_block)
    if backward:
        # Every block reads its part of 4H gradients a row: the larger the cluster, the smaller the part.
        sizes: tuple[int, ...] = CLUSTER_SIZES
    else:
        # Where all blocks read all of h, pairs of them read half as much. Larger clusters pay more for partial sums
        # than they save, and so do pairs where replicas have few blocks each.
        sizes = (1,) if hidden <= 1024 else (2, 1) if hidden <= 1536 else (2,)
    active_clusters = dict(zip(CLUSTER_SIZES, limits.active_clusters, strict=True))
    for cluster in [size for size in sizes if active_clusters[size] >= groups] or [1]:
        active = active_clusters[cluster]
        for replicas in _replicas(batch, element_bytes, active // groups):
            clusters = _ceil_div(total, _ceil_div(total, active // (groups * replicas)))
            widest = min(_ceil_div(total, clusters), _WARPS)
            kinds = [(unit_blocks, False) for unit_blocks in range(widest, 0, -1)]
            if has_warp_groups:  # of a group's two unit blocks one may be empty
                kinds += [(unit_blocks, True) for unit_blocks in WARP_GROUP_UNIT_BLOCKS if unit_blocks - 2 < widest]
            for (unit_blocks, by_groups), tile_blocks in product(kinds, TILE_BLOCKS[element_bytes]):
                yield {
                    "cluster": cluster,
                    "clusters": clusters,
                    "replicas": replicas,
                    "unit_blocks": unit_blocks,
                    "tile_columns": 8 * tile_blocks,
                    "warp_groups": by_groups,
                }


def _rings(division: dict, g: Geometry) -> set[tuple[int, int]]:
    """(rounds a stage, stages) of the ring of what is exchanged, for rings of several sizes."""
    round_bytes = division["tile_columns"] * g.k_warps * _PAIR
    rings = set()
    for ring_bytes in (12 << 10, 24 << 10, 40 << 10, 56 << 10):
        stage_rounds = min(max(ring_bytes // 4 // round_bytes, 1), g.rounds)
        rings.add((stage_rounds, min(max(ring_bytes // (stage_rounds * round_bytes), 2), 8)))
    return rings


def _holdings(
    division: dict,
    g: Geometry,
    hidden: int,
    batch: int,
    element_bytes: int,
    backward: bool,
    in_parts: bool,
    limits: DeviceLimits,
) -> Iterator[Plan]:
    """Plans of a division that fit: as many of the weights as possible stay in registers and shared memory."""
    round_bytes = division["unit_blocks"] * g.k_warps * _FRAGMENT
    is_compiled = element_bytes == REGISTER_ELEMENT_BYTES and limits.arch == REGISTER_ARCH
    most = WARP_GROUP_REGISTER_ROUNDS if division["warp_groups"] else REGISTER_ROUNDS
    for in_registers in (most, 0) if is_compiled and g.passes == 1 and g.rounds >= most else (0,):
        rounds = g.rounds - in_registers
        for stage_rounds, stages in sorted(_rings(division, g)):
            for cells_in_shared in (False,) if in_parts else (True, False):
                bare = Plan(
                    **division,
                    register_rounds=in_registers,
                    resident_rounds=0,
                    hidden_stage_rounds=stage_rounds,
                    hidden_stages=stages,
                    weight_stages=0,
                    cells_in_shared=cells_in_shared,
                )
                left = limits.shared_bytes - shared_bytes(bare, hidden, batch, element_bytes, backward=backward)
                if left >= g.passes * rounds * round_bytes:
                    yield replace(bare, resident_rounds=rounds)
                    break
                for weight_stages in (2, 3, 4):
                    spare = left - weight_stages * round_bytes - 128  # of barriers
                    if spare >= 0:
                        resident = min(spare // (g.passes * round_bytes), rounds - 1)
                        yield replace(bare, resident_rounds=resident, weight_stages=weight_stages)


def _rates(limits: DeviceLimits) -> _Rates:
    return _RATES[max((arch for arch in _RATES if arch <= limits.arch), default=min(_RATES))]


def product_time(flop: float, moved: float, dtype: torch.dtype, tf32: bool, limits: DeviceLimits) -> float:
    """Microseconds that the library takes for products of so many FLOP that move so many bytes, by estimate."""
    rates = _rates(limits)
    a_cycle = rates.library_flop
    if dtype == torch.float32:
        a_cycle = rates.library_flop // 2 if tf32 else _PLAIN_FLOP
    return max(flop / (a_cycle * limits.multiprocessors * rates.clock), moved / rates.memory)


def _predict(
    plan: Plan, g: Geometry, hidden: int, element_bytes: int, exact: bool, backward: bool, limits: DeviceLimits
) -> tuple[float, str]:
    """(microseconds a step, what bounds it): exchange + max(products, shared memory, L2, device memory) + the rest.

    With several tiles, the exchange of one goes on while the others are multiplied. `exact`: float32 without tf32,
    three products for one.
    """
    rates = _rates(limits)
    blocks = plan.groups * plan.replicas * plan.clusters * plan.cluster
    parts = plan.unit_blocks * g.k_warps  # of a round, each of a unit block and a pair
    stage_row = _stage_row(plan, g)
    streamed = g.rounds - plan.register_rounds - plan.resident_rounds
    rows = 8 * g.row_blocks

    if plan.warp_groups:  # two instructions each of two groups
        issued = g.tiles * 4 * max(plan.tile_columns * 2048 / rates.library_flop, _GROUP_CYCLES)
        math = g.passes * g.rounds * issued
    else:
        products = 3 if exact else 1
        issued = g.row_blocks * _ceil_div(parts, 4) * 4 * 16384 / rates.flop
        math = g.passes * g.rounds * products * max(issued, g.tiles * 2 * _DEPENDENT_CYCLES)

    hidden_bytes = g.passes * rows * _ceil_div(g.rounds, plan.hidden_stage_rounds) * stage_row
    streamed_bytes = g.passes * g.tiles * streamed * parts * _FRAGMENT
    weight_bytes = g.passes * g.tiles * (g.rounds - plan.register_rounds) * parts * _FRAGMENT
    partial_bytes = g.passes * g.row_blocks * parts * 1024
    readers = plan.unit_blocks // 2 if plan.warp_groups else plan.unit_blocks
    read = readers * hidden_bytes + weight_bytes + partial_bytes
    shared = (read + hidden_bytes + streamed_bytes + partial_bytes) / _SHARED_BYTES_A_CYCLE

    share_of_l2 = min(rates.l2_bytes * limits.multiprocessors / blocks, 48)
    l2 = (hidden_bytes + streamed_bytes) / share_of_l2
    held = int(plan.warp_groups)  # stages of a ring that are free only when the next one is being multiplied
    in_flight = [hidden_bytes / ((plan.hidden_stages - held) * plan.tile_columns * stage_row)]
    in_flight += [streamed_bytes / ((plan.weight_stages - held) * parts * _FRAGMENT)] if streamed else []
    l2 = max(l2, *(turns * _COPY * rates.clock for turns in in_flight))

    # What is streamed and doesn't stay in L2 from step to step comes from memory; so does what the gate arithmetic
    # reads, and its results go there.
    unique = plan.groups * plan.clusters * plan.cluster * g.passes * streamed * parts * _FRAGMENT
    missing = min(max(2 * unique / limits.l2_bytes - 1, 0), 1)
    shape = _shape(element_bytes, backward)
    cell_bytes = shape.input_bytes_of_unit + shape.k_of_unit * element_bytes
    memory = missing * unique * g.tiles + plan.groups * plan.replicas * rows * hidden * cell_bytes
    memory *= rates.clock / rates.memory

    terms = {"matrix products": math, "shared memory": shared, "L2 reads": l2, "device memory": memory}
    bound = max(terms, key=terms.__getitem__)
    remote = partial_bytes * (plan.cluster - 1) / plan.cluster / rates.remote_bytes
    total = (terms[bound] + remote) / rates.clock + g.passes * g.tiles * _ITEM
    first_tile = total * min(plan.tile_columns, rows) / rows
    if first_tile + _EXCHANGE > total:
        return first_tile + _EXCHANGE, bound if first_tile > _EXCHANGE else "exchange of h"
    return total, bound


@lru_cache(maxsize=1024)
def plan(
    hidden: int,
    batch: int,
    dtype: torch.dtype,
    limits: DeviceLimits,
    *,
    groups: int = 1,
    tf32: bool = True,
    backward: bool = False,
    in_parts: bool = False,
    warp_groups: bool = True,
) -> Plan:
    """The fastest launch, by prediction, for `groups` recurrences of `hidden` units over `batch` sequences.

    `in_parts`: for several launches that carry on in time what stays in shared memory otherwise. `warp_groups`: may
    multiply, where the device has them; else warps by themselves.

    Raises:
        ValueError: the kernel can't run this there; the message says why.
    """
    if limits.arch < 80:
        raise ValueError(f"it needs compute capability 8.0, {limits.name} has {limits.arch // 10}.{limits.arch % 10}")
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"it computes in float32, bfloat16 and float16, got {dtype}")
    element_bytes, exact = ELEMENT_BYTES[dtype], dtype == torch.float32 and not tf32
    best = None

    def predict(candidate: Plan, g: Geometry) -> tuple[float, str]:
        return _predict(candidate, g, hidden, element_bytes, exact, backward, limits)

    launches = {_ceil_div(groups, side_by_side) for side_by_side in range(1, min(groups, MAX_GROUPS) + 1)}
    for number in sorted(launches):
        side_by_side = _ceil_div(groups, number)
        for division in _divisions(hidden, batch, element_bytes, backward, limits, side_by_side, warp_groups):
            g = geometry(hidden, batch, element_bytes, **division, backward=backward)
            # With all weights in registers and an endless ring: if that is no better, no plan of this division is.
            ideal = Plan(
                **division,
                register_rounds=g.rounds,
                resident_rounds=0,
                hidden_stage_rounds=g.rounds,
                hidden_stages=8,
                weight_stages=0,
                cells_in_shared=True,
                groups=side_by_side,
            )
            if best is not None and number * predict(ideal, g)[0] >= 0.98 * best.microseconds:
                continue
            for candidate in _holdings(division, g, hidden, batch, element_bytes, backward, in_parts, limits):
                candidate = replace(candidate, groups=side_by_side)
                step, bound = predict(candidate, g)
                # A difference below what the prediction can know doesn't count: the earlier, simpler plan stays.
                if best is None or step * number < 0.98 * best.microseconds:
                    best = replace(candidate, microseconds=step * number, bound=bound)
    if best is None:
        raise ValueError(
            f"no block's share of {hidden} units fits into the {limits.shared_bytes} bytes of {limits.name}"
        )
    return best
