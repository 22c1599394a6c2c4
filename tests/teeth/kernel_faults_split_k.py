"""Faults where CTAs of a cluster share K of a tile: shares, the exchange of sums, beginning and end of a cluster."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

SPLIT, GROUPED = "epilogue/split_k_sm90.cuh", "schedule/grouped.cuh"
SPLIT_FP8 = Kernel("90a", "m64n128s4_f32", "gemm_fp8")
OTHERS = {"file": "epilogue/sums_of_others.cuh"}
WAIT_FOR_ROOM = "            cluster::wait_on(&shared_.empty[warp], parity_ ^ 1);\n"
LEFT = "split CTA gone before the others are done"
TILES = Problem((67,), 264, 784)  # more than one of a cluster; K of the last share is short

ONE_PLACE = ("from < to ? from : from - 1", "from > 0 ? from - 1 : 0", OTHERS)
FEWER_BYTES = ("(kSplits - 1) * kSums * 32 * 4", "kSums * 32 * 4", OTHERS)
FEWER_SUMS = ("other < kSplits - 1; ++other)", "other < kSplits - 2; ++other)", OTHERS)

HOPPER = planted(
    SPLIT,
    SPLIT_FP8,
    TILES,
    [
        ("split shares overlap", "kSplits) * share);", "kSplits) * (share - 128));", {"file": GROUPED}),
        ("split share reaches to the end", "min(tile.k_end, tile.k_begin + share)", "tile.k_end", {"file": GROUPED}),
        ("split tiles of every CTA are its own", "next_(blockIdx.x / kSplits)", "next_(blockIdx.x)", {"file": GROUPED}),
        ("split sums of two CTAs in one place", *ONE_PLACE),
        ("split sums of one CTA waited for", *FEWER_BYTES),
        ("split sums overwritten before they are read", WAIT_FOR_ROOM, ""),
        ("split sums of another part kept", "accumulators[0][rank * kSums + i]", "accumulators[0][i]"),
        ("split sums of one CTA left out", *FEWER_SUMS),
        ("split rows of the last part past the matrix", "min(Part::BLOCK_M, tile.num_stored - first)", "Part::BLOCK_M"),
        ("split part of the first CTA stored by all", "tile.row += first;", ""),
        (LEFT, "cluster::wait_on(&shared_.empty[thread_index_again() / 32 - 4], parity_ ^ 1);", ""),
    ],
)

# Of five stages the first CTAs have two each, one has a part of one, the last has none.
SM100, SM120 = Kernel("100a", "m64n128k256s4_f32", "gemm_fp4"), Kernel("120a", "m32n128k256s4_f32", "gemm_fp4")
FOUR_100, FOUR_120 = (Problem((rows,), 136, 1120, gaps=False) for rows in (67, 35))
ARRIVE_ALL = "if (lane{0} < kSplits && lane{0} != rank_) cluster::arrive_on(cluster::place_in(lane{0}, {1}));"
PHASES = "parities_ ^= (1u << "
OTHERS_SEND = "others_.send(sums,"
ROOM_100 = f"cluster::wait_on(&empty_[to], parity(to) ^ 1);\n                {OTHERS_SEND}"


def of_kernel(kernel: str) -> list[tuple]:
    """Faults in what the kernels of Blackwell do for a cluster."""
    file = {"file": f"kernel/{kernel}.cuh"}
    begin = "if constexpr ({}kSplits > 1{}) cluster::{}();".format
    schedule, pairs = ("Schedule::", "") if kernel == "sm120" else ("", " || kPairs")
    return [
        ("split sums of two CTAs in one place", *ONE_PLACE),
        ("split sums of one CTA waited for", *FEWER_BYTES),
        ("split sums of one CTA left out", *FEWER_SUMS),
        ("split share reaches to the end", "min(tile.k_end, tile.k_begin + share)", "tile.k_end", {"file": GROUPED}),
        ("split CTA begins before the others", begin(schedule, "", "wait"), "", file),
        ("split CTA never says that it is there", begin(schedule, pairs, "arrive"), "", file),
    ]


BLACKWELL = [
    *planted(
        "epilogue/split_k_sm100.cuh",
        SM100,
        FOUR_100,
        [
            *of_kernel("sm100"),
            ("split sums overwritten before they are read", ROOM_100, OTHERS_SEND),
            (LEFT, "if (to != rank_) cluster::wait_on(&empty_[to], parity(to) ^ 1);", "{}"),
            ("split sums read before they are there", "cluster::wait_on(full_, parity(rank_));", ""),
            ("split sums of no token waited for", "lane_ == 0 && first() < num_tokens", "lane_ == 0"),
            ("split tokens of the first CTA kept", "if (begin == first())", "if (begin == 0)"),
            (
                "split tokens of the first CTA stored by all",
                "output.store(values, first() + begin);",
                "output.store(values, begin);",
            ),
            ("split room never given", ARRIVE_ALL.format("_", "&empty_[rank_]"), ""),
            ("split phase of the first tile", f"{PHASES}ceil_div(num_tokens, kTokens)) - 1;", ""),
            (
                "split phases of CTAs without a token",
                f"{PHASES}ceil_div(num_tokens, kTokens))",
                f"{PHASES}kSplits)",
                {"problem": Problem((131,), 136, 1120, gaps=False)},  # one tile with few tokens between two full ones
            ),
            (
                "rank of the CTA in the panels of a descriptor",
                "(kInCluster ? tcgen05::kAddressBits : ~0u)",
                "~0u",
                {
                    "file": "mainloop/umma.cuh",
                    "kernel": Kernel("100a", "m64n128s4_f32", "gemm_bf16_nn"),
                    "problem": Problem((3,), 128, 160),
                },
            ),
            (
                "split share without K sends nothing",
                "Rows::kDividesK || kSplits > 1) store_zeros",
                "Rows::kDividesK) store_zeros",
                {"file": "kernel/sm100.cuh"},
            ),
            (
                "split share without K waits for products",
                "Rows::kDividesK || kSplits > 1) return",
                "Rows::kDividesK) return",
                {"file": "kernel/sm100.cuh"},
            ),
        ],
    ),
    *planted(
        "epilogue/split_k_sm120.cuh",
        SM120,
        FOUR_120,
        [
            *of_kernel("sm120"),
            ("split sums overwritten before they are read", "cluster::wait_on(&shared_.empty[warp], parity_ ^ 1);", ""),
            (LEFT, "cluster::wait_on(&shared_.empty[warp_index()], parity_ ^ 1);", "{}"),
            ("split sums read before they are there", "cluster::wait_on(full, parity_);", ""),
            ("split warps of one CTA store alone", "storing = warp % kSplits;", "storing = 0;"),
            ("split sums stored by those who sent theirs", "return rank_ == storing;", "return rank_ != storing;"),
            ("split room never given", ARRIVE_ALL.format("", "&shared_.empty[warp]"), ""),
            ("split phase of the first tile", "parity_ ^= 1;", ""),
            (
                "split share without K waits for products",
                "(!Rows::kDividesK && Schedule::kSplits == 1)",
                "!Rows::kDividesK",
                {"file": "kernel/sm120.cuh"},
            ),
        ],
    ),
]

CAUGHT = [*HOPPER, *BLACKWELL]
