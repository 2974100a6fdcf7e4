"""The build and the packaging: what is compiled, what is shipped, and what a wrong setting says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pybind11
import pytest
import torch

import lstmvid
from lstmvid import _native

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = _native.cuda_device_count()[1]
BUILD = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with `environment` on top of this one, its two outputs together."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def succeed(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command that must succeed; return its output."""
    result = run(*command, cwd=cwd, **environment)
    assert result.returncode == 0, result.stdout
    return result.stdout


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configure a build of its own with the tools of this environment, or else those on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    tools = (f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=path)}", f"-DPython_EXECUTABLE={sys.executable}")
    cmake = shutil.which("cmake", path=path) or "cmake"
    found = f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"
    return run(cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *tools, found, *options)


def copy_of_the_tree(target: Path) -> Path:
    """The tree without what was built in it."""
    built = (".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache", "runs")
    return shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*built))


def test_metadata_and_package_agree_on_the_version():
    assert importlib.metadata.version("lstmvid") == lstmvid.__version__


def test_the_core_requires_only_torch_and_numpy():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]} == {"torch", "numpy"}
    assert {"train", "video", "plots", "test", "docs", "triton"} <= set(project["optional-dependencies"])


def test_the_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="lstmvid")
    assert command.value == "lstmvid.cli:main"


def test_the_native_module_is_built():
    assert _native.WHY_MISSING == ""


def test_every_source_is_built_and_every_built_source_exists():
    listed = set(re.findall(r"csrc/[\w/]+\.(?:cpp|cu)\b", (ROOT / "CMakeLists.txt").read_text()))
    emulation = ROOT / "csrc" / "emulation"  # a project of its own, for tests
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".cu"}]
    assert listed == {str(path.relative_to(ROOT)) for path in sources if path.parent != emulation}
    its_own = set(re.findall(r"^  (\w+\.cpp)$", (emulation / "CMakeLists.txt").read_text(), re.MULTILINE))
    assert its_own == {path.name for path in sources if path.parent == emulation}


def test_type_hints_are_shipped(tmp_path):
    egg_info = ("egg_info", "--egg-base", str(tmp_path))
    succeed(sys.executable, "setup.py", "--quiet", *egg_info, "build_py", "--build-lib", tmp_path / "lib")
    shipped = {str(path.relative_to(tmp_path / "lib")) for path in (tmp_path / "lib").rglob("*") if path.is_file()}
    assert "lstmvid/py.typed" in shipped
    assert "lstmvid/backends/reference/lstm_sequence.py" in shipped
    assert all(path.startswith("lstmvid/") for path in shipped)


def test_the_build_step_does_not_import_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise AssertionError('the build imported torch')\n")
    output = succeed(sys.executable, "setup.py", "--name", "--version", PYTHONPATH=str(tmp_path))
    assert output.split()[-2:] == ["lstmvid", lstmvid.__version__]


def test_a_wrong_cuda_setting_is_refused(tmp_path):
    result = configure(tmp_path, "-DLSTMVID_CUDA=MAYBE")
    assert result.returncode != 0
    assert "LSTMVID_CUDA is 'MAYBE', but must be AUTO, ON or OFF" in " ".join(result.stdout.split())


def test_cuda_on_without_a_toolkit_is_refused(tmp_path):
    result = configure(tmp_path, "-DLSTMVID_CUDA=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON")
    assert result.returncode != 0
    assert "LSTMVID_CUDA is ON, but no CUDA toolkit" in " ".join(result.stdout.split())


def test_without_a_toolkit_the_build_says_cpu_only(tmp_path):
    result = configure(tmp_path, "-DLSTMVID_CUDA=AUTO", "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON")
    assert result.returncode == 0
    assert "lstmvid: building CPU only (no nvcc" in result.stdout


def test_devices_are_counted_without_a_driver():
    count, why_none = _native.cuda_device_count()
    assert count >= 0
    assert bool(why_none) == (count == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_native_module_exports_nothing_but_its_entry():
    """The static CUDA runtime inside must not meet the one that torch has loaded."""
    symbols = succeed("nm", "--dynamic", "--defined-only", _native._C.__file__).splitlines()
    assert [symbol.split()[-1] for symbol in symbols if symbol.split()[-2] in "TDBR"] == ["PyInit__C"]


@pytest.mark.skipif(not BUILD.is_dir(), reason="not built in this tree")
@pytest.mark.parametrize("isa", ["avx2", "avx512"] if sysconfig.get_platform() == "linux-x86_64" else [])
def test_kernels_share_no_functions_with_code_for_other_processors(isa):
    """Of a weak symbol (an inline function, say) the linker keeps any one copy: with AVX-512, it might be that one."""
    objects = list(BUILD.glob(f"CMakeFiles/lstmvid_kernels_{isa}.dir/**/*.o"))
    assert len(objects) == len(list(ROOT.glob("csrc/cpu/*_kernels.cpp")))
    for kernels in objects:
        symbols = succeed("nm", "--demangle", "--defined-only", kernels).splitlines()
        assert any(f"lstmvid::{isa}::" in symbol for symbol in symbols)
        weak = [symbol.split(maxsplit=2)[2] for symbol in symbols if symbol.split()[1] in "WVu"]
        assert [name for name in weak if f"lstmvid::{isa}::" not in name] == []


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU != "", reason=NO_GPU)
def test_device_limits_are_what_torch_reads():
    limits, expected = _native.cuda_device_limits(0), torch.cuda.get_device_properties(0)
    assert limits["name"] == expected.name
    assert limits["compute_capability"] == 10 * expected.major + expected.minor
    assert limits["multiprocessors"] == expected.multi_processor_count
    assert limits["shared_bytes_per_block_opt_in"] == expected.shared_memory_per_block_optin
    assert limits["l2_bytes"] == expected.L2_cache_size
    assert limits["memory_bytes"] == expected.total_memory
    assert limits["has_clusters"] == (expected.major >= 9)


@pytest.mark.slow
def test_install_into_a_clean_environment(tmp_path):
    """`pip install` of a source distribution where there is no torch; the module then needs nothing beside it."""
    tree = copy_of_the_tree(tmp_path / "tree")
    succeed(sys.executable, "setup.py", "--quiet", "sdist", cwd=tree)
    (archive,) = (tree / "dist").iterdir()
    python = tmp_path / "venv" / "bin" / "python"
    succeed(sys.executable, "-m", "venv", tmp_path / "venv")
    succeed(python, "-m", "pip", "install", "--no-deps", archive)
    shutil.rmtree(tree)

    site = Path(succeed(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())
    assert (site / "lstmvid" / "py.typed").is_file()
    (module,) = (site / "lstmvid").glob("_C*.so")
    load = "import sys; sys.path.insert(0, sys.argv[1]); import _C; print(_C.cpu_instruction_set())"
    assert succeed(python, "-c", load, module.parent).strip() == _native.INSTRUCTION_SET


@pytest.mark.slow
def test_a_second_build_compiles_only_what_changed(tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")

    def build() -> str:
        return succeed(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, LSTMVID_CUDA="OFF")

    assert "lstmvid: building CPU only (LSTMVID_CUDA=OFF)" in build()
    assert list((tree / "lstmvid").glob("_C*.so"))
    assert "ninja: no work to do" in build()

    (tree / "csrc" / "bindings.cpp").touch()
    again = build()
    assert "bindings.cpp.o" in again
    assert "lstm_sequence_kernels.cpp.o" not in again
