"""Microseconds a step of the recurrent kernels, beside the planner's prediction, and of plans it left aside.

    python benchmarks/step_speed.py --output DIR

Four tables. `steps`: a step of one recurrence by the plan that is chosen and by others; its time is the difference
between a long and a short unroll over the difference of their steps, so that what is done once a call (packing weights,
launching) drops out; it is reported by itself. `groups`: two recurrences in one launch beside one. `layers`: a stack as
the planner runs it, as a wavefront maybe, beside one layer after the other. No layer has an input, and backward only
the initial state's gradient is asked for, so that no library GEMM is in the first two. `closed loops`: a step of a
decoder on its own output by the backend triton, beside plain torch, which `"auto"` takes, and small ones, which are one
launch, beside the launches a step that they would be. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

try:
    import measure
    import report
except ModuleNotFoundError as error:
    sys.exit(f"step_speed.py needs {error.name}: pip install -e '.[train]'")

from lstmvid import backends
from lstmvid.backends import plan as planner
from lstmvid.backends.cuda import recurrence as backend
from lstmvid.ops import LayerWeights, closed_loop, lstm_sequence

STEPS = (100, 400)
LONG = 4000  # steps of a wavefront
LOOP_STEPS = 100  # of a closed loop
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}
DIRECTIONS = ("forward", "backward")


class Shape(NamedTuple):
    """Of a call without input."""

    hidden: int
    batch: int
    groups: int = 1
    layers: int = 1


SHAPES = [Shape(hidden, batch) for hidden in (2048, 1024, 512, 256, 768, 64, 1536, 3072) for batch in (80, 16, 128, 1)]
GROUPED = [Shape(hidden, batch, groups=2) for hidden in (1024, 512, 256) for batch in (16, 32, 80)]
LAYERED = [Shape(hidden, batch, layers=layers) for hidden in (128, 256, 512) for batch in (8, 32) for layers in (2, 4)]


class LoopShape(NamedTuple):
    """Of a closed loop."""

    frame: int
    hidden: int
    batch: int
    layers: int


LOOPS = [LoopShape(*of, batch, 2) for of in ((4096, 2048), (1024, 512), (256, 64), (64, 64)) for batch in (16, 80, 1)]


class Timed(NamedTuple):
    """How the calls of one direction are made: on this device, of this dtype."""

    direction: str
    dtype: torch.dtype
    device: str

    def call(self, shape: Shape, steps: int) -> measure.Call:
        """The direction alone, over so many steps."""
        hidden, (groups, layers) = shape.hidden, shape[2:]

        def draw(*sizes: int) -> torch.Tensor:
            return torch.randn(sizes, device=self.device).to(self.dtype) * hidden**-0.5

        bias = torch.zeros(4 * hidden, device=self.device, dtype=self.dtype)

        def layer(index: int) -> LayerWeights:
            weight_ih = draw(4 * hidden, hidden) if index else None
            return LayerWeights(weight_ih, draw(4 * hidden, hidden), bias, bias)

        weights = [[layer(index) for index in range(layers)] for _ in range(groups)]
        state = torch.zeros(groups, layers, shape.batch, hidden, device=self.device, dtype=self.dtype)
        is_backward = self.direction == "backward"
        state.requires_grad_(is_backward)

        def forward() -> torch.Tensor:
            return lstm_sequence([], state, state.detach(), weights, steps=steps, backend="cuda").output

        if not is_backward:
            return forward
        output = forward()
        seed = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, state, seed, retain_graph=True)

    def loop(self, shape: LoopShape, name: str) -> measure.Call:
        """The direction alone of a closed loop on that backend; its kernels have been compiled."""
        frame, hidden, batch, layers = shape

        def draw(*sizes: int) -> torch.Tensor:
            return torch.randn(sizes, device=self.device).to(self.dtype) * sizes[-1] ** -0.5

        weights = [
            LayerWeights(draw(4 * hidden, hidden if index else frame), draw(4 * hidden, hidden))
            for index in range(layers)
        ]
        head = draw(frame, hidden), draw(frame)
        state, is_backward = draw(layers, batch, hidden), self.direction == "backward"
        state.requires_grad_(is_backward)

        def forward() -> torch.Tensor:
            options = {"steps": LOOP_STEPS, "link": "sigmoid", "backend": name}
            return closed_loop(None, state, state.detach(), weights, *head, **options).z

        output = forward()
        if not is_backward:
            return forward
        seed = torch.randn_like(output)
        backward = partial(torch.autograd.grad, output, state, seed, retain_graph=True)
        backward()
        return backward

    def medians(self, calls: dict[str, measure.Call], rounds: int = 7) -> dict[str, float]:
        """Microseconds of each, interleaved, after a warm-up."""
        for warm in calls.values():
            warm()
        times = measure.interleaved(calls, self.device, rounds=rounds)
        return {name: 1e6 * sorted(of)[len(of) // 2] for name, of in times.items()}

    def step(self, shape: Shape) -> tuple[float, float]:
        """(microseconds a step, microseconds a call beside its steps)."""
        times = self.medians({str(steps): self.call(shape, steps) for steps in STEPS})
        short, long = (times[str(steps)] for steps in STEPS)
        step = (long - short) / (STEPS[1] - STEPS[0])
        return step, short - step * STEPS[0]


def alternatives(chosen: planner.Plan, others: list[planner.Plan]) -> list[planner.Plan]:
    """Shorter rings; without the registers' share, where the plan's own shared memory allows it; and the others."""
    found = [replace(chosen, hidden_stages=stages) for stages in (2, 3) if stages < chosen.hidden_stages]
    if chosen.register_rounds and chosen.weight_stages:
        found.append(replace(chosen, register_rounds=0))  # these rounds are streamed then
    return found + list(dict.fromkeys(others))


def step_rows(timed: Timed, shape: Shape, limits: planner.DeviceLimits) -> Iterator[dict]:
    """A row for the plan that is chosen, and for each of the others."""
    planned, is_backward = backend.plan, timed.direction == "backward"
    sizes = (shape.hidden, shape.batch, timed.dtype)
    chosen = planned(*sizes, limits, tf32=True, backward=is_backward)
    # By warps alone where warp groups were chosen, and smaller clusters.
    others = [planned(*sizes, limits, tf32=True, backward=is_backward, warp_groups=False)] if chosen.warp_groups else []
    for count in range(1, planner.CLUSTER_SIZES.index(chosen.cluster) + 1):
        active = limits.active_clusters[:count] + (0,) * (len(limits.active_clusters) - count)
        limited = limits._replace(active_clusters=active)
        others.append(planned(*sizes, limited, tf32=True, backward=is_backward))
    for candidate in (chosen, *alternatives(chosen, others)):
        row = {"chosen": candidate is chosen, "plan": candidate.kernel_arguments()}
        if candidate is chosen:
            row |= {"predicted_us": chosen.microseconds, "bound": chosen.bound}

        def force(*of, candidate=candidate, **options) -> planner.Plan:
            return candidate if options["backward"] == is_backward else planned(*of, **options)

        backend.plan = force
        try:
            row["step_us"], row["call_us"] = timed.step(shape)
        except (RuntimeError, ValueError) as error:
            row["error"] = str(error).splitlines()[0]
        finally:
            backend.plan = planned
        yield row


def group_rows(timed: Timed, shape: Shape, limits: planner.DeviceLimits) -> Iterator[dict]:
    """How many times a step of one recurrence a step of all groups takes."""

    def predicted(groups: int) -> float:
        options = {"tf32": True, "backward": timed.direction == "backward"}
        return planner.plan(shape.hidden, shape.batch, timed.dtype, limits, groups=groups, **options).microseconds

    one, all_groups = timed.step(shape._replace(groups=1))[0], timed.step(shape)[0]
    row = {"step_us": all_groups, "one_step_us": one, "ratio": all_groups / one}
    yield row | {"predicted_ratio": predicted(shape.groups) / predicted(1)}


def never(*_sizes, **_options) -> None:
    """In place of a planner's choice: layers run one after the other, and steps of a closed loop."""


