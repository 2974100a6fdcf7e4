"""``lstmvid report``: all there is to see and tell of a model, as one HTML file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import lstmvid
from lstmvid.cli.report_parts import PARTS, Subject
from lstmvid.cli.sources import Source, parser, positive
from lstmvid.viz import Page
from lstmvid.viz.features import COUNT


def main(arguments: list[str]) -> int:
    """Write the report, and its pictures as files if asked to."""
    options = parser("report", "Write a report on a model: settings, figures, pictures, features; one HTML file.")
    options.add_argument("--output", type=Path, metavar="FILE", help="(default: report.html beside the checkpoint)")
    options.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write each picture to a file in here")
    options.add_argument("--sequences", type=positive, default=1000, help="how many to score (default: %(default)s)")
    options.add_argument("--batch-size", type=positive, default=100, help="(default: %(default)s)")
    options.add_argument("--examples", type=positive, default=3, help="how many to draw (default: %(default)s)")
    options.add_argument("--steps", type=positive, default=100, help="of the long roll-out (default: %(default)s)")
    options.add_argument("--features", type=positive, default=COUNT, help="of each kind (default: %(default)s)")
    arguments = options.parse_args(arguments)
    checkpoint = Path(arguments.checkpoint)
    output = arguments.output or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "report.html"
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output is {output}, expected a file name that ends in .html")
    source = Source.from_arguments(arguments)

    console = Console()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def batches(source: Source, count: int, what: str) -> Iterator[Tensor]:
        total = math.ceil(count / arguments.batch_size)
        several = source.batches(count, arguments.batch_size)
        yield from progress.track(several, total=total, description=what)

    page = Page(f"lstmvid {lstmvid.__version__}: {checkpoint}")
    subject = Subject(
        checkpoint=checkpoint,
        source=source,
        sequences=arguments.sequences,
        batch_size=arguments.batch_size,
        examples=arguments.examples,
        steps=arguments.steps,
        features=arguments.features,
        batches=batches,
    )
    with progress:
        whole = progress.add_task("report", total=len(PARTS))
        for name, add in PARTS.items():
            progress.update(whole, description=name)
            add(page, subject)
            progress.advance(whole)
    page.save(output)
    print(output)
    if arguments.pictures:
        for path in page.save_pictures(arguments.pictures):
            print(path)
    return 0
