"""The emulated CUDA primitives, each by itself, and the faults that the emulation must find.

The cases are functions in the C++ files beside this one; the program `primitives_check` runs them by name. Names that
begin with `wrong_` or `race_` plant a fault: see planted_faults.cpp and warp_groups.cpp.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CASES = [
    name
    for path in sorted(HERE.glob("*.cpp"))
    for name in re.findall(r"^CASE\((\w+)\)", path.read_text(), re.MULTILINE)
]
OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "halt_on_error=1 exitcode=66 atexit_sleep_ms=0",
}


def run(build: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(build / "primitives_check"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | OPTIONS, timeout=300)


def pass_all(build: Path, names: list[str], seed: int) -> None:
    done = run(build, *names, "--seed", str(seed))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if not line.endswith(": passed")] == []
    assert done.stdout.count(": passed") == len(names)


def test_every_case_is_listed(emulation):
    listed = run(emulation("primitives_check", 90), "--list").stdout.split()
    assert sorted(listed) == sorted(CASES)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("arch", [80, 90])
def test_right_kernels_pass_and_faults_are_found(emulation, arch, seed):
    pass_all(emulation("primitives_check", arch), CASES, seed)


def test_a_case_that_fails_is_reported(emulation):
    done = run(emulation("primitives_check", 90), "no_such_case")
    assert done.returncode == 1
    assert "no such case" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_under_address_sanitizer(emulation, arch):
    build = emulation("primitives_check", arch, "address")
    out_of_bounds = "wrong_shared_write_out_of_bounds"
    for seed in range(3):
        pass_all(build, [name for name in CASES if name != out_of_bounds], seed)
    done = run(build, out_of_bounds)
    assert done.returncode != 0
    assert "use-after-poison" in done.stderr
    assert "planted_faults.cpp" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_under_thread_sanitizer(emulation, arch):
    build = emulation("primitives_check", arch, "thread")
    races = [name for name in CASES if name.startswith(("race_", "wrong_order_"))]
    for seed in range(2):
        pass_all(build, [name for name in CASES if name not in races], seed)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("race_", "wrong_order_"))])
def test_thread_sanitizer_finds(emulation, name, arch):
    if arch == 80 and "products" in name:
        pytest.skip("that chip has no warp groups")
    done = run(emulation("primitives_check", arch, "thread"), name)
    assert done.returncode == 66, done.stdout + done.stderr
    assert "data race" in done.stderr
    assert "planted_faults.cpp" in done.stderr or "warp_groups.cpp" in done.stderr
