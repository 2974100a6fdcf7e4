"""Small calls of the CUDA backend for compute-sanitizer, forward and backward, each against the float64 reference.

Every cluster size, several passes, tiles and replicas, weights in registers, in shared memory and streamed, products by
warps and by warp groups; gates computed again; layers side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest

import torch

from lstmvid.backends.cuda import recurrence as backend
from lstmvid.backends.plan import (
    REGISTER_ARCH,
    REGISTER_ROUNDS,
    WARP_GROUP_ARCH,
    WARP_GROUP_REGISTER_ROUNDS,
    DeviceLimits,
    Plan,
    geometry,
    plan,
    shared_bytes,
)
from lstmvid.backends.wavefront import Wavefront
from lstmvid.testing import Case, check

CASES = [
    Case(steps=4, batch=3, hidden_size=20, peephole=True),
    Case(steps=4, batch=11, hidden_size=70, groups=2, reverse=(False, True), lengths=(4, 0, 3, 1, 2, 4, 4, 1, 1, 2, 3)),
    Case(steps=3, batch=9, hidden_size=203, input_size=None, all_cells=True),
    Case(steps=2, batch=9, hidden_size=520),  # enough of K for a warp group's share in registers
    Case(steps=5, batch=9, hidden_size=33, peephole=True, groups=2, reverse=(False, True), recompute="gates", chunk=2),
]


def plans(case: Case, limits: DeviceLimits, *, backward: bool) -> list[Plan]:
    """For each cluster size of the device, by warps and by warp groups, and one of each with weights in registers."""
    element_bytes, arch = case.dtype.itemsize, limits.arch
    found = []
    kinds = [(1, 0, False), (2, 0, False), (4, 0, False), (8, 0, False), (2, REGISTER_ROUNDS, False)]
    if element_bytes == 2 and arch == WARP_GROUP_ARCH:
        kinds += [(1, 0, True), (2, 0, True), (4, 0, True), (1, WARP_GROUP_REGISTER_ROUNDS, True)]
    for cluster, in_registers, warp_groups in kinds:
        if (cluster > 1 and arch < 90) or (in_registers and arch != REGISTER_ARCH):
            continue
        unit_blocks = 2 if not in_registers else 4 if warp_groups else 8
        clusters = -(-case.hidden_size // ((32 if backward else 8) * unit_blocks)) if in_registers else 3
        names = {"cluster": cluster, "clusters": clusters, "replicas": 2}
        names |= {"unit_blocks": unit_blocks, "tile_columns": 8, "warp_groups": warp_groups}
        g = geometry(case.hidden_size, case.batch, element_bytes, **names, backward=backward)
        if in_registers and (element_bytes == 4 or g.rounds < in_registers):
            continue
        candidate = Plan(
            **names,
            register_rounds=in_registers,
            resident_rounds=min((g.rounds - in_registers) // 2, 2),
            hidden_stage_rounds=1,
            hidden_stages=2,
            weight_stages=2,
            # Backward in parts its state must lie outside.
            cells_in_shared=cluster != 2 and case.recompute == "none",
            groups=case.groups,
        )
        sizes = (case.hidden_size, case.batch, element_bytes)
        if shared_bytes(candidate, *sizes, backward=backward) <= limits.shared_bytes:
            found.append(candidate)
    return found


def planner(forward: Plan | None, backward: Plan | None) -> Callable[..., Plan]:
    """Plans these, and where one is None what is usual."""

    def planned(*sizes, **options) -> Plan:
        return (backward if options["backward"] else forward) or plan(*sizes, **options)

    return planned


def two_steps(_steps, hidden, batch, layers, *of, backward, window, **options) -> Wavefront:
    """Layers side by side in the shortest windows that are none of the planner's."""
    return Wavefront(window or 2, plan(hidden, batch, *of, groups=layers, backward=backward, **options), 0.0)


def main(device: str = "cuda") -> None:
    """Run all; a wrong result is an error, too."""
    # Waits take long under a sanitizer, and their polls are counted.
    backend.MAX_POLLS = 0
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    limits = backend.target_of(torch.device(device)).limits
    count = 0
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            typed = replace(case, dtype=dtype, tensors={})
            forced = (plans(typed, limits, backward=backward) for backward in (False, True))
            for pair in ((None, None), *zip_longest(*forced)):
                backend.plan = planner(*pair)
                check(typed, "cuda", device=device)
                count += 1
    backend.plan, backend.wavefront = plan, two_steps
    for recompute in ("none", "gates"):
        stack = Case(steps=5, num_layers=3, hidden_size=20, peephole=True, recompute=recompute, chunk=2)
        check(stack, "cuda", device=device)
        count += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{count} calls agree with the reference")


if __name__ == "__main__":
    sys.exit(main())
