"""What comes out: the machine's description, a table, and files that are written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import lstmvid
from lstmvid import _native

ROOT = Path(__file__).resolve().parents[1]

TITLES = {"lstm": "LSTM", "composite": "composite model"}


def environment(device: str) -> dict:
    """Device, versions and commit: what a number means nothing without."""
    versions = {"lstmvid": lstmvid.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if device.startswith("cuda"):
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    status = _git("status", "--porcelain")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device(device),
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _device(device: str) -> dict:
    cpu = {
        "name": _cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "instruction_set": _native.INSTRUCTION_SET,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device == "cpu":
        return {"type": "cpu", **cpu}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "host": cpu,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """What git says, or None without git or a commit."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def file_stem(result: dict) -> str:
    """`unroll_speed-<device>`, so that each device has its own result."""
    return "unroll_speed-" + re.sub(r"[^a-z0-9]+", "-", _device_name(result["device"]).lower()).strip("-")


def _device_name(device: dict) -> str:
    if device["type"] != "cpu":
        return device["name"]
    return f"{device['name']}, {device['threads']} thread{'s' if device['threads'] > 1 else ''}"


def shape_text(row: dict) -> str:
    """The row's sizes, as the table has them."""
    sizes = {"T": "steps", "B": "batch", "D": "frame_size", "H": "hidden_size", "L": "num_layers"}
    return " ".join(f"{letter}={row[key]}" for letter, key in sizes.items()) + f" {row['dtype']}"


