"""How the recurrent Triton kernels are launched: a small table of configurations, and the choice by predicted time.

Pure functions of sizes, dtype and the device's limits. Every configuration of the table is compiled by the tests, for
each GPU that is served: what it takes of shared memory fits, and nothing spills. Sizes: `B` batch, `H` hidden units,
`G` groups. The batch decides between tiles of the table only: nothing is ever measured or compiled for one batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch

from ..plan import DeviceLimits


class Whole(NamedTuple):
    """A program that holds so many units whole, with all their weights, and what it takes of shared memory in bytes."""

    units: int
    warps: int
    stages: int
    shared_bytes: int


# By how products are computed. With more units registers spill; a second stage fetches what the next step reads.
NVIDIA_WHOLE = {
    "16 bits": (Whole(32, 4, 2, 20800), Whole(64, 8, 2, 57800), Whole(128, 8, 2, 180800), Whole(128, 8, 1, 139264)),
    "tf32": (Whole(32, 4, 2, 35200), Whole(64, 8, 2, 102912)),
    "ieee": (Whole(32, 4, 1, 18432), Whole(64, 8, 2, 102912)),
}
AMD_WHOLE = {"16 bits": (Whole(32, 4, 1, 4096), Whole(64, 4, 1, 16384)), "ieee": (Whole(32, 4, 1, 8192),)}


class WholeLoop(NamedTuple):
    """A program that holds a closed loop whole: so many units of each layer, a frame, all weights; as `Whole`."""

    units: int
    frame_size: int
    layers: int
    warps: int
    stages: int
    shared_bytes: int
    block_b: int = 16


# By how products are computed, and whether backward; smaller ones first. All weights lie in shared memory. Forward
# nothing is read in a step but true frames, which come early by themselves; backward a second stage fetches what was
# kept. Where weights don't fit, reading them again in each step takes longer than the launches: two layers of 64 units
# in float32 are 272 KB, 7 microseconds from L2. Bytes are the most of Triton 3.6 and 3.9.
NVIDIA_LOOPS = {
    ("16 bits", False): (
        WholeLoop(32, 32, 1, 4, 1, 22528),
        WholeLoop(32, 128, 1, 4, 1, 53248),
        WholeLoop(64, 64, 1, 8, 1, 79872),
        WholeLoop(64, 128, 1, 8, 1, 120832),
        WholeLoop(64, 256, 1, 8, 1, 204800),
        WholeLoop(128, 64, 1, 8, 1, 225280),
        WholeLoop(32, 32, 2, 4, 1, 37888),
        WholeLoop(32, 128, 2, 4, 1, 69632),
        WholeLoop(64, 64, 2, 8, 1, 145408),
        WholeLoop(64, 128, 2, 8, 1, 186368),
    ),
    ("16 bits", True): (
        WholeLoop(32, 32, 1, 4, 2, 33792),
        WholeLoop(32, 128, 1, 4, 2, 73728),
        WholeLoop(64, 64, 1, 8, 2, 104448),
        WholeLoop(64, 128, 1, 8, 2, 149504),
        WholeLoop(64, 256, 1, 8, 1, 208896),
        WholeLoop(128, 32, 1, 8, 1, 192512),
        WholeLoop(32, 32, 2, 4, 2, 58368),
        WholeLoop(32, 128, 2, 4, 2, 98304),
        WholeLoop(64, 64, 2, 8, 2, 186368),
        WholeLoop(64, 64, 2, 8, 1, 149504),
        WholeLoop(64, 128, 2, 8, 1, 190464),
    ),
    ("tf32", False): (
        WholeLoop(32, 32, 1, 4, 1, 40960),
        WholeLoop(32, 128, 1, 4, 1, 106496),
        WholeLoop(64, 64, 1, 8, 1, 155648),
        WholeLoop(32, 32, 2, 4, 1, 73728),
        WholeLoop(32, 128, 2, 8, 1, 139264),
    ),
    ("tf32", True): (
        WholeLoop(32, 32, 1, 4, 2, 63488),
        WholeLoop(32, 128, 1, 4, 2, 143360),
        WholeLoop(64, 64, 1, 8, 2, 200704),
        WholeLoop(32, 32, 2, 4, 2, 108544),
        WholeLoop(32, 128, 2, 8, 1, 147456),
    ),
    ("ieee", False): (
        WholeLoop(32, 32, 1, 8, 1, 40960),
        WholeLoop(32, 128, 1, 8, 1, 106496),
        WholeLoop(32, 32, 2, 4, 1, 73728),
    ),
    ("ieee", True): (
        WholeLoop(32, 32, 1, 4, 1, 45056),
        WholeLoop(32, 128, 1, 4, 1, 114688),
    ),
}
AMD_LOOPS = {
    ("16 bits", False): (WholeLoop(32, 32, 1, 4, 1, 2048), WholeLoop(32, 32, 2, 4, 1, 2048)),
    ("16 bits", True): (WholeLoop(32, 32, 1, 4, 1, 2048), WholeLoop(32, 32, 2, 4, 1, 2048)),
    ("ieee", False): (WholeLoop(32, 32, 1, 4, 1, 4096),),
    ("ieee", True): (WholeLoop(32, 32, 1, 4, 1, 4096),),
}
_TILES_B = (16, 32, 64, 128)
_TILES_H = (16, 32, 64)

# Estimates of an NVIDIA GPU's rates, until they are measured; they only have to order the configurations.
_LAUNCH = 1.5  # microseconds from one kernel of a graph to the next
_L2_BYTES = 40e3  # a microsecond and multiprocessor
_FLOP = {"16 bits": 3.9e6, "tf32": 2.0e6, "ieee": 0.5e6}  # likewise
_LOOP_STEP = 1.2  # microseconds of a step's dependent products, exchanges through shared memory and gate arithmetic
_LOOP_PRODUCT = 0.6  # likewise of each of a closed loop's 2 L + 1, on the average


class Config(NamedTuple):
    """One launch: whether it loops over the steps, a program's tile of sequences and units, and of K; warps, stages."""

    loops: bool
    block_b: int
    block_h: int
    block_k: int
    warps: int
    stages: int


