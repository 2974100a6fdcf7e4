"""A plain DistributedDataParallel loop, with gloo on CPUs and NCCL on GPUs.

torchrun --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lstmvid
from lstmvid.data import MovingMNIST, load_digits


class DigitCounter(nn.Module):
    """How many digits move in a clip: an LSTM over its frames, and a readout of the last state."""

    def __init__(self, frame_size: int = 32, hidden: int = 64, most: int = 3) -> None:
        super().__init__()
        self.lstm = nn.LSTM(frame_size**2, hidden)
        self.readout = nn.Linear(hidden, most)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames `(T, B, D)` to logits `(B, most)`."""
        return self.readout(self.lstm(frames)[1][0][-1])


def train(*, accelerate: bool = True, steps: int = 20, batch: int = 6) -> list[float]:
    """The mean loss over all ranks of every step; the process group is there already."""
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    model = DigitCounter().to(device)
    if accelerate:
        lstmvid.accelerate(model)  # the one line; after wrapping it works just as well
    model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    digits = load_digits()
    clips = [MovingMNIST(digits, num_digits=n, frame_size=32, num_frames=8, seed=n) for n in (1, 2, 3)]
    labels = torch.arange(3, device=device).repeat_interleave(batch // 3)
    losses = []
    for step in range(steps):
        index = step * world + rank  # no two ranks see the same clips
        frames = torch.cat([source.batch(index, batch // 3) for source in clips], dim=1)
        loss = nn.functional.cross_entropy(model((frames.flatten(2) / 255).to(device)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach()
        dist.all_reduce(mean)
        losses.append(mean.item() / world)
    return losses


if __name__ == "__main__":
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    for step, loss in enumerate(train(), 1):
        if dist.get_rank() == 0:
            print(f"step {step:3}: {loss:.4f} nats a clip")
    dist.destroy_process_group()
