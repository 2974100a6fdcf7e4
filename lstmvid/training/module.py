"""The composite model and its sequences as Lightning wants them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import lstmvid
from lstmvid.training.checkpoint import describe_model
from lstmvid.training.config import DataConfig, RunConfig
from lstmvid.training.data import FixedBatches, TrainingBatches, available, open_streams
from lstmvid.training.original_sgd import summed_loss
from lstmvid.training.presets import build_optimizer, initialise, learning_rate_factor
from lstmvid.training.sharding import share_out


class CompositeTraining(pl.LightningModule):
    """Trains `lstmvid.FusedComposite` on batches of frames ``(T, B, *frame_shape)``, uint8 or float32.

    All that a step draws (dropout, feedback) comes from a seed made of the run's seed, the step and the rank. A resumed
    run therefore continues exactly, whatever was drawn in between.

    Logs ``train/...`` and ``validation/...``: ``loss``, ``reconstruction``, ``prediction``, each summed over a frame
    and averaged over frames and batch. In validation the predictor runs on its own output.

    Args:
        config: of the run; draws the initial weights from torch's global generator, seeded with the run's seed.
        frame_shape: of the data; Moving MNIST's by default.
    """

    def __init__(self, config: RunConfig, frame_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.config = config
        self.preset = config.optimizer.resolve()
        torch.manual_seed(config.seed)
        size = config.data.frame_size
        self.model = lstmvid.FusedComposite(frame_shape or (1, size, size), **vars(config.model))
        initialise(self.model, self.preset)

    def configure_model(self) -> None:
        """Share the weights out among the ranks, if the run says so; all ranks have drawn the same."""
        if self.config.trainer.strategy == "fsdp":
            share_out(self.model, self.device_mesh)

    def forward(self, frames: Tensor, feedback: float) -> lstmvid.CompositeOutput:
        """Encode a sequence's first frames, predict its last ones and score both."""
        inputs, targets = frames.split([self.config.data.input_frames, self.config.data.target_frames])
        return self.model(inputs, targets if self.model.predictor is not None else None, feedback=feedback)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Make the step's draws a function of seed, step and rank."""
        torch.manual_seed(step_seed(self.config.seed, self.global_step, self.global_rank))

    def training_step(self, frames: Tensor, batch_idx: int) -> Tensor:
        """The loss whose gradient the preset wants."""
        out = self(frames, self.config.trainer.feedback * self.global_step / self.config.trainer.max_steps)
        self._log("train", out, frames.shape[1], sync_dist=True)
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])
        if not self.preset.sum_gradients:
            return out.loss
        # Lightning averages gradients over devices: the sum over all of their batches takes the factor back.
        return summed_loss(out) * self.trainer.world_size

    def validation_step(self, frames: Tensor, batch_idx: int) -> None:
        """Score the predictor on its own output."""
        self._log("validation", self(frames, 1.0), frames.shape[1], sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """The preset's optimiser, with its schedule counted in steps."""
        optimizer = build_optimizer(self.model, self.preset)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.preset, step, self.config.trainer.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Bound the gradient's norm as the preset wants; Lightning's own way refuses fused optimisers."""
        if self.preset.method == "adamw":
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.preset.clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what it takes to check a resumption and to build the model from the checkpoint alone."""
        checkpoint["lstmvid"] = {
            "run": self.config.to_dict(),
            "description": describe_model(self.model, self.config.trained_on()),
        }

    def _log(self, stage: str, out: lstmvid.CompositeOutput, batch_size: int, **options: Any) -> None:
        losses = {"loss": out.loss, "reconstruction": out.reconstruction_loss, "prediction": out.prediction_loss}
        self.log_dict(
            {f"{stage}/{name}": loss.detach() for name, loss in losses.items() if loss is not None},
            batch_size=batch_size,
            **options,
        )


class SequencesModule(pl.LightningDataModule):
    """Training and validation sequences of a run, from whatever data set it names.

    Args:
        data: settings.
        batch_size: sequences per step and device.
        seed: the run's.

    Raises:
        ValueError, FileNotFoundError: the data are not what they should be; here and not later.
    """

    def __init__(self, data: DataConfig, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data, self.batch_size = data, batch_size
        self.streams = open_streams(data, seed)

    @property
    def validation_sequences(self) -> int:
        """How many there are of those that the settings want."""
        return available(self.streams.validation, self.data.validation_sequences)

    def train_dataloader(self) -> DataLoader:
        """Batches that continue where the run stands."""
        trainer = self.trainer
        batches = TrainingBatches(
            self.streams.training,
            self.batch_size,
            start=trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return self._loader(batches)

    def val_dataloader(self) -> DataLoader:
        """The validation set, the same each time."""
        trainer = self.trainer
        batches = FixedBatches(
            self.streams.validation,
            self.data.validation_sequences,
            self.batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return self._loader(batches)

    def _loader(self, batches: Any) -> DataLoader:
        return DataLoader(
            batches,
            batch_size=None,  # they are batches already
            num_workers=self.data.workers,
            persistent_workers=self.data.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one rank, unlike those of other steps, ranks and nearby run seeds."""
    # Fibonacci hashing: consecutive numbers, which a generator seeded with them would not, are spread over 64 bits.
    mixed = 0
    for number in (seed, step, rank):
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 32
    return mixed % 2**63