def layer_rows(timed: Timed, shape: Shape, limits: planner.DeviceLimits) -> Iterator[dict]:
    """A stack as the planner runs it, and one layer after the other."""
    together = backend.wavefront
    options = {"tf32": True, "backward": timed.direction == "backward"}
    found = together(LONG, shape.hidden, shape.batch, shape.layers, timed.dtype, limits, **options)

    def apart(call: measure.Call) -> object:
        backend.wavefront = never
        try:
            return call()
        finally:
            backend.wavefront = together

    call = timed.call(shape, LONG)
    times = timed.medians({"planned": call, "apart": partial(apart, call)}, rounds=5)
    row = {"steps": LONG, "window": found.window if found else 0, "us": times["planned"], "apart_us": times["apart"]}
    yield row | {"predicted_us": found.microseconds if found else None}


def by_steps(call: measure.Call) -> object:
    """The call with launches for each step of a closed loop."""
    from lstmvid.backends.triton import closed_loop_steps

    whole = closed_loop_steps.choose_whole
    closed_loop_steps.choose_whole = never
    try:
        return call()
    finally:
        closed_loop_steps.choose_whole = whole


def loop_rows(timed: Timed, shape: LoopShape, _limits: planner.DeviceLimits) -> Iterator[dict]:
    """Microseconds a step of each backend, and what it reads of weights at least."""
    request = backends.Request(timed.device, timed.dtype, closed_loop=True)
    names = [name for name in ("triton", "reference") if backends.unavailable(name, request) is None]
    calls = {name: timed.loop(shape, name) for name in names}
    if "triton" in calls and shape.hidden <= 64:
        calls["triton_by_steps"] = partial(by_steps, calls["triton"])
    times = timed.medians(calls)
    frame, hidden, _, layers = shape
    count = 4 * hidden * (frame + (2 * layers - 1) * hidden) + frame * hidden
    row = {"steps": LOOP_STEPS, "weight_bytes": count * timed.dtype.itemsize}
    yield row | {f"{name}_step_us": us / LOOP_STEPS for name, us in times.items()}


