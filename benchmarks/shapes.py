"""What is measured: the shapes, the work in each, and the default sets for a device.

Sizes: `T` steps, `B` batch, `D` frame size, `H` hidden units, `L` layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

MODES = ("forward", "forward+backward", "generation")
MODELS = {"lstm": MODES[:2], "composite": MODES}

# tf32 is float32 with the GPU's short multiplier, in torch.nn.LSTM (where it is torch's default) and in the GEMM alike.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE_DTYPES = {"cpu": ("fp32", "bf16"), "cuda": tuple(DTYPES)}

CONTEXT = 10  # frames that the encoder sees before a generation


@dataclass(frozen=True)
class Case:
    """One model at one size, and the modes in which it is measured.

    `steps` is how far an LSTM is unrolled: an `"lstm"`'s frames; a `"composite"`'s frames to see, and again as many
    to reconstruct and to predict; in generation the frames to predict, after `CONTEXT` frames that are seen.
    """

    model: str = "lstm"
    steps: int = 20
    batch: int = 16
    frame_shape: tuple[int, ...] = (32, 32)
    hidden_size: int = 1024
    num_layers: int = 1
    dtype: str = "fp32"
    modes: tuple[str, ...] = MODES[:2]

    @property
    def frame_size(self) -> int:
        return math.prod(self.frame_shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def __str__(self) -> str:
        sizes = f"T={self.steps} B={self.batch} D={self.frame_size} H={self.hidden_size} L={self.num_layers}"
        return f"{sizes} {self.dtype}"

    def describe(self, mode: str) -> dict:
        """A row's sizes and work, for the JSON file."""
        return {
            "model": self.model,
            "mode": mode,
            "steps": self.steps,
            "batch": self.batch,
            "frame_shape": list(self.frame_shape),
            "frame_size": self.frame_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "dtype": self.dtype,
            "flops": self.flops(mode),
            "bytes": self.bytes(mode),
        }

    def stacks(self, mode: str) -> list[Stack]:
        """The LSTMs that a call runs."""
        if self.model == "lstm":
            return [self._stack(self.steps, self.frame_size)]
        if mode == "generation":
            return [self._stack(CONTEXT, self.frame_size), self._stack(self.steps, self.frame_size, per_step=True)]
        return [self._stack(self.steps, size) for size in (self.frame_size, 0, self.frame_size)]

    def _stack(self, steps: int, input_size: int, per_step: bool = False) -> Stack:
        return Stack(steps, self.batch, input_size, self.hidden_size, self.num_layers, per_step)

    def heads(self, mode: str) -> int:
        """How many frames (of a batch each) a call reads from hidden states."""
        if self.model == "lstm":
            return 0
        return self.steps if mode == "generation" else 2 * self.steps

    def flops(self, mode: str) -> int:
        """What the function needs, for ours and for the baseline alike: products with zero frames don't count."""
        stacks = sum(stack.flops(backward=mode == "forward+backward") for stack in self.stacks(mode))
        head = 2 * self.batch * self.hidden_size * self.frame_size * self.heads(mode)
        return stacks + head * (3 if mode == "forward+backward" else 1)

    def bytes(self, mode: str) -> int:
        """What has to move between memory and a processor that keeps no weights between steps.

        The weights of a recurrence are read in every step, others once; frames and hidden states are read or written
        once; backward does all that again and writes the gradients. More than memory can deliver in the measured time
        means that weights stayed on the chip.
        """
        stacks = self.stacks(mode)
        head = self.hidden_size * self.frame_size * bool(self.heads(mode))
        moved = sum(stack.moved() for stack in stacks) + self.batch * self.frame_size * self.heads(mode)
        moved += head * (self.steps if mode == "generation" else 2)
        if mode == "forward+backward":
            moved = 2 * moved + sum(stack.weights() for stack in stacks) + 2 * head
        return moved * self.torch_dtype.itemsize

    def footprint(self) -> int:
        """Bytes that checking and timing take, roughly: several copies of the model, one of them in float64."""
        mode = self.modes[-1]
        weights = sum(stack.weights() for stack in self.stacks(mode)) + 2 * self.hidden_size * self.frame_size
        states = sum(stack.steps * stack.batch * (8 * stack.hidden * stack.layers) for stack in self.stacks(mode))
        frames = self.batch * self.frame_size * (2 * self.steps + 4 * self.heads(mode))
        gradients = 2 if "forward+backward" in self.modes else 1
        copies = 5 * self.torch_dtype.itemsize + 8
        return weights * gradients * copies + (states + frames) * (8 + 2 * self.torch_dtype.itemsize)


@dataclass(frozen=True)
class Stack:
    """An LSTM of `layers` layers over `steps` frames of `input_size` values (0: without input)."""

    steps: int
    batch: int
    input_size: int
    hidden: int
    layers: int
    per_step: bool = False  # called step by step, so that input weights are read in each, too

    def _layer_inputs(self) -> int:
        return self.input_size + (self.layers - 1) * self.hidden

    def weights(self) -> int:
        return 4 * self.hidden * (self._layer_inputs() + self.layers * self.hidden)

    def flops(self, *, backward: bool) -> int:
        """Of the matrix products; backward: those of all weights, of the states and of the frames between layers."""
        per_unit = 8 * self.steps * self.batch * self.hidden
        recurrent = per_unit * self.layers * self.hidden
        forward = recurrent + per_unit * self._layer_inputs()
        between = per_unit * (self.layers - 1) * self.hidden
        return 2 * forward + recurrent + between if backward else forward

    def moved(self) -> int:
        """Values that a forward pass moves, see `Case.bytes`."""
        inputs = 4 * self.hidden * self._layer_inputs() * (self.steps if self.per_step else 1)
        recurrent = 4 * self.hidden * self.hidden * self.layers * self.steps
        return inputs + recurrent + self.steps * self.batch * (self.input_size + self.layers * self.hidden)


