"""Faults in the GEMMs of sm_120."""

from __future__ import annotations

from kernel_fault import (
    BLOCKS,
    LDMATRIX,
    LOADER,
    LOADER_BYTES,
    LOADER_WAIT,
    LONG,
    MBARRIER,
    NARROW,
    OUTPUT,
    RING,
    SMALL,
    SOURCES,
    WEIGHT_BATCH,
    WHOLE,
    WIDE_TILE,
    planted,
)
from launches import Problem
from planting import Kernel

MAINLOOP, STORE, KERNEL = "mainloop/mma_sync.cuh", "epilogue/store_sm120.cuh", "kernel/sm120.cuh"
SCALES = {"file": "mainloop/mma_scales.cuh"}

M8 = Kernel("120a", "m8n128k256_f32")
M16 = Kernel("120a", "m16n128k256_f32")
M32 = Kernel("120a", "m32n128k256_f32")
M256 = Kernel("120a", "m256n128k128_f32")

RELEASE = "if (threadIdx.x % 32 == 0) mbarrier::arrive(&shared_.empty[ring_.stage]);"
NEXT_WAIT = "if (!kLast) mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);"
CLEAR_PADDING = "if (kLast) current.scales.clear_padding(k, step, k_end);"
INIT_EMPTY = "mbarrier::init(&shared.empty[stage], Slots::kNumWarps);"

PIPELINE = planted(
    MAINLOOP,
    M8,
    SMALL,
    [
        (
            "first full wait missing",
            "scales.begin(tile);\n            mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);",
            "scales.begin(tile);",
        ),
        ("next full wait missing", NEXT_WAIT, ""),
        ("full wait of the other parity", NEXT_WAIT, NEXT_WAIT.replace("ring_.parity", "ring_.parity ^ 1")),
        ("empty wait missing", LOADER_WAIT, "load_weights", {"file": LOADER, "problem": NARROW}),
        ("empty wait of the other parity", LOADER_WAIT, LOADER_WAIT.replace(" ^ 1", ""), {"file": LOADER}),
        (
            "the next stage released",
            f"            {RELEASE}\n            ring_.advance();",
            f"            ring_.advance();\n            {RELEASE}",
            {"kernel": M8, "problem": Problem(NARROW.counts, 136, 1376)},  # more blocks than stages
        ),
        (
            "stage released before its last step",
            "                if (last_step) {\n                    release();",
            "                if (step == 0 && threadIdx.x % 32 == 0) mbarrier::arrive(&shared_.empty[ring_.stage]);\n"
            "                if (last_step) {\n                    ring_.advance();",
            {"kernel": M32, "problem": Problem((32,) * 4, 128, 1120, 1)},
        ),
        ("stage never released", RELEASE, "", {"problem": NARROW}),
        ("stage released by all lanes", RELEASE, "mbarrier::arrive(&shared_.empty[ring_.stage]);"),
        ("empty expects one warp more", INIT_EMPTY, INIT_EMPTY.replace("s);", "s + 1);"), {"problem": NARROW}),
        ("empty expects one warp less", INIT_EMPTY, INIT_EMPTY.replace("s);", "s - 1);"), {"problem": NARROW}),
        ("fewer bytes expected", LOADER_BYTES, LOADER_BYTES.replace("STAGE", "STAGE - 16"), {"file": LOADER}),
        ("no bytes expected", LOADER_BYTES, LOADER_BYTES.replace("Mainloop::BYTES_PER_STAGE", "0"), {"file": LOADER}),
        ("parity never turns", "stage = 0;\n            parity ^= 1;", "stage = 0;", {"file": RING, "problem": NARROW}),
        ("no warp barrier before the release", "__syncwarp();  // every lane has read the stage", ""),
        ("try_wait not repeated", '"@!done bra WAIT;\\n"', "", {"file": MBARRIER}),
    ],
)