def operands(dtype: torch.dtype, products: str) -> str:
    """The name under which the tables here have operands: `products` is how float32 is multiplied, "tf32" or "ieee"."""
    return products if dtype == torch.float32 else "16 bits"


class Tile(NamedTuple):
    """One launch of a dense product: a program's tile of sequences, columns and K; warps, stages."""

    block_b: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def step_configs(kind: str, *, is_amd: bool = False) -> Iterator[Config]:
    """The table's configurations of a launch a step."""
    block_k = {"16 bits": 64, "tf32": 32, "ieee": 16}[kind]
    for block_b in _TILES_B[:-1] if kind == "ieee" else _TILES_B:
        for block_h in _TILES_H:
            cells = block_b * block_h
            # A thread's share of four gates, their sums and what they read: 8 cells are what registers hold, fewer
            # where AMD's compiler keeps the weights of many units on their way as well.
            if cells <= (1024 if is_amd and block_h == 64 else 2048):
                yield Config(False, block_b, block_h, block_k, 8 if cells > 256 else 4, 2 if is_amd else 3)


def loop_config(hidden: int, kind: str, limits: DeviceLimits, *, is_amd: bool = False) -> Config | None:
    """The table's configuration of one launch for all steps, if a program can hold so many units."""
    for whole in (AMD_WHOLE if is_amd else NVIDIA_WHOLE)[kind]:
        if hidden <= whole.units and whole.shared_bytes <= limits.shared_bytes:
            return Config(True, 16, whole.units, whole.units, whole.warps, whole.stages)
    return None


def predict(
    config: Config, hidden: int, batch: int, kind: str, limits: DeviceLimits, *, groups: int = 1, backward: bool = False
) -> tuple[float, str]:
    """(microseconds a step, what bounds it), for `groups` recurrences of `hidden` units over `batch` sequences."""
    if config.loops:
        waves = _ceil_div(groups * _ceil_div(batch, config.block_b), limits.multiprocessors)
        return waves * _LOOP_STEP, "latency"
    programs = groups * _ceil_div(batch, config.block_b) * _ceil_div(hidden, config.block_h)
    waves = _ceil_div(programs, limits.multiprocessors)
    rows = 4 * config.block_b if backward else config.block_b  # of the operand beside the weights, a unit each
    read = (4 * config.block_h + rows) * hidden * (2 if kind == "16 bits" else 4)
    times = {
        "L2 reads": waves * read / _L2_BYTES,
        "products": waves * 8 * config.block_b * config.block_h * hidden / _FLOP[kind],
    }
    bound = max(times, key=times.__getitem__)
    return _LAUNCH + times[bound], bound if times[bound] > _LAUNCH else "launch"


@lru_cache(maxsize=1024)
def choose(
    hidden: int,
    batch: int,
    kind: str,
    limits: DeviceLimits,
    *,
    groups: int = 1,
    backward: bool = False,
    is_amd: bool = False,
    by_steps: bool = False,
) -> Config:
    """The fastest configuration by prediction; one launch for all steps wherever it can be, unless `by_steps`."""
    if not by_steps and (config := loop_config(hidden, kind, limits, is_amd=is_amd)) is not None:
        return config
    best, fastest = None, float("inf")
    for config in step_configs(kind, is_amd=is_amd):
        time, _ = predict(config, hidden, batch, kind, limits, groups=groups, backward=backward)
        # A difference below what the prediction can know doesn't count: the earlier, smaller tile stays.
        if best is None or time < 0.98 * fastest:
            best, fastest = config, time
    return best


