"""``lstmvid predict``: what a model makes of sequences it never saw, in pictures."""

from __future__ import annotations

from pathlib import Path

from lstmvid import viz
from lstmvid.cli.sources import Source, parser, positive
from lstmvid.training.pictures import sequence_rows


def main(arguments: list[str]) -> int:
    """Write a PNG strip and an animated GIF for each sequence."""
    options = parser("predict", "Draw what a model makes of sequences: PNG strips and animated GIFs.")
    options.add_argument("--steps", type=positive, help="frames to predict (default: as many as in training)")
    options.add_argument("--sequences", type=positive, default=3, help="how many (default: %(default)s)")
    options.add_argument("--output", type=Path, help="folder (default: predictions/ beside the checkpoint)")
    arguments = options.parse_args(arguments)
    source = Source.from_arguments(arguments)
    if source.model.predictor is None and arguments.steps:
        raise ValueError(f"{arguments.checkpoint} has no predictor: it can't take --steps")

    checkpoint = Path(arguments.checkpoint)
    output = arguments.output or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "predictions"
    steps = arguments.steps or source.data.target_frames
    batch = next(source.batches(arguments.sequences, arguments.sequences, target_frames=steps))
    for number in range(batch.shape[1]):
        rows, starts = sequence_rows(source.model, batch[:, number : number + 1], source.data.input_frames, steps)
        for path, draw in (("png", viz.strip), ("gif", viz.gif)):
            path = output / f"sequence_{number + 1}.{path}"
            draw(rows, path, starts=starts)
            print(path)
    return 0
