"""MXFP4 operations on torch tensors, outputs allocated: elements are uint8 of two E2M1, scales uint8 of UE8M0 in the
128x4 block layout, [S, round_up(K / 32, 4)], offsets as in nvfp4."""

from __future__ import annotations

import torch

from . import nvfp4, ops


def quantize_experts(
    x: torch.Tensor, expert_offsets: torch.Tensor, scale_offsets: torch.Tensor, experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] in bf16 or f16, rows sorted by expert -> [M, K / 2] and scales, powers of two with which nothing
    saturates."""
    m, k = x.shape
    out = x.new_empty((m, k // 2), dtype=torch.uint8)
    # Of as many columns as NVFP4 has scales of half as many values.
    scale = x.new_empty(nvfp4.packed_scale_shape(m, experts, k // 2), dtype=torch.uint8)
    slots = torch.arange(m, dtype=torch.int32, device=x.device)  # a token has one row, its own
    weights, row_weight = (x.new_ones(shape, dtype=torch.float32) for shape in ((m, 1), (m,)))
    offsets = nvfp4.with_end(expert_offsets, experts, m), scale_offsets[:experts]
    ops.moe_gather_quantize_mxfp4(x, slots, weights, *offsets, out, scale, row_weight)
    return out, scale


def group_mm_into(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor,
    expert_offsets: torch.Tensor, scale_offsets: torch.Tensor,
) -> None:  # fmt: skip
    """a [M, K / 2] . b[e] [N, K / 2]^T of the rows of each expert, into out [M, N]."""
    experts = b.shape[0]
    alpha = torch.ones(experts, dtype=torch.float32, device=a.device)
    offsets = nvfp4.with_end(expert_offsets, experts, a.shape[0]), scale_offsets[:experts]
    ops.grouped_mxfp4(a, b, a_scale, b_scale, alpha, *offsets, out)
