"""`lstm_sequence` on the CPU: allocates, projects the inputs, calls the recurrent kernel a layer at a time.

Both directions run in windows of time, backward the last one first, so that what isn't kept stays small. Where gates
aren't kept, their pre-activations come from dense products over the hidden states that are there, gates and cells from
the kernel's own arithmetic, and both are forgotten with the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..frames import Frames, stretch
from ..layers import Weights, layer_weights
from ..weight_gradients import Totals, gradients_of_nothing
from ..windows import Window, even_windows, origins, windows
from .products import input_gradient, linear, over_steps, product


def unavailable(request) -> str | None:
    """Why the CPU kernels can't serve the request, or None."""
    if _native.WHY_MISSING:
        return _native.WHY_MISSING
    if request.device != "cpu":
        return f"it runs on the CPU, the tensors are on {request.device}"
    if request.dtype not in _native.CPU_DTYPES:
        return f"it computes in float32, float64 and bfloat16, got {request.dtype}"
    return "it has no projections (proj_size)" if request.proj_size else None


def _lengths_in(lengths: Tensor | None, time: slice) -> Tensor | None:
    """Steps of each sequence in a stretch of time."""
    return None if lengths is None else (lengths - time.start).clamp(0, time.stop - time.start)


def _windows(h_0: Tensor, steps: int) -> list[Window]:
    *_, batch, size = h_0.shape
    return even_windows(steps, batch * 4 * size * h_0.element_size(), "cpu")


def _frames(
    inputs: Sequence[Tensor], group: int, dtype: torch.dtype, steps: int, reverse: Sequence[bool]
) -> Frames | None:
    """What a group's lowest layer sees."""
    return Frames(inputs[group if len(inputs) > 1 else 0], steps, reverse[group], dtype) if inputs else None


class _Layer(NamedTuple):
    """One layer of one group forward: sequences [T, B, ...], states [B, H]; None for what isn't there or isn't kept."""

    x: Frames | None
    weights: Weights
    reverse: bool
    lengths: Tensor | None
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None
    checkpoints: Tensor | None  # [number of windows, B, H]: the cells that each window starts from


