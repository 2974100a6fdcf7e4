"""Who may import whom: the layers of the package, and a native core in which only bindings.cpp knows Python.

`violations` checks a source tree; the tests run it on this one, and on small trees with a planted fault each.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Layer:
    """What the modules of a layer may import: other layers, third-party packages, and when the extras' packages.

    Deferred means inside a function or under `TYPE_CHECKING`: not yet when the module itself is imported.
    """

    layers: frozenset[str]
    packages: frozenset[str] = frozenset({"torch", "numpy"})
    extras: Literal["never", "deferred", "anywhere"] = "never"
    layers_deferred: frozenset[str] = frozenset()


LEAVES = frozenset({"backends.reference", "backends.torch", "_native", "*_kernels"})
BACKENDS = LEAVES | {"backends", "backends.triton"}
OPS = BACKENDS | {"ops"}
NN = OPS | {"functional", "nn"}
COMPAT = NN | {"data", "compat.original", "compat"}
TOOLS = COMPAT | {"explanation", "lstmvid", "viz", "evaluation"}

LAYERS = {
    "*_kernels": Layer(frozenset(), frozenset({"triton"})),
    "_native": Layer(frozenset()),
    "backends.reference": Layer(frozenset()),
    "backends.torch": Layer(frozenset(), frozenset({"torch"})),
    "backends": Layer(BACKENDS),
    "backends.triton": Layer(BACKENDS, frozenset({"torch", "numpy", "triton"})),
    "ops": Layer(OPS),
    "functional": Layer(OPS),
    # `FusedComposite.from_original` reads the paper's files; their reader is a leaf, and few calls need it.
    "nn": Layer(NN, layers_deferred=frozenset({"compat.original"})),
    "data": Layer(frozenset({"data"}), extras="deferred"),
    "compat.original": Layer(frozenset({"compat.original"}), extras="deferred"),
    "compat": Layer(COMPAT, extras="deferred"),
    "testing": Layer(NN | {"data"}, extras="deferred"),
    "explanation": Layer(NN),
    "lstmvid": Layer(COMPAT | {"explanation"}),
    # These are themselves imported only by who uses them.
    "viz": Layer(TOOLS - {"evaluation"}, extras="anywhere"),
    "evaluation": Layer(TOOLS, extras="anywhere"),
    "training": Layer(TOOLS | {"training"}, extras="anywhere"),
    "cli": Layer(TOOLS | {"training", "cli"}, extras="anywhere"),
}
SETUP = Layer(frozenset(), frozenset({"setuptools", "pybind11"}))
ORIGINAL = r"lstmvid\.compat\.(original(_\w+)?|pbtxt)"  # the reader of the paper's files

NATIVE = "lstmvid._C"
TORCH_HEADERS = {"torch", "ATen", "c10"}
PYTHON_HEADERS = {"pybind11", "Python.h"}


def layer_of(module: str) -> str:
    """The layer of a module of ours, by its dotted name."""
    first, *rest = [*module.split(".")[1:], ""]
    if module.endswith("_kernels"):
        return "*_kernels"
    if re.fullmatch(ORIGINAL, module):
        return "compat.original"
    if first == "backends" and f"backends.{rest[0]}" in LAYERS:
        return f"backends.{rest[0]}"
    return first or "lstmvid"


class Import(NamedTuple):
    """One import: the module that is imported, where, and whether not yet when the file itself is imported."""

    module: str
    line: int
    deferred: bool


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a Python file below `root`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file, relative ones resolved, `importlib.import_module` with a literal name among them."""
    name = module_name(path, root)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def targets(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            # `from package import name` imports a module where there is one of that name, else looks into the package.
            return [
                full if full == NATIVE or is_module(full, root) else source
                for full in (f"{source}.{alias.name}" for alias in node.names)
            ]
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                return [node.args[0].value]
        return []

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for target in targets(node):
            yield Import(target, node.lineno, deferred)
        deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        deferred |= isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deferred)

    return walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), False)


def is_module(name: str, root: Path) -> bool:
    """Whether the tree has a module or package of that name."""
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def forbidden(name: str, layer: Layer, found: Import) -> bool:
    """Whether `layer` (of the module `name`) may not have this import."""
    package = found.module.partition(".")[0]
    if found.module == NATIVE:
        return name != "lstmvid._native"
    if package == "lstmvid":
        target = layer_of(found.module)
        return target not in layer.layers and not (found.deferred and target in layer.layers_deferred)
    if package in sys.stdlib_module_names or package in layer.packages or layer.extras == "anywhere":
        return False
    return not (layer.extras == "deferred" and found.deferred)


