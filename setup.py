"""The build step of the native module ``lstmvid._C``: CMake and ninja. Everything else stands in pyproject.toml.

Environment:
    LSTMVID_CUDA: AUTO (the default: with CUDA if a compiler for it is found), ON or OFF.
    LSTMVID_CUDA_ARCHS: GPUs to compile for, such as `80;90a`; by default the ones in this machine, or, where there is
        none, all that are served.
    CMAKE_ARGS: further arguments for CMake, as other packages take them, e.g. ``-DCMAKE_BUILD_TYPE=Debug``.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def build_tool(name: str) -> str:
    """Path of ``cmake`` or ``ninja``: of the Python package of that name (a build requirement), else from PATH.

    The package's own file list is asked since it is right everywhere: in pip's throw-away build environment, and in a
    virtual environment whose ``bin`` isn't on PATH.
    """
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    packaged = (Path(file.locate()).resolve() for file in files if file.name == name and file.parent.name == "bin")
    tool = next((str(path) for path in packaged if os.access(path, os.X_OK)), None) or shutil.which(name)
    if tool is None:
        raise CompileError(f"lstmvid: {name} is needed to build; `pip install {name}` or put it on PATH")
    return tool


class CMakeExtension(Extension):
    """An extension module that CMake builds; setuptools only has to know its name and what belongs into an sdist."""

    def __init__(self, name: str) -> None:
        sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
        depends = [ROOT / "CMakeLists.txt", *sources]
        super().__init__(name, sources=[], depends=sorted(str(path.relative_to(ROOT)) for path in depends))


class CMakeBuild(build_ext):
    """``build_ext`` through CMake, in a build folder that stays, so that the next build compiles only what changed."""

    def build_extension(self, ext: CMakeExtension) -> None:
        """Configure, compile and install ``ext`` to where setuptools expects it."""
        import pybind11

        cmake, ninja = build_tool("cmake"), build_tool("ninja")
        build_dir = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        package_dir = (ROOT / self.get_ext_fullpath(ext.name)).parent
        # Paths that may lie in pip's throw-away build environment are given anew each time, never taken from the cache.
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DLSTMVID_CUDA={os.environ.get('LSTMVID_CUDA') or 'AUTO'}",
            f"-DLSTMVID_CUDA_ARCHS={os.environ.get('LSTMVID_CUDA_ARCHS', '')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        install = [cmake, "--install", str(build_dir), "--prefix", str(package_dir)]
        for command in (configure, [cmake, "--build", str(build_dir)], install):
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                raise CompileError(f"lstmvid: `{shlex.join(command)}` failed; its message stands above") from error


setup(ext_modules=[CMakeExtension("lstmvid._C")], cmdclass={"build_ext": CMakeBuild})
