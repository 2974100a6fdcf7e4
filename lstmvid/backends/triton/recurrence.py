"""Launches of the recurrent Triton kernels, as both directions make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dense import allows_tf32
from ..windows import Window, windows
from . import graphs, tuning
from .configuration import Config, operands
from .launch import is_amd, limits_of, on, products
from .lstm_sequence_kernels import (
    lstm_gates_kernel,
    lstm_loop_bwd_kernel,
    lstm_loop_fwd_kernel,
    lstm_step_bwd_kernel,
    lstm_step_fwd_kernel,
)
from .record_kernels import lstm_record_kernel

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
FIELDS = tuple(lstm_record_kernel.arg_names[2:])  # of a group's record
_SCAN_BLOCK = 256  # units of a program of the gates' scan
_GRAPH_STEPS = 256  # of a graph, in which a step takes about a kilobyte on the device: longer sequences replay it

# What a group's record is made of: by name a tensor of which the address counts, a number, or None.
Record = dict[str, Tensor | int | None]


def numbers(record: Record, fields: Sequence[str] = FIELDS) -> list[int]:
    """What a kernel writes of a record: an address or a number for each field, 0 for what it hasn't."""
    values = (record.get(name) for name in fields)
    return [value.data_ptr() if isinstance(value, Tensor) else value or 0 for value in values]


def is_aligned(records: Sequence[Record]) -> bool:
    """Whether all tensors begin at addresses that 16 divides: then kernels load 16 bytes at a time."""
    tensors = (value for record in records for value in record.values() if isinstance(value, Tensor))
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def operand_flags(dtype: torch.dtype) -> dict:
    """What every kernel compiles in of its operands: their type, and how float32 is multiplied."""
    return {"DTYPE": _TYPES[dtype], "PRECISION": products(dtype, allows_tf32(dtype))}


def _write(table: Tensor, records: Sequence[Record]) -> None:
    for group, record in enumerate(records):
        lstm_record_kernel[(1,)](table, group, *numbers(record), num_warps=1)


def _aborts_the_compiler(kind: str, *, IS_RAGGED: bool, HAS_PEEPHOLE: bool, **_others: bool) -> bool:
    """Whether all steps backwards in one launch are more than Triton 3.9 can compile for sm_90 and sm_100."""
    return kind == "ieee" and IS_RAGGED and not HAS_PEEPHOLE


class Recurrence:
    """One layer's recurrence in every group, in one direction, over windows of its steps.

    `h_0` [G, B, H] has the sizes, dtype and device; `config` is chosen by them if it isn't given, `by_steps` one of a
    launch a step. `flags`: what the kernels compile in or leave out, by their names, such as HAS_PEEPHOLE.
    """

    def __init__(
        self, h_0: Tensor, *, backward: bool, config: Config | None = None, by_steps: bool = False, **flags: bool
    ) -> None:
        self.groups, self.batch, self.hidden = h_0.shape
        self.device, self.backward = h_0.device, backward
        types = operand_flags(h_0.dtype)
        kind = operands(h_0.dtype, types["PRECISION"])
        self.config = config or tuning.choose(
            *(self.hidden, self.batch, kind, limits_of(h_0.device)),
            groups=self.groups,
            backward=backward,
            is_amd=is_amd(),
            by_steps=by_steps or (backward and _aborts_the_compiler(kind, **flags)),
        )
        self.flags = types | flags
        self.table = torch.empty(self.groups, len(FIELDS), dtype=torch.int64, device=h_0.device)

    def pieces(self, window: Window) -> list[Window]:
        """The window's steps, as many as go into one launch or graph at a time, in order of processing."""
        steps = window.end - window.first
        parts = windows(steps, steps if self.config.loops else _GRAPH_STEPS)
        return [Window(window.first + part.first, window.first + part.end) for part in parts]

    def run(self, window: Window, record: Callable[[int, Window], Record]) -> None:
        """The window's steps; `record(group, piece)`: what a group has, sequences as the steps of the piece."""
        pieces = self.pieces(window)
        with on(self.device):
            for piece in reversed(pieces) if self.backward else pieces:
                self._run_piece(piece.end - piece.first, [record(group, piece) for group in range(self.groups)])

    def _run_piece(self, steps: int, records: list[Record]) -> None:
        aligned = is_aligned(records)

        def write(table: Tensor) -> None:
            _write(table, records)

        if self.config.loops:
            write(self.table)
            self._loop(self.table, steps, aligned)
            return
        options = (self.backward, tuple(self.flags.items()), self.config, aligned)
        key = (steps, self.groups, self.batch, self.hidden, options)
        graphs.run(key, lambda table: self._launch(table, steps, aligned), self.table, write)

    def _options(self, aligned: bool) -> dict:
        config = self.config
        blocks = {"ALIGNED": aligned, "BLOCK_B": config.block_b, "BLOCK_H": config.block_h}
        return self.flags | blocks | {"num_warps": config.warps, "num_stages": config.stages}

    def _loop(self, table: Tensor, steps: int, aligned: bool) -> None:
        kernel = lstm_loop_bwd_kernel if self.backward else lstm_loop_fwd_kernel
        grid = (triton.cdiv(self.batch, self.config.block_b), self.groups)
        kernel[grid](table, steps, self.batch, self.hidden, **self._options(aligned))

    def _launch(self, table: Tensor, steps: int, aligned: bool) -> None:
        # One more backwards leaves the gradients of the state before the steps.
        for position in range(steps - 1, -2, -1) if self.backward else range(steps):
            self.step(table, position, steps, aligned)

    def step(self, table: Tensor, position: int, steps: int, aligned: bool) -> None:
        """The launch of one of `steps`, of what the table says; backward at position -1, what is left of them."""
        config = self.config
        grid = (triton.cdiv(self.hidden, config.block_h), triton.cdiv(self.batch, config.block_b), self.groups)
        kernel = lstm_step_bwd_kernel if self.backward else lstm_step_fwd_kernel
        sizes = (steps, self.batch, self.hidden)
        kernel[grid](table, position, *sizes, BLOCK_K=config.block_k, **self._options(aligned))

    def scan_gates(self, steps: int, records: list[Record]) -> None:
        """Gates and cells of a window's steps from the gates' pre-activations, in place."""
        names = ("DTYPE", "HAS_PEEPHOLE", "IS_RAGGED")
        flags = {name: self.flags[name] for name in names}
        grid = (triton.cdiv(self.batch * self.hidden, _SCAN_BLOCK), self.groups)
        with on(self.device):
            _write(self.table, records)
            lstm_gates_kernel[grid](self.table, steps, self.batch, self.hidden, BLOCK=_SCAN_BLOCK, **flags)
