"""The cpu backend's threads: honoured, no influence on any bit, safe beside forks, other threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import lstmvid
from lstmvid.backends import windows
from lstmvid.testing import Case, run

THREADS = (1, 2, 3, 5)  # more than most machines that run this have cores, too

# Large enough that the kernels take all of them: 400,000 FLOP a step for each thread, and a block of units.
CASES = {
    "plain": {"steps": 5, "batch": 13, "hidden_size": 200},
    "recomputed": {"steps": 9, "batch": 13, "hidden_size": 130, "recompute": "gates", "chunk": 4},
    "groups": {"steps": 4, "batch": 16, "hidden_size": 140, "groups": 2, "shared_input": False},
    "reverse": {"steps": 4, "batch": 16, "hidden_size": 140, "reverse": (True,), "peephole": True},
    "ragged": {"steps": 5, "batch": 6, "hidden_size": 220, "lengths": (5, 0, 3, 1, 4, 5), "peephole": True},
    "ragged, reverse": {"steps": 5, "batch": 6, "hidden_size": 220, "lengths": (5, 0, 3, 1, 4, 5), "reverse": (True,)},
    "one sequence": {"steps": 6, "batch": 1, "hidden_size": 500, "num_layers": 2},
    "one step": {"steps": 1, "batch": 9, "hidden_size": 260, "input_size": 300},
    "wide frames": {"steps": 3, "batch": 5, "hidden_size": 64, "input_size": 5000},
    "no input": {"steps": 4, "batch": 16, "hidden_size": 160, "input_size": None, "num_layers": 2, "all_cells": True},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture
def short_windows(monkeypatch):
    """Every sequence is cut into windows of two steps."""
    monkeypatch.setitem(windows.MIN_STEPS, "cpu", 2)
    monkeypatch.setitem(windows.WINDOW_BYTES, "cpu", 0)


def _same_bits(case: Case) -> None:
    """Results and every gradient, for each number of threads."""
    expected = None
    for threads in THREADS:
        torch.set_num_threads(threads)
        values = run(case, "cpu").values
        expected = expected or values
        different = [name for name, value in values.items() if not torch.equal(value, expected[name])]
        assert not different, f"{threads} threads, {case}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_same_bits_for_any_number_of_threads(name, dtype, restored_threads):
    _same_bits(Case(dtype=dtype, **CASES[name]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["plain", "recomputed", "reverse", "ragged, reverse", "no input"])
def test_same_bits_in_windows_of_time(name, dtype, restored_threads, short_windows):
    _same_bits(Case(dtype=dtype, **CASES[name]))


def test_the_number_of_threads_is_honoured(restored_threads):
    """Time of all threads over time of the call: one thread computes for one."""

    def share(threads: int) -> float:
        torch.set_num_threads(threads)
        state = (torch.zeros(1, 16, 512),) * 2
        weights = [torch.randn(4 * 512, 512) * 0.02]
        lstmvid.functional.lstm(None, state, weights, steps=2)
        start, used = time.perf_counter(), time.process_time()
        lstmvid.functional.lstm(None, state, weights, steps=100)
        return (time.process_time() - used) / (time.perf_counter() - start)

    assert share(1) < 1.2


# What the processes of the tests below compute; large enough for two threads in every product and in the kernel.
SETUP = """
import os, sys, time, torch, lstmvid
torch.manual_seed(0)
torch.set_num_threads(2)
module = lstmvid.LSTM(64, 256, backend="cpu")
x = torch.randn(6, 32, 64)
state, weights = (torch.randn(1, 32, 256),) * 2, [torch.randn(1024, 256) * 0.05]

def compute():
    module.zero_grad()
    output, (h_n, c_n) = module(x)
    output.sum().backward()
    alone = lstmvid.functional.lstm(None, state, weights, steps=6, backend="cpu")[0]
    return [output.detach(), h_n.detach(), c_n.detach(), alone, *(weight.grad for weight in module.parameters())]

