"""Inputs and tolerances for checking a backend, and small videos: shared by the tests and by the benchmarks.

A backend is right when, forward and in every gradient, its error against the float64 reference is at most twice the
error of plain torch code in the same dtype plus a floor. Both stand here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .backends import reference
from .backends.reference import closed_loop as closed_loop_definition
from .ops import LayerWeights, closed_loop, lstm_sequence

# Of the largest magnitude in the expected tensor: some units in the last place of each dtype, for the cases in which
# plain torch happens to be exact.
FLOORS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# Options of a `Case` in which a GPU's kernels could go wrong, small enough to be emulated.
GPU_CASES: dict[str, dict] = {
    "plain": {},
    "one of everything": {"steps": 1, "batch": 1, "input_size": 1, "hidden_size": 1},
    "one step": {"steps": 1, "peephole": True, "num_layers": 2},
    "no input": {"input_size": None, "num_layers": 2},
    "no bias": {"bias": False, "hidden_size": 17},
    "peepholes": {"peephole": True, "num_layers": 3, "hidden_size": 19},
    "reverse": {"reverse": (True,), "num_layers": 2, "hidden_size": 40},
    "two directions": {"groups": 2, "reverse": (False, True), "peephole": True, "hidden_size": 70},
    "groups": {"groups": 3, "shared_input": False, "num_layers": 2, "hidden_size": 33},
    "more groups than a launch takes": {"groups": 9, "hidden_size": 20},
    "ragged": {"lengths": (5, 1, 3), "num_layers": 2, "peephole": True, "hidden_size": 50},
    "ragged, reverse, with an empty one": {"lengths": (0, 4, 2), "reverse": (True,), "num_layers": 2},
    "pixels, first step without a frame": {"pixels": True, "blind": True, "num_layers": 2},
    "first step without a frame, two directions": {"blind": True, "groups": 2, "reverse": (False, True)},
    "all cells": {"all_cells": True, "num_layers": 2, "peephole": True},
    "all cells, ragged, reverse": {"all_cells": True, "lengths": (2, 5, 3), "reverse": (True,), "peephole": True},
}


@dataclass
class Case:
    """One call of `lstm_sequence`: sizes and options as there, and the tensors, in float64 but exact in `dtype`."""

    steps: int = 5
    batch: int = 3
    input_size: int | None = 7
    hidden_size: int = 6
    num_layers: int = 1
    groups: int = 1
    shared_input: bool = True
    bias: bool = True
    peephole: bool = False
    lengths: tuple[int, ...] | None = None
    reverse: tuple[bool, ...] = (False,)
    all_cells: bool = False
    blind: bool = False  # the step that runs first sees nothing
    pixels: bool = False  # uint8 frames
    recompute: str = "none"
    chunk: int = 256
    dtype: torch.dtype = torch.float32
    seed: int = 0
    tensors: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.tensors:
            self.tensors = _draw(self)

    def with_dtype(self, dtype: torch.dtype) -> Case:
        """The same call with the same tensors (rounded where it was made), computed in another dtype."""
        return replace(self, dtype=dtype)


def _drawing(case: Case | LoopCase) -> Callable[..., Tensor]:
    """draw(*shape, by=1.0): values of the case's seed, in float64 but exact in its dtype."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int, by: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * by
        return values.to(case.dtype).double()

    return draw


def _draw(case: Case) -> dict[str, list[Tensor]]:
    draw, scale = _drawing(case), case.hidden_size**-0.5
    g, n, t, b, h = case.groups, case.num_layers, case.steps, case.batch, case.hidden_size
    inputs, weights = [], []
    if case.input_size is not None:
        inputs = [draw(t - case.blind, b, case.input_size) for _ in range(1 if case.shared_input else g)]
        if case.pixels:
            inputs = [(255 * x.sigmoid()).round() for x in inputs]
    for layer in range(g * n):
        width = case.input_size if layer % n == 0 else h
        shapes = [] if width is None else [(4 * h, width)]
        shapes += [(4 * h, h)] + ([(4 * h,)] if case.bias else [])
        weights += [draw(*shape, by=scale if len(shape) > 1 else 0.5) for shape in shapes]
        weights += [draw(3 * h, by=0.3)] if case.peephole else []
    return {
        "inputs": inputs,
        "state": [draw(g, n, b, h, by=0.5), draw(g, n, b, h, by=0.5)],
        "weights": weights,
        "seeds": [draw(g, t, b, h), draw(g, n, b, h), draw(g, n, b, h), draw(g, n, t, b, h)],
    }


