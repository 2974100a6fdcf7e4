"""Small calls of the CUDA backend for compute-sanitizer, forward and backward, each against the float64 reference.

Every cluster size, several passes, tiles and replicas, weights in registers, in shared memory and streamed; gates
computed again; layers side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest

import torch

from lstmvid.backends.cuda import recurrence as backend
from lstmvid.backends.plan import REGISTER_ARCH, REGISTER_ROUNDS, Plan, geometry, plan
from lstmvid.backends.wavefront import Wavefront
from lstmvid.testing import Case, check

CASES = [
    Case(steps=4, batch=3, hidden_size=20, peephole=True),
    Case(steps=4, batch=11, hidden_size=70, groups=2, reverse=(False, True), lengths=(4, 0, 3, 1, 2, 4, 4, 1, 1, 2, 3)),
    Case(steps=3, batch=9, hidden_size=203, input_size=None, all_cells=True),
    Case(steps=5, batch=9, hidden_size=33, peephole=True, groups=2, reverse=(False, True), recompute="gates", chunk=2),
]


def plans(case: Case, arch: int, *, backward: bool) -> list[Plan]:
    """One for each cluster size of the device, and one with weights in registers."""
    element_bytes = case.dtype.itemsize
    found = []
    for cluster, in_registers in ((1, 0), (2, 0), (4, 0), (8, 0), (2, REGISTER_ROUNDS)):
        if (cluster > 1 and arch < 90) or (in_registers and arch != REGISTER_ARCH):
            continue
        clusters, unit_blocks, columns = (4, 8, 8) if in_registers else (3, 2, 8)
        names = {"cluster": cluster, "clusters": clusters, "replicas": 2}
        names |= {"unit_blocks": unit_blocks, "tile_columns": columns}
        g = geometry(case.hidden_size, case.batch, element_bytes, **names, backward=backward)
        if in_registers and (element_bytes == 4 or g.passes > 1 or g.rounds < in_registers):
            continue
        resident = min((g.rounds - in_registers) // 2, 2)
        cells_in_shared = cluster != 2 and case.recompute == "none"  # backward in parts its state must lie outside
        found.append(Plan(*names.values(), in_registers, resident, 1, 2, 2, cells_in_shared, case.groups))
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
    arch = backend.target_of(torch.device(device)).limits.arch
    count = 0
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            typed = replace(case, dtype=dtype, tensors={})
            forced = (plans(typed, arch, backward=backward) for backward in (False, True))
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
