"""The recurrent kernels' own CUDA source, emulated, against the equations in double precision.

`lstm_sequence_check` and `lstm_sequence_bwd_check` (the C++ files of these names) run one call: sizes, options and how
the work is divided are their arguments. They fail on wrong results, on other bits under another schedule, on bank
conflicts, and on whatever the emulated machine reports: deadlocks, memory out of bounds, missing fences, unfinished
copies.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
from pathlib import Path

import pytest

REGISTER_ROUNDS, GROUP_REGISTER_ROUNDS = 6, 16  # csrc/cuda/recurrence_geometry.h
DIRECTIONS = {"forward": "lstm_sequence_check", "backward": "lstm_sequence_bwd_check"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "halt_on_error=1 exitcode=66 atexit_sleep_ms=0",
}


def run(program: Path, call: dict[str, object]) -> subprocess.CompletedProcess[str]:
    command = [str(program), *(f"{name}={value}" for name, value in call.items())]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | OPTIONS, timeout=300)


def agree(program: Path, call: dict[str, object]) -> None:
    done = run(program, call)
    assert done.returncode == 0, f"{call}\n{done.stdout}{done.stderr}"


@pytest.fixture
def program(emulation):
    """`program(direction, arch, sanitizer)`: the path of the check."""

    def build(direction: str, arch: int, sanitizer: str = "none") -> Path:
        return emulation(DIRECTIONS[direction], arch, sanitizer) / DIRECTIONS[direction]

    return build


NAMED = {
    "one of everything": {"steps": 1, "batch": 1, "hidden": 1},
    "no input": {"input": 0, "hidden": 17, "clusters": 2},
    "odd": {"hidden": 203, "batch": 13, "clusters": 3, "unit_blocks": 3, "tile_columns": 16},
    "several passes": {"hidden": 130, "clusters": 2, "unit_blocks": 2, "resident_rounds": 1, "batch": 9},
    "several tiles and replicas": {"batch": 43, "replicas": 2, "clusters": 2, "cells_in_shared": 0},
    "more replicas than rows": {"batch": 2, "replicas": 3},
    "more clusters than units": {"hidden": 20, "clusters": 5, "unit_blocks": 2},
    "idle warps": {"hidden": 120, "unit_blocks": 3, "clusters": 2, "hidden_stage_rounds": 2},
    "two directions": {"groups": 2, "reverse": 2, "ragged": 1, "batch": 11},
    "three groups": {"groups": 3, "hidden": 33, "clusters": 2},
    "chunks": {"steps": 7, "chunk": 3, "ragged": 1, "clusters": 2},
    "all resident": {"hidden": 72, "unit_blocks": 2, "clusters": 5, "resident_rounds": 1},
    "nothing saved, no peepholes": {"save": 0, "peephole": 0},
}
CLUSTERS = {
    "pairs": {"cluster": 2, "clusters": 2, "hidden": 130, "unit_blocks": 4},
    "pairs, short last one": {"cluster": 2, "clusters": 3, "hidden": 72, "unit_blocks": 2},
    "a rank that finalises nothing": {"cluster": 4, "unit_blocks": 2, "hidden": 50, "clusters": 4},
    "a rank without a slice of K": {"cluster": 4, "unit_blocks": 4, "hidden": 33, "batch": 17},
    "fours, ragged backwards": {"cluster": 4, "clusters": 2, "hidden": 200, "ragged": 1, "reverse": 1, "chunk": 2},
    "eights": {"cluster": 8, "clusters": 1, "hidden": 264, "resident_rounds": 1},
}
IN_REGISTERS = {
    "all in registers": {"hidden": 192, "clusters": 3, "register_rounds": REGISTER_ROUNDS},
    "registers, shared memory and streamed": {
        "hidden": 600,
        "cluster": 2,
        "clusters": 10,
        "unit_blocks": 8,
        "register_rounds": REGISTER_ROUNDS,
        "resident_rounds": 1,
        "hidden_stages": 3,
        "weight_stages": 3,
        "batch": 48,
        "tile_columns": 24,
        "steps": 2,
    },
    "in two groups": {"hidden": 203, "clusters": 4, "register_rounds": REGISTER_ROUNDS, "groups": 2, "reverse": 1},
}
# Four warps together; backward, K is four times as long.
WARP_GROUPS = {
    "one of everything": {"steps": 1, "batch": 1, "hidden": 1, "unit_blocks": 2},
    "two groups along M": {"hidden": 130, "clusters": 5, "unit_blocks": 4, "batch": 9, "tile_columns": 16},
    "two groups along K": {"hidden": 203, "clusters": 13, "unit_blocks": 2, "resident_rounds": 2, "batch": 13},
    "half a group without units": {"hidden": 70, "clusters": 9, "unit_blocks": 2, "resident_rounds": 1},
    "several passes": {"hidden": 130, "clusters": 2, "unit_blocks": 2, "resident_rounds": 1, "tile_columns": 24},
    "long stages": {"hidden": 200, "clusters": 7, "unit_blocks": 4, "hidden_stage_rounds": 3, "hidden_stages": 3},
    "replicas, groups, backwards": {
        "hidden": 72,
        "clusters": 3,
        "unit_blocks": 4,
        "batch": 43,
        "replicas": 2,
        "groups": 2,
        "reverse": 2,
        "ragged": 1,
        "tile_columns": 48,
        "cells_in_shared": 0,
    },
    "chunks": {"steps": 7, "chunk": 3, "ragged": 1, "clusters": 2, "unit_blocks": 4},
    "pairs": {"cluster": 2, "clusters": 5, "hidden": 130, "unit_blocks": 4, "resident_rounds": 2},
    "a rank without a slice of K": {"cluster": 4, "unit_blocks": 4, "hidden": 33, "clusters": 2, "batch": 17},
    "a rank that finalises nothing": {"cluster": 4, "unit_blocks": 2, "hidden": 50, "clusters": 4},
    "eights": {"cluster": 8, "clusters": 5, "hidden": 264, "unit_blocks": 4, "steps": 2},
    "registers, shared memory and streamed": {
        "hidden": 700,
        "clusters": 22,
        "unit_blocks": 4,
        "register_rounds": GROUP_REGISTER_ROUNDS,
        "resident_rounds": 2,
        "hidden_stage_rounds": 2,
        "weight_stages": 3,
        "batch": 41,
        "tile_columns": 24,
        "steps": 2,
    },
    "all in registers": {"hidden": 512, "clusters": 16, "unit_blocks": 4, "register_rounds": GROUP_REGISTER_ROUNDS},
}


BACKWARD = {
    "gradients of all cells": {"all_cells": 1, "ragged": 1, "hidden": 70, "unit_blocks": 1, "clusters": 3},
    "only the final states' gradients": {"input": 0, "unit_blocks": 2, "hidden": 50},
    "only the output's gradient": {"save": 0, "reverse": 1, "ragged": 1, "unit_blocks": 2},
    "in parts": {"chunk": 2, "cells_in_shared": 0, "steps": 5, "ragged": 1, "unit_blocks": 1, "clusters": 2},
    "a unit block that isn't full": {"hidden": 97, "unit_blocks": 4, "clusters": 1, "batch": 17},
}


# Backward, weights of warp groups stay in registers even where there are few units.
FEW_BLOCKS = {"hidden": 150, "clusters": 2, "unit_blocks": 4, "warp_groups": 1, "batch": 11, "ragged": 1}
FEW_BLOCKS |= {"register_rounds": GROUP_REGISTER_ROUNDS, "resident_rounds": 1, "hidden_stage_rounds": 3}


def calls_of(direction: str, arch: int, dtype: str) -> list[dict[str, object]]:
    calls = dict(NAMED) | (BACKWARD if direction == "backward" else {}) | (CLUSTERS if arch == 90 else {})
    if arch == 90 and dtype in ("bf16", "fp16"):
        calls |= IN_REGISTERS | {
            f"warp groups: {name}": call | {"warp_groups": 1} for name, call in WARP_GROUPS.items()
        }
    if direction == "backward":  # its units lie in blocks of 32, and in parts it runs only with its state outside
        for name, call in calls.items():
            if call.get("chunk"):
                calls[name] = call | {"cells_in_shared": 0}
            if call.get("warp_groups"):
                calls[name] |= {"clusters": math.ceil(call.get("clusters", 1) / 4)}
        if arch == 90 and dtype in ("bf16", "fp16"):
            calls |= {"warp groups: few blocks": FEW_BLOCKS}
    return list(calls.values())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "tf32"])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_agrees_with_the_equations(program, direction, arch, dtype):
    check = program(direction, arch)
    kind = {"dtype": "fp32", "tf32": 1} if dtype == "tf32" else {"dtype": dtype}
    for seed, call in enumerate(calls_of(direction, arch, dtype)):
        agree(check, call | kind | {"seed": seed, "repeat": 1})


def draw(random: random.Random, direction: str, arch: int) -> dict[str, object]:
    """A call with a plan that fits the device."""
    block, of_unit = (32, 4) if direction == "backward" else (8, 1)
    while True:
        dtype = random.choice(["bf16", "fp16", "fp32"])
        size = 4 if dtype == "fp32" else 2
        call: dict[str, object] = {
            "dtype": dtype,
            "hidden": random.choice([1, 3, 8, 17, 33, 40, 64, 72, 100, 129, 200, 264]),
            "batch": random.choice([1, 2, 5, 8, 9, 17, 40]),
            "steps": random.choice([1, 2, 3, 5]),
            "cluster": 1 if arch == 80 else random.choice([1, 2, 4, 8] if of_unit == 4 else [1, 2, 4]),
            "clusters": random.randint(1, 4),
            "warp_groups": int(size == 2 and arch == 90 and random.random() < 0.5),
            "unit_blocks": random.randint(1, 8),
            "tile_columns": 8 * random.randint(1, 4 if size == 4 else 6),
            "replicas": random.choice([1, 1, 2, 3]),
            "groups": random.choice([1, 1, 2]),
            "hidden_stage_rounds": random.randint(1, 3),
            "hidden_stages": random.randint(2, 3),
            "weight_stages": random.randint(2, 3),
            "chunk": random.choice([0, 0, 1, 2]),
            "reverse": random.randint(0, 3),
            "tf32": random.randint(0, 1) if size == 4 else 0,
            "seed": random.randint(0, 999),
            "repeat": 1,
        }
        call |= {name: random.randint(0, 1) for name in ("cells_in_shared", "input", "peephole", "save", "ragged")}
        if call["warp_groups"]:
            call["unit_blocks"] = random.choice([2, 4])
        k_warps = (4 if call["warp_groups"] else 8) // call["unit_blocks"]
        pairs = math.ceil(of_unit * call["hidden"] / (64 // size * call["cluster"]))
        rounds = math.ceil(pairs / k_warps)
        blocks = math.ceil(math.ceil(call["hidden"] / block) / call["clusters"])
        passes = math.ceil(blocks / call["unit_blocks"])
        in_registers = GROUP_REGISTER_ROUNDS if call["warp_groups"] else REGISTER_ROUNDS
        if size == 2 and passes == 1 and rounds >= in_registers and arch == 90 and random.random() < 0.7:
            call["register_rounds"] = in_registers
            rounds -= in_registers
        call["resident_rounds"] = random.randint(0, rounds)
        if direction == "backward":
            call |= {"all_cells": random.randint(0, 1)} | ({"chunk": 0} if call["cells_in_shared"] else {})
        # Of a block: the rings and resident weights, roughly; what doesn't fit is refused, and that isn't meant here.
        ring = call["hidden_stages"] * call["tile_columns"] * call["hidden_stage_rounds"] * k_warps * 64
        weights = (passes * call["resident_rounds"] + call["weight_stages"]) * call["unit_blocks"] * k_warps * 2048
        sums = math.ceil(call["unit_blocks"] / call["cluster"]) * call["tile_columns"] * call["cluster"] * k_warps * 128
        inputs = call["tile_columns"] * math.ceil(call["unit_blocks"] / call["cluster"]) * block * (5 * size + 12)
        rows = math.ceil(call["batch"] / call["replicas"]) + call["tile_columns"]
        state = rows * math.ceil(call["unit_blocks"] / call["cluster"]) * passes * block * 8 * call["cells_in_shared"]
        if ring + weights + sums + inputs + state < 170_000:
            return call


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_random_calls_agree(program, direction, arch, seed):
    check, generator = program(direction, arch), random.Random(1000 * arch + seed)
    for _ in range(12):
        agree(check, draw(generator, direction, arch))


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_wait_for_what_never_comes_ends_in_an_error(program, direction, arch):
    """One poll is fewer than any exchange takes: the kernel gives up, as it would after some seconds on a GPU."""
    done = run(program(direction, arch), {"max_polls": 1, "clusters": 2})
    assert done.returncode == 1
    assert "trap" in done.stdout


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cluster": 3}, "cluster: 1, 2, 4 or 8"),
        ({"unit_blocks": 9}, "unit_blocks must be from 1 to 8"),
        ({"tile_columns": 12}, "tile_columns must be a multiple of 8"),
        ({"tile_columns": 56}, "no kernel for 56 columns"),
        ({"resident_rounds": 60}, "more rounds are held than there are"),
        ({"register_rounds": 2}, "register_rounds must be 0, or 6"),
        ({"register_rounds": 6, "warp_groups": 1, "unit_blocks": 2}, "register_rounds must be 0, or 16"),
        ({"warp_groups": 1, "unit_blocks": 8}, "unit_blocks of warp_groups: 2 or 4"),
        ({"warp_groups": 1, "unit_blocks": 2, "dtype": "fp32"}, "warp_groups multiply operands of 2 bytes"),
        ({"hidden_stages": 1}, "needs two stages"),
        ({"weight_stages": 1}, "streamed weights need two stages"),
        ({"clusters": 2000}, "clusters that must be resident at once: 2000, limit"),
        ({"hidden_stages": 200, "hidden_stage_rounds": 8}, "shared bytes a block"),
        ({"dtype": "fp32", "tile_columns": 40}, "no kernel for 40 columns"),
    ],
)
def test_what_no_kernel_can_run_is_refused(program, direction, wrong, message):
    done = run(program(direction, 90), wrong)
    assert done.returncode == 1
    assert message in done.stdout


def test_backward_in_parts_needs_its_state_outside(program):
    done = run(program("backward", 90), {"chunk": 2})
    assert done.returncode == 1
    assert "only with cells_in_shared off" in done.stdout


def blocks(call: dict[str, object]) -> int:
    return math.prod(call.get(name, 1) for name in ("groups", "replicas", "clusters", "cluster"))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_sanitizer_finding(program, direction, arch, sanitizer):
    check = program(direction, arch, sanitizer)
    most = 10 if sanitizer == "thread" else 100  # which keeps a history of every emulated thread
    calls = [{"dtype": "bf16"} | call | {"seed": seed} for seed, call in enumerate(calls_of(direction, arch, "bf16"))]
    generator = random.Random(arch)
    while len(calls) < 30:
        drawn = draw(generator, direction, arch) | {"repeat": 0}
        if blocks(drawn) <= most:
            calls.append(drawn)
    for call in calls:
        if blocks(call) <= most:
            agree(check, call)
