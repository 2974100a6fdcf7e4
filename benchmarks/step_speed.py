"""Microseconds a step of the recurrent kernels, beside the planner's prediction, and of plans it left aside.

    python benchmarks/step_speed.py --output DIR

A step's time is the difference between a long and a short unroll over the difference of their steps, so that what is
done once a call (packing weights, launching) drops out; it is reported by itself. The layer has no input, and backward
only its initial state's gradient is asked for, so that no library GEMM is in it. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

try:
    import measure
    import report
except ModuleNotFoundError as error:
    sys.exit(f"step_speed.py needs {error.name}: pip install -e '.[train]'")

from lstmvid import backends
from lstmvid.backends import plan as planner
from lstmvid.backends.cuda import recurrence as backend
from lstmvid.ops import LayerWeights, lstm_sequence

STEPS = (100, 400)
SHAPES = [(hidden, batch) for hidden in (64, 256, 512, 768, 1024, 1536, 2048, 3072) for batch in (1, 16, 80, 128)]
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}
DIRECTIONS = ("forward", "backward")


def calls(hidden: int, batch: int, dtype: torch.dtype, direction: str) -> dict[str, measure.Call]:
    """A call of the direction for each number of steps, by that number."""
    weight = torch.randn(4 * hidden, hidden, device="cuda", dtype=dtype) * hidden**-0.5
    bias = torch.zeros(4 * hidden, device="cuda", dtype=dtype)
    state = torch.zeros(1, 1, batch, hidden, device="cuda", dtype=dtype, requires_grad=direction == "backward")
    weights = [[LayerWeights(None, weight, bias, bias)]]

    def forward(steps: int) -> torch.Tensor:
        return lstm_sequence([], state, state.detach(), weights, steps=steps, backend="cuda").output

    def backward(output: torch.Tensor, seed: torch.Tensor) -> None:
        torch.autograd.grad(output, state, seed, retain_graph=True)

    if direction == "forward":
        return {str(steps): partial(forward, steps) for steps in STEPS}
    outputs = {str(steps): forward(steps) for steps in STEPS}
    return {steps: partial(backward, output, torch.randn_like(output)) for steps, output in outputs.items()}


def step_time(hidden: int, batch: int, dtype: torch.dtype, direction: str) -> tuple[float, float]:
    """(microseconds a step, microseconds a call beside its steps)."""
    timed = calls(hidden, batch, dtype, direction)
    for warm in timed.values():
        warm()
    times = measure.interleaved(timed, "cuda", rounds=7)
    short, long = (1e6 * sorted(times[str(steps)])[3] for steps in STEPS)
    step = (long - short) / (STEPS[1] - STEPS[0])
    return step, short - step * STEPS[0]


def alternatives(chosen: planner.Plan, smaller: list[planner.Plan]) -> list[planner.Plan]:
    """Shorter rings; without the registers' share, where the plan's own shared memory allows it; smaller clusters."""
    found = [replace(chosen, hidden_stages=stages) for stages in (2, 3) if stages < chosen.hidden_stages]
    if chosen.register_rounds and chosen.weight_stages:
        found.append(replace(chosen, register_rounds=0))  # these rounds are streamed then
    return found + list(dict.fromkeys(smaller))


def measure_shape(hidden: int, batch: int, name: str, direction: str, limits: planner.DeviceLimits) -> list[dict]:
    """A row for the plan that is chosen, and for each of the others."""
    dtype, planned, is_backward = DTYPES[name], backend.plan, direction == "backward"
    chosen = planned(hidden, batch, dtype, limits, tf32=True, backward=is_backward)
    smaller = []
    for count in range(1, planner.CLUSTER_SIZES.index(chosen.cluster) + 1):
        active = limits.active_clusters[:count] + (0,) * (len(limits.active_clusters) - count)
        limited = limits._replace(active_clusters=active)
        smaller.append(planned(hidden, batch, dtype, limited, tf32=True, backward=is_backward))
    rows = []
    for candidate in (chosen, *alternatives(chosen, smaller)):
        row = {"hidden": hidden, "batch": batch, "dtype": name, "direction": direction, "chosen": candidate is chosen}
        row |= {"plan": candidate.kernel_arguments()}
        if candidate is chosen:
            row |= {"predicted_us": chosen.microseconds, "bound": chosen.bound}

        def force(*sizes, candidate=candidate, **options) -> planner.Plan:
            return candidate if options["backward"] == is_backward else planned(*sizes, **options)

        backend.plan = force
        try:
            row["step_us"], row["call_us"] = step_time(hidden, batch, dtype, direction)
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
    for name, direction, (hidden, batch) in itertools.product(DTYPES, DIRECTIONS, SHAPES):
        for row in measure_shape(hidden, batch, name, direction, limits):
            rows.append(row)
            print(json.dumps(row))
    result = {"benchmark": "step_speed", "version": 2} | report.environment("cuda")
    result |= {"limits": limits._asdict(), "steps": STEPS, "rows": rows}
    device = re.sub(r"[^a-z0-9]+", "-", limits.name.lower()).strip("-")
    path = args.output / f"step_speed-{device}.json"
    report.write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    print(f"wrote {path}")
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
