"""Benchmarks start from a checkout by one command, or say in one line or two what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import hardware
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADER_TESTS = Path(__file__).resolve().parent / "loader"
sys.path.insert(0, str(LOADER_TESTS))

import sample_pack  # noqa: E402

# A program, where the packages of this project are not installed.
START = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [{folder!r}, *(path for path in sys.path if path not in ("", {root!r}))]
{code}
"""
RUN = "sys.argv = [{path!r}]; runpy.run_path({path!r}, run_name='__main__')"
ON_DEVICE = ["beside_deep_gemm", "grouped_fp4", "launch_cost", "moe", "quantize", "tune"]


def start(code: str, **environment: str) -> subprocess.CompletedProcess:
    program = START.format(folder=str(ROOT / "benchmarks"), root=str(ROOT), code=code)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, "-c", program], cwd="/", env=variables, capture_output=True, text=True,
                          check=False)  # fmt: skip


@pytest.mark.parametrize("name", ON_DEVICE)
def test_without_a_device_a_benchmark_says_so(name):
    """In one line, and without an installed loader."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    if hardware.cuda_devices():
        pytest.skip("needs a machine without a CUDA device")
    done = start(RUN.format(path=str(ROOT / "benchmarks" / f"{name}.py")))
    assert (done.returncode, done.stderr) == (1, "no CUDA device: this benchmark measures one\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["scale_rows"], ""),
        (["scale_rows", "moe_fp4"], "no pack has moe_fp4; build all kernels: python build.py --arch 90a"),
        (["scale_rows", "nop9"], "no pack has nop9; build it and name both packs:\n  python build.py --matrix"),
    ],
)
def test_a_kernel_that_no_pack_has_is_named(tmp_path, names, message):
    """With the command that builds it."""
    sample_pack.write(tmp_path)
    done = start(f"import record; record._need_kernels({names!r})", LOADER_ARTIFACTS=str(tmp_path))
    assert done.stderr.startswith(message) and done.returncode == bool(message) and "Traceback" not in done.stderr


def test_without_a_pack_a_benchmark_says_what_to_build(tmp_path):
    """And where it looked."""
    done = start("import record; record._need_kernels(['moe_fp4'])", LOADER_ARTIFACTS=str(tmp_path / "none"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr and "build one: python build.py --arch 90a" in done.stderr


def test_the_table_of_launch_costs_has_the_layer():
    """A column of moe_fp4, with a dash for what a composite has not."""
    pytest.importorskip("triton")
    pytest.importorskip("cuda.bindings")
    launches = {"plan.launch(stream)": 2.0, "plan.launch()": 3.0, "loader.launch": 4.0}
    costs = {name: {"bare, ctypes": 1.0, **launches, "Triton JIT": 5.0} for name in ("grouped_fp4", "nop9")}
    code = f"import launch_cost; print(launch_cost.readme_table({costs | {'moe_fp4': launches}}))"
    lines = start(code).stdout.splitlines()
    assert lines[1] == "|  | grouped_fp4, 8 tensors | no-op, 9 tensors | moe_fp4, 5 kernels |"
    assert [line.split(" | ")[-1] for line in lines[3:-1]] == ["- |", "2 |", "3 |", "4 |", "- |"]
