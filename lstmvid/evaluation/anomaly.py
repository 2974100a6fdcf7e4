"""Anomaly detection: what a model that has seen only the usual can't reconstruct or predict is unusual.

The score of a frame is its mean squared error, scaled to [0, 1] within its video; the figure is the area under the ROC
curve over the frames of all videos (as in Hasan et al., "Learning Temporal Regularity in Video Sequences", CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

import lstmvid


@torch.no_grad()
def frame_errors(
    model: lstmvid.FusedComposite,
    frames: Tensor | np.ndarray,
    input_frames: int,
    target_frames: int,
    *,
    stride: int | None = None,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """The mean squared error of each frame of a video, by each decoder, the predictor running on its own output.

    The model slides over the video; a frame in several clips gets the mean of its errors.

    Args:
        model: in eval mode, time first.
        frames: ``(T, *frame_shape)``, or what has a shape and slices like it; uint8 or float.
        input_frames: frames that the encoder sees.
        target_frames: frames after those to predict.
        stride: frames from clip to clip; by default such that each frame is predicted once. The last clip ends where
            the video does.
        batch_size: clips at a time.

    Returns:
        ``prediction``, ``reconstruction`` (those that the model has): float64 ``(T,)``, NaN for frames that are in no
        clip, such as those before the first prediction.

    Raises:
        ValueError: the video is shorter than a clip.
    """
    length = input_frames + target_frames
    if len(frames) < length:
        raise ValueError(f"the video has {len(frames)} frames, expected at least {length} for a clip")
    device = next(model.parameters()).device
    starts = [*range(0, len(frames) - length, stride or target_frames), len(frames) - length]
    names = [name for name, part in (("prediction", model.predictor), ("reconstruction", model.reconstructor)) if part]
    sums = {name: torch.zeros(len(frames), dtype=torch.float64) for name in names}
    counts = {name: torch.zeros(len(frames), dtype=torch.float64) for name in names}
    for some in _portions(starts, batch_size):
        clips = torch.stack([_tensor(frames[start : start + length]) for start in some], dim=1)
        inputs, targets = clips.to(device).split([input_frames, target_frames])
        out = model(inputs, predict_steps=target_frames if model.predictor is not None else None)
        guesses = {
            "prediction": (out.prediction, targets, input_frames),
            "reconstruction": (out.reconstruction, inputs, 0),
        }
        for name in names:
            guess, truth, offset = guesses[name]
            errors = _squared_errors(guess, truth).cpu()  # [T, B]
            for start, error in zip(some, errors.unbind(1), strict=True):
                place = slice(start + offset, start + offset + len(error))
                sums[name][place] += error
                counts[name][place] += 1
    return {name: sums[name] / counts[name] for name in names}


def anomaly_scores(errors: Tensor) -> Tensor:
    """A video's frame errors ``(T,)`` scaled to [0, 1], its least and most unusual frame; NaN stays NaN."""
    known = errors[~errors.isnan()]
    if not len(known):
        raise ValueError("errors holds no number, expected one for some frame")
    low, high = known.min(), known.max()
    return torch.zeros_like(errors).where(~errors.isnan(), errors) if high == low else (errors - low) / (high - low)


def frame_auc(scores: Sequence[Tensor], unusual: Sequence[Tensor]) -> float:
    """The area under the ROC curve over the frames of all videos that have a score.

    Args:
        scores: of each video, ``(T_i,)`` from `anomaly_scores`; frames of NaN are left out.
        unusual: of each video which frames are, bool ``(T_i,)``.

    Returns:
        The probability that an unusual frame has the higher score than a usual one, ties counting half.

    Raises:
        ValueError: lengths differ, or all frames are of one kind.
    """
    from torchmetrics.functional.classification import binary_auroc

    lengths = [(len(score), len(labels)) for score, labels in zip(scores, unusual, strict=True)]
    if any(one != other for one, other in lengths):
        raise ValueError(f"scores and unusual have videos of the lengths {lengths}, expected the same")
    score, labels = torch.cat(list(scores)), torch.cat(list(unusual))
    known = ~score.isnan()
    score, labels = score[known], labels[known]
    if not 0 < int(labels.sum()) < len(labels):
        raise ValueError(f"unusual marks {int(labels.sum())} of {len(labels)} frames, expected some but not all")
    # Ranks, because torchmetrics works in float32, where close scores would become ties.
    ranks = torch.unique(score, return_inverse=True)[1].double() / len(score)
    return binary_auroc(ranks, labels.long()).item()


def _tensor(frames: Tensor | np.ndarray) -> Tensor:
    """As a tensor; arrays are copied, for they may be read-only."""
    return frames if isinstance(frames, Tensor) else torch.from_numpy(np.array(frames))


def _squared_errors(guess: Tensor, truth: Tensor) -> Tensor:
    """Of frames ``(T, B, *frame_shape)``, the mean over each: float64 ``(T, B)``."""
    truth = truth.double() / 255 if truth.dtype == torch.uint8 else truth.double()
    return (guess.double() - truth).square().flatten(2).mean(2)


def _portions(items: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
