"""Every variant of grouped_fp4 under compute-sanitizer: ``python tests/gpu/sanitize.py``.

Runs this file once per tool as a program that uses the driver alone (no framework, so that each report is about the
kernels) and looks at the closing line. Exit status 1 if a tool reports anything, or if a result is wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import hardware  # noqa: E402
import packs  # noqa: E402
import reference  # noqa: E402
from raw_buffer import CUDA, NUMPY_TYPES, RawBuffer  # noqa: E402

import loader  # noqa: E402
from loader import arch  # noqa: E402

# Empty experts, one row, more than one tile of rows; more K tiles than stages, and a tail of each dimension.
COUNTS, N, K = [0, 1, 19, 130, 0, 9], 264, 1312
CLEAN = {
    "memcheck": r"ERROR SUMMARY: 0 errors",
    "racecheck": r"RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)",
    "initcheck": r"ERROR SUMMARY: 0 errors",
    "synccheck": r"ERROR SUMMARY: 0 errors",
}
# The loader learns how many parameters a kernel has from the driver's refusal of one too many, which is no error.
OPTIONS = {"memcheck": ["--report-api-errors", "no"]}


class Device:
    """Memory of device 0 through the driver library, in its primary context."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} failed with CUresult {status}")

    def upload(self, array: np.ndarray) -> RawBuffer:
        """A device copy of a contiguous array; uint16 stands for bf16."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(array.nbytes))
        self._call(
            "cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        )
        return RawBuffer(pointer.value, array.shape, NUMPY_TYPES[array.dtype.name], (CUDA, 0))

    def download(self, buffer: RawBuffer, array: np.ndarray) -> None:
        """Waits for the device, then copies back."""
        self._call("cuCtxSynchronize")
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(buffer.pointer), size)


def launch_every_variant() -> None:
    """Launches each variant that runs on device 0 on one small problem and checks the result."""
    capability = hardware.capability(0)
    variants = packs.output_types("grouped_fp4", lambda name: arch.refusal(arch.ARCHS[name], capability) is None)
    if not variants:
        raise SystemExit(f"no variant of grouped_fp4 runs on compute capability {capability}")
    problem = reference.grouped_problem(np.random.default_rng(), COUNTS, N, K, gaps=True)
    expected = reference.grouped_reference(problem)
    device = Device()
    inputs = {name: device.upload(array) for name, array in problem.inputs().items()}
    for variant, out_type in variants.items():
        out = reference.GuardedOutput(problem.shape[0], N, out_type)
        buffer = device.upload(out.array)
        loader.launch("grouped_fp4", **inputs, out=buffer, variant=variant)
        device.download(buffer, out.array)
        reference.verify(problem, expected, out, variant)
    print(f"{len(variants)} variants, every element within the bound")


def run_tool(sanitizer: str, tool: str) -> bool:
    """One tool over ``launch_every_variant``; prints its closing lines, and everything if it is not clean."""
    begin = time.monotonic()
    result = subprocess.run(
        [sanitizer, "--tool", tool, *OPTIONS.get(tool, []), sys.executable, str(Path(__file__).resolve()), "--launch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    clean = result.returncode == 0 and re.search(CLEAN[tool], result.stdout) is not None
    lines = result.stdout.splitlines()
    print(f"{tool}: {'clean' if clean else 'NOT CLEAN'}, {time.monotonic() - begin:.0f} s")
    print("\n".join(lines[-2:] if clean else lines[:60] + ["..."] + lines[-10:]), flush=True)
    return clean


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", action="append", choices=list(CLEAN), help="run this tool only (repeatable)")
    parser.add_argument("--launch", action="store_true", help="launch every variant without a tool")
    arguments = parser.parse_args()
    if arguments.launch:
        launch_every_variant()
        return 0
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return 0 if all([run_tool(sanitizer, tool) for tool in arguments.tool or CLEAN]) else 1


if __name__ == "__main__":
    sys.exit(main())
