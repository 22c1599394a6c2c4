"""Faults in einsums: matrices wherever they lie, on both sides, shares of K, and their sum."""

from __future__ import annotations

from kernel_fault import SOURCES, planted
from launches import Problem
from planting import Kernel

PARAMS, MATRICES = {"file": "epilogue/store_params.cuh"}, "schedule/matrices.cuh"
THREE = Problem((67, 67, 67), 136, 136)  # rows of each matrix: a tile and some; tails of N and K
FEW = Problem((19, 19, 19), 136, 136)

OF_MATRICES = [
    fault
    for kernel, problem in (
        (Kernel("90a", "m64n128_bf16", "einsum_bf16"), THREE),
        (Kernel("100a", "m16n128_bf16", "einsum_bf16"), FEW),
        (Kernel("120a", "m8n128_bf16", "einsum_bf16"), FEW),
    )
    for fault in planted(
        SOURCES,
        kernel,
        problem,
        [
            ("einsum tokens of the first matrix", "full, x, y, matrix(tile));", "full, x, y, 0);"),
            ("einsum result of the first matrix", "int64_t(batch) * batch_pitch", "int64_t(0) * batch_pitch", PARAMS),
            ("einsum rows of a result without the other heads", " + row_gap;", ";", PARAMS),
        ],
    )
]
OF_MATRICES += planted(
    SOURCES,
    Kernel("90a", "m128n128_f32", "einsum_bf16_tn"),
    Problem((136, 136), 136, 72),
    [
        ("einsum weights of the first matrix", "kTokensMnMajor && !kTokenMatrices ? 0", "kTokensMnMajor ? 0"),
        (
            "einsum boxes of the first matrix",
            "tma::store_3d(params_.map, box, column, row, batch);",
            "tma::store_3d(params_.map, box, column, row, 0);",
            {"file": "epilogue/store_rows_sm90.cuh"},
        ),
    ],
)
OF_MATRICES += planted(
    MATRICES,
    Kernel("90a", "m64n128_bf16", "einsum_fp8"),
    Problem((67, 67), 136, 272, on_hopper=True),
    [("einsum scales of the first matrix", "return batch * scales_of_batch;", "return 0;")],
)

# Matrices of 72 along K, two blocks each, in three shares.
OF_SHARES = planted(
    "schedule/k_shares.cuh",
    Kernel("90a", "m128n128_f32", "einsum_bf16_shares"),
    Problem((131,), 136, 360),
    [
        ("einsum shares overlap", "= begin(tile.batch + 1);", "= begin(tile.batch + 1) + BLOCK_K;"),
        ("einsum last block in no share", "depth / BLOCK_K) * share", "depth / BLOCK_K - 1) * share"),
        ("einsum share in the first matrix", "tile.row, k / sources_.depth", "tile.row, 0", {"file": SOURCES}),
    ],
)
OF_SHARES += planted(
    "sum_of_shares/simt.cu.j2",
    Kernel("90a", "t256_bf16", "sum_of_shares"),
    Problem((11,), 44, 3),
    [
        ("einsum last share left out", "p < P; p += kWarps", "p < P - 1; p += kWarps"),
        ("einsum shares of the last warp left out", "other < kWarps;", "other < kWarps - 1;"),
        ("einsum sums of warps read before they are there", "    __syncthreads();\n", ""),
        ("einsum sums past the last element", "if (warp != 0 || first >= elements) return;", "if (warp != 0) return;"),
    ],
)

CAUGHT = [*OF_MATRICES, *OF_SHARES]
