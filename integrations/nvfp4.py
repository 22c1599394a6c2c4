"""NVFP4 operations on torch tensors, outputs allocated: what the functions of vLLM and SGLang have in common.

Scales are UE4M3 in the 128x4 block layout, [S, round_up(K/16, 4)], as torch.float8_e4m3fn. Global scales multiply what
is quantised: 6 * 448 / amax. Rows sorted by expert begin at ``expert_offsets``; the scales of an expert begin at a row
of its own, ``scale_offsets``, the cumulative round_up(rows, 128). No device memory is read on the host, and what a call
allocates follows from shapes alone, so every function may be captured in a CUDA graph and compiled.
"""

from __future__ import annotations

import torch

from . import ops

GROUP = 16
TILE_ROWS = 128
SCALE = torch.float8_e4m3fn


def scale_bytes(scale: torch.Tensor) -> torch.Tensor:
    """Scales as they lie in memory, where they come as int32 or uint32 of four: reinterpreted, never converted."""
    return scale.view(torch.uint8) if scale.dtype in (torch.int32, torch.uint32) else scale


def scale_shape(rows: int, k: int) -> tuple[int, int]:
    """Shape of the scales of a matrix in the block layout."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-k // (4 * GROUP)) * 4


def packed_scale_shape(rows: int, experts: int, k: int) -> tuple[int, int]:
    """A shape that holds the scales of ``rows`` however they are divided among experts, each one's padded to 128."""
    padded = (rows + (TILE_ROWS - 1) * min(rows, experts)) // TILE_ROWS * TILE_ROWS
    return max(padded, TILE_ROWS), scale_shape(rows, k)[1]


