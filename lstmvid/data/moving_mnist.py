"""Moving MNIST: digits that bounce inside a box, made on the fly or read from the published test set.

The generator is that of Srivastava, Mansimov and Salakhutdinov, "Unsupervised Learning of Video Representations
using LSTMs" (arXiv 1502.04681), section 3.1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lstmvid.data.arguments import integer

_PUBLISHED_SHAPE = (20, 64, 64)  # frames, height, width


def trajectories(
    x0: Any, y0: Any, theta: Any, steps: int, *, step_length: float = 0.1, canvas: int = 36
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move points in straight lines inside a box whose walls they bounce off.

    A step adds ``step_length * (cos(theta), sin(theta))`` to ``(x, y)``; a coordinate that reaches or leaves
    ``[0, 1]`` is clamped to the wall and its velocity flips. The positions after each step are returned, the start
    is not. The arithmetic is float64 throughout, so that the truncated pixels are reproducible to the last one.

    Args:
        x0, y0: start positions in ``[0, 1]``, tensors, arrays or numbers, ``(N,)`` or one for all.
        theta: directions in radians, likewise.
        steps: how many positions to return.
        step_length: distance of a step in units of the box.
        canvas: the box's side in pixels.

    Returns:
        ``(top, left)``, int64 tensors ``(steps, N)`` of pixels in ``[0, canvas]``: y and x, truncated.

    Raises:
        ValueError: naming the argument, what was given and what was expected.
    """
    steps = integer("steps", steps, minimum=1)
    canvas = integer("canvas", canvas, minimum=0)
    step_length = _step_length(step_length)
    x, y, theta = _vectors(x0=x0, y0=y0, theta=theta)
    for name, start in (("x0", x), ("y0", y)):
        outside = (start < 0) | (start > 1)
        if outside.any():
            raise ValueError(f"{name} contains {start[outside][0]}, expected positions in [0, 1]")

    position = np.stack([y, x])  # [2, N]
    velocity = np.stack([np.sin(theta), np.cos(theta)])
    pixels = np.empty((steps, *position.shape), dtype=np.int64)
    for pixel in pixels:
        position += step_length * velocity
        velocity[(position <= 0) | (position >= 1)] *= -1
        position.clip(0, 1, out=position)
        pixel[:] = canvas * position  # assigning to integers truncates
    top, left = torch.from_numpy(pixels).unbind(1)
    return top, left


class MovingMNIST:
    """An endless supply of Moving MNIST sequences, in batches that depend on the seed and their index alone.

    Digits are drawn uniformly, start uniformly in the box and leave in a uniform direction (see `trajectories`);
    where they overlap, the brighter pixel wins.

    Args:
        digits: uint8 ``(N, S, S)``, as `lstmvid.data.load_digits` gives (``S = 28``).
        num_frames: time steps ``T`` of a sequence.
        num_digits: digits in a sequence.
        frame_size: side of a frame in pixels; the digits' corners move in a box of ``frame_size - S``.
        step_length: distance of a step as a fraction of that box.
        seed: two data sets with different seeds share no trajectories.

    Raises:
        ValueError: naming the argument, what was given and what was expected.
    """

    def __init__(
        self,
        digits: torch.Tensor,
        *,
        num_frames: int = 20,
        num_digits: int = 2,
        frame_size: int = 64,
        step_length: float = 0.1,
        seed: int = 0,
    ) -> None:
        if digits.dtype != torch.uint8 or digits.ndim != 3 or digits.shape[1] != digits.shape[2] or not digits.numel():
            raise ValueError(
                f"digits is {digits.dtype} of shape {tuple(digits.shape)}, "
                "expected torch.uint8 of shape (N, S, S) with N and S > 0"
            )
        self.digits = digits.cpu()
        self.num_frames = integer("num_frames", num_frames, minimum=1)
        self.num_digits = integer("num_digits", num_digits, minimum=1)
        self.frame_size = integer("frame_size", frame_size, minimum=digits.shape[-1])
        self.step_length = _step_length(step_length)
        self.seed = integer("seed", seed, minimum=0)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """``(1, frame_size, frame_size)``."""
        return 1, self.frame_size, self.frame_size

    def batch(self, index: int, batch_size: int) -> torch.Tensor:
        """Make one batch, a pure function of ``(seed, index, batch_size)``.

        Args:
            index: which batch, from 0; a training run that resumes just goes on counting.
            batch_size: sequences ``B``.

        Returns:
            uint8 tensor ``(num_frames, batch_size, 1, frame_size, frame_size)``.
        """
        index = integer("index", index, minimum=0)
        batch_size = integer("batch_size", batch_size, minimum=1)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(index,))))
        objects = (self.num_digits, batch_size)
        x0, y0, turn = rng.random((3, *objects))
        chosen = rng.integers(len(self.digits), size=objects)
        top, left = trajectories(
            x0.ravel(),
            y0.ravel(),
            2 * math.pi * turn.ravel(),
            self.num_frames,
            step_length=self.step_length,
            canvas=self.frame_size - self.digits.shape[-1],
        )
        corners = (self.num_frames, *objects)
        return torch.from_numpy(
            _draw(
                self.digits.numpy()[chosen],
                top.numpy().reshape(corners),
                left.numpy().reshape(corners),
                self.frame_size,
            )
        ).unsqueeze(2)


