"""Faults where MXFP4 weights become E4M3 in registers on Hopper, and four scales a stage are promoted."""

from __future__ import annotations

from kernel_fault import planted
from planting import Kernel, Problem

FP8 = "number/fp8.cuh"
# Two tiles of rows; of the last stage of K there are two blocks, and of N eight columns.
SEVERAL, TAILS = Kernel("90a", "m16n128_bf16", "grouped_fp8_mxfp4"), Problem((0, 19, 1, 9), 136, 448)
ONE_BY_ONE = {"kernel": Kernel("90a", "m32n128_bf16", "grouped_fp8_mxfp4")}
PLACE = "j % 2 * (8 * PACKED_BYTES) + j / 2 * 8"
WAIT = "                mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);\n"

CAUGHT = planted(
    "mainloop/wgmma_promote_fp4.cuh",
    SEVERAL,
    TAILS,
    [
        ("mxfp4 weights without signs", "magnitudes | (signs & 0x80808080u)", "magnitudes", {"file": FP8}),
        ("mxfp4 signs of even and odd elements swapped", "packed, 0x5140)", "packed, 0x1504)", {"file": FP8}),
        ("mxfp4 rows and halves swapped", PLACE, "j / 2 * (8 * PACKED_BYTES) + j % 2 * 8"),
        ("mxfp4 weights of the first block", "+ (weights_begin_ ^ i << 4)", "+ weights_begin_"),
        ("mxfp4 swizzle left out", "row_ * PACKED_BYTES + (row_ / 2 % 4 << 4)", "row_ * PACKED_BYTES"),
        ("mxfp4 scale of the first block", "make_float2(scale(first, i)", "make_float2(scale(first, 0)"),
        ("mxfp4 scale of the row eight before", "scale(second, i)", "scale(first, i)"),
        ("mxfp4 scales behind K", "if (left < BLOCK_K) {", "if (left < 0) {"),
        ("mxfp4 tokens of the first block", "+ i * (kScaleK >> 4)", ""),
        ("mxfp4 scale of a neighbouring token", "tokens[j / 4 * 8 + j % 2]", "tokens[j / 4 * 8]"),
        ("mxfp4 products read while they run", "min(kBlocks - 1, i) - done", "kRunning"),
        ("mxfp4 one product read while it runs", "min(kBlocks - 1, i) - done", "kRunning", ONE_BY_ONE),
        ("mxfp4 stage read before it is there", WAIT, ""),
        (
            "mxfp4 weight scales of the first group",
            "tile.column, k / Mainloop::BLOCK_K, tile.batch)",
            "tile.column, k / Mainloop::BLOCK_K, 0)",
            {"file": "mainloop/promoted_fp4_sources.cuh"},
        ),
    ],
)
