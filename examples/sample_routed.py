"""The main job on a sample: routed tokens through one grouped NVFP4 GEMM, checked against float64.

Runs on a GPU if torch or CuPy can reach one, else on the emulated device with a smaller sample.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import nvfp4  # noqa: E402
import options  # noqa: E402

import loader  # noqa: E402

ON_GPU = {"tokens": 512, "experts": 32, "top_k": 4, "n": 512, "k": 1024}
EMULATED = {"tokens": 12, "experts": 8, "top_k": 2, "n": 136, "k": 288}


def gpu_framework() -> str | None:
    """The first framework that is installed and sees a CUDA device."""
    for name in ("torch", "cupy"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if module.cuda.is_available():
            return name
    return None


def run_on_gpu(framework: str, problem: nvfp4.Routed) -> tuple[np.ndarray, object, str]:
    """Output, the plan, and the device's name."""
    if framework == "torch":
        import torch

        inputs = {name: torch.from_numpy(array).cuda() for name, array in problem.inputs.items()}
        out = torch.empty(problem.shape, dtype=torch.float32, device="cuda")
        plan = loader.plan("grouped_fp4", **inputs, out=out)
        plan.launch()
        return out.cpu().numpy(), plan, torch.cuda.get_device_name()
    import cupy

    inputs = {name: cupy.asarray(array) for name, array in problem.inputs.items()}
    out = cupy.empty(problem.shape, dtype=cupy.float32)
    plan = loader.plan("grouped_fp4", **inputs, out=out)
    plan.launch(cupy.cuda.get_current_stream())
    return out.get(), plan, cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


def run_emulated(device: str, problem: nvfp4.Routed) -> tuple[np.ndarray, object, str]:
    """Output, the plan, and the device's name."""
    out = np.full(problem.shape, np.nan, np.float32)
    plan = loader.plan("grouped_fp4", **problem.inputs, out=out, device=device)
    plan.launch()
    return out, plan, f"the emulated device sm_{plan.arch}"


def main() -> int:
    asked = options.parse(__doc__, "the routed tokens")
    framework = None if asked.emulate else gpu_framework()
    sizes = ON_GPU if framework else EMULATED
    problem = nvfp4.routed_problem(asked.seed, **sizes)
    counts = np.diff(problem.inputs["expert_offsets"])
    routed = "routed {tokens} tokens to {top_k} of {experts} experts, N = {n}, K = {k};".format_map(sizes)
    print(routed, f"seed {asked.seed}")
    print(f"  {sum(counts)} rows, {counts.max()} in the fullest expert, {(counts == 0).sum()} experts without rows")

    begin = time.perf_counter()
    if framework:
        out, plan, device = run_on_gpu(framework, problem)
    else:
        out, plan, device = run_emulated(f"emulated:{asked.emulate}" if asked.emulate else "emulated", problem)
    seconds = time.perf_counter() - begin
    print(f"launched {plan.kernel} (sm_{plan.arch}, grid {plan.grid}) on {device} from {framework or 'numpy'}")
    print(f"  {seconds:.2f} s from host arrays to host arrays, loading included")

    error = np.abs(out - problem.expected)
    # fp32 accumulation, then multiplication by alpha and rounding to float32.
    within = error <= problem.bound + np.abs(problem.expected) * 2.0**-23
    relative = np.linalg.norm(out - problem.expected) / np.linalg.norm(problem.expected)
    print(f"error against float64 on the quantised operands: {relative:.2e} relative, {error.max():.2e} at most")
    print(f"  {(~within).sum()} of {within.size} elements outside the bound of fp32 accumulation")
    print(f"  (quantisation to NVFP4 itself: {problem.quantisation_error:.2e} relative)")
    return 0 if within.all() else 1


if __name__ == "__main__":
    sys.exit(main())