def product_tiles(kind: str, *, is_amd: bool = False) -> Iterator[Tile]:
    """The table's tiles of a product inside a closed loop: [B, K] times the weights of some columns."""
    block_k = {"16 bits": 64, "tf32": 32, "ieee": 16}[kind]
    for block_b in _TILES_B[:-1] if kind == "ieee" else _TILES_B:
        for block_n in _TILES_H:
            if block_b * block_n <= (2048 if kind == "ieee" else 8192):
                yield Tile(block_b, block_n, block_k, 8 if block_b * block_n > 2048 else 4, 2 if is_amd else 3)


def _predict_tile(tile: Tile, batch: int, depth: int, columns: int, kind: str, limits: DeviceLimits) -> float:
    """Microseconds of a product, without its launch: what the programs read, or multiply."""
    programs = _ceil_div(batch, tile.block_b) * _ceil_div(columns, tile.block_n)
    read = (min(tile.block_b, batch) + tile.block_n) * depth * (2 if kind == "16 bits" else 4)
    flop = 2 * tile.block_b * tile.block_n * depth
    return _ceil_div(programs, limits.multiprocessors) * max(read / _L2_BYTES, flop / _FLOP[kind])


@lru_cache(maxsize=1024)
def choose_tile(batch: int, depth: int, columns: int, kind: str, limits: DeviceLimits, *, is_amd: bool = False) -> Tile:
    """The fastest tile by prediction: of few rows, most of a product is what the programs read."""
    return min(
        product_tiles(kind, is_amd=is_amd),
        key=lambda tile: _predict_tile(tile, batch, depth, columns, kind, limits),
    )


def whole_loops(kind: str, *, backward: bool, is_amd: bool = False) -> tuple[WholeLoop, ...]:
    """The table's programs that hold a closed loop whole, smaller ones first."""
    return (AMD_LOOPS if is_amd else NVIDIA_LOOPS).get((kind, backward), ())


def predict_whole(whole: WholeLoop, batch: int, kind: str, limits: DeviceLimits) -> float:
    """Microseconds a step of a closed loop in one launch: its products one after the other, and their work."""
    inputs = whole.frame_size + (2 * whole.layers - 1) * whole.units
    flop = 2 * whole.block_b * whole.units * (4 * inputs + whole.frame_size)
    waves = _ceil_div(_ceil_div(batch, whole.block_b), limits.multiprocessors)
    return waves * ((2 * whole.layers + 1) * _LOOP_PRODUCT + flop / _FLOP[kind])


def predict_steps(
    hidden: int,
    frame_size: int,
    layers: int,
    batch: int,
    kind: str,
    limits: DeviceLimits,
    *,
    backward: bool = False,
    is_amd: bool = False,
) -> float:
    """Microseconds a step of a closed loop in 2 L + 1 launches."""
    config = choose(hidden, batch, kind, limits, backward=backward, is_amd=is_amd, by_steps=True)
    recurrence, _ = predict(config, hidden, batch, kind, limits, backward=backward)
    products = [(frame_size, 4 * hidden), (hidden, frame_size), *[(hidden, 4 * hidden)] * (layers - 1)]
    if backward:
        products = [(columns, depth) for depth, columns in products]
    time = layers * recurrence
    for depth, columns in products:
        tile = choose_tile(batch, depth, columns, kind, limits, is_amd=is_amd)
        time += _LAUNCH + _predict_tile(tile, batch, depth, columns, kind, limits)
    return time


@lru_cache(maxsize=1024)
def choose_whole(
    hidden: int,
    frame_size: int,
    layers: int,
    batch: int,
    kind: str,
    limits: DeviceLimits,
    *,
    backward: bool = False,
    is_amd: bool = False,
) -> WholeLoop | None:
    """The table's one launch for all steps of a closed loop; None where none holds it or launches a step are faster."""
    for whole in whole_loops(kind, backward=backward, is_amd=is_amd):
        holds = layers == whole.layers and hidden <= whole.units and frame_size <= whole.frame_size
        if holds and whole.shared_bytes <= limits.shared_bytes:
            sizes, options = (hidden, frame_size, layers, batch, kind, limits), {"backward": backward, "is_amd": is_amd}
            return whole if predict_whole(whole, batch, kind, limits) < predict_steps(*sizes, **options) else None
    return None
