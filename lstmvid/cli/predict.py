"""``lstmvid predict``: what a model makes of sequences it never saw, in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from lstmvid import viz
from lstmvid.cli.sources import Source, parser, positive
from lstmvid.training.pictures import are_images, error_curves, sequence_rows


def main(arguments: list[str]) -> int:
    """Write a PNG strip and an animated GIF for each sequence, or curves of errors where frames are no images."""
    options = parser("predict", "Draw what a model makes of sequences: PNG strips and animated GIFs.")
    options.add_argument("--steps", type=positive, help="frames to predict (default: as many as in training)")
    options.add_argument("--sequences", type=positive, default=3, help="how many (default: %(default)s)")
    options.add_argument("--output", type=Path, help="folder (default: predictions/ beside the checkpoint)")
    arguments = options.parse_args(arguments)
    source = Source.from_arguments(arguments)
    if source.model.predictor is None and arguments.steps:
        raise ValueError(f"{arguments.checkpoint} has no predictor: it can't take --steps")
    if source.model.predictor is None and not are_images(source.model.frame_shape):
        raise ValueError(f"{arguments.checkpoint} has no predictor and frames that are no images: nothing to draw")

    checkpoint = Path(arguments.checkpoint)
    output = arguments.output or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "predictions"
    steps = arguments.steps or source.data.target_frames
    batch = next(source.batches(arguments.sequences, arguments.sequences, target_frames=steps))
    for number in range(batch.shape[1]):
        sequence = batch[:, number : number + 1]
        for path in _draw(source, sequence, steps, output / f"sequence_{number + 1}"):
            print(path)
    return 0


def _draw(source: Source, sequence: Tensor, steps: int, path: Path) -> Iterator[Path]:
    """Write what the model makes of one sequence to files whose names begin with `path`."""
    frames = source.data.input_frames
    if not are_images(source.model.frame_shape):
        records = error_curves(source.model, sequence, frames, steps)
        curves = {"prediction": "prediction", "copy": "copy of the last frame"}
        viz.loss_curve(records, path.with_suffix(".png"), curves=curves, ylabel="mean squared error of a frame")
        yield path.with_suffix(".png")
        return
    rows, starts = sequence_rows(source.model, sequence, frames, steps)
    for suffix, draw in ((".png", viz.strip), (".gif", viz.gif)):
        draw(rows, path.with_suffix(suffix), starts=starts)
        yield path.with_suffix(suffix)
