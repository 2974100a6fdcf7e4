"""What only this package can do, beside the fastest thing that people write in plain torch.

    python benchmarks/decoder_speed.py --output benchmarks/results      all rows: some minutes on two cores
    python benchmarks/decoder_speed.py --quick                          the same rows at small sizes
    python benchmarks/decoder_speed.py --row peephole ragged

Rows: a training step of an LSTM with peepholes beside loops over steps; generation of 100 frames beside loops over
`nn.LSTM` and `nn.LSTMCell`; a training step of the composite model beside the same on `nn.LSTM` with frames of zeros;
ragged batches beside padded ones; memory and time of long unrolls. All results and gradients of a row agree with the
first baseline in float64 before anything is timed. Exits with 1 if one doesn't.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import baselines
import measure
import numpy as np
import report
import torch
import unusual_baselines as unusual
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstmvid
from lstmvid import testing

Data = dict[str, Tensor]
Call = Callable[[nn.Module, Data], Data]


@dataclass
class Row:
    """One function at one size: contestants by name, the baselines first, each a module and how it is called.

    A speed-up is over the fastest of `baselines`.
    """

    table: str
    sizes: dict
    data: Data
    contestants: dict[str, tuple[nn.Module, Call]]
    baselines: tuple[str, ...]
    trains: bool = True
    aim: float | None = None
    useless: frozenset[str] = frozenset()  # weights of a baseline that ours has not

    def call(self, name: str, data: Data | None = None, *, double: bool = False) -> Data:
        """Results, and in training the gradients, which stay in the parameters."""
        module, call = self.contestants[name]
        if double:
            module = copy.deepcopy(module).double()
        if not self.trains:
            with torch.no_grad():
                return call(module, data or self.data)
        module.zero_grad(set_to_none=True)
        results = call(module, data or self.data)
        results["loss"].backward()
        gradients = {f"gradient of {n}": p.grad for n, p in module.named_parameters() if n not in self.useless}
        return results | gradients


def _copied(source: nn.Module, target: nn.Module) -> nn.Module:
    """The target with the source's weights, those that it has."""
    names = set(dict(target.named_parameters()))
    target.load_state_dict({n: w for n, w in source.state_dict().items() if n in names}, strict=False)
    return target


def _lstm_loss(module: nn.Module, data: Data) -> Data:
    output, (h_n, c_n) = module(data["frames"])
    return {"loss": (output * data["seed"]).sum(), "output": output, "h_n": h_n, "c_n": c_n}


def peephole_row(steps: int, batch: int, size: int, aim: float) -> Row:
    """A training step of one layer."""
    ours = lstmvid.LSTM(size, size, peephole=True)
    nn.init.uniform_(ours.weight_peephole_l0, -0.3, 0.3)
    loops = {name: _copied(ours, unusual.PeepholeLoop(size, size, scripted=name != "loop")) for name in ("loop", "jit")}
    data = {"frames": torch.randn(steps, batch, size), "seed": torch.randn(steps, batch, size)}
    named = {"torch loop": loops["loop"], "torch.jit.script loop": loops["jit"], "lstmvid": ours}
    contestants = {name: (module, _lstm_loss) for name, module in named.items()}
    sizes = {"steps": steps, "batch": batch, "frame_size": size, "hidden_size": size}
    return Row("peephole training step", sizes, data, contestants, ("torch loop", "torch.jit.script loop"), aim=aim)


def generation_row(batch: int, frame_size: int, hidden: int, steps: int, aim: float) -> Row:
    """Frames of the predictor on its own output, after ten that the encoder sees."""
    plain = baselines.PlainComposite(frame_size, hidden, 1)
    cells = _copied(plain, unusual.CellComposite(frame_size, hidden, 1))
    ours = _copied(plain, lstmvid.FusedComposite(frame_size, hidden, 1, peephole=False))
    named = {"nn.LSTM loop": plain, "nn.LSTMCell loop": cells, "lstmvid": ours}

    def call(module: nn.Module, data: Data) -> Data:
        return {"frames": module.predict(data["context"], steps)}

    data = {"context": torch.rand(10, batch, frame_size)}
    sizes = {"steps": steps, "batch": batch, "frame_size": frame_size, "hidden_size": hidden}
    contestants = {name: (module, call) for name, module in named.items()}
    names = ("nn.LSTM loop", "nn.LSTMCell loop")
    return Row("generation", sizes, data, contestants, names, trains=False, aim=aim)


