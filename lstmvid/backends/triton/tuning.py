"""Configurations as measured on this machine's GPU, for those who ask for it; kept on disk, per user.

    from lstmvid.backends.triton.tuning import tune
    tune(hidden_size=2048, dtype=torch.bfloat16)  # a minute or so; later calls, in any process, use what it found

Keyed by device, Triton's version, direction, operands and hidden size. The batch is none of the key: what is measured
are the tiles, at a batch that fills them, and a call takes the one its batch needs.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from ..dense import allows_tf32
from ..plan import DeviceLimits
from . import configuration
from .configuration import Config, operands, step_configs
from .launch import cache_folder, is_amd, limits_of, products

_ROUNDS = 5
_STEPS = 64  # of a window that is timed


def _file() -> Path:
    return Path(cache_folder()) / "triton.json"


@lru_cache
def _measured() -> dict[str, dict[str, list]]:
    """By key, then by tile of sequences: the fastest configuration. Empty where nothing was ever tuned."""
    try:
        return json.loads(_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{_file()} isn't what the tuner wrote ({error}): delete it, or tune again") from error


def _key(hidden: int, kind: str, limits: DeviceLimits, backward: bool) -> str:
    import triton

    direction = "backward" if backward else "forward"
    return f"{limits.name}, Triton {triton.__version__}, {direction}, {kind}, {hidden}"


def choose(hidden: int, batch: int, kind: str, limits: DeviceLimits, *, backward: bool, **options) -> Config:
    """As `configuration.choose`, unless it was measured which configuration of the chosen tile is the fastest."""
    chosen = configuration.choose(hidden, batch, kind, limits, backward=backward, **options)
    tiles = _measured().get(_key(hidden, kind, limits, backward), {})
    return Config(*tiles[str(chosen.block_b)]) if str(chosen.block_b) in tiles and not chosen.loops else chosen


def candidates(kind: str, block_b: int) -> list[Config]:
    """What is measured for a tile of so many sequences: the table's, each also with other numbers of stages."""
    table = [config for config in step_configs(kind, is_amd=is_amd()) if config.block_b == block_b]
    return [config._replace(stages=stages) for config in table for stages in (2, 3, 4)]


def _store(found: dict[str, dict[str, list]]) -> None:
    """Add to what is on disk; whoever reads meanwhile sees the old or the new file, never half of one."""
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
        json.dump(_measured() | found, new, indent=1)
    os.replace(new.name, file)
    _measured.cache_clear()


def _timer(hidden: int, dtype: torch.dtype, device: torch.device) -> Callable[[Config, int, bool], float]:
    """Seconds of a window of steps, the median of some rounds; tensors hold zeros, which takes the same time."""
    from triton.runtime.errors import OutOfResources

    from ..windows import Window
    from .recurrence import Recurrence

    def measure(config: Config, batch: int, backward: bool) -> float:
        flags = {"HAS_PEEPHOLE": False, "IS_RAGGED": False}
        if backward:
            flags |= {"HAS_GRAD_OUTPUT": True, "HAS_GRAD_CELLS": False}
        else:
            flags |= {"HAS_PROJECTION": True, "HAS_BIAS": False, "SAVE_CELLS": True, "SAVE_GATES": True}
        state = torch.zeros(1, batch, hidden, dtype=dtype, device=device)
        recurrence = Recurrence(state, backward=backward, config=config, **flags)
        hs, cs = state.new_zeros(_STEPS, batch, hidden), state.new_zeros(_STEPS, batch, hidden, dtype=torch.float32)
        zs, weight = state.new_zeros(2, _STEPS, batch, 4 * hidden), state.new_zeros(4 * hidden, hidden)
        record = {"weight_hh": weight, "projection": zs[0], "h_from": state, "h_to": hs[0], "c": cs[0], "output": hs}
        record |= {"cells": cs, "gates": zs[0], "c_start": cs[0], "grad_output": hs, "grad_gates": zs[1]}
        record |= {"grad_h": torch.zeros_like(cs[0]), "grad_c": torch.zeros_like(cs[0])}
        times = []
        try:
            for _ in range(_ROUNDS + 2):  # the first compiles, the second captures a graph
                torch.cuda.synchronize(device)
                start = time.perf_counter()
                recurrence.run(Window(0, _STEPS), lambda *_: record)
                torch.cuda.synchronize(device)
                times.append(time.perf_counter() - start)
        except OutOfResources:  # more stages than shared memory holds
            return float("inf")
        return statistics.median(times[2:])

    return measure


def tune(
    hidden_size: int,
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cuda",
    measure: Callable[[Config, int, bool], float] | None = None,
) -> dict[str, dict[str, list]]:
    """Measure the configurations for layers of `hidden_size` units, and keep the fastest ones for this user.

    `measure(config, batch, backward)` gives seconds; by default a window of steps on the device is timed.
    Returns what was found: by key and tile of sequences, the fields of a `Config`.

    Raises:
        ValueError: such a layer runs in one launch for all steps, of which there is one configuration only.
    """
    device = torch.device(device)
    kind, limits = operands(dtype, products(dtype, allows_tf32(dtype))), limits_of(device)
    if configuration.loop_config(hidden_size, kind, limits, is_amd=is_amd()) is not None:
        raise ValueError(f"there is nothing to tune for {hidden_size} units: one program holds them all")
    measure = measure or _timer(hidden_size, dtype, device)
    found: dict[str, dict[str, list]] = {}
    for backward in (False, True):
        tiles = {}
        for block_b in sorted({config.block_b for config in step_configs(kind)}):
            times = {config: measure(config, block_b, backward) for config in candidates(kind, block_b)}
            tiles[str(block_b)] = list(min(times, key=times.__getitem__))
        found[_key(hidden_size, kind, limits, backward)] = tiles
    _store(found)
    return found
