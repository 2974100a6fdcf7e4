"""What Triton makes of the kernels for GPUs that aren't here: shared memory, registers, spills, matrix instructions."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from lstmvid.backends import plan as planner  # noqa: E402
from lstmvid.backends.triton import (  # noqa: E402
    closed_loop_kernels,
    closed_loop_whole_kernels,
    configuration,
    frame_loss,
    frame_loss_kernels,
    gate_sum_kernels,
    gate_sums,
    record_kernels,
    recurrence,
)
from lstmvid.backends.triton import lstm_sequence_kernels as kernels  # noqa: E402
from lstmvid.backends.triton.configuration import Config, Tile, WholeLoop  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")


class Chip(NamedTuple):
    """What is compiled for, and how the planner sees it."""

    target: GPUTarget
    limits: planner.DeviceLimits
    is_amd: bool = False


# An MI300X has 304 compute units with 64 KiB of LDS each.
_MI300 = planner.DEVICES["H100"]._replace(name="MI300X", arch=94, multiprocessors=304, shared_bytes=64 << 10)
CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), planner.DEVICES["A100"]),
    "sm_90": Chip(GPUTarget("cuda", 90, 32), planner.DEVICES["H100"]),
    "sm_100": Chip(GPUTarget("cuda", 100, 32), planner.DEVICES["B200"]),
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), _MI300, True),
}
SIZES = ("hidden", "features", "depth", "columns", "frame_size")
KINDS = {"16 bits": (tl.bfloat16, "ieee"), "tf32": (tl.float32, "tf32"), "ieee": (tl.float32, "ieee")}
EVERYTHING = {"HAS_PEEPHOLE": True, "IS_RAGGED": True, "ALIGNED": True}
FORWARD = EVERYTHING | {"HAS_PROJECTION": True, "HAS_BIAS": False, "SAVE_CELLS": True, "SAVE_GATES": True}
BACKWARD = EVERYTHING | {"HAS_GRAD_OUTPUT": True, "HAS_GRAD_CELLS": True}


class Compiled(NamedTuple):
    """A kernel's shared memory and local memory of a thread in bytes, accesses to the latter in loops, its assembly."""

    shared: int
    local: int
    local_in_loops: int
    code: str

    def check(self, chip: Chip) -> None:
        """It fits, and nothing spills: at most two values lie aside while a loop runs that doesn't need them."""
        assert self.shared <= chip.limits.shared_bytes
        assert self.local <= (0 if chip.is_amd else 16)
        assert self.local_in_loops == 0


