"""Finds the CUDA compiler tools: on PATH, under CUDA_HOME, or in the PyPI packages of the ``build`` extra."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from generator.errors import ToolchainError


@dataclass(frozen=True)
class Toolchain:
    """nvcc, ptxas and fatbinary of one release. ``version`` is nvcc's, ``13.0.88``."""

    nvcc: Path
    ptxas: Path
    fatbinary: Path
    version: str

    @cached_property
    def environment(self) -> dict[str, str]:
        """For subprocesses: messages in English, and no flags that a user's environment would add."""
        hidden = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
        return {**{key: value for key, value in os.environ.items() if key not in hidden}, "LC_ALL": "C"}


def candidates(tool: str) -> list[Path]:
    """Where ``tool`` may be, in order of preference; not all of them exist."""
    places = [Path(folder) / tool for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    places += [Path(os.environ[name]) / "bin" / tool for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for folder in sys.path:
        places += sorted(Path(folder, "nvidia").glob(f"cu[0-9]*/bin/{tool}"), reverse=True)
    return places


def find(tool: str, package: str, beside: Path | None = None) -> Path:
    """Path of ``tool``, preferably in the folder of ``beside``. ``ToolchainError`` names the package that brings it."""
    places = [beside.parent / tool] if beside else []
    for path in [*places, *candidates(tool)]:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise ToolchainError(
        f"{tool} was found neither on PATH nor under CUDA_HOME nor in a Python package; "
        f"install the CUDA toolkit or `pip install {package}`"
    )


def find_toolchain() -> Toolchain:
    """The compiler on this machine, checked to be of one release and to have a host compiler to preprocess with."""
    nvcc = find("nvcc", "nvidia-cuda-nvcc")
    ptxas = find("ptxas", "nvidia-cuda-nvcc", beside=nvcc)
    fatbinary = find("fatbinary", "nvidia-cuda-nvcc", beside=nvcc)
    versions = {tool: _version(tool) for tool in (nvcc, ptxas)}
    if versions[nvcc] != versions[ptxas]:
        raise ToolchainError(f"{nvcc} is {versions[nvcc]} but {ptxas} is {versions[ptxas]}; use one release")
    if not os.environ.get("NVCC_CCBIN") and shutil.which("gcc") is None:
        raise ToolchainError(
            "nvcc preprocesses with a host C++ compiler and there is no gcc on PATH; "
            "install g++, or name a compiler in NVCC_CCBIN"
        )
    return Toolchain(nvcc, ptxas, fatbinary, versions[nvcc])


def find_disassembler() -> Path:
    """nvdisasm, which turns a cubin into SASS."""
    return find("nvdisasm", "nvidia-cuda-nvdisasm")


def _version(tool: Path) -> str:
    try:
        text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"{tool} --version failed: {error}") from None
    match = re.search(r"\bV(\d+\.\d+\.\d+)", text)
    if match is None:
        raise ToolchainError(f"{tool} --version names no version: {text.strip()!r}")
    return match[1]
