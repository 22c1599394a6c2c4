"""The device's variants, and programs that need a process of their own."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import hardware
import packs
import pytest

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX shares the device with torch

if hardware.cuda_devices():
    with warnings.catch_warnings():  # the suite makes errors of warnings; those of importing a framework are not ours
        warnings.simplefilter("ignore")
        for framework in ("torch", "jax", "cupy", "cuda.core"):
            with contextlib.suppress(ImportError):
                importlib.import_module(framework)


def device_variants() -> dict[str, str]:
    """Variant -> output type of the grouped_fp4 artifacts that run on device 0; empty without a device."""
    if not hardware.cuda_devices():
        return {}
    return packs.output_types("grouped_fp4", hardware.runs_here)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        found = device_variants() or {"no device": ""}
        metafunc.parametrize(("variant", "out_type"), found.items(), ids=list(found))


@pytest.fixture(scope="session")
def variants() -> dict[str, str]:
    return device_variants()


@pytest.fixture
def run_program() -> Callable[..., str]:
    """Runs Python text in a fresh process and returns what it printed; a failure shows its output."""

    def run(program: str, *arguments: str, timeout: float = 120) -> str:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "gpu")])
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if result.returncode:
            pytest.fail(f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}", pytrace=False)
        return result.stdout

    return run
