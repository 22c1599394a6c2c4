"""Faults in the GEMMs of sm_90."""

from __future__ import annotations

from kernel_fault import FP4, LOADER, LOADER_WAIT, MIDDLE, SOURCES, WEIGHT_ROWS, WGMMA, planted
from launches import Problem
from planting import Kernel

MAINLOOP, DEQUANT = "mainloop/wgmma_dequant.cuh", "mainloop/dequant_fp4.cuh"
TOKEN_COUNT = "mainloop/token_count.cuh"
STORE, HAND_OVER, SWIGLU = (
    f"epilogue/{name}.cuh" for name in ("store_sm90", "swiglu_quantize_sm90", "swiglu_quantize")
)
KERNEL = "kernel/sm90.cuh"

M16 = Kernel("90a", "m16n128k256_f32")
M64 = Kernel("90a", "m64n256k256_f32")
M256 = Kernel("90a", "m256n128k128_f32")

BEFORE_GROUPS = (
    "                const int num_groups = groups_in_block(k, k_end);\n"
    "                for (int group = 0; group < num_groups; ++group) {\n"
)
PREVIOUS_FREED = "&& !first_slot)\n                    mbarrier::arrive(&shared_.empty_slot[slots_.previous()]);"
SLOT_FULL = "if (lane == 0) mbarrier::arrive(&shared.full_slot[slots.stage]);"

PIPELINE = planted(
    MAINLOOP,
    M16,
    MIDDLE,
    [
        (
            "tokens read before they arrive",
            "mbarrier::wait(&shared.full[ring.stage], ring.parity);",
            "",
        ),
        (
            "weights read before they arrive",
            "mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);",
            "",
        ),
        ("slot read before it is full", "mbarrier::wait(&shared_.full_slot[slots_.stage], slots_.parity);", ""),
        ("slot filled while it is read", "mbarrier::wait(&shared.empty_slot[slots.stage], slots.parity ^ 1);", ""),
        (
            "stage filled while it is read",
            LOADER_WAIT,
            "load_weights",
            {"file": LOADER, "problem": Problem((8, 8, 8), 136, 1120)},
        ),
        (
            "stage released before its tokens are read",
            BEFORE_GROUPS,
            "                if (lane == 0) mbarrier::arrive(&shared.empty[ring.stage]);\n" + BEFORE_GROUPS,
        ),
        ("stage of the other parity", LOADER_WAIT, LOADER_WAIT.replace(" ^ 1", ""), {"file": LOADER}),
        ("no wait between products", "wgmma::wait<1>();", ""),
        (
            "one product too many in flight",
            "wgmma::wait<1>();",
            "wgmma::wait<2>();",
            {"problem": Problem((16, 16, 16), 136, 1120, 1)},
        ),
        ("last product in flight", "wgmma::wait<0>();", "wgmma::wait<1>();"),
        ("no proxy fence before wgmma", "mbarrier::fence_async_proxy();", ""),
        ("products not committed", "wgmma::commit();", ""),
        ("accumulators read in flight", "wgmma::wait<0>();", ""),
        ("no wgmma fence", "wgmma::fence();", ""),
        ("slot freed while it is multiplied", PREVIOUS_FREED, PREVIOUS_FREED.replace("previous()", "stage")),
        ("slot never freed", PREVIOUS_FREED, "&& !first_slot) {}"),
        ("last slot never freed", "if (lane == 0) mbarrier::arrive(&shared_.empty_slot[slots_.previous()]);", ""),
        (
            "slot full before it is written",
            f"{SLOT_FULL}\n                    slots.advance();",
            f"slots.advance();\n                    {SLOT_FULL}",
        ),
        (
            "empty expects a warp less",
            "kNumTokenWarps + kNumConsumerWarps);",
            "kNumTokenWarps + kNumConsumerWarps - 1);",
        ),
        (
            "slot full of a warp less",
            "mbarrier::init(&shared.full_slot[s], kNumTokenWarps);",
            "mbarrier::init(&shared.full_slot[s], kNumTokenWarps - 1);",
        ),
    ],
)

