"""The parts of a report: each adds a section to a page, or a sentence on why the model has none."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor

from lstmvid import viz
from lstmvid.cli.evaluate import anomaly, figures, score, tables
from lstmvid.cli.features import named_features
from lstmvid.cli.sources import Source
from lstmvid.data.registry import MOVING_MNIST
from lstmvid.evaluation.traces import unit_traces
from lstmvid.training.callbacks import COLUMNS
from lstmvid.training.checkpoint import MODEL_FILE, RESUME_FILE
from lstmvid.training.config import CONFIG_FILE, RunConfig
from lstmvid.training.pictures import are_images, error_curves, sequence_rows
from lstmvid.viz import Page

_BLOCK = 10  # frames in a row of a long roll-out
_UNITS = 200  # traced, as in the paper
_OTHER_DIGITS = 1, 2, 3


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Args:
        checkpoint: as the user named it.
        source: the model and its data.
        sequences, batch_size: how many to score, in batches of which size.
        examples: how many to draw.
        steps: length of the long roll-out.
        features: how many of each kind.
        batches: ``batches(source, count, what)`` makes that many sequences under a progress bar.
    """

    checkpoint: Path
    source: Source
    sequences: int
    batch_size: int
    examples: int
    steps: int
    features: int
    batches: Callable[[Source, int, str], Iterable[Tensor]]

    @property
    def run_folder(self) -> Path | None:
        """Of the training run, if the model is still in it."""
        if self.checkpoint.is_dir():
            return self.checkpoint
        return self.checkpoint.parent if self.checkpoint.name in (MODEL_FILE, RESUME_FILE) else None

    @property
    def draws(self) -> bool:
        """Whether the frames are images."""
        return are_images(self.source.model.frame_shape)


