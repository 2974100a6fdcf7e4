"""What a model makes of sequences, as the rows of a picture (see `lstmvid.viz`)."""

from __future__ import annotations

import torch
from torch import Tensor

import lstmvid


@torch.no_grad()
def sequence_rows(
    model: lstmvid.FusedComposite, sequences: Tensor, input_frames: int, steps: int
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Input, reconstruction, truth and prediction of each sequence, the predictor running on its own output.

    Args:
        model: in eval mode, time first.
        sequences: uint8 ``(T, N, *frame_shape)``.
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
        for label, frames, start in (
            ("input", inputs, 1),
            ("reconstruction", out.reconstruction, 1),
            ("truth", truth, future),
            ("prediction", out.prediction, future),
        ):
            if frames is not None and len(frames):
                name = label if sequences.shape[1] == 1 else f"{label} {number + 1}"
                rows[name], starts[name] = frames[:, number], start
    return rows, starts
