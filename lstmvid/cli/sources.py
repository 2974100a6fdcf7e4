"""What ``evaluate`` and ``predict`` have in common: the model to try and the sequences to try it on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import lstmvid
from lstmvid.data import read_moving_mnist
from lstmvid.training.checkpoint import load_model
from lstmvid.training.config import DataConfig
from lstmvid.training.data import EVALUATION, TRAINING, sequences


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A sub-command's parser with the common arguments."""
    result = argparse.ArgumentParser(prog=f"lstmvid {command}", description=description)
    result.add_argument("checkpoint", help="model file (.safetensors), resumable checkpoint (.ckpt) or a run's folder")
    result.add_argument("--test-set", metavar="FILE", help="the published mnist_test_seq.npy instead of new sequences")
    result.add_argument(
        "--digits", metavar="PATH", help="IDX file of the digits, where it isn't what it was in training"
    )
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
        device = _device(arguments.device)
        model, settings = load_model(arguments.checkpoint, device=device, backend=arguments.backend)
        published = read_moving_mnist(arguments.test_set) if arguments.test_set else None
        if not settings and published is None:
            raise ValueError(f"{arguments.checkpoint} doesn't say what data it was trained on: give --test-set")
        seed = settings.pop("seed", 0)
        data = DataConfig(**settings)
        if published is not None:
            if tuple(published.shape[2:]) != model.frame_shape:
                raise ValueError(
                    f"{arguments.test_set} holds frames of shape {tuple(published.shape[2:])}, "
                    f"but {arguments.checkpoint} was made for {model.frame_shape}"
                )
            data = replace(data, target_frames=len(published) - data.input_frames)
        return cls(model, replace(data, digits=arguments.digits or data.digits), seed, published)

    def count(self, wanted: int | None, default: int) -> int:
        """How many of the wanted sequences there are; of the published ones all, if no number is given."""
        if self.published is None:
            return wanted or default
        return min(wanted or self.published.shape[1], self.published.shape[1])

    def batches(self, count: int, size: int, *, target_frames: int | None = None) -> Iterator[Tensor]:
        """Up to `count` sequences of digits that training never saw, as uint8 ``(T, B, *frame_shape)``, on the device.

        Args:
            count: how many; the published ones may be fewer.
            size: sequences in a batch.
            target_frames: frames after the input, where more are wanted than in training; the published have 10.
        """
        device = next(self.model.parameters()).device
        if self.published is not None:
            for first in range(0, min(count, self.published.shape[1]), size):
                yield self.published[:, first : min(first + size, count)].to(device)
            return
        new = sequences(
            replace(self.data, target_frames=target_frames or self.data.target_frames), self.seed, EVALUATION
        )
        for index, first in enumerate(range(0, count, size)):
            yield new.batch(index, min(size, count - first)).to(device)

    def training_sequences(self, count: int) -> Tensor:
        """Sequences of training digits: uint8 ``(T, count, *frame_shape)``."""
        return sequences(self.data, self.seed, TRAINING).batch(0, count)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} can't be used here: {str(error).splitlines()[0]}") from error
