"""Faults where MXFP4 weights become E5M2 in registers on Hopper, under a scale that the blocks of a stage share."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

TABLE = {"file": "number/mx_table.cuh"}
# Two tiles of rows; of the last stage of K there are two blocks, and of N eight columns.
SEVERAL, TAILS = Kernel("90a", "m16n128_bf16", "grouped_fp8_mxfp4"), Problem((0, 19, 1, 9), 136, 448)
PLACE = "j % 2 * (8 * PACKED_BYTES) + j / 2 * 8"
LEFT_OUT = "        if (scale < smallest_) return {0, 0};\n"
LOADED = "                    mbarrier::wait(&shared.full[ring.stage], ring.parity);\n"
READY = "            mbarrier::wait(&shared_.ready[ring_.stage], ring_.parity);\n"

CAUGHT = planted(
    "mainloop/wgmma_promote_fp4.cuh",
    SEVERAL,
    TAILS,
    [
        ("mxfp4 weights without signs", "magnitudes | (signs & 0x80808080u)", "magnitudes", TABLE),
        ("mxfp4 signs of even and odd elements swapped", "packed, 0x5140)", "packed, 0x1504)", TABLE),
        ("mxfp4 common scale of two blocks", "max(pairs & 0xFFFF, pairs >> 16)", "pairs & 0xFFFF", TABLE),
        ("mxfp4 tables beyond the range of E5M2", LEFT_OUT, "", TABLE),
        ("mxfp4 rows and halves swapped", PLACE, "j / 2 * (8 * PACKED_BYTES) + j % 2 * 8"),
        ("mxfp4 weights of the first block", "(weights_begin_ ^ block << 4)", "weights_begin_"),
        ("mxfp4 swizzle left out", "row_ * PACKED_BYTES + (row_ / 2 % 4 << 4)", "row_ * PACKED_BYTES"),
        ("mxfp4 table of the block before", "tables[j % 2][i].elements", "tables[j % 2][0].elements"),
        ("mxfp4 table of the row eight before", "tables[j % 2][i].elements", "tables[0][i].elements"),
        ("mxfp4 common scale of the row eight before", "second = rows[8]", "second = rows[0]"),
        ("mxfp4 scales behind K", "there = left < BLOCK_K", "there = left < 0"),
        ("mxfp4 tokens of the first block", " + i * (kScaleK >> 4)", ""),
        ("mxfp4 scale of a neighbouring token", "tokens[j / 4 * 8 + j % 2]", "tokens[j / 4 * 8]"),
        ("mxfp4 products read while they run", "wgmma::wait<0>()", "wgmma::wait<1>()"),
        ("mxfp4 elements written while they are read", "elements[1], true);", "elements[0], true);"),
        ("mxfp4 scales read before they are there", LOADED, ""),
        ("mxfp4 tables read before they are there", READY, ""),
        (
            "mxfp4 weight scales of the first group",
            "tile.column, k / Mainloop::BLOCK_K, tile.batch)",
            "tile.column, k / Mainloop::BLOCK_K, 0)",
            {"file": "mainloop/promoted_fp4_sources.cuh"},
        ),
    ],
)
