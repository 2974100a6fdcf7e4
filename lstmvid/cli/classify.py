"""``lstmvid classify``: train and test a classifier of videos; fuse streams; average over splits or seeds."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lstmvid.cli.settings import read_settings
from lstmvid.training.classification_config import ClassificationConfig

_DESCRIPTION = (
    "Train a classifier of labelled videos, from scratch or on a pretrained encoder, and test it. "
    "`lstmvid classify fuse` joins the scores of two streams, `lstmvid classify mean` averages over splits or seeds."
)


def main(arguments: list[str]) -> int:
    """Train and test, or do what the first argument says."""
    actions: dict[str, Callable[[list[str]], int]] = {"fuse": _fuse, "mean": _mean}
    if arguments and arguments[0] in actions:
        return actions[arguments[0]](arguments[1:])
    config, resume = read_settings(ClassificationConfig, arguments, command="classify", description=_DESCRIPTION)

    # Only now: Lightning takes seconds to import, and wrong settings should be told at once.
    from lstmvid.training.classification import classify

    classify(config, resume=resume)
    return 0


def _fuse(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lstmvid classify fuse",
        description="Fuse the scores of several streams, such as RGB and flow, by their weighted mean.",
    )
    parser.add_argument("scores", nargs="+", help="files of scores (.npz), or folders of runs of `lstmvid classify`")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="of each of them (default: alike)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the fused scores and the figures")
    options = parser.parse_args(arguments)
    if options.output.exists() and not options.output.is_dir():
        raise FileExistsError(f"{options.output} is a file, expected a folder")

    from lstmvid.evaluation.recognition import Scores, fuse
    from lstmvid.training.classification import SCORES_FILE, write_results

    paths = [Path(name) for name in options.scores]
    streams = [Scores.load(path / SCORES_FILE if path.is_dir() else path) for path in paths]
    fused = fuse(streams, options.weights)
    console = Console()
    for path, stream in zip(paths, streams, strict=True):
        console.out(f"{path}: accuracy {100 * stream.accuracy():.2f}%")
    weights = options.weights or [1.0] * len(paths)
    write_results(fused, options.output, console, settings={"scores": list(map(str, paths)), "weights": weights})
    return 0


def _mean(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lstmvid classify mean", description="Show the accuracies of several splits or seeds, and their mean."
    )
    parser.add_argument("runs", nargs="+", help="folders of runs of `lstmvid classify`, or files of scores (.npz)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to a file")
    options = parser.parse_args(arguments)

    from lstmvid.data.files import written_whole
    from lstmvid.evaluation.recognition import Scores, mean_and_deviation
    from lstmvid.training.classification import SCORES_FILE

    paths = [Path(name) for name in options.runs]
    scores = [Scores.load(path / SCORES_FILE if path.is_dir() else path) for path in paths]
    accuracies = [each.accuracy() for each in scores]
    mean, deviation = mean_and_deviation(accuracies)
    table = Table("run", "videos", "accuracy")
    for path, each, accuracy in zip(paths, scores, accuracies, strict=True):
        table.add_row(str(path), str(len(each.names)), f"{100 * accuracy:.2f}%")
    table.add_section()
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.2f}"
    table.add_row("mean", "", f"{100 * mean:.2f}%{spread}")
    Console().print(table)
    if options.json:
        figures = {
            "runs": {str(path): accuracy for path, accuracy in zip(paths, accuracies, strict=True)},
            "mean": mean,
            "standard_deviation": None if math.isnan(deviation) else deviation,
        }
        with written_whole(options.json) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")
    return 0