def within_leaf(name: str, found: Import) -> bool:
    """Whether a leaf's module imports one of its own folder, or a file of kernels another: that much a leaf may."""
    layer = layer_of(name)
    return layer in LEAVES and layer == layer_of(found.module)


def python_violations(root: Path) -> Iterator[str]:
    """Imports that the layers forbid."""
    for path in [*sorted((root / "lstmvid").rglob("*.py")), *root.glob("setup.py")]:
        name = module_name(path, root)
        layer = SETUP if name == "setup" else LAYERS.get(layer_of(name))
        if layer is None:
            yield f"{path.relative_to(root)}: {layer_of(name)} is in no layer: give it one in tests/test_layering.py"
            continue
        for found in imports_of(path, root):
            if forbidden(name, layer, found) and not within_leaf(name, found):
                yield f"{path.relative_to(root)}:{found.line}: {name} may not import {found.module} here"

    for path in sorted(
        path for folder in ("benchmarks", "examples", "scripts", "tests") for path in (root / folder).rglob("*.py")
    ):
        for found in imports_of(path, root):
            if found.module == NATIVE:
                yield f"{path.relative_to(root)}:{found.line}: only lstmvid/_native.py imports {NATIVE}"


def native_violations(root: Path) -> Iterator[str]:
    """Headers of torch anywhere in csrc, and of Python outside bindings.cpp."""
    for path in sorted(path for path in (root / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            include = re.match(r'\s*#\s*include\s*[<"]([^/>"]+)', line)
            if include is None:
                continue
            where = f"{path.relative_to(root)}:{number}"
            if include[1] in TORCH_HEADERS:
                yield f"{where}: csrc never sees torch: {line.strip()}"
            if include[1] in PYTHON_HEADERS and path != root / "csrc" / "bindings.cpp":
                yield f"{where}: only csrc/bindings.cpp sees Python: {line.strip()}"


def violations(root: Path) -> list[str]:
    """Everything in the tree at `root` that breaks the layering, as 'file:line: what'."""
    return [*python_violations(root), *native_violations(root)]


def test_this_tree_keeps_to_the_layers():
    assert violations(ROOT) == []


def test_every_part_of_the_tree_is_looked_at():
    looked_at = {layer_of(module_name(path, ROOT)) for path in (ROOT / "lstmvid").rglob("*.py")}
    assert {"lstmvid", "_native", "backends", "backends.reference", "ops", "nn", "data"} <= looked_at
    assert list(imports_of(ROOT / "lstmvid" / "_native.py", ROOT))


def plant(root: Path, files: dict[str, str]) -> None:
    """Write a small tree that keeps to the layers, with `files` on top."""
    sound = {
        "setup.py": "import setuptools\n",
        "csrc/bindings.cpp": "#include <pybind11/pybind11.h>\n",
        "csrc/cpu/instruction_set.cpp": '#include "lstmvid/lstm_sequence.h"\n',
        "lstmvid/__init__.py": "from .nn import LSTM\nfrom .compat.accelerate import accelerate\n",
        "lstmvid/_native.py": "import torch\ntry:\n    from . import _C\nexcept ImportError:\n    _C = None\n",
        "lstmvid/nn/__init__.py": "from .lstm import LSTM\n",
        "lstmvid/nn/lstm.py": "from ..ops import lstm\ndef f():\n    from lstmvid.compat import original\n",
        "lstmvid/ops/__init__.py": "from .lstm import lstm\n",
        "lstmvid/ops/lstm.py": "from .. import backends\nfrom lstmvid.backends import reference\n",
        "lstmvid/backends/__init__.py": "from . import reference, cpu\n",
        "lstmvid/backends/reference/__init__.py": "from .lstm import forward\n",
        "lstmvid/backends/reference/lstm.py": "import math\nimport torch\n",
        "lstmvid/backends/torch/__init__.py": "import torch\n",
        "lstmvid/backends/cpu/__init__.py": "from ... import _native\nimport numpy as np\n",
        "lstmvid/backends/triton/lstm.py": "import triton\nfrom .lstm_kernels import kernel\n",
        "lstmvid/backends/triton/lstm_kernels.py": "import triton.language as tl\nfrom .cell_kernels import gates\n",
        "lstmvid/backends/triton/cell_kernels.py": "import triton\n",
        "lstmvid/compat/__init__.py": "",
        "lstmvid/compat/accelerate.py": "from ..nn import LSTM\n",
        "lstmvid/compat/original.py": "if TYPE_CHECKING:\n    import h5py\ndef read():\n    import h5py\n",
        "lstmvid/data/__init__.py": "import numpy\ndef load():\n    import mlxtend\n",
        "lstmvid/training/__init__.py": "import pytorch_lightning\nfrom .. import viz, data, nn\n",
        "lstmvid/viz.py": "import PIL\n",
        "lstmvid/cli.py": "import jsonargparse\nfrom . import training\n",
        "tests/test_x.py": "import lstmvid\n",
    }
    for name, text in (sound | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_sound_tree_has_no_violations(tmp_path):
    plant(tmp_path, {})
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        # Upwards.
        ("lstmvid/nn/lstm.py", "from ..training import module"),
        ("lstmvid/nn/lstm.py", "from .. import data"),
        ("lstmvid/nn/lstm.py", "from lstmvid import LSTM"),
        ("lstmvid/nn/lstm.py", "from ..compat import original"),
        ("lstmvid/ops/lstm.py", "from ..nn import LSTM"),
        ("lstmvid/ops/lstm.py", "def f():\n    import lstmvid.nn.lstm"),
        ("lstmvid/ops/lstm.py", "def f():\n    from ..compat import original"),
        ("lstmvid/backends/cpu/__init__.py", "from ...ops import lstm"),
        ("lstmvid/data/__init__.py", "from .. import nn"),
        ("lstmvid/viz.py", "from . import training"),
        ("lstmvid/training/__init__.py", "from ..cli import main"),
        ("lstmvid/__init__.py", "from . import training"),
        ("lstmvid/__init__.py", "def f():\n    from . import viz"),
        # Leaves that import something of ours.
        ("lstmvid/backends/reference/lstm.py", "from ... import _native"),
        ("lstmvid/backends/reference/lstm.py", "from ...ops import lstm"),
        ("lstmvid/backends/torch/__init__.py", "from .. import reference"),
        ("lstmvid/backends/torch/__init__.py", "import numpy"),
        ("lstmvid/backends/triton/lstm_kernels.py", "from . import lstm"),
        ("lstmvid/backends/triton/lstm_kernels.py", "from .. import reference"),
        ("lstmvid/backends/triton/cell_kernels.py", "from .lstm import launch"),
        ("lstmvid/backends/triton/lstm_kernels.py", "import torch"),
        ("lstmvid/compat/original.py", "from ..nn import LSTM"),
        ("lstmvid/compat/original.py", "from . import accelerate"),
        # Extras in the core, or too early elsewhere.
        ("lstmvid/nn/lstm.py", "def f():\n    import matplotlib.pyplot"),
        ("lstmvid/ops/lstm.py", "import scipy"),
        ("lstmvid/backends/cpu/__init__.py", "class A:\n    def f(self):\n        from rich import print"),
        ("lstmvid/backends/cpu/__init__.py", "import triton"),
        ("lstmvid/ops/lstm.py", "if TYPE_CHECKING:\n    import h5py"),
        ("lstmvid/data/__init__.py", "import mlxtend"),
        ("lstmvid/data/__init__.py", "try:\n    import mlxtend\nexcept ImportError:\n    mlxtend = None"),
        ("lstmvid/__init__.py", "def f():\n    import pytorch_lightning"),
        ("lstmvid/ops/lstm.py", "import importlib\nimportlib.import_module('h5py')"),
        # The native module, past its only importer.
        ("lstmvid/backends/cpu/__init__.py", "from ... import _C"),
        ("lstmvid/backends/cpu/__init__.py", "from lstmvid._C import forward"),
        ("lstmvid/cli.py", "import lstmvid._C"),
        ("lstmvid/cli.py", "import importlib\nimportlib.import_module('lstmvid._C')"),
        ("tests/test_x.py", "from lstmvid import _C"),
        ("benchmarks/speed.py", "import lstmvid._C"),
        # The build.
        ("setup.py", "import torch"),
        ("setup.py", "def f():\n    from torch.utils import cpp_extension"),
        # A folder that nobody gave a layer.
        ("lstmvid/misc/__init__.py", "import os"),
        # Headers.
        ("csrc/bindings.cpp", "#include <torch/extension.h>"),
        ("csrc/cpu/instruction_set.cpp", "#include <ATen/ATen.h>"),
        ("csrc/cuda/lstm_sequence_fwd.cu", "  # include <c10/cuda/CUDAStream.h>"),
        ("csrc/include/lstmvid/check.h", '#include "pybind11/pybind11.h"'),
        ("csrc/cpu/instruction_set.cpp", "#include <Python.h>"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, file, line):
    plant(tmp_path, {file: line + "\n"})
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(file)


def test_importing_the_package_pulls_in_no_extras():
    code = "import sys, torch; own = set(sys.modules); import lstmvid; print(*set(sys.modules) - own)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {module.partition(".")[0] for module in result.stdout.split()}
    assert "lstmvid" in imported
    assert imported.isdisjoint(
        {"pytorch_lightning", "matplotlib", "PIL", "h5py", "av", "torchmetrics", "mlxtend", "jsonargparse", "rich"}
    )
