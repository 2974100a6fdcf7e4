"""The layers of one stack as a wavefront: side by side in each launch, every one a window of time behind the one below.

Each launch is a call of its own to the kernels, of as many steps as the window has; the states go from one to the next
through tensors. Backward it is the upper layers that run ahead, from the last window to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ..dense import input_gradient_into
from ..layers import Weights
from ..streaming import Reader, outputs_read, project_into
from ..weight_gradients import Saved
from ..windows import Window, origins, windows
from .recurrence import How, arguments, launch, workspace


class Stack(NamedTuple):
    """One stack's tensors by layer: sequences [T, B, ...], states [L, B, H]; `inputs` is None without input."""

    weights: list[Weights]
    inputs: Reader | None
    h_0: Tensor
    c_0: Tensor
    outputs: list[Tensor]
    cells: Tensor | None  # [L, T, B, H]
    gates: Tensor | None  # [L, T, B, 4H]
    reverse: bool

    @property
    def steps(self) -> int:
        return self.outputs[0].size(0)

    def read_by(self, layer: int) -> Reader | None:
        """What a layer reads."""
        return outputs_read([self.outputs[layer - 1]], [self.reverse])[0] if layer else self.inputs


def _diagonals(layers: int, parts: list[Window]) -> Iterator[list[tuple[int, Window]]]:
    """(layer, window) of each launch. Windows that differ in length can't share one: the short one's comes first.

    It is the lowest layer's of those that run then, so that nobody still waits for what the others leave.
    """
    for diagonal in range(len(parts) + layers - 1):
        active = [(layer, parts[diagonal - layer]) for layer in range(layers) if 0 <= diagonal - layer < len(parts)]
        for length in sorted({part.end - part.first for _, part in active}):
            yield [(layer, part) for layer, part in active if part.end - part.first == length]


class _Launches:
    """Calls of one direction, for any of the layers at a time, in a workspace that they share."""

    def __init__(self, direction: str, stack: Stack, window: int, how: How) -> None:
        self.direction, self.stack, self.how = direction, stack, how
        self.extra = int(direction == "bwd")  # a step behind the first, for the initial states' gradients
        call = self._call(range(len(stack.weights)), window, {})
        self._memory, self.address = workspace(direction, call, window + self.extra, stack.outputs[0])

    def _call(self, layers: Sequence[int], steps: int, tensors: dict[str, list[Tensor | None]]) -> dict:
        """`tensors`: of each layer its own."""
        stack = self.stack
        weights = [stack.weights[layer] for layer in layers]
        call = arguments((steps, *stack.h_0.shape[1:]), weights, [stack.reverse] * len(weights), None, self.how)
        names = {
            "fwd": ("projection", "bias", "h_0", "c_0", "output", "h_n", "c_n", "cells", "gates"),
            "bwd": ("c_0", "cells", "gates", "grad_output", "grad_h_n", "grad_c_n", "grad_cells", "grad_gates"),
        }[self.direction] + (("grad_h_0", "grad_c_0") if self.extra else ())
        return call | {name: tensors.get(name, [None] * len(weights)) for name in names}

    def run(self, layers: Sequence[int], steps: int, tensors: dict[str, list[Tensor | None]]) -> None:
        """So many steps of these layers; all tensors contiguous."""
        call = self._call(layers, steps, tensors)
        launch(self.direction, call, Window(0, steps + self.extra), self.address, self.how.target)


def forward(stack: Stack, h_n: Tensor, c_n: Tensor, checkpoints: Tensor | None, window: int, how: How) -> None:
    """Fill in the stack's outputs, cells and gates, the final states [L, B, H], and the cells before each window."""
    layers, batch, size = stack.h_0.shape
    parts = windows(stack.steps, window)
    launches = _Launches("fwd", stack, window, how)
    buffer = None
    if stack.gates is None:
        buffer = stack.h_0.new_empty(layers, window, batch, 4 * size)
    for active in _diagonals(layers, parts):
        tensors: dict[str, list[Tensor | None]] = {name: [] for name in ("projection", "bias", "h_0", "c_0", "output")}
        tensors |= {name: [] for name in ("h_n", "c_n", "cells", "gates")}
        for layer, part in active:
            time, weights = part.times(stack.steps, stack.reverse), stack.weights[layer]
            x = stack.read_by(layer)
            gates = None if stack.gates is None else stack.gates[layer, time]
            projection = None
            if x is not None:
                projection = buffer[layer, : part.end - part.first] if gates is None else gates
                project_into(projection, x, time, weights)
            h, c = (stack.h_0[layer], stack.c_0[layer]) if part.first == 0 else (h_n[layer], c_n[layer])
            if checkpoints is not None:
                checkpoints[layer, parts.index(part)] = c
            cells = None if stack.cells is None else stack.cells[layer, time]
            found = {"projection": projection, "bias": weights.bias if x is None else None, "h_0": h, "c_0": c}
            found |= {"output": stack.outputs[layer][time], "h_n": h_n[layer], "c_n": c_n[layer]}
            for name, tensor in (found | {"cells": cells, "gates": gates}).items():
                tensors[name].append(tensor)
        launches.run([layer for layer, _ in active], active[0][1].end - active[0][1].first, tensors)


