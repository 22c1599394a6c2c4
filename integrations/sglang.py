"""The NVFP4 and FP8 operations of SGLang, named and called as in ``sgl_kernel`` and ``sglang.jit_kernel.nvfp4``, or in
``fp8_kernel`` where a function says so.

Of NVFP4 global scales are 6 * 448 / amax, packed FP4 is uint8, scales are torch.float8_e4m3fn, in the 128x4 block
layout. Of FP8 scales are fp32, for 128 of K; other groups are refused, NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from . import fp8, nvfp4


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


def sglang_per_token_group_quant_fp8(
    x: torch.Tensor,
    group_size: int,
    eps: float = 1e-10,
    column_major_scales: bool = False,
    scale_tma_aligned: bool = False,
    scale_ue8m0: bool = False,
    fuse_silu_and_mul: bool = False,
    masked_m: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of fp8_kernel: x [M, K] in bf16 or f16 -> E4M3 and scales [M, K / 128], amax / 448.

    ``fuse_silu_and_mul``: of SiLU(gate) * up, x [M, 2 K]: gate, then up. ``scale_ue8m0``: powers of two, four in an
    int32 [M, K / 512], for which scales are column-major and aligned.
    """
    fp8.check_group(group_size)
    fp8.check_least_amax(eps)
    if masked_m is not None or (fuse_silu_and_mul and scale_ue8m0):
        raise NotImplementedError("neither with masked_m, nor with scale_ue8m0 of fuse_silu_and_mul")
    if scale_ue8m0 and not (column_major_scales and scale_tma_aligned):
        raise ValueError("scale_ue8m0 needs column_major_scales and scale_tma_aligned")
    if scale_ue8m0:
        return fp8.quantize_packed(x)
    if fuse_silu_and_mul:
        return fp8.silu_mul_quantize(x, column_major_scales, scale_tma_aligned)
    return fp8.quantize(x, column_major_scales, scale_tma_aligned)


def fp8_scaled_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """mat_a [M, K] times mat_b [K, N], scales one for each row and column -> [M, N]."""
    return fp8.scaled_mm(mat_a, mat_b, scales_a.reshape(-1, 1), scales_b.reshape(1, -1), out_dtype, bias)


def fp8_blockwise_scaled_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """mat_a [M, K] times mat_b [K, N], scales in blocks of 1 x 128 and 128 x 128 -> [M, N]."""
    return fp8.scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype)


def fp8_blockwise_scaled_grouped_mm(
    output: torch.Tensor,
    a_ptrs: torch.Tensor,
    b_ptrs: torch.Tensor,
    out_ptrs: torch.Tensor,
    a_scales_ptrs: torch.Tensor,
    b_scales_ptrs: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    *rest: torch.Tensor,
) -> None:
    """a [M, K] times b [E, K, N] of the rows of each expert, into output [M, N], scales in blocks.

    ``rest`` is ``stride_a, stride_b, stride_c, layout_sfa, layout_sfb, problem_sizes, expert_offsets, workspace``, of
    which the offsets are used; the others, and pointers, describe memory that is not needed here.
    """
    if len(rest) != 8:
        raise TypeError(f"expected 8 arguments behind scales_b, got {len(rest)}")
    fp8.group_mm_into(output, a, b, scales_a, scales_b, rest[6])


def _routed(rows: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    return rows if expert_map is None else rows.index_select(0, expert_map)


def _grouped_views(out: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    experts, rows, columns = scale.shape
    blocks = scale.view(experts, rows // 128, columns // 4, 32, 4, 4)
    return out.permute(1, 2, 0), blocks.permute(3, 4, 1, 5, 2, 0)
