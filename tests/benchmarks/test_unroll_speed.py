"""The benchmark itself: that it compares equal things, checks them, counts right and reports what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lstmvid
from lstmvid import backends
from lstmvid.backends import Request

pytest.importorskip("rich")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # they are scripts, which import each other by their bare names

import baselines  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
import shapes  # noqa: E402
import unroll_speed  # noqa: E402
from shapes import MODES, Case  # noqa: E402

TINY = ["--steps", "3", "--patch", "4", "--hidden", "8", "--batch", "2", "--rounds", "2"]


def tiny(model: str, **sizes) -> Case:
    return Case(**{"model": model, "steps": 4, "batch": 3, "frame_shape": (2, 5), "hidden_size": 7} | sizes)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products wait more for the other threads than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_peaks(monkeypatch):
    monkeypatch.setattr(measure, "gemm_peak", lambda dtype, device: (1e11, "nobody"))
    monkeypatch.setattr(measure, "copy_peak", lambda device: 1e10)


@pytest.fixture
def run(tmp_path, quick_peaks, capsys):
    """Runs the benchmark in this process; returns its exit code, what it printed and what it wrote."""

    def run_main(*arguments: str):
        code = unroll_speed.main([*TINY, "--output", str(tmp_path), "--device", "cpu", *arguments])
        (path,) = tmp_path.glob("*.json")
        return code, capsys.readouterr().out, json.loads(path.read_text())

    return run_main


# ---- Equal things ----


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_plain_composite_is_ours(num_layers):
    torch.manual_seed(0)
    plain = baselines.PlainComposite(10, 7, num_layers).double()
    ours = lstmvid.FusedComposite(10, 7, num_layers, peephole=False, backend="reference", dtype=torch.float64)
    baselines._copy_weights(plain, ours)
    frames, targets = torch.rand(2, 4, 3, 10, dtype=torch.float64)
    reconstruction, prediction, loss = plain(frames, targets)
    out = ours(frames, targets)
    torch.testing.assert_close(out.reconstruction, reconstruction)
    torch.testing.assert_close(out.prediction, prediction)
    torch.testing.assert_close(out.loss, loss)
    loss.backward()
    out.loss.backward()
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, plain.get_parameter(name).grad, msg=name)
    assert not plain.reconstructor.weight_ih_l0.grad.any()
    torch.testing.assert_close(ours.predict(frames, 6), plain.predict(frames, 6))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("model", "mode"), [(model, mode) for model, modes in shapes.MODELS.items() for mode in modes])
def test_every_contestant_computes_the_same(model, mode, dtype):
    case = tiny(model, dtype=dtype, num_layers=2, modes=(mode,))
    fighters = baselines.contestants(case, "cpu", ["cpu", "torch", "reference"])
    expected = {"torch.nn.LSTM", "lstmvid cpu", "lstmvid torch", "lstmvid reference"}
    expected |= {"lstmvid cpu, peepholes"} if model == "composite" else set()
    assert {fighter.name for fighter in fighters} == expected
    assert sum(fighter.auto for fighter in fighters) == 1
    errors = baselines.errors(case, mode, fighters, baselines.draw(case, "cpu"))
    assert all(error <= 1 for error, _ in errors.values()), errors


@pytest.mark.parametrize("model", list(shapes.MODELS))
def test_every_gradient_is_compared(model):
    case = tiny(model)
    fighters = baselines.contestants(case, "cpu", ["reference"])
    data = baselines.draw(case, "cpu")
    for name, weight in fighters[1].module.named_parameters():
        hook = weight.register_hook(lambda gradient: gradient * 1.01)
        error, where = baselines.errors(case, "forward+backward", fighters, data)["lstmvid reference"]
        hook.remove()
        assert error > 1
        assert where == f"gradient of {name}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_wrong(value):
    right, wrong = {"y": torch.ones(3)}, {"y": torch.tensor([1.0, value, 1.0])}
    exact = {"y": torch.ones(3, dtype=torch.float64)}
    assert baselines.worst(right, right, exact, 1e-6) == (0, "y")
    assert baselines.worst(wrong, right, exact, 1e-6)[0] > 1
    assert baselines.worst(right | {"z": right["y"]}, right, exact, 1e-6)[0] > 1
    # Nothing is right beside a baseline that overflows.
    assert baselines.worst(wrong, wrong, exact, 1e-6)[0] > 1


def test_a_wrong_contestant_is_not_timed_and_fails_the_run(run, monkeypatch):
    forward = lstmvid.LSTM.forward
    monkeypatch.setattr(lstmvid.LSTM, "forward", lambda *args: (forward(*args)[0] * 1.001, forward(*args)[1]))
    code, printed, result = run("--model", "lstm", "--mode", "forward", "--backend", "reference")
    assert code == 1
    assert "wrong: lstmvid reference" in printed
    baseline, ours = result["rows"][0]["contestants"]
    assert baseline["correct"]
    assert "seconds" in baseline
    assert not ours["correct"]
    assert "seconds" not in ours
    assert ours["largest_error_in"] == "output"


# ---- Counting and measuring ----


@pytest.mark.parametrize("num_layers", [1, 2])
def test_flops_are_those_of_the_products(num_layers):
    """torch counts the baseline's, zero frames of the reconstruction decoder and all."""
    for model, modes in shapes.MODELS.items():
        for mode in modes:
            case = tiny(model, num_layers=num_layers, modes=(mode,))
            module = baselines.contestants(case, "cpu", [])[0].module.double()
            data = {name: value.double() for name, value in baselines.draw(case, "cpu").items()}
            with FlopCounterMode(display=False) as counter:
                baselines.compute(case, mode, module, data)
            product = 8 * case.batch * case.hidden_size * case.hidden_size  # of one step's hidden state
            useless = 8 * case.steps * case.batch * case.hidden_size * case.frame_size
            count = counter.get_total_flops()
            if model == "composite" and mode != "generation":
                count -= useless * (2 if mode == "forward+backward" else 1)
            # The gradient of the very first state, which nobody asked for, is in ours only.
            assert 0 <= case.flops(mode) - count <= (mode == "forward+backward") * num_layers * product, (model, mode)


