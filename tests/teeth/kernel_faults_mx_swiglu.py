"""Faults in the fused epilogues of MX operands: on Blackwell a block of 32 is of two warps or of all lanes of a token,
on sm_90 of eight lanes."""

from __future__ import annotations

from dataclasses import replace

from kernel_fault import MASKED, planted
from launches import Problem
from planting import Kernel

SM100, COMMON, MX = "epilogue/swiglu_quantize_sm100.cuh", "epilogue/swiglu_quantize.cuh", "number/mx.cuh"
SM90 = "epilogue/swiglu_mx_sm90.cuh"
M64, M128 = (Kernel("90a", f"{tile}n128k128", "grouped_mxfp8_swiglu") for tile in ("m64", "m128"))
M100, M120 = Kernel("100a", "m16n128k128", "grouped_mxfp8_swiglu"), Kernel("120a", "m8n128k128", "grouped_mxfp8_swiglu")
PACKED = Kernel("120a", "m8n128k256", "grouped_mxfp4_swiglu")
SMALL = Problem((0, 1, 19, 0, 37), 160, 224)
ON_HOPPER = replace(SMALL, on_hopper=True)
OF_FP4 = {"kernel": PACKED}

# By mask, where the rows of a matrix and those of its scales begin apart.
BY_MASK = {arch: Kernel(arch, kernel.variant, "grouped_mxfp8_swiglu_masked")
           for arch, kernel in (("100a", M100), ("120a", M120))}  # fmt: skip
OF_MASKED = [
    fault
    for arch, file, epilogue in (("100a", SM100, "params_"), ("120a", COMMON, "epilogue_"))
    for fault in planted(
        file,
        BY_MASK[arch],
        SMALL,
        [
            ("mx weights of the first matrix", f"{epilogue}.row_weight[tile_.row + token]",
             f"{epilogue}.row_weight[token]"),
            ("mx results in the first matrix", "static_cast<int64_t>(tile_.row + token)",
             "static_cast<int64_t>(token)"),
            ("mx masked scales of matrices not in whole atoms",
             "(ceil_div(max_rows, scale_layout::ATOM_ROWS) * scale_layout::ATOM_ROWS)", "max_rows", {"file": MASKED}),
            ("mx count of the batch before", "__ldcg(mask + batch)", "__ldcg(mask + max(batch - 1, 0))",
             {"file": MASKED}),
        ],
    )
]
OF_MASKED += planted(
    MASKED,
    Kernel("90a", "m8n256k256", "grouped_fp4_swiglu_masked"),
    Problem((0, 1, 11, 0, 7, 0), 160, 352),
    [
        ("fused rows of the matrix before", "return batch * max_rows;", "return max(batch - 1, 0) * max_rows;"),
        ("fused scales of the first matrix", "return batch * (ceil_div(", "return 0 * (ceil_div("),
    ],
)

CAUGHT = [
    *OF_MASKED,
    *planted(
        SM100,
        M100,
        SMALL,
        [
            ("mx results of the warp alone", "staging_ + (static_cast<int>(part / 2) - warp_)", "staging_ + (0)"),
            ("mx tokens of the other warp", "const int row = warp_ * (kStagingTokens / kBlockWarps) +",
             "const int row ="),
            ("mx results read before they are there", "synchronize();\n            quantize", "quantize"),
            ("mx results written while they are read",
             "            synchronize();  // before the buffer is written again\n", ""),
            ("mx barrier of another block", "(2 + threadIdx.x / (32 * kBlockWarps))", "(2)"),
            ("mx maximum of two lanes", "distance < kBlockLanes;", "distance < 2;"),
            ("mx elements in the place of others", "[kBlockLanes * block + part] = packed",
             "[kBlockLanes * block] = packed"),
            ("mx bias of the first warp", "(tile.column / 32 + warp) * kResults)", "(tile.column / 32) * kResults)"),
            ("mx alpha of gates for ups", "params.alpha_of(threadIdx.x % 2)", "params.alpha_of(0)"),
            ("mx scales of the first half of a word alone", "group / 2 == (num_groups - 1) / 2)",
             "false)", {"file": COMMON}),
        ],
    ),
    *planted(
        SM90,
        M64,
        ON_HOPPER,
        [
            ("mx results of the other warpgroup", "(kSharesRows ? warp / 4 * kOwnColumns : 0)", "0"),
            ("mx tokens of one warp by all", "(kSharesRows ? warp % 4 : warp) * kRows", "0"),
            ("mx sums of rows eight apart", "lane / 4 + half * 8", "lane / 4"),
            ("mx gates for ups", "first.y, first.w, second.y, second.w", "first.x, first.z, second.x, second.z"),
            ("mx results of four tokens alone", "first_token, first + lane / 8,", "first_token, lane / 8,"),
            ("mx results of one lane by eight", "2 * Layout::lane());", "0);"),
            ("mx sums read before they are there", "                __syncwarp();\n#pragma unroll 1",
             "#pragma unroll 1"),
            ("mx sums written while others are read", "__syncwarp();  // before", "// before", {"kernel": M128}),
            ("mx sums of the first block for all", "sums[0] + block * kBlockColumns / 2", "sums[0]", {"kernel": M128}),
            ("mx results of all blocks in one", "first_column / kBlockColumns + block", "first_column / kBlockColumns",
             {"kernel": M128}),
        ],
    ),
    *planted(
        COMMON,
        M120,
        SMALL,
        [
            ("mx bytes of neighbours the other way", "0x3210 ^ order * 0x1111", "0x3210",
             {"file": "epilogue/spread_groups.cuh"}),
            ("mx piece of the first lanes", "L::lane() / kPieceLanes);", "0);"),
            ("mx pieces of a byte each", "kBlock * kBits / 64;", "kBlock * 4 / 64;"),
            ("mxfp4 piece of the first lanes", "L::lane() / kPieceLanes);", "0);", OF_FP4),
            ("mx scale a step too small", "static_cast<int>(bits >> 23) - kExponent",
             "static_cast<int>(bits >> 23) - 9",
             {"file": MX}),
            ("mx scale that saturates", "kBytes ? 0x001FFFFF : 0x003FFFFF", "0", {"file": MX}),
            ("mxfp4 scale of another fraction", "kBytes ? 0x001FFFFF : 0x003FFFFF", "0x001FFFFF",
             {"file": MX, **OF_FP4}),
        ],
    ),
]  # fmt: skip
