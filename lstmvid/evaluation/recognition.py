"""Recognition of actions as arXiv 1502.04681, section 3.3, scores it: blocks, averages over a video, fused streams.

A classifier gives a softmax at each step of a block of 16 frames; a block's scores are their mean, a video's the mean
of its blocks', which start every 8 frames. Two streams are fused by the weighted mean of their scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lstmvid.data.files import written_whole

_ARRAYS = ("names", "probabilities", "labels", "classes")


def block_starts(length: int, frames: int = 16, stride: int = 8) -> range:
    """First frames of a video's blocks; a video that is shorter than a block is one block of its own."""
    return range(0, max(length - frames, 0) + 1, stride)


class VideoAverage:
    """The mean of blocks' probabilities for each video, gathered in any order.

    Args:
        videos: how many.
        num_classes: ``C``.
        device: where to gather.
    """

    def __init__(self, videos: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(videos, num_classes, dtype=torch.float64, device=device)
        self.counts = torch.zeros(videos, dtype=torch.float64, device=device)

    def update(self, videos: Tensor, probabilities: Tensor) -> None:
        """Add blocks: `videos (B,)` says which video each row of `probabilities (B, C)` is of."""
        self.sums.index_add_(0, videos, probabilities.double())
        self.counts.index_add_(0, videos, torch.ones_like(videos, dtype=torch.float64))

    def compute(self) -> Tensor:
        """Float64 ``(videos, C)``.

        Raises:
            ValueError: a video has no block.
        """
        if not self.counts.all():
            missing = int((self.counts == 0).sum())
            raise ValueError(f"{missing} of {len(self.counts)} videos have no block yet")
        return self.sums / self.counts[:, None]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Class probabilities of test videos, as a file of scores holds them.

    Args:
        names: of the ``V`` videos, each once.
        probabilities: float64 ``(V, C)``.
        labels: int64 ``(V,)``.
        classes: names of the ``C`` classes.

    Raises:
        ValueError: sizes that differ, labels that are no classes, or values that are no probabilities.
    """

    names: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        videos, classes = len(self.names), len(self.classes)
        if not videos or len(set(self.names)) < videos:
            raise ValueError(f"names has {videos} videos, {len(set(self.names))} different ones, expected each once")
        for name, shape in (("probabilities", (videos, classes)), ("labels", (videos,))):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise ValueError(f"labels go from {self.labels.min()} to {self.labels.max()}, expected below {classes}")
        if not (self.probabilities.isfinite().all() and self.probabilities.min() >= 0):
            raise ValueError("probabilities holds values that are not finite or below 0")

    def accuracy(self, top: int = 1) -> float:
        """Share of the videos whose class is among the `top` likeliest."""
        from torchmetrics.functional.classification import multiclass_accuracy

        options = {"num_classes": len(self.classes), "average": "micro", "top_k": top}
        return multiclass_accuracy(self.probabilities, self.labels, **options).item()

    def cross_entropy(self) -> float:
        """Mean of ``-log`` of the true class's probability, in nats."""
        chosen = self.probabilities.gather(1, self.labels[:, None]).squeeze(1)
        return -(chosen / self.probabilities.sum(1)).clamp_min(1e-12).log().mean().item()

    def confusion(self) -> Tensor:
        """Int64 ``(C, C)``: how many videos of a class (row) were taken for which (column)."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        return multiclass_confusion_matrix(self.probabilities, self.labels, num_classes=len(self.classes))

    def save(self, path: str | Path) -> None:
        """Write them to a NumPy archive (``.npz``) with the arrays names, probabilities, labels and classes."""
        with written_whole(Path(path)) as partial, partial.open("wb") as file:
            np.savez(
                file,
                names=np.array(self.names),
                probabilities=self.probabilities.cpu().numpy(),
                labels=self.labels.cpu().numpy(),
                classes=np.array(self.classes),
            )

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read them from what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or no file of scores; the message names it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file of scores {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
            return cls(
                names=tuple(map(str, arrays["names"])),
                probabilities=torch.from_numpy(arrays["probabilities"]).double(),
                labels=torch.from_numpy(arrays["labels"]).long(),
                classes=tuple(map(str, arrays["classes"])),
            )
        except Exception as error:  # what NumPy raises on junk depends on the junk
            raise ValueError(f"{path} is not a file of scores, or is damaged: {error}") from error


def fuse(streams: Sequence[Scores], weights: Sequence[float] | None = None) -> Scores:
    """The weighted mean of several streams' scores of the same videos, such as RGB and flow.

    Args:
        streams: at least one; videos may come in different orders.
        weights: of each, not negative; alike by default.

    Raises:
        ValueError: they have different videos, labels or classes, or the weights don't fit.
    """
    weights = [1.0] * len(streams) if weights is None else list(weights)
    if not streams or len(weights) != len(streams):
        raise ValueError(f"there are {len(weights)} weights for {len(streams)} streams, expected one each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError(f"weights are {weights}, expected finite numbers of at least 0 that aren't all 0")
    first = streams[0]
    total = torch.zeros_like(first.probabilities)
    for number, (stream, weight) in enumerate(zip(streams, weights, strict=True), start=1):
        if stream.classes != first.classes:
            raise ValueError(f"stream {number} has other classes than the first")
        places = {name: place for place, name in enumerate(stream.names)}
        if differing := set(places) ^ set(first.names):
            raise ValueError(
                f"stream {number} and the first have different videos: {len(differing)} are in one of them only, "
                f"such as {min(differing)!r}"
            )
        order = torch.tensor([places[name] for name in first.names])
        if not torch.equal(stream.labels[order], first.labels):
            raise ValueError(f"stream {number} has other labels than the first")
        total += weight * stream.probabilities[order]
    return Scores(names=first.names, probabilities=total / sum(weights), labels=first.labels, classes=first.classes)


def mean_and_deviation(accuracies: Sequence[float]) -> tuple[float, float]:
    """The mean over splits or seeds, and the standard deviation of one (``n - 1``), which is NaN for a single one."""
    if not accuracies:
        raise ValueError("accuracies is empty, expected at least one")
    values = torch.tensor(accuracies, dtype=torch.float64)
    return values.mean().item(), values.std().item() if len(values) > 1 else math.nan
