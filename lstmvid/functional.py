"""Stateless LSTMs: the operators behind checked arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import streaming
from .backends.frames import as_operand
from .ops import LayerWeights, LSTMResult, autocast_dtype, lstm_sequence

__all__ = ["as_frames", "lstm"]


def as_frames(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """`uint8` frames as `dtype`, scaled by 1/255 to [0, 1]; others are returned as they are."""
    return as_operand(frames, dtype) if frames.dtype == torch.uint8 else frames


def lstm(
    input: Tensor | None,
    state: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    *,
    steps: int | None = None,
    lengths: Tensor | None = None,
    peephole: Sequence[Tensor] | None = None,
    all_cells: bool = False,
    truncate: int | None = None,
    backend: str = "auto",
    recompute: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """A stack of LSTM layers over a whole sequence, with or without input.

    Args:
        input: frames `(T, B, D)`, `uint8` scaled by 1/255 on the fly; or None to run `steps` steps without input. Where
            the others are on a GPU it may lie in host memory, pinned or not: the backends `cuda` and `triton` then
            bring it a window of time at a time, and the others as a whole. It has no gradient there.
        state: `(h_0, c_0)`, each `(L, B, H)`.
        weights: a flat list in `torch.nn.LSTM`'s order, for each layer `weight_ih (4H, D)`, `weight_hh (4H, H)` and,
            if there are biases, `bias_ih`, `bias_hh (4H,)`. Without input the first layer has no `weight_ih`.
        steps: number of steps; needed without input only.
        lengths: `(B,)` integers: steps of each sequence. Output is zero behind them, `h_n` and `c_n` are the states at
            each sequence's own end. What stands in the padding must be finite.
        peephole: a `(3H,)` tensor for each layer, order i, f, o.
        all_cells: also return the top layer's cell state after every step, `(T, B, H)`.
        backend: who runs it; see `lstmvid.LSTM`.
        truncate: gradients don't flow through the states from one stretch of so many steps to the one before
            (truncated backpropagation through time); what comes out is the same.
        recompute: see `lstmvid.LSTM`.

    Returns:
        `output (T, B, H)`, `(h_n, c_n)` each `(L, B, H)`, and the cell states if asked for.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, number of elements or device.
        BackendUnavailable: the backend that was named can't run this call.
    """
    h_0, c_0 = state
    steps = _check(input, h_0, c_0, steps)
    layers = _layers(input, h_0, weights, peephole)
    if lengths is not None:
        lengths = _check_lengths(lengths, h_0.size(1), steps, h_0.device)
    options = {"all_cells": all_cells, "backend": backend, "recompute": recompute}
    frames = [] if input is None else [input]
    start = h_0.unsqueeze(0), c_0.unsqueeze(0)
    if truncate is None:
        result = lstm_sequence(frames, *start, [layers], steps=steps, lengths=lengths, **options)
    else:
        if truncate < 1:
            raise ValueError(f"truncate must be at least 1, got {truncate}")
        result = _truncated(frames, start, layers, steps, lengths, truncate, options)
    output, final = result.output.squeeze(0), (result.h_n.squeeze(0), result.c_n.squeeze(0))
    return (output, final, result.cells[0, -1]) if all_cells else (output, final)


def _truncated(frames, state, layers, steps: int, lengths, truncate: int, options: dict) -> LSTMResult:
    """As one call, in stretches that begin with the states of the one before, but not with their gradients."""
    parts = []
    for first in range(0, steps, truncate):
        last = min(first + truncate, steps)
        if parts:
            state = parts[-1].h_n.detach(), parts[-1].c_n.detach()
        remaining = None if lengths is None else (lengths - first).clamp(0, last - first)
        xs = [x[first:last] for x in frames]
        parts.append(lstm_sequence(xs, *state, [layers], steps=last - first, lengths=remaining, **options))
    cells = torch.cat([part.cells for part in parts], 2) if options["all_cells"] else None
    return LSTMResult(torch.cat([part.output for part in parts], 1), parts[-1].h_n, parts[-1].c_n, cells)


def _check(input: Tensor | None, h_0: Tensor, c_0: Tensor, steps: int | None) -> int:
    if h_0.dim() != 3 or c_0.shape != h_0.shape:
        raise ValueError(
            f"state must be two tensors (L, B, H) of one shape, got {tuple(h_0.shape)} and {tuple(c_0.shape)}"
        )
    if not h_0.is_floating_point():
        raise TypeError(f"state must be floating point, got {h_0.dtype}")
    if input is None:
        if steps is None or steps < 1:
            raise ValueError(f"steps must be a positive number when there is no input, got {steps}")
        return steps
    if input.dim() != 3 or input.size(1) != h_0.size(1):
        raise ValueError(f"input must be (T, {h_0.size(1)}, D) to match the state, got {tuple(input.shape)}")
    if input.dtype not in (torch.uint8, h_0.dtype) and autocast_dtype(h_0.device.type) is None:
        raise TypeError(f"input has dtype {input.dtype}, the state has {h_0.dtype}")
    streaming.check_place("input is", input, h_0.device, "the state is")
    if steps is not None and steps != input.size(0):
        raise ValueError(f"steps is {steps}, but input has {input.size(0)} frames")
    if input.size(0) == 0:
        raise ValueError("input must have at least one frame, got an empty sequence")
    return input.size(0)


def _layers(input: Tensor | None, h_0: Tensor, weights: Sequence[Tensor], peephole) -> list[LayerWeights]:
    """The flat list as layers, every shape checked: a kernel is never handed a tensor smaller than it reads."""
    layers, size = h_0.size(0), h_0.size(2)
    total = len(weights) + (1 if input is None else 0)
    if total != 2 * layers and total != 4 * layers:  # `in` does not trace with symbolic sizes
        raise ValueError(
            f"weights must hold 2 tensors a layer, or 4 with biases, for {layers} layers"
            f"{' (one less: no input)' if input is None else ''}, got {len(weights)}"
        )
    if peephole is not None and len(peephole) != layers:
        raise ValueError(f"peephole must hold one tensor for each of {layers} layers, got {len(peephole)}")
    queue, result = iter(weights), []
    for index in range(layers):
        width = size if index else (None if input is None else input.size(2))
        shapes = {} if width is None else {"weight_ih": (4 * size, width)}
        shapes["weight_hh"] = (4 * size, size)
        if total == 4 * layers:
            shapes |= {"bias_ih": (4 * size,), "bias_hh": (4 * size,)}
        found = {name: next(queue) for name in shapes}
        if peephole is not None:
            shapes["peephole"], found["peephole"] = (3 * size,), peephole[index]
        for name, shape in shapes.items():
            if tuple(found[name].shape) != shape:
                raise ValueError(f"{name} of layer {index} must be {shape}, got {tuple(found[name].shape)}")
            if found[name].dtype != h_0.dtype and autocast_dtype(h_0.device.type) is None:
                raise TypeError(f"{name} of layer {index} has dtype {found[name].dtype}, the state has {h_0.dtype}")
            if found[name].device != h_0.device:
                raise ValueError(f"{name} of layer {index} is on {found[name].device}, the state on {h_0.device}")
        result.append(LayerWeights(**{"weight_ih": None} | found))
    return result


def _check_lengths(lengths: Tensor, batch: int, steps: int, device: torch.device) -> Tensor:
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"lengths must be ({batch},), got {tuple(lengths.shape)}")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    # Looking at the values would make the host wait for a GPU; there the kernel clamps by its own mask.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            raise ValueError(f"lengths must lie in [0, {steps}], got {low} to {high}")
    return lengths.to(device=device, dtype=torch.int64)
