"""One run of a classifier: training, then the test on the videos that it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import lstmvid
from lstmvid import viz
from lstmvid.data.files import written_whole
from lstmvid.data.labelled_videos import LabelledVideos
from lstmvid.evaluation.recognition import Scores, VideoAverage
from lstmvid.training.callbacks import MetricsFile, ProgressLine, RunFiles
from lstmvid.training.checkpoint import load_model
from lstmvid.training.classification_config import ClassificationConfig, RecognitionConfig
from lstmvid.training.classification_data import Blocks, RecognitionModule, VideoBlocks
from lstmvid.training.classification_module import ClassifierTraining
from lstmvid.training.session import build_trainer, fit, prepare_folder
from lstmvid.training.sharding import is_first_process

SCORES_FILE, RESULTS_FILE, CONFUSION_FILE = "scores.npz", "results.json", "pictures/confusion.png"
COLUMNS = (
    "step",
    "learning_rate",
    "train/loss",
    "train/accuracy",
    "validation/cross_entropy",
    "validation/accuracy",
)


def classify(config: ClassificationConfig, *, resume: bool = False, console: Console | None = None) -> Scores | None:
    """Train a classifier in the run's folder and test it.

    The folder gets ``config.yaml`` (all settings), ``last.ckpt`` (to resume from), ``model.safetensors`` (the best
    model, or the last where nothing is held out for validation), ``metrics.csv``, ``tensorboard/``, and from the test
    ``scores.npz``, ``results.json`` and ``pictures/confusion.png``.

    Args:
        config: all settings.
        resume: go on from the folder's checkpoint; without one, begin.
        console: where to report.

    Returns:
        The test's scores; None in a process other than the first.

    Raises:
        ValueError: settings that contradict each other, the data or the run that is resumed, or a damaged file.
        FileExistsError: the folder holds a run and `resume` is not set.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: it was stopped by Ctrl-C; the checkpoint to resume from has been written.
    """
    folder = Path(config.output)
    checkpoint = prepare_folder(config, resume)
    data = RecognitionModule(config.data, config.batch_size, config.seed)
    _check_validation(config, data)
    classes = data.parts.classes
    module = ClassifierTraining(config, data.videos.frame_shape, len(classes), data.watched_labels)
    first = is_first_process()
    console = (console or Console()) if first else Console(quiet=True)
    console.out(
        f"{len(classes)} classes; {len(data.parts.training)} videos to train with, {len(data.parts.validation)} to "
        f"validate, {len(data.parts.test)} to test; {len(data.training)} training blocks of {config.data.frames} frames"
    )
    held_out = bool(data.parts.validation)
    trainer = build_trainer(
        config.trainer,
        RunFiles(folder, ["validation/cross_entropy"], keep_best=held_out),
        _Progress(console, "validation" if held_out else "on the training videos"),
        MetricsFile(folder / "metrics.csv", COLUMNS),
    )
    fit(trainer, module, data, config, checkpoint=checkpoint, console=console, command="classify")
    if not trainer.is_global_zero:
        return None
    model, _ = load_model(folder, backend=config.model.backend, kind=lstmvid.SequenceClassifier)
    scores = score_videos(
        model.to(module.device), data.videos, data.parts.test, data.parts.labels, classes, config.data, console=console
    )
    write_results(scores, folder, console, settings=config.to_dict())
    return scores


@torch.no_grad()
def score_videos(
    model: lstmvid.SequenceClassifier,
    videos: LabelledVideos,
    places: tuple[int, ...],
    labels: Tensor,
    classes: tuple[str, ...],
    data: RecognitionConfig,
    *,
    batch_size: int = 256,
    console: Console | None = None,
) -> Scores:
    """Score some videos: blocks' probabilities averaged over each.

    Args:
        model: in eval mode, on its device.
        videos: all videos.
        places: which of them to score.
        labels: classes of all videos, ``(V,)``.
        classes: names of the classes.
        data: for the blocks' length and stride.
        batch_size: blocks at a time.
        console: shows a bar, if it is a terminal.
    """
    device = model.head.weight.device
    batches = VideoBlocks(Blocks(videos, places, data.frames, data.test_stride), batch_size)
    average = VideoAverage(len(places), len(classes), device)
    console = console or Console(quiet=True)
    positions = track(range(len(batches)), "testing", console=console, transient=True, disable=not console.is_terminal)
    for position in positions:
        frames, numbers = batches[position]
        frames = frames.to(device)
        if frames.is_floating_point():
            frames = frames.to(model.head.weight.dtype)
        average.update(numbers.to(device), model.predict_proba(frames))
    return Scores(
        names=tuple(videos.names[place] for place in places),
        probabilities=average.compute().cpu(),
        labels=labels[list(places)],
        classes=classes,
    )


def write_results(scores: Scores, folder: Path, console: Console, *, settings: dict[str, Any] | None = None) -> None:
    """Write a test's scores, figures and confusion matrix into a folder, and say the accuracy."""
    results = {
        "accuracy": scores.accuracy(),
        "cross_entropy": scores.cross_entropy(),
        "videos": len(scores.names),
        "classes": len(scores.classes),
    }
    if len(scores.classes) > 5:
        results["top5_accuracy"] = scores.accuracy(top=5)
    scores.save(folder / SCORES_FILE)
    title = f"{100 * results['accuracy']:.1f}% of {len(scores.names)} videos"
    viz.confusion_matrix(scores.confusion(), scores.classes, folder / CONFUSION_FILE, title=title)
    with written_whole(folder / RESULTS_FILE) as partial:
        partial.write_text(json.dumps(results | ({"settings": settings} if settings else {}), indent=2) + "\n")
    console.out(
        f"accuracy {100 * results['accuracy']:.2f}% of {len(scores.names)} test videos; scores and confusion matrix "
        f"are in {folder}"
    )


class _Progress(ProgressLine):
    """The line for each validation, in a classifier's figures."""

    def __init__(self, console: Console, where: str) -> None:
        super().__init__(console)
        self.where = where

    def describe(self, metrics: dict[str, float]) -> str:
        return f"{self.where}: accuracy {100 * metrics['accuracy']:.1f}%, cross-entropy {metrics['cross_entropy']:.3f}"


def _check_validation(config: ClassificationConfig, data: RecognitionModule) -> None:
    """Every process takes batches of its own."""
    batches = len(VideoBlocks(data.validation, config.batch_size))
    processes = config.trainer.devices * config.trainer.nodes
    if batches < processes:
        raise ValueError(
            f"data.batch_size is {config.batch_size}, which makes {batches} batches of the validation videos, "
            f"expected at least one for each of {processes} processes"
        )
