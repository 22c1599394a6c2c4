"""A whole MoE layer in one call, moe_fp4, checked against float64.

Runs on a GPU if torch can reach one, else, or with --emulate ARCH, on the emulated device with a smaller layer.
"""

from __future__ import annotations

import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import nvfp4  # noqa: E402
import options  # noqa: E402

import loader  # noqa: E402

ON_GPU = {"tokens": 256, "experts": 16, "top_k": 4, "hidden": 1024, "between": 512}
EMULATED = {"tokens": 6, "experts": 4, "top_k": 2, "hidden": 160, "between": 96}
# Relative, root of mean squares. Where fp32 and float64 round an activation to different FP4 values, results differ.
MAX_ERROR = 1e-2


def prepare(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """[E, N, K] as packed bytes, scales in plain order, scales in the 128x4 layout, and a decode scale an expert."""
    packed, scales, decode = map(np.stack, zip(*map(nvfp4.quantize, weights), strict=True))
    return packed, scales, np.stack([nvfp4.to_scale_layout(of_expert) for of_expert in scales]), decode


def make_layer(
    rng: np.random.Generator, tokens: int, experts: int, top_k: int, hidden: int, between: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arguments of moe_fp4, and its result in float64: both quantisations of activations included."""
    gate, up = rng.standard_normal((2, experts, between, hidden)).astype(np.float32) / np.float32(hidden**0.5)
    down = rng.standard_normal((experts, hidden, between)).astype(np.float32) / np.float32(between**0.5)
    # The kernel makes an activation of neighbouring rows: gate i is row 2 i, up i row 2 i + 1.
    w13, w13_groups, w13_scale, w13_decode = prepare(np.stack([gate, up], axis=2).reshape(experts, 2 * between, hidden))
    w2, w2_groups, w2_scale, w2_decode = prepare(down)

    x = rng.standard_normal((tokens, hidden)).astype(np.float32)
    logits = rng.gumbel(size=(tokens, experts))
    topk_ids = np.argsort(-logits, axis=1)[:, :top_k].astype(np.int32)
    topk_weights = rng.dirichlet(np.ones(top_k), tokens).astype(np.float32)

    *x_stored, x_decode = nvfp4.quantize(x)
    x_values = nvfp4.dequantize(*x_stored) * x_decode
    first, second = (
        [nvfp4.dequantize(*stored) * decode for *stored, decode in zip(*prepared, strict=True)]
        for prepared in ((w13, w13_groups, w13_decode), (w2, w2_groups, w2_decode))
    )
    h = np.empty((tokens, top_k, between))
    for token, k in np.ndindex(tokens, top_k):
        products = first[topk_ids[token, k]] @ x_values[token]
        h[token, k] = products[0::2] / (1 + np.exp(-products[0::2])) * products[1::2]
    # What calibration on samples would find: the scale of the largest activation.
    *h_stored, h_decode = nvfp4.quantize(h.reshape(-1, between))
    h = nvfp4.dequantize(*h_stored).reshape(h.shape) * h_decode
    expected = np.zeros((tokens, hidden))
    for token, k in np.ndindex(tokens, top_k):
        expected[token] += topk_weights[token, k] * (second[topk_ids[token, k]] @ h[token, k])

    arguments = {
        "x": x, "topk_ids": topk_ids, "topk_weights": topk_weights,
        "w13": w13, "w13_scale": w13_scale, "w13_alpha": w13_decode * x_decode,
        "w2": w2, "w2_scale": w2_scale, "w2_alpha": w2_decode * h_decode,
        "x_global_scale": np.full(experts, x_decode), "h_global_scale": np.full(experts, h_decode),
    }  # fmt: skip
    return arguments, expected


def main() -> int:
    asked = options.parse(__doc__)
    device = options.emulated(asked)
    on_gpu = device is None
    if on_gpu:
        import torch

    sizes = ON_GPU if on_gpu else EMULATED
    arguments, expected = make_layer(np.random.default_rng(asked.seed), **sizes)
    out = np.full(expected.shape, np.nan, np.float32)
    if on_gpu:
        arguments = {name: torch.from_numpy(array).cuda() for name, array in arguments.items()}
        out = torch.from_numpy(out).cuda()
    # fp32 between the GEMMs: nothing but the quantisation of activations rounds coarsely. Models round to bf16.
    words = {"global_scale_kind": "decode", "intermediate": "f32", "rounding": "none"}
    plan = loader.plan("moe_fp4", **arguments, **words, out=out, device=device)
    plan.launch()
    result = out.cpu().numpy() if on_gpu else out

    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    print(", ".join(f"{name} {size}" for name, size in sizes.items()) + f"; seed {asked.seed}")
    print(f"launched on {torch.cuda.get_device_name() if on_gpu else device}: {', '.join(plan.steps)}")
    print(f"error against float64, activations quantised likewise: {error:.1e} relative")
    return 0 if error <= MAX_ERROR else 1


if __name__ == "__main__":
    sys.exit(main())
