"""One training run: its folder, its resumption, and the Trainer that carries it out."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lstmvid.training.callbacks import MetricsFile, Pictures, PlainCheckpointIO, ProgressLine, RunFiles
from lstmvid.training.checkpoint import RESUME_FILE, read_checkpoint, written_whole
from lstmvid.training.config import CONFIG_FILE, RunConfig
from lstmvid.training.module import CompositeTraining, SequencesModule
from lstmvid.training.sharding import WholeInValidation, build_strategy, is_first_process

# What may change when a run is resumed. All else has to stay, or it would not be the same run.
_FREE = {
    "output",
    "data.workers",
    "trainer.max_steps",
    "trainer.max_minutes",
    "trainer.validation_interval",
    "trainer.log_interval",
    "trainer.accelerator",
}


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
    checkpoint = _checkpoint_to_resume(folder, config) if resume else None
    # Lightning starts the other ranks as processes of their own, when the first one has made the folder.
    first_rank = is_first_process()
    if first_rank and not resume:
        _refuse_old_run(folder)
    data = SequencesModule(config.data, config.batch_size, config.seed)
    _check_validation(config, data)
    _check_values(config, data)
    module = CompositeTraining(config, data.streams.frame_shape)
    files = RunFiles(folder)
    console = (console or Console()) if first_rank else Console(quiet=True)
    trainer = _trainer(config, files, console)
    is_new = first_rank and not any(folder.glob("*"))
    if first_rank:
        with written_whole(folder / CONFIG_FILE) as partial:
            partial.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    try:
        trainer.fit(module, data, ckpt_path=checkpoint)
    except SystemExit as stop:  # Lightning's way out after Ctrl-C
        if (folder / RESUME_FILE).exists():
            console.out(f"Stopped; `lstmvid train --output {folder} --resume` goes on from the last checkpoint.")
        raise KeyboardInterrupt from stop
    finally:
        if is_new and not (folder / RESUME_FILE).exists():
            shutil.rmtree(folder)  # it failed before there was anything worth keeping
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


def _checkpoint_to_resume(folder: Path, config: RunConfig) -> Path | None:
    """The folder's checkpoint, once it is known to be readable and of this very run."""
    path = folder / RESUME_FILE
    if not path.exists():
        return None
    # Of settings that came after the run was begun, it has the defaults.
    run = _flat(RunConfig().to_dict()) | _flat(read_checkpoint(path)["lstmvid"]["run"])
    given = _flat(config.to_dict())
    own = [name for name in run if name.startswith("data.options.")]  # which either may have alone
    for name in [*given, *own]:
        if name not in _FREE and run.get(name) != given.get(name):
            raise ValueError(f"{path} can't be resumed with {name} {given.get(name)!r}: the run has {run.get(name)!r}")
    return path


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of all sections by their full names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _refuse_old_run(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, expected a folder for the run")
    if (folder / CONFIG_FILE).exists() or (folder / RESUME_FILE).exists():
        raise FileExistsError(f"{folder} already holds a run: pass --resume to go on with it, or another --output")


def _trainer(config: RunConfig, files: RunFiles, console: Console) -> pl.Trainer:
    """The Trainer, with Lightning's own remarks kept off the screen."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # True of the loaders here and wanted: batches are made faster than they are used, and never end.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's own affair
    warnings.filterwarnings("ignore", message=".*returned a view tensor. An in-place op.*")  # nobody does one here
    settings = config.trainer
    # RunFiles is the last, for it may end the run.
    callbacks = [ProgressLine(console), Pictures(files.folder / "pictures"), WholeInValidation(), files]
    if settings.max_minutes is not None:
        callbacks.insert(0, Timer(timedelta(minutes=settings.max_minutes), verbose=False))
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=build_strategy(settings),
            precision=settings.precision,
            max_steps=settings.max_steps,
            val_check_interval=settings.validation_interval,
            check_val_every_n_epoch=None,  # the one epoch never ends: intervals count steps
            num_sanity_val_steps=0,
            log_every_n_steps=settings.log_interval,
            logger=[
                MetricsFile(files.folder / "metrics.csv"),
                TensorBoardLogger(files.folder, name="tensorboard", version=""),
            ],
            callbacks=callbacks,
            plugins=[PlainCheckpointIO()],
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ValueError(
            f"trainer.accelerator {settings.accelerator}, devices {settings.devices}, strategy {settings.strategy} "
            f"and precision {settings.precision} don't go together here: {error}"
        ) from error
