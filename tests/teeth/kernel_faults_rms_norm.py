"""Faults in the norm that quantises: sums of squares, residuals, and weights of rows of two parts."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

REDUCE = "simt/block_reduce.cuh"
LONG, SHORT = Problem((1,), 0, 8192 + 160), Problem((5,), 0, 288)

CAUGHT = [
    *planted(
        "simt/rms_norm.cuh",
        Kernel("90a", "t512_bf16_bf16_bf16", "add_rms_norm_fp8_quantize"),
        LONG,
        [
            ("weights of the part of a row before", "item.raw.weight = next;", ""),
            ("squares of some warps left out", "int warp = 1; warp", "int warp = 2; warp", {"file": REDUCE}),
            ("squares of other warps not awaited", "    __syncthreads();\n", "", {"file": REDUCE}),
        ],
    ),
    *planted(
        "simt/rms_norm.cuh",
        Kernel("100a", "t512_bf16_bf16_bf16", "add_rms_norm_mxfp8_quantize"),
        SHORT,
        [
            ("residual of the first row for all", "residual ? residual + first : nullptr", "residual"),
            ("row of a token as it was before the sum", "row[vector] = values[part];",
             "row[vector] = quantize::load(x + vector * kValues);"),
        ],
    ),
    *planted(
        "simt/rms_norm.cuh",
        Kernel("120a", "t512_f16_f16_f16", "add_rms_norm_nvfp4_quantize"),
        SHORT,
        [
            ("offset of weights lost", "__fadd_rn(weights[i], weight_offset)", "weights[i]"),
            ("normalised value not rounded", "if (rounding == kEachStep) value = rounded(value);", ""),
        ],
    ),
]  # fmt: skip