def composite_row(sizes: tuple[int, int, int, int], layers: int, modes: tuple[str, str], aim: float) -> Row:
    """A training step; `modes` of reconstruction and prediction."""
    steps, batch, frame_size, hidden = sizes
    plain = unusual.ModesComposite(frame_size, hidden, layers, *modes)
    reconstruct, predict = modes
    options = {"reconstruct": reconstruct, "predict": predict, "peephole": False}
    ours = _copied(plain, lstmvid.FusedComposite(frame_size, hidden, layers, **options))

    def call(module: nn.Module, data: Data) -> Data:
        out = module(data["frames"], data["targets"])
        if isinstance(module, unusual.ModesComposite):
            return dict(zip(("reconstruction", "prediction", "loss"), out, strict=True))
        return {"reconstruction": out.reconstruction, "prediction": out.prediction, "loss": out.loss}

    data = {name: torch.rand(steps, batch, frame_size) for name in ("frames", "targets")}
    contestants = {"nn.LSTM": (plain, call), "lstmvid": (ours, call)}
    named = {"steps": steps, "batch": batch, "frame_size": frame_size, "hidden_size": hidden, "num_layers": layers}
    named["decoders"] = f"{reconstruct} reconstruction, {predict} prediction"
    parts = dict(zip(("reconstructor", "predictor"), modes, strict=True))
    useless = frozenset(f"{part}.weight_ih_l0" for part, mode in parts.items() if mode == "unconditional")
    return Row("composite training step", named, data, contestants, ("nn.LSTM",), aim=aim, useless=useless)


