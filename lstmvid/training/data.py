"""The run's sequences in batches: what a rank sees at a step depends on the seed, the step and the rank alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from lstmvid.data import MovingMNIST, ShuffledBatches, load_digits, open_source, split_digits
from lstmvid.data.registry import MOVING_MNIST
from lstmvid.data.sequences import Batches, Clips, Cut, Splits, spread, stack
from lstmvid.training.config import DataConfig

# Streams of sequences with nothing in common, each a seed of its own: 3 * seed + stream.
TRAINING, VALIDATION, EVALUATION = range(3)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The sequences of a run.

    Args:
        training: batches without end.
        validation, test: batches without end, or a finite data set.
        splits: the data set that they come from; None for Moving MNIST, which is made on the fly.
    """

    training: Batches
    validation: Batches | Clips
    test: Batches | Clips
    splits: Splits | None = None

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of a single frame."""
        return self.training.frame_shape


def open_streams(data: DataConfig, seed: int) -> Streams:
    """Open the data set that the settings name.

    Raises:
        ValueError, FileNotFoundError: naming the setting or the file, before any work has begun.
    """
    if data.source == MOVING_MNIST:
        digits = load_digits(data.digits)
        training, validation, test = (
            _moving_mnist(data, seed, stream, digits) for stream in (TRAINING, VALIDATION, EVALUATION)
        )
        return Streams(training=training, validation=validation, test=test)
    cut = Cut(
        input_frames=data.input_frames,
        target_frames=data.target_frames,
        validation_fraction=data.validation_fraction,
        seed=seed,
    )
    splits = open_source(data.source, data.path, cut, data.options)
    shapes = {part.frame_shape for part in (splits.training, splits.validation, splits.test)}
    if len(shapes) > 1:
        raise ValueError(f"{data.path} has frames of different shapes, {sorted(shapes)}, expected one")
    return Streams(
        training=ShuffledBatches(splits.training, 3 * seed + TRAINING),
        validation=splits.validation,
        test=splits.test,
        splits=splits,
    )


def sequences(data: DataConfig, seed: int, stream: int) -> MovingMNIST:
    """Moving MNIST's sequences of one stream: training digits for `TRAINING`, digits it never sees for the others."""
    return _moving_mnist(data, seed, stream, load_digits(data.digits))


def _moving_mnist(data: DataConfig, seed: int, stream: int, digits: Tensor) -> MovingMNIST:
    training, held_out = split_digits(digits, data.validation_fraction, seed)
    return MovingMNIST(
        training if stream == TRAINING else held_out,
        num_frames=data.input_frames + data.target_frames,
        num_digits=data.num_digits,
        frame_size=data.frame_size,
        step_length=data.step_length,
        seed=3 * seed + stream,
    )


def batch_index(step: int, rank: int, world_size: int) -> int:
    """Which of the endless batches a rank takes at a step: no two ranks or steps share one."""
    return step * world_size + rank


def worker_steps(start: int) -> Iterator[int]:
    """The steps from `start` on, without end, whose batches this process makes, a worker of a DataLoader or none.

    A DataLoader asks its workers in turn, so each makes every n-th batch and the order is that of the steps.
    """
    worker = get_worker_info()
    return itertools.count(start) if worker is None else itertools.count(start + worker.id, worker.num_workers)


def available(source: Batches | Clips, wanted: int) -> int:
    """How many of the wanted sequences a source has."""
    return wanted if hasattr(source, "batch") else min(wanted, len(source))


class TrainingBatches(IterableDataset):
    """Batches from a step on, without end: ``(T, B, *frame_shape)``, uint8 or float32."""

    def __init__(self, source: Batches, batch_size: int, *, start: int, rank: int, world_size: int) -> None:
        self.source, self.batch_size = source, batch_size
        self.start, self.rank, self.world_size = start, rank, world_size

    def __iter__(self) -> Iterator[Tensor]:
        for step in worker_steps(self.start):
            yield self.source.batch(batch_index(step, self.rank, self.world_size), self.batch_size)


class FixedBatches(Dataset):
    """A fixed number of sequences in batches, those of one rank; the last batch may be smaller.

    Args:
        source: of a finite one the sequences are spread over the whole.
        count: how many; a finite source may have fewer.
        batch_size: sequences in a batch.
        rank, world_size: which of the batches.
    """

    def __init__(
        self, source: Batches | Clips, count: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        count = available(source, count)
        self.source = source if hasattr(source, "batch") else spread(source, count)
        sizes = [min(batch_size, count - first) for first in range(0, count, batch_size)]
        self.batch_size = batch_size
        self.mine = list(enumerate(sizes))[rank::world_size]

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, position: int) -> Tensor:
        index, size = self.mine[position]
        if hasattr(self.source, "batch"):
            return self.source.batch(index, size)
        first = index * self.batch_size
        return stack(self.source, range(first, first + size))
