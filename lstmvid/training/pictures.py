"""What a model makes of sequences, as the rows of a picture (see `lstmvid.viz`) or as curves."""

from __future__ import annotations

import torch
from torch import Tensor

import lstmvid


def are_images(frame_shape: tuple[int, ...]) -> bool:
    """Whether frames can be drawn: ``(channels, height, width)``, not vectors of features."""
    return len(frame_shape) == 3


@torch.no_grad()
def sequence_rows(
    model: lstmvid.FusedComposite, sequences: Tensor, input_frames: int, steps: int
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Input, reconstruction, truth and prediction of each sequence, the predictor running on its own output.

    Frames of other than 1 or 3 channels have their channels drawn in grey, one below the other; values that leave
    [0, 1] are scaled by the range of the true frames.

    Args:
        model: in eval mode, time first; its frames are images.
        sequences: uint8 or float ``(T, N, channels, height, width)``.
        input_frames: how many of the ``T`` the model sees; the others are the truth.
        steps: how many frames to predict, which may be more than there is truth for.

    Returns:
        ``(rows, starts)`` for `lstmvid.viz.strip`; labels are numbered where ``N`` > 1. Rows of a decoder that the
        model doesn't have are left out.
    """
    inputs, truth = sequences[:input_frames], sequences[input_frames : input_frames + steps]
    out = model(inputs, predict_steps=steps if model.predictor is not None else None)
    future = input_frames + 1
    rows, starts = {}, {}
    for number in range(sequences.shape[1]):
        low, high = _limits(sequences[:, number])
        for label, frames, start in (
            ("input", inputs, 1),
            ("reconstruction", out.reconstruction, 1),
            ("truth", truth, future),
            ("prediction", out.prediction, future),
        ):
            if frames is not None and len(frames):
                name = label if sequences.shape[1] == 1 else f"{label} {number + 1}"
                rows[name], starts[name] = _drawable(frames[:, number], low, high), start
    return rows, starts


@torch.no_grad()
def error_curves(
    model: lstmvid.FusedComposite, sequence: Tensor, input_frames: int, steps: int
) -> list[dict[str, float]]:
    """How far a prediction is from the truth, frame by frame, where there is nothing to draw.

    Args:
        model: in eval mode, time first, with a predictor.
        sequence: ``(T, 1, *frame_shape)``.
        input_frames: how many of the ``T`` the model sees.
        steps: how many frames to predict; those without a truth are left out.

    Returns:
        A record for each frame: ``step``, counted from 1 at the first frame of the input, the mean squared error of the
        ``prediction`` and that of the last input frame, ``copy``.
    """
    inputs, truth = sequence[:input_frames], sequence[input_frames : input_frames + steps]
    scale = 255 if sequence.dtype == torch.uint8 else 1
    prediction = model(inputs, predict_steps=len(truth)).prediction.double()
    truth, last = truth.double() / scale, inputs[-1].double() / scale
    return [
        {
            "step": input_frames + number,
            "prediction": (guess - frame).square().mean().item(),
            "copy": (last - frame).square().mean().item(),
        }
        for number, (guess, frame) in enumerate(zip(prediction, truth, strict=True), start=1)
    ]


def _limits(frames: Tensor) -> tuple[float, float]:
    """The values that are drawn black and white."""
    if frames.dtype == torch.uint8:
        return 0.0, 1.0
    low, high = frames.min().item(), frames.max().item()
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _drawable(frames: Tensor, low: float, high: float) -> Tensor:
    """Frames ``(T, C, H, W)`` as viz takes them: 1 or 3 channels, uint8 or float in [0, 1]."""
    if frames.shape[1] not in (1, 3):
        frames = frames.flatten(1, 2).unsqueeze(1)
    return frames if frames.dtype == torch.uint8 else ((frames - low) / max(high - low, 1e-12)).clamp(0, 1)
