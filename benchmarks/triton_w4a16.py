"""A grouped NVFP4 GEMM as one would write it in Triton by hand: bf16 activations, weights dequantised in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _grouped_w4a16(
    a, b, b_groups, alpha, out, rows, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[E * rows, N] = alpha[e] * a[E * rows, K] . b[e]^T; programs: (tiles of rows * tiles of N, E)."""
    expert = tl.program_id(1).to(tl.int64)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    m = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) // row_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    pairs, groups = tl.arange(0, BLOCK_K // 2), tl.arange(0, BLOCK_K // 16)
    a_at = a + (expert * rows + m)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    b_at = b + (expert * N + n)[:, None] * (K // 2) + pairs[None, :]
    s_at = b_groups + (expert * N + n)[:, None] * (K // 16) + groups[None, :]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(0, K, BLOCK_K):
        left = tl.load(a_at, mask=(m < rows)[:, None], other=0.0)
        packed = tl.load(b_at).to(tl.int16)
        scale = tl.load(s_at).to(tl.float16)
        # The three magnitude bits, moved to the low exponent and high mantissa bits of f16, are the value times 2^-14.
        low = (((packed & 0x7) << 9) | ((packed & 0x8) << 12)).to(tl.float16, bitcast=True)
        high = (((packed & 0x70) << 5) | ((packed & 0x80) << 8)).to(tl.float16, bitcast=True)
        right = tl.join(low, high).reshape(BLOCK_N, BLOCK_K // 16, 16).to(tl.float32)
        right = (right * (scale.to(tl.float32) * 16384.0)[:, :, None]).reshape(BLOCK_N, BLOCK_K).to(tl.bfloat16)
        accumulator = tl.dot(left, right.T, accumulator)
        a_at += BLOCK_K
        b_at += BLOCK_K // 2
        s_at += BLOCK_K // 16
    result = (accumulator * tl.load(alpha + expert)).to(tl.bfloat16)
    tl.store(out + (expert * rows + m)[:, None] * N + n[None, :], result, mask=(m < rows)[:, None])


def launch(
    a: torch.Tensor, b: torch.Tensor, b_groups: torch.Tensor, alpha: torch.Tensor, out: torch.Tensor, tile: tuple
) -> None:
    """a: bf16 [E * rows, K]; b: u8 [E, N, K/2]; b_groups: float8_e4m3fn [E, N, K/16] in plain order; out: bf16.
    ``tile`` is (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages); N and K are multiples of the blocks."""
    experts, n, half_k = b.shape
    rows = a.shape[0] // experts
    block_m, block_n, block_k, warps, stages = tile
    grid = (triton.cdiv(rows, block_m) * (n // block_n), experts)
    _grouped_w4a16[grid](
        a, b, b_groups, alpha, out, rows, n, half_k * 2,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def tiles(rows: int) -> list[tuple[int, int, int, int, int]]:
    """Tiles worth timing for so many rows an expert."""
    if rows <= 16:
        return [(16, 64, 128, 4, 4), (16, 128, 128, 4, 3), (16, 64, 256, 4, 3)]
    if rows <= 64:
        return [(64, 64, 128, 4, 3), (64, 128, 64, 4, 4), (64, 128, 128, 8, 3)]
    return [(128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 256, 64, 8, 3)]
