"""grouped_fp4 on host buffers: the same call runs the kernel's PTX on the emulated device, slowly."""

import numpy as np
import nvfp4

import loader

problem = nvfp4.routed_problem(seed=0, tokens=8, experts=4, top_k=2, n=64, k=128)
out = np.full(problem.shape, np.nan, np.float32)
loader.launch("grouped_fp4", **problem.inputs, out=out, device="emulated")

error = np.linalg.norm(out - problem.expected) / np.linalg.norm(problem.expected)
print(f"grouped_fp4 on the emulated device: relative error {error:.1e}")
