"""A layer of gpt-oss from its checkpoint: experts in MXFP4 with biases, checked against float64.

Tokens are in bf16 on Hopper, and in MXFP8 elsewhere. The folder is small and random, and has the configuration, names
and types of the published one. Runs on a GPU, or with --emulate ARCH on the emulated device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import options
from model_layer import E2M1, Layer, Tensors, run, save, to_bf16

HIDDEN, INTERMEDIATE, EXPERTS, TOPK = 96, 96, 4, 2
CONFIG = {
    "model_type": "gpt_oss", "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1,
    "num_local_experts": EXPERTS, "num_experts_per_tok": TOPK, "swiglu_limit": 7.0, "vocab_size": 64,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]},
}  # fmt: skip
PREFIX = "model.layers.0.mlp.experts"


def clamped_swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Gate at most 7, up within 7, a steeper sigmoid, and 1 added to up."""
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def projection(rng: np.random.Generator, name: str, rows: int, columns: int) -> tuple[Tensors, np.ndarray, np.ndarray]:
    """Tensors of all experts, and what they mean: [E, N, K], and biases [E, N]."""
    blocks = rng.integers(0, 256, (EXPERTS, rows, columns // 32, 16), dtype=np.uint8)
    scales = rng.integers(120, 124, (EXPERTS, rows, columns // 32), dtype=np.uint8)  # of 2^-7 to 2^-4
    bias, bias_values = to_bf16(rng.standard_normal((EXPERTS, rows)))
    codes = np.stack([blocks & 0xF, blocks >> 4], axis=-1).reshape(EXPERTS, rows, columns // 32, 32)
    values = E2M1[codes] * 2.0 ** (scales.astype(int) - 127)[..., None]
    tensors = {f"{PREFIX}.{name}_blocks": ("U8", blocks), f"{PREFIX}.{name}_scales": ("U8", scales),
               f"{PREFIX}.{name}_bias": ("BF16", bias)}  # fmt: skip
    return tensors, values.reshape(EXPERTS, rows, columns), bias_values


def write(folder: Path, rng: np.random.Generator) -> Layer:
    """The folder; rows of gate and up lie in turn."""
    tensors, both, bias = projection(rng, "gate_up_proj", 2 * INTERMEDIATE, HIDDEN)
    more, down, down_bias = projection(rng, "down_proj", HIDDEN, INTERMEDIATE)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save(folder, tensors | more)
    words = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": CONFIG["swiglu_limit"]}
    gate, up = both[:, 0::2], both[:, 1::2]
    return Layer(gate, up, down, bias[:, 0::2], bias[:, 1::2], down_bias, clamped_swiglu, words)


def main() -> int:
    asked = options.parse(__doc__)
    router = np.random.default_rng(asked.seed + 1).standard_normal((EXPERTS, HIDDEN))

    def route(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A softmax of the top-k logits."""
        logits = x.astype(np.float64) @ router.T
        ids = np.argsort(-logits, axis=1)[:, :TOPK]
        weights = np.exp(np.take_along_axis(logits - logits.max(axis=1, keepdims=True), ids, axis=1))
        return ids, weights / weights.sum(axis=1, keepdims=True)

    return run(asked, write, route)


if __name__ == "__main__":
    sys.exit(main())