def print_tables(result: dict, console: Console) -> None:
    """A table for each model and mode: for each shape a block, the baseline first."""
    blocks = defaultdict(list)
    for row in result["rows"]:
        blocks[row["model"], row["mode"]].append(row)
    for (model, mode), rows in blocks.items():
        table = Table(title=f"{TITLES[model]}, {mode}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.padding, table.show_edge = (0, 1, 0, 0), False
        table.add_column(no_wrap=True)
        for heading in ("median", "ratio", "GFLOP/s", "GEMM", "copy", "MiB"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(shape_text(row), style="bold")
            for entry in row["contestants"]:
                table.add_row("  " + entry["name"], *_cells(entry))
        console.print(table)
        console.print()
    peaks = ", ".join(f"{name} {peak['flop_per_s'] / 1e9:,.0f} GFLOP/s" for name, peak in result["gemm_peaks"].items())
    console.print(
        'ratio: speed relative to torch.nn.LSTM, from medians of interleaved rounds (bold: what backend="auto" takes); '
        f"GEMM: share of a large matrix product's speed here ({peaks}); copy: weights read in every step, frames and "
        f"states, as a share of a large copy's speed ({result['copy_bytes_per_s'] / 1e9:,.1f} GB/s), more than 100% "
        "where weights stay in cache; MiB: peak memory beyond weights and frames.",
        style="dim",
        highlight=False,
    )


def _cells(entry: dict) -> list[str]:
    if not entry["correct"]:
        return ["[red]wrong[/red]", "", "", "", "", ""]
    ratio = "?" if entry["speedup"] is None else f"{entry['speedup']:.2f}"
    memory = entry["peak_memory_bytes"]
    return [
        _duration(entry["seconds"]["median"]),
        f"[bold]{ratio}[/bold]" if entry["auto"] else ratio,
        f"{entry['flop_per_s'] / 1e9:,.{0 if entry['flop_per_s'] >= 1e10 else 1}f}",
        f"{entry['share_of_gemm_peak']:.0%}",
        f"{entry['share_of_copy_peak']:.0%}",
        "?" if memory is None else f"{memory / 2**20:,.0f}",
    ]


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def write(result: dict, folder: Path, console: Console) -> None:
    """The JSON file and, if matplotlib is there, the plot."""
    path = folder / f"{file_stem(result)}.json"
    write_whole(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    console.print(f"wrote {path}", soft_wrap=True)
    try:
        picture = plot(result)
    except ModuleNotFoundError as error:
        console.print(f"no plot: it needs {error.name} (pip install -e '.[plots]')")
        return
    if picture is not None:
        write_whole(path.with_suffix(".png"), picture)
        console.print(f"wrote {path.with_suffix('.png')}", soft_wrap=True)


def verdict(result: dict, console: Console) -> int:
    """Say what was left out and what is wrong; 1 if anything is wrong, else 0."""
    for name, reason in result["left_out"].items():
        console.print(f"left out: {name}: {reason}", style="dim", highlight=False, soft_wrap=True)
    device = result["device"]
    load, cores = result["load_average_before"], device.get("host", device)["cores"]
    if load is not None and load > 0.5 * cores:
        console.print(
            f"The machine was busy before (load {load:.1f} on {cores} cores): mistrust its times.", style="yellow"
        )
    wrong = [(row, entry) for row in result["rows"] for entry in row["contestants"] if not entry["correct"]]
    for row, entry in wrong:
        console.print(
            f"wrong: {entry['name']}, {row['model']} {row['mode']} {shape_text(row)}: {entry['largest_error_in']} is "
            f"off by {entry['error_over_bound']:.3g} times what rounding allows",
            style="red",
        )
    return 1 if wrong else 0


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that others see complete or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def plot(result: dict) -> bytes | None:
    """A PNG: the speed-up of what `backend="auto"` takes, by unroll length, a curve for each hidden size.

    None if nothing of that was measured.

    Raises:
        ModuleNotFoundError: matplotlib isn't installed.
    """
    from matplotlib.figure import Figure

    panels = defaultdict(lambda: defaultdict(list))
    for row in result["rows"]:
        for entry in row["contestants"]:
            if entry["auto"] and entry["correct"] and entry["speedup"] is not None:
                panels[row["model"], row["mode"]][_curve(row)].append((row["steps"], entry))
    if not panels:
        return None
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * lines + 0.6), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    colours = _colours({curve for curves in panels.values() for curve in curves})
    for axis, ((model, mode), curves) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, curves, colours)
        axis.set_title(f"{TITLES[model]}, {mode}", loc="left", fontsize=11)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle(_heading(result), x=0.01, ha="left", fontsize=10, color="0.35")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def _curve(row: dict) -> tuple:
    return tuple(row[key] for key in ("hidden_size", "frame_size", "batch", "num_layers", "dtype"))


def _colours(curves: set[tuple]) -> dict[int, str]:
    """A colour for each hidden size, from light to dark."""
    from matplotlib import colormaps

    sizes = sorted({curve[0] for curve in curves})
    shades = colormaps["viridis_r"]
    return {size: shades(0.15 + 0.8 * index / max(len(sizes) - 1, 1)) for index, size in enumerate(sizes)}


def _draw_panel(axis, curves: dict[tuple, list], colours: dict) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    markers = iter("osD^vPX*<>ph" * len(curves))
    top, unrolls = 1.0, set()
    for curve, points in sorted(curves.items()):
        hidden, frame_size, batch, layers, dtype = curve
        points.sort(key=lambda point: point[0])
        steps = [step for step, _ in points]
        speed_up = [entry["speedup"] for _, entry in points]
        low = [max(entry["speedup"] - entry["speedup_q1"], 0) for _, entry in points]
        high = [max(entry["speedup_q3"] - entry["speedup"], 0) for _, entry in points]
        label = f"H={hidden}  D={frame_size} B={batch} L={layers} {dtype}"
        style = {"marker": next(markers), "markersize": 6, "capsize": 2, "linewidth": 1.6, "elinewidth": 1}
        style["fillstyle"] = "none" if dtype in ("bf16", "fp16") else "full"
        axis.errorbar(steps, speed_up, (low, high), color=colours[hidden], label=label, **style)
        top, unrolls = max(top, *speed_up), unrolls | set(steps)
    axis.axhline(1, color="0.4", linewidth=1, linestyle="--", zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(unrolls))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(0, top * 1.15)
    axis.set_xlabel("unroll length T")
    axis.set_ylabel("times torch.nn.LSTM's speed")
    axis.grid(axis="y", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(-0.02, -0.14))


def _heading(result: dict) -> str:
    versions, commit = result["versions"], result["commit"]
    text = f"{_device_name(result['device'])}, torch {versions['torch']}, lstmvid {versions['lstmvid']}"
    if commit is not None:
        text += f" at {commit[:10]}" + (" with changes" if result["dirty"] else "")
    return text + f", {result['date'][:10]}"