PAPER = {"batch": 80, "frame_shape": (64, 64), "hidden_size": 2048}
GENERATION = ("generation",)

# The two shapes whose ratio the project states on every device (the second one in fp32 and bf16).
KEY_CASES = [
    Case(steps=20, **PAPER),
    Case(steps=100, num_layers=2),
    Case(steps=100, num_layers=2, dtype="bf16"),
]

# In the order of interest, since a busy machine doesn't get through all of them.
QUICK_CASES = {
    "cpu": [
        Case(steps=20, hidden_size=512),
        Case("composite", 10, 16, (64, 64), 256, modes=MODES[:2]),
        Case("composite", 50, 1, (64, 64), 256, modes=GENERATION),
        Case(steps=20, hidden_size=512, dtype="bf16"),
        Case(steps=20, hidden_size=256),
        Case(steps=100, hidden_size=256),
    ],
    "cuda": [
        Case(steps=20, dtype="bf16", **PAPER),
        Case("composite", 10, dtype="bf16", modes=MODES[:2], **PAPER),
        Case("composite", 100, 1, (64, 64), 2048, dtype="bf16", modes=GENERATION),
        Case(steps=100, dtype="bf16"),
    ],
}


def default_cases(device: str) -> list[Case]:
    """The shapes that the project reports for a device: about ten minutes' worth on two CPU cores."""
    if device == "cpu":
        unrolls = itertools.chain(
            ((steps, 256) for steps in (10, 20, 50, 100, 200, 500, 1000)),
            ((steps, 1024) for steps in (10, 20, 50, 100)),
        )
        grid = [
            *(Case(steps=steps, hidden_size=hidden) for steps, hidden in unrolls),
            *(Case(steps=steps, dtype="bf16") for steps in (20, 100)),
            Case(batch=1),
            Case(batch=80),
            Case(frame_shape=(64, 64)),
        ]
        composite = [
            *(Case("composite", steps, 16, (64, 64), 512, modes=MODES[:2]) for steps in (10, 20, 50)),
            Case("composite", 10, 80, (64, 64), 512, dtype="bf16", modes=MODES[:2]),
            Case("composite", 10, 16, (32, 32), 1024, num_layers=2, modes=MODES[:2]),
            Case("composite", 10, modes=MODES[:2], **PAPER),
            Case("composite", 100, 1, (32, 32), 1024, modes=GENERATION),
            Case("composite", 100, 16, (32, 32), 1024, modes=GENERATION),
            Case("composite", 50, 1, (64, 64), 2048, modes=GENERATION),
        ]
        return [*KEY_CASES, *grid, *composite]
    grid = [
        Case(steps=steps, hidden_size=hidden, dtype="bf16")
        for hidden, steps in itertools.product((256, 1024, 2048), (10, 100, 1000))
    ]
    composite = [
        *(Case("composite", 10, num_layers=2, dtype=dtype, modes=MODES[:2], **PAPER) for dtype in ("tf32", "bf16")),
        Case("composite", 100, num_layers=2, dtype="bf16", modes=MODES[:2], **PAPER),
        Case("composite", 100, 1, (64, 64), 2048, dtype="bf16", modes=GENERATION),
        Case("composite", 100, 80, (64, 64), 2048, dtype="bf16", modes=GENERATION),
        Case("composite", 100, 1, (32, 32), 256, dtype="bf16", modes=GENERATION),
    ]
    return [
        *(Case(steps=steps, dtype="bf16", **PAPER) for steps in (20, 100, 1000)),
        # Nearly the recurrence alone: what the library multiplies, both have in common.
        *(Case(steps=steps, dtype="bf16", **PAPER | {"frame_shape": (1,)}) for steps in (20, 100, 1000)),
        Case(steps=100, dtype="bf16", **PAPER | {"frame_shape": (1,), "batch": 16}),
        # cuDNN's best case: its kernel that keeps the weights on the chip takes half precision and H <= 1024 only.
        Case(steps=1024, frame_shape=(768,), hidden_size=768, dtype="fp16"),
        *composite[:2],
        Case(steps=20, dtype="tf32", **PAPER),
        *KEY_CASES,
        *grid,
        *composite[2:],
    ]


def grid_cases(
    models: Iterable[str],
    steps: Iterable[int],
    batches: Iterable[int],
    frame_shapes: Iterable[tuple[int, ...]],
    hidden_sizes: Iterable[int],
    num_layers: Iterable[int],
    dtypes: Iterable[str],
) -> list[Case]:
    """Every combination of the given sizes, in every mode."""
    return [
        Case(*sizes, modes=MODELS[sizes[0]])
        for sizes in itertools.product(models, steps, batches, frame_shapes, hidden_sizes, num_layers, dtypes)
    ]