OPERANDS = planted(
    MAINLOOP,
    M16,
    MIDDLE,
    [
        (
            "scale padding of weights not cleared",
            "if (group * GROUP_K + threadIdx.x % 4 * 32 >= remaining_k) scale[t][i] = 0;",
            "",
        ),
        ("scale factor of the format forgotten", "sum *= fp4::kDescale;", "sum *= 1.0f;"),
        ("both halves from one panel", "tokens + k_step / 4 * (PANEL_BYTES >> 4)", "tokens"),
        ("step of k mistaken", "+ k_step % 4 * 2,", "+ (k_step ^ 1) % 4 * 2,"),
        ("products of the slot before lost", "k_step || !first_slot", "k_step"),
        ("scales of the even chunk", "scale_layout::word(row) * 4 + l % 2 * 2;", "scale_layout::word(row) * 4;"),
        ("k tail of a block missing", "ceil_div(k_end - k, GROUP_K));", "(k_end - k) / GROUP_K);"),
        ("scale row of a narrow box counted twice", "scale_row % 128 & ~31", "scale_row % 128"),
        (
            "token scales of the first tile",
            "TOKEN_SCALE_ROWS < 32 ? scale_row % 32 * 4 : 0;",
            "0;",
        ),
        ("weight scales of the first expert", "tile.batch * weight_atoms_ +", "weight_atoms_ +", {"file": SOURCES}),
        ("descriptor stride of 4 rows", "uint64_t{1024 >> 4} << 32", "uint64_t{512 >> 4} << 32", {"file": WGMMA}),
    ],
)

DEQUANTISATION = planted(
    DEQUANT,
    M16,
    MIDDLE,
    [
        ("scale padding of tokens not cleared", "if (i * 32 >= remaining_k) scale[i] = 0;", ""),
        ("panel written without its swizzle", "(((word * 4 + i) ^ (token & 7)) << 4)", "((word * 4 + i) << 4)"),
        ("packed rows without swizzle", "chunk ^ (kRowBytes == 128 ? row & 7 : row >> 1 & 3)", "chunk"),
        (
            "swizzle of 64-byte rows mistaken",
            "row & 7 : row >> 1 & 3)",
            "row & 7 : row & 3)",
            {"kernel": M256, "problem": Problem((5,), 136, 96)},
        ),
        ("scale of one half", "half ? 0x4431 : 0x4420", "0x4420"),
        (
            "scale halves swapped",
            "first < 2 ? fp4::broadcast_low(scale[row]) : fp4::broadcast_high(scale[row]);",
            "first < 2 ? fp4::broadcast_high(scale[row]) : fp4::broadcast_low(scale[row]);",
        ),
        (
            "nibbles of a pair swapped",
            "((packed << 4) & 0x80808080u) | ((packed << 1) & 0x0E0E0E0Eu)",
            "((packed << 4) & 0x80808080u) | ((packed >> 3) & 0x0E0E0E0Eu)",
            {"file": FP4},
        ),
    ],
)

# A row more than the smaller number of tokens that is multiplied, and than two jobs of the warps that prepare tokens.
FEW_OF_MANY = Problem((64, 33), 264, 992, 1)

ROWS_OF_TILE = planted(
    TOKEN_COUNT,
    M64,
    FEW_OF_MANY,
    [
        ("token count rounded down", "rows, 0) > kMost - kStep)", "rows, 0) >= kMost)"),
        ("one row fewer counted", "rows, 0) > kMost - kStep)", "rows - 1, 0) > kMost - kStep)"),
        (
            "jobs rounded down",
            "ceil_div(tiles.tile().num_rows, dequant::TOKENS_PER_JOB);",
            "tiles.tile().num_rows / dequant::TOKENS_PER_JOB;",
            {"file": MAINLOOP},
        ),
        (
            "rows of a slot never written",
            "unwritten > 0 ? JOBS_PER_SLOT : num_jobs;",
            "num_jobs;",
            {"file": MAINLOOP, "problem": Problem((33,), 264, 992, 1)},
        ),
    ],
)

GUARD = "if (first + token < num_tokens && column + part < num_columns)"

