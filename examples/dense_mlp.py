"""The MLP of a dense layer in NVFP4, from the sum with its residual to its result, in three launches:

    add_rms_norm_nvfp4_quantize --> grouped_fp4_swiglu, of one expert --> gemm_fp4

Each reads what the one before it wrote. Shared experts of an MoE layer are the same. Runs on a GPU if torch can reach
one, else, or with --emulate ARCH, on the emulated device with a smaller layer. Compared with float64.
"""

from __future__ import annotations

import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import nvfp4  # noqa: E402
import options  # noqa: E402

import loader  # noqa: E402

ON_GPU = {"tokens": 256, "hidden": 4096, "between": 2048}
EMULATED = {"tokens": 6, "hidden": 160, "between": 96}
EPS = 1e-6
# Relative, root of mean squares. Where fp32 and float64 round an activation to different FP4 values, results differ.
MAX_ERROR = 1e-2


def quantised(values: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """What NVFP4 makes of values, float64, and the decode scale: what calibration on samples would find."""
    packed, scales, decode = nvfp4.quantize(values)
    return nvfp4.dequantize(packed, scales) * decode, decode


def weights(matrix: np.ndarray, name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.float32]:
    """Arguments of a GEMM for [N, K], its values in float64, and its decode scale."""
    packed, scales, decode = nvfp4.quantize(matrix)
    values = nvfp4.dequantize(packed, scales) * decode
    return {name: packed, f"{name}_scale": nvfp4.to_scale_layout(scales)}, values, decode


def empty(rows: int, columns: int) -> dict[str, np.ndarray]:
    """Room for NVFP4: elements, and scales in the 128x4 layout."""
    scale_rows, groups = -(-rows // 128) * 128, -(-columns // 64) * 4
    return {"out": np.zeros((rows, columns // 2), np.uint8), "out_scale": np.zeros((scale_rows, groups), np.uint8)}


def make_layer(
    rng: np.random.Generator, tokens: int, hidden: int, between: int
) -> tuple[list[tuple[str, dict[str, object]]], np.ndarray, np.ndarray]:
    """The launches, by their names and arguments, and what becomes of the residual and of the result, in float64."""
    x, residual = rng.standard_normal((2, tokens, hidden)).astype(np.float16)
    norm_weight = rng.uniform(0.5, 1.5, hidden).astype(np.float16)
    gate, up = rng.standard_normal((2, between, hidden)) / hidden**0.5
    # Gates and ups are rows in turn.
    w13, first, w13_decode = weights(np.stack([gate, up], axis=1).reshape(2 * between, hidden), "b")
    w2, second, w2_decode = weights(rng.standard_normal((hidden, between)) / between**0.5, "b")

    total = (x.astype(np.float32) + residual).astype(np.float16)
    row = total.astype(np.float64)
    normed, a_decode = quantised(row / np.sqrt((row**2).mean(1, keepdims=True) + EPS) * norm_weight)
    products = normed @ first.T
    activated, h_decode = quantised(products[:, 0::2] / (1 + np.exp(-products[:, 0::2])) * products[:, 1::2])

    def vector(*values: float, dtype: type = np.float32) -> np.ndarray:
        return np.array(values, dtype)

    kind = {"global_scale_kind": "decode"}
    a, h, out = empty(tokens, hidden), empty(tokens, between), np.full((tokens, hidden), np.nan, np.float32)
    norm = {"x": x, "residual": residual, "weight": norm_weight, "global_scale": vector(a_decode), **a, **kind,
            "eps": EPS, "rounding": "none"}  # fmt: skip
    gate_and_up = {
        "a": a["out"], "a_scale": a["out_scale"], **{name: array[None] for name, array in w13.items()},
        "alpha": vector(w13_decode * a_decode), "expert_offsets": vector(0, tokens, dtype=np.int32),
        "scale_offsets": vector(0, dtype=np.int32), "row_weight": np.ones(tokens, np.float32),
        "global_scale": vector(h_decode), **h, **kind, "intermediate": "f32", "rounding": "none",
    }  # fmt: skip
    down = {"a": h["out"], "a_scale": h["out_scale"], **w2, "alpha": vector(w2_decode * h_decode), "out": out}
    launches = [("add_rms_norm_nvfp4_quantize", norm), ("grouped_fp4_swiglu", gate_and_up), ("gemm_fp4", down)]
    return launches, total, activated @ second.T


def main() -> int:
    asked = options.parse(__doc__)
    device = options.emulated(asked)
    on_gpu = device is None
    if on_gpu:
        import torch

    sizes = ON_GPU if on_gpu else EMULATED
    launches, total, expected = make_layer(np.random.default_rng(asked.seed), **sizes)
    moved: dict[int, object] = {}  # one copy of each buffer, since launches share them
    for name, arguments in launches:
        for key, value in arguments.items() if on_gpu else ():
            if isinstance(value, np.ndarray):
                arguments[key] = moved.setdefault(id(value), torch.from_numpy(value).cuda())
        loader.launch(name, **arguments, device=device)
    residual, result = launches[0][1]["residual"], launches[-1][1]["out"]
    if on_gpu:
        residual, result = residual.cpu().numpy(), result.cpu().numpy()

    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    same, names = np.array_equal(residual, total), ", ".join(name for name, _ in launches)
    print(", ".join(f"{name} {size}" for name, size in sizes.items()) + f"; seed {asked.seed}")
    print(f"launched on {torch.cuda.get_device_name() if on_gpu else device}: {names}")
    print(f"the residual is {'' if same else 'not '}the sum to the byte")
    print(f"error against float64, activations quantised likewise: {error:.1e} relative")
    return 0 if same and error <= MAX_ERROR else 1


if __name__ == "__main__":
    sys.exit(main())
