"""``lstmvid features``: what a model's weights look like, as grids of frames. Needs no data."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import lstmvid
from lstmvid import viz
from lstmvid.cli.convert import shape
from lstmvid.cli.sources import positive
from lstmvid.training.checkpoint import Model, load_model
from lstmvid.viz.features import COLUMNS, COUNT


def main(arguments: list[str]) -> int:
    """Write a PNG for the input's weights, those of each gate, and those of each decoder's output."""
    parser = argparse.ArgumentParser(
        prog="lstmvid features", description="Draw a model's input and output features of largest norm."
    )
    parser.add_argument("checkpoint", help="model file (.safetensors), resumable checkpoint (.ckpt) or a run's folder")
    parser.add_argument("--count", type=positive, default=COUNT, help="how many of each (default: %(default)s)")
    parser.add_argument("--columns", type=positive, default=COLUMNS, help="in a row (default: %(default)s)")
    parser.add_argument(
        "--frame-shape", type=shape, metavar="C,H,W", help="of the frames, where the model knows them as vectors"
    )
    parser.add_argument("--output", type=Path, help="folder (default: features/ beside the checkpoint)")
    options = parser.parse_args(arguments)

    model, _ = load_model(options.checkpoint)
    frame_shape = _frame_shape(model, options)
    checkpoint = Path(options.checkpoint)
    output = options.output or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "features"
    for name, features in named_features(model, options.count).items():
        path = output / name
        viz.write(path, viz.encode_png(viz.feature_grid(features, frame_shape, columns=options.columns)))
        print(path)
    return 0


def named_features(model: Model, count: int) -> dict:
    """Features ``(N, D)`` by the name of their picture; a classifier has no frames as output."""
    named = {f"input_features_{part}": rows for part, rows in viz.input_features(model, count).items()}
    if isinstance(model, lstmvid.FusedComposite):
        named |= {f"output_features_{part}": rows for part, rows in viz.output_features(model, count).items()}
    return {f"{name.replace(' ', '_')}.png": rows for name, rows in named.items()}


def _frame_shape(model: Model, options: argparse.Namespace) -> tuple[int, ...]:
    """The frames' shape, which is known to be an image's."""
    size = model.encoder.input_size
    known = model.frame_shape if isinstance(model, lstmvid.FusedComposite) else (size,)
    frame_shape = options.frame_shape or known
    if math.prod(frame_shape) != size:
        raise ValueError(f"--frame-shape is {frame_shape}, but {options.checkpoint} has {size} values a frame")
    if len(frame_shape) == 1:
        raise ValueError(
            f"{options.checkpoint} takes vectors of {size} values: where they are images, give --frame-shape C,H,W"
        )
    viz.check_images(frame_shape)
    return frame_shape
