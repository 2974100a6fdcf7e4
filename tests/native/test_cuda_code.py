"""What nvcc made of the recurrent kernels, for each chip in the built module: registers, spills, instructions.

cuobjdump comes with the CUDA toolkit and with Triton; no GPU is needed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import lstmvid
from lstmvid import _native

PRECISIONS = ("bf16", "fp16", "tf32", "fp32")
PRODUCTS = {"bf16": "HMMA.16816.F32.BF16", "fp16": "HMMA.16816.F32", "tf32": "HMMA.1688.F32.TF32"}
PRODUCTS["fp32"] = PRODUCTS["tf32"]
NARROW = ("bf16", "fp16")
REGISTER_ROUNDS, GROUP_REGISTER_ROUNDS = 6, 16  # csrc/cuda/recurrence_geometry.h


class Kernel(NamedTuple):
    """One compiled variant, as its name says."""

    arch: str
    direction: str
    precision: str
    tile_blocks: int
    register_rounds: int
    warp_groups: bool

    @property
    def is_served(self) -> bool:
        """Whether a plan for that chip may have it: see RecurrenceConfig::kIsServed."""
        return (self.register_rounds == 0 and not self.warp_groups) or self.arch == "90a"


class Instruction(NamedTuple):
    """Its place in the kernel, name with modifiers, and operands."""

    address: int
    name: str
    operands: str


def _tools() -> str | None:
    """A PATH on which cuobjdump and nvdisasm are: the toolkit's, or Triton's."""
    if shutil.which("cuobjdump") and shutil.which("nvdisasm"):
        return os.environ["PATH"]
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else None
    return None if folder is None or not (folder / "nvdisasm").exists() else f"{folder}{os.pathsep}{os.environ['PATH']}"


pytestmark = [
    pytest.mark.skipif(not _native.WITH_CUDA, reason="built without CUDA"),
    pytest.mark.skipif(_tools() is None, reason="neither the CUDA toolkit's cuobjdump nor Triton's is here"),
]


@cache
def _functions(option: str) -> list[tuple[str, str, list[str]]]:
    """(chip, mangled name, lines of cuobjdump's output) of each kernel in the module."""
    (module,) = Path(lstmvid.__file__).parent.glob("_C*.so")
    environment = os.environ | {"PATH": _tools() or ""}
    command = ["cuobjdump", option, str(module)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    functions: list[tuple[str, str, list[str]]] = []
    arch = ""
    for line in done.stdout.splitlines():
        if found := re.match(r"arch = sm_(\w+)", line):
            arch = found[1]
        elif found := re.search(r"Function\s*:?\s+(\w+)", line):
            functions.append((arch, found[1], []))
        elif functions:
            functions[-1][2].append(line)
    return functions


@cache
def _dump(option: str) -> dict[Kernel, list[str]]:
    """The same of the recurrent kernels, by variant."""
    pattern = re.compile(r"lstm_sequence_(fwd|bwd)_kernel\w*?PrecisionE(\d)ELi(\d+)ELi(\d+)ELi\d+ELb(\d)E")
    found = ((arch, pattern.search(name), lines) for arch, name, lines in _functions(option))
    return {
        Kernel(arch, name[1], PRECISIONS[int(name[2])], int(name[3]), int(name[4]), name[5] == "1"): lines
        for arch, name, lines in found
        if name
    }


def _usage(lines: list[str]) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", " ".join(lines[:1]))}


def _instructions(lines: list[str]) -> list[Instruction]:
    pattern = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);")
    return [Instruction(int(m[1], 16), m[2], m[3]) for m in map(pattern.match, lines) if m]


@cache
def _code() -> dict[Kernel, list[Instruction]]:
    return {kernel: _instructions(lines) for kernel, lines in _dump("-sass").items() if kernel.is_served}


def _variants() -> set[tuple[str, str, int, int, bool]]:
    """(direction, precision, tile blocks, register rounds, warp groups) of all that there is to choose from."""
    kinds = [(0, False), (REGISTER_ROUNDS, False), (0, True), (GROUP_REGISTER_ROUNDS, True)]
    narrow = [(n, *kind) for n in range(1, 7) for kind in kinds]
    wide = [(n, 0, False) for n in range(1, 5)]
    variants = [(p, *variant) for p in PRECISIONS for variant in (narrow if p in NARROW else wide)]
    return {(direction, *variant) for direction in ("fwd", "bwd") for variant in variants}


def test_every_chip_has_every_variant():
    found = _dump("-res-usage")
    archs = {kernel.arch for kernel in found}
    assert archs
    if _native.cuda_device_count()[0] == 0 and not os.environ.get("LSTMVID_CUDA_ARCHS"):
        assert archs == {"80", "90a", "100", "120"}
    assert set(found) == {Kernel(arch, *variant) for arch in archs for variant in _variants()}


def test_nothing_spills():
    for kernel, lines in _dump("-res-usage").items():
        if kernel.is_served:
            usage = _usage(lines)
            assert usage["STACK"] == usage["LOCAL"] == 0, kernel
            assert usage["REG"] <= 168, kernel  # of 12 warps on a multiprocessor
    for kernel, code in _code().items():
        assert not [i for i in code if i.name.startswith(("LDL", "STL"))], kernel


def test_the_matrix_instructions_are_the_ones_meant():
    for kernel, code in _code().items():
        if kernel.warp_groups:
            continue
        names = Counter(i.name for i in code)
        # Each round in registers is unrolled; one loop is for the resident rounds, one for the streamed ones.
        rounds = kernel.register_rounds + 2
        products = {"fp32": 3}.get(kernel.precision, 1) * rounds * kernel.tile_blocks * 4
        assert names[PRODUCTS[kernel.precision]] == products, kernel
        assert sum(n for name, n in names.items() if "MMA" in name) == products, kernel
        assert names["LDSM.16.M88.4"] == rounds * kernel.tile_blocks, kernel
        assert names["LDS.128"] >= 8, kernel  # the fragments of the two loops


def test_products_of_warp_groups_run_while_the_next_are_issued():
    """Else the compiler would have put a wait for all of them behind each (its message is C7510, or one of its kin)."""
    for kernel, code in _code().items():
        if not kernel.warp_groups:
            continue
        names = Counter(i.name for i in code)
        # Each round in registers is unrolled; one loop is for all others, and its first turn by itself if none are.
        rounds = kernel.register_rounds + (1 if kernel.register_rounds else 2)
        name = f"HGMMA.64x{8 * kernel.tile_blocks}x16.F32" + (".BF16" if kernel.precision == "bf16" else "")
        products = [i for i in code if "MMA" in i.name]
        assert {i.name for i in products} == {name}, kernel
        assert len(products) == 2 * rounds, kernel
        assert sum(i.operands.rstrip().endswith("gsb0") for i in products) == rounds, kernel  # a batch is a round
        from_registers = [i for i in products if re.match(r"\s*R\d+, R\d+, gdesc", i.operands)]
        assert len(from_registers) == 2 * kernel.register_rounds, kernel
        waits = [i.operands.strip() for i in code if i.name.startswith("WARPGROUP.DEPBAR")]
        assert waits.count("gsb0, 0x0") == 1, kernel
        assert waits.count("gsb0, 0x1") == len(waits) - 1 == rounds - (kernel.register_rounds > 0), kernel
        assert names["LDSM.16.M88.4"] == 0, kernel


def test_copies_are_asynchronous_and_go_by_the_copy_engine_where_there_is_one():
    for kernel, code in _code().items():
        names = Counter(i.name.split(".")[0] for i in code)
        assert names["LDGSTS"] > 0, kernel  # the gate arithmetic's inputs, in pieces of 16 bytes
        assert not [i for i in code if i.name.startswith("LDGSTS") and "BYPASS" not in i.name], kernel
        if kernel.arch == "80":
            assert names["UBLKCP"] == names["STAS"] == 0, kernel
        else:
            assert names["UBLKCP"] == 2, kernel  # operands, and streamed weights
            halves = 1 if kernel.warp_groups else 2  # of a unit block's rows, that a warp has
            assert names["STAS"] == halves * kernel.tile_blocks, kernel  # partial sums to another block


def test_what_blocks_exchange_is_never_read_through_the_constant_path():
    for kernel, code in _code().items():
        assert not [i for i in code if i.name.startswith("LDG") and "CONSTANT" in i.name], kernel


def test_weights_in_registers_are_loaded_before_the_steps_begin():
    for kernel, code in _code().items():
        first_product = min(i.address for i in code if "MMA" in i.name)
        loads = [i.address for i in code if i.name == "LDG.E.128"]
        assert len(loads) >= (2 if kernel.warp_groups else 4) * kernel.register_rounds, kernel
        assert max(loads) < first_product, kernel


def test_the_scan_of_gates_keeps_its_steps_ahead_in_registers():
    """Loads of four steps' pre-activations stand before the loop: nothing of them may lie in local memory."""
    usage = {
        (arch, name): _usage(lines) for arch, name, lines in _functions("-res-usage") if "lstm_gates_kernel" in name
    }
    archs = {kernel.arch for kernel in _dump("-res-usage")}
    assert len(usage) == 3 * len(archs)
    for name, of in usage.items():
        assert of["STACK"] == of["LOCAL"] == 0, name
        assert of["REG"] <= 64, name  # so that a multiprocessor holds 1,024 threads
    for arch, name, lines in _functions("-sass"):
        if "lstm_gates_kernel" in name:
            loads = [i for i in _instructions(lines) if i.name.startswith("LDG.E")]
            assert len(loads) >= 4 * 4, (arch, name)
            assert not [i for i in _instructions(lines) if i.name.startswith(("LDL", "STL"))], (arch, name)
