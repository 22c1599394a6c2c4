"""Experts of DeepSeek-V3.1 from their checkpoint: FP8 with a scale for 128 x 128, checked against float64.

The folder is small and random, and has the configuration, names and types of the published one. Its scales are powers
of two: on Hopper they are given as fp32, on Blackwell as UE8M0. Runs on a GPU, or with --emulate ARCH on the emulated
device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import nvfp4
import options
from model_layer import E4M3, Layer, Tensors, run, save, swiglu

HIDDEN, INTERMEDIATE, EXPERTS, TOPK = 160, 144, 4, 2
CONFIG = {
    "model_type": "deepseek_v3", "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 256,
    "moe_intermediate_size": INTERMEDIATE, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
    "num_experts_per_tok": TOPK, "first_k_dense_replace": 1, "num_hidden_layers": 2, "num_attention_heads": 2,
    "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "routed_scaling_factor": 2.5, "vocab_size": 64,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
}  # fmt: skip
PREFIX = "model.layers.1.mlp.experts"


def projection(rng: np.random.Generator, name: str, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
    """Tensors of each expert, and what they mean: [E, N, K]."""
    tensors: Tensors = {}
    values = np.empty((EXPERTS, rows, columns))
    for expert in range(EXPERTS):
        elements = 8 * rng.standard_normal((rows, columns))
        codes = (nvfp4.nearest_code(nvfp4.UE4M3, np.abs(elements)) | (elements < 0) << 7).astype(np.uint8)
        scales = 2.0 ** rng.integers(-8, -5, (-(-rows // 128), -(-columns // 128)))
        tensors[f"{PREFIX}.{expert}.{name}.weight"] = "F8_E4M3", codes
        tensors[f"{PREFIX}.{expert}.{name}.weight_scale_inv"] = "F32", scales.astype(np.float32)
        of_values = scales.repeat(128, axis=0)[:rows].repeat(128, axis=1)[:, :columns]
        values[expert] = E4M3[codes] * of_values
    return tensors, values


def write(folder: Path, rng: np.random.Generator) -> Layer:
    """The folder, without the layers and matrices that are no routed experts."""
    first = (INTERMEDIATE, HIDDEN)
    shapes = {"gate_proj": first, "up_proj": first, "down_proj": (HIDDEN, INTERMEDIATE)}
    made = {name: projection(rng, name, *shape) for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save(folder, {name: tensor for tensors, _ in made.values() for name, tensor in tensors.items()})
    none = np.zeros((EXPERTS, 1))
    return Layer(*(values for _, values in made.values()), none, none, none, swiglu, {})


def main() -> int:
    asked = options.parse(__doc__)
    router = np.random.default_rng(asked.seed + 1).standard_normal((EXPERTS, HIDDEN)) / HIDDEN**0.5

    def route(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest sigmoids, normalised and scaled."""
        scores = 1 / (1 + np.exp(-(x.astype(np.float64) @ router.T)))
        ids = np.argsort(-scores, axis=1)[:, :TOPK]
        weights = np.take_along_axis(scores, ids, axis=1)
        return ids, weights / weights.sum(axis=1, keepdims=True) * CONFIG["routed_scaling_factor"]

    return run(asked, write, route)


if __name__ == "__main__":
    sys.exit(main())
