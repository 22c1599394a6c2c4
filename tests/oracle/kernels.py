"""GEMM kernels in Triton and their PTX, compiled without a GPU.

Their code generator is an oracle that does not share this project's reading of the ISA.

A [M, K], B [N, K] with K contiguous (two e2m1 a byte, low nibble first), D [M, N] bf16; sizes fill the tile.
Scale factors are [rows, K / vector] bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def scaled_gemm(a, a_scale, b, b_scale, d, M, N, K, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
                VECTOR: tl.constexpr):  # fmt: skip
    """D = (A x scale) (B x scale)^T with e2m1 operands, loaded through pointers."""
    row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    column = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    byte, factor = tl.arange(0, TILE_K // 2), tl.arange(0, TILE_K // VECTOR)
    accumulator = tl.zeros((TILE_M, TILE_N), tl.float32)
    for k in range(0, K, TILE_K):
        left = tl.load(a + row[:, None] * (K // 2) + k // 2 + byte[None, :])
        right = tl.load(b + column[None, :] * (K // 2) + k // 2 + byte[:, None])
        left_scale = tl.load(a_scale + row[:, None] * (K // VECTOR) + k // VECTOR + factor[None, :])
        right_scale = tl.load(b_scale + column[:, None] * (K // VECTOR) + k // VECTOR + factor[None, :])
        accumulator = tl.dot_scaled(left, left_scale, "e2m1", right, right_scale, "e2m1", accumulator)
    tl.store(d + row[:, None] * N + column[None, :], accumulator.to(tl.bfloat16))


@triton.jit
def scaled_gemm_tma(a, a_scale, b, b_scale, d, M, N, K, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
                    TILE_K: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """As `scaled_gemm`, operands and result through TMA descriptors that the kernel makes."""
    a_map = tl.make_tensor_descriptor(a, [M, K // 2], [K // 2, 1], [TILE_M, TILE_K // 2])
    b_map = tl.make_tensor_descriptor(b, [N, K // 2], [K // 2, 1], [TILE_N, TILE_K // 2])
    d_map = tl.make_tensor_descriptor(d, [M, N], [N, 1], [TILE_M, TILE_N])
    first_row, first_column = tl.program_id(0) * TILE_M, tl.program_id(1) * TILE_N
    row, column = first_row + tl.arange(0, TILE_M), first_column + tl.arange(0, TILE_N)
    factor = tl.arange(0, TILE_K // VECTOR)
    accumulator = tl.zeros((TILE_M, TILE_N), tl.float32)
    for k in range(0, K, TILE_K):
        left, right = a_map.load([first_row, k // 2]), b_map.load([first_column, k // 2])
        left_scale = tl.load(a_scale + row[:, None] * (K // VECTOR) + k // VECTOR + factor[None, :])
        right_scale = tl.load(b_scale + column[:, None] * (K // VECTOR) + k // VECTOR + factor[None, :])
        accumulator = tl.dot_scaled(left, left_scale, "e2m1", right.T, right_scale, "e2m1", accumulator)
    d_map.store([first_row, first_column], accumulator.to(tl.bfloat16))


@triton.jit
def bf16_gemm(a, b, d, M, N, K, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):
    """D = A B^T in bf16 with TMA and, where the target has it, warp specialisation."""
    a_map = tl.make_tensor_descriptor(a, [M, K], [K, 1], [TILE_M, TILE_K])
    b_map = tl.make_tensor_descriptor(b, [N, K], [K, 1], [TILE_N, TILE_K])
    d_map = tl.make_tensor_descriptor(d, [M, N], [N, 1], [TILE_M, TILE_N])
    first_row, first_column = tl.program_id(0) * TILE_M, tl.program_id(1) * TILE_N
    accumulator = tl.zeros((TILE_M, TILE_N), tl.float32)
    for k in tl.range(0, K, TILE_K, warp_specialize=True, num_stages=3):
        left, right = a_map.load([first_row, k]), b_map.load([first_column, k])
        accumulator = tl.dot(left, right.T, accumulator)
    d_map.store([first_row, first_column], accumulator.to(tl.bfloat16))


@dataclass(frozen=True)
class Compiled:
    """PTX of a kernel and what its launch needs."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int
    scratch_bytes: int  # of global memory for each CTA
    scratch_alignment: int


_POINTERS = {
    "nvfp4": ("*u8", "*fp8e4nv", "*u8", "*fp8e4nv", "*bf16"),
    "mxfp4": ("*u8", "*u8", "*u8", "*u8", "*bf16"),
    "bf16": ("*bf16", "*bf16", "*bf16"),
}


@cache
def build(kind: str, capability: int, tma: bool, tile: tuple[int, int, int]) -> Compiled:
    """Compiles one of the GEMMs ("nvfp4", "mxfp4" or "bf16") for a compute capability such as 120."""
    function = bf16_gemm if kind == "bf16" else scaled_gemm_tma if tma else scaled_gemm
    sizes = dict(zip(("TILE_M", "TILE_N", "TILE_K"), tile, strict=True))
    if kind != "bf16":
        sizes["VECTOR"] = 16 if kind == "nvfp4" else 32
    types = (*_POINTERS[kind], "i32", "i32", "i32")
    names = function.arg_names
    signature = dict(zip(names, (*types, *["constexpr"] * len(sizes)), strict=True))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
    source = ASTSource(function, signature, constexprs=sizes, attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "num_stages": 2})
    meta = kernel.metadata
    threads = 32 * meta.num_warps
    for line in kernel.asm["ptx"].splitlines():
        if line.startswith(".reqntid"):
            threads = int(line.split()[1])
    return Compiled(meta.name, kernel.asm["ptx"], threads, meta.shared, meta.global_scratch_size,
                    meta.global_scratch_align)  # fmt: skip
