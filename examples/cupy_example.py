"""grouped_fp4 from CuPy, on a CuPy stream."""

import cupy
import numpy as np
import nvfp4

import loader

problem = nvfp4.routed_problem(seed=0, tokens=256, experts=32, top_k=4, n=512, k=1024)
with cupy.cuda.Stream(non_blocking=True) as stream:
    inputs = {name: cupy.asarray(array) for name, array in problem.inputs.items()}
    out = cupy.empty(problem.shape, dtype=cupy.float32)
    loader.launch("grouped_fp4", **inputs, out=out, stream=stream)
    result = out.get(stream=stream)
    stream.synchronize()

error = np.linalg.norm(result - problem.expected) / np.linalg.norm(problem.expected)
print(f"grouped_fp4 from CuPy: relative error {error:.1e}")
