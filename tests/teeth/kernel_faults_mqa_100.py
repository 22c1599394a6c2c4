"""Faults in the kernel of MQA logits of sm_100."""

from __future__ import annotations

from kernel_fault import planted
from kernel_faults_mqa import DENSE, FEW, LONG, OPERANDS, REQUESTS
from planting import Kernel, Problem

LANES, PRODUCTS, TCGEN05 = "epilogue/logit_lanes.cuh", "mainloop/umma_heads.cuh", "ptx/tcgen05_fp8.cuh"

WIDE, NARROW = Kernel("100a", "h64d128", "mqa_logits_fp8"), Kernel("100a", "h64d64", "mqa_logits_fp8")
PAGED = Kernel("100a", "h64d128", "paged_mqa_logits_fp8")
HALF = {"file": TCGEN05, "kernel": NARROW, "problem": Problem((6,), 200, 64)}
MXFP8, MXFP4 = ({"kernel": Kernel("100a", "h64d128", f"mqa_logits_mxfp{bits}")} for bits in (8, 4))
TILES = Problem((20,), 200, 128)  # more than there are buffers of queries

STAGE_WAIT = "mbarrier::wait(&operands.full[ring.stage], ring.parity);\n                "
TO_MULTIPLY, TO_ADD = f"{STAGE_WAIT}Products::", f"{STAGE_WAIT}const float"
QUERIES_WAIT = "mbarrier::wait(&operands.queries_full[buffer.stage], buffer.parity);"
ACCUMULATOR_WAIT = "mbarrier::wait(&shared.accumulator_empty[accumulator.stage], accumulator.parity ^ 1);"
SUM_WAIT = "mbarrier::wait(&shared.accumulator_full[accumulator.stage], accumulator.parity);"
FREE = "if (warp == kTensorMemoryWarp) tcgen05::free<tcgen05::kNumColumns>(shared.tensor_memory);"

CAUGHT = planted(
    "kernel/mqa_sm100.cuh",
    WIDE,
    FEW,
    [
        ("keys multiplied before they arrive", TO_MULTIPLY, "Products::"),
        ("scales read before they arrive", TO_ADD, "const float"),
        ("queries multiplied before they arrive", f"{QUERIES_WAIT}\n            if constexpr",
         "\n            if constexpr", {"problem": TILES}),
        ("weights read before they arrive", f"{QUERIES_WAIT}\n            typename", "\n            typename"),
        ("accumulator overwritten", ACCUMULATOR_WAIT, "", {"problem": DENSE}),
        ("product not committed", "tcgen05::commit(&shared.accumulator_full[accumulator.stage]);", ""),
        ("sums of a product in flight", SUM_WAIT, ""),
        ("columns overwritten as they are read", "tcgen05::wait_loads();", "", {"problem": DENSE}),
        ("accumulator kept", "arrive_as_warp(freed);", "", {"problem": DENSE}),
        ("accumulator freed as it is read", "tcgen05::load(values[0], source);",
         "arrive_as_warp(freed);\n        tcgen05::load(values[0], source);", {"problem": DENSE}),
        ("stage of keys never freed", "arrive_as_warp(&operands.empty[ring.stage]);", "",
         {"kernel": PAGED, "problem": LONG}),
        ("queries never freed", "arrive_as_warp(&operands.queries_empty[buffer.stage]);", "",
         {"problem": TILES}),
        ("accumulator of the other product", "source + accumulator.stage * kColumns",
         "source + (accumulator.stage ^ 1) * kColumns"),
        ("every lane multiplies", "if (elect_one()) {", "{"),
        ("lanes of another warp", "(warp % 4 * 32 << 16)", "(warp % 3 * 32 << 16)"),
        ("columns of the other warpgroup", "<< 16) + column;", "<< 16);"),
        ("weights of the other warpgroup", "operands.weights[buffer.stage] + column", "operands.weights[buffer.stage]"),
        ("scale of the neighbour", "Keys::scale(operands.scales[ring.stage], row);",
         "Keys::scale(operands.scales[ring.stage], row ^ 1);"),
        ("keys of another part there", "Keys::there(operands.parts_there[ring.stage], row, 0)",
         "Keys::there(operands.parts_there[ring.stage], row / 2, 0)", {"kernel": PAGED, "problem": REQUESTS}),
        ("heads of the query before in the sum", "if (column % kHeads == 0) sum = {};", ""),
        ("tensor memory of logits kept", FREE, ""),
        ("weights of the first columns", "weights + column / 2);", "weights);"),
        ("relu forgotten of one half", "max_nan(a, 0), max_nan(b, 0)", "a, b", {"file": LANES}),
        ("relu forgotten of the other half", "c + fabsf(c), d + fabsf(d)", "c, d", {"file": LANES}),
        ("products of a tile in the order of the one before", "% kTurns;\n#pragma", "% 1;\n#pragma",
         {**MXFP8, "problem": DENSE}),
        ("product of the other warpgroup", "int skipped = group % kTurns;", "int skipped = 0;", MXFP8),
        ("scales of keys in a row", "Products::prepare_keys(operands.scales[ring.stage]);", "", MXFP8),
        ("scales of queries in a row", "Products::prepare_queries(operands.query_scales[buffer.stage]);", "", MXFP4),
        ("scales of as many heads as there is room for", "* queries.num_heads + head) : 0;", "* kHeads + head) : 0;",
         {"file": OPERANDS, **MXFP4}),
    ],
)  # fmt: skip
CAUGHT += planted(
    PRODUCTS,
    WIDE,
    FEW,
    [
        ("one accumulator for two products", "tensor_memory_ + accumulator * kColumns;", "tensor_memory_;"),
        ("products added to those before", "e4m3_descriptor(kColumns), step > 0);",
         "e4m3_descriptor(kColumns), true);"),
        ("columns of half of the queries", "e4m3_descriptor(kColumns),", "e4m3_descriptor(kColumns / 2),"),
        ("queries of the first buffer", "queries_ + (buffer * kColumns * kRowBytes >> 4);", "queries_;",
         {"problem": TILES}),
        ("block read before it is made", "        mbarrier::fence_async_proxy();\n", "", MXFP8),
        ("words written as others read them", "word(lane + 96));\n        __syncwarp();",
         "word(lane + 96));", MXFP8),
        ("scale byte of the neighbour", "Formats::scale_byte(step), Formats::scale_byte(step))",
         "Formats::scale_byte(step), Formats::scale_byte(step ^ 1))", MXFP4),
        ("scales of queries of the first buffer", "kQueryScales + buffer * kScaleColumns;", "kQueryScales;",
         {**MXFP8, "problem": TILES}),
        ("scales over an accumulator", "kKeyScales = Config::kAccumulators * kColumns;",
         "kKeyScales = (Config::kAccumulators - 1) * kColumns;", {**MXFP8, "problem": DENSE}),
        ("swizzle of 128 bytes for rows of 64", "kRowBytes == 64 ? 4 : 6", "kRowBytes == 64 ? 2 : 6", HALF),
        ("rows of 128 bytes for rows of 64", "kStride = 8 * kRowBytes >> 4", "kStride = 8 * 128 >> 4", HALF),
    ],
)  # fmt: skip
