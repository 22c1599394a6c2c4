"""Faults in the kernels that quantise rows to MXFP8, MXFP4 and FP8, which are the same on every arch."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

FORMAT, ROW = "simt/quantize_format.cuh", "simt/quantize_row.cuh"
PLACES, EXPERTS, QUAD = "simt/scale_places.cuh", "simt/expert_rows.cuh", "simt/quad.cuh"
LANES = "distance < kLanes"
# Rows that four does not divide; K ends inside a word of scales.
ROWS = Problem((0, 1, 3, 0, 7), 0, 864)

CAUGHT = planted(
    FORMAT,
    Kernel("90a", "t256_bf16", "moe_gather_quantize_fp8"),
    ROWS,
    [
        ("scale of half a block", LANES, "distance < kLanes / 2"),
        ("scale of two blocks", LANES, "distance <= kLanes"),
        ("scale of the neighbouring lanes", "__shfl_xor_sync(0xFFFFFFFF, largest, distance));\n    return largest;",
         "__shfl_xor_sync(0xFFFFFFFF, largest, distance));\n    return __shfl_xor_sync(0xFFFFFFFF, largest, kLanes);"),
        ("padding of rows left as it is", "i < places.rows / pitch * padding", "i < 0", {"file": PLACES}),
        ("scales of packed rows without a row", "return {row, row, row, expert};", "return {row, row, 0, expert};",
         {"file": EXPERTS}),
    ],
)  # fmt: skip
CAUGHT += planted(
    ROW,
    Kernel("100a", "t256_bf16", "moe_gather_quantize_mxfp8"),
    ROWS,
    [
        ("values behind the end of a row", "if (item.owned && block < output.source_blocks)", "if (inside)"),
        ("elements behind the end of a row left", "const bool inside = item.owned && block < output.blocks",
         "const bool inside = item.owned && block < output.source_blocks"),
        ("bytes of a word by the lane", "threadIdx.x / kStride % 4", "threadIdx.x % 4", {"file": QUAD}),
        ("bytes of a word from neighbours", "word, kStride)", "word, 1)", {"file": QUAD}),
    ],
)  # fmt: skip
CAUGHT += planted(
    ROW,
    Kernel("120a", "t256_bf16", "fp8_ue8m0_quantize_masked"),
    ROWS,
    [
        ("scales of zeros behind the last block", "            word = result.scale;\n        }",
         "        }\n        word = result.scale;"),
        ("scales of matrices as if these were rows", "expert * scale_rows + within", "expert * max_rows + within",
         {"file": EXPERTS}),
        ("padding of the first matrix alone", "i < places.rows / pitch * padding", "i < places.words * padding",
         {"file": PLACES}),
        ("words of neighbouring K as neighbours", "false, 1, pitch};", "false, count, 1};", {"file": PLACES}),
    ],
)  # fmt: skip
CAUGHT += planted(
    "simt/gated_source.cuh",
    Kernel("90a", "t256_bf16", "silu_mul_fp8_quantize"),
    ROWS,
    [
        ("gates as ups", "quantize::load(gate + columns)", "quantize::load(gate)"),
        ("gates alone from the row before", "int64_t(row.source) * 2 * columns", "int64_t(row.source) * columns"),
        ("rows without their weights", "row_weight ? row_weight[row.source] : 1.0f", "1.0f"),
    ],
)
CAUGHT += planted(
    "simt/unquantized.cuh",
    Kernel("90a", "t256_bf16_bf16", "moe_gather"),
    ROWS,
    [
        ("gathered halves alike", "values + 8 * i", "values"),
        ("gathered neighbours the other way", "pack<X>(eight[2], eight[3])", "pack<X>(eight[3], eight[2])"),
        ("scales of a gather that has none", "{nullptr, 0, words", "{nullptr, 1, words"),
        ("rows gathered by half", "words<Unquantized>(columns), false", "words<Unquantized>(columns) / 2, false"),
        ("gathered rows by their slots", "located.source = slot(row) / TOPK;", "located.source = slot(row);",
         {"file": "simt/routed_rows.cuh"}),
        ("gathered rows without a weight", "in_activation ? topk_weights[rows.slot(row)] : 1.0f",
         "topk_weights[rows.slot(row)]", {"file": "simt/routed_rows.cuh"}),
    ],
)  # fmt: skip
