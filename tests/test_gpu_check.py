"""scripts/gpu_check.sh as far as it goes without a GPU: its arguments, and what it says and writes where parts fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils")

# Stands for Python: passes the build, fails the tests, and runs in truth only what writes the result.
INTERPRETER = """#!/usr/bin/env bash
case "$*" in
  *gpu_result.py*) exec {python} "$@" ;;
  *"-m pip"*) echo "installing for ${{LSTMVID_CUDA_ARCHS-the GPU here}}" ;;
  *"-m pytest"*) exit 1 ;;
esac
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], env=os.environ | environment, capture_output=True, text=True)


def test_an_unknown_part_is_named():
    result = run("build", "tests")
    assert result.returncode == 2
    assert "no part 'tests': all, or some of build test sanitizer bench micro" in result.stderr


def test_help():
    result = run("--help")
    assert result.returncode == 0
    assert all(part in result.stdout for part in ("build", "test", "sanitizer", "bench", "micro"))


def test_what_fails_does_not_stop_the_rest(tmp_path):
    interpreter = tmp_path / "python"
    interpreter.write_text(INTERPRETER.format(python=sys.executable))
    interpreter.chmod(0o755)
    environment = {"PYTHON": str(interpreter), "OUT": str(tmp_path / "out"), "LSTMVID_CUDA_ARCHS": "80"}
    result = run("build", "test", "bench", **environment)
    assert result.returncode == 1
    assert "failed: test (see" in result.stderr
    assert "installing for the GPU here" in result.stdout
    parts = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"]
    assert {name: part["outcome"] for name, part in parts.items()} == {
        "build": "passed",
        "test": "failed (exit code 1)",
        "bench": "passed",
    }
    assert "==== bench: passed" in (tmp_path / "out" / "gpu_check.log").read_text()


def test_without_a_gpu_nothing_passes_for_tested(tmp_path):
    """That every GPU test is skipped is no success."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/usr/bin/env bash\n[[ "$*" == *pytest* ]] && exit 0\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    result = run("test", PYTHON=str(interpreter), OUT=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1
    assert "failed: test" in result.stderr
