"""How a recurrent Triton kernel is launched: a small table of configurations, and the choice by predicted time.

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
_TILES_B = (16, 32, 64, 128)
_TILES_H = (16, 32, 64)

# Estimates of an NVIDIA GPU's rates, until they are measured; they only have to order the configurations.
_LAUNCH = 1.5  # microseconds from one kernel of a graph to the next
_L2_BYTES = 40e3  # a microsecond and multiprocessor
_FLOP = {"16 bits": 3.9e6, "tf32": 2.0e6, "ieee": 0.5e6}  # likewise
_LOOP_STEP = 1.2  # microseconds of a step's dependent products, exchanges through shared memory and gate arithmetic


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


@lru_cache(maxsize=1024)
def choose_tile(batch: int, depth: int, columns: int, kind: str, limits: DeviceLimits, *, is_amd: bool = False) -> Tile:
    """The fastest tile by prediction: what the programs read, which is most of a product of few rows, and multiply."""

    def predicted(tile: Tile) -> float:
        programs = _ceil_div(batch, tile.block_b) * _ceil_div(columns, tile.block_n)
        read = (min(tile.block_b, batch) + tile.block_n) * depth * (2 if kind == "16 bits" else 4)
        flop = 2 * tile.block_b * tile.block_n * depth
        return _ceil_div(programs, limits.multiprocessors) * max(read / _L2_BYTES, flop / _FLOP[kind])

    return min(product_tiles(kind, is_amd=is_amd), key=predicted)
