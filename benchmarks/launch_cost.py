"""What a launch costs the host.

    data=tests/build/data
    python build.py --matrix $data/kernels.yaml --templates $data/templates --kernel nop9 --out build/nop9
    LOADER_ARTIFACTS=artifacts:build/nop9 python benchmarks/launch_cost.py --json results/launch_cost.json

One run compares, for the same packed arguments and tensors: a bare driver launch (ctypes with ready-made objects, and
cuda.bindings), ``plan.launch``, ``loader.launch``, and a Triton JIT launch of a kernel with nine tensors. Kernels are
small, so that the device keeps up and only the host is measured. Then: the import, and the first launch of a process.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import record
import torch
import triton
from cuda.bindings import driver as cuda
from moe_problem import Layer, Size, whole_arguments
from problem import make_problem

import loader

LAUNCHES = 400  # of kernels in a batch; below the depth of the driver's queue, so that no launch waits for the device
BATCHES = 40
KERNELS = {"grouped_fp4": 1, "nop9": 1, "moe_fp4": 5}  # name -> kernels of one launch


@triton.jit
def _nop9(a, b, c, d, e, f, g, h, out):
    pass


def per_launch(ways: dict[str, Callable[[], object]], batch: int, spread: record.Spread) -> dict[str, float]:
    """Microseconds of one call each way: the median over batches, taken in turn so that all see the same machine."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(BATCHES + 3):  # the first three warm up
        for way, launch in ways.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(batch):
                launch()
            times[way].append((time.perf_counter() - begin) / batch * 1e6)
    torch.cuda.synchronize()
    return {way: spread.median(taken[3:]) for way, taken in times.items()}


def bare_launches(plan: loader.Plan, stream: int) -> dict[str, Callable[[], object]]:
    """The driver call of a plan with its packed arguments, without the plan."""
    prepared = plan._prepared
    slot = prepared.slot(plan._pointers)
    config, function, parameters = slot._config_address, slot._function, slot._parameters_address
    slot._config.stream = stream
    launch_kernel = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx

    def with_ctypes(slot=slot) -> None:
        if launch_kernel(config, function, parameters, None):
            raise RuntimeError("cuLaunchKernelEx failed")

    bindings_config = cuda.CUlaunchConfig()
    geometry = prepared.geometry
    for axis, grid, block in zip("XYZ", geometry.grid, geometry.block, strict=True):
        setattr(bindings_config, f"gridDim{axis}", grid)
        setattr(bindings_config, f"blockDim{axis}", block)
    bindings_config.sharedMemBytes = geometry.shared
    bindings_config.hStream = stream
    attributes = []
    if geometry.pdl:
        attribute = cuda.CUlaunchAttribute()
        attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    bindings_config.attrs, bindings_config.numAttrs = attributes, len(attributes)
    handle, address = cuda.CUfunction(function.value), parameters.value

    def with_bindings(slot=slot) -> None:
        (status,) = cuda.cuLaunchKernelEx(bindings_config, handle, address, 0)
        if status != cuda.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"cuLaunchKernelEx failed: {status}")

    return {"bare, ctypes": with_ctypes, "bare, cuda.bindings": with_bindings}


def ways_to_launch(name: str, arguments: dict[str, Any], bare: bool = True) -> dict[str, Callable[[], object]]:
    """Every way to launch a kernel, or, not ``bare``, a composite: no single driver call does its work."""
    stream = torch.cuda.current_stream()
    plan = loader.plan(name, **arguments)
    return {
        **(bare_launches(plan, stream.cuda_stream) if bare else {}),
        "plan.launch(stream)": lambda: plan.launch(stream.cuda_stream),
        "plan.launch()": plan.launch,
        "loader.launch": lambda: loader.launch(name, **arguments),
    }


COLD = """
import sys, time
begin = time.perf_counter(); import loader; imported = time.perf_counter() - begin
if {import_only}: print(imported * 1000); raise SystemExit
import numpy as np
sys.path[:0] = [{tests!r}, {gpu!r}]
import reference, sanitize
problem = reference.grouped_problem(np.random.default_rng(0), [3, 0, 5], 256, 512)
device = sanitize.Device()  # cuInit and the primary context
inputs = {{name: device.upload(array) for name, array in problem.inputs().items()}}
out = reference.GuardedOutput(8, 256, "bf16")
buffer = device.upload(out.array)
begin = time.perf_counter()
loader.launch("grouped_fp4", **inputs, out=buffer)
launched = time.perf_counter() - begin
device.download(buffer, out.array)
reference.verify(problem, reference.grouped_reference(problem), out)
print(launched * 1000)
"""


