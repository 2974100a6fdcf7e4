"""Hugging Face's Trainer with a model of one's own: a character model of Python's language reference.

    pip install transformers accelerate
    python examples/hugging_face_trainer.py

`accelerate` the package and `lstmvid.accelerate` the function have nothing to do with each other.
"""

from __future__ import annotations

import pydoc_data.topics
import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import lstmvid


class CharacterModel(nn.Module):
    """The next byte from those before it."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, hidden)
        self.lstm = nn.LSTM(hidden, hidden, num_layers=2, batch_first=True)
        self.readout = nn.Linear(hidden, 256)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Bytes `(B, T)` to logits `(B, T, 256)`, and the loss in nats a byte if there are labels."""
        logits = self.readout(self.lstm(self.embedding(input_ids))[0])
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Pieces(Dataset):
    """A text in pieces of equal length, each with the bytes that follow."""

    def __init__(self, text: bytes, length: int = 64) -> None:
        self.text, self.length = torch.frombuffer(bytearray(text), dtype=torch.uint8).long(), length

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * self.length
        piece = self.text[start : start + self.length + 1]
        return {"input_ids": piece[:-1], "labels": piece[1:]}


class Losses(TrainerCallback):
    """Keeps what the Trainer logs."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Once a step."""
        if "loss" in logs:
            self.values.append(logs["loss"])


def train(*, accelerate: bool = True, steps: int = 20) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    model = CharacterModel()
    if accelerate:
        lstmvid.accelerate(model)  # the one line
    losses = Losses()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        text = "\n".join(pydoc_data.topics.topics.values()).encode()
        Trainer(model=model, args=arguments, train_dataset=Pieces(text), callbacks=[losses]).train()
    return losses.values


if __name__ == "__main__":
    for step, loss in enumerate(train(), 1):
        print(f"step {step:3}: {loss:.3f} nats a byte")