OPERANDS = planted(
    MAINLOOP,
    M8,
    SMALL,
    [
        ("scale padding not cleared", CLEAR_PADDING, ""),
        ("scale padding of tokens not cleared", "for (uint32_t& scale : tokens) scale &= mask;", "", SCALES),
        ("weights of the first expert", WEIGHT_BATCH, WEIGHT_BATCH.replace("matrix(tile)", "0"), {"file": SOURCES}),
        (
            "a partial scale block not counted",
            "weight_atoms_(ceil_div(num_columns, ATOM_ROWS))",
            "weight_atoms_(num_columns / ATOM_ROWS)",
            {"file": SOURCES},
        ),
        (
            "k tail not loaded",
            "k < end; k += BLOCK_K) {",
            "k + BLOCK_K <= end; k += BLOCK_K) {",
            {"file": LOADER},
        ),
        ("last block of k twice", "for (; k + BLOCK_K < k_end;", "for (; k + BLOCK_K <= k_end;", {"problem": WHOLE}),
        (
            "accumulators kept from the tile before",
            "        for (; tiles.wait(); tiles.release()) {\n"
            "            typename Mainloop::Accumulators accumulators = {};",
            "        typename Mainloop::Accumulators accumulators = {};\n"
            "        for (; tiles.wait(); tiles.release()) {",
            {"file": KERNEL},
        ),
        (
            "swizzle of half the lines",
            "line % (ROW_BYTES / 16) * 16",
            "line % (ROW_BYTES / 32) * 16",
            {"file": LDMATRIX},
        ),
        (
            "scales of the operands swapped",
            "weights[t], tokens[j],",
            "tokens[j], weights[t],",
            SCALES,
        ),
        (
            "step of k mistaken",
            "swizzled<ROW_BYTES>(2 * t, step * Operands::STEP_BYTES)",
            "swizzled<ROW_BYTES>(2 * t, (step ^ 1) * Operands::STEP_BYTES)",
            {"file": "mainloop/mma_fragments.cuh"},
        ),
        ("scale word of the first tile", "return scale_row % 32 * 4;", "return 0;", SCALES),
        (
            "scale word of the first 32 rows",
            "tokens += tile.scale_row / 32 % 4;",
            "tokens += 0;",
            {**SCALES, "problem": LONG},
        ),
        (
            "first scale block of an expert",
            "tile.scale_row / ATOM_ROWS);",
            "(tile.scale_row - ATOM_ROWS) / ATOM_ROWS);",
            {"file": SOURCES, "problem": BLOCKS},
        ),
        (
            "weight scales of the first mma tile",
            "[offsets.weights ^ scale_layout::word(2 * t)]",
            "[offsets.weights]",
            SCALES,
        ),
        (
            "second atom of token scales at the first",
            "stage.token_scales[first / 4]",
            "stage.token_scales[0]",
            {**SCALES, "kernel": M256, "problem": WIDE_TILE},
        ),
        (
            "token tiles rounded down",
            "ceil_div(max(num_tokens, 0), kTokenStep * kPair)",
            "max(num_tokens, 0) / (32 * kPair)",
            {"file": "layout/weight_slots.cuh"},
        ),
        (
            "one row fewer multiplied",
            "static_cast<int>(Slots::first_token(place_.warp_m, 0));",
            "static_cast<int>(Slots::first_token(place_.warp_m, 0)) - 1;",
        ),
        (
            "stages of skipped tiles not released",
            "ring_.parity);\n                release();",
            "ring_.parity);\n                ring_.advance();",
            {"kernel": M32, "problem": NARROW},
        ),
    ],
)

EPILOGUE = planted(
    STORE,
    M8,
    SMALL,
    [
        ("no column guard", "column < num_columns ? tile.num_rows - first_token : 0", "tile.num_rows - first_token"),
        ("no row guard", "if (token < num_tokens) {", "{"),
        ("one row too many", "if (token < num_tokens) {", "if (token <= num_tokens) {"),
        ("alpha of the first expert", "params.factor(tile.batch)", "params.factor(0)"),
        ("outputs in the order of slots", "store(row, values, Slots::order(place.g));", "store(row, values, 0);"),
        (
            "halves of packed bf16 swapped",
            'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));',
            'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(low), "f"(high));',
            {"file": OUTPUT, "kernel": Kernel("120a", "m8n128k256_bf16")},
        ),
    ],
)

CAUGHT = [*PIPELINE, *OPERANDS, *EPILOGUE]
