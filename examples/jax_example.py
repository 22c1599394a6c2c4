"""grouped_fp4 from JAX. JAX has no current stream to share: wait for the inputs, launch, wait for the output."""

import jax
import jax.numpy as jnp
import numpy as np
import nvfp4
from cuda.bindings import runtime

import loader

problem = nvfp4.routed_problem(seed=0, tokens=256, experts=32, top_k=4, n=512, k=1024)
inputs = {name: jax.device_put(array) for name, array in problem.inputs.items()}
out = jnp.zeros(problem.shape, jnp.float32)  # written in place: nothing else may refer to this array
jax.block_until_ready([out, *inputs.values()])

loader.launch("grouped_fp4", **inputs, out=out)  # on the legacy default stream
(status,) = runtime.cudaDeviceSynchronize()
if status != runtime.cudaError_t.cudaSuccess:
    raise RuntimeError(f"the launch failed: {status}")

error = np.linalg.norm(np.asarray(out) - problem.expected) / np.linalg.norm(problem.expected)
print(f"grouped_fp4 from JAX on {jax.devices()[0]}: relative error {error:.1e}")
