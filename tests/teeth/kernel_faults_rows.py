"""Faults in the GEMMs of Hopper that read operands from shared memory: promotion, rows in each form, and padding."""

from __future__ import annotations

from kernel_fault import planted
from planting import Kernel, Problem

PROMOTE, SHARED, PLAIN = (f"mainloop/{name}.cuh" for name in ("wgmma_promote", "shared_operands", "wgmma_shared"))
ANY_ROWS, STORE_ROWS = "schedule/any_rows.cuh", "epilogue/store_rows_sm90.cuh"

# Tokens as the columns of the instruction, and as its rows.
COLUMNS, ROWS = (Kernel("90a", f"{tile}_f32", "grouped_fp8") for tile in ("m16n128", "m128n256"))
ENDS, LABELS, MASKED = (Kernel("90a", "m128n128_f32", f"grouped_fp8_{form}") for form in ("ends", "labels", "masked"))
BF16 = Kernel("90a", "m128n128_f32", "grouped_bf16")
SMALL = Problem((0, 1, 19, 0, 7), 136, 400)
WIDE = Problem((3, 0, 17), 264, 272)
PADDED = Problem((7, 0, 130, 128), 136, 144)

END_OF_GROUP = "min(tile.num_rows, group(tile.batch) - tile.row)"
FREED_AFTER = "promote_columns(sums[t], block);\n                        if (t == kTiles - 1) free_stage();"

CAUGHT = [
    *planted(
        PROMOTE,
        COLUMNS,
        SMALL,
        [
            (
                "token scales of the block before",
                "tile.scale_row + int64_t(block)",
                "tile.scale_row + max(block - 1, 0)",
            ),
            ("weight scales of the block before", "* blocks_of_row + block;", "* blocks_of_row + max(block - 1, 0);"),
            ("no arrival of the scales", "mbarrier::arrive(&shared.full[ring.stage]);", ""),
            (
                "scales freed before they are read",
                FREED_AFTER,
                "if (t == kTiles - 1) free_stage();\n                        promote_columns(sums[t], block);",
            ),
            (
                "sums of a block not begun anew",
                "products_.issue(block, ring_.stage, t, false);",
                "products_.issue(block, ring_.stage, t, k > tile.k_begin);",
            ),
            ("scales do not wait for a free stage", "mbarrier::wait(&shared.empty[ring.stage], ring.parity ^ 1);", ""),
            ("scale of the neighbouring token", "sums[j * 4 + 1] += scale.y", "sums[j * 4 + 1] += scale.x"),
            (
                "weights of the first warpgroup alone",
                "warpgroup() * (kTiles * kWarpgroupBytes >> 4)",
                "0",
                {"file": SHARED},
            ),
            (
                "half a step along K",
                "(kTokenRows ? tokens : weights) + step * 2",
                "(kTokenRows ? tokens : weights) + step",
                {"file": SHARED},
            ),
        ],
    ),
    *planted(
        PROMOTE,
        ROWS,
        WIDE,
        [
            ("rows weight scales of the first columns", "__ldg(weights + i * blocks_of_row)", "__ldg(weights)"),
            ("rows scale of the row above", "make_float2(scales[0], scales[8])", "make_float2(scales[0], scales[0])"),
            (
                "rows stage never freed",
                "if (t == kTiles - 1) free_stage();\n                        wgmma::fence_values",
                "wgmma::fence_values",
            ),
            (
                "rows read before they are in order",
                "column, lane);\n                __syncwarp();",
                "column, lane);",
                {"file": STORE_ROWS},
            ),
            (
                "rows stored past the group",
                "row + vector_row < num_stored",
                "row + vector_row < 16",
                {"file": STORE_ROWS},
            ),
        ],
    ),
    *planted(
        ANY_ROWS,
        ENDS,
        PADDED,
        [
            ("ends padding multiplied", END_OF_GROUP, "tile.num_rows"),
            ("ends one row too few", END_OF_GROUP, END_OF_GROUP.replace("tile.row", "tile.row - 1")),
            ("ends group begins where the last one ended", "aligned(group(batch - 1))", "group(batch - 1)"),
            (
                "ends padding not zeros",
                "num_rows ? place[row * ROW_BYTES / 16] : uint4{}",
                "num_stored ? place[row * ROW_BYTES / 16] : uint4{}",
                {"file": STORE_ROWS},
            ),
            ("labels one row too many", "return low;", "return low + 1;", {"kernel": LABELS}),
            ("labels one row too few", "return low;", "return low - 1;", {"kernel": LABELS}),
            ("labels of the first row", "__ldcg(groups + tile.row)", "__ldcg(groups)", {"kernel": LABELS}),
            (
                "labels padding takes the first weights",
                "exists ? labelled(tile.row, tile.num_rows, label) : 0",
                "labelled(tile.row, tile.num_rows, label)",
                {"kernel": LABELS},
            ),
            ("masked scales of the first group", "batch * scales_of_group", "0", {"kernel": MASKED}),
            (
                "masked count of the group before",
                "kind == kMasked ? group(batch) : num_rows",
                "kind == kMasked ? group(max(batch - 1, 0)) : num_rows",
                {"kernel": MASKED},
            ),
        ],
    ),
    *planted(
        PLAIN,
        BF16,
        Problem((0, 1, 19, 0, 7), 136, 400),
        [
            ("bf16 stage freed while it is read", "wgmma::wait<1>();", "wgmma::wait<2>();"),
            ("bf16 last stage never freed", "if (k_begin < k_end && has_warp_lead)", "if (k_end < 0)"),
            ("bf16 results read before they are there", "wgmma::wait<0>();", ""),
        ],
    ),
]
