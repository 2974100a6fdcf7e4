"""What the tests of several backends share: a stand-in for a GPU that copies frames beside its computations."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lstmvid.backends import streaming


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class LateCopies(TorchDispatchMode):
    """A device on the CPU whose copies come late, in any order; it notices whoever doesn't wait for what he needs.

    It stands for a GPU's `streaming.Queues`. A copy runs when somebody waits for it, or by chance before; until then
    its target is garbage. Computations are torch's own, at once, but count as not yet done. They are watched where the
    device is entered.

    Args:
        pins: whether host memory counts as pinned.
        seed: of what happens by chance.
    """

    def __init__(self, *, pins: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.pins, self.random = pins, random.Random(seed)
        self.host: list[Tensor] = []  # what lies in host memory
        self.copies: list[tuple[Tensor, Tensor]] = []  # all of them, so that no memory is used again
        self.pending: set[int] = set()
        self.clock = 0  # computations so far
        self.computed: dict[int, int] = {}  # when each storage was last computed with
        self.read_by: dict[int, int] = {}  # of each storage that copies read, the last of them
        self.waited = -1  # the last copy that the host has waited for
        self.staged = 0
        self.is_quiet = False

    def is_elsewhere(self, given: Tensor, _device: torch.device) -> bool:
        return any(place(given) == place(tensor) for tensor in self.host)

    # ---- The queues ----

    def mark(self) -> int:
        self._by_chance()
        return self.clock

    def copy(self, target: Tensor, source: Tensor, after: int) -> int:
        assert target.shape == source.shape
        assert target.dtype == source.dtype
        assert source.is_contiguous(), "it would be copied on the host first"
        assert self.computed.get(place(target), 0) <= after, "a copy overwrites what a computation may still read"
        self.copies.append((target, source))
        number = len(self.copies) - 1
        self.pending.add(number)
        self.read_by[place(source)] = number
        self.is_quiet = True
        target.fill_(170 if target.dtype == torch.uint8 else float("nan"))
        self.is_quiet = False
        self._by_chance()
        return number

    def compute_after(self, copied: int) -> None:
        self._run(copied)
        self._by_chance()

    def wait(self, copied: int) -> None:
        for number in range(copied + 1):  # one queue: those before it are done as well
            self._run(number)
        self.waited = max(self.waited, copied)

    def pinned(self, like: Tensor) -> Tensor:
        self.staged += 1
        return torch.empty(like.shape, dtype=like.dtype)

    def is_pinned(self, tensor: Tensor) -> bool:
        return self.pins

    def _run(self, number: int) -> None:
        if number in self.pending:
            self.pending.remove(number)
            self.is_quiet = True
            target, source = self.copies[number]
            target.copy_(source)
            self.is_quiet = False

    def _by_chance(self) -> None:
        for number in sorted(self.pending):
            if self.random.random() < 0.1:
                self._run(number)

    # ---- What is computed ----

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.is_quiet or function.is_view:
            return function(*args, **kwargs or {})
        self.clock += 1
        for argument, tensor in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(tensor, Tensor):
                late = self.read_by.get(place(tensor), -1)
                assert late <= self.waited, "the host writes what a copy may still read"
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                self.computed[place(tensor)] = self.clock
        return result


@pytest.fixture
def stands_for_a_gpu(monkeypatch) -> Callable[..., LateCopies]:
    """`stands_for_a_gpu(*frames, piece_bytes=..., ...)`: the CPU as a device with these in the host's memory."""

    def make(*frames: Tensor, piece_bytes: int = 100, **options) -> LateCopies:
        device = LateCopies(**options)
        device.host += frames
        monkeypatch.setattr(streaming, "is_elsewhere", device.is_elsewhere)
        monkeypatch.setattr(streaming, "queues_of", lambda _: device)
        monkeypatch.setattr(streaming, "PIECE_BYTES", piece_bytes)
        return device

    return make
