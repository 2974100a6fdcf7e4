"""The scan that computes gates and cells again, emulated, against the equations in double precision."""

from __future__ import annotations

import os
import subprocess

import pytest

CALLS = [
    {"steps": 1, "batch": 1, "hidden": 1},
    {"steps": 9, "batch": 7, "hidden": 41},
    {"steps": 11, "batch": 3, "hidden": 100, "chunk": 4, "groups": 2, "reverse": 2},
    {"steps": 6, "batch": 17, "hidden": 33, "ragged": 1, "chunk": 1},
    {"steps": 7, "batch": 9, "hidden": 64, "ragged": 1, "reverse": 5, "groups": 3, "chunk": 3},
    {"steps": 5, "batch": 4, "hidden": 19, "peephole": 0},
]


def agree(emulation, arch: int, sanitizer: str, dtype: str) -> None:
    program = emulation("lstm_gates_check", arch, sanitizer) / "lstm_gates_check"
    for seed, call in enumerate(CALLS):
        words = [f"{name}={value}" for name, value in (call | {"dtype": dtype, "seed": seed, "repeat": 1}).items()]
        environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66 atexit_sleep_ms=0"}
        done = subprocess.run([program, *words], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("arch", [80, 90])
def test_agrees_with_the_equations(emulation, arch, dtype):
    agree(emulation, arch, "none", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_no_sanitizer_finding(emulation, sanitizer):
    agree(emulation, 90, sanitizer, "bf16")
