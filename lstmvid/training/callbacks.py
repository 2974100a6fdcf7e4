"""What happens around the training steps: files, pictures, the log and the line on the screen."""

from __future__ import annotations

import csv
import math
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from lstmvid import viz
from lstmvid.training.checkpoint import MODEL_FILE, RESUME_FILE, read_checkpoint, save_model, written_whole
from lstmvid.training.pictures import are_images, sequence_rows
from lstmvid.training.sharding import whole_weights

_MONITORED = "validation/prediction", "validation/reconstruction"  # the first that the model has
COLUMNS = (  # of a composite model's metrics
    "step",
    "learning_rate",
    *(f"{stage}/{loss}" for stage in ("train", "validation") for loss in ("loss", "reconstruction", "prediction")),
)
_ADVICE = "try a lower optimizer.learning_rate"


class RunFiles(Callback):
    """Writes the resumable checkpoint after each validation and at the end, and the model whenever it is the best.

    A model is the better, the lower its loss in validation: the prediction's, or where there is no predictor the
    reconstruction's. Ctrl-C is heeded after the step under way: the checkpoint is written there, so that a resumed run
    repeats nothing and misses nothing. A second Ctrl-C ends the run at once.

    Args:
        folder: the run's.
        monitored: the metrics by which to tell; the first that there is.
        keep_best: keep the best model; otherwise the last, where nothing is held out to tell by.
    """

    def __init__(self, folder: Path, monitored: Sequence[str] = _MONITORED, *, keep_best: bool = True) -> None:
        self.folder, self.monitored, self.keep_best = folder, monitored, keep_best
        self.best = math.inf
        self._interrupted = self._stopping = False
        self._previous_handler: Any = None

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on with."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take it up again."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over Ctrl-C; only a process's main thread may."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._interrupt)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Hand Ctrl-C back."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Stop if asked to: only here has Lightning logged and validated the step before."""
        if self._stopping:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Have the last step validated like every other milestone, and keep any step after which to stop."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning validates where it stops early, but not where max_steps ends
        elif trainer.strategy.reduce_boolean_decision(self._interrupted, all=False):  # all ranks stop at one step
            trainer.save_checkpoint(self.folder / RESUME_FILE)
            self._stopping = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the model if it is the best so far, and where the run stands."""
        metrics = trainer.callback_metrics
        loss = next(metrics[name].item() for name in self.monitored if name in metrics)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss} at step {trainer.global_step}: {_ADVICE}")
        if loss < self.best or not self.keep_best:
            self.best = min(loss, self.best)
            tensors = whole_weights(pl_module.model)  # by all ranks together
            if trainer.is_global_zero:
                data = pl_module.config.trained_on()
                save_model(pl_module.model, self.folder / MODEL_FILE, data=data, tensors=tensors)
        trainer.save_checkpoint(self.folder / RESUME_FILE)

    def _interrupt(self, *_: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True


class Pictures(Callback):
    """A strip of the first validation sequences after each validation: a PNG in the run's folder, and for TensorBoard.

    Args:
        folder: where the PNG files go.
        sequences: how many.
    """

    def __init__(self, folder: Path, sequences: int = 2) -> None:
        self.folder, self.sequences = folder, sequences

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw what the first batch shows, if it can be drawn."""
        if batch_idx > 0 or not are_images(pl_module.model.frame_shape):
            return
        data = pl_module.config.data
        rows, starts = sequence_rows(pl_module.model, batch[:, : self.sequences], data.input_frames, data.target_frames)
        picture = viz.strip_image(rows, starts=starts)
        with written_whole(self.folder / f"step_{trainer.global_step:07d}.png") as partial:
            picture.save(partial, "PNG")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = torch.from_numpy(np.array(picture))
                logger.experiment.add_image("validation", pixels, trainer.global_step, dataformats="HWC")


class PlainCheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads resumable checkpoints: whole files, and nothing that could run as code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; what `read_checkpoint` would refuse is never put in its place."""
        with written_whole(Path(path)) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it to the CPU, from where Lightning distributes it."""
        return read_checkpoint(path)


class MetricsFile(Logger):
    """All metrics in one CSV file, a row for each time some were logged.

    Lightning's own CSV logger starts a new file when a run is resumed. This one goes on with the old, less what was
    logged after the checkpoint that the run resumes from.

    Args:
        path: the file.
        columns: the metrics' names, ``step`` first.
    """

    name = "csv"
    version = 0

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        super().__init__()
        self.path, self.columns = path, columns
        self._checked = False

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's folder has them in a file of their own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        step += 1  # Lightning counts from 0, everything else here says how many steps were done
        if not self._checked:
            self._drop_rows_from(step)
            self._checked = True
        with self.path.open("a", newline="") as file:
            self._writer(file).writerow(metrics | {"step": step})

    def _drop_rows_from(self, step: int) -> None:
        """Leave the header and the rows before a step."""
        rows = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        with written_whole(self.path) as partial, partial.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: TextIO) -> csv.DictWriter:
        return csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")


class ProgressLine(ProgressBar):
    """A rich progress bar of the whole run, and a line that stays for each validation, in a terminal or not."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._progress: Progress | None = None

    def disable(self) -> None:
        """Called for all ranks but the first."""
        self.console = Console(quiet=True)

    def enable(self) -> None:
        """Nothing is ever disabled for a while only."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where the run stands."""
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(
            "training", total=trainer.max_steps, completed=trainer.global_step, loss=""
        )
        self._progress.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Advance; the loss is read only now and then, as that waits for the device."""
        step = trainer.global_step
        fields = {}
        if step % trainer.log_every_n_steps == 0:
            loss = trainer.callback_metrics["train/loss"].item()
            if not math.isfinite(loss):
                raise FloatingPointError(f"the training loss is {loss} at step {step}: {_ADVICE}")
            fields["loss"] = f"loss {loss:.1f}"
        self._progress.update(self._task, completed=step, **fields)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the model does."""
        metrics = {
            name.removeprefix("validation/"): value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("validation/")
        }
        self.console.out(f"step {trainer.global_step} of {trainer.max_steps}: {self.describe(metrics)}")

    def describe(self, metrics: dict[str, float]) -> str:
        """A validation's figures in words."""
        figures = ", ".join(f"{name} {loss:.1f}" for name, loss in metrics.items() if name != "loss")
        return f"validation {figures} per frame"

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