def same(a, b):
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
"""


def _python(script: str, seconds: float = 300) -> str:
    """What a process of its own prints; one that hangs is ended, with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs; it had printed {process.communicate()[0]!r}")
    assert process.returncode == 0, error
    return out


def test_a_forked_process_computes_the_same():
    """After its parent ran on several threads, which GCC's OpenMP waits for in vain."""
    script = """
expected = compute()
child = os.fork()
if child == 0:
    print(torch.get_num_threads(), same(compute(), expected), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(torch.get_num_threads(), same(compute(), expected))
"""
    assert _python(script).splitlines() == ["1 True", "2 True"]


def test_kernels_run_on_several_threads_in_a_forked_process():
    """Threads of its own where OpenMP's are lost; torch can't, so nothing but the kernel may run in parallel here."""
    script = """
from lstmvid import _native
_native._prepare_for_forks = lambda: None  # the child keeps two
none = dict.fromkeys(("projection", "bias", "peephole", "lengths", "cells", "gates"))
def kernel():
    output = torch.empty(6, 32, 256)
    results = {"output": output, "h_n": torch.empty(32, 256), "c_n": torch.empty(32, 256)}
    sizes = {"steps": 6, "batch": 32, "hidden": 256, "dtype": torch.float32, "reverse": False, "blind": False}
    given = {"h_0": state[0][0], "c_0": state[1][0], "weight_hh": weights[0]}
    _native.lstm_sequence_cpu("fwd", **sizes, **given, **results, **none)
    return output
expected = kernel()
child = os.fork()
if child == 0:
    before = len(os.listdir("/proc/self/task"))
    assert torch.get_num_threads() == 2
    output = kernel()
    print(before, all(torch.equal(a, b) for a, b in zip(output.unbind(0), expected.unbind(0))), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert _python(script).splitlines() == ["1 True"]


def test_pool_of_forked_workers():
    """As `multiprocessing` and a `DataLoader` start them."""
    script = """
import multiprocessing
from torch.utils.data import DataLoader, Dataset

class Encoded(Dataset):
    def __len__(self):
        return 4

    @torch.no_grad()
    def __getitem__(self, index):
        return module(x * index)[0]

def alone(index):
    return Encoded()[index].numpy()

expected = [Encoded()[index] for index in range(4)]
loader = DataLoader(Encoded(), batch_size=None, num_workers=2, multiprocessing_context="fork")
print(same(list(loader), expected))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(same([torch.from_numpy(y) for y in pool.map(alone, range(4))], expected))
"""
    assert _python(script).splitlines() == ["True", "True"]


def test_calls_from_several_threads_at_once():
    """Each with a team of threads of its own, forward and backward; also with different numbers of threads."""
    script = """
import copy
from concurrent.futures import ThreadPoolExecutor

expected = compute()

def work(number):
    torch.set_num_threads(1 + number % 3)
    own, results = copy.deepcopy(module), []
    for _ in range(3):
        output, (h_n, c_n) = own(x)
        gradients = torch.autograd.grad(output.sum(), list(own.parameters()))
        alone = lstmvid.functional.lstm(None, state, weights, steps=6, backend="cpu")[0]
        results.append(same([output.detach(), h_n.detach(), c_n.detach(), alone, *gradients], expected))
    return all(results)

with ThreadPoolExecutor(6) as pool:
    print(list(pool.map(work, range(12))).count(True))
"""
    assert _python(script).splitlines() == ["12"]


@pytest.mark.slow
def test_more_processes_than_processors():
    """Steps of many processes' threads at once: a wait ends in sleep, not in a race of threads that spin.

    Four processes of two threads on two cores may take four times as long as one, and somewhat more.
    """
    script = """
call = lambda: lstmvid.functional.lstm(None, state, weights, steps=100, backend="cpu")
call()
start = time.perf_counter()
for _ in range(5):
    call()
print(time.perf_counter() - start)
"""
    number = 2 * len(os.sched_getaffinity(0))
    alone = float(_python(script))
    with ThreadPoolExecutor(number) as pool:
        together = list(pool.map(lambda _: float(_python(script)), range(number)))
    assert max(together) < 5 * number * alone