def test_bytes_grow_with_what_is_read():
    forward, both, generation = (tiny("composite", modes=MODES).bytes(mode) for mode in MODES)
    assert 0 < forward < both
    assert generation > 0
    assert tiny("lstm", dtype="bf16").bytes("forward") * 2 == tiny("lstm").bytes("forward")


def test_rounds_are_interleaved():
    seen = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    times = measure.interleaved(calls, "cpu", rounds=4)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(seen) == 12
    assert all(set(seen[start : start + 3]) == set("abc") for start in range(0, 12, 3))


def test_rounds_stop_when_their_time_is_over():
    times = measure.interleaved({"a": lambda: time.sleep(0.02)}, "cpu", budget=0.01)
    assert len(times["a"]) == measure.MIN_ROUNDS


def test_quick_stops_in_time(run, monkeypatch):
    monkeypatch.setattr(unroll_speed, "QUICK_SECONDS", -1)
    code, printed, result = run("--quick", "--model", "lstm")
    assert code == 0
    assert result["rows"] == []
    assert "nothing is started after -1 seconds" in printed


def test_after_its_seconds_nothing_is_started_and_the_rest_is_written(run, monkeypatch):
    clock, measure_row = [0.0], unroll_speed.measure_row

    def slow(*arguments):
        clock[0] += 60
        return measure_row(*arguments)

    monkeypatch.setattr(unroll_speed, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(unroll_speed, "measure_row", slow)
    options = ("--steps", "2", "3", "--model", "lstm", "--rounds", "1", "--mode", "forward")
    code, _, result = run(*options, "--seconds", "30")
    assert code == 0
    assert [row["steps"] for row in result["rows"]] == [2]
    assert [reason for reason in result["left_out"].values() if "nothing is started after 30 seconds" in reason]


def test_statistics_compare_within_rounds():
    result = measure.statistics([1.0, 2.0, 4.0], [2.0, 6.0, 4.0], 100, 50)
    assert result["seconds"] == {"median": 2, "min": 1, "q1": 1.5, "q3": 3, "max": 4}
    assert result["flop_per_s"] == 50
    assert result["bytes_per_s"] == 25
    assert result["speedup"] == 2
    assert (result["speedup_q1"], result["speedup_q3"]) == (1.5, 2.5)


def test_peak_memory_sees_what_was_freed_again():
    mebibytes = 64

    def call() -> None:
        torch.ones(mebibytes * 2**18)

    peak = measure.peak_memory(call, "cpu")
    if peak is None:
        pytest.skip("this system doesn't show a process's peak memory")
    assert 0.9 * mebibytes < peak / 2**20 < 1.5 * mebibytes
    assert measure.peak_memory(lambda: None, "cpu") < 2**23


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_default_sizes(device):
    cases = shapes.default_cases(device)
    assert all(case in cases for case in shapes.KEY_CASES)
    for case in [*cases, *shapes.QUICK_CASES[device]]:
        assert case.dtype in shapes.DEVICE_DTYPES[device]
        assert set(case.modes) <= set(shapes.MODELS[case.model])
        assert case.footprint() < (12 if device == "cpu" else 60) * 2**30, case
    assert {mode for case in cases for mode in case.modes} == set(MODES)
    assert any((c.dtype, c.hidden_size, c.batch, c.steps) == ("fp16", 768, 16, 1024) for c in cases) == (
        device == "cuda"
    )


# ---- What comes out ----


def test_the_json_file_has_what_was_measured(run, tmp_path):
    code, printed, result = run("--dtype", "fp32", "bf16")
    assert code == 0
    assert result["versions"]["lstmvid"] == lstmvid.__version__
    assert result["versions"]["torch"] == torch.__version__
    assert result["device"]["type"] == "cpu"
    assert result["device"]["threads"] == torch.get_num_threads()
    assert {"date", "commit", "dirty", "load_average_before", "copy_bytes_per_s", "left_out"} <= set(result)
    assert set(result["gemm_peaks"]) == {"fp32", "bf16"}
    rows = [(row["model"], row["mode"], row["dtype"]) for row in result["rows"]]
    assert sorted(rows) == sorted(
        (m, mode, d) for m in shapes.MODELS for mode in shapes.MODELS[m] for d in ("fp32", "bf16")
    )
    for row in result["rows"]:
        assert (row["steps"], row["batch"], row["frame_size"], row["hidden_size"], row["num_layers"]) == (
            3,
            2,
            16,
            8,
            1,
        )
        baseline, *ours = row["contestants"]
        assert baseline["name"] == "torch.nn.LSTM"
        assert len(ours) >= 2
        for entry in row["contestants"]:
            seconds = entry["seconds"]
            assert 0 < seconds["min"] <= seconds["q1"] <= seconds["median"] <= seconds["q3"] <= seconds["max"]
            assert entry["correct"]
            assert entry["rounds"] == 2
            assert entry["speedup"] == pytest.approx(baseline["seconds"]["median"] / seconds["median"])
            assert entry["flop_per_s"] == pytest.approx(row["flops"] / seconds["median"])
            assert entry["share_of_gemm_peak"] == pytest.approx(entry["flop_per_s"] / 1e11)
            assert entry["peak_memory_bytes"] is None or entry["peak_memory_bytes"] >= 0
    assert "cuda" in result["left_out"]
    assert "composite model, generation" in printed
    assert "T=3 B=2 D=16 H=8 L=1 bf16" in printed
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stem == next(tmp_path.glob("*.json")).stem == report.file_stem(result)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_matplotlib_a_note_stands_for_the_plot(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, printed, _ = run("--model", "lstm", "--mode", "forward", "--backend", "torch")
    assert code == 0
    assert "no plot: it needs matplotlib" in printed
    assert not list(tmp_path.glob("*.png"))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    report.write_whole(path, b"old")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        report.write_whole(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("arguments", "default"),
    [
        ([], True),
        (["--rounds", "3"], True),
        (["--quick"], False),
        (["--hidden", "8"], False),
        (["--mode", "forward"], False),
    ],
)
def test_only_a_whole_default_run_is_a_result_of_the_project(arguments, default):
    args = unroll_speed.parser().parse_args(["--device", "cpu", *arguments])
    cases, is_default = unroll_speed.chosen_cases(args)
    assert cases
    assert is_default == default


def test_quick_on_the_command_line(tmp_path):
    command = [sys.executable, BENCHMARKS / "unroll_speed.py", "--quick", "--threads", "1", "--device", "cpu", *TINY]
    done = subprocess.run([*command, "--output", tmp_path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["device"]["threads"] == 1


# ---- Wrong arguments ----


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "0"], "--steps: expected a positive whole number, got '0'"),
        (["--batch", "-3"], "--batch: expected a positive whole number, got '-3'"),
        (["--hidden", "many"], "--hidden: expected a positive whole number, got 'many'"),
        (["--patch", "3x"], "--patch: expected a positive whole number, got ''"),
        (["--dtype", "fp8"], "--dtype: invalid choice: 'fp8'"),
        (["--dtype", "fp16"], "--dtype fp16: measured on cpu are fp32, bf16"),
        (["--backend", "fastest"], "--backend: invalid choice: 'fastest'"),
        (["--backend", "triton"], f"--backend triton: {backends.triton.unavailable(Request('cpu', torch.float32))}"),
        (["--model", "lstm", "--mode", "generation"], "no such model has this mode"),
        (["--steps", "1000000", "--batch", "1000", "--hidden", "4096"], "GiB are free"),
        (["--output", __file__], "--output"),
        (["--speed", "high"], "unrecognized arguments: --speed high"),
    ],
)
def test_wrong_arguments_are_named_in_one_sentence(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        unroll_speed.main(["--device", "cpu", "--quick", *arguments])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        unroll_speed.main(["--device", "cuda"])
    assert "this torch sees no NVIDIA GPU" in capsys.readouterr().err