def to_blocks(scales: torch.Tensor) -> torch.Tensor:
    """[E, R, C] in the 128x4 block layout, as bytes, R and C padded to 128 and 4 with 0."""
    scales = scales.view(torch.uint8)
    experts, rows, columns = scales.shape
    scales = torch.nn.functional.pad(scales, (0, -columns % 4, 0, -rows % TILE_ROWS))
    blocks = scales.view(experts, scales.shape[1] // TILE_ROWS, 4, 32, scales.shape[2] // 4, 4)
    return blocks.permute(0, 1, 4, 3, 2, 5).reshape(scales.shape)


def quantize(x: torch.Tensor, global_scale: torch.Tensor, linear: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] with one global scale -> uint8 [M, K/2] and scales: in blocks, or ``linear`` [M, K/16]."""
    x = x.reshape(-1, x.shape[-1])
    (m, k), (rows, columns) = x.shape, scale_shape(*x.shape)
    out = x.new_empty((m, k // 2), dtype=torch.uint8)
    scale = x.new_empty((m if linear else rows, columns), dtype=SCALE)
    layout = "linear" if linear else "blocks_128x4"
    ops.nvfp4_quantize(x, global_scale.reshape(1), out, scale, global_scale_kind="encode", scale_layout=layout)
    return out, scale[:, : k // GROUP].contiguous() if linear else scale


def quantize_experts(
    x: torch.Tensor, global_scale: torch.Tensor, expert_offsets: torch.Tensor, scale_offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], rows sorted by expert, global_scale [E] -> uint8 [M, K/2] and scales."""
    (m, k), experts = x.shape, global_scale.shape[0]
    out = x.new_empty((m, k // 2), dtype=torch.uint8)
    scale = x.new_empty(packed_scale_shape(m, experts, k), dtype=SCALE)
    offsets = (with_end(expert_offsets, experts, m), scale_offsets[:experts])
    ops.nvfp4_quantize_grouped(x, global_scale, *offsets, out, scale, global_scale_kind="encode")
    return out, scale


def silu_mul_quantize_experts(
    x: torch.Tensor, global_scale: torch.Tensor, expert_offsets: torch.Tensor, scale_offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``quantize_experts`` of SiLU(gate) * up, rounded to the type of x [M, 2 K]: gate, then up."""
    (m, width), experts = x.shape, global_scale.shape[0]
    out = x.new_empty((m, width // 4), dtype=torch.uint8)
    scale = x.new_empty(packed_scale_shape(m, experts, width // 2), dtype=SCALE)
    offsets = (with_end(expert_offsets, experts, m), scale_offsets[:experts])
    silu_mul_quantize_into(out, scale, x, global_scale, *offsets)
    return out, scale


def silu_mul_quantize_into(
    out: torch.Tensor,
    scale: torch.Tensor,
    x: torch.Tensor,
    global_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    scale_offsets: torch.Tensor,
) -> None:
    """``silu_mul_quantize_experts`` into ``out`` and ``scale``; expert_offsets [E + 1], scale_offsets [E]."""
    weight = x.new_ones(x.shape[0], dtype=torch.float32)
    ops.silu_mul_nvfp4_quantize(
        x, weight, global_scale, expert_offsets, scale_offsets, out, scale, global_scale_kind="encode"
    )


def quantize_masked(
    x: torch.Tensor, global_scale: torch.Tensor, mask: torch.Tensor, silu_mul: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first mask[e] rows of x [E, M, K] with global_scale [E] -> uint8 [E, M, K/2] and scales
    [E, round_up(M, 128), round_up(K/16, 4)]; with ``silu_mul``, of SiLU(gate) * up of x [E, M, 2 K]. Other rows are not
    written."""
    experts, m, width = x.shape
    k = width // 2 if silu_mul else width
    out = x.new_empty((experts, m, k // 2), dtype=torch.uint8)
    scale = x.new_empty((experts, *scale_shape(m, k)), dtype=SCALE)
    op = ops.silu_mul_nvfp4_quantize_masked if silu_mul else ops.nvfp4_quantize_masked
    op(x, global_scale, mask, out, scale, global_scale_kind="encode")
    return out, scale


def cutlass_fp4_group_mm(
    a_fp4: torch.Tensor,
    b_fp4: torch.Tensor,
    a_blockscale: torch.Tensor,
    b_blockscale: torch.Tensor,
    alphas: torch.Tensor,
    problem_sizes: torch.Tensor,
    expert_offsets: torch.Tensor,
    sf_offsets: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """alphas[e] * a_fp4 . b_fp4[e]^T of the rows of each expert -> [M, N]. Rows of no expert are not written."""
    output = a_fp4.new_empty((a_fp4.shape[0], b_fp4.shape[1]), dtype=out_dtype)
    offsets = (problem_sizes, expert_offsets, sf_offsets)
    group_mm_into(output, a_fp4, b_fp4, a_blockscale, b_blockscale, alphas, *offsets)
    return output


def group_mm_into(
    output: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_blockscale: torch.Tensor,
    b_blockscale: torch.Tensor,
    alphas: torch.Tensor,
    problem_sizes: torch.Tensor,
    expert_offsets: torch.Tensor,
    sf_offsets: torch.Tensor,
) -> None:
    """``cutlass_fp4_group_mm`` into ``output``. expert_offsets and sf_offsets are [E] or [E + 1]; problem_sizes [E, 3],
    (rows, N, K) of each expert, tells the end of the last one where its offset does not."""
    experts = b.shape[0]
    if expert_offsets.shape[0] == experts:
        expert_offsets = torch.cat([expert_offsets, expert_offsets[-1:] + problem_sizes[-1:, 0]])
    a_blockscale, b_blockscale = scale_bytes(a_blockscale), scale_bytes(b_blockscale)
    ops.grouped_fp4(a, b, a_blockscale, b_blockscale, alphas, expert_offsets, sf_offsets[:experts], output)


def scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_blockscale: torch.Tensor,
    b_blockscale: torch.Tensor,
    alpha: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """alpha * a [M, K/2] . b [N, K/2]^T -> [M, N]: the matrix of one expert."""
    output = a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)
    a_blockscale, b_blockscale = scale_bytes(a_blockscale), scale_bytes(b_blockscale)[None]
    ops.grouped_fp4(a, b[None], a_blockscale, b_blockscale, alpha.reshape(1), *one_expert(a), output)
    return output


def one_expert(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets of rows and of scales where all rows of x are of one expert."""
    scale_offsets = torch.zeros(1, dtype=torch.int32, device=x.device)
    return torch.cat([scale_offsets, torch.full_like(scale_offsets, x.shape[0])]), scale_offsets


def with_end(expert_offsets: torch.Tensor, experts: int, rows: int) -> torch.Tensor:
    """[E + 1], where only the first row of each expert is given: all rows to the last are the last expert's."""
    if expert_offsets.shape[0] != experts:
        return expert_offsets
    return torch.cat([expert_offsets, expert_offsets.new_full((1,), rows)])
