"""Faults in products of widened rows: registers and tensor memory that are still read, shares of K, sums of squares."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

SHARES, ROWS, STORE = "schedule/column_shares.cuh", "mainloop/widened_rows.cuh", "epilogue/store_squares.cuh"
WGMMA, MMA, UMMA = (f"mainloop/{name}_widened.cuh" for name in ("wgmma", "mma", "umma"))

HOPPER, SM100, SM120 = (Kernel(arch, "n32", "hc_prenorm_tf32_shares") for arch in ("90a", "100a", "120a"))
THREE = Problem((141, 141, 141), 24, 64 * 8)  # shares of three, three and two blocks
DEEP, SHORT = (Problem((rows,), 24, 64 * 19) for rows in (70, 13))  # more blocks than stages

WAIT_STORES, FENCE = "tcgen05::wait_stores();", "tcgen05::fence_before_sync();"

# Of every generation.
OF_SHARES = [
    ("share that starts one block late", "tile.k_begin = (share", "tile.k_begin = (1 + share", {"file": SHARES}),
    ("block that is left given to the last shares", "(share < left)", "(share >= left)", {"file": SHARES}),
    ("share stored in the place of the first", "tile.batch = share;", "tile.batch = 0;", {"file": SHARES}),
]
OF_ROWS = [
    ("element of the next lane", "lane % 4 * 2;", "(lane + 1) % 4 * 2;", {"file": ROWS}),
    ("second half of a step left out", "+ i / 2 * 8);", ");", {"file": ROWS}),
    ("swizzle of rows forgotten", "(step * 16 ^ swizzle_)", "step * 16", {"file": ROWS}),
    ("squares of the tile before", "{ squares_[0] = squares_[1] = 0; }", "{}", {"file": ROWS}),
    ("square of a row too much", "squares_[i % 2] = __fmaf_rn", "squares_[0] = __fmaf_rn", {"file": ROWS}),
    ("lane without its squares", "square_sum, 2);", "square_sum, 1);", {"file": STORE}),
    ("rows past the matrix stored", "if (row >= tile.num_rows) continue;", "", {"file": STORE}),
    ("warps without rows never free a stage", "release(shared, ring.stage);", "", {"file": ROWS, "problem": SHORT}),
]

CAUGHT = [
    *planted(
        WGMMA,
        HOPPER,
        THREE,
        [
            *OF_SHARES,
            *OF_ROWS,
            ("fragments overwritten while wgmma reads them", "wgmma::wait<1>();", "wgmma::wait<2>();"),
            (
                "stage freed while it is multiplied",
                "!first) Base::release(shared_, ring_.previous());",
                "!first) Base::release(shared_, ring_.stage);",
                {"problem": DEEP},
            ),
            ("panel of weights of the other half", "(2 * ring_.stage + half)", "(2 * ring_.stage + 1 - half)"),
            ("sums taken before they are there", "wgmma::wait<0>();", ""),
        ],
    ),
    *planted(
        MMA,
        SM120,
        THREE,
        [
            *OF_SHARES,
            *OF_ROWS,
            ("columns of the next eight", "lane / 16 * 8", "(1 - lane / 16) * 8"),
            ("panel of the first half alone", "[step / Base::kPanelSteps]", "[0]"),
            ("step of a panel", "step % Base::kPanelSteps * 32)", "step % 2 * 32)"),
            ("stage never freed", "Base::release(shared_, ring_.stage);", "", {"problem": DEEP}),
        ],
    ),
    *planted(
        UMMA,
        SM100,
        THREE,
        [
            *OF_SHARES,
            (
                "buffer stored to while it is read",
                "mbarrier::wait(&shared_.empty[retired_.stage], retired_.parity);",
                "",
                {"problem": DEEP},
            ),
            ("products of rows not there yet", "mbarrier::wait(&shared_.ready[ring_.stage], ring_.parity);", ""),
            ("stores not fenced", f"{WAIT_STORES}\n            {FENCE}", WAIT_STORES),
            ("chunk of a row unswizzled", "row[chunk ^ row_ % 8]", "row[chunk]"),
            ("elements of a pair changed", "i % 2 == 0 ? pairs", "i % 2 == 1 ? pairs"),
            ("squares of odd elements left out", "squares_[0] + squares_[1];", "squares_[0];"),
            ("sums read before the products are over", "mbarrier::wait(&shared_.sums, sums_parity_);", ""),
            ("sums of the tile before", "accumulate || step > 0", "true"),
            ("tensor memory kept", "if (warp_ == 0) tcgen05::free<tcgen05::kNumColumns>(shared_.tensor_memory);", ""),
        ],
    ),
]

NOT_CAUGHT = planted(
    UMMA,
    SM100,
    THREE,
    [
        ("stores not waited for", WAIT_STORES, "", {"reason": "the emulator stores to tensor memory at once"}),
        (
            "gone before the last commit",
            "mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);",
            "",
            {"reason": "in the emulator commits arrive in order, and the last one, of the sums, is waited for"},
        ),
    ],
)
