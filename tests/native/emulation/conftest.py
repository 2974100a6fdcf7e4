"""Builds csrc/emulation, once for all workers, and runs what was built."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pybind11
import pytest
import torch

from lstmvid import _native, backends
from lstmvid.backends import plan as planner
from lstmvid.backends.cuda import recurrence

ROOT = Path(__file__).resolve().parents[3]
Build = Callable[..., Path]


def _succeed(*command: str | Path, environment: dict[str, str]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def _build(target: str, arch: int, sanitizer: str, options: tuple[str, ...]) -> Path:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
    if cmake is None or ninja is None or shutil.which("c++") is None:
        pytest.skip("needs cmake, ninja and a C++ compiler")
    build = ROOT / "build" / "emulation" / f"{arch}-{sanitizer}"
    build.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PATH": path}
    with (build / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes
        chosen = (f"-DLSTMVID_EMULATED_ARCH={arch}", f"-DLSTMVID_SANITIZE={sanitizer}", *options)
        tools = (f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}")
        source = ROOT / "csrc" / "emulation"
        _succeed(cmake, "-G", "Ninja", "-S", source, "-B", build, *tools, *chosen, environment=environment)
        _succeed(cmake, "--build", build, "--target", target, environment=environment)
    return build


@pytest.fixture(scope="session")
def emulation() -> Build:
    """`emulation(target, arch, sanitizer, *options)`: the folder in which the target has been built."""
    built: dict[tuple[str | int, ...], Path] = {}

    def build(target: str, arch: int, sanitizer: str = "none", *options: str) -> Path:
        key = (target, arch, sanitizer, *options)
        if key not in built:
            if sanitizer != "none" and not _has_library(sanitizer):
                pytest.skip(f"the compiler has no {sanitizer} sanitizer")
            built[key] = _build(target, arch, sanitizer, options)
        return built[key]

    return build


def _has_library(sanitizer: str) -> bool:
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    done = subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True)
    return Path(done.stdout.strip()).is_absolute()


# With few multiprocessors, so that few threads have to be emulated.
SMALL = planner.DEVICES["H100"]._replace(name="a small H100", multiprocessors=6, active_clusters=(6, 3, 1, 0))


@pytest.fixture
def small_gpu() -> planner.DeviceLimits:
    """The device that `cuda` stands for."""
    return SMALL


@pytest.fixture(scope="session")
def emulated(emulation):
    """The native module's CUDA part, emulated."""
    found = f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"
    (path,) = emulation("lstmvid_emulated", 90, "none", found).glob("lstmvid_emulated*.so")
    spec = importlib.util.spec_from_file_location("lstmvid_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cuda(emulated, monkeypatch) -> None:
    """The backend, on the CPU's tensors."""
    monkeypatch.setattr(_native, "_C", emulated)
    monkeypatch.setattr(_native, "DTYPES", _native.DTYPES | {torch.float16: emulated.FLOAT16})
    monkeypatch.setattr(recurrence, "target_of", lambda device: recurrence.Target(SMALL, 0, 0))
    monkeypatch.setattr(backends.cuda, "unavailable", lambda request: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
