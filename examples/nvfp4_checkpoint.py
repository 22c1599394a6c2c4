"""Experts of Qwen3 or GLM-4.5 from a checkpoint of ModelOpt in NVFP4, checked against float64.

The folder is small and random, and has the configuration, names and types of the published ones: each matrix has a
scale for 16 values and one of its own, and each expert's activations have a calibrated scale. Runs on a GPU, or with
--emulate ARCH on the emulated device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import nvfp4
import options
from model_layer import Layer, Tensors, run, save, swiglu

HIDDEN, INTERMEDIATE, EXPERTS, TOPK, LAYER = 160, 96, 4, 2, 1
SHARED = {
    "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 256, "moe_intermediate_size": INTERMEDIATE,
    "num_experts_per_tok": TOPK, "num_hidden_layers": LAYER + 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 64, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "qwen3": {**SHARED, "model_type": "qwen3_moe", "num_experts": EXPERTS, "decoder_sparse_step": 1,
              "mlp_only_layers": [0]},
    "glm4.5": {**SHARED, "model_type": "glm4_moe", "n_routed_experts": EXPERTS, "n_shared_experts": 1,
               "first_k_dense_replace": 1, "routed_scaling_factor": 2.5},
}  # fmt: skip
# What lies beside config.json: the format, and what stays in BF16.
QUANTIZATION = {
    "producer": {"name": "modelopt", "version": "0.33.0"},
    "quantization": {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None, "exclude_modules": [
        "lm_head", *(f"model.layers.{n}.{part}" for n in range(LAYER + 1) for part in ("self_attn*", "mlp.gate"))]},
}  # fmt: skip
PREFIX = f"model.layers.{LAYER}.mlp.experts"


def projection(rng: np.random.Generator, name: str, rows: int, columns: int, inputs: np.ndarray
               ) -> tuple[Tensors, np.ndarray]:  # fmt: skip
    """Tensors of each expert, and what they mean: [E, N, K]. ``inputs``: the decode scales [E] of activations."""
    tensors, values = {}, np.empty((EXPERTS, rows, columns))
    for expert in range(EXPERTS):
        packed, scales, whole = nvfp4.quantize(rng.standard_normal((rows, columns)) / columns**0.5)
        values[expert] = nvfp4.dequantize(packed, scales) * np.float64(whole)
        tensors |= {f"{PREFIX}.{expert}.{name}.{suffix}": tensor for suffix, tensor in {
            "weight": ("U8", packed), "weight_scale": ("F8_E4M3", scales), "weight_scale_2": ("F32", whole),
            "input_scale": ("F32", inputs[expert]),
        }.items()}  # fmt: skip
    return tensors, values


def write(folder: Path, rng: np.random.Generator, model: str) -> Layer:
    """The folder, without the layers and matrices that are no routed experts."""
    of_x, of_h = (np.float32(amax / 2688) * rng.uniform(1, 1.5, EXPERTS).astype(np.float32) for amax in (4, 3))
    parts = {"gate_proj": (INTERMEDIATE, HIDDEN, of_x), "up_proj": (INTERMEDIATE, HIDDEN, of_x),
             "down_proj": (HIDDEN, INTERMEDIATE, of_h)}  # fmt: skip
    made = {name: projection(rng, name, *part) for name, part in parts.items()}
    (folder / "config.json").write_text(json.dumps(CONFIGS[model]))
    (folder / "hf_quant_config.json").write_text(json.dumps(QUANTIZATION))
    save(folder, {name: tensor for tensors, _ in made.values() for name, tensor in tensors.items()})
    none = np.zeros((EXPERTS, 1))
    return Layer(*(values for _, values in made.values()), none, none, none, swiglu, {}, (of_x, of_h))


def main() -> int:
    asked = options.parse(__doc__, models=tuple(CONFIGS))
    rng = np.random.default_rng(asked.seed + 1)
    router, bias = rng.standard_normal((EXPERTS, HIDDEN)) / HIDDEN**0.5, rng.standard_normal(EXPERTS) / 10

    def route(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of Qwen3 the largest of a softmax, normalised. Of GLM the largest sigmoids with a bias, which their weights
        have not, normalised and scaled."""
        logits = x.astype(np.float64) @ router.T
        qwen = asked.model == "qwen3"
        scores = np.exp(logits) if qwen else 1 / (1 + np.exp(-logits))
        ids = np.argsort(-(scores if qwen else scores + bias), axis=1)[:, :TOPK]
        weights = np.take_along_axis(scores, ids, axis=1)
        return ids, weights / weights.sum(axis=1, keepdims=True) * CONFIGS[asked.model].get("routed_scaling_factor", 1)

    return run(asked, lambda folder, drawn: write(folder, drawn, asked.model), route)


if __name__ == "__main__":
    sys.exit(main())
