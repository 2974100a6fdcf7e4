"""What a model's weights look like as frames: the input and output features of largest norm.

As in figures of Srivastava et al. (2015): an LSTM unit of the encoder has four weights on every value of a frame, its
input's and those of its three gates; and a unit of a decoder has one weight on every value of the frame it draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import lstmvid
from lstmvid.viz.layout import GAP, MARGIN, PAPER

COUNT, COLUMNS = 200, 20  # as in the paper
_TILE_SIDE = 48  # smaller features are magnified to about this many pixels
_ZERO = 128


def input_features(model: lstmvid.FusedComposite | lstmvid.SequenceClassifier, count: int = COUNT) -> dict[str, Tensor]:
    """Weights of the first encoder layer on a frame's values: ``(count, D)`` each for the input and its gates.

    The units are those with the largest norm of the input's weights, largest first and the same in all four, so that
    features in the same place belong to the same unit. A model of fewer units gives all of them.
    """
    i, f, g, o = model.encoder.weight_ih_l0.detach().cpu().double().chunk(4)
    units = _largest(g, count)
    return {"input": g[units], "input gate": i[units], "forget gate": f[units], "output gate": o[units]}


def output_features(model: lstmvid.FusedComposite, count: int = COUNT) -> dict[str, Tensor]:
    """Weights of a top decoder layer's units on the values of a frame: ``(count, D)`` for each decoder there is."""
    heads = {"reconstruction": model.reconstruction_head, "prediction": model.prediction_head}
    features = {}
    for name, head in heads.items():
        if head is not None:
            weights = head.weight.detach().cpu().double().T
            features[name] = weights[_largest(weights, count)]
    return features


def feature_grid(
    features: Tensor, frame_shape: Sequence[int], *, columns: int = COLUMNS, scale: int | None = None
) -> Image.Image:
    """A picture of features as frames, row by row; zero is grey, and each has its own largest weight black or white.

    Three channels are shown as red, green and blue, any other number side by side.

    Args:
        features: ``(N, D)``, N at least 1.
        frame_shape: ``(height, width)`` or ``(channels, height, width)`` of ``D`` values.
        columns: features in a row.
        scale: whole-number magnification; by default small frames grow to about 48 pixels.

    Raises:
        ValueError: `frame_shape` is no image's or not of ``D`` values.
    """
    check_images(frame_shape)
    if columns < 1:
        raise ValueError(f"columns is {columns}, expected at least 1")
    channels, height, width = (1, *frame_shape)[-3:]
    if features.ndim != 2 or not len(features) or features.shape[1] != channels * height * width:
        raise ValueError(
            f"features has shape {tuple(features.shape)}, expected (N, {channels * height * width}) for frames of "
            f"shape {tuple(frame_shape)}"
        )
    tiles = _tiles(features.double().numpy().reshape(-1, channels, height, width))
    scale = scale or max(1, round(_TILE_SIDE / max(height, width)))
    size = scale * tiles.shape[2], scale * tiles.shape[1]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    gap = max(1, GAP // 2)
    extent = (2 * MARGIN + columns * (size[0] + gap) - gap, 2 * MARGIN + rows * (size[1] + gap) - gap)
    picture = Image.new(*(("RGB", extent, PAPER) if channels == 3 else ("L", extent, PAPER[0])))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        frame = Image.fromarray(tile).resize(size, Image.Resampling.NEAREST)
        picture.paste(frame, (MARGIN + column * (size[0] + gap), MARGIN + row * (size[1] + gap)))
    return picture


def check_images(frame_shape: Sequence[int]) -> None:
    """Refuse frames that are vectors.

    Raises:
        ValueError: `frame_shape` is not (height, width) or (channels, height, width).
    """
    if len(frame_shape) not in (2, 3):
        raise ValueError(
            f"frames of shape {tuple(frame_shape)} are no images, expected (channels, height, width), to draw features"
        )


def _largest(weights: Tensor, count: int) -> Tensor:
    """Indices of the rows of largest norm, largest first; of equal ones the earlier first."""
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    return torch.sort(weights.norm(dim=1), descending=True, stable=True).indices[:count]


def _tiles(frames: np.ndarray) -> np.ndarray:
    """Features ``(N, C, H, W)`` as uint8 ``(N, H, W')`` or ``(N, H, W, 3)``."""
    if not np.isfinite(frames).all():
        raise ValueError("the weights contain values that are not finite")
    largest = np.abs(frames).max(axis=(1, 2, 3), keepdims=True)
    bytes_ = np.round(_ZERO + 127 * frames / np.where(largest > 0, largest, 1)).astype(np.uint8)
    if frames.shape[1] == 3:
        return np.ascontiguousarray(np.moveaxis(bytes_, 1, -1))
    return np.concatenate(list(np.moveaxis(bytes_, 1, 0)), axis=2)
