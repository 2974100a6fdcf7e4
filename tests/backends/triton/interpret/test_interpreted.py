"""Checks that need Triton's interpreter, in processes of their own: the switch holds for a whole process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[3]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def interpret(*arguments: str) -> int:
    """Run pytest with these arguments under the interpreter; how many passed. None may fail, nor be skipped unseen."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.mark.parametrize("part", ["test_a_launch_a_step", "not test_a_launch_a_step"])
def test_lstm_sequence(part):
    assert interpret(str(HERE / "lstm_sequence_checks.py"), "-m", "not slow", "-k", part) >= 19


def test_what_every_backend_is_tested_for():
    """The parametrised tests of the operator, for this backend; the largest take too long here."""
    tests = "triton and not wide and not long and not groups-bfloat16 and not ragged-bfloat16"
    assert interpret(str(ROOT / "tests/ops/test_lstm_sequence.py"), "-k", tests) >= 35


def test_frame_loss():
    assert interpret(str(ROOT / "tests/ops/test_frame_loss.py"), "-k", "triton") >= 50


@pytest.mark.parametrize("part", ["test_agrees", "not test_agrees"])
def test_closed_loop(part):
    assert interpret(str(HERE / "closed_loop_checks.py"), "-m", "not slow", "-k", part) >= 28


def test_closed_loop_by_steps():
    assert interpret(str(HERE / "closed_loop_graph_checks.py")) >= 12


def test_closed_loop_as_every_backend():
    """The operator's other tests, for this backend."""
    assert interpret(str(ROOT / "tests/ops/test_closed_loop.py"), "-k", "triton and not agrees") >= 8


@pytest.mark.slow
def test_lstm_sequence_in_every_dtype():
    assert interpret(str(HERE / "lstm_sequence_checks.py"), "-m", "slow") >= 100


@pytest.mark.slow
def test_closed_loop_in_every_dtype():
    assert interpret(str(HERE / "closed_loop_checks.py"), "-m", "slow") >= 84