def settings(page: Page, subject: Subject) -> None:
    """The model's arguments and the data's settings; the training's, where the model is still in its run's folder."""
    page.heading("Settings")
    model = subject.source.model
    count = sum(parameter.numel() for parameter in model.parameters())
    device = next(model.parameters()).device
    page.sentence(f"{subject.checkpoint}: a composite model of {count:,} parameters, run on {device} for this report.")
    page.table(["model", ""], _settings_rows(model.config))
    published = subject.source.published
    if published is not None:
        page.sentence(f"Sequences: {published.shape[1]} of a published test set, {len(published)} frames each.")
    page.table(["data", ""], _settings_rows(asdict(subject.source.data) | {"seed": subject.source.seed}))
    config = subject.run_folder / CONFIG_FILE if subject.run_folder else None
    if config is not None and config.is_file():
        try:
            run = RunConfig.from_dict(yaml.safe_load(config.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValueError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"{config} is not the settings of a run, or is damaged: {error}") from error
        page.table(["optimizer", ""], _settings_rows(asdict(run.optimizer.resolve()) | {"batch_size": run.batch_size}))
        page.table(["trainer", ""], _settings_rows(asdict(run.trainer)))


def training(page: Page, subject: Subject) -> None:
    """Losses over the run, from its log."""
    page.heading("Training")
    log = subject.run_folder / "metrics.csv" if subject.run_folder else None
    if log is None or not log.is_file():
        page.sentence("There is no log of the training run beside the model.")
        return
    with log.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    logged = [name for name in COLUMNS if "/" in name and any(record.get(name) for record in records)]
    for part in ("prediction", "reconstruction"):
        curves = {f"{stage}/{part}": stage for stage in ("train", "validation") if f"{stage}/{part}" in logged}
        if curves:
            content = viz.loss_curve_png(records, curves=curves, ylabel=f"{part} loss of a frame")
            caption = f"The {part}'s loss in training and validation; in validation a predictor runs on its own output."
            page.picture(f"training_{part}.png", content, caption)


def scores(page: Page, subject: Subject) -> None:
    """The figures of ``lstmvid evaluate``."""
    page.heading("Figures")
    source = subject.source
    count = source.count(subject.sequences, default=subject.sequences)
    result = figures(source, count, lambda what: subject.batches(source, count, what))
    if source.labelled:
        quiet = Console(file=io.StringIO())  # the report has a progress bar already
        result["anomaly"] = anomaly(source, subject.batch_size, quiet)
    for title, header, rows, caption in tables(source, result):
        page.table([title, *header[1:]], rows, caption)


def predictions(page: Page, subject: Subject) -> None:
    """What the model makes of a few sequences."""
    page.heading("Predictions")
    source = subject.source
    if not subject.draws and source.model.predictor is None:
        page.sentence("The frames are no images and the model has no predictor: there is nothing to draw.")
        return
    batch = next(iter(source.batches(subject.examples, subject.examples)))
    frames, steps = source.data.input_frames, source.data.target_frames
    for number in range(batch.shape[1]):
        sequence = batch[:, number : number + 1]
        name = f"sequence_{number + 1}"
        if not subject.draws:
            curves = {"prediction": "prediction", "copy": "copy of the last frame"}
            records = error_curves(source.model, sequence, frames, steps)
            content = viz.loss_curve_png(records, curves=curves, ylabel="mean squared error of a frame")
            page.picture(f"{name}.png", content, f"Test sequence {number + 1}: errors of a prediction, frame by frame.")
            continue
        rows, starts = sequence_rows(source.model, sequence, frames, steps)
        caption = f"Test sequence {number + 1}: what the model saw and what it made of it."
        page.picture(f"{name}.png", viz.encode_png(viz.strip_image(rows, starts=starts)), caption)
        page.picture(f"{name}.gif", viz.gif_bytes(rows, starts=starts), f"The same, moving ({name}).")


def rollout(page: Page, subject: Subject) -> None:
    """The predictor far beyond what it was trained for."""
    page.heading("Long roll-out")
    source, steps = subject.source, subject.steps
    if source.model.predictor is None:
        page.sentence("The model has no predictor.")
        return
    if not subject.draws:
        page.sentence("The frames are no images: there is nothing to draw.")
        return
    sequence = next(iter(source.batches(1, 1, target_frames=steps)))
    rows, starts = sequence_rows(source.model, sequence, source.data.input_frames, steps)
    rows = {label: rows[label] for label in ("truth", "prediction") if label in rows}
    trained = source.data.target_frames
    caption = f"{steps} frames from the predictor on its own output; training asked for the first {trained}."
    page.picture("rollout.png", viz.encode_png(_in_blocks(rows, source.data.input_frames + 1)), caption)
    starts = {label: starts[label] for label in rows}
    page.picture("rollout.gif", viz.gif_bytes(rows, starts=starts, fps=10), f"The same {steps} frames, moving.")


def other_digits(page: Page, subject: Subject) -> None:
    """Moving MNIST with more and fewer digits than in training."""
    page.heading("Other numbers of digits")
    source = subject.source
    if source.data.source != MOVING_MNIST:
        page.sentence("The model's data is not Moving MNIST: there are no digits to count.")
        return
    trained = source.data.num_digits
    header, rows = ["digits", *_DIGIT_COLUMNS.values()], []
    count = min(subject.sequences, 200)
    for digits in sorted({*_OTHER_DIGITS, trained}):
        other = replace(source, data=replace(source.data, num_digits=digits), published=None)
        result = score(source.model, subject.batches(other, count, f"{digits} digits"), source.data.input_frames)
        scored = result.get("prediction", result.get("reconstruction", {}))
        label = f"{digits} (as in training)" if digits == trained else str(digits)
        rows.append([label, *(f"{scored[name]:.1f}" if name in scored else "" for name in _DIGIT_COLUMNS)])
        if digits == trained:
            continue
        sequence = next(iter(other.batches(1, 1)))
        drawn, starts = sequence_rows(source.model, sequence, source.data.input_frames, source.data.target_frames)
        content = viz.encode_png(viz.strip_image(drawn, starts=starts))
        page.picture(f"digits_{digits}.png", content, f"{digits} digits into a model trained on {trained}.")
    part = "prediction" if source.model.predictor is not None else "reconstruction"
    page.table(header, rows, f"The {part} on {count} new sequences of each number, per frame.")


def traces(page: Page, subject: Subject) -> None:
    """Hidden units of the predictor over the long roll-out."""
    page.heading("Hidden units over time")
    source, steps = subject.source, subject.steps
    if source.model.predictor is None:
        page.sentence("The model has no predictor.")
        return
    frames = next(iter(source.batches(1, 1)))[: source.data.input_frames]
    layers = source.model.predictor.num_layers
    for layer in range(layers):
        run = unit_traces(source.model, frames, steps, layer=layer)
        units = torch.randperm(run.hidden.shape[2], generator=torch.Generator().manual_seed(source.seed))[:_UNITS]
        shown = {
            "input gate": run.input_gate,
            "forget gate": run.forget_gate,
            "output gate": run.output_gate,
            "cell": run.cell,
            "output": run.hidden,
        }
        content = viz.trace_png(
            {label: values[:, 0, units.to(values.device)] for label, values in shown.items()},
            trained_until=source.data.target_frames,
        )
        caption = (
            f"{len(units)} random units of the predictor's layer {layer + 1} of {layers} over {steps} steps of its own "
            f"output; training ended at the line, after {source.data.target_frames}."
        )
        page.picture(f"traces_layer_{layer + 1}.png", content, caption)


def features(page: Page, subject: Subject) -> None:
    """Input and output features of largest norm."""
    page.heading("Features")
    model = subject.source.model
    if not subject.draws:
        page.sentence("The frames are no images: their features can't be drawn.")
        return
    page.sentence(
        "Weights on the values of a frame, those of largest norm first; zero is grey. Input features in the same place "
        "belong to the same unit."
    )
    for name, rows in named_features(model, subject.features).items():
        content = viz.encode_png(viz.feature_grid(rows, model.frame_shape))
        caption = f"{name.removesuffix('.png').replace('_', ' ').capitalize()}: {len(rows)} units."
        page.picture(name, content, caption)


PARTS: dict[str, Callable[[Page, Subject], None]] = {
    "settings": settings,
    "training": training,
    "figures": scores,
    "predictions": predictions,
    "roll-out": rollout,
    "digits": other_digits,
    "traces": traces,
    "features": features,
}

_DIGIT_COLUMNS = {"cross_entropy": "cross-entropy", "mse": "MSE", "mae": "MAE"}


def _settings_rows(values: dict[str, Any]) -> list[list[str]]:
    return [[name, "none" if value is None else str(value)] for name, value in values.items()]


def _in_blocks(rows: dict[str, Tensor], start: int) -> Any:
    """Long rows of frames as a strip, ten frames of each below the other."""
    blocks, starts = {}, {}
    for first in range(0, max(len(frames) for frames in rows.values()), _BLOCK):
        for label, frames in rows.items():
            part = frames[first : first + _BLOCK]
            if len(part):
                name = f"{label} {start + first}"
                blocks[name], starts[name] = part, start + first
    return viz.strip_image(blocks, starts=starts)
