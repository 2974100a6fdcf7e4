"""A video on its way to a GPU's products: some frames at a time, from wherever it lies, and forgotten behind them.

Frames in host memory are copied by a queue of the device's own, beside its computations, into two buffers in turn; they
become operands (`uint8` by 1/255) on the device. So do frames on the device that are no operands yet. A copy waits
until the products that read its buffer before are done, products wait for their copy, and the host waits only before
it writes memory that is still being copied from. Memory that isn't pinned goes through pinned memory of our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .dense import add_weight_gradient, linear_into
from .frames import Frames, as_operand
from .layers import Weights
from .windows import windows

STREAMING = ("cuda", "triton")  # the backends that read a video through this module
PIECE_BYTES = 64 << 20  # of operands at a time, where a frame of each sequence doesn't take more

Mark = Any  # a point in one of a device's queues


class Queues(Protocol):
    """What a device does at a time: computations, in the order in which torch is called, and copies beside them."""

    def mark(self) -> Mark:
        """What has been asked for of computations until here."""

    def copy(self, target: Tensor, source: Tensor, after: Mark) -> Mark:
        """Queue a copy into device memory, after the computations up to a mark; returns the copy's own."""

    def compute_after(self, copied: Mark) -> None:
        """Let computations that are asked for from here on wait for a copy."""

    def wait(self, copied: Mark) -> None:
        """Let the host wait for a copy."""

    def pinned(self, like: Tensor) -> Tensor:
        """Host memory that copies read while the host goes on."""

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether it lies in such memory."""


class _Streams:
    """A GPU's queues: the stream that is current on it, and one more."""

    def __init__(self, device: torch.device) -> None:
        self.computing, self.copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def mark(self) -> Mark:
        return self.computing.record_event()

    def copy(self, target: Tensor, source: Tensor, after: Mark) -> Mark:
        self.copying.wait_event(after)
        with torch.cuda.stream(self.copying):
            target.copy_(source, non_blocking=True)
        return self.copying.record_event()

    def compute_after(self, copied: Mark) -> None:
        self.computing.wait_event(copied)

    def wait(self, copied: Mark) -> None:
        if not torch.cuda.is_current_stream_capturing():  # a graph reads the memory when it is replayed
            copied.synchronize()

    def pinned(self, like: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("in a CUDA graph a video in host memory must be pinned, and contiguous (T, B, ...)")
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.is_pinned()


def queues_of(device: torch.device) -> Queues:
    """Those of a device, as the calling thread uses it now."""
    return _Streams(device)


def is_elsewhere(given: Tensor, device: torch.device) -> bool:
    """Whether a video lies in host memory while its model is on a GPU."""
    return given.device.type == "cpu" and device.type == "cuda"


def are_converted(given: Tensor, h_0: Tensor) -> bool:
    """Whether frames are floating point numbers that become operands on the way, of whatever dtype they are."""
    return given.dtype != h_0.dtype and is_elsewhere(given, h_0.device) and given.is_floating_point()


class _Slot:
    """A buffer on the device, since when it is free, and the pinned memory on the way to it."""

    buffer: Tensor | None = None
    free: Mark = None
    staging: Tensor | None = None
    staged: Mark = None  # of the copy that reads `staging`


class _Lane:
    """The way of one video from host memory to a device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.queues = device, queues_of(device)
        self.slots, self.turn = (_Slot(), _Slot()), 0
        self.borrowed: Mark = None  # of the last copy that reads the caller's own memory

    def bring(self, frames: Tensor) -> tuple[Tensor, _Slot]:
        """The same [n, B, D] on the device, and where: from what is asked for from here on, until `release`."""
        slot, self.turn = self.slots[self.turn], 1 - self.turn
        if slot.buffer is None or len(slot.buffer) < len(frames):
            slot.buffer = torch.empty(frames.shape, dtype=frames.dtype, device=self.device)
            slot.free = self.queues.mark()  # whoever had the memory before computes with it until here
        is_direct = frames.is_contiguous() and self.queues.is_pinned(frames)
        source = frames if is_direct else self._stage(slot, frames)
        target = slot.buffer[: len(frames)]
        copied = self.queues.copy(target, source, slot.free)
        self.queues.compute_after(copied)
        if is_direct:
            self.borrowed = copied
        else:
            slot.staged = copied
        return target, slot

    def release(self, slot: _Slot) -> None:
        """What reads the slot's buffer has been asked for."""
        slot.free = self.queues.mark()

    def finish(self) -> None:
        """Until the caller's own memory is no longer read: it may be written then."""
        if self.borrowed is not None:
            self.queues.wait(self.borrowed)
        self.borrowed = None

    def _stage(self, slot: _Slot, frames: Tensor) -> Tensor:
        if slot.staged is not None:
            self.queues.wait(slot.staged)
        if slot.staging is None or len(slot.staging) < len(frames):
            slot.staging = self.queues.pinned(frames)
        return slot.staging[: len(frames)].copy_(frames)


class Reader:
    """What a layer reads, as products on a device take it; `frames` of the layers above lie there as they are."""

    def __init__(self, frames: Frames, lane: _Lane | None = None) -> None:
        self.frames, self.lane = frames, lane
        given, dtype = frames.given, frames.dtype
        self.is_in_place = lane is None and given.dtype == dtype and given.is_contiguous()
        self.length = max(PIECE_BYTES // max(given[:1].numel() * dtype.itemsize, 1), 1)

    def pieces(self, time: slice) -> Iterator[tuple[slice, Tensor]]:
        """Of a stretch of time: steps that see a frame, counted from its first, and these frames [n, B, D].

        One part after the other, each good until the next one is asked for; steps that see nothing are in none.
        """
        rows, places = self.frames.places(time)
        count = rows.stop - rows.start
        for part in windows(count, count if self.is_in_place else self.length):
            given = self.frames.given[places.start + part.first : places.start + part.end]
            here = slice(rows.start + part.first, rows.start + part.end)
            if self.lane is None:
                yield here, as_operand(given, self.frames.dtype).contiguous()
                continue
            brought, slot = self.lane.bring(given)
            try:
                yield here, as_operand(brought, self.frames.dtype)
            finally:
                self.lane.release(slot)


def readers(
    inputs: Sequence[Tensor], groups: int, steps: int, reverse: Sequence[bool], h_0: Tensor
) -> tuple[list[Reader], list[_Lane]]:
    """Of each group what its lowest layer reads, or none; and the lanes to `finish` when the call is done.

    `inputs`: as the operator has them; an input that groups share has one lane.
    """
    if not inputs:
        return [], []
    lanes = [_Lane(h_0.device) if is_elsewhere(x, h_0.device) else None for x in inputs]
    sources = range(groups) if len(inputs) > 1 else [0] * groups
    found = [
        Reader(Frames(inputs[source], steps, back, h_0.dtype), lanes[source])
        for source, back in zip(sources, reverse, strict=True)
    ]
    return found, [lane for lane in lanes if lane is not None]


def outputs_read(outputs: Sequence[Tensor], reverse: Sequence[bool]) -> list[Reader]:
    """Of each group what a layer reads of the one below, [T, B, H]."""
    return [Reader(Frames(y, len(y), back, y.dtype)) for y, back in zip(outputs, reverse, strict=True)]


def project_into(z: Tensor, x: Reader, time: slice, weights: Weights) -> None:
    """Fill `z` [n, B, 4H], contiguous, with the projection of what the steps of a stretch of time see, and the bias."""
    for rows, frames in x.pieces(time):
        linear_into(z[rows], frames, weights.weight_ih, weights.bias)
    seeing, _ = x.frames.places(time)
    for blind in (z[: seeing.start], z[seeing.stop :]):
        if len(blind):
            blind.copy_(weights.bias.expand_as(blind)) if weights.bias is not None else blind.zero_()


def input_weight_gradient(grad_gates: Tensor, x: Reader, time: slice, state: torch.dtype) -> Tensor:
    """[4H, D], of `weight_ih` over a stretch of time; `grad_gates` [n, B, 4H].

    Of several parts the sum in the dtype `state`.
    """
    total = None
    for rows, frames in x.pieces(time):
        if total is None or grad_gates.dtype == state:
            total = add_weight_gradient(total, grad_gates[rows], frames)
        else:
            total = total.to(state).add_(add_weight_gradient(None, grad_gates[rows], frames))
    return grad_gates.new_zeros(grad_gates.size(-1), x.frames.given.size(-1)) if total is None else total


def inputs_for(
    name: str, inputs: Sequence[Tensor], steps: int, reverse: Sequence[bool], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """A call's inputs as backend `name` takes them: where they lie, or on the device, or as what every step sees.

    `dtype` is that of the operands, which frames become at the latest where they are multiplied.
    """
    if name != "torch":
        streamed = [name in STREAMING and is_elsewhere(x, device) for x in inputs]
        kept = [x if stays else x.to(device) for x, stays in zip(inputs, streamed, strict=True)]
        return [x if stays or x.dtype == torch.uint8 else x.to(dtype) for x, stays in zip(kept, streamed, strict=True)]
    is_blind = bool(inputs) and len(inputs[0]) < steps
    each = list(inputs) * len(reverse) if is_blind and len(inputs) < len(reverse) else inputs
    return [Frames(x.to(device), steps, back, dtype).whole() for x, back in zip(each, reverse, strict=False)]


def check_place(name: str, x: Tensor, device: torch.device, other: str) -> None:
    """Frames lie where their model is, or in host memory for one on a GPU.

    Args:
        name, other: what lies where, for a sentence: "frames are", "the model is".

    Raises:
        ValueError: they lie elsewhere, or require a gradient that they can't have there.
    """
    if x.device != device and not is_elsewhere(x, device):
        raise ValueError(
            f"{name} on {x.device}, {other} on {device}: frames must lie there, or in host memory for a model on a GPU"
        )
    if is_elsewhere(x, device) and x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} in host memory and can't have a gradient there, {other} on {device}: detach the frames, or move "
            f"them to {device}"
        )
