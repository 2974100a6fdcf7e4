"""The CUDA backend on a GPU: against the float64 reference, on streams, in graphs, on a second device, to the bit."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import lstmvid
from lstmvid.backends import windows
from lstmvid.backends.cuda import recurrence as backend
from lstmvid.backends.plan import (
    CLUSTER_SIZES,
    REGISTER_ARCH,
    REGISTER_ELEMENT_BYTES,
    REGISTER_ROUNDS,
    WARP_GROUP_ARCH,
    WARP_GROUP_REGISTER_ROUNDS,
    WARP_GROUP_UNIT_BLOCKS,
    Plan,
    geometry,
    plan,
    shared_bytes,
)
from lstmvid.testing import GPU_CASES, Case, check, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory", "exact_products")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def agree(case: Case, device: str = "cuda", *, backward: bool = True) -> None:
    with torch.set_grad_enabled(backward):
        check(case, "cuda", backward=backward, device=device)


CASES = GPU_CASES | {
    "wide": {"batch": 101, "hidden_size": 130, "steps": 3},
    "aligned": {"batch": 16, "hidden_size": 256, "input_size": 64, "steps": 20},
    "odd": {"batch": 33, "hidden_size": 517, "steps": 9, "peephole": True},
    "long": {"steps": 700, "batch": 2, "hidden_size": 5, "input_size": 3},
    "a thousand units": {"batch": 80, "hidden_size": 1000, "steps": 4, "input_size": 50},
    "the paper's size": {"batch": 80, "hidden_size": 2048, "steps": 4, "input_size": 64},
    "streamed weights": {"batch": 20, "hidden_size": 3000, "steps": 3, "input_size": 8},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(name, dtype):
    agree(Case(dtype=dtype, **CASES[name]))


@pytest.mark.parametrize("chunk", [1, 2, 5, 256])
@pytest.mark.parametrize("name", CASES)
def test_gates_computed_again(name, chunk):
    agree(Case(dtype=DTYPES[chunk % 3], **CASES[name] | {"recompute": "gates", "chunk": chunk}))


@pytest.mark.parametrize("name", ["plain", "odd", "two directions"])
def test_without_gradients(name):
    """Nothing is kept, and what isn't is projected in chunks."""
    agree(Case(**CASES[name]), backward=False)


@pytest.mark.parametrize("name", ["plain", "odd", "groups", "the paper's size"])
def test_tf32_is_as_exact_as_plain_products_in_tf32(name, allow_tf32):
    allow_tf32(True)
    agree(Case(**CASES[name]))


def plans(hidden: int, batch: int, element_bytes: int, limits, backward: bool, several: int) -> list[Plan]:
    """Divisions that the planner wouldn't all choose: each cluster size, several passes, weights held anywhere.

    `several`: clusters, where there is more than one.
    """
    found = []
    tiles = (8, 40) if element_bytes == 2 else (8, 32)
    kinds = [*itertools.product((1, 3, 4, 8), (False,), (0, REGISTER_ROUNDS))]
    if element_bytes == 2 and limits.arch == WARP_GROUP_ARCH:
        kinds += itertools.product(WARP_GROUP_UNIT_BLOCKS, (True,), (0, WARP_GROUP_REGISTER_ROUNDS))
    shapes = itertools.product(CLUSTER_SIZES, (1, several), kinds, tiles, (1, 2), (True, False))
    for cluster, clusters, (unit_blocks, warp_groups, in_registers), columns, replicas, resident in shapes:
        names = {"cluster": cluster, "clusters": clusters, "replicas": replicas, "unit_blocks": unit_blocks}
        names |= {"tile_columns": columns, "warp_groups": warp_groups}
        if clusters * replicas > limits.active_clusters[CLUSTER_SIZES.index(cluster)]:
            continue
        g = geometry(hidden, batch, element_bytes, **names, backward=backward)
        if in_registers and (g.passes > 1 or g.rounds < in_registers or limits.arch != REGISTER_ARCH):
            continue
        if in_registers and element_bytes != REGISTER_ELEMENT_BYTES:
            continue
        candidate = Plan(
            **names,
            register_rounds=in_registers,
            resident_rounds=(g.rounds - in_registers) if resident else (g.rounds - in_registers) // 3,
            hidden_stage_rounds=min(2, g.rounds),
            hidden_stages=3,
            weight_stages=0 if resident else 2,
            cells_in_shared=resident,
        )
        if shared_bytes(candidate, hidden, batch, element_bytes, backward=backward) <= limits.shared_bytes:
            found.append(candidate)
    return found


def force(monkeypatch, chosen: Plan, backward: bool) -> None:
    """Let this be the plan of one direction."""

    def planned(*sizes, **options) -> Plan:
        return chosen if options["backward"] == backward else plan(*sizes, **options)

    monkeypatch.setattr(backend, "plan", planned)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("hidden", "clusters"), [(203, 4), (520, 17)])
def test_every_way_to_divide_the_work(hidden, clusters, dtype, backward, monkeypatch):
    case = Case(steps=4, batch=43, hidden_size=hidden, input_size=5, peephole=True, dtype=dtype)
    limits = backend.target_of(torch.device("cuda", torch.cuda.current_device())).limits
    ways = plans(hidden, 43, dtype.itemsize, limits, backward, clusters)
    assert len(ways) > 10 or limits.arch < 90  # others have neither clusters nor as much shared memory
    narrow = dtype != torch.float32
    assert any(way.register_rounds for way in ways) == (narrow and limits.arch == REGISTER_ARCH)
    assert any(way.warp_groups for way in ways) == (narrow and limits.arch == WARP_GROUP_ARCH)
    for chosen in ways:
        force(monkeypatch, chosen, backward)
        agree(case, backward=backward)


