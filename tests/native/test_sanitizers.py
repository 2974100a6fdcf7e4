"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import torch
from lstmvid import _native
from lstmvid.testing import Case, LoopCase, check
assert _native.INSTRUCTION_SET != "none", _native.WHY_MISSING
torch.set_num_threads({threads})
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    check(Case(dtype=dtype, batch=13, hidden_size=70, num_layers=2, peephole=True, all_cells=True), "cpu")
    check(Case(dtype=dtype, batch=101, hidden_size=33, steps=2, input_size=None), "cpu")
    check(Case(dtype=dtype, hidden_size=16, lengths=(0, 5, 2), reverse=(True,), bias=False), "cpu")
    check(Case(dtype=dtype, steps=1, batch=1, input_size=1, hidden_size=1), "cpu")
    check(Case(dtype=dtype, blind=True, pixels=True, hidden_size=17), "cpu")
    check(LoopCase(dtype=dtype, batch=13, hidden_size=37, frame_size=75, num_layers=3, mixed=True), "cpu")
    check(LoopCase(dtype=dtype, steps=1, batch=1, frame_size=1, hidden_size=1, first=True), "cpu")
# Work enough for several threads.
check(LoopCase(steps=4, batch=40, hidden_size=70, frame_size=150, num_layers=2, mixed=True), "cpu")
check(Case(steps=4, batch=40, hidden_size=150, peephole=True), "cpu")
print("all right")
"""


def _library(name: str) -> str:
    return subprocess.run(
        ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizers", "libraries", "threads"),
    [("address,undefined", ("libasan.so", "libubsan.so"), 3), ("thread", ("libtsan.so",), 3)],
)
def test_no_finding(tmp_path, sanitizers, libraries, threads):
    preload = [_library(name) for name in libraries]
    if not all(Path(path).is_absolute() for path in preload):
        pytest.skip(f"the compiler has no {' '.join(libraries)}")
    package = tmp_path / "lstmvid"
    shutil.copytree(ROOT / "lstmvid", package, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    flags = f"-fsanitize={sanitizers} -fno-sanitize-recover=all -g -O1"
    configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-DLSTMVID_CUDA=OFF"]
    configure += [f"-DCMAKE_CXX_FLAGS={flags}", f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Debug"]
    pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
    configure.append(f"-Dpybind11_DIR={pybind11.stdout.strip()}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja and cmake of the environment
    for command in (configure, ["cmake", "--build", str(tmp_path / "build")]):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
        assert done.returncode == 0, done.stdout + done.stderr
    (module,) = (tmp_path / "build").glob("_C*.so")
    shutil.copy(module, package)
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preload),
        "PYTHONPATH": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Python itself never frees all, and torch's own threads synchronise in ways the sanitizer doesn't know: only
        # what passes through our module counts.
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=0 exitcode=0 ignore_noninstrumented_modules=1",
    }
    command = [sys.executable, "-c", SCRIPT.format(threads=threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all right" in done.stdout
    ours = [line for line in done.stderr.splitlines() if "csrc/" in line]
    assert not ours, done.stderr
