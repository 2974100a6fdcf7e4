"""``lstmvid evaluate``: the predictor on its own output, and the reconstruction, beside the floors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import lstmvid
from lstmvid.cli.sources import Source, parser, positive
from lstmvid.evaluation import FrameMetrics, floors, mean_image
from lstmvid.evaluation.anomaly import anomaly_scores, frame_auc, frame_errors
from lstmvid.training.checkpoint import written_whole

# Training sequences for the mean image: more change its scores by less than 0.1%. Of large frames fewer, for memory.
_MEAN_OVER, _MEAN_OVER_VALUES = 1000, 2**27

_COLUMNS = {
    "cross_entropy": "cross-entropy",
    "mse": "MSE",
    "mae": "MAE",
    "ssim": "SSIM",
    "ssim_openstl": "SSIM of OpenSTL",
    "psnr": "PSNR",
}
_VALUES = {"mse_per_pixel": "MSE", "rmse_per_pixel": "RMSE", "mae_per_pixel": "MAE"}  # where values have a unit
_FLOORS = {"mean_image": "mean image", "copy_last": "copy of the last frame", "black": "black"}


def main(arguments: list[str]) -> int:
    """Score a model and print a table."""
    options = parser("evaluate", "Score a model's predictions and reconstructions beside floors.")
    options.add_argument("--sequences", type=positive, help="how many (default: 1000, or the whole test set)")
    options.add_argument("--batch-size", type=positive, default=100, help="(default: %(default)s)")
    options.add_argument("--json", type=Path, metavar="PATH", help="also write all figures to a file")
    arguments = options.parse_args(arguments)
    source = Source.from_arguments(arguments)
    console = Console()

    count = source.count(arguments.sequences, default=1000)

    def batches(what: str) -> Iterable[Tensor]:
        total, quiet = math.ceil(count / arguments.batch_size), not console.is_terminal
        several = source.batches(count, arguments.batch_size)
        return track(several, what, total, console=console, transient=True, disable=quiet)

    scores = figures(source, count, batches)
    if source.labelled:
        scores["anomaly"] = anomaly(source, arguments.batch_size, console)
    if arguments.json:
        with written_whole(arguments.json) as partial:
            partial.write_text(json.dumps(scores, indent=2) + "\n")
    for title, header, rows, caption in tables(source, scores):
        table = Table(title=title, caption=caption or None)
        for column, label in enumerate(header):
            table.add_column(label, justify="right" if column else "left", no_wrap=not column)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    return 0


def figures(source: Source, count: int, batches: Callable[[str], Iterable[Tensor]]) -> dict[str, Any]:
    """What `score` returns, with the ``floors`` and the number of ``sequences``.

    Args:
        source: the model and its data.
        count: how many sequences there are.
        batches: makes them, with a progress bar of the name that it is given.
    """
    unit_range = _in_unit_range(source)
    structure = unit_range and _large_images(source.model)
    scores = score(source.model, batches("scoring"), source.data.input_frames, units=source.units, structure=structure)
    values = (source.data.input_frames + source.data.target_frames) * math.prod(source.model.frame_shape)
    mean = mean_image(source.training_sequences(max(1, min(_MEAN_OVER, _MEAN_OVER_VALUES // values))))
    pairs = (_split(batch, source.data.input_frames) for batch in batches("floors"))
    scores["floors"] = floors(pairs, mean, cross_entropy=unit_range, structure=structure, units=source.units)
    if not unit_range:
        del scores["floors"]["black"]  # zero is no special value then
    scores["sequences"] = count
    return scores


@torch.no_grad()
def score(
    model: lstmvid.FusedComposite,
    batches: Iterable[Tensor],
    input_frames: int,
    *,
    units: tuple[float, float] = (0.0, 1.0),
    structure: bool | None = None,
) -> dict[str, Any]:
    """Score a model on sequences, its predictor running on its own output.

    Args:
        model: in eval mode, time first.
        batches: ``(T, B, *frame_shape)`` each.
        input_frames: how many of the ``T`` the model sees.
        units: see `lstmvid.evaluation.FrameMetrics`.
        structure: report SSIM and PSNR; by default where frames are large enough for it.

    Returns:
        ``prediction``, ``reconstruction`` (those that the model has): `FrameMetrics.compute()`; ``prediction_per_step``
        a list for each metric.
    """
    options = {
        "cross_entropy": model.config["likelihood"] == "bernoulli",
        "structure": _large_images(model) if structure is None else structure,
        "units": units,
    }
    prediction, reconstruction = FrameMetrics(**options), FrameMetrics(**options)
    for batch in batches:
        inputs, targets = _split(batch, input_frames)
        if model.predictor is None:
            out = model(inputs)
        else:
            out = model(inputs, targets, feedback=1.0)
            prediction.update(out.prediction, targets)
        if model.reconstructor is not None:
            reconstruction.update(out.reconstruction, inputs)
    scores: dict[str, Any] = {}
    if model.predictor is not None:
        scores["prediction"] = prediction.compute()
        scores["prediction_per_step"] = {name: curve.tolist() for name, curve in prediction.per_step().items()}
    if model.reconstructor is not None:
        scores["reconstruction"] = reconstruction.compute()
    return scores


def anomaly(source: Source, batch_size: int, console: Console) -> dict[str, Any]:
    """How well the model's errors tell what is unusual, in test videos where that is marked.

    Returns:
        ``auc``: for each decoder, and for the ``sum`` of both where there are two, the area under the ROC curve over
        all frames that have a score; ``videos``, ``frames`` and ``unusual`` count what there was.
    """
    frames, quiet = (source.data.input_frames, source.data.target_frames), not console.is_terminal
    scores: dict[str, list[Tensor]] = {}
    for video in track(source.labelled, "anomalies", console=console, transient=True, disable=quiet):
        errors = frame_errors(source.model, video.frames, *frames, batch_size=batch_size)
        if len(errors) > 1:
            errors["sum"] = sum(errors.values())
        for name, values in errors.items():
            scores.setdefault(name, []).append(anomaly_scores(values))
    unusual = [torch.from_numpy(video.unusual) for video in source.labelled]
    return {
        "auc": {name: frame_auc(values, unusual) for name, values in scores.items()},
        "videos": len(unusual),
        "frames": sum(map(len, unusual)),
        "unusual": sum(int(marks.sum()) for marks in unusual),
    }


def _split(batch: Tensor, input_frames: int) -> tuple[Tensor, Tensor]:
    return batch[:input_frames], batch[input_frames:]


def _large_images(model: lstmvid.FusedComposite) -> bool:
    return len(model.frame_shape) == 3 and min(model.frame_shape[1:]) >= 11  # SSIM's window


def _in_unit_range(source: Source) -> bool:
    """Whether the frames' values are intensities in [0, 1], for which alone SSIM, PSNR and cross-entropy are meant."""
    first = next(iter(source.batches(1, 1)))
    return first.dtype == torch.uint8 or (source.units == (0.0, 1.0) and first.min() >= 0 and first.max() <= 1)


