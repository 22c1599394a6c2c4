"""Faults in the GEMMs of sm_100."""

from __future__ import annotations

from kernel_fault import (
    BLOCKS,
    LOADER,
    LOADER_BYTES,
    LOADER_WAIT,
    LONG,
    SOURCES,
    TAILS,
    TCGEN05,
    WEIGHT_BATCH,
    WIDE_TILE,
    planted,
)
from launches import Problem
from planting import Kernel

MAINLOOP, STORE, KERNEL = "mainloop/umma.cuh", "epilogue/store_sm100.cuh", "kernel/sm100.cuh"
SCALES = {"file": "mainloop/umma_scales.cuh"}

M16 = Kernel("100a", "m16n128k256_f32")
M32 = Kernel("100a", "m32n128k256_f32")
M128 = Kernel("100a", "m128n128k256_f32")
M256 = Kernel("100a", "m256n128k256_f32")

READY = "kMovesScales ? &shared_.ready[ring_.stage] : &shared_.full[ring_.stage]"
FULL_WAIT = f"mbarrier::wait({READY}, ring_.parity);"
SCALES_WHOLE = "if (Operands::SCALES_PER_STEP == 1 || depth % Operands::STEP_K == 0) return;"
ACCUMULATE = "first_column_, accumulate || step > 0);"
INIT_FREED = "mbarrier::init(&shared.accumulator_empty[i], num_readers);"

PIPELINE = planted(
    MAINLOOP,
    M16,
    TAILS,
    [
        ("full wait missing", FULL_WAIT, ""),
        ("full wait of the other parity", FULL_WAIT, FULL_WAIT.replace("ring_.parity", "ring_.parity ^ 1")),
        (
            "empty wait missing",
            LOADER_WAIT,
            "load_weights",
            {"file": LOADER, "problem": Problem((0, 8, 8, 9), 136, 1120)},
        ),
        ("stage not committed", "tcgen05::commit(&shared_.empty[ring_.stage]);", ""),
        ("fewer bytes expected", LOADER_BYTES, LOADER_BYTES.replace("STAGE", "STAGE - 512"), {"file": LOADER}),
        ("every lane issues", "if (elect_one()) issue_stage(kSteps,", "issue_stage(kSteps,"),
        (
            "no proxy fence after the padding",
            "        mbarrier::fence_async_proxy();\n        __syncwarp();",
            "        __syncwarp();",
            SCALES,
        ),
        (
            "accumulator empty wait missing",
            "mbarrier::wait(&shared_.accumulator_empty[accumulator_.stage], accumulator_.parity);",
            "",
        ),
        ("accumulator not committed", "tcgen05::commit(&shared_.accumulator_full[accumulator_.stage]);", ""),
        ("freed by fewer threads", INIT_FREED, INIT_FREED.replace("readers", "readers - 32")),
    ],
)

