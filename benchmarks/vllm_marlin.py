"""Operands of vLLM's Marlin for MoE, ``moe_wna16_marlin_gemm``, of NVFP4 and MXFP4 weights, by vLLM's own functions.

These come out of its files: to import these would take all of vLLM. Two of its steps are here: eight weights a word,
which it does on the host or by a kernel of another library, and which rows a block has, which it says of tokens.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
from problem import DEVICE

FUNCTIONS = {
    "marlin_utils.py": ("get_scale_perms", "marlin_permute_scales", "marlin_permute_bias"),
    "marlin_utils_fp4.py": ("_nvfp4_compute_scale_factor", "nvfp4_marlin_process_scales", "mxfp4_marlin_process_scales",
                            "nvfp4_marlin_process_global_scale"),
    "marlin_utils_test.py": ("get_weight_perm", "marlin_permute_weights"),
}  # fmt: skip
E2M1 = 2 | 1 << 8 | 1 << 16 | 1 << 49  # bits of exponent and mantissa, a sign, no infinities: vLLM's number of the type
BLOCKS = (8, 16, 32, 48, 64)  # rows of one
WORDS = {
    "b_type_id": E2M1, "is_full_k": True, "use_atomic_add": False, "use_fp32_reduce": True, "is_zp_float": False,
    "thread_k": -1, "thread_n": -1, "blocks_per_sm": -1,
    **dict.fromkeys(("a_scales", "b_zeros_or_none", "g_idx_or_none", "perm_or_none")),
}  # fmt: skip


def functions(folder: Path) -> SimpleNamespace:
    """vLLM's functions by name. ImportError where a file has none of such a name, OSError where there is no file."""
    found = {"torch": torch, "np": numpy, "GPTQ_MARLIN_TILE": 16}
    for file, names in FUNCTIONS.items():
        tree = ast.parse((folder / file).read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
        exec(compile(tree, folder / file, "exec"), found)
        missing = [name for name in names if name not in found]
        if missing:
            raise ImportError(f"{folder / file} has no function {', '.join(missing)}")
    return SimpleNamespace(**found)


def repacked(
    packed: torch.Tensor, groups: torch.Tensor, alpha: torch.Tensor, vllm: SimpleNamespace
) -> dict[str, torch.Tensor | None]:
    """u8 [E, N, K / 2] and scales by argument of the kernel: words of eight weights [E, K / 16, 2 N], and scales with
    rows along K. Of NVFP4, E4M3 [E, N, K / 16] with fp32 alpha [E], a factor of each expert too; MXFP4 has UE8M0
    [E, N, K / 32] and none."""
    experts, n, k = *packed.shape[:2], 2 * packed.shape[2]
    scales, of_tokens, is_mx = groups.to(torch.bfloat16), torch.bfloat16, groups.dtype == torch.float8_e8m0fnu
    common = 1.0 if is_mx else vllm._nvfp4_compute_scale_factor(scales, of_tokens)  # one for all experts
    order = vllm.get_weight_perm(4).to(packed.device)
    words, processed = [], []
    for expert in range(experts):
        codes = torch.stack([packed[expert] & 15, packed[expert] >> 4], -1).reshape(n, k).T.contiguous()
        places = vllm.marlin_permute_weights(codes, k, n, order)
        words.append((places[:, 0::2] | places[:, 1::2] << 4).view(torch.int32))
        permuted = vllm.marlin_permute_scales(s=scales[expert].T, size_k=k, size_n=n, group_size=k // groups.shape[2])
        if is_mx:
            processed.append(vllm.mxfp4_marlin_process_scales(permuted))
        else:
            processed.append(vllm.nvfp4_marlin_process_scales(permuted, scale_factor=common, a_dtype=of_tokens)[0])
    factor = None if is_mx else (vllm.nvfp4_marlin_process_global_scale(alpha, of_tokens) / common).float()
    of_groups = torch.stack([scale.view(torch.uint8) for scale in processed]).view(groups.dtype)
    return {"b_q_weight": torch.stack(words), "b_scales": of_groups, "global_scale": factor}


def block_by_rule(rows: float) -> int:
    """What vLLM chooses for so many rows an expert on average: the smallest block that these fill less than nine
    tenths of, else the largest."""
    return next((block for block in BLOCKS if rows / block < 0.9), BLOCKS[-1])


def nearest(block: int) -> tuple[int, ...]:
    """The block itself and those next to it in size."""
    at = BLOCKS.index(block)
    return BLOCKS[max(at - 1, 0) : at + 2]


def rows_of_blocks(counts: Sequence[int], block: int) -> dict[str, torch.Tensor]:
    """By argument: rows of each expert in blocks of its own; the number of all rows stands for none."""
    ids: list[int] = []
    experts: list[int] = []
    row, total = 0, sum(counts)
    for expert, count in enumerate(counts):
        blocks = -(-count // block)
        ids += [*range(row, row + count), *[total] * (blocks * block - count)]
        experts += [expert] * blocks
        row += count

    def on_device(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    return {"sorted_token_ids": on_device(ids), "expert_ids": on_device(experts),
            "num_tokens_past_padded": on_device([len(ids)])}  # fmt: skip
