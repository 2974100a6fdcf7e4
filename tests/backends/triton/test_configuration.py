"""How launches are chosen, tuned and captured: pure Python, without a GPU and without the interpreter."""

from __future__ import annotations

import json
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from lstmvid.backends.plan import DEVICES
from lstmvid.backends.triton import configuration, graphs, launch
from lstmvid.backends.triton.configuration import (
    choose,
    choose_tile,
    choose_whole,
    loop_config,
    predict,
    predict_steps,
    predict_whole,
    product_tiles,
    step_configs,
    whole_loops,
)

KINDS = ("16 bits", "tf32", "ieee")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_every_size_has_a_configuration_of_the_table(device, kind, backward):
    table = set(step_configs(kind))
    for hidden in (1, 31, 32, 33, 64, 65, 128, 129, 1000, 2048, 5000, 40000):
        for batch in (1, 15, 16, 17, 80, 1000):
            config = choose(hidden, batch, kind, device, backward=backward)
            if config.loops:
                assert config.block_h >= hidden
                assert config == loop_config(hidden, kind, device)
            else:
                assert config in table


def test_one_launch_wherever_a_program_holds_all_units():
    h100 = DEVICES["H100"]
    assert [loop_config(h, "16 bits", h100) is not None for h in (1, 64, 128, 129)] == [True, True, True, False]
    assert [loop_config(h, "ieee", h100) is not None for h in (64, 65)] == [True, False]
    # 128 units of 16 bits take more shared memory than a block has there.
    assert loop_config(128, "16 bits", DEVICES["RTX 4090"]) is None
    assert loop_config(64, "16 bits", DEVICES["RTX 4090"]) is not None
    assert loop_config(128, "16 bits", h100).stages == 2
    assert loop_config(128, "16 bits", DEVICES["A100"]).stages == 1
    assert loop_config(64, "ieee", h100, is_amd=True) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_loop_goes_by_steps_in_tiles_of_the_table(kind):
    h100 = DEVICES["H100"]
    assert choose(20, 16, kind, h100).loops
    assert not choose(20, 16, kind, h100, by_steps=True).loops
    tiles = set(product_tiles(kind))
    chosen = {choose_tile(b, k, n, kind, h100) for b in (1, 16, 80, 1000) for k in (1, 2048) for n in (1, 300, 8192)}
    assert chosen <= tiles
    assert len(chosen) > 1


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_one_launch_holds_a_closed_loop_and_fits(device, kind, backward):
    held = 0
    for sizes in product((1, 32, 33, 64, 65, 128, 129), (1, 32, 33, 64, 100, 128, 256, 257), (1, 2, 3)):
        whole = choose_whole(*sizes, 16, kind, device, backward=backward)
        if whole is not None:
            assert whole in whole_loops(kind, backward=backward)
            assert all(size <= room for size, room in zip(sizes, whole[:3], strict=True))
            assert sizes[2] == whole.layers
            assert whole.shared_bytes <= device.shared_bytes
            held += 1
    assert held >= 2


def test_a_closed_loop_is_one_launch_where_it_is_small():
    h100, a100 = DEVICES["H100"], DEVICES["A100"]

    def goes(hidden, frame, layers, kind, device=h100, **options) -> bool:
        return choose_whole(hidden, frame, layers, 16, kind, device, **options) is not None

    for backward, layers in product((False, True), (1, 2)):
        assert goes(64, 64, layers, "16 bits", backward=backward)
        assert goes(64, 64, layers, "16 bits", a100, backward=backward)
        assert goes(64, 64, layers, "tf32", backward=backward) == (layers == 1)
        assert goes(32, 32, layers, "tf32", backward=backward)
    assert goes(32, 128, 1, "ieee", backward=True)
    assert goes(64, 256, 1, "16 bits", backward=True)
    # Nothing holds more layers, units or values of a frame; products in plain float32 are held for fewer.
    assert [goes(32, 32, layers, "16 bits") for layers in (1, 2, 3)] == [True, True, False]
    assert [goes(hidden, 64, 1, "16 bits") for hidden in (128, 129)] == [True, False]
    assert [goes(64, frame, 1, "16 bits") for frame in (256, 257)] == [True, False]
    assert [goes(32, 32, 2, "ieee", backward=backward) for backward in (False, True)] == [True, False]
    assert not goes(33, 32, 1, "ieee")
    # Two layers of 64 units take more shared memory than a block has there.
    assert [goes(64, 64, layers, "16 bits", DEVICES["RTX 4090"]) for layers in (1, 2)] == [True, False]
    stages = [choose_whole(64, 64, 2, 16, "16 bits", device, backward=True).stages for device in (a100, h100)]
    assert stages == [1, 2]
    assert goes(32, 32, 2, "16 bits", is_amd=True)
    assert not goes(33, 32, 1, "16 bits", is_amd=True)