OPERANDS = planted(
    MAINLOOP,
    M16,
    TAILS,
    [
        ("scale padding not cleared", SCALES_WHOLE, "return;", SCALES),
        (
            "scale padding of tokens not cleared",
            "token_scales[i][atom])[kHalves * word + half] = 0;",
            "token_scales[i][atom])[kHalves * word + half] |= 0;",
            SCALES,
        ),
        ("products added to the tile before", ACCUMULATE, "first_column_, true);", SCALES),
        ("products of the block before lost", ACCUMULATE, "first_column_, step > 0);", SCALES),
        ("products of the last block alone", "full_blocks > 0);", "false);"),
        ("operand stride of 4 rows", "kStride = 1024 >> 4", "kStride = 512 >> 4", {"file": TCGEN05}),
        ("64-byte swizzle", "kSwizzle128 = 2;", "kSwizzle128 = 4;", {"file": TCGEN05}),
        ("scale stride of 16 rows", "kStride = 128 >> 4", "kStride = 256 >> 4", {"file": TCGEN05}),
        (
            "scales of the operands swapped",
            "weight_columns, token_columns + first_column_, accumulate",
            "token_columns + first_column_, weight_columns, accumulate",
            SCALES,
        ),
        (
            "second block of token scales over the first",
            "token_columns + atom * Columns::kAtomColumns,",
            "token_columns,",
            {**SCALES, "kernel": M256, "problem": WIDE_TILE},
        ),
        (
            "weight scales not copied",
            "tcgen05::copy_scales(weight_columns,",
            "if (step < 0) tcgen05::copy_scales(weight_columns,",
            SCALES,
        ),
        ("weight scales of the first step", "weight_scales_ + (word * kAtomBytes >> 4)", "weight_scales_", SCALES),
        ("tokens of the first step", "tokens + (step * Operands::STEP_BYTES >> 4),", "tokens,", SCALES),
        (
            "one accumulator for two tiles",
            "tensor_memory_ + accumulator_.stage * Columns::kSecondAccumulator;",
            "tensor_memory_;",
        ),
        ("last step of k missing", "ceil_div(depth, kStepK) - full_blocks", "depth / kStepK - full_blocks"),
        ("too few columns", "ceil_div(tile.num_rows, 16) * 16", "(tile.num_rows + 7) / 16 * 16"),
        (
            "columns rounded down",
            "ceil_div(tile.num_rows, 16) * 16)",
            "tile.num_rows / 16 * 16)",
            {"kernel": M32, "problem": Problem((17, 16), 136, 352)},
        ),
        ("scale word of the first tile", "return scale_row % 32 * 4;", "return 0;", SCALES),
        ("scale column of the first 32 rows", "if (word != 0) {", "if (false) {", {**SCALES, "problem": LONG}),
        (
            "scale column of the first 64 rows",
            "token_columns + first_column_,",
            "token_columns,",
            {**SCALES, "kernel": Kernel("100a", "m64n128k256_f32"), "problem": BLOCKS},
        ),
        (
            "scale box not aligned to 16 bytes",
            "return scale_row % 32 * 4;",
            "return scale_layout::word(scale_row);",
            {**SCALES, "problem": LONG},
        ),
        (
            "no proxy fence after scales are moved",
            "            mbarrier::fence_async_proxy();\n        }\n",
            "        }\n",
            {**SCALES, "problem": Problem((0, 43, 0, 7), 24, 128)},
        ),
        (
            "scales moved before they arrive",
            "mbarrier::wait(&shared.full[ring.stage], ring.parity);",
            "",
            {"problem": LONG},
        ),
        (
            "moved scales not waited for",
            READY,
            "&shared_.full[ring_.stage]",
            {"problem": LONG},
        ),
        ("weights of the first expert", WEIGHT_BATCH, WEIGHT_BATCH.replace("matrix(tile)", "0"), {"file": SOURCES}),
        ("weight scales of the first expert", "tile.batch * weight_atoms_ +", "weight_atoms_ +", {"file": SOURCES}),
    ],
)

# Two accumulators that share columns.
OVERLAP = {"kernel": M256, "problem": Problem((256,) * 4, 8, 32, 1)}
WAIT_LOADS = "        tcgen05::wait_loads();\n"
READ_OVERLAP = (
    "        uint32_t values[kCount][kChunk];\n"
    "#pragma unroll\n"
    "        for (int i = 0; i < kCount; ++i)\n"
    "            if (first + i * kChunk < num_rows) tcgen05::load(values[i], source + first + i * kChunk);\n"
)
FREE_OVERLAP = f"{WAIT_LOADS}        tcgen05::fence_before_sync();\n        mbarrier::arrive(&empty[stage ^ 1]);\n"

