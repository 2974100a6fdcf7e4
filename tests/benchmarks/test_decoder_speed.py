"""The benchmark of decoders: contestants compute the same, a wrong one is seen, rows say what they measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import lstmvid
from lstmvid.testing import error

pytest.importorskip("rich")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # they are scripts, which import each other by their bare names

import decoder_speed  # noqa: E402
import unusual_baselines as unusual  # noqa: E402

MAKERS = [make for makers in decoder_speed.rows(quick=True).values() for make in makers]


@pytest.fixture(autouse=True)
def one_thread(restored_threads):
    """Tiny products wait more for the other threads than they compute."""
    torch.set_num_threads(1)


@pytest.mark.parametrize("scripted", [False, True])
def test_the_peephole_loop_is_the_reference(scripted):
    ours = lstmvid.LSTM(5, 7, peephole=True, backend="reference", dtype=torch.float64)
    torch.nn.init.uniform_(ours.weight_peephole_l0)
    loop = decoder_speed._copied(ours, unusual.PeepholeLoop(5, 7, scripted=scripted).double())
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for actual, expected in zip(loop(x), ours(x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_generation_on_cells_is_that_on_lstms(num_layers):
    plain = unusual.PlainComposite(6, 5, num_layers)
    cells = decoder_speed._copied(plain, unusual.CellComposite(6, 5, num_layers))
    context = torch.rand(3, 2, 6)
    torch.testing.assert_close(cells.predict(context, 4), plain.predict(context, 4))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.func.__name__)
def test_every_contestant_computes_the_same(make):
    row = make()
    found = decoder_speed.errors(row)
    assert set(row.baselines) <= set(found) == set(row.contestants)
    assert all(largest <= 1 for largest, _ in found.values()), found


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.func.__name__)
def test_a_wrong_result_is_seen(make):
    row = make()
    name = next(reversed(row.contestants))
    module, call = row.contestants[name]

    def off(module, data):
        return {key: value * 1.01 for key, value in call(module, data).items()}

    row.contestants[name] = (module, off)
    row.table = "not timed with its memory"
    entries = decoder_speed.measure_row(row, 1, 0)["contestants"]
    assert [entry["name"] for entry in entries if not entry["correct"]] == [name]
    assert [entry["name"] for entry in entries if "seconds" not in entry] == [name]


def test_lengths_change_the_result():
    """What is behind a sequence's end is left out, and not multiplied by a seed of zero only."""
    row = decoder_speed.ragged_row(7, 5, 16)
    frames = row.data["frames"].clone()
    module, call = row.contestants["lstmvid, lengths="]
    before = call(module, row.data)["loss"]
    row.data["frames"][(row.data["seed"] == 0).all(2)] = 1e3
    assert error(call(module, row.data)["loss"], before) == 0
    assert not torch.equal(frames, row.data["frames"])


def test_the_file_has_what_was_measured(tmp_path, capsys):
    code = decoder_speed.main(["--quick", "--rounds", "2", "--threads", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("decoder_speed-")
    result = json.loads(path.read_text())
    assert {"date", "commit", "device", "versions", "quick"} <= set(result)
    assert len(result["rows"]) == len(MAKERS)
    for row in result["rows"]:
        assert row["over"] in {entry["name"] for entry in row["contestants"]}
        assert row["table"] in printed
        for entry in row["contestants"]:
            assert entry["correct"]
            assert entry["rounds"] == 2
            assert 0 < entry["seconds"]["q1"] <= entry["seconds"]["median"] <= entry["seconds"]["q3"]
        fastest = min(e["seconds"]["median"] for e in row["contestants"] if e["speedup"] and e["name"] == row["over"])
        assert all(e["speedup"] == pytest.approx(fastest / e["seconds"]["median"]) for e in row["contestants"])
    peaks = [e["peak_bytes_beyond_inputs_and_outputs"] for e in result["rows"][-1]["contestants"]]
    assert all(peak is None or peak >= 0 for peak in peaks)


def test_recomputing_takes_less_memory():
    """Measured in processes of their own; sizes at which the libraries' buffers don't count."""
    sizes = {"steps": 600, "batch": 16, "size": 128, "threads": 1}
    kept, again = (decoder_speed.peak_of(name, **sizes) for name in ("lstmvid", "lstmvid, recompute"))
    if kept is None:
        pytest.skip("this system doesn't show a process's peak memory")
    assert again < 0.7 * kept
