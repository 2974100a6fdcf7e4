"""Launches of a closed loop's steps, as both directions make them: all in one, or 2 L + 1 a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

from ..windows import Window, windows
from . import graphs
from .configuration import Tile, choose_tile, choose_whole, operands
from .launch import is_amd, limits_of, on
from .record_kernels import LOOP_ROW, loop_record_kernel, lstm_record_kernel
from .recurrence import Record, Recurrence, is_aligned, numbers, operand_flags

FIELDS = tuple(loop_record_kernel.arg_names[1:])  # of a product's record
GRAPH_STEPS = 256  # of a graph at most
WORK_BYTES = 64 << 20  # of what lives for the steps of a graph only: large steps are fewer in one


def pieces(steps: int, step_bytes: int) -> list[Window]:
    """All steps in windows of about one length, at most a graph's, each of which leaves `step_bytes` of work."""
    longest = min(GRAPH_STEPS, max(WORK_BYTES // max(step_bytes, 1), 1))
    return windows(steps, -(-steps // -(-steps // longest)))


class Steps:
    """Launches of windows of steps: all in one, or each layer's recurrence and products by the number of their record.

    `h_0` [L, B, H] has sizes, dtype and device, `frame_size` is D; `flags` are the recurrent kernels'. `whole` is the
    configuration of one launch for all steps, None if they go one by one.
    """

    def __init__(self, h_0: Tensor, frame_size: int, *, backward: bool, **flags: bool) -> None:
        self.layers, self.batch, self.hidden = h_0.shape
        self.frame_size, self.device, self.backward = frame_size, h_0.device, backward
        self.flags = operand_flags(h_0.dtype)
        self.kind = operands(h_0.dtype, self.flags["PRECISION"])
        self.whole = choose_whole(
            *(self.hidden, frame_size, self.layers, self.batch, self.kind, limits_of(self.device)),
            backward=backward,
            is_amd=is_amd(),
        )
        if self.whole is None:
            self.recurrence = Recurrence(h_0[:1], backward=backward, by_steps=True, IS_RAGGED=False, **flags)
        # Rows of the layers, then of the products: one of each layer and the head's.
        self.table = torch.empty(2 * self.layers + 1, LOOP_ROW.value, dtype=torch.int64, device=self.device)

    def pieces(self, steps: int, step_bytes: int) -> list[Window]:
        """The windows of steps that are run at a time, each of which leaves `step_bytes` a step unless it is one."""
        return [Window(0, steps)] if self.whole is not None else pieces(steps, step_bytes)

    def run(
        self,
        key: tuple,
        layers: Sequence[Record],
        products: Sequence[Record],
        launches: Callable[[Tensor, bool], None],
    ) -> None:
        """`launches(table, aligned)`, which depend on nothing but `key` and the sizes, for these records."""
        aligned = is_aligned([*layers, *products])

        def write(table: Tensor) -> None:
            for row, record in enumerate(layers):
                lstm_record_kernel[(1,)](table[row], 0, *numbers(record), num_warps=1)
            for row, record in enumerate(products, start=len(layers)):
                loop_record_kernel[(1,)](table[row], *numbers(record, FIELDS), num_warps=1)

        with on(self.device):
            if self.whole is not None:
                write(self.table)
                launches(self.table, aligned)
                return
            sizes = (self.layers, self.batch, self.hidden, self.frame_size)
            options = (self.backward, tuple(self.recurrence.flags.items()), self.recurrence.config, aligned)
            graphs.run(("closed_loop", key, sizes, options), lambda table: launches(table, aligned), self.table, write)

    def all_steps(self, kernel, table: Tensor, steps: int, aligned: bool, **flags) -> None:
        """The one launch of all steps."""
        whole = self.whole
        kernel[(triton.cdiv(self.batch, whole.block_b),)](
            *(table, steps, self.batch, self.hidden, self.frame_size),
            **(self.flags | flags),
            LAYERS=self.layers,
            ALIGNED=aligned,
            BLOCK_B=whole.block_b,
            BLOCK_H=whole.units,
            BLOCK_D=whole.frame_size,
            num_warps=whole.warps,
            num_stages=whole.stages,
        )

    def step(self, table: Tensor, layer: int, position: int, steps: int, aligned: bool) -> None:
        """A layer's recurrence at one of `steps`."""
        self.recurrence.step(table[layer], position, steps, aligned)

    def product(
        self, kernel, table: Tensor, number: int, position: int, depth: int, columns: int, aligned: bool, **flags
    ) -> None:
        """[B, depth] times weights of `columns`, at one of the steps."""
        tile = self._tile(depth, columns)
        kernel[(triton.cdiv(columns, tile.block_n), triton.cdiv(self.batch, tile.block_b))](
            *(table[self.layers + number], position, self.batch, depth, columns),
            **(self.flags | flags),
            ALIGNED=aligned,
            BLOCK_B=tile.block_b,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def _tile(self, depth: int, columns: int) -> Tile:
        return choose_tile(self.batch, depth, columns, self.kind, limits_of(self.device), is_amd=is_amd())