def in_fresh_process(program: str) -> str:
    """What a Python program prints, with the checkout on its path."""
    path = os.pathsep.join(filter(None, [str(record.ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stdout


def fresh_process(import_only: bool, runs: int) -> float:
    """Median milliseconds of ``import loader``, or of the first launch with the context already there: pack found and
    read, digests checked, kernel selected, module loaded, launched."""
    tests = record.ROOT / "tests"
    program = COLD.format(import_only=import_only, tests=str(tests), gpu=str(tests / "gpu"))
    times = []
    for _ in range(runs):
        times.append(float(in_fresh_process(program).split()[-1]))
    return statistics.median(times)


def foreign_modules() -> list[str]:
    """Modules outside the standard library that ``import loader`` brings in."""
    program = "import sys; before = set(sys.modules); import loader; print(*sys.modules.keys() - before)"
    roots = {name.partition(".")[0] for name in in_fresh_process(program).split()}
    return sorted(roots - set(sys.stdlib_module_names) - {"loader"})


def ways_by_name() -> dict[str, dict[str, Callable[[], object]]]:
    """Kernel -> its ways to be launched; small problems."""
    nine = [torch.empty(1024, device="cuda") for _ in range(9)]
    triton_launch = {"Triton JIT": lambda: _nop9[(1,)](*nine)}
    problem, layer = make_problem([1], 128, 256), Layer("moe_fp4", Size(4, 2, 256, 128))
    tokens = layer.tokens(1)
    gemm = {**problem.inputs, "out": problem.output()}
    whole = whole_arguments(layer, tokens, torch.empty_like(tokens["x"]))
    return {
        "grouped_fp4": ways_to_launch("grouped_fp4", gemm) | triton_launch,
        "nop9": ways_to_launch("nop9", dict(zip([*"abcdefgh", "out"], nine, strict=True))) | triton_launch,
        "moe_fp4": ways_to_launch("moe_fp4", whole, bare=False),
    }


# Of the README: way -> what it is called there.
ROWS = {
    "bare, ctypes": "bare driver launch through ctypes, arguments packed before",
    "plan.launch(stream)": "`plan.launch(stream)`",
    "plan.launch()": "`plan.launch()`, torch's current stream",
    "loader.launch": "`loader.launch`",
    "Triton JIT": "Triton JIT launch of a no-op with 9 tensors",
}


def readme_table(costs: dict[str, dict[str, float]]) -> str:
    """A row a way, a column a kernel; a dash where a kernel has no such way."""
    headers = ["", "grouped_fp4, 8 tensors", "no-op, 9 tensors", "moe_fp4, 5 kernels"]
    rows = [[title, *[ways.get(way) for ways in costs.values()]] for way, title in ROWS.items()]
    return record.markdown("benchmarks/launch_cost.py", headers, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="fresh processes for import and first launch")
    arguments = record.parse(parser, list(KERNELS))
    found = record.environment(("torch", "triton", "cuda-bindings"))
    print(found)

    spread = record.Spread()
    costs = {name: per_launch(ways, LAUNCHES // KERNELS[name], spread) for name, ways in ways_by_name().items()}
    cold = {
        "import loader, ms": fresh_process(True, arguments.runs),
        "first launch beyond cuInit and context, ms": fresh_process(False, arguments.runs),
    }

    rows = []
    for kernel, ways in costs.items():
        bare, triton_jit = ways.get("bare, ctypes"), ways.get("Triton JIT")
        for way, cost in ways.items():
            name = kernel if way != "Triton JIT" else "9 tensors, no-op"
            rows.append([name, way, cost, bare and cost / bare, triton_jit and cost / triton_jit])
    print(record.table("one launch", ["kernel", "way", "microseconds", "x bare", "x Triton"], rows))
    print(readme_table(costs))
    print(record.table("a fresh process", ["what", "median"], list(cold.items())))
    modules = foreign_modules()
    print("modules outside the standard library after import:", ", ".join(modules) or "none")
    results = {"microseconds": costs, "fresh_process": cold, "foreign_modules": modules}
    record.finish(arguments.json, "launch_cost", found, {"batches": BATCHES, **spread.facts()}, results)


if __name__ == "__main__":
    main()
