"""PyTorch Lightning: somebody's module with a `torch.nn.LSTM` inside, accelerated before the Trainer gets it.

python examples/lightning_trainer.py
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lstmvid
from lstmvid.data import MovingMNIST, load_digits


class NextFrame(pl.LightningModule):
    """Predicts each frame of Moving MNIST from those before it.

    Args:
        frame_size: side of a frame in pixels.
        hidden: units of the LSTM.
    """

    def __init__(self, frame_size: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(frame_size**2, hidden, num_layers=2)
        self.readout = nn.Linear(hidden, frame_size**2)
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Cross-entropy of a pixel, in nats, of frames `(T, B, 1, height, width)`, bytes."""
        frames = batch.flatten(2) / 255
        logits = self.readout(self.lstm(frames[:-1])[0])
        loss = F.binary_cross_entropy_with_logits(logits, frames[1:])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train(*, accelerate: bool = True, steps: int = 30) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    module = NextFrame()
    if accelerate:
        lstmvid.accelerate(module)  # the one line
    data = MovingMNIST(load_digits(), frame_size=32, num_frames=10)
    loader = DataLoader([data.batch(index, 16) for index in range(steps)], batch_size=None)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, loader)
    return module.losses


if __name__ == "__main__":
    for step, loss in enumerate(train(), 1):
        print(f"step {step:3}: {loss:.4f} nats a pixel")
