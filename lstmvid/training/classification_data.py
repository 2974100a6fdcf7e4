"""Labelled videos in blocks and batches: what a rank sees at a step depends on seed, step and rank alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lstmvid.data import Percepts, ShuffledBatches
from lstmvid.data.labelled_videos import (
    FrameVideos,
    LabelledVideos,
    Membership,
    drawn_membership,
    few_of_each_class,
    hold_out,
    listed_membership,
    official_membership,
)
from lstmvid.data.sequences import stack
from lstmvid.evaluation.recognition import block_starts
from lstmvid.training.base import BatchesModule
from lstmvid.training.classification_config import RecognitionConfig
from lstmvid.training.data import batch_index, worker_steps


def open_videos(data: RecognitionConfig) -> LabelledVideos:
    """The videos that the settings name.

    Raises:
        ValueError, FileNotFoundError: naming the setting or the file.
    """
    data.check_choices()
    if data.videos is not None:
        return FrameVideos(data.videos, size=data.patch_size, short_side=data.short_side)
    return Percepts(
        data.percepts,
        frame_counts=data.frame_counts,
        labels=data.labels,
        names=data.names,
        dataset=data.dataset,
    )


def choose_videos(videos: LabelledVideos, data: RecognitionConfig, seed: int) -> Membership:
    """Which videos are for training, validation and testing.

    What is for validation is taken out of the training videos first, then those that are to stay are drawn: runs with
    more or fewer videos a class are validated on the same ones.

    Raises:
        ValueError, FileNotFoundError: naming the setting or the file.
    """
    if data.layout is not None:
        parts = official_membership(videos, data.layout, data.splits, data.split, allow_missing=data.allow_missing)
    elif data.train_list is not None:
        parts = listed_membership(videos, data.train_list, data.test_list, allow_missing=data.allow_missing)
    else:
        parts = drawn_membership(videos, data.test_fraction, seed)
    training, validation = hold_out(parts.training, parts.labels, data.validation_fraction, seed)
    if data.videos_per_class is not None:
        training = few_of_each_class(training, parts.labels, data.videos_per_class, seed)
    return dataclasses.replace(parts, training=training, validation=validation)


class Blocks:
    """Blocks of successive frames of some videos: a finite data set.

    Args:
        videos: all videos.
        places: which of them.
        frames: frames of a block.
        stride: frames from the start of a block to that of the next.
        whole: leave out blocks of shorter videos, which could not be stacked with others.

    Attributes:
        video_of: int64, for each block which of `places` it is of, from 0.
        lengths: frames of each block.

    Raises:
        ValueError: there is no block.
    """

    def __init__(
        self, videos: LabelledVideos, places: Sequence[int], frames: int, stride: int, *, whole: bool = False
    ) -> None:
        self.videos, self.places = videos, list(places)
        self._blocks: list[tuple[int, int, int]] = []
        for number, place in enumerate(self.places):
            length = int(videos.lengths[place])
            if whole and length < frames:
                continue
            self._blocks += [
                (number, start, min(start + frames, length)) for start in block_starts(length, frames, stride)
            ]
        if not self._blocks:
            raise ValueError(f"{videos.path} has no block of {frames} frames in {len(self.places)} videos")
        self.video_of = torch.tensor([number for number, _, _ in self._blocks])
        self.lengths = [last - first for _, first, last in self._blocks]
        self.frame_shape = videos.frame_shape

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Tensor:
        number, first, last = self._blocks[index]
        return self.videos.read(self.places[number], first, last)


class TrainingBlocks(IterableDataset):
    """Batches of blocks and their labels, from a step on, without end: ``(T, B, *frame_shape)`` and ``(B,)``."""

    def __init__(
        self, blocks: Blocks, labels: Tensor, batch_size: int, seed: int, *, start: int, rank: int, world_size: int
    ) -> None:
        self.blocks, self.labels, self.batch_size = blocks, labels, batch_size
        self.order = ShuffledBatches(blocks, seed)
        self.start, self.rank, self.world_size = start, rank, world_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in worker_steps(self.start):
            chosen = self.order.indices(batch_index(step, self.rank, self.world_size), self.batch_size)
            yield stack(self.blocks, chosen), self.labels[chosen]


class VideoBlocks(Dataset):
    """All blocks of some videos in batches of one length, those of one rank: frames, and which video each is of."""

    def __init__(self, blocks: Blocks, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.blocks = blocks
        order = sorted(range(len(blocks)), key=lambda index: -blocks.lengths[index])
        batches = []
        for _, alike in itertools.groupby(order, key=lambda index: blocks.lengths[index]):
            members = list(alike)
            batches += [members[first : first + batch_size] for first in range(0, len(members), batch_size)]
        self.mine = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        chosen = self.mine[position]
        return stack(self.blocks, chosen), self.blocks.video_of[chosen]


class RecognitionModule(BatchesModule):
    """Training blocks and the videos of validation and test.

    Args:
        data: settings.
        batch_size: blocks per step and device.
        seed: the run's.

    Raises:
        ValueError, FileNotFoundError: the data are not what they should be; here and not later.
    """

    def __init__(self, data: RecognitionConfig, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.videos = open_videos(data)
        self.parts = choose_videos(self.videos, data, seed)
        self.training = Blocks(self.videos, self.parts.training, data.frames, data.train_stride, whole=True)
        self.labels = self.parts.labels[list(self.parts.training)][self.training.video_of]
        without = set(range(len(self.parts.classes))) - set(self.labels.tolist())
        if without:
            names = ", ".join(self.parts.classes[label] for label in sorted(without)[:3])
            raise ValueError(
                f"{self.videos.path} has no training block of {data.frames} frames in {len(without)} of "
                f"{len(self.parts.classes)} classes: {names}"
            )
        # Where nothing is held out, the training videos show how it goes; they choose no model.
        self.watched = self.parts.validation or self.parts.training
        self.validation = Blocks(self.videos, self.watched, data.frames, data.test_stride)
        self.test = Blocks(self.videos, self.parts.test, data.frames, data.test_stride)

    @property
    def watched_labels(self) -> Tensor:
        """Classes of the videos in validation."""
        return self.parts.labels[list(self.watched)]

    def train_dataloader(self) -> DataLoader:
        """Batches that continue where the run stands."""
        start = self.trainer.global_step
        batches = TrainingBlocks(self.training, self.labels, self.batch_size, self.seed, start=start, **self.place)
        return self.loader(batches)

    def val_dataloader(self) -> DataLoader:
        """The validation videos, the same each time."""
        return self.loader(VideoBlocks(self.validation, self.batch_size, **self.place))