def read_moving_mnist(path: str | Path) -> torch.Tensor:
    """Open the published Moving MNIST test set, ``mnist_test_seq.npy``.

    The file (819 MB) is memory-mapped, not read: pages come in as they are used. Writing to the tensor is allowed and
    does not reach the file.

    Returns:
        uint8 tensor ``(20, N, 1, 64, 64)``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a NumPy array file, is damaged, or holds another type or shape.
    """
    path = Path(path)
    try:
        # Not np.load: that would also take zip archives and pickles. "c" maps copy-on-write, for torch wants to write.
        sequences = np.lib.format.open_memmap(path, mode="c")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no Moving MNIST file {path}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a NumPy array file, or is damaged: {error}") from error
    shape_matches = sequences.ndim == 4 and (sequences.shape[0], *sequences.shape[2:]) == _PUBLISHED_SHAPE
    if sequences.dtype != np.uint8 or not shape_matches or not sequences.size:
        raise ValueError(
            f"{path} holds {sequences.dtype} of shape {sequences.shape}, "
            "expected uint8 of shape (20, N, 64, 64) with N > 0"
        )
    return torch.from_numpy(sequences).unsqueeze(2)


def _draw(digits: np.ndarray, top: np.ndarray, left: np.ndarray, frame_size: int) -> np.ndarray:
    """Draw digits ``(K, B, S, S)`` at corners ``(T, K, B)`` into frames ``(T, B, frame_size, frame_size)``.

    Each digit lies in the middle of a blank field so large that a frame-sized window, moved over it, shows the digit
    at any place: drawing is then one gather of windows, with no loop over sequences.
    """
    margin = frame_size - digits.shape[-1]
    fields = np.pad(digits, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(fields, (frame_size, frame_size), axis=(2, 3))
    steps, count, batch_size = top.shape
    which, sequence = np.ogrid[:count, :batch_size]
    frames = np.empty((steps, batch_size, frame_size, frame_size), dtype=np.uint8)
    # Step by step, because one step's windows still fit into the cache.
    for step, frame in enumerate(frames):
        windows[which, sequence, margin - top[step], margin - left[step]].max(axis=0, out=frame)
    return frames


def _vectors(**arguments: Any) -> tuple[np.ndarray, ...]:
    """The arguments as finite float64 vectors of one length."""
    vectors = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().double().numpy()
        try:
            vector = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is {value!r}, expected a number or a vector of numbers") from error
        if vector.ndim > 1:
            raise ValueError(f"{name} has shape {vector.shape}, expected (N,) or a single number")
        if not np.isfinite(vector).all():
            raise ValueError(f"{name} contains {vector[~np.isfinite(vector)][0]}, expected finite numbers")
        vectors[name] = np.atleast_1d(vector)
    try:
        return np.broadcast_arrays(*vectors.values())
    except ValueError as error:
        given = ", ".join(f"{name} {len(vector)}" for name, vector in vectors.items())
        raise ValueError(f"{', '.join(vectors)} have different lengths ({given}), expected (N,) each") from error


def _step_length(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"step_length is {value!r}, expected a number") from error
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"step_length is {number}, expected a finite number of at least 0")
    return number
