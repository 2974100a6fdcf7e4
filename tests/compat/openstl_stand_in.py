"""OpenSTL's documented interface, as much of it as a method meets: the benchmark itself is on no package index.

The names, arguments and order of calls are those of its version 1 (on Lightning); what they do inside is written anew.
`install` puts the modules where `import openstl` finds them.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn


class Base_method(pl.LightningModule):
    """What methods derive from: it owns validation, test, metrics and optimiser."""

    def __init__(self, **args):
        super().__init__()
        self.save_hyperparameters()
        self.model = self._build_model(**args)
        self.criterion = nn.MSELoss()
        self.test_outputs = []

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.hparams.lr)

    def validation_step(self, batch, batch_idx):
        batch_x, batch_y = batch
        self.log("val_loss", self.criterion(self(batch_x, batch_y), batch_y), on_epoch=True)

    def test_step(self, batch, batch_idx):
        batch_x, batch_y = batch
        self.test_outputs.append((self(batch_x, batch_y).cpu().numpy(), batch_y.cpu().numpy()))

    def on_test_epoch_end(self):
        """MSE and MAE summed over a frame, averaged over sequences and time, in the data's own units."""
        preds, trues = (
            np.concatenate(part) * self.hparams.test_std + self.hparams.test_mean
            for part in zip(*self.test_outputs, strict=True)
        )
        error = preds - trues
        self.scores = {
            "mse": (error**2).mean(axis=(0, 1)).sum().item(),
            "mae": np.abs(error).mean(axis=(0, 1)).sum().item(),
        }
        folder = Path(self.hparams.save_dir, "saved")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "preds.npy", preds)


METHODS: dict[str, type] = {"simvp": Base_method}


class BaseDataModule(pl.LightningDataModule):
    """The three loaders, and what the test set says of its scaling."""

    def __init__(self, train, valid, test):
        super().__init__()
        self.loaders = train, valid, test
        self.test_mean, self.test_std, self.data_name = test.dataset.mean, test.dataset.std, test.dataset.data_name

    def train_dataloader(self):
        return self.loaders[0]

    def val_dataloader(self):
        return self.loaders[1]

    def test_dataloader(self):
        return self.loaders[2]


class BaseExperiment:
    """The runner: builds the method from all settings, then trains and tests it."""

    def __init__(self, args, dataloaders):
        if not args.no_display_method_info:
            raise ValueError(f"Invalid method name {args.method}")  # as for all methods it doesn't know by name
        self.save_dir = str(Path(args.res_dir, args.ex_name))
        pl.seed_everything(args.seed, verbose=False)
        self.data = BaseDataModule(*dataloaders)
        self.method = METHODS[args.method.lower()](
            steps_per_epoch=len(dataloaders[0]),
            test_mean=self.data.test_mean,
            test_std=self.data.test_std,
            save_dir=self.save_dir,
            **vars(args),
        )
        self.trainer = pl.Trainer(
            max_epochs=args.epoch,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def train(self):
        self.trainer.fit(self.method, self.data)

    def test(self):
        self.trainer.test(self.method, self.data, verbose=False)


def create_parser() -> argparse.ArgumentParser:
    """Some of its settings; the others have no bearing on a method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--res_dir", default="work_dirs")
    parser.add_argument("--ex_name", default="Debug")
    parser.add_argument("--seed", default=42, type=int)
    parser.add_argument("--method", default="SimVP", choices=["SimVP", "simvp"])
    parser.add_argument("--lr", default=None, type=float)
    parser.add_argument("--epoch", default=None, type=int)
    return parser


def default_parser() -> dict:
    """Values of the settings that the parser leaves open."""
    return {"lr": 1e-3, "epoch": 200, "sched": "onecycle"}


def install(monkeypatch) -> None:
    """Until the test is over, `openstl` can be imported."""
    methods = types.ModuleType("openstl.methods")
    methods.method_maps = dict(METHODS)
    monkeypatch.setitem(globals(), "METHODS", methods.method_maps)
    contents = {
        "openstl": {},
        "openstl.methods.base_method": {"Base_method": Base_method},
        "openstl.api": {"BaseExperiment": BaseExperiment},
        "openstl.utils": {"create_parser": create_parser, "default_parser": default_parser},
    }
    monkeypatch.setitem(sys.modules, "openstl.methods", methods)
    for name, values in contents.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