@pytest.mark.parametrize("backward", [False, True])
def test_many_sequences_go_by_steps(backward):
    """A tile of them is a program, and a multiprocessor runs one after the other: by then launches cost less."""
    sizes, h100 = (64, 64, 1), DEVICES["H100"]
    taken = [choose_whole(*sizes, batch, "16 bits", h100, backward=backward) for batch in (1, 16, 2112, 100_000)]
    assert [whole is not None for whole in taken] == [True, True, True, False]
    assert taken[0] == taken[1] == taken[2]
    times = [predict_whole(taken[0], batch, "16 bits", h100) for batch in (16, 2112, 2113)]
    assert times[0] == times[1] == times[2] / 2
    steps = [predict_steps(*sizes, batch, "16 bits", h100, backward=backward) for batch in (16, 2112, 100_000)]
    assert steps == sorted(steps)
    assert times[1] < steps[1]


def test_a_step_of_a_closed_loop_is_two_launches_a_layer_and_one():
    h100 = DEVICES["H100"]
    for layers in (1, 2, 3):
        for backward in (False, True):
            time = predict_steps(16, 16, layers, 1, "16 bits", h100, backward=backward)
            launches = (2 * layers + 1) * configuration._LAUNCH
            assert launches < time < 1.1 * launches


def test_the_tiles_of_a_large_product_fill_the_chip():
    """The frame of the paper's decoder, whose weights come from memory: one program a multiprocessor, or nearly."""
    for batch in (1, 16, 80, 128):
        tile = choose_tile(batch, 2048, 4096, "16 bits", DEVICES["H100"])
        assert 100 <= -(-4096 // tile.block_n) * -(-batch // tile.block_b) <= 2 * 132


def test_the_batch_decides_between_few_tiles_only():
    """Nothing is compiled or measured for one batch size."""
    for hidden in (256, 2048):
        assert len({choose(hidden, batch, "16 bits", DEVICES["H100"]) for batch in range(1, 2000)}) <= 6


def test_prediction_grows_with_the_work_and_names_its_bound():
    h100 = DEVICES["H100"]
    times = []
    for hidden in (256, 512, 1024, 2048, 4096):
        time, bound = predict(choose(hidden, 80, "16 bits", h100), hidden, 80, "16 bits", h100)
        assert bound in ("launch", "L2 reads", "products")
        times.append(time)
    assert times == sorted(times)
    alone = predict(choose(2048, 80, "16 bits", h100), 2048, 80, "16 bits", h100)[0]
    assert predict(choose(2048, 80, "16 bits", h100), 2048, 80, "16 bits", h100, groups=2)[0] > alone
    assert predict(choose(64, 16, "ieee", h100), 64, 16, "ieee", h100)[1] == "latency"


@pytest.fixture
def tuning(tmp_path, monkeypatch):
    """The tuner, with a user's folder of its own."""
    pytest.importorskip("triton")
    from lstmvid.backends.triton import tuning

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "limits_of", lambda device: DEVICES["H100"])
    tuning._measured.cache_clear()
    yield tuning
    tuning._measured.cache_clear()


def test_what_was_tuned_is_taken_and_kept(tuning, tmp_path):
    before = tuning.choose(1024, 80, "16 bits", DEVICES["H100"], backward=False)
    seen = []

    def measure(config, batch, backward):
        seen.append((config, batch, backward))
        return abs(config.block_h - 32) + abs(config.stages - 4) + 0.1 * config.warps

    found = tuning.tune(1024, torch.bfloat16, measure=measure)
    assert {backward for _, _, backward in seen} == {False, True}
    assert all(config.block_b == batch for config, batch, _ in seen)
    after = tuning.choose(1024, 80, "16 bits", DEVICES["H100"], backward=False)
    assert after.block_b == before.block_b
    assert (after.stages, after != before) == (4, True)
    # Another process reads the same, and what is tuned later is added.
    tuning._measured.cache_clear()
    assert tuning.choose(1024, 80, "16 bits", DEVICES["H100"], backward=False) == after
    tuning.tune(2048, torch.bfloat16, measure=measure)
    assert len(json.loads((tmp_path / "lstmvid" / "triton.json").read_text())) == 2 * len(found)
    # Neither another device nor another size knows of it.
    for hidden, device in ((1024, "A100"), (512, "H100")):
        ours = tuning.choose(hidden, 80, "16 bits", DEVICES[device], backward=False)
        assert ours == choose(hidden, 80, "16 bits", DEVICES[device])


