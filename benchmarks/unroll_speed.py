"""Speed of lstmvid beside `torch.nn.LSTM`, by unroll length, frame size, hidden size, batch and dtype.

    python benchmarks/unroll_speed.py                                   the default sizes for this device
    python benchmarks/unroll_speed.py --quick                           under a minute
    python benchmarks/unroll_speed.py --steps 20 100 --hidden 512 --patch 32 64 --dtype bf16

Two models: a plain LSTM, and the composite model against itself as people write it on `torch.nn.LSTM` (baselines.py).
Three modes: forward (without gradients), forward+backward (a training step without the optimiser), and generation
(the composite model's predictor on its own output). A row is timed only after outputs and gradients of all agree with
the baseline in float64. Writes a table, a JSON file and a plot; exits with 1 if a result is wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

try:
    import baselines
    import measure
    import report
    import shapes
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ModuleNotFoundError as error:
    sys.exit(f"unroll_speed.py needs {error.name}: pip install -e '.[train]'")

from lstmvid import backends

# The reference is a definition, not a competitor: unless it is named, it is left out where it would take most of the
# run (in forward FLOP).
REFERENCE_LIMIT = {"cpu": 6e10, "cuda": 1e13}

QUICK_SECONDS = 25  # so that --quick stays under a minute where others use the machine, too


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the list of options before it."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message} (--help shows the options)\n")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def frame(text: str) -> tuple[int, ...]:
    """`32` is 32x32; `3x32x32` is itself."""
    sizes = tuple(positive(part) for part in text.lower().split("x"))
    return sizes * 2 if len(sizes) == 1 else sizes


def parser() -> Parser:
    result = Parser("unroll_speed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = result.add_argument_group("sizes", "every combination; without any of them the default set")
    sizes.add_argument("--steps", type=positive, nargs="+", metavar="T", help="unroll lengths (20)")
    sizes.add_argument("--patch", type=frame, nargs="+", metavar="P", help="PxP frames, or a shape as 3x32x32 (32)")
    sizes.add_argument("--hidden", type=positive, nargs="+", metavar="H", help="hidden sizes (1024)")
    sizes.add_argument("--batch", type=positive, nargs="+", metavar="B", help="sequences in a batch (16)")
    sizes.add_argument("--layers", type=positive, nargs="+", metavar="L", help="LSTM layers (1)")
    dtypes = list(shapes.DTYPES)
    sizes.add_argument("--dtype", choices=dtypes, nargs="+", help="tf32 is float32 with a GPU's tf32 products (fp32)")
    result.add_argument("--model", choices=list(shapes.MODELS), nargs="+", default=list(shapes.MODELS))
    result.add_argument("--mode", choices=shapes.MODES, nargs="+", default=list(shapes.MODES))
    names = backends.NAMES[1:]
    result.add_argument("--backend", choices=names, nargs="+", help="ours to compare; default: each that can run")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    result.add_argument("--device", choices=("cpu", "cuda"), default=default_device)
    result.add_argument("--threads", type=positive, help="CPU threads; default: torch's own number")
    result.add_argument("--rounds", type=positive, help="timed rounds of a row; default: what fits into its seconds")
    result.add_argument("--quick", action="store_true", help="few small shapes and few rounds")
    limit = f"start no row after so many; what was measured is written (with --quick {QUICK_SECONDS}, else no limit)"
    result.add_argument("--seconds", type=positive, metavar="S", help=limit)
    default_output = "benchmarks/results for the default sizes, else runs/benchmarks"
    result.add_argument("--output", type=Path, metavar="DIR", help=f"folder of JSON and plot ({default_output})")
    return result


def seconds_of(args: argparse.Namespace) -> float:
    """After which no row is started."""
    return args.seconds or (QUICK_SECONDS if args.quick else math.inf)


def chosen_cases(args: argparse.Namespace) -> tuple[list[shapes.Case], bool]:
    """The cases, and whether they are the whole default set."""
    sizes = (args.steps, args.batch, args.patch, args.hidden, args.layers, args.dtype)
    if any(sizes):
        defaults = ([20], [16], [(32, 32)], [1024], [1], ["fp32"])
        given = (size or default for size, default in zip(sizes, defaults, strict=True))
        return shapes.grid_cases(args.model, *given), False
    cases = shapes.QUICK_CASES[args.device] if args.quick else shapes.default_cases(args.device)
    complete = not args.quick and set(args.model) == set(shapes.MODELS) and set(args.mode) == set(shapes.MODES)
    return [case for case in cases if case.model in args.model], complete and not args.backend


def runnable(cases: list[shapes.Case], args: argparse.Namespace) -> tuple[list[shapes.Case], dict[str, str]]:
    """The cases for which there is memory, and why others, and some backends, are left out."""
    left_out, fitting = {}, []
    free = measure.free_memory(args.device)
    for case in cases:
        if free is not None and case.footprint() > 0.8 * free:
            need = f"needs about {case.footprint() / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
            left_out[f"{case.model} {case}"] = need
        else:
            fitting.append(case)
    for name in args.backend or backends.NAMES[1:]:
        modes = {(case, mode) for case in fitting for mode in set(case.modes) & set(args.mode)}
        reasons = {baselines.why_not(case, args.device, name, mode) for case, mode in modes}
        if fitting and None not in reasons:
            left_out[name] = " / ".join(sorted(reasons))
    return fitting, left_out


def measure_row(case: shapes.Case, mode: str, fighters: list, data: dict, args: argparse.Namespace) -> dict:
    """Check every contestant, then measure those that are right."""
    errors = baselines.errors(case, mode, fighters, data)
    calls = {
        fighter.name: partial(baselines.compute, case, mode, fighter.module, data)
        for fighter in fighters
        if errors[fighter.name][0] <= 1
    }
    memory = {name: measure.peak_memory(call, args.device) for name, call in calls.items()}
    budget = 0.8 if args.quick else 6.0
    times = measure.interleaved(calls, args.device, rounds=args.rounds, budget=budget)
    entries = []
    for fighter in fighters:
        name, (error, where) = fighter.name, errors[fighter.name]
        entry = fighter.describe() | {"correct": name in calls, "error_over_bound": error, "largest_error_in": where}
        if name in calls:
            entry |= measure.statistics(times[name], times.get(baselines.BASELINE), case.flops(mode), case.bytes(mode))
            entry["peak_memory_bytes"] = memory[name]
        entries.append(entry)
    return case.describe(mode) | {"contestants": entries}


def measure_case(case: shapes.Case, args: argparse.Namespace, deadline: float) -> Iterator[dict]:
    """A row for each mode; raises TimeoutError at the first that would start after the deadline."""
    measure.set_tf32(case.dtype == "tf32")
    modes = [mode for mode in case.modes if mode in args.mode]
    too_much = case.flops(modes[0]) > REFERENCE_LIMIT[args.device]
    names = args.backend or [name for name in backends.NAMES[1:] if name != "reference" or not too_much]
    fighters, data = baselines.contestants(case, args.device, names), baselines.draw(case, args.device)
    for mode in modes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{mode}: nothing is started after {seconds_of(args)} seconds")
        able = [f for f in fighters if f.backend is None or not baselines.why_not(case, args.device, f.backend, mode)]
        yield measure_row(case, mode, able, data, args)


def measure_all(cases: list[shapes.Case], args: argparse.Namespace, console: Console) -> tuple[list[dict], dict]:
    """Every row of every case, and the cases for which memory or time ran out, with the reason."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    deadline = time.monotonic() + seconds_of(args)
    rows, left_out = [], {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(len(set(case.modes) & set(args.mode)) for case in cases))
        for case in cases:
            progress.update(task, description=f"{case.model} {case}")
            try:
                for row in measure_case(case, args, deadline):
                    rows.append(row)
                    progress.advance(task)
            except (torch.OutOfMemoryError, TimeoutError) as error:
                left_out[f"{case.model} {case}"] = str(error).splitlines()[0]
    return rows, left_out


