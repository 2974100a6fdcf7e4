"""Moving MNIST in batches: what a rank sees at a step depends on the seed, the step and the rank alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from lstmvid.data import MovingMNIST, load_digits, split_digits
from lstmvid.training.config import DataConfig

# Streams of sequences with nothing in common, each a seed of its own: 3 * seed + stream.
TRAINING, VALIDATION, EVALUATION = range(3)


def sequences(data: DataConfig, seed: int, stream: int) -> MovingMNIST:
    """The sequences of one stream: training digits for `TRAINING`, the digits it never sees for the others."""
    training, held_out = split_digits(load_digits(data.digits), data.validation_fraction, seed)
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


class TrainingBatches(IterableDataset):
    """Batches from a step on, without end: uint8 ``(T, B, 1, height, width)``."""

    def __init__(self, source: MovingMNIST, batch_size: int, *, start: int, rank: int, world_size: int) -> None:
        self.source, self.batch_size = source, batch_size
        self.start, self.rank, self.world_size = start, rank, world_size

    def __iter__(self) -> Iterator[Tensor]:
        # DataLoader asks its workers in turn, so each makes every n-th batch and the order is that of the steps.
        worker = get_worker_info()
        step, stride = (self.start, 1) if worker is None else (self.start + worker.id, worker.num_workers)
        while True:
            yield self.source.batch(batch_index(step, self.rank, self.world_size), self.batch_size)
            step += stride


class ValidationBatches(Dataset):
    """A fixed number of sequences in batches, those of one rank; the last batch may be smaller."""

    def __init__(self, source: MovingMNIST, count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.source = source
        sizes = [min(batch_size, count - first) for first in range(0, count, batch_size)]
        self.mine = list(enumerate(sizes))[rank::world_size]

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, position: int) -> Tensor:
        return self.source.batch(*self.mine[position])
