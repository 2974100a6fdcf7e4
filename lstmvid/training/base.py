"""What models and data of any run have in common, as Lightning wants them."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lstmvid.training.checkpoint import describe_model
from lstmvid.training.presets import build_optimizer, learning_rate_factor
from lstmvid.training.sections import Run


class PresetTraining(pl.LightningModule):
    """Trains a `model` with the settings of a preset.

    All that a step draws comes from a seed made of the run's seed, the step and the rank. A resumed run therefore
    continues exactly, whatever was drawn in between.

    Args:
        config: of the run. Torch's global generator is seeded for the initial weights, which whoever inherits draws.
    """

    def __init__(self, config: Run) -> None:
        super().__init__()
        self.config = config
        self.preset = config.optimizer.resolve()
        torch.manual_seed(config.seed)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the step's draws a function of seed, step and rank."""
        torch.manual_seed(step_seed(self.config.seed, self.global_step, self.global_rank))

    def configure_optimizers(self) -> dict[str, Any]:
        """The preset's optimiser, with its schedule counted in steps."""
        optimizer = build_optimizer(self.model, self.preset)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.preset, step, self.config.trainer.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Bound the gradient's norm as the preset wants; Lightning's own way refuses fused optimisers."""
        if self.preset.method == "adamw" and math.isfinite(self.preset.clip):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.preset.clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what it takes to check a resumption and to build the model from the checkpoint alone."""
        checkpoint["lstmvid"] = {
            "run": self.config.to_dict(),
            "description": describe_model(self.model, self.config.trained_on()),
        }


class BatchesModule(pl.LightningDataModule):
    """Data sets whose items are batches already; `data` are the settings, with the number of `workers`."""

    @property
    def place(self) -> dict[str, int]:
        """Which of the batches are this process's."""
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def loader(self, batches: Any) -> DataLoader:
        """They pass through as they are."""
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