@dataclass
class LoopCase:
    """One call of `closed_loop`: sizes and options as there, and the tensors, in float64 but exact in `dtype`.

    `mixed`: some of the frames are true ones; `first`: the first step sees a frame.
    """

    steps: int = 5
    batch: int = 3
    frame_size: int = 7
    hidden_size: int = 6
    num_layers: int = 1
    bias: bool = True
    peephole: bool = False
    mixed: bool = False
    first: bool = False
    link: str = "sigmoid"
    dtype: torch.dtype = torch.float32
    seed: int = 0
    tensors: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.tensors:
            self.tensors = _draw_loop(self)

    def with_dtype(self, dtype: torch.dtype) -> LoopCase:
        """As `Case.with_dtype`."""
        return replace(self, dtype=dtype)


def _draw_loop(case: LoopCase) -> dict[str, list[Tensor]]:
    draw, n, t, b, d, h = _drawing(case), case.num_layers, case.steps, case.batch, case.frame_size, case.hidden_size
    weights = []
    for layer in range(n):
        shapes = [(4 * h, h if layer else d), (4 * h, h)] + ([(4 * h,)] if case.bias else [])
        weights += [draw(*shape, by=shape[-1] ** -0.5 if len(shape) > 1 else 0.5) for shape in shapes]
        weights += [draw(3 * h, by=0.3)] if case.peephole else []
    return {
        "first": [draw(b, d)] if case.first else [],
        "state": [draw(n, b, h, by=0.5), draw(n, b, h, by=0.5)],
        "weights": weights,
        "head": [draw(d, h, by=h**-0.5), draw(d, by=0.5)],
        "truth": [draw(max(t - 1, 0), b, d)] if case.mixed else [],
        "own": [draw(max(t - 1, 0), b)] if case.mixed else [],
        "seeds": [draw(t, b, d), draw(n, b, h), draw(n, b, h)],
    }


@dataclass
class Outcome:
    """Named results of a call: output, h_n, c_n (and cells), and the gradient of each input, state and weight."""

    values: dict[str, Tensor]


def run(case: Case, backend: str | None, *, backward: bool = True, device: str = "cpu") -> Outcome:
    """The call on `backend`, or, for None, plain differentiable torch: the reference's forward under autograd."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(device, case.dtype, copy=True).requires_grad_(backward)

    inputs, (h_0, c_0), weights = (list(map(leaf, case.tensors[key])) for key in ("inputs", "state", "weights"))
    inputs = [x.detach().to(torch.uint8) for x in inputs] if case.pixels else inputs
    lengths = None if case.lengths is None else torch.tensor(case.lengths, device=device)
    reverse = list(case.reverse) * (case.groups // len(case.reverse))
    if backend is None:
        # With cell states of the operands' own dtype, all of it is computed in that dtype, as torch code usually is.
        output, h_n, c_n, _, cells, _ = reference.forward(
            *(inputs, h_0, c_0, weights, lengths, case.steps, case.bias, case.peephole, reverse),
            *(False, case.all_cells, False, case.chunk),
        )
    else:
        result = lstm_sequence(
            inputs,
            h_0,
            c_0,
            _nested(case, weights),
            steps=case.steps,
            lengths=lengths,
            reverse=reverse,
            all_cells=case.all_cells,
            backend=backend,
            recompute=case.recompute,
            chunk=case.chunk,
        )
        output, h_n, c_n, cells = result
    values = {"output": output, "h_n": h_n, "c_n": c_n} | ({"cells": cells} if case.all_cells else {})
    if backward:
        seeds = [seed.to(value) for seed, value in zip(case.tensors["seeds"], values.values(), strict=False)]
        leaves = {f"grad_input_{i}": x for i, x in enumerate(inputs) if x.requires_grad}
        leaves |= {"grad_h_0": h_0, "grad_c_0": c_0} | {f"grad_weight_{i}": w for i, w in enumerate(weights)}
        gradients = torch.autograd.grad(list(values.values()), list(leaves.values()), seeds)
        values |= dict(zip(leaves, gradients, strict=True))
    return Outcome({name: value.detach().double() for name, value in values.items()})


def run_loop(case: LoopCase, backend: str | None, *, backward: bool = True, device: str = "cpu") -> Outcome:
    """As `run`, of a closed loop."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(device, case.dtype, copy=True).requires_grad_(backward)

    keys = ("first", "state", "weights", "head", "truth")
    first, (h_0, c_0), weights, head, truth = (list(map(leaf, case.tensors[key])) for key in keys)
    own = [draws.to(device) > 0 for draws in case.tensors["own"]]
    frame, true, mask = (tensors[0] if tensors else None for tensors in (first, truth, own))
    if backend is None:
        options = (case.steps, case.bias, case.peephole, case.link, False)
        results = closed_loop_definition.forward(frame, h_0, c_0, weights, *head, true, mask, *options)[:3]
    else:
        options = {"steps": case.steps, "link": case.link, "truth": true, "own": mask, "backend": backend}
        (layers,) = _nested(Case(num_layers=case.num_layers, bias=case.bias, peephole=case.peephole), weights)
        results = closed_loop(frame, h_0, c_0, layers, *head, **options)
    values = dict(zip(("z", "h_n", "c_n"), results, strict=True))
    if backward:
        seeds = [seed.to(value) for seed, value in zip(case.tensors["seeds"], values.values(), strict=True)]
        named = {"first": first, "state": [h_0, c_0], "weight": weights, "head": head, "truth": truth}
        leaves = {f"grad_{name}_{i}": leaf for name, tensors in named.items() for i, leaf in enumerate(tensors)}
        # In a single step some take no part.
        gradients = torch.autograd.grad(
            list(results), list(leaves.values()), seeds, allow_unused=True, materialize_grads=True
        )
        values |= dict(zip(leaves, gradients, strict=True))
    return Outcome({name: value.detach().double() for name, value in values.items()})


