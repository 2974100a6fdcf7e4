"""CUDA graphs of the launches of a window, so that a step costs no Python; kept by shape, dropped if memory is short.

The launches read addresses out of a table in device memory, which belongs to the graph and is written before each
replay: one graph serves all tensors of the same shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from .launch import is_amd

MAX_GRAPHS = 64
_SHORT_OF_MEMORY = 1 / 32  # of the device's memory


class Captured(NamedTuple):
    """A graph and the table [G, fields] that its launches read."""

    graph: torch.cuda.CUDAGraph
    table: Tensor


def _capture(launches: Callable[[Tensor], None], table: Tensor) -> Captured:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(table.device)
    stream.wait_stream(torch.cuda.current_stream(table.device))
    # Only this thread's calls are watched: backward captures in autograd's thread while the user's goes on.
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launches(table)
        finally:
            graph.capture_end()
    torch.cuda.current_stream(table.device).wait_stream(stream)
    return Captured(graph, table)


def _is_short_of_memory(device: torch.device) -> bool:
    free, total = torch.cuda.mem_get_info(device)
    return free < total * _SHORT_OF_MEMORY


class GraphCache:
    """The last graphs that were used, by what they are of."""

    def __init__(self) -> None:
        self.graphs: OrderedDict[Hashable, Captured | None] = OrderedDict()

    def get(self, key: Hashable, launches: Callable[[Tensor], None], table: Tensor) -> Captured | None:
        """The graph of that key, from its second use on; None if the launches have to be made one by one.

        The first use compiles and loads the kernels, and many a shape comes only once.
        """
        if key not in self.graphs:
            self._keep(key, None)
            return None
        found = self.graphs[key]
        if found is None:
            if _is_short_of_memory(table.device):
                self.clear()
                return None
            found = _capture(launches, torch.empty_like(table))
        self._keep(key, found)
        return found

    def clear(self) -> None:
        """Give up all graphs and their memory."""
        self.graphs.clear()

    def _keep(self, key: Hashable, graph: Captured | None) -> None:
        self.graphs[key] = graph
        self.graphs.move_to_end(key)
        while len(self.graphs) > MAX_GRAPHS:
            self.graphs.popitem(last=False)


GRAPHS = GraphCache()


def run(key: Hashable, launches: Callable[[Tensor], None], table: Tensor, write: Callable[[Tensor], None]) -> None:
    """Make the launches, which read all addresses out of the table that `write` fills, one by one or as a graph.

    `key`: what the launches are of, beside the current stream.
    """
    captured = None
    if can_capture(table.device):
        stream = torch.cuda.current_stream(table.device)
        captured = GRAPHS.get((stream.device_index, stream.cuda_stream, key), launches, table)
    if captured is None:
        write(table)
        launches(table)
    else:
        write(captured.table)
        captured.graph.replay()


def can_capture(device: torch.device) -> bool:
    """Whether a graph may be captured here: on an NVIDIA GPU, and not while the caller captures one himself."""
    return device.type == "cuda" and not is_amd() and not torch.cuda.is_current_stream_capturing()
