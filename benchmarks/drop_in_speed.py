"""Whole programs before and after the one-line swap: the same losses, and how long a training step takes.

    python benchmarks/drop_in_speed.py --output benchmarks/results      # both programs of examples/
    python benchmarks/drop_in_speed.py --rounds 20 --program language-model

Both versions of a program start from the same seed and take their steps in turn, in random order within a round. Every
step's loss is compared before any time is reported: a program that trains differently has no speed-up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import interleaved
from report import ROOT, environment, write_whole

import lstmvid

TOLERANCE = 1e-4  # relative, of every loss; float32 and some tens of steps leave far less

# hidden, layers, batch: the small default, and the medium and large models of Zaremba et al., 2014 (without dropout's
# changes, which don't matter to speed).
LANGUAGE_MODELS = ((200, 2, 20), (650, 2, 20), (1500, 2, 20))


def load(name: str):
    """A program of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(program: str, what: str, calls: dict[str, Callable[[], None]], losses: dict[str, list[float]], rounds: int):
    """Time the calls in turn, then hold their losses against each other."""
    for call in calls.values():
        call()
    times = interleaved(calls, "cpu", rounds=rounds)
    plain, swapped = losses["torch.nn.LSTM"], losses["lstmvid"]
    worst = max(abs(a - b) / abs(b) for a, b in zip(swapped, plain, strict=True))
    if worst > TOLERANCE:
        raise SystemExit(f"{program}, {what}: the losses differ by {worst:.2g}, at most {TOLERANCE:g} is right")
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["torch.nn.LSTM"], times["lstmvid"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "program": program,
        "what": what,
        "rounds": rounds,
        "losses_compared": len(plain),
        "largest_relative_difference_of_a_loss": worst,
        "seconds": medians,
        "speedup": medians["torch.nn.LSTM"] / medians["lstmvid"],
        "speedup_q1": low,
        "speedup_q3": high,
    }


def language_model(hidden: int, layers: int, batch: int, rounds: int) -> dict:
    """A training step of examples/word_language_model.py."""
    program, calls = load("word_language_model"), {}
    losses: dict[str, list[float]] = {"torch.nn.LSTM": [], "lstmvid": []}
    for name, swap in (("torch.nn.LSTM", []), ("lstmvid", ["--accelerate"])):
        sizes = ["--hidden", str(hidden), "--layers", str(layers), "--batch", str(batch)]
        model, text = program.build(program.parse([*swap, *sizes]))
        assert (type(model.lstm) is lstmvid.LSTM) == bool(swap)
        run = program.losses(model, text, steps=rounds + 1)

        def step(run=run, taken=losses[name]) -> None:
            torch.manual_seed(len(taken))  # of dropout's draws, which the two would take from one generator in turn
            taken.append(next(run))

        calls[name] = step
    what = f"a step: T=35 B={batch} H={hidden} L={layers}, vocabulary {model.embedding.num_embeddings}, dropout 0.2"
    return row("word-level language model", what, calls, losses, rounds)


def forecasting(hidden: int, layers: int, rounds: int) -> dict:
    """A fit of one epoch of examples/forecasting.py, Lightning's own work included."""
    program, calls = load("forecasting"), {}
    series = program.read_series()
    losses: dict[str, list[float]] = {"torch.nn.LSTM": [], "lstmvid": []}
    for name in losses:

        def fit(name=name) -> None:
            _, values = program.train(series, accelerate=name == "lstmvid", hidden=hidden, layers=layers)
            losses[name] += values

        calls[name] = fit
    what = f"a fit of one epoch: T=104 B=32 H={hidden} L={layers}, weekly CO2"
    return row("darts RNNModel", what, calls, losses, rounds)


def main() -> None:
    """Measure, print, and write a file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", choices=["language-model", "forecasting", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for the JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {"benchmark": "drop_in_speed", "version": 1} | environment("cpu") | {"dtype": "fp32", "rows": []}
    if arguments.program != "forecasting":
        result["rows"] += [language_model(*sizes, arguments.rounds) for sizes in LANGUAGE_MODELS]
    if arguments.program != "language-model":
        result["rows"] += [forecasting(hidden, 2, max(arguments.rounds // 3, 3)) for hidden in (64, 128)]
    for entry in result["rows"]:
        plain, swapped = (f"{entry['seconds'][name] * 1e3:.1f} ms" for name in ("torch.nn.LSTM", "lstmvid"))
        print(f"{entry['program']}, {entry['what']}: {plain} before, {swapped} after, {entry['speedup']:.2f} times")
    if arguments.output is not None:
        name = f"drop-in-{result['device']['name'].lower().replace(' ', '-')}-{arguments.threads}-threads.json"
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.output / name, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