def tables(source: Source, scores: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]], str]]:
    """Tables of `figures`: title, header, rows and caption; where values have a unit, per value, as benchmarks do."""
    rows = {name: scores[name] for name in ("prediction", "reconstruction") if name in scores}
    rows |= {f"floor: {label}": scores["floors"][name] for name, label in _FLOORS.items() if name in scores["floors"]}
    if _in_unit_range(source):
        columns, errors = _COLUMNS, "per frame: cross-entropy in nats, MSE and MAE summed over the pixels"
    else:
        columns, errors = _VALUES, f"per value: MSE, RMSE and MAE{f' in {source.unit}' if source.unit else ''}"
    caption = (
        f"{scores['sequences']} sequences; {errors}. "
        "The prediction runs on its own output; the floors are for the frames to predict."
    )
    yield "Averages", *_cells(columns, rows), caption
    if "anomaly" in scores:
        found = scores["anomaly"]
        areas = {name: {"auc": value} for name, value in found["auc"].items()}
        caption = f"{found['unusual']} of {found['frames']} frames of {found['videos']} videos are marked as unusual"
        yield "Anomalies: frame-level AUC", *_cells({"auc": "AUC"}, areas), caption
    if "prediction_per_step" in scores:
        curves = scores["prediction_per_step"]
        steps = [dict(zip(curves, values, strict=True)) for values in zip(*curves.values(), strict=True)]
        yield "Prediction, step by step", *_cells(columns, {str(n): row for n, row in enumerate(steps, 1)}), ""


def _cells(columns: dict[str, str], rows: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, without columns that no row has."""
    columns = {name: label for name, label in columns.items() if any(name in row for row in rows.values())}
    cells = [
        [label, *("" if name not in row else _figure(name, row[name]) for name in columns)]
        for label, row in rows.items()
    ]
    return ["", *columns.values()], cells


def _figure(name: str, value: float) -> str:
    if name in ("ssim", "ssim_openstl", "auc"):
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
