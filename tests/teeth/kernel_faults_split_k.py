"""Faults where CTAs of a cluster share K of a tile: shares, the exchange of sums, the end of a cluster, on Hopper."""

from __future__ import annotations

from kernel_fault import planted
from planting import Kernel, Problem

SPLIT, GROUPED, KERNEL = "epilogue/split_k_sm90.cuh", "schedule/grouped.cuh", "kernel/sm90.cuh"
OTHERS = {"file": "epilogue/sums_of_others.cuh"}
COLUMNS, ROWS = (Kernel("90a", f"{tile}_f32", "gemm_fp8") for tile in ("m64n128s4", "m128n128s4"))
WAIT_FOR_ROOM = "            cluster::wait_on(&shared_.empty[warp], parity_ ^ 1);\n"
END = "            cluster::sync();  // nobody arrives on barriers of this CTA any more\n"
TILES = Problem((67,), 264, 784)  # more than one of a cluster; K of the last share is short
ONE = Problem((130,), 136, 784)

ONE_PLACE = ("from < to ? from : from - 1", "from > 0 ? from - 1 : 0", OTHERS)
FEWER_BYTES = ("(kSplits - 1) * kSums * 32 * 4", "kSums * 32 * 4", OTHERS)
FEWER_SUMS = ("other < kSplits - 1; ++other)", "other < kSplits - 2; ++other)", OTHERS)

CAUGHT = planted(
    SPLIT,
    COLUMNS,
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
        (
            "split columns of the first CTA stored by all",
            "tile.column += rank_ * Part::BLOCK_N;",
            "",
            {"kernel": ROWS, "problem": ONE},
        ),
        ("split CTA gone before the others are done", END, "", {"file": KERNEL}),
    ],
)
