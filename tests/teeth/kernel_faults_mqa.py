"""Faults in the kernels of MQA logits: in what every generation has of them, shown on sm_90, and in those of sm_90."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

OPERANDS, FRAGMENTS, LOGITS = "kernel/mqa_operands.cuh", "epilogue/logit_fragments.cuh", "epilogue/logits.cuh"
PAGES, SHARES, ROWS = "schedule/pages.cuh", "simt/share_pages.cuh", "ptx/wgmma_rows.cuh"

WIDE, NARROW = Kernel("90a", "h64d128", "mqa_logits_fp8"), Kernel("90a", "h64d64", "mqa_logits_fp8")
PAGED, SCHEDULE = Kernel("90a", "h64d128", "paged_mqa_logits_fp8"), Kernel("90a", "t512", "paged_mqa_schedule")
MXFP8, MXFP4 = (Kernel("90a", "h64d128", f"mqa_logits_mxfp{bits}") for bits in (8, 4))
QUARTER, NEIGHBOUR = "quarter * kDim / 128", "(quarter ^ 1) * kDim / 128"
MULTIPLIED = "barrier_of<kNumThreads>();  // the queries before these have been multiplied"
CONVERTED = "// wgmma reads through the async proxy\n        barrier_of<kNumThreads>();"
DENSE = Problem((6,), 1300, 128)
FEW = Problem((6,), 200, 128)
REQUESTS = Problem((0, 70, 97, 0, 600), 48, 128)
LONG = Problem((3200,), 48, 128)  # a share has more stages than a ring, and more pages than lanes look up

CAUGHT = planted(
    "kernel/mqa_sm90.cuh",
    WIDE,
    FEW,
    [
        ("keys read before they arrive", "mbarrier::wait(&operands.full[stage], ring.parity);", ""),
        ("stage of keys never freed", "mbarrier::arrive(&operands.empty[stage]);", "",
         {"kernel": PAGED, "problem": LONG}),
        ("stages of a tile taken by the warpgroup of the last one", "skipped + stages * (kGroups - 1)",
         "skipped + stages", {"kernel": PAGED, "problem": REQUESTS}),
        ("two warps load the same stages", "keys, helper);", "keys, 0);", {"kernel": PAGED, "problem": LONG}),
        ("queries read before they arrive", "mbarrier::wait(&operands.queries_full[buffer.stage], buffer.parity);", ""),
        ("queries never freed", "mbarrier::arrive(&operands.queries_empty[buffer.stage]);", "", {"problem": DENSE}),
        ("sums of a product in flight", "wgmma::wait<0>();", ""),
        ("scale of the neighbour", "scale(stage, warp_row + Fragments::row());",
         "scale(stage, warp_row + (Fragments::row() ^ 1));"),
        ("stages of a tile in the order of the one before",
         "skipped = (skipped + stages * (kGroups - 1)) % kGroups;", "", {"problem": DENSE}),
        ("swizzle of 128 bytes for rows of 64", "kRowBytes == 64 ? 2 : 3", "kRowBytes == 64 ? 1 : 3",
         {"file": ROWS, "kernel": NARROW, "problem": Problem((6,), 200, 64)}),
    ],
)  # fmt: skip
CAUGHT += planted(
    "mainloop/key_products_mx.cuh",
    MXFP8,
    FEW,
    [
        ("scale of the neighbour block, mxfp8", QUARTER, NEIGHBOUR),
        ("scale of the neighbour block, mxfp4", QUARTER, NEIGHBOUR, {"kernel": MXFP4}),
        ("queries not converted", "product.take_queries(buffer.stage);", "", {"file": "kernel/mqa_sm90.cuh"}),
        ("queries not in the view of wgmma", "mbarrier::fence_async_proxy();", ""),
        ("queries multiplied while they are converted", CONVERTED, CONVERTED.replace("barrier_of<kNumThreads>();", "")),
        ("queries converted while those before are multiplied", MULTIPLIED, "", {"problem": DENSE}),
        ("scale of the row's other half", "Keys::scale(operands_.scales[stage], row)));",
         "Keys::scale(operands_.scales[stage], first)));"),
    ],
)  # fmt: skip
CAUGHT += planted(
    OPERANDS,
    WIDE,
    FEW,
    [
        ("keys loaded over others",
         "mbarrier::wait_together(&shared_.empty[place.stage], place.parity ^ 1, own < count);", "",
         {"kernel": PAGED, "problem": LONG}),
        ("weights of heads that are not there", " && head < queries.num_heads", ""),
        ("weights of queries that are not there", "query < tile.num_rows && head", "head"),
        ("relu forgotten", "x + fabsf(x)", "2 * x", {"file": FRAGMENTS}),
        ("NaN lost", "x + fabsf(x)", "(x > 0 ? 2 * x : 0)", {"file": FRAGMENTS}),
        ("sums of the other query", "odd ? low : high", "odd ? high : low", {"file": FRAGMENTS}),
        ("key behind the last one seen", "(key < end)", "(key <= end)", {"file": "schedule/keys.cuh"}),
        ("keys in front of the first one not cleaned", "i < before ? i : i + multiplied", "i + multiplied",
         {"file": LOGITS}),
    ],
)  # fmt: skip
CAUGHT += planted(
    "mainloop/paged_keys.cuh",
    PAGED,
    REQUESTS,
    [
        ("page of the wrong row", "int64_t{tile.batch} * table_pitch", "int64_t{tile.row} * table_pitch"),
        ("page behind the last one looked up", "if (key >= tile.k_end) return {-1, 0};", ""),
        ("page that does not exist has logits", "number >= 0 && number < num_pages ? number : -1", "number"),
        ("scales of the first keys of a page", "page * kRowBytes / 4 + row", "page * kRowBytes / 4"),
        ("pages looked up once", "call = index % kCalls;", "call = index;", {"problem": LONG}),
        ("pages of the other warp's keys", "% (kStages * kParts) * kPart;",
         "% (kStages * kParts) * kPart - kStride / 2;", {"problem": LONG}),
        ("pages of the look-up after the next", "own + kCalls * kStride", "own + 2 * kCalls * kStride",
         {"problem": LONG}),
        ("rows of a page of its first key", "key - place * page};", "0};"),
        ("scales of parts side by side", "row / kPart * kScaleStride + row % kPart", "row"),
        ("pages of the next request", "request_ / params_.next_n, row", "row_ / params_.next_n, row",
         {"file": PAGES}),
        ("first block of a share left out", "begin_ = block_ * kKeyBlock;", "begin_ = (block_ + 1) * kKeyBlock;",
         {"file": PAGES}),
        ("length of the first query", "most_of_warp(length(row_, params_.next_n));", "most_of_warp(length(row_, 1));",
         {"file": PAGES}),
    ],
)  # fmt: skip
CAUGHT += planted(
    SHARES,
    SCHEDULE,
    REQUESTS,
    [
        ("work of the threads before forgotten", "int64_t before = sums.before;", "int64_t before = 0;"),
        ("share of a request without its queries", "- before) / count", "- before)"),
        ("shares of the next CTA", "(i * sums.total / num_shares", "((i + 1) * sums.total / num_shares"),
        ("no end", "if (after == sums.total) {", "if (false) {"),
    ],
)  # fmt: skip