ACCUMULATORS = planted(
    KERNEL,
    M16,
    TAILS,
    [
        ("accumulator full wait missing", "mbarrier::wait(&full[accumulator.stage], accumulator.parity);", ""),
        (
            "accumulator freed before it is read",
            "if (freed != nullptr && begin + kChunk >= end) {",
            "if (freed != nullptr && begin == 0) {",
            {"kernel": M128, "problem": Problem((128,) * 4, 8, 32, 1)},
        ),
        ("accumulator never freed", "mbarrier::arrive(freed);", "", {"problem": Problem((8, 8, 8, 8, 8), 8, 32)}),
        (
            "overlap freed at once",
            f"{READ_OVERLAP}{FREE_OVERLAP}",
            f"{FREE_OVERLAP}{READ_OVERLAP}        tcgen05::wait_loads();\n",
            OVERLAP,
        ),
        (
            "overlap of the first read after it is freed",
            "min(num_rows, Columns::kSecondAccumulator), nullptr);",
            "num_rows, nullptr);",
            OVERLAP,
        ),
        (
            "overlap of the second read after it is freed",
            "drain(output, source, Columns::kOverlapColumns, num_rows, nullptr);",
            "drain(output, source, 0, num_rows, nullptr);",
            OVERLAP,
        ),
        ("the wrong overlap read", "stage == 0 ? Columns::kSecondAccumulator : 0;", "0;", OVERLAP),
        ("the wrong accumulator freed", "&empty[stage ^ 1]", "&empty[stage]", OVERLAP),
        (
            "lanes of the first warp",
            "Columns::kSecondAccumulator + (warp * 32 << 16);",
            "Columns::kSecondAccumulator;",
        ),
        (
            "tensor memory freed while in use",
            "            __syncthreads();\n        }\n",
            "        }\n",
        ),
        ("tensor memory not freed", "if (warp == kTensorMemoryWarp) Mainloop::free(", "if (false) Mainloop::free("),
        ("tensor memory used before it is there", "barrier_of<32 * (kNumWarps - 1)>();", ""),
        (
            "no wait for tensor memory loads",
            "Columns::kPartColumns + begin);\n            tcgen05::wait_loads();",
            "Columns::kPartColumns + begin);",
        ),
        ("half of tensor memory", "allocate<tcgen05::kNumColumns>", "allocate<256>", {"file": MAINLOOP}),
        (
            "no fence after the barrier",
            "accumulator.parity);\n                tcgen05::fence_after_sync();",
            "accumulator.parity);",
        ),
        (
            "no fence before the barrier",
            "tcgen05::fence_before_sync();\n                mbarrier::arrive(freed);",
            "mbarrier::arrive(freed);",
        ),
    ],
)

EPILOGUE = planted(
    STORE,
    M16,
    TAILS,
    [
        ("output not turned", "[token * 32 + lane] =", "[lane * kChunk + token] ="),
        ("no row guard", "if (row < num_rows_ && column < num_columns_)", "if (column < num_columns_)"),
        ("one row too many", "if (row < num_rows_ && column", "if (row <= num_rows_ && column"),
        ("no column guard", "if (row < num_rows_ && column < num_columns_)", "if (row < num_rows_)"),
        ("alpha of the next expert", "params.factor(tile.batch)", "params.factor(tile.batch + 1)"),
        (
            "no warp barrier in the staging",
            "convert<Out>(value);\n            }\n            __syncwarp();",
            "convert<Out>(value);\n            }",
        ),
    ],
)

CAUGHT = [*PIPELINE, *OPERANDS, *ACCUMULATORS, *EPILOGUE]

NOT_CAUGHT = planted(
    MAINLOOP,
    M16,
    TAILS,
    [
        (
            "scales copied over those in use",
            "mbarrier::wait(&shared_.empty[retired_.stage], retired_.parity);",
            "",
            {
                "kernel": M256,
                "problem": Problem((200,), 24, 1504, 1),
                "reason": "copies and products run in the order of issue, which kernels in use rely on, too",
            },
        ),
        (
            "no wait for the last commits",
            "i < kNumStages; ++i) {\n            mbarrier::wait(&shared_.empty",
            "i < 0; ++i) {\n            mbarrier::wait(&shared_.empty",
            {"file": LOADER, "reason": "the commit of the accumulator, which is waited for, is the last of the queue"},
        ),
        (
            "overlap freed before it is in registers",
            f"{READ_OVERLAP}{FREE_OVERLAP}",
            f"{READ_OVERLAP}{FREE_OVERLAP.replace(WAIT_LOADS, '')}{WAIT_LOADS}",
            {
                "file": KERNEL,
                **OVERLAP,
                "reason": "a write must come before the wait for the loads, which is the next instruction, to be seen",
            },
        ),
    ],
)
