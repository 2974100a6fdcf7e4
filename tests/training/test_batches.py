from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from lstmvid.training.base import step_seed
from lstmvid.training.config import DataConfig
from lstmvid.training.data import (
    EVALUATION,
    TRAINING,
    VALIDATION,
    FixedBatches,
    TrainingBatches,
    batch_index,
    sequences,
)
from lstmvid.training.module import SequencesModule


def test_ranks_and_steps_share_no_batch():
    for world_size in (1, 2, 3, 8):
        indices = [batch_index(step, rank, world_size) for step in range(50) for rank in range(world_size)]
        assert sorted(indices) == list(range(50 * world_size))


def test_step_seeds_differ():
    seeds = {step_seed(*numbers) for numbers in itertools.product(range(5), range(200), range(4))}
    assert len(seeds) == 5 * 200 * 4


class Indices:
    """Stands in for the generator: a batch says which one it is."""

    def batch(self, index: int, batch_size: int) -> torch.Tensor:
        return torch.tensor([index, batch_size])


@pytest.mark.parametrize("stays", [False, True])
def test_where_a_batch_goes(stays):
    module = SequencesModule(DataConfig(in_host_memory=stays), batch_size=2, seed=0)
    moved = module.transfer_batch_to_device(torch.zeros(3, 2, 1, 64, 64), torch.device("meta"), 0)
    assert moved.device.type == ("cpu" if stays else "meta")


def test_training_goes_on_where_it_stopped_with_any_number_of_workers():
    def first(count: int, start: int, workers: int) -> list[int]:
        batches = TrainingBatches(Indices(), 4, start=start, rank=1, world_size=3)
        loader = DataLoader(batches, batch_size=None, num_workers=workers)
        return [batch[0].item() for batch in itertools.islice(loader, count)]

    straight = first(7, 0, 0)
    assert straight == [1, 4, 7, 10, 13, 16, 19]
    assert first(4, 3, 0) == straight[3:]
    assert first(7, 0, 2) == straight


def test_validation_has_every_sequence_once():
    ranks = [FixedBatches(Indices(), 10, 4, rank=rank, world_size=2) for rank in range(2)]
    batches = sorted(tuple(batch[i].tolist()) for batch in ranks for i in range(len(batch)))
    assert batches == [(0, 4), (1, 4), (2, 2)]


def test_streams_use_disjoint_digits(digits_file):
    data = DataConfig(digits=str(digits_file), validation_fraction=0.25)
    training, validation, evaluation = (sequences(data, 3, stream) for stream in (TRAINING, VALIDATION, EVALUATION))
    seen = {digit.numpy().tobytes() for digit in training.digits}
    assert not seen & {digit.numpy().tobytes() for digit in validation.digits}
    assert torch.equal(validation.digits, evaluation.digits)
    assert not torch.equal(validation.batch(0, 3), evaluation.batch(0, 3))
    assert len(training.digits) + len(validation.digits) == 20