TABLES: dict[str, tuple[Callable[..., Iterator[dict]], list[Shape] | list[LoopShape]]] = {
    "steps": (step_rows, SHAPES),
    "groups": (group_rows, GROUPED),
    "layers": (layer_rows, LAYERED),
    "closed loops": (loop_rows, LOOPS),
}


def measure_all(device: str, limits: planner.DeviceLimits, seconds: float) -> tuple[dict[str, list[dict]], int]:
    """The tables, and how many shapes were left out for want of time."""
    end, tables, left_out = time.monotonic() + seconds, {}, 0
    # The tables in turn, so that each has its first shapes where time is short.
    queues = {
        name: [(shape, dtype, direction) for dtype in DTYPES for shape in shapes for direction in DIRECTIONS]
        for name, (_, shapes) in TABLES.items()
    }
    for items in itertools.zip_longest(*queues.values()):
        for name, item in zip(queues, items, strict=True):
            if item is None:
                continue
            if time.monotonic() > end:
                left_out += 1
                continue
            shape, dtype, direction = item
            of = {**shape._asdict(), "dtype": dtype, "direction": direction}
            for row in TABLES[name][0](Timed(direction, DTYPES[dtype], device), shape, limits):
                tables.setdefault(name, []).append(of | row)
                print(json.dumps({"table": name} | of | row))
    return tables, left_out


def main() -> int:
    """Measure all shapes; exits with 1 if any could not be run."""
    parser = argparse.ArgumentParser("step_speed.py", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the JSON file")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="start nothing after so many")
    args = parser.parse_args()
    reason = backends.unavailable("cuda", backends.Request("cuda", torch.float32))
    if reason is not None:
        parser.exit(2, f"step_speed.py: {reason}\n")
    args.output.mkdir(parents=True, exist_ok=True)
    limits = backend.target_of(torch.device("cuda", torch.cuda.current_device())).limits
    measure.set_tf32(True)
    tables, left_out = measure_all("cuda", limits, args.seconds)
    result = {"benchmark": "step_speed", "version": 4} | report.environment("cuda")
    result |= {"limits": limits._asdict(), "steps": STEPS, "left_out": left_out, "tables": tables}
    device = re.sub(r"[^a-z0-9]+", "-", limits.name.lower()).strip("-")
    path = args.output / f"step_speed-{device}.json"
    report.write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    print(f"wrote {path}")
    return 1 if any("error" in row for rows in tables.values() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
