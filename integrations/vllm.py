"""The NVFP4, MXFP4 and FP8 operations of vLLM and Aphrodite, by their names and with their arguments.

As in ``vllm._custom_ops``, or ``fp8_utils`` where a function says so, except for operators below it, ``torch.ops._C``.
Of NVFP4 global scales are 6 * 448 / amax, packed FP4 is uint8, scales are torch.float8_e4m3fn, in the 128x4 block
layout. Of FP8 scales are fp32, for 128 of K; other groups are refused, NotImplementedError.
"""

from __future__ import annotations

import torch

from . import fp8, mx, nvfp4


def scaled_fp4_quant(
    input: torch.Tensor,
    input_global_scale: torch.Tensor,
    is_sf_swizzled_layout: bool = True,
    backend: str = "none",
    padded_n: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """input [..., K] -> [M, K/2] and scales; row major, [M, K/16], where ``is_sf_swizzled_layout`` is False.

    With ``padded_n``, K is continued to that with zeros.
    """
    if "trtllm" in backend and input.numel() // input.shape[-1] <= 32:
        raise NotImplementedError(f"backend {backend!r} takes scales of up to 32 rows in an 8x4 layout")
    if padded_n is not None:
        if padded_n < input.shape[-1]:
            raise ValueError(f"padded_n expects at least the {input.shape[-1]} columns of input, got {padded_n}")
        input = torch.nn.functional.pad(input, (0, padded_n - input.shape[-1]))
    return nvfp4.quantize(input, input_global_scale, linear=not is_sf_swizzled_layout)


def scaled_fp4_experts_quant(
    input_tensor: torch.Tensor,
    input_global_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    blockscale_offsets: torch.Tensor,
    topk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """input_tensor [M, K], rows sorted by expert, input_global_scale [E] -> [M, K/2] and scales.

    ``topk`` bounds a buffer of vLLM; here the buffer follows from M and E.
    """
    return nvfp4.quantize_experts(input_tensor, input_global_scale, expert_offsets, blockscale_offsets)


def silu_and_mul_scaled_fp4_experts_quant(
    input_tensor: torch.Tensor,
    input_global_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    blockscale_offsets: torch.Tensor,
    topk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``scaled_fp4_experts_quant`` of SiLU(gate) * up, input_tensor [M, 2 K]: gate, then up."""
    return nvfp4.silu_mul_quantize_experts(input_tensor, input_global_scale, expert_offsets, blockscale_offsets)


def silu_and_mul_nvfp4_quant(
    result: torch.Tensor, result_block_scale: torch.Tensor, input: torch.Tensor, input_global_scale: torch.Tensor
) -> None:
    """The operator: NVFP4 of SiLU(gate) * up, input [M, 2 K], into result [M, K/2] and result_block_scale."""
    offsets = nvfp4.one_expert(input)
    scale = nvfp4.scale_bytes(result_block_scale)
    nvfp4.silu_mul_quantize_into(result, scale, input, input_global_scale.reshape(1), *offsets)


def cutlass_fp4_moe_mm(
    out_tensors: torch.Tensor,
    a_tensors: torch.Tensor,
    b_tensors: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    alphas: torch.Tensor,
    problem_sizes: torch.Tensor,
    expert_offsets: torch.Tensor,
    sf_offsets: torch.Tensor,
) -> None:
    """alphas[e] * a [M, K/2] . b[e] [N, K/2]^T of the rows of each expert, into out_tensors [M, N]."""
    offsets = (problem_sizes, expert_offsets, sf_offsets)
    nvfp4.group_mm_into(out_tensors, a_tensors, b_tensors, a_scales, b_scales, alphas, *offsets)


# The operator below it, and the name that Aphrodite has for one architecture of it.
cutlass_fp4_group_mm = cutlass_fp4_moe_mm
cutlass_fp4_group_mm_sm120 = cutlass_fp4_moe_mm

cutlass_scaled_fp4_mm = nvfp4.scaled_mm


def mxfp4_experts_quant(
    input_tensor: torch.Tensor,
    expert_offsets: torch.Tensor,
    blockscale_offsets: torch.Tensor,
    n_experts: int,
    topk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """input_tensor [M, K], rows sorted by expert -> [M, K/2] and scales, powers of two with which nothing saturates.

    vLLM's kernel rounds a scale, so that elements of 6 to 7 times it become 6. ``topk`` bounds a buffer of vLLM.
    """
    return mx.quantize_experts(input_tensor, expert_offsets, blockscale_offsets, n_experts)


def cutlass_mxfp4_moe_mm(
    out_tensors: torch.Tensor,
    a_tensors: torch.Tensor,
    b_tensors: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    problem_sizes: torch.Tensor,
    expert_offsets: torch.Tensor,
    sf_offsets: torch.Tensor,
) -> None:
    """a [M, K/2] . b[e] [N, K/2]^T of the rows of each expert, into out_tensors [M, N]."""
    mx.group_mm_into(out_tensors, a_tensors, b_tensors, a_scales, b_scales, expert_offsets, sf_offsets)


def per_token_group_quant_fp8(
    x: torch.Tensor,
    group_size: int,
    eps: float = 1e-10,
    dtype: torch.dtype | None = None,
    column_major_scales: bool = False,
    tma_aligned_scales: bool = False,
    out_q: torch.Tensor | None = None,
    use_ue8m0: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of fp8_utils: x [.., K] in bf16 or f16 -> E4M3 and scales [.., K / 128], amax / 448.

    ``use_ue8m0``: the powers of two at or above these; None is False. ``eps``, the least amax, is that of the default.
    """
    fp8.check_group(group_size, dtype)
    fp8.check_least_amax(eps)
    return fp8.quantize(x, column_major_scales, tma_aligned_scales, use_ue8m0, out_q)


def per_token_group_quant_fp8_packed_for_deepgemm(
    x: torch.Tensor,
    group_size: int,
    eps: float = 1e-10,
    use_ue8m0: bool | None = None,
    out_q: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of fp8_utils: the same with powers of two, four in an int32: [M, K / 512], rows a word apart.

    Padding rows of ``out_q`` become zeros. The least amax is 1e-10, where vLLM has a least scale of 1e-10.
    """
    fp8.check_group(group_size)
    fp8.check_least_amax(eps)
    if use_ue8m0 is False:
        raise ValueError("use_ue8m0 is False, but packed scales are powers of two")
    out, words = fp8.quantize_packed(x, out_q)
    return (out.view(x.shape) if out_q is None else out_q), words


def rms_norm_per_block_quant(
    input: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    quant_dtype: torch.dtype,
    group_size: list[int],
    scale_ub: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    is_scale_transposed: bool = False,
    tma_alignment: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of input [M, K], in E4M3 with scales [M, K / 128]; residual, if there is one, becomes the sum of both.

    That sum is rounded before it is normalised; vLLM's kernel normalises it as it is.
    """
    fp8.check_group(group_size[1], quant_dtype)
    _check_no_bound(scale_ub)
    if group_size[0] != 1 or tma_alignment not in (0, 4):
        raise ValueError(f"group_size {group_size} and tma_alignment {tma_alignment}, expected [1, 128] and 0 or 4")
    return fp8.add_rms_norm_quantize(input, weight, epsilon, residual, is_scale_transposed, tma_alignment == 4)


def silu_and_mul_per_block_quant(
    input: torch.Tensor,
    group_size: int,
    quant_dtype: torch.dtype,
    scale_ub: torch.Tensor | None = None,
    is_scale_transposed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SiLU(gate) * up of input [M, 2 K], in E4M3 with scales [M, K / 128]."""
    fp8.check_group(group_size, quant_dtype)
    _check_no_bound(scale_ub)
    return fp8.silu_mul_quantize(input, is_scale_transposed)


def _check_no_bound(scale_ub: torch.Tensor | None) -> None:
    if scale_ub is not None:
        raise NotImplementedError("scales have no upper bound: scale_ub is None")


def cutlass_scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """a [.., K] times b [K, N] in FP8, scales in blocks of 1 x 128 and 128 x 128, or one for each row and column."""
    out = fp8.scaled_mm(a.view(-1, a.shape[-1]), b, scale_a, scale_b, out_dtype, bias)
    return out.view(*a.shape[:-1], b.shape[1])


def cutlass_moe_mm(
    out_tensors: torch.Tensor,
    a_tensors: torch.Tensor,
    b_tensors: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    expert_offsets: torch.Tensor,
    problem_sizes: torch.Tensor,
    a_strides: torch.Tensor,
    b_strides: torch.Tensor,
    c_strides: torch.Tensor,
    per_act_token: bool,
    per_out_ch: bool,
) -> None:
    """a [M, K] times b [E, K, N] of the rows of each expert, into out_tensors [M, N].

    Scales are one for each row and column, or one; their shapes say which. Strides are those of the tensors.
    """
    fp8.group_mm_into(out_tensors, a_tensors, b_tensors, a_scales, b_scales, expert_offsets)