class Seeds(NamedTuple):
    """Gradients of what forward returned: output [T, B, H], h_n and c_n [L, B, H], cells [L, T, B, H]."""

    output: Tensor | None
    h_n: Tensor | None
    c_n: Tensor | None
    cells: Tensor | None


def backward(
    stack: Stack, seeds: Seeds, grad_h_0: Tensor, grad_c_0: Tensor, grad_input: Tensor | None, window: int, how: How
) -> Iterator[tuple[int, Tensor, Saved]]:
    """Fill in the gradients of initial states and input; yields what those of a layer's weights are made of.

    That is (layer, gradients of its gates [n, B, 4H] in a window, what else is there); for good before the next one.
    """
    layers, batch, size = stack.h_0.shape
    parts = windows(stack.steps, window)
    launches = _Launches("bwd", stack, window, how)
    grad_gates = stack.h_0.new_empty(layers, window, batch, 4 * size)
    # Of each layer's output in the window that it comes to next.
    below = stack.h_0.new_empty(layers - 1, window, batch, size)
    for mirrored in _diagonals(layers, parts[::-1]):
        active = [(layers - 1 - layer, part) for layer, part in mirrored]
        tensors: dict[str, list[Tensor | None]] = {}
        for layer, part in active:
            count, time = part.end - part.first, part.times(stack.steps, stack.reverse)
            is_last = part.end == stack.steps
            top = None if seeds.output is None else seeds.output[time]
            found = {
                "c_0": _cells_before(stack, layer, part),
                "cells": stack.cells[layer, time],
                "gates": stack.gates[layer, time],
                "grad_output": top if layer == layers - 1 else below[layer, :count],
                "grad_h_n": _of(seeds.h_n if is_last else grad_h_0, layer),
                "grad_c_n": _of(seeds.c_n if is_last else grad_c_0, layer),
                "grad_cells": None if seeds.cells is None else seeds.cells[layer, time],
                "grad_gates": grad_gates[layer, :count],
                "grad_h_0": grad_h_0[layer],
                "grad_c_0": grad_c_0[layer],
            }
            for name, tensor in found.items():
                tensors.setdefault(name, []).append(tensor)
        launches.run([layer for layer, _ in active], active[0][1].end - active[0][1].first, tensors)
        for layer, part in active:
            count, time = part.end - part.first, part.times(stack.steps, stack.reverse)
            gradient, weight_ih = grad_gates[layer, :count], stack.weights[layer].weight_ih
            x = stack.read_by(layer)
            if layer:
                input_gradient_into(below[layer - 1, :count], gradient, weight_ih)
            elif grad_input is not None:
                rows, places = x.frames.places(time)
                input_gradient_into(grad_input[places], gradient[rows], weight_ih)
            saved = Saved(
                x=x,
                time=time,
                cells=stack.cells[layer, time],
                c_0=_cells_before(stack, layer, part),
                output=stack.outputs[layer],
                origins=origins(stack.h_0[layer], None, part, stack.steps, stack.reverse),
            )
            yield layer, gradient, saved


def _of(tensor: Tensor | None, layer: int) -> Tensor | None:
    return None if tensor is None else tensor[layer]


def _cells_before(stack: Stack, layer: int, part: Window) -> Tensor:
    """[B, H]: the cells that a window starts from."""
    if part.first == 0:
        return stack.c_0[layer]
    time = part.times(stack.steps, stack.reverse)
    return stack.cells[layer, time.stop if stack.reverse else time.start - 1]