EPILOGUE = planted(
    STORE,
    M16,
    MIDDLE,
    [
        ("no row guard", GUARD, "if (column + part < num_columns)"),
        ("one row too many", GUARD, GUARD.replace("< num_tokens", "<= num_tokens")),
        ("no column guard", GUARD, "if (first + token < num_tokens)"),
        ("alpha of the first expert", "params_.factor(tile.batch)", "params_.factor(0)"),
        ("rows not permuted back", "row = WeightRows::permuted(lane / 4)", "row = lane / 4"),
        (
            "no warp barrier in the staging",
            "alpha, bias, lane);\n                    __syncwarp();",
            "alpha, bias, lane);",
        ),
    ],
)

FUSED = planted(
    HAND_OVER,
    Kernel("90a", "m32n256k256", "grouped_fp4_swiglu"),
    Problem((0, 1, 43, 0, 29), 288, 608),  # more chunks than the ring holds
    [
        ("chunk full before all have written", "full[warpgroup][s], 128)", "full[warpgroup][s], 96)"),
        (
            "chunk written before it is free",
            "mbarrier::wait_together(&shared_.empty[warpgroup][ring_.stage], ring_.parity ^ 1);",
            "",
        ),
        ("chunk read before it is full", "mbarrier::wait(&shared.full[warpgroup][stage], ring.parity);", ""),
        ("chunk never freed", "mbarrier::arrive(&shared.empty[warpgroup][stage]);", ""),
        ("chunk free before all have read", "empty[warpgroup][s], 32)", "empty[warpgroup][s], 16)"),
        ("chunk read without its swizzle", "place = chunk_place(group, token);", "place = token * CHUNK_ROW_BYTES;"),
        ("gate taken for up", "swap ? 0x1032 : 0x3210", "0x3210"),
        ("fused alpha of the first expert", "__ldcg(params.alpha + tile.batch)", "params.alpha[0]"),
        (
            "scales of a row too far",
            "(first ^ t * 16) + i * 256",
            "first + t * 16 + i * 256",
            {"file": WEIGHT_ROWS},
        ),
        ("group of the other warpgroup", "+ warpgroup * GROUPS + group;", "+ group;"),
        (
            "weight of a row of the first tile",
            "epilogue_.row_weight[tile_.row + token]",
            "epilogue_.row_weight[token]",
            {"file": SWIGLU},
        ),
        (
            "fused row too many",
            "if (token >= tile_.num_rows) return;",
            "if (token > tile_.num_rows) return;",
            {"file": SWIGLU},
        ),
        (
            "neighbours of 64-byte rows mistaken",
            "kRowBytes + 16 : kRowBytes)",
            "kRowBytes + 16 : kRowBytes + 16)",
            {
                "file": WEIGHT_ROWS,
                "kernel": Kernel("90a", "m128n256k128", "grouped_fp4_swiglu"),
                "problem": Problem((5,), 32, 96),
            },
        ),
    ],
)

AHEAD = planted(
    LOADER,
    M64,
    Problem((0, 1, 70, 0, 7, 0), 264, 992, prefetch="weights"),  # four blocks of k for three stages
    [
        (
            "more blocks ahead than a tile has",
            "min(kNumStages, ceil_div(tile.k_end - tile.k_begin, BLOCK_K))",
            "kNumStages",
            {"problem": Problem((0, 1, 70, 0, 7, 0), 264, 352, prefetch="weights")},
        ),
        ("another block ahead", "tile.k_begin + ahead_ * BLOCK_K)", "tile.k_begin + (ahead_ ^ 1) * BLOCK_K)"),
        ("weights ahead loaded again", "ahead-- <= 0", "ahead-- <= 1"),
        ("weights ahead not counted down", "ahead-- <= 0", "ahead <= 0"),
        ("weights ahead in one stage", "load_weights(tile, ahead_, ", "load_weights(tile, 0, "),
    ],
)

CAUGHT = [*PIPELINE, *OPERANDS, *DEQUANTISATION, *ROWS_OF_TILE, *EPILOGUE, *FUSED, *AHEAD]

NOT_CAUGHT = planted(
    KERNEL,
    M16,
    MIDDLE,
    [
        (
            "no fence after mbarrier init",
            "mbarrier::fence_init();",
            ";",
            {"reason": "inside a CTA the barrier that follows orders it, and compilers leave the fence out"},
        ),
    ],
)