def _add_linear(total: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    """`linear`, added in place to a contiguous total where there is one."""
    if total is None:
        return linear(x, weight)
    product(x.flatten(0, -2), weight.t(), total.view(-1, weight.size(0)))
    return total


def _run(layer: _Layer, parts: list[Window]) -> None:
    """Fill in the layer's results."""
    steps, batch, size = layer.output.shape
    workspace = _native.Workspace()
    for index, part in enumerate(parts):
        time = part.times(steps, layer.reverse)
        # In place from one window to the next: the kernel reads states before it writes any.
        h, c = (layer.h_0, layer.c_0) if index == 0 else (layer.h_n, layer.c_n)
        if layer.checkpoints is not None:
            layer.checkpoints[index] = c
        weight_ih, weight_hh, bias, peephole = layer.weights
        count, projection = part.end - part.first, None
        if layer.x is not None:
            _, frames = layer.x.seen(time)
            projection = linear(frames, weight_ih) if frames.size(0) else None
        if count == 1:
            # One product only: packing the weights would cost more than it.
            projection = _add_linear(projection, h, weight_hh)
            weight_hh = None
        _native.lstm_sequence_cpu(
            "fwd",
            workspace,
            steps=count,
            batch=batch,
            hidden=size,
            dtype=layer.output.dtype,
            reverse=layer.reverse,
            blind=projection is not None and projection.size(0) < count,
            projection=projection,
            bias=bias,
            weight_hh=weight_hh,
            peephole=peephole,
            h_0=h,
            c_0=c,
            lengths=_lengths_in(layer.lengths, time),
            output=stretch(layer.output, time),
            h_n=layer.h_n,
            c_n=layer.c_n,
            cells=stretch(layer.cells, time),
            gates=stretch(layer.gates, time),
        )


def forward(
    inputs: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    steps: int,
    bias: bool,
    peephole: bool,
    reverse: Sequence[bool],
    save: bool,
    all_cells: bool,
    recompute: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator's schema says (`lstmvid/ops/lstm_sequence.py`)."""
    groups, num_layers, batch, size = h_0.shape
    h_0, c_0, inputs = h_0.contiguous(), c_0.contiguous(), [x.contiguous() for x in inputs]
    lengths = None if lengths is None else lengths.contiguous()
    layers = layer_weights(weights, bool(inputs), num_layers, bias, peephole)
    keep_gates, keep_cells = save and not recompute, all_cells or (save and not recompute)
    checkpoints = save and not keep_cells
    parts = windows(steps, chunk) if checkpoints else _windows(h_0, steps)
    output = _native.empty([groups, steps, batch, size], h_0.dtype)
    h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
    hidden = _native.empty([groups, num_layers - 1 if save else 0, steps, batch, size], h_0.dtype)
    kept = steps if keep_cells else len(parts) if checkpoints else 0
    cells = _native.empty([groups, num_layers, kept, batch, size], c_0.dtype)
    gates = _native.empty([groups, num_layers, steps if keep_gates else 0, batch, 4 * size], h_0.dtype)
    if batch == 0 or steps == 0:
        return output, h_n.copy_(h_0), c_n.copy_(c_0), hidden, cells, gates
    for group in range(groups):
        x = _frames(inputs, group, h_0.dtype, steps, reverse)
        for index in range(num_layers):
            at = (group, index)
            if index == num_layers - 1:
                y = output[group]
            else:
                y = hidden[at] if save else torch.empty_like(output[group])
            layer = _Layer(
                x=x,
                weights=layers[group * num_layers + index],
                reverse=reverse[group],
                lengths=lengths,
                h_0=h_0[at],
                c_0=c_0[at],
                output=y,
                h_n=h_n[at],
                c_n=c_n[at],
                cells=cells[at] if keep_cells else None,
                gates=gates[at] if keep_gates else None,
                checkpoints=cells[at] if checkpoints else None,
            )
            _run(layer, parts)
            x = Frames(y, steps, reverse[group], y.dtype)
    return output, h_n, c_n, hidden, cells, gates


class _Saved(NamedTuple):
    """One layer of one group backward: what forward left, and the gradients of what it returned."""

    x: Frames | None
    weights: Weights
    reverse: bool
    lengths: Tensor | None
    h_0: Tensor
    c_0: Tensor
    output: Tensor
    cells: Tensor  # [T, B, H], or [number of windows, B, H]: those that each window starts from
    has_all_cells: bool
    gates: Tensor | None  # if they were kept
    grad_output: Tensor | None
    grad_h_n: Tensor | None
    grad_c_n: Tensor | None
    grad_cells: Tensor | None
    grad_h_0: Tensor  # the results
    grad_c_0: Tensor

    def cells_before(self, index: int, time: slice) -> Tensor:
        """[B, H]: the cells that a window starts from."""
        if not self.has_all_cells:
            return self.cells[index]
        if index == 0:
            return self.c_0
        return self.cells[time.stop if self.reverse else time.start - 1]


def _gates_again(layer: _Saved, before: Tensor, c: Tensor, time: slice) -> tuple[Tensor, Tensor]:
    """(gates [n, B, 4H], cells [n, B, H]) of a window, from the hidden states [n, B, H] that its steps started from."""
    (steps, batch, size), weights = before.shape, layer.weights
    z = linear(before, weights.weight_hh)
    if layer.x is not None:
        rows, frames = layer.x.seen(time)
        _add_linear(z[rows], frames, weights.weight_ih)
    cells = c.new_empty(steps, batch, size)
    _native.lstm_sequence_cpu(
        "fwd",
        steps=steps,
        batch=batch,
        hidden=size,
        dtype=before.dtype,
        reverse=layer.reverse,
        blind=False,
        projection=z,
        bias=weights.bias,
        weight_hh=None,  # what it would multiply is in `z` already
        peephole=weights.peephole,
        h_0=layer.h_0,
        c_0=c,
        lengths=_lengths_in(layer.lengths, time),
        output=torch.empty_like(before),
        h_n=torch.empty_like(layer.h_0),
        c_n=torch.empty_like(c),
        cells=cells,
        gates=z,
    )
    return z, cells


def _add_weight_gradients(
    totals: Totals,
    place: int,
    layer: _Saved,
    time: slice,
    grad_gates: Tensor,
    before: Tensor,
    of_peephole: Tensor | None,
) -> None:
    """A window's gradients of the weights that the layer has, to those of the windows before.

    `before` [n, B, H]: the hidden states that its steps started from.
    """
    factors = [(grad_gates, before)]
    if layer.x is not None:
        rows, frames = layer.x.seen(time)
        factors.insert(0, (grad_gates[rows], frames))
    vectors = [] if layer.weights.bias is None else [grad_gates.sum((0, 1))]
    vectors += [] if of_peephole is None else [of_peephole]
    sums = totals.sums[place]
    if not sums:
        totals.add(place, [over_steps(left, right) for left, right in factors] + vectors)
        return
    for total, (left, right) in zip(sums, factors, strict=False):
        over_steps(left, right, total)
    for total, vector in zip(sums[len(factors) :], vectors, strict=True):
        total += vector


def _backward(layer: _Saved, parts: list[Window], totals: Totals | None, place: int) -> Iterator[Tensor]:
    """The gradients of the gates [n, B, 4H] of each window, last one first.

    Those of the weights are added to `totals`, if they are needed.
    """
    steps, batch, size = layer.output.shape
    grad_h, grad_c = layer.grad_h_n, layer.grad_c_n
    workspace = _native.Workspace()
    for index, part in reversed(list(enumerate(parts))):
        time = part.times(steps, layer.reverse)
        c, peephole = layer.cells_before(index, time), layer.weights.peephole
        before = None
        if totals is not None or layer.gates is None:
            before = origins(layer.h_0, layer.lengths, part, steps, layer.reverse).states(layer.output)
        if layer.gates is None:
            gates, cells = _gates_again(layer, before, c, time)
        else:
            gates, cells = stretch(layer.gates, time), stretch(layer.cells, time)
        grad_gates = _native.empty(gates.shape, gates.dtype)
        grad_peephole = torch.empty_like(peephole) if peephole is not None and totals is not None else None
        _native.lstm_sequence_cpu(
            "bwd",
            workspace,
            steps=part.end - part.first,
            batch=batch,
            hidden=size,
            dtype=gates.dtype,
            reverse=layer.reverse,
            weight_hh=layer.weights.weight_hh,
            peephole=peephole,
            c_0=c,
            cells=cells,
            gates=gates,
            lengths=_lengths_in(layer.lengths, time),
            grad_output=stretch(layer.grad_output, time),
            grad_h_n=grad_h,
            grad_c_n=grad_c,
            grad_cells=stretch(layer.grad_cells, time),
            grad_gates=grad_gates,
            grad_h_0=layer.grad_h_0,
            grad_c_0=layer.grad_c_0,
            grad_peephole=grad_peephole,
        )
        grad_h, grad_c = layer.grad_h_0, layer.grad_c_0  # in place from one window to the next
        if totals is not None:
            _add_weight_gradients(totals, place, layer, time, grad_gates, before, grad_peephole)
        yield grad_gates


def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    inputs: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    output: Tensor,
    hidden: Tensor,
    cells: Tensor,
    gates: Tensor,
    steps: int,
    bias: bool,
    peephole: bool,
    reverse: Sequence[bool],
    all_cells: bool,
    recompute: bool,
    chunk: int,
    need_inputs: bool,
    need_weights: bool,
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """As the operator's schema says; lists are empty where not needed."""
    groups, num_layers, batch, _ = h_0.shape
    h_0, c_0, inputs = h_0.contiguous(), c_0.contiguous(), [x.contiguous() for x in inputs]
    lengths = None if lengths is None else lengths.contiguous()
    given = (grad_output, grad_h_n, grad_c_n, grad_cells)
    grad_output, grad_h_n, grad_c_n, grad_cells = [None if grad is None else grad.contiguous() for grad in given]
    if batch == 0 or steps == 0:
        return gradients_of_nothing(h_0, c_0, inputs, weights, grad_h_n, grad_c_n, need_inputs, need_weights)
    parts = windows(steps, chunk) if recompute else _windows(h_0, steps)
    layers = layer_weights(weights, bool(inputs), num_layers, bias, peephole)
    totals = Totals(len(layers), len(parts) > 1, c_0.dtype) if need_weights else None
    grad_h_0, grad_c_0 = torch.empty_like(h_0), torch.empty_like(c_0)
    grad_inputs: list[Tensor] = []
    for group in range(groups):
        grad_y = None if grad_output is None else grad_output[group]
        for index in reversed(range(num_layers)):
            at, place = (group, index), group * num_layers + index
            x = _frames(inputs, group, h_0.dtype, steps, reverse)
            if index:
                x = Frames(hidden[group, index - 1], steps, reverse[group], h_0.dtype)
            layer = _Saved(
                x=x,
                weights=layers[place],
                reverse=reverse[group],
                lengths=lengths,
                h_0=h_0[at],
                c_0=c_0[at],
                output=output[group] if index == num_layers - 1 else hidden[at],
                cells=cells[at],
                has_all_cells=all_cells or not recompute,
                gates=None if recompute else gates[at],
                grad_output=grad_y,
                grad_h_n=None if grad_h_n is None else grad_h_n[at],
                grad_c_n=None if grad_c_n is None else grad_c_n[at],
                grad_cells=None if grad_cells is None else grad_cells[at],
                grad_h_0=grad_h_0[at],
                grad_c_0=grad_c_0[at],
            )
            below: list[Tensor] = []
            for grad_gates in _backward(layer, parts, totals, place):
                if index or need_inputs:
                    below.append(input_gradient(grad_gates, layers[place].weight_ih))
            if below:
                order = below if reverse[group] else below[::-1]
                grad_y = order[0] if len(order) == 1 else torch.cat(order)
        if need_inputs:
            grad_inputs.append(_frames(inputs, group, h_0.dtype, steps, reverse).gradient(grad_y).contiguous())
    if need_inputs and len(inputs) < groups:
        grad_inputs = [torch.stack(grad_inputs).sum(0)]
    return grad_inputs, grad_h_0, grad_c_0, [] if totals is None else totals.flat(h_0.dtype)
