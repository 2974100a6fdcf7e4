"""The scripts for a machine with a GPU, on the emulated kernels: that they run, and what they write."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from lstmvid.backends.cuda import recurrence

ROOT = Path(__file__).resolve().parents[3]


def load(folder: str, name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / folder))
    spec = importlib.util.spec_from_file_location(f"{name}_of_test", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kept(cuda, monkeypatch) -> None:
    """What the scripts replace in the backend is as before afterwards."""
    for name in ("plan", "wavefront", "MAX_POLLS"):
        monkeypatch.setattr(recurrence, name, getattr(recurrence, name))


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_calls_for_the_sanitizer(monkeypatch, capsys):
    load("scripts", "gpu_sanitizer", monkeypatch).main("cpu")
    count, *words = capsys.readouterr().out.split()
    assert int(count) > 40
    assert words == ["calls", "agree", "with", "the", "reference"]


@pytest.mark.usefixtures("kept")
def test_step_speed(small_gpu, monkeypatch):
    speed = load("benchmarks", "step_speed", monkeypatch)
    monkeypatch.setattr(speed, "STEPS", (1, 3))
    monkeypatch.setattr(speed, "LONG", 240)
    monkeypatch.setattr(speed, "DTYPES", {"bf16": speed.DTYPES["bf16"]})
    small = speed.Shape(33, 5)
    monkeypatch.setattr(speed, "LOOP_STEPS", 3)
    tables = {"steps": [small], "groups": [small._replace(groups=2)], "layers": [speed.Shape(9, 2, layers=2)]}
    tables |= {"closed loops": [speed.LoopShape(7, 5, 3, 2)]}
    monkeypatch.setattr(speed, "TABLES", {name: (speed.TABLES[name][0], of) for name, of in tables.items()})
    measured, left_out = speed.measure_all("cpu", small_gpu, float("inf"))
    assert left_out == 0
    for rows in measured.values():
        assert {row["direction"] for row in rows} == {"forward", "backward"}
        assert not [row for row in rows if "error" in row]
    assert len(measured["steps"]) > 2
    assert [row["chosen"] for row in measured["steps"]].count(True) == 2
    assert all(row["predicted_us"] > 0 for row in measured["steps"] if row["chosen"])
    assert all(row["predicted_ratio"] > 0.9 for row in measured["groups"])
    assert all(row["us"] > 0 < row["apart_us"] for row in measured["layers"])
    assert all(row["reference_step_us"] > 0 for row in measured["closed loops"])
    assert speed.measure_all("cpu", small_gpu, -1.0) == ({}, 8)
