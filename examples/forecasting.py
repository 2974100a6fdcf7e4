"""A forecasting library's recurrent model (darts' RNNModel), built within `lstmvid.patched()`.

    pip install darts
    python examples/forecasting.py                # on torch.nn.LSTM
    python examples/forecasting.py --accelerate   # the same losses, step by step

The series is the weekly CO2 concentration at Mauna Loa, 1958 to 2001, that comes with statsmodels.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import numpy as np
import pytorch_lightning as pl
from darts import TimeSeries
from darts.models import RNNModel
from statsmodels.datasets import co2

import lstmvid


class Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Read what the step gave."""
        self.values.append(float(outputs["loss"]))


def read_series() -> TimeSeries:
    """Weekly concentrations, gaps filled by interpolation, shifted and scaled to mean 0 and variance 1."""
    values = co2.load_pandas().data["co2"].interpolate().to_numpy(np.float32)
    return TimeSeries.from_values((values - values.mean()) / values.std())


def train(
    series: TimeSeries, *, accelerate: bool, epochs: int = 1, hidden: int = 64, layers: int = 2, dropout: float = 0.1
) -> tuple[RNNModel, list[float]]:
    """Fit the model and give the loss of every step."""
    losses = Losses()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    model = RNNModel(
        model="LSTM",
        hidden_dim=hidden,
        n_rnn_layers=layers,
        dropout=dropout,
        input_chunk_length=52,
        training_length=104,
        batch_size=32,
        n_epochs=epochs,
        random_state=0,
        pl_trainer_kwargs={"accelerator": "cpu", "callbacks": [losses], **quiet},
    )
    with lstmvid.patched() if accelerate else nullcontext():  # the one line: darts builds its nn.LSTM in here
        model.fit(series)
    return model, losses.values


def main() -> None:
    """Train, and forecast half a year."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--accelerate", action="store_true", help="run its LSTM on lstmvid's kernels")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    model, losses = train(read_series(), accelerate=arguments.accelerate, epochs=arguments.epochs)
    print(f"LSTM: {type(model.model.rnn).__module__}, {len(losses)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    print("the next 26 weeks, scaled:", model.predict(26).values().ravel().round(2))


if __name__ == "__main__":
    main()