def ragged_row(steps: int, batch: int, size: int) -> Row:
    """A training step over sequences of 1 to T steps, beside the padded batch: `aim` is the other way round."""
    lengths = torch.randint(1, steps + 1, (batch,))
    lengths[0] = steps
    inside = (torch.arange(steps).unsqueeze(1) < lengths).unsqueeze(2)
    data = {"frames": torch.randn(steps, batch, size), "seed": torch.randn(steps, batch, size) * inside}
    theirs = nn.LSTM(size, size)
    ours = _copied(theirs, lstmvid.LSTM(size, size, backend="cpu"))

    def masked(module: nn.Module, data: Data) -> Data:
        return {"loss": (module(data["frames"])[0] * data["seed"]).sum()}

    def packed(module: nn.Module, data: Data) -> Data:
        sequence = pack_padded_sequence(data["frames"], lengths, enforce_sorted=False)
        output = module(sequence)[0]
        assert isinstance(output, PackedSequence)
        return {"loss": (pad_packed_sequence(output)[0] * data["seed"]).sum()}

    def with_lengths(module: nn.Module, data: Data) -> Data:
        state = (data["frames"].new_zeros(1, batch, size),) * 2
        weights = [module.get_parameter(f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        output = lstmvid.functional.lstm(data["frames"], state, weights, lengths=lengths, backend="cpu")[0]
        return {"loss": (output * data["seed"]).sum()}

    contestants = {
        "nn.LSTM, padded": (theirs, masked),
        "nn.LSTM, PackedSequence": (theirs, packed),
        "lstmvid, padded": (ours, masked),
        "lstmvid, lengths=": (ours, with_lengths),
        "lstmvid, PackedSequence": (ours, packed),
    }
    sizes = {"steps": steps, "batch": batch, "frame_size": size, "hidden_size": size}
    return Row("ragged batch, training step", sizes, data, contestants, ("lstmvid, padded",), aim=1 / 1.3)


def _long_contestants(size: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    theirs = nn.LSTM(size, size)
    ours = {
        mode: _copied(theirs, lstmvid.LSTM(size, size, backend="cpu", recompute=mode)) for mode in ("none", "gates")
    }
    return {"nn.LSTM": theirs, "lstmvid": ours["none"], "lstmvid, recompute": ours["gates"]}


def long_row(steps: int, batch: int, size: int) -> Row:
    """A training step of a long unroll; `measure_row` adds its memory."""
    data = {"frames": torch.randn(steps, batch, size), "seed": torch.randn(steps, batch, size)}
    contestants = {name: (module, _lstm_loss) for name, module in _long_contestants(size).items()}
    sizes = {"steps": steps, "batch": batch, "frame_size": size, "hidden_size": size}
    return Row("long unroll, training step", sizes, data, contestants, ("lstmvid",), aim=1 / 1.45)


def peak_of(name: str, steps: int, batch: int, size: int, threads: int) -> int | None:
    """Bytes that a training step takes beyond its frames, its output and its gradients, in a process of its own."""
    torch.set_num_threads(threads)
    module = _long_contestants(size)[name]
    frames, seed = torch.randn(steps, batch, size), torch.randn(steps, batch, size)

    def step(length: int) -> None:
        module.zero_grad(set_to_none=True)
        module(frames[:length])[0].backward(seed[:length])

    step(2)  # libraries' own buffers
    module.zero_grad(set_to_none=True)
    peak = measure.peak_memory(partial(step, steps), "cpu")
    given = frames.nbytes + sum(weight.nbytes for weight in module.parameters())
    return None if peak is None else max(peak - given, 0)


def rows(quick: bool) -> dict[str, list[Callable[[], Row]]]:
    """By their names on the command line; each is made when it is its turn."""
    modes = (("unconditional", "unconditional"), ("unconditional", "conditional"), ("conditional", "conditional"))
    aims = (2.5, 1.5, 1.5)
    composite = (3, 2, 64, 32) if quick else (10, 16, 4096, 512)
    return {
        "peephole": [
            partial(peephole_row, *sizes)
            for sizes in ([(5, 3, 16, 2.2)] if quick else [(50, 32, 512, 2.2), (200, 4, 128, 6.0)])
        ],
        "generation": [
            partial(generation_row, batch, *((64, 32, 5) if quick else (1024, 512, 100)), aim)
            for batch, aim in ((1, 1.3), (16, 3.0))
        ],
        "composite": [
            partial(composite_row, composite, layers, mode, aim)
            for layers in (1, 2)
            for mode, aim in zip(modes, aims, strict=True)
        ],
        "ragged": [
            partial(ragged_row, *sizes) for sizes in ([(7, 5, 16)] if quick else [(50, 32, 512), (100, 16, 1024)])
        ],
        "long": [partial(long_row, *((70, 2, 16) if quick else (1000, 16, 512)))],
    }


def errors(row: Row) -> dict[str, tuple[float, str]]:
    """Of each contestant the largest error over its bound (`baselines.errors`), and of which result."""
    first = next(iter(row.contestants))
    exact = _detached(row.call(first, {name: value.double() for name, value in row.data.items()}, double=True))
    plain = _detached(row.call(first))
    floor = testing.FLOORS[torch.float32]
    return {name: baselines.worst(_detached(row.call(name)), plain, exact, floor) for name in row.contestants}


def _detached(values: Data) -> Data:
    return {name: value.detach().clone() for name, value in values.items()}


def measure_row(row: Row, rounds: int | None, budget: float) -> dict:
    """Check, then time; for long unrolls, memory too."""
    found = errors(row)
    calls = {name: partial(row.call, name) for name in row.contestants if found[name][0] <= 1}
    for call in list(calls.values()) * 2:
        call()  # the scripted loop is compiled in its first calls
    times = measure.interleaved(calls, "cpu", rounds=rounds, budget=budget)
    fastest = min((name for name in row.baselines if name in calls), key=lambda n: np.median(times[n]), default=None)
    entries = []
    for name in row.contestants:
        error, where = found[name]
        entry = {"name": name, "correct": name in calls, "error_over_bound": error, "largest_error_in": where}
        if name in calls:
            q1, median, q3 = np.percentile(times[name], [25, 50, 75]).tolist()
            entry |= {"rounds": len(times[name]), "seconds": {"median": median, "q1": q1, "q3": q3}}
            entry["speedup"] = None if fastest is None else float(np.median(times[fastest])) / median
        entries.append(entry)
    if row.table.startswith("long"):
        sizes = [row.sizes[key] for key in ("steps", "batch", "hidden_size")]
        for entry in entries:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                peak = pool.submit(peak_of, entry["name"], *sizes, torch.get_num_threads()).result()
            entry["peak_bytes_beyond_inputs_and_outputs"] = peak
    return {"table": row.table, **row.sizes, "dtype": "fp32", "aim": row.aim, "over": fastest, "contestants": entries}


def lines(row: dict) -> Iterator[str]:
    """A row as text."""
    sizes = {"T": "steps", "B": "batch", "D": "frame_size", "H": "hidden_size", "L": "num_layers"}
    text = " ".join(f"{letter}={row[key]}" for letter, key in sizes.items() if key in row)
    yield f"{row['table']}, {text}" + (f", {row['decoders']}" if "decoders" in row else "")
    for entry in row["contestants"]:
        if not entry["correct"]:
            yield f"  {entry['name']:28} wrong: {entry['largest_error_in']}, {entry['error_over_bound']:.3g} times"
            continue
        ratio = "" if entry["speedup"] is None else f"{entry['speedup']:6.2f}"
        peak = entry.get("peak_bytes_beyond_inputs_and_outputs")
        memory = "" if peak is None else f"  {peak / 2**20:,.0f} MiB beyond inputs and outputs"
        yield f"  {entry['name']:28} {entry['seconds']['median'] * 1e3:10.2f} ms {ratio}{memory}"
    yield f"  speed relative to {row['over']}; aim {row['aim']:.2f}"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write a file if asked to; 1 if a result is wrong."""
    parser = argparse.ArgumentParser("decoder_speed.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--row", choices=list(rows(True)), nargs="+", default=list(rows(True)))
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: whether all of it runs")
    parser.add_argument("--rounds", type=int, help="timed rounds of a row; default: what fits into its seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for the JSON file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    result = {"benchmark": "decoder_speed", "version": 1, "quick": args.quick} | report.environment("cpu")
    result["rows"] = []
    for name in args.row:
        for make in rows(args.quick)[name]:
            torch.manual_seed(0)
            row = measure_row(make(), args.rounds, 0.2 if args.quick else 10.0)
            result["rows"].append(row)
            print("\n".join(lines(row)), flush=True)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / f"{report.file_stem(result).replace('unroll_speed', 'decoder_speed')}.json"
        report.write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
        print(f"wrote {path}")
    return 0 if all(entry["correct"] for row in result["rows"] for entry in row["contestants"]) else 1


if __name__ == "__main__":
    sys.exit(main())