def layer(**options) -> lstmvid.LSTM:
    sizes = {"input_size": 24, "hidden_size": 136, "num_layers": 2, "device": "cuda"}
    return lstmvid.LSTM(**sizes | options, backend="cuda").requires_grad_(False)


@torch.no_grad()
def test_the_same_bits_every_time():
    lstm, x = layer(dtype=torch.bfloat16), torch.randn(50, 33, 24, device="cuda", dtype=torch.bfloat16)
    expected = lstm(x)
    noise = torch.randn(3000, 3000, device="cuda")
    for _ in range(10):
        noise @ noise  # something else on the chip just before
        actual = lstm(x)
        assert torch.equal(actual[0], expected[0])
        assert all(torch.equal(a, b) for a, b in zip(actual[1], expected[1], strict=True))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"peephole": True}])
def test_the_same_gradients_every_time(options):
    lstm = layer(dtype=torch.bfloat16, **options).requires_grad_()
    x = torch.randn(50, 33, 24, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    noise = torch.randn(3000, 3000, device="cuda")

    def gradients() -> tuple[torch.Tensor, ...]:
        output, (h_n, c_n) = lstm(x)
        return torch.autograd.grad(output.square().sum() + h_n.sum() + c_n.sum(), [x, *lstm.parameters()])

    expected = gradients()
    for _ in range(10):
        noise @ noise
        assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("groups", [{}, {"bidirectional": True}])
def test_time_chunks_change_no_bit(groups, monkeypatch):
    lstm, x = layer(**groups), torch.randn(61, 9, 24, device="cuda")
    expected = lstm(x)
    monkeypatch.setitem(windows.MIN_STEPS, "cuda", 7)
    monkeypatch.setitem(windows.WINDOW_BYTES, "cuda", 0)
    actual = lstm(x)
    assert torch.equal(actual[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(actual[1], expected[1], strict=True))


@torch.no_grad()
def test_on_a_stream_of_its_own():
    lstm, x = layer(), torch.randn(20, 5, 24, device="cuda")
    expected = lstm(x)[0]
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # so that a launch in the wrong stream would overtake
        late.copy_(x)
        actual = lstm(late)[0]
    stream.synchronize()
    assert torch.equal(actual, expected)


@torch.no_grad()
def test_in_a_graph_replayed_twice():
    lstm, x = layer(), torch.randn(20, 5, 24, device="cuda")
    for _ in range(2):
        lstm(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, (h_n, c_n) = lstm(x)
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        expected, state = lstm(x)
        assert torch.equal(output, expected)
        assert torch.equal(h_n, state[0])
        assert torch.equal(c_n, state[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
def test_on_the_second_device():
    assert torch.cuda.current_device() == 0
    agree(Case(num_layers=2, peephole=True, hidden_size=77), "cuda:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}])
def test_drop_in(options):
    ours = layer(**options).requires_grad_()
    plain = torch.nn.LSTM(24, 136, 2, device="cuda", **options)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(11, 6, 24, device="cuda")
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
    lengths = [6, 5, 5, 2, 1, 1] if not options.get("batch_first") else [6, 5, 5, 4, 3, 3, 2, 2, 1, 1, 1]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, options.get("batch_first", False))
    torch.testing.assert_close(ours(packed)[0].data, plain(packed)[0].data, rtol=1e-4, atol=1e-5)
    for each in (ours, plain):
        each(x)[0].square().mean().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    lstm, x = layer(), torch.randn(8, 4, 24, device="cuda")
    with torch.autocast("cuda", dtype):
        output, _ = lstm(x)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), lstm(x)[0], rtol=0.05, atol=0.02)


def test_an_empty_batch():
    lstm = layer().requires_grad_()
    output, (h_n, c_n) = lstm(torch.zeros(5, 0, 24, device="cuda"))
    assert (output.shape, h_n.shape, c_n.shape) == ((5, 0, 136), (2, 0, 136), (2, 0, 136))
    output.sum().backward()
    assert all(torch.equal(weight.grad, torch.zeros_like(weight)) for weight in lstm.parameters())


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_plan_beyond_the_device_is_refused_before_it_is_launched(backward, monkeypatch):
    """Blocks that wait for each other must all be resident: else an error at once, no hang, and the next call works."""
    case = Case(hidden_size=64)
    limits = backend.target_of(torch.device("cuda:0")).limits
    too_many = replace(plan(64, 3, torch.float32, limits, backward=backward), replicas=1000)
    with monkeypatch.context() as patch:
        force(patch, too_many, backward)
        with pytest.raises(ValueError, match="resident"):
            run(case, "cuda", backward=backward, device="cuda")
    agree(case)


IN_VAIN = """
import torch, lstmvid
from lstmvid.backends.cuda import recurrence as backend
backend.MAX_POLLS = 1
lstmvid.LSTM(8, 512, backend="cuda", device="cuda").requires_grad_(False)(torch.zeros(50, 4, 8, device="cuda"))
torch.cuda.synchronize()
"""


def test_a_wait_in_vain_ends_in_an_error():
    """In a process of its own, whose CUDA context it takes along."""
    done = subprocess.run([sys.executable, "-c", IN_VAIN], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "CUDA error" in done.stderr
