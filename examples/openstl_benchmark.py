"""The composite model in the OpenSTL benchmark's own runner.

    git clone https://github.com/chengtan9907/OpenSTL && pip install -e OpenSTL
    python examples/openstl_benchmark.py

OpenSTL reads data and settings, trains, tests and scores; here on Moving MNIST sequences that we hand it.
"""

from __future__ import annotations

import argparse

import torch
from openstl.api import BaseExperiment
from openstl.utils import create_parser, default_parser
from torch.utils.data import DataLoader, TensorDataset

from lstmvid.compat import openstl
from lstmvid.data import MovingMNIST, load_digits, split_digits


def loader(digits: torch.Tensor, sequences: int, batch: int, seed: int) -> DataLoader:
    """Pairs of 10 and 10 frames `(B, T, 1, 64, 64)` in [0, 1], as OpenSTL's own data sets give them."""
    frames = MovingMNIST(digits, seed=seed).batch(0, sequences).transpose(0, 1) / 255
    data = DataLoader(TensorDataset(frames[:, :10], frames[:, 10:]), batch_size=batch)
    # What OpenSTL asks a data set for: its name, and how to take its scaling back.
    data.dataset.data_name, data.dataset.mean, data.dataset.std = "mmnist", 0, 1
    return data


def settings(epochs: int) -> argparse.Namespace:
    """OpenSTL's defaults, with our method in them."""
    ours = {
        "method": openstl.NAME,
        "dataname": "mmnist",
        "in_shape": [10, 1, 64, 64],
        "pre_seq_length": 10,
        "aft_seq_length": 10,
        "num_hidden": "128,128",
        "epoch": epochs,
        "metrics": ["mse", "mae"],
        "ex_name": "fc-lstm",
        "no_display_method_info": True,
    }
    arguments = create_parser().parse_args([])
    chosen = {name: value for name, value in vars(arguments).items() if value is not None}
    vars(arguments).update(default_parser() | chosen | ours)
    return arguments


def main(epochs: int = 2, sequences: int = 64) -> BaseExperiment:
    """Train, test and score."""
    openstl.register()
    training, held_out = split_digits(load_digits(), 0.1, seed=0)
    train, test = loader(training, sequences, 16, seed=1), loader(held_out, sequences // 2, 16, seed=2)
    experiment = BaseExperiment(settings(epochs), dataloaders=(train, test, test))
    experiment.train()
    experiment.test()
    return experiment


if __name__ == "__main__":
    main()