def _nested(case: Case, weights: list[Tensor]) -> list[list[LayerWeights]]:
    queue = iter(weights)
    layers = []
    for index in range(case.groups * case.num_layers):
        has_input = case.input_size is not None or index % case.num_layers > 0
        weight_ih = next(queue) if has_input else None
        weight_hh = next(queue)
        bias = next(queue) if case.bias else None
        # The operator has one bias; torch.nn.LSTM's second one is zero here.
        zero = None if bias is None else torch.zeros_like(bias)
        layers.append(LayerWeights(weight_ih, weight_hh, bias, zero, next(queue) if case.peephole else None))
    return [layers[g * case.num_layers : (g + 1) * case.num_layers] for g in range(case.groups)]


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where `actual` isn't finite or the shapes differ."""
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return float("inf")
    return (actual - expected).abs().max().item() if expected.numel() else 0.0


def check(case: Case | LoopCase, backend: str, *, backward: bool = True, device: str = "cpu") -> dict[str, float]:
    """Assert that `backend` computes `case` as the module's head demands; returns each result's error over its bound.

    Raises:
        AssertionError: names each result that is off, its error and its bound.
    """
    options, call = {"backward": backward, "device": device}, run if isinstance(case, Case) else run_loop
    expected = call(case.with_dtype(torch.float64), None, **options).values
    plain = call(case, None, **options).values
    actual = call(case, backend, **options).values
    assert list(actual) == list(expected)
    ratios, wrong = {}, []
    for name, value in expected.items():
        magnitude = value.abs().max().item() if value.numel() else 0.0
        bound = 2 * error(plain[name], value) + FLOORS[case.dtype] * max(magnitude, 1.0)
        ratios[name] = error(actual[name], value) / bound
        if not ratios[name] <= 1:
            wrong.append(f"{name}: error {error(actual[name], value):.3g}, bound {bound:.3g}")
    assert not wrong, f"{backend} differs from the float64 reference in {case}:\n" + "\n".join(wrong)
    return ratios


def write_video(
    path: Path,
    frames: np.ndarray | int,
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "mpeg4",
    ticks: list[int] | None = None,
    rate: int = 25,
) -> np.ndarray:
    """Encode a small real video.

    Args:
        path: the file, whose suffix says the container; its folder is made if need be.
        frames: RGB, uint8 ``(T, H, W, 3)``, or how many to make of colours that move.
        size: height and width of those that are made.
        codec: FFmpeg's name.
        ticks: the frames' time stamps in units of ``1 / rate`` seconds; one after the other by default.
        rate: frames a second.

    Returns:
        The frames.
    """
    import av

    if isinstance(frames, int):
        height, width = size
        t, y, x = np.ogrid[:frames, :height, :width]
        channels = (t * 9 + y + 0 * x) % 200, (t * 5 + x + 0 * y) % 200, (t * 3 + x + y) % 200
        frames = np.stack([20 + channel for channel in channels], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "rawvideo" else "yuv444p" if codec == "ffv1" else "yuv420p"
        stream.bit_rate = 4_000_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number if ticks is None else ticks[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return frames
