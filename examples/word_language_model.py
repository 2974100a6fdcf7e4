"""A word-level language model on `torch.nn.LSTM`, and the one line that puts it on our kernels.

    python examples/word_language_model.py                      # on torch.nn.LSTM
    python examples/word_language_model.py --accelerate         # the same losses, step by step
    python examples/word_language_model.py --text book.txt --hidden 650 --dropout 0.5 --steps 2000

Without --text it learns the language reference that comes with Python (65,000 words).
"""

from __future__ import annotations

import argparse
import math
import pydoc_data.topics
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lstmvid


class LanguageModel(nn.Module):
    """The next word from all before it: embedding, LSTM, and a readout that shares the embedding's weights.

    Args:
        words: size of the vocabulary.
        hidden: units of each layer, and of the embedding.
        layers: of the LSTM.
        dropout: on the embedding, between the layers and on the output.
    """

    def __init__(self, words: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(words, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers, dropout=dropout)
        self.readout = nn.Linear(hidden, words)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.readout.bias)
        self.readout.weight = self.embedding.weight

    def forward(self, words: Tensor, state: tuple[Tensor, Tensor] | None):
        """Words `(T, B)` to logits `(T, B, vocabulary)`, and the state after them."""
        hidden, state = self.lstm(self.dropout(self.embedding(words)), state)
        return self.readout(self.dropout(hidden)), state


def read_words(path: str | None) -> list[str]:
    """Words and punctuation of a text, in order."""
    text = "\n".join(pydoc_data.topics.topics.values()) if path is None else Path(path).read_text(encoding="utf-8")
    return re.findall(r"\w+|[^\w\s]", text)


def as_columns(words: list[str], batch: int) -> tuple[Tensor, int]:
    """The text as numbers in `batch` columns `(T, B)`, each a piece to be read downwards; and the vocabulary's size."""
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    steps = len(words) // batch
    numbers = torch.tensor([vocabulary[word] for word in words[: steps * batch]])
    return numbers.view(batch, steps).t().contiguous(), len(vocabulary)


def losses(
    model: LanguageModel, text: Tensor, *, steps: int, unroll: int = 35, learning_rate: float = 2.0, clip: float = 0.25
) -> Iterator[float]:
    """Train by truncated backpropagation through time, and give each step's cross-entropy in nats a word."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    starts = range(0, len(text) - unroll, unroll)
    state = None
    for step in range(steps):
        start = starts[step % len(starts)]
        if start == 0:
            state = None
        words, following = text[start : start + unroll], text[start + 1 : start + unroll + 1]
        logits, state = model(words, state)
        state = tuple(tensor.detach() for tensor in state)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        yield loss.item()


def build(arguments: argparse.Namespace) -> tuple[LanguageModel, Tensor]:
    """The model, drawn from the seed, and its text."""
    text, vocabulary = as_columns(read_words(arguments.text), arguments.batch)
    torch.manual_seed(arguments.seed)
    model = LanguageModel(vocabulary, arguments.hidden, arguments.layers, arguments.dropout)
    if arguments.accelerate:
        lstmvid.accelerate(model)  # the one line
    return model, text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--accelerate", action="store_true", help="run its LSTM on lstmvid's kernels")
    parser.add_argument("--text", help="a UTF-8 file; by default Python's language reference")
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    """Train and say how it goes."""
    arguments = parse()
    model, text = build(arguments)
    recent: list[float] = []
    for step, loss in enumerate(losses(model, text, steps=arguments.steps), 1):
        recent = [*recent[-19:], loss]
        if step % 20 == 0:
            mean = sum(recent) / len(recent)
            print(f"step {step:5}: {mean:.3f} nats a word, perplexity {math.exp(mean):.1f}")


if __name__ == "__main__":
    main()
