"""What any training run has in common: its folder, its resumption, and the Trainer that carries it out."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Callback, Timer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lstmvid.data.files import written_whole
from lstmvid.training.callbacks import MetricsFile, PlainCheckpointIO, ProgressLine, RunFiles
from lstmvid.training.checkpoint import RESUME_FILE, read_checkpoint
from lstmvid.training.config import CONFIG_FILE
from lstmvid.training.sections import Run, Section
from lstmvid.training.sharding import build_strategy, is_first_process

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


def prepare_folder(config: Run, resume: bool) -> Path | None:
    """Check the run's folder before anything is created.

    Args:
        config: of the run; its `output` is the folder.
        resume: go on with the run that is there; without one, begin.

    Returns:
        The checkpoint to resume from, if there is one.

    Raises:
        ValueError: the folder's run has other settings, or its checkpoint is damaged.
        FileExistsError: the folder holds a run and `resume` is not set.
    """
    folder = Path(config.output)
    if resume:
        return _checkpoint_to_resume(folder, config)
    # Lightning starts the other ranks as processes of their own, when the first one has made the folder.
    if is_first_process():
        _refuse_old_run(folder)
    return None


def fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    config: Run,
    *,
    checkpoint: Path | None,
    console: Console,
    command: str,
) -> None:
    """Train in the run's folder, to which its settings are written first.

    Args:
        trainer, module, data: Lightning's.
        config: of the run.
        checkpoint: to resume from.
        console: where to say how to go on after Ctrl-C.
        command: that of the command line, for the same.

    Raises:
        KeyboardInterrupt: it was stopped by Ctrl-C; the checkpoint to resume from has been written.
    """
    folder, first_rank = Path(config.output), is_first_process()
    is_new = first_rank and not any(folder.glob("*"))
    if first_rank:
        with written_whole(folder / CONFIG_FILE) as partial:
            partial.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    try:
        trainer.fit(module, data, ckpt_path=checkpoint)
    except SystemExit as stop:  # Lightning's way out after Ctrl-C
        if (folder / RESUME_FILE).exists():
            console.out(f"Stopped; `lstmvid {command} --output {folder} --resume` goes on from the last checkpoint.")
        raise KeyboardInterrupt from stop
    finally:
        if is_new and not (folder / RESUME_FILE).exists():
            shutil.rmtree(folder)  # it failed before there was anything worth keeping


def build_trainer(
    settings: Section, files: RunFiles, progress: ProgressLine, metrics: MetricsFile, callbacks: Sequence[Callback] = ()
) -> pl.Trainer:
    """The Trainer, with Lightning's own remarks kept off the screen.

    Args:
        settings: a run's section `trainer`.
        files, progress, metrics: what is written and said.
        callbacks: more of them.

    Raises:
        ValueError: the settings ask for what isn't here.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # True of the loaders here and wanted: batches are made faster than they are used, and never end.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's own affair
    warnings.filterwarnings("ignore", message=".*returned a view tensor. An in-place op.*")  # nobody does one here
    # RunFiles is the last, for it may end the run.
    callbacks = [progress, *callbacks, files]
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
                metrics,
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


def _checkpoint_to_resume(folder: Path, config: Run) -> Path | None:
    """The folder's checkpoint, once it is known to be readable and of this very run."""
    path = folder / RESUME_FILE
    if not path.exists():
        return None
    # Of settings that came after the run was begun, it has the defaults.
    run = _flat(type(config)().to_dict()) | _flat(read_checkpoint(path)["lstmvid"]["run"])
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
