"""The NVFP4 operations of SGLang, named and called as in ``sgl_kernel`` and ``sglang.jit_kernel.nvfp4``.

Global scales are 6 * 448 / amax. Packed FP4 is uint8, scales are torch.float8_e4m3fn, in the 128x4 block layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from . import nvfp4


def scaled_fp4_quant(input: torch.Tensor, input_global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """input [..., K] -> [M, K/2] and scales."""
    return nvfp4.quantize(input, input_global_scale)


def scaled_fp4_experts_quant(
    input_tensor: torch.Tensor,
    input_global_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    blockscale_offsets: torch.Tensor,
    topk: int,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """input_tensor [M, K], rows sorted by expert, input_global_scale [E] -> [M, K/2] and scales.

    With ``expert_map`` [M * topk], row r is row expert_map[r] of input_tensor.
    """
    rows = _routed(input_tensor, expert_map)
    return nvfp4.quantize_experts(rows, input_global_scale, expert_offsets, blockscale_offsets)


def silu_and_mul_scaled_fp4_experts_quant_packed(
    input_tensor: torch.Tensor,
    input_global_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    blockscale_offsets: torch.Tensor,
    topk: int,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``scaled_fp4_experts_quant`` of SiLU(gate) * up, input_tensor [M, 2 K]: gate, then up."""
    rows = _routed(input_tensor, expert_map)
    return nvfp4.silu_mul_quantize_experts(rows, input_global_scale, expert_offsets, blockscale_offsets)


def scaled_fp4_grouped_quant(
    input_tensor: torch.Tensor, input_global_scale: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first mask[l] rows of each input_tensor [l, M, K], input_global_scale [l].

    Returns views: FP4 [M, K/2, l], which lies as [l, M, K/2], and scales [32, 4, M/128, 4, K/64, l] (rounded up), which
    lie as [l, M/128, K/64, 32, 4, 4].
    """
    return _grouped_views(*nvfp4.quantize_masked(input_tensor, input_global_scale, mask))


def silu_and_mul_scaled_fp4_grouped_quant(
    input_tensor: torch.Tensor, input_global_scale: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``scaled_fp4_grouped_quant`` of SiLU(gate) * up, input_tensor [l, M, 2 K]: gate, then up."""
    return _grouped_views(*nvfp4.quantize_masked(input_tensor, input_global_scale, mask, silu_mul=True))


def cutlass_fp4_group_mm(
    a_fp4: torch.Tensor,
    b_fp4: torch.Tensor,
    a_blockscale: torch.Tensor,
    b_blockscale: torch.Tensor,
    alphas: torch.Tensor,
    out_dtype: torch.dtype,
    *rest: object,
) -> torch.Tensor:
    """alphas[e] * a [M, K/2] . b[e] [N, K/2]^T of the rows of each expert -> [M, N].

    ``rest`` is ``params`` (jit_kernel), or ``device, params`` (sgl_kernel). Of params, ``problem_sizes``,
    ``expert_offsets`` and ``blockscale_offsets`` are used; the others describe memory that is not needed here.
    """
    params = rest[-1] if rest else None
    if not isinstance(params, Mapping) or len(rest) > 2:
        raise TypeError("cutlass_fp4_group_mm takes params, or device and params, after out_dtype")
    offsets = (params["problem_sizes"], params["expert_offsets"], params["blockscale_offsets"])
    return nvfp4.cutlass_fp4_group_mm(a_fp4, b_fp4, a_blockscale, b_blockscale, alphas, *offsets, out_dtype=out_dtype)


cutlass_scaled_fp4_mm = nvfp4.scaled_mm


def _routed(rows: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    return rows if expert_map is None else rows.index_select(0, expert_map)


def _grouped_views(out: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    experts, rows, columns = scale.shape
    blocks = scale.view(experts, rows // 128, columns // 4, 32, 4, 4)
    return out.permute(1, 2, 0), blocks.permute(3, 4, 1, 5, 2, 0)