def gemm_peaks(cases: list[shapes.Case], device: str) -> dict[str, dict]:
    """The best matrix product in each dtype."""
    peaks = {}
    for name in sorted({case.dtype for case in cases}):
        measure.set_tf32(name == "tf32")
        flop_per_s, by = measure.gemm_peak(shapes.DTYPES[name], device)
        peaks[name] = {"flop_per_s": flop_per_s, "by": by}
    return peaks


def run(cases: list[shapes.Case], left_out: dict[str, str], args: argparse.Namespace, console: Console) -> dict:
    """All measurements with what they were made on and beside; peaks are taken before and after, the better counts."""
    result = {"benchmark": "unroll_speed", "version": 1, "quick": args.quick} | report.environment(args.device)
    peaks, copy = gemm_peaks(cases, args.device), measure.copy_peak(args.device)
    rows, given_up = measure_all(cases, args, console)
    later = gemm_peaks(cases, args.device)
    peaks = {name: max(peaks[name], later[name], key=lambda peak: peak["flop_per_s"]) for name in peaks}
    copy = max(copy, measure.copy_peak(args.device))
    for row in rows:
        for entry in row["contestants"]:
            if entry["correct"]:
                entry["share_of_gemm_peak"] = entry["flop_per_s"] / peaks[row["dtype"]]["flop_per_s"]
                entry["share_of_copy_peak"] = entry["bytes_per_s"] / copy
    left_out = left_out | given_up
    return result | {"gemm_peaks": peaks, "copy_bytes_per_s": copy, "left_out": left_out, "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        arguments.error("--device cuda: this torch sees no NVIDIA GPU")
    wrong = [name for name in args.dtype or [] if name not in shapes.DEVICE_DTYPES[args.device]]
    if wrong:
        arguments.error(
            f"--dtype {wrong[0]}: measured on {args.device} are {', '.join(shapes.DEVICE_DTYPES[args.device])}"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    cases, is_default = chosen_cases(args)
    cases, left_out = runnable([case for case in cases if set(case.modes) & set(args.mode)], args)
    for name in args.backend or []:
        if name in left_out:
            arguments.error(f"--backend {name}: {left_out[name]}")
    if not cases:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in left_out.items())
        arguments.error(reasons or "there is nothing to measure: no such model has this mode")
    folder = args.output or report.ROOT / ("benchmarks/results" if is_default else "runs/benchmarks")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # better now than after all measurements
    except OSError as error:
        arguments.error(f"--output {folder}: {error.strerror}")

    console = Console()
    result = run(cases, left_out, args, console)
    report.print_tables(result, console)
    report.write(result, folder, console)
    return report.verdict(result, console)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("unroll_speed.py: interrupted, nothing was written")
