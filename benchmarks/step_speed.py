"""Microseconds a step of the forward recurrent kernel, beside the planner's prediction, and of plans it left aside.

    python benchmarks/step_speed.py --output DIR

A step's time is the difference between a long and a short unroll over the difference of their steps, so that what is
done once a call (packing weights, launching) drops out; it is reported by itself. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

try:
    import measure
    import report
except ModuleNotFoundError as error:
    sys.exit(f"step_speed.py needs {error.name}: pip install -e '.[train]'")

from lstmvid import backends
from lstmvid.backends import plan as planner
from lstmvid.backends.cuda import lstm_sequence as backend
from lstmvid.ops import LayerWeights, lstm_sequence

STEPS = (100, 400)
SHAPES = [(hidden, batch) for hidden in (64, 256, 512, 768, 1024, 1536, 2048, 3072) for batch in (1, 16, 80, 128)]
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}


@torch.no_grad()
def step_time(hidden: int, batch: int, dtype: torch.dtype) -> tuple[float, float]:
    """(microseconds a step, microseconds a call beside its steps), of a layer without input: no library GEMM in it."""
    weight = torch.randn(4 * hidden, hidden, device="cuda", dtype=dtype) * hidden**-0.5
    bias = torch.zeros(4 * hidden, device="cuda", dtype=dtype)
    state = torch.zeros(1, 1, batch, hidden, device="cuda", dtype=dtype)
    weights = [[LayerWeights(None, weight, bias, bias)]]

    def call(steps: int) -> None:
        lstm_sequence([], state, state, weights, steps=steps, backend="cuda")

    calls = {str(steps): lambda steps=steps: call(steps) for steps in STEPS}
    for warm in calls.values():
        warm()
    times = measure.interleaved(calls, "cuda", rounds=7)
    short, long = (1e6 * sorted(times[str(steps)])[3] for steps in STEPS)
    step = (long - short) / (STEPS[1] - STEPS[0])
    return step, short - step * STEPS[0]


def alternatives(chosen: planner.Plan, without_clusters: planner.Plan) -> list[planner.Plan]:
    """No clusters; shorter rings; and without the registers' share, where the plan's own shared memory allows it."""
    found = [replace(chosen, hidden_stages=stages) for stages in (2, 3) if stages < chosen.hidden_stages]
    if chosen.register_rounds and chosen.weight_stages:
        found.append(replace(chosen, register_rounds=0))  # these rounds are streamed then
    return found + ([without_clusters] if chosen.cluster > 1 else [])


def measure_shape(hidden: int, batch: int, name: str, limits: planner.DeviceLimits) -> list[dict]:
    """A row for the plan that is chosen, and for each of the others."""
    dtype, planned = DTYPES[name], backend.plan
    chosen = planned(hidden, batch, dtype, limits, tf32=True)
    alone = limits._replace(active_clusters=(limits.active_clusters[0], 0, 0, 0))
    rows = []
    for candidate in (chosen, *alternatives(chosen, planned(hidden, batch, dtype, alone, tf32=True))):
        row = {"hidden": hidden, "batch": batch, "dtype": name, "chosen": candidate is chosen}
        row |= {"plan": candidate.kernel_arguments()}
        if candidate is chosen:
            row |= {"predicted_us": chosen.microseconds, "bound": chosen.bound}
        backend.plan = lambda *_, candidate=candidate, **__: candidate
        try:
            row["step_us"], row["call_us"] = step_time(hidden, batch, dtype)
        except (RuntimeError, ValueError) as error:
            row["error"] = str(error).splitlines()[0]
        finally:
            backend.plan = planned
        rows.append(row)
    return rows


def main() -> int:
    """Measure all shapes; exits with 1 if any could not be run."""
    parser = argparse.ArgumentParser("step_speed.py", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the JSON file")
    args = parser.parse_args()
    reason = backends.unavailable("cuda", backends.Request("cuda", torch.float32))
    if reason is not None:
        parser.exit(2, f"step_speed.py: {reason}\n")
    args.output.mkdir(parents=True, exist_ok=True)
    limits = backend.target_of(torch.device("cuda", torch.cuda.current_device())).limits
    measure.set_tf32(True)
    rows = []
    for name in DTYPES:
        for hidden, batch in SHAPES:
            for row in measure_shape(hidden, batch, name, limits):
                rows.append(row)
                print(json.dumps(row))
    result = {"benchmark": "step_speed", "version": 1} | report.environment("cuda")
    result |= {"limits": limits._asdict(), "steps": STEPS, "rows": rows}
    device = re.sub(r"[^a-z0-9]+", "-", limits.name.lower()).strip("-")
    path = args.output / f"step_speed-{device}.json"
    report.write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    print(f"wrote {path}")
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
