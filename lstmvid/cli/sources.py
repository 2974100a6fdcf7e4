"""What ``evaluate`` and ``predict`` have in common: the model to try and the sequences to try it on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

import lstmvid
from lstmvid.data import read_moving_mnist
from lstmvid.data.registry import MOVING_MNIST
from lstmvid.data.sequences import LabelledSequence
from lstmvid.training.checkpoint import load_model
from lstmvid.training.config import DataConfig
from lstmvid.training.data import FixedBatches, Streams, available, open_streams


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A sub-command's parser with the common arguments."""
    result = argparse.ArgumentParser(prog=f"lstmvid {command}", description=description)
    result.add_argument("checkpoint", help="model file (.safetensors), resumable checkpoint (.ckpt) or a run's folder")
    result.add_argument("--test-set", metavar="FILE", help="the published mnist_test_seq.npy instead of new sequences")
    result.add_argument(
        "--digits", metavar="PATH", help="IDX file of the digits, where it isn't what it was in training"
    )
    result.add_argument("--path", help="file or folder of the data, where it isn't what it was in training")
    result.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    result.add_argument("--backend", default="auto", help="who runs the LSTMs (default: %(default)s)")
    return result


def positive(text: str) -> int:
    """An argument that has to be an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least 1")
    return int(text)


@dataclass(frozen=True)
class Source:
    """A model and the data that it was trained on.

    Args:
        model: in eval mode, on its device.
        data: settings of the data.
        seed: of the training run.
        published: sequences to take instead of new ones.
    """

    model: lstmvid.FusedComposite
    data: DataConfig
    seed: int
    published: Tensor | None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Source:
        """Load what the common arguments name.

        Raises:
            ValueError, FileNotFoundError: naming the file or argument.
        """
        device = chosen_device(arguments.device)
        model, settings = load_model(
            arguments.checkpoint, device=device, backend=arguments.backend, kind=lstmvid.FusedComposite
        )
        published = read_moving_mnist(arguments.test_set) if arguments.test_set else None
        if not settings and published is None:
            raise ValueError(f"{arguments.checkpoint} doesn't say what data it was trained on: give --test-set")
        seed = settings.pop("seed", 0)
        data = _moved(DataConfig(**settings), arguments)
        source = cls(model, data, seed, published)
        if published is not None:
            source._check_frames(arguments, tuple(published.shape[2:]), arguments.test_set)
            return replace(source, data=replace(data, target_frames=len(published) - data.input_frames))
        if data.source != MOVING_MNIST:
            source._check_frames(arguments, source.streams.frame_shape, data.path)
        return source

    @cached_property
    def streams(self) -> Streams:
        """The data set's parts.

        Raises:
            ValueError, FileNotFoundError: the data are not where they were in training, or not what they should be.
        """
        return open_streams(self.data, self.seed)

    @property
    def units(self) -> tuple[float, float]:
        """``(mean, std)``, with which ``frames * std + mean`` are in the data's own unit."""
        splits = self.streams.splits if self.published is None else None
        return (0.0, 1.0) if splits is None else (splits.mean, splits.std)

    @property
    def unit(self) -> str:
        """Of the frames' values, if they have one."""
        splits = self.streams.splits if self.published is None else None
        return "" if splits is None else splits.unit

    @property
    def labelled(self) -> tuple[LabelledSequence, ...]:
        """Test sequences in which is marked what is unusual."""
        splits = self.streams.splits if self.published is None else None
        return () if splits is None else splits.labelled

    def count(self, wanted: int | None, default: int) -> int:
        """How many of the wanted sequences there are; of a finite test set all, if no number is given."""
        if self.published is not None:
            return min(wanted or self.published.shape[1], self.published.shape[1])
        if self.data.source == MOVING_MNIST:
            return wanted or default
        return available(self.streams.test, wanted or len(self.streams.test))

    def batches(self, count: int, size: int, *, target_frames: int | None = None) -> Iterator[Tensor]:
        """Up to `count` test sequences that training never saw, ``(T, B, *frame_shape)``, on the device.

        Args:
            count: how many; a finite test set may have fewer, and is spread over then.
            size: sequences in a batch.
            target_frames: frames after the input, where more are wanted than in training; there may be fewer.
        """
        device = next(self.model.parameters()).device
        if self.published is not None:
            for first in range(0, min(count, self.published.shape[1]), size):
                yield self.published[:, first : min(first + size, count)].to(device)
            return
        streams = self._longer(target_frames) if target_frames else self.streams
        for batch in FixedBatches(streams.test, count, size):
            yield batch.to(device)

    def training_sequences(self, count: int) -> Tensor:
        """Training sequences, at most `count`: ``(T, N, *frame_shape)``."""
        splits = self.streams.splits
        if splits is not None:
            count = min(count, len(splits.training))
        return self.streams.training.batch(0, count)

    def _longer(self, target_frames: int) -> Streams:
        """The test sequences with more frames after the input."""
        splits = self.streams.splits
        if target_frames <= self.data.target_frames or (splits is not None and splits.fixed_length):
            return self.streams
        try:
            return open_streams(replace(self.data, target_frames=target_frames), self.seed)
        except (ValueError, FileNotFoundError):  # no sequence is that long: there is no truth for the last frames
            return self.streams

    def _check_frames(self, arguments: argparse.Namespace, shape: tuple[int, ...], name: str) -> None:
        if shape != self.model.frame_shape:
            raise ValueError(
                f"{name} holds frames of shape {shape}, but {arguments.checkpoint} was made for "
                f"{self.model.frame_shape}"
            )


def _moved(data: DataConfig, arguments: argparse.Namespace) -> DataConfig:
    """The data where they are now."""
    changes = {name: getattr(arguments, name) for name in ("digits", "path") if getattr(arguments, name)}
    for name in changes:
        if (name == "digits") != (data.source == MOVING_MNIST):
            raise ValueError(f"--{name} is {changes[name]}, expected none for a model of the source {data.source}")
    return replace(data, **changes)


def chosen_device(name: str | None) -> torch.device:
    """What ``--device`` names; without it a GPU, if there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} can't be used here: {str(error).splitlines()[0]}") from error
