"""grouped_fp4 inside jax.jit: compiled once, then called with other routings. XLA allots the result and launches on its
own stream, on a GPU; on the CPU the kernel runs on the emulated device."""

import jax
import jax.numpy as jnp
import numpy as np
import nvfp4

import integrations.jax as kernels


@jax.jit
def product(router_weight, **inputs):
    """A grouped GEMM and what follows it, one program."""
    out = kernels.call("grouped_fp4", **inputs, outputs={"out": jnp.float32})["out"]
    return out * router_weight[:, None]


for seed in range(4):
    problem = nvfp4.routed_problem(seed, tokens=8, experts=4, top_k=2, n=64, k=128)
    router_weight = np.random.default_rng(seed).random(problem.shape[0], np.float32)
    out = np.asarray(product(router_weight, **problem.inputs))
    expected = problem.expected * router_weight[:, None]
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    print(f"grouped_fp4 in a program of JAX on {jax.devices()[0]}: relative error {error:.1e}")
