"""The composite model and its sequences as Lightning wants them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import lstmvid
from lstmvid.training.base import BatchesModule, PresetTraining
from lstmvid.training.config import DataConfig, RunConfig
from lstmvid.training.data import FixedBatches, TrainingBatches, available, open_streams
from lstmvid.training.original_sgd import summed_loss
from lstmvid.training.presets import initialise
from lstmvid.training.sharding import share_out


class CompositeTraining(PresetTraining):
    """Trains `lstmvid.FusedComposite` on batches of frames ``(T, B, *frame_shape)``, uint8 or float32.

    A step draws dropout and feedback.

    Logs ``train/...`` and ``validation/...``: ``loss``, ``reconstruction``, ``prediction``, each summed over a frame
    and averaged over frames and batch. In validation the predictor runs on its own output.

    Args:
        config: of the run; draws the initial weights from torch's global generator, seeded with the run's seed.
        frame_shape: of the data; Moving MNIST's by default.
    """

    def __init__(self, config: RunConfig, frame_shape: tuple[int, ...] | None = None) -> None:
        super().__init__(config)
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

    def _log(self, stage: str, out: lstmvid.CompositeOutput, batch_size: int, **options: Any) -> None:
        losses = {"loss": out.loss, "reconstruction": out.reconstruction_loss, "prediction": out.prediction_loss}
        self.log_dict(
            {f"{stage}/{name}": loss.detach() for name, loss in losses.items() if loss is not None},
            batch_size=batch_size,
            **options,
        )


class SequencesModule(BatchesModule):
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

    def transfer_batch_to_device(self, batch: Tensor, device: torch.device, dataloader_idx: int) -> Tensor:
        """Move a batch, unless it is to stay in host memory."""
        return batch if self.data.in_host_memory else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def train_dataloader(self) -> DataLoader:
        """Batches that continue where the run stands."""
        start = self.trainer.global_step
        batches = TrainingBatches(self.streams.training, self.batch_size, start=start, **self.place)
        return self.loader(batches)

    def val_dataloader(self) -> DataLoader:
        """The validation set, the same each time."""
        count = self.data.validation_sequences
        return self.loader(FixedBatches(self.streams.validation, count, self.batch_size, **self.place))
