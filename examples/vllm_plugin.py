"""What the plug-in for vLLM makes of a layer of experts, without vLLM: NVFP4 as that has loaded it, on two ranks.

In vLLM it is asked for by name, `vllm serve MODEL --quantization block_scaled_nvfp4`, or from Python:

    vllm.LLM(model, quantization="block_scaled_nvfp4")

Here weights are cut as tensor parallelism cuts them, prepared as after loading, and each rank calls its composite as
vLLM's modular kernel has it called; the sum is checked against float64. Runs on a GPU if torch can reach one, else, or
with --emulate ARCH, on the emulated device.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import nvfp4  # noqa: E402
import options  # noqa: E402

import loader  # noqa: E402
from integrations.expert_preparation import Nvfp4, prepare  # noqa: E402

TOKENS, EXPERTS, TOP_K, HIDDEN, BETWEEN, RANKS = 6, 4, 2, 128, 96, 2
COMPOSITES = {9: "moe_bf16_nvfp4", 10: "moe_fp4", 12: "moe_fp4"}  # by major compute capability
# Relative, root of mean squares: results of ranks are rounded to bf16. Where fp32 and float64 round an activation to
# different FP4 values, results differ more.
MAX_ERROR = 2e-2


class Layer:
    """Weights as a checkpoint of ModelOpt has them, and what float64 makes of tokens."""

    def __init__(self, rng: np.random.Generator, quantised: bool) -> None:
        self.quantised = quantised
        gate_up = rng.standard_normal((EXPERTS, 2 * BETWEEN, HIDDEN)).astype(np.float32) / np.float32(HIDDEN**0.5)
        down = rng.standard_normal((EXPERTS, HIDDEN, BETWEEN)).astype(np.float32) / np.float32(BETWEEN**0.5)
        self.w13, self.w2 = ([np.stack(part) for part in zip(*map(nvfp4.quantize, weights), strict=True)]
                             for weights in (gate_up, down))  # fmt: skip
        # What calibration on samples may find; what is larger saturates.
        self.x_scale, self.h_scale = ((amax + rng.random(dtype=np.float32)) / np.float32(2688) for amax in (4, 5))

    def rank(self, rank: int) -> tuple[Nvfp4, Nvfp4, torch.Tensor, torch.Tensor]:
        """A part of gate and of up, the same columns of down, and scales of what both multiply."""
        begin, end = (BETWEEN * (rank + step) // RANKS for step in (0, 1))
        rows = np.r_[begin:end, BETWEEN + begin : BETWEEN + end]
        first = (self.w13[0][:, rows], self.w13[1][:, rows])
        second = (self.w2[0][:, :, begin // 2 : end // 2], self.w2[1][:, :, begin // 16 : end // 16])
        scales = torch.full((EXPERTS, 2), float(self.x_scale)), torch.full((EXPERTS,), float(self.h_scale))
        return _weights(*first, np.repeat(self.w13[2][:, None], 2, axis=1)), _weights(*second, self.w2[2]), *scales

    def expected(self, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """[T, H]."""
        first, second = ([nvfp4.dequantize(*stored) * scale for *stored, scale in zip(*matrices, strict=True)]
                         for matrices in (self.w13, self.w2))  # fmt: skip
        x, total = self._seen(x, self.x_scale), np.zeros(x.shape)
        for token, k in np.ndindex(ids.shape):
            gate, up = np.split(rounded(first[ids[token, k]] @ x[token]), 2)
            h = self._seen(rounded(gate / (1 + np.exp(-gate)) * up)[None], self.h_scale)[0]
            total[token] += weights[token, k] * (second[ids[token, k]] @ h)
        return total

    def _seen(self, rows: np.ndarray, scale: np.float32) -> np.ndarray:
        """Activations as the GEMM takes them."""
        return nvfp4.dequantize(*nvfp4.quantize(rows, scale)[:2]) * scale if self.quantised else rows


def rounded(values: np.ndarray) -> np.ndarray:
    """To bf16, as the kernels do between the GEMMs."""
    return torch.from_numpy(values).bfloat16().double().numpy()


def _weights(*arrays: np.ndarray) -> Nvfp4:
    return Nvfp4(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def main() -> int:
    asked = options.parse(__doc__)
    device = options.emulated(asked)
    if device is None:
        major = torch.cuda.get_device_capability()[0]
    else:
        major = int((asked.emulate or os.environ.get("LOADER_EMULATED_ARCH") or "120a").rstrip("af")) // 10
    composite, where = COMPOSITES[major], "cpu" if device else "cuda"
    rng = np.random.default_rng(asked.seed)
    layer = Layer(rng, quantised=composite == "moe_fp4")
    tokens = torch.from_numpy(rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32)).bfloat16()
    ids = np.argsort(-rng.gumbel(size=(TOKENS, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int32)
    weights = rng.dirichlet(np.ones(TOP_K), TOKENS).astype(np.float32)

    total = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64)
    scalars = {"global_scale_kind": "decode"} if layer.quantised else {}
    for rank in range(RANKS):
        prepared = prepare(composite, *layer.rank(rank))
        routed = {"x": tokens, "topk_ids": torch.from_numpy(ids), "topk_weights": torch.from_numpy(weights)}
        arguments = {name: tensor.to(where) for name, tensor in (prepared | routed).items()}
        out = torch.full((TOKENS, HIDDEN), torch.nan, dtype=torch.bfloat16, device=where)
        loader.launch(composite, **arguments, **scalars, out=out, device=device)
        total += out.cpu().double()

    expected = layer.expected(tokens.float().numpy(), ids, weights)
    error = np.linalg.norm(total.numpy() - expected) / np.linalg.norm(expected)
    print(f"{composite} on {device or torch.cuda.get_device_name()}, {RANKS} ranks added up; seed {asked.seed}")
    print(f"error against float64: {error:.1e} relative")
    return 0 if error <= MAX_ERROR else 1


if __name__ == "__main__":
    sys.exit(main())