def compile_kernel(kernel, chip: Chip, constants: dict, warps: int = 4, stages: int = 1, **types: str) -> Compiled:
    """For a chip that needn't be here. `types`: of the pointers, but for tables of addresses; sizes are int32."""
    signature, attributes = {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name] = "constexpr"
        else:
            signature[name] = types.get(name) or parameter.annotation_type or "i32"
            if name.endswith("_ptr") or name in SIZES:  # as of tensors and of sizes that 16 divides
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=chip.target, options={"num_warps": warps, "num_stages": stages})
    if chip.is_amd:
        code = compiled.asm["amdgcn"]
        spilled = [int(n) for n in re.findall(r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size):\s+(\d+)", code)]
        return Compiled(compiled.metadata.shared, max(spilled), 0, code)
    usage = dict(re.findall(r"(\w+):(\d+)", _dump(compiled.asm["cubin"], "-res-usage")))
    local = int(usage["STACK"]) + int(usage["LOCAL"])
    in_loops = _local_in_loops(_dump(compiled.asm["cubin"], "-sass")) if local else 0
    return Compiled(compiled.metadata.shared, local, in_loops, compiled.asm["ptx"])


def _dump(cubin: bytes, option: str) -> str:
    """What Triton's own cuobjdump says."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        command = [tools / "cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def _local_in_loops(sass: str) -> int:
    """Loads and stores of local memory between a branch backwards and where it goes to."""
    code = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", sass)]
    branches = [(address, re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)) for address, text in code]
    loops = [(int(to[1], 16), at) for at, to in branches if to is not None and int(to[1], 16) < at]
    accesses = [address for address, text in code if re.search(r"\b(LDL|STL)\b", text)]
    return sum(any(first <= address <= last for first, last in loops) for address in accesses)


def test_local_memory_in_loops_is_seen():
    before, loop = "/*0010*/ STL.64 [R1], R42 ;", "/*0020*/ IADD3 R1, R1, 0x1, RZ ; /*0040*/ @P5 BRA 0x20 ;"
    inside = "/*0030*/ LDL.LU R10, [R1] ;"
    assert _local_in_loops(f"{before} {loop} /*0050*/ BRA 0x50;") == 0
    assert _local_in_loops(f"{before} {inside} {loop}") == 1


def chosen(chip: Chip, kind: str, backward: bool) -> list[Config]:
    """What the planner chooses there: the programs that hold all units, and tiles for the sizes of our models."""
    options = {"backward": backward, "is_amd": chip.is_amd}
    sizes = [(20, 16), (60, 16), (128, 16), *product((512, 1024, 2048), (16, 80))]
    return sorted({configuration.choose(h, b, kind, chip.limits, **options) for h, b in sizes})


def check_recurrence(chip: Chip, kind: str, backward: bool, config: Config) -> Compiled:
    dtype, precision = KINDS[kind]
    constants = {"DTYPE": dtype, "PRECISION": precision, "BLOCK_B": config.block_b, "BLOCK_H": config.block_h}
    constants |= BACKWARD if backward else FORWARD
    if config.loops:
        kernel = kernels.lstm_loop_bwd_kernel if backward else kernels.lstm_loop_fwd_kernel
    else:
        kernel = kernels.lstm_step_bwd_kernel if backward else kernels.lstm_step_fwd_kernel
        constants["BLOCK_K"] = config.block_k
    compiled = compile_kernel(kernel, chip, constants, config.warps, config.stages, table_ptr="*i64")
    compiled.check(chip)
    return compiled


def kinds(chip: Chip) -> list[str]:
    return [kind for kind in KINDS if not (chip.is_amd and kind == "tf32")]


CHOICES = [(name, kind, backward) for name, chip in CHIPS.items() for kind in kinds(chip) for backward in (False, True)]


@pytest.mark.parametrize(("name", "kind", "backward"), CHOICES)
def test_chosen_configurations_fit_and_spill_nothing(name, kind, backward):
    found = chosen(CHIPS[name], kind, backward)
    assert {config.loops for config in found} == {True, False}
    for config in found:
        check_recurrence(CHIPS[name], kind, backward, config)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "backward"), CHOICES)
def test_the_whole_table_fits_and_spills_nothing(name, kind, backward):
    chip = CHIPS[name]
    for config in configuration.step_configs(kind, is_amd=chip.is_amd):
        check_recurrence(chip, kind, backward, config)
    wholes = (configuration.AMD_WHOLE if chip.is_amd else configuration.NVIDIA_WHOLE)[kind]
    for whole in wholes:
        if whole.shared_bytes <= chip.limits.shared_bytes:
            config = Config(True, 16, whole.units, whole.units, whole.warps, whole.stages)
            assert check_recurrence(chip, kind, backward, config).shared <= whole.shared_bytes


@pytest.mark.parametrize("name", ["sm_90", "sm_100"])
def test_float32_without_peepholes_compiles(name):
    """Triton 3.9 aborted (in LLVM, by an assertion) where the gates were computed in another order."""
    config = configuration.loop_config(32, "ieee", CHIPS[name].limits)
    constants = {"DTYPE": tl.float32, "PRECISION": "ieee", "BLOCK_B": config.block_b, "BLOCK_H": config.block_h}
    constants |= FORWARD | {"HAS_PEEPHOLE": False, "IS_RAGGED": False}
    types = {"table_ptr": "*i64"}
    compile_kernel(kernels.lstm_loop_fwd_kernel, CHIPS[name], constants, config.warps, config.stages, **types)


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("backward", [False, True])
def test_products_are_matrix_instructions_and_copies_are_wide(name, backward):
    chip = CHIPS[name]
    compiled = check_recurrence(chip, "16 bits", backward, configuration.choose(2048, 80, "16 bits", chip.limits))
    check_instructions(chip, compiled.code)


def check_instructions(chip: Chip, code: str) -> None:
    """Matrix instructions, and copies of 16 bytes."""
    if chip.is_amd:
        assert "v_mfma_f32" in code
        return
    assert re.search(r"mma\.sync\.aligned\.\w+\.row\.col\.f32\.bf16|wgmma\.mma_async|tcgen05\.mma", code)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", code)
    assert set(copies) == {"0x10"}  # 16 bytes: the compiler trusts in the alignment that a record promises


@pytest.mark.parametrize("name", CHIPS)
def test_the_other_kernels_compile_without_spills(name):
    chip, dtype = CHIPS[name], tl.bfloat16
    flags = {"HAS_PEEPHOLE": True, "IS_RAGGED": True}
    compiled = [
        compile_kernel(record_kernels.lstm_record_kernel, chip, {}, 1, table_ptr="*i64"),
        compile_kernel(record_kernels.loop_record_kernel, chip, {}, 1, record_ptr="*i64"),
        compile_kernel(
            *(kernels.lstm_gates_kernel, chip, {"DTYPE": dtype, "BLOCK": recurrence._SCAN_BLOCK} | flags),
            table_ptr="*i64",
        ),
    ]
    blocks = {"PART_ROWS": gate_sums.PART_ROWS, "BLOCK_R": gate_sums.BLOCK_R, "BLOCK_H": gate_sums.BLOCK_H}
    types = {"grad_gates_ptr": "*bf16", "cells_ptr": "*fp32", "start_ptr": "*fp32", "parts_ptr": "*fp32"}
    for is_reverse in (False, True):
        constants = blocks | {"IS_REVERSE": is_reverse, "HAS_PEEPHOLE": True}
        compiled.append(compile_kernel(gate_sum_kernels.gate_sums_kernel, chip, constants, gate_sums.WARPS, **types))
    for each in compiled:
        each.check(chip)


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_frame_loss_fits_and_spills_nothing(name, kind):
    chip = CHIPS[name]
    if kind not in kinds(chip):
        pytest.skip("float32 is never multiplied as tf32 there")
    operand = "*bf16" if kind == "16 bits" else "*fp32"
    types = dict.fromkeys(("h_ptr", "weight_ptr", "bias_ptr", "grad_ptr"), operand)
    for likelihood, is_bytes in (("bernoulli", True), ("rectified", False)):
        constants = {"LIKELIHOOD": likelihood, "PRECISION": KINDS[kind][1], "HAS_BIAS": True, "SAVE": True}
        constants |= frame_loss.BLOCKS[kind]
        compiled = compile_kernel(
            *(frame_loss_kernels.frame_loss_kernel, chip, constants | {"IS_BYTES": is_bytes}),
            *(frame_loss.WARPS, frame_loss.STAGES),
            **types,
            target_ptr="*u8" if is_bytes else operand,
            parts_ptr="*fp32",
        )
        compiled.check(chip)


# Those of the products inside a closed loop that do the most beside multiplying, and what else there is.
LOOP_KERNELS = {
    closed_loop_kernels.loop_head_kernel: {"LINK": "sigmoid", "HAS_TRUTH": True, "HAS_NEXT": True},
    closed_loop_kernels.loop_frame_bwd_kernel: {
        **{"LINK": "sigmoid", "HAS_TRUTH": True, "HAS_LATER": True, "HAS_GRAD_Z": True}
    },
    closed_loop_kernels.loop_projection_kernel: {"HAS_BIAS": True, "FROM_FRAME": False},
    closed_loop_kernels.loop_back_kernel: {},
}


def check_product(chip: Chip, kind: str, kernel, tile: Tile) -> Compiled:
    dtype, precision = KINDS[kind]
    constants = {"DTYPE": dtype, "PRECISION": precision, "ALIGNED": True, **LOOP_KERNELS[kernel]}
    constants |= {"BLOCK_B": tile.block_b, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    compiled = compile_kernel(kernel, chip, constants, tile.warps, tile.stages, record_ptr="*i64")
    compiled.check(chip)
    return compiled


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_a_closed_loop_fit_and_spill_nothing(name, kind):
    chip = CHIPS[name]
    if kind not in kinds(chip):
        pytest.skip("float32 is never multiplied as tf32 there")
    sizes = [(16, 256, 512), (16, 4096, 8192), (80, 2048, 4096)]
    tiles = {configuration.choose_tile(*size, kind, chip.limits, is_amd=chip.is_amd) for size in sizes}
    for kernel, tile in product(LOOP_KERNELS, sorted(tiles)):
        check_product(chip, kind, kernel, tile)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tile_of_a_closed_loop_fits_and_spills_nothing(name, kind):
    chip = CHIPS[name]
    if kind not in kinds(chip):
        pytest.skip("float32 is never multiplied as tf32 there")
    for kernel, tile in product(list(LOOP_KERNELS)[:2], configuration.product_tiles(kind, is_amd=chip.is_amd)):
        check_product(chip, kind, kernel, tile)


@pytest.mark.parametrize("name", CHIPS)
def test_products_of_a_closed_loop_are_matrix_instructions_and_copies_are_wide(name):
    chip = CHIPS[name]
    tile = configuration.choose_tile(80, 2048, 4096, "16 bits", chip.limits, is_amd=chip.is_amd)
    for kernel in LOOP_KERNELS:
        check_instructions(chip, check_product(chip, "16 bits", kernel, tile).code)


def check_whole_loop(chip: Chip, kind: str, backward: bool, whole: WholeLoop, **flags) -> Compiled:
    """With all that a loop can have, but for `flags`."""
    dtype, precision = KINDS[kind]
    constants = {"DTYPE": dtype, "PRECISION": precision, "LAYERS": whole.layers, "LINK": "sigmoid", "ALIGNED": True}
    constants |= {"BLOCK_B": whole.block_b, "BLOCK_H": whole.units, "BLOCK_D": whole.frame_size}
    constants |= {"HAS_PEEPHOLE": True, "HAS_TRUTH": True}
    constants |= {"HAS_GRAD_Z": True} if backward else {"HAS_BIAS": True, "SAVE": True}
    loops = closed_loop_whole_kernels
    kernel = loops.loop_whole_bwd_kernel if backward else loops.loop_whole_fwd_kernel
    compiled = compile_kernel(kernel, chip, constants | flags, whole.warps, whole.stages, table_ptr="*i64")
    compiled.check(chip)
    assert compiled.shared <= whole.shared_bytes
    return compiled


# Of operands, H, D and L of a closed loop that one program holds.
LOOPS = {"16 bits": (60, 60, 2), "tf32": (30, 100, 1), "ieee": (30, 30, 1)}


@pytest.mark.parametrize(("name", "kind", "backward"), [c for c in CHOICES if c[0] == "sm_90" or c[1] == "16 bits"])
def test_a_closed_loop_in_one_launch_fits_and_spills_nothing(name, kind, backward):
    chip = CHIPS[name]
    size = (30, 30, 2 if kind == "16 bits" else 1) if chip.is_amd else LOOPS[kind]
    whole = configuration.choose_whole(*size, 16, kind, chip.limits, backward=backward, is_amd=chip.is_amd)
    code = check_whole_loop(chip, kind, backward, whole).code
    if kind != "ieee":
        assert re.search(r"v_mfma_f32" if chip.is_amd else r"mma\.sync\.aligned", code)
    if whole.stages > 1:  # what the next step reads is on its way, 16 bytes at a time
        assert "0x10" in re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", code)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "backward"), CHOICES)
def test_every_closed_loop_in_one_launch_fits_and_spills_nothing(name, kind, backward):
    chip, bare = CHIPS[name], {"HAS_PEEPHOLE": False, "HAS_TRUTH": False, "LINK": "identity"}
    bare |= {"HAS_GRAD_Z": False} if backward else {"HAS_BIAS": False, "SAVE": False}
    for whole in configuration.whole_loops(kind, backward=backward, is_amd=chip.is_amd):
        if whole.shared_bytes <= chip.limits.shared_bytes:
            check_whole_loop(chip, kind, backward, whole)
            check_whole_loop(chip, kind, backward, whole, **bare)