def test_nothing_to_tune_where_one_program_holds_all(tuning):
    with pytest.raises(ValueError, match="nothing to tune for 64 units"):
        tuning.tune(64, torch.bfloat16, measure=lambda *_: 0.0)


def test_a_damaged_file_is_named(tuning, tmp_path):
    (tmp_path / "lstmvid").mkdir()
    (tmp_path / "lstmvid" / "triton.json").write_text("{")
    with pytest.raises(ValueError, match=r"triton.json isn't what the tuner wrote"):
        tuning.choose(1024, 80, "16 bits", DEVICES["H100"], backward=False)


def test_tuning_is_opt_in(tuning, tmp_path):
    tuning.choose(1024, 80, "16 bits", DEVICES["H100"], backward=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def captures(monkeypatch) -> list:
    """A cache whose captures are only counted."""
    seen = []

    def capture(launches, table):
        seen.append(table)
        return graphs.Captured(None, table)

    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(graphs, "_is_short_of_memory", lambda device: False)
    return seen


def test_a_graph_is_captured_at_the_second_use_and_replayed_from_then_on(captures):
    cache, table = graphs.GraphCache(), torch.zeros(1, 19, dtype=torch.int64)
    assert cache.get("a", None, table) is None
    assert captures == []
    first = cache.get("a", None, table)
    assert first.table is not table  # it is the graph's own: the caller's goes with the call
    assert cache.get("a", None, table) is first
    assert len(captures) == 1


def test_graphs_that_nobody_used_lately_go(captures, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    cache, table = graphs.GraphCache(), torch.zeros(1, 19, dtype=torch.int64)
    for key in ("a", "a", "b", "b", "a", "c"):
        cache.get(key, None, table)
    assert list(cache.graphs) == ["a", "c"]


def test_all_graphs_go_where_memory_is_short(captures, monkeypatch):
    cache, table = graphs.GraphCache(), torch.zeros(1, 19, dtype=torch.int64)
    for key in ("a", "a", "b"):
        cache.get(key, None, table)
    monkeypatch.setattr(graphs, "_is_short_of_memory", lambda device: True)
    assert cache.get("b", None, table) is None
    assert len(cache.graphs) == 0


def test_launches_are_made_one_by_one_where_no_graph_can_be(captures, monkeypatch):
    """On the CPU, on AMD, and while the caller captures one himself: the call's own table, each time."""
    calls, table = [], torch.zeros(1, 19, dtype=torch.int64)
    for _ in range(3):
        graphs.run("key", lambda t: calls.append(("launch", t)), table, lambda t: calls.append(("write", t)))
    assert [(name, t is table) for name, t in calls] == [("write", True), ("launch", True)] * 3
    assert captures == []


def test_a_graph_reads_its_own_table_written_before_each_replay(captures, monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHS", graphs.GraphCache())
    monkeypatch.setattr(graphs, "can_capture", lambda device: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(device_index=0, cuda_stream=7))
    calls, table = [], torch.zeros(1, 19, dtype=torch.int64)
    graph = SimpleNamespace(replay=lambda: calls.append(("replay", None)))
    own = torch.ones_like(table)
    monkeypatch.setattr(graphs, "_capture", lambda launches, table: graphs.Captured(graph, own))
    for _ in range(3):
        graphs.run("key", lambda t: calls.append(("launch", t)), table, lambda t: calls.append(("write", t)))
    assert [name for name, _ in calls] == ["write", "launch", "write", "replay", "write", "replay"]
    assert calls[0][1] is calls[1][1] is table
    assert calls[2][1] is calls[4][1] is own


def test_no_graph_of_the_cpu():
    assert not graphs.can_capture(torch.device("cpu"))


def test_products_follow_the_setting():
    assert launch.products(torch.float32, True) == "tf32"
    assert launch.products(torch.float32, False) == "ieee"
    assert launch.products(torch.bfloat16, True) == "ieee"
    assert configuration.operands(torch.bfloat16, "ieee") == configuration.operands(torch.float16, "tf32") == "16 bits"
    assert configuration.operands(torch.float32, "tf32") == "tf32"
