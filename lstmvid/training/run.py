"""One training run of a composite model."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from rich.console import Console

from lstmvid.training.callbacks import COLUMNS, MetricsFile, Pictures, ProgressLine, RunFiles
from lstmvid.training.config import RunConfig
from lstmvid.training.module import CompositeTraining, SequencesModule
from lstmvid.training.session import build_trainer, fit, prepare_folder
from lstmvid.training.sharding import WholeInValidation, is_first_process


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> None:
    """Train a model in the run's folder.

    The folder gets ``config.yaml`` (all settings), ``last.ckpt`` (to resume from), ``model.safetensors`` (the best
    model), ``metrics.csv``, ``tensorboard/`` and ``pictures/``. Nothing is created before the settings, the data and
    the checkpoint have proved sound.

    Args:
        config: all settings.
        resume: go on from the folder's checkpoint; without one, begin.
        console: where to report.

    Raises:
        ValueError: settings that contradict each other or the run that is resumed, or a damaged file.
        FileExistsError: the folder holds a run and `resume` is not set.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: it was stopped by Ctrl-C; the checkpoint to resume from has been written.
    """
    folder = Path(config.output)
    checkpoint = prepare_folder(config, resume)
    data = SequencesModule(config.data, config.batch_size, config.seed)
    _check_validation(config, data)
    _check_values(config, data)
    module = CompositeTraining(config, data.streams.frame_shape)
    files = RunFiles(folder)
    console = (console or Console()) if is_first_process() else Console(quiet=True)
    trainer = build_trainer(
        config.trainer,
        files,
        ProgressLine(console),
        MetricsFile(folder / "metrics.csv", COLUMNS),
        [Pictures(folder / "pictures"), WholeInValidation()],
    )
    fit(trainer, module, data, config, checkpoint=checkpoint, console=console, command="train")
    console.out(f"The best model is in {folder}: try `lstmvid evaluate {folder}`.")


def _check_validation(config: RunConfig, data: SequencesModule) -> None:
    """Every process takes batches of its own."""
    batches = math.ceil(data.validation_sequences / config.batch_size)
    processes = config.trainer.devices * config.trainer.nodes
    if batches < processes:
        raise ValueError(
            f"data.validation_sequences is {data.validation_sequences}, {batches} batches of "
            f"{config.batch_size}, expected at least one for each of {processes} processes"
        )


def _check_values(config: RunConfig, data: SequencesModule) -> None:
    """Probabilities are in [0, 1]; looked at in the first clip, for to look at all may take hours."""
    if data.streams.splits is None or config.model.likelihood != "bernoulli":
        return
    clip = data.streams.splits.training[0]
    if clip.dtype != torch.uint8 and not (clip.min() >= 0 and clip.max() <= 1):
        raise ValueError(
            f"model.likelihood is bernoulli, but {config.data.path} has values from {clip.min().item():g} to "
            f"{clip.max().item():g}, expected gaussian or rectified, or values in [0, 1]"
        )
