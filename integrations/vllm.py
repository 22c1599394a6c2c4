"""The NVFP4 operations of vLLM and Aphrodite, by their names and with their arguments.

As in ``vllm._custom_ops``, except where a function says that it is the operator below it, ``torch.ops._C``. Global
scales are 6 * 448 / amax. Packed FP4 is uint8, scales are torch.float8_e4m3fn, in the 128x4 block layout.
"""

from __future__ import annotations

import torch

from . import nvfp4


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
