"""Experts as SGLang's plug-in has them: NVFP4 weights as in a checkpoint, half of the experts on each of two ranks.

A rank prepares its weights once and is given the ids of the whole model with a map of its own, as any placement of
experts is; what the ranks compute adds up to the layer. In SGLang the plug-in does this, when it is asked for:
``python -m sglang.launch_server --model-path ... --quantization modelopt_fp4 --moe-runner-backend block_scaled``.
"""

import os

import numpy as np
import nvfp4
import options
import torch

EXPERTS, TOP_K, HIDDEN, BETWEEN, TOKENS = 4, 2, 64, 64, 9


def quantized(rng: np.random.Generator, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """Random weights of all experts: packed values, scales in plain order, decode scales, and what these stand for."""
    each = [nvfp4.quantize(rng.standard_normal((n, k)) / k**0.5) for _ in range(EXPERTS)]
    values = np.stack([nvfp4.dequantize(packed, scales) * scale for packed, scales, scale in each])
    packed, scales, decode = (torch.from_numpy(np.stack(part)) for part in zip(*each, strict=True))
    return packed, scales, decode, values


asked = options.parse(__doc__)
device = "cpu" if options.emulated(asked) else "cuda"
os.environ["LOADER_EMULATED_ARCH"] = asked.emulate or "90a"

from integrations.expert_preparation import Nvfp4  # noqa: E402
from integrations.torch_experts import of_nvfp4  # noqa: E402  ops are those of the packs

rng = np.random.default_rng(asked.seed)
*gate_up, gate_up_values = quantized(rng, 2 * BETWEEN, HIDDEN)
*down, down_values = quantized(rng, HIDDEN, BETWEEN)
x = torch.from_numpy(rng.standard_normal((TOKENS, HIDDEN))).bfloat16()
ids = torch.from_numpy(np.argsort(rng.random((TOKENS, EXPERTS)))[:, :TOP_K].astype(np.int32))
weights = torch.from_numpy(rng.dirichlet(np.ones(TOP_K), TOKENS).astype(np.float32))

total = torch.zeros(TOKENS, HIDDEN, device=device)
for rank, mine in enumerate(np.array_split(rng.permutation(EXPERTS), 2)):
    expert_map = torch.full((EXPERTS,), -1, dtype=torch.int32)
    expert_map[mine] = torch.arange(len(mine), dtype=torch.int32)
    experts = of_nvfp4(*(Nvfp4(*(tensor[mine].to(device) for tensor in each)) for each in (gate_up, down)))
    total += experts(x.to(device), ids.to(device), weights.to(device), expert_map.to(device))
    print(f"rank {rank} has experts {', '.join(map(str, mine))} in {experts.composite}")

expected = np.zeros((TOKENS, HIDDEN))
for token, choice in np.ndindex(TOKENS, TOP_K):
    expert = int(ids[token, choice])
    gate, up = np.split(gate_up_values[expert] @ x[token].double().numpy(), 2)
    expected[token] += float(weights[token, choice]) * (down_values[expert] @ (gate / (1 + np.exp(-gate)) * up))
error = np.linalg.norm(total.cpu().double().numpy() - expected) / np.linalg.norm(expected)
print(f"{TOKENS} tokens of seed {asked.seed} on {device}: relative error {error:.1e} against float64")
# Tokens in FP4 differ by what a value of two bits and a sign differs, in bf16 by roundings.
assert error < (0.01 if experts.composite == "moe_bf16_nvfp4" else 0.3)
