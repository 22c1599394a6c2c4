"""Single faults in the kernels: what somebody writing them could have got wrong.

Each is caught by a check of the emulator, by a deadlock, or by a wrong result. ``NOT_CAUGHT`` lists those that are not,
and why; they are run as well, and counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from planting import Problem

SM90, SM100, SM120 = (f"grouped_fp4/{name}.cu.j2" for name in ("sm90", "sm100", "sm120"))


@dataclass(frozen=True)
class Fault:
    """A replacement in a file under templates/, and the kernel and problem that show it."""

    name: str
    file: str
    old: str
    new: str
    arch: str
    variant: str
    problem: Problem
    reason: str = ""  # why it is not caught

    @property
    def id(self) -> str:
        return f"{self.arch}-{self.name}".replace(" ", "_")


# Empty experts, one row, a row tile and some rows, nearly a row tile; tails of N and K; K ends inside a word of scales.
NARROW = Problem((0, 1, 11, 0, 7, 0), 136, 608)
SMALL = Problem((0, 1, 11, 0, 7, 0), 136, 352)
WHOLE = Problem((3, 9), 128, 512)  # K fills its blocks
LONG = Problem((0, 43, 0, 7), 24, 96)  # rows beyond the first 32 of a scale block
BLOCKS = Problem((0, 137, 3), 8, 96)  # rows beyond the first scale block
MANY = Problem((1,) * 40, 8, 32)  # more experts than lanes
WIDE_TILE = Problem((0, 1, 259, 0, 120, 0), 136, 352)
MIDDLE = Problem((0, 1, 19, 0, 15, 0), 136, 608)


def _of(file: str, arch: str, variant: str, problem: Problem, faults: list[tuple]) -> list[Fault]:
    """Faults (name, old, new, and what differs: file, variant, problem or reason) of one kernel."""
    found = []
    for name, old, new, *rest in faults:
        different = rest[0] if rest else {}
        fields = {"file": file, "variant": variant, "problem": problem} | different
        found.append(Fault(name, old=old, new=new, arch=arch, **fields))
    return found


MBARRIER, SCHEDULER, OUTPUT = "device/mbarrier.cuh", "device/scheduler.cuh", "device/output.cuh"

CAUGHT_120 = _of(
    SM120,
    "120a",
    "m8n128k256_f32",
    SMALL,
    [
        (
            "first full wait missing",
            "atom rows\n        mbarrier::wait(&storage.full[pipeline.stage], pipeline.parity);",
            "atom rows\n",
        ),
        ("next full wait missing", "if (!kLast) mbarrier::wait(&storage.full[pipeline.stage], pipeline.parity);", ""),
        (
            "full wait of the other parity",
            "if (!kLast) mbarrier::wait(&storage.full[pipeline.stage], pipeline.parity);",
            "if (!kLast) mbarrier::wait(&storage.full[pipeline.stage], pipeline.parity ^ 1);",
        ),
        (
            "empty wait missing",
            "mbarrier::wait(&storage.empty[pipeline.stage], pipeline.parity ^ 1);",
            "",
            {"problem": NARROW},
        ),
        (
            "empty wait of the other parity",
            "&storage.empty[pipeline.stage], pipeline.parity ^ 1)",
            "&storage.empty[pipeline.stage], pipeline.parity)",
        ),
        (
            "the next stage released",
            "            if (threadIdx.x % 32 == 0) mbarrier::arrive(&storage.empty[pipeline.stage]);\n"
            "            pipeline.advance();",
            "            pipeline.advance();\n"
            "            if (threadIdx.x % 32 == 0) mbarrier::arrive(&storage.empty[pipeline.stage]);",
            {"problem": NARROW},
        ),
        (
            "stage released before its last step",
            "        if (last_step) {\n            __syncwarp();  // every lane has read the "
            "stage\n            if (threadIdx.x % 32 == 0) mbarrier::arrive(&storage.empty[pipeline.stage]);",
            "        if (step == 0 && threadIdx.x % 32 == 0) mbarrier::arrive(&storage.empty[pipeline.stage]);\n"
            "        if (last_step) {",
            {"variant": "m32n128k256_f32", "problem": Problem((32,) * 4, 128, 1120, 1)},
        ),
        (
            "stage never released",
            "if (threadIdx.x % 32 == 0) mbarrier::arrive(&storage.empty[pipeline.stage]);",
            "",
            {"problem": NARROW},
        ),
        (
            "stage released by all lanes",
            "if (threadIdx.x % 32 == 0) mbarrier::arrive(&storage.empty",
            "mbarrier::arrive(&storage.empty",
        ),
        (
            "empty expects one warp more",
            "mbarrier::init(&storage.empty[stage], kNumConsumerWarps);",
            "mbarrier::init(&storage.empty[stage], kNumConsumerWarps + 1);",
            {"problem": NARROW},
        ),
        (
            "empty expects one warp less",
            "mbarrier::init(&storage.empty[stage], kNumConsumerWarps);",
            "mbarrier::init(&storage.empty[stage], kNumConsumerWarps - 1);",
            {"problem": NARROW},
        ),
        ("fewer bytes expected", "arrive_expect_tx(full, kStageBytes)", "arrive_expect_tx(full, kStageBytes - 16)"),
        ("no bytes expected", "arrive_expect_tx(full, kStageBytes)", "arrive_expect_tx(full, 0)"),
        ("scale padding not cleared", "if (kLast) clear_padding(current, k + step * MMA_K, K);", ""),
        ("scale padding of tokens not cleared", "for (uint32_t& scale : fragments.token_scales) scale &= mask;", ""),
        ("no column guard", "column < problem.N ? tile.num_rows - first_token : 0", "tile.num_rows - first_token"),
        ("no row guard", "if (token < num_tokens) store(", "store("),
        ("one row too many", "if (token < num_tokens) store(", "if (token <= num_tokens) store("),
        ("alpha of the first expert", "problem.alpha[tile.expert]", "problem.alpha[0]"),
        ("scales of the first expert", "problem.scale_offsets[tile.expert]", "problem.scale_offsets[0]"),
        ("weights of the first expert", "k / 2, tile.column_begin, tile.expert);", "k / 2, tile.column_begin, 0);"),
        (
            "a partial scale block not counted",
            "ceil_div(problem.N, scale_layout::ATOM_ROWS);",
            "problem.N / scale_layout::ATOM_ROWS;",
        ),
        ("k tail not loaded", "k < problem.K; k += BLOCK_K) {", "k + BLOCK_K <= problem.K; k += BLOCK_K) {"),
        (
            "last block of k twice",
            "for (; k + BLOCK_K < problem.K;",
            "for (; k + BLOCK_K <= problem.K;",
            {"problem": WHOLE},
        ),
        (
            "accumulators kept from the tile before",
            "    while (schedule.next(tile)) {\n        Accumulators accumulators = {};",
            "    Accumulators accumulators = {};\n    while (schedule.next(tile)) {",
        ),
        (
            "swizzle of half the lines",
            "line % (ROW_BYTES / 16) * 16",
            "line % (ROW_BYTES / 32) * 16",
            {"file": "device/ldmatrix.cuh"},
        ),
        (
            "scales of the operands swapped",
            "current.weight_scales[t], current.token_scales[j]);",
            "current.token_scales[j], current.weight_scales[t]);",
        ),
        (
            "step of k mistaken",
            "const uint32_t step_bytes = step * MMA_K / 2;",
            "const uint32_t step_bytes = (step ^ 1) * MMA_K / 2;",
        ),
        ("outputs in the order of slots", "problem.N, values, slot_order(place.g));", "problem.N, values, 0);"),
        ("scale word of the first tile", "scale_row % 32 * 4, k / MMA_K,", "0, k / MMA_K,"),
        (
            "scale word of the first 32 rows",
            "tile_offsets.token_scales += tile.row_in_expert / 32 % 4;",
            "",
            {"problem": LONG},
        ),
        (
            "first scale block of an expert",
            "scale_row / scale_layout::ATOM_ROWS + i);",
            "problem.scale_offsets[tile.expert] / scale_layout::ATOM_ROWS + i);",
            {"problem": BLOCKS},
        ),
        (
            "weight scales of the first mma tile",
            "[offsets.weight_scales ^ scale_layout::word(2 * t)]",
            "[offsets.weight_scales]",
        ),
        (
            "halves of packed bf16 swapped",
            'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));',
            'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(low), "f"(high));',
            {"file": OUTPUT, "variant": "m8n128k256_bf16"},
        ),
        (
            "second box of tokens at the first",
            "tile.row_begin + i * LOAD_M);",
            "tile.row_begin);",
            {"variant": "m256n128k128_f32", "problem": WIDE_TILE},
        ),
        ("parity never turns", "parity ^= 1;", "", {"file": "device/pipeline.cuh", "problem": NARROW}),
        (
            "wrong expert at a boundary",
            "column_tiles_ <= index) low",
            "column_tiles_ < index) low",
            {"file": SCHEDULER},
        ),
        (
            "partial row tile not counted",
            "tiles = ceil_div(end - begin, BLOCK_M);",
            "tiles = (end - begin) / BLOCK_M;",
            {"file": SCHEDULER},
        ),
        (
            "rows beyond the expert",
            "tile.num_rows = min(BLOCK_M, end - tile.row_begin);",
            "tile.num_rows = BLOCK_M;",
            {"file": SCHEDULER},
        ),
        (
            "scan adds below its first lane",
            "if (lane >= distance) inclusive += below;",
            "inclusive += below;",
            {"file": SCHEDULER},
        ),
        (
            "no barrier after the schedule",
            "storage.tiles_before[num_experts] = carry;\n    __syncthreads();",
            "storage.tiles_before[num_experts] = carry;",
            {"file": SCHEDULER},
        ),
        (
            "no barrier after the totals",
            "        __syncthreads();  // before warp_totals is written again\n",
            "",
            {"file": SCHEDULER, "problem": Problem((1,) * 8 + (0,) * 230 + (1,) * 2, 8, 32)},
        ),
        ("warps before forgotten", "if (w < warp) before += total;", "", {"file": SCHEDULER, "problem": MANY}),
    ],
)

OVERLAP = {"variant": "m256n128k256_f32", "problem": Problem((256,) * 4, 8, 32, 1)}
CAUGHT_100 = _of(
    SM100,
    "100a",
    "m8n128k256_f32",
    SMALL,
    [
        ("scale padding not cleared", "if (has_padding) clear_scale_padding(", "if (false) clear_scale_padding("),
        (
            "scale padding of tokens not cleared",
            "[step])[2 * word + 1] = 0;\n    }",
            "[step])[2 * word + 1] |= 0;\n    }",
        ),
        ("full wait missing", "mbarrier::wait(&shared.full[state.stage], state.parity);", ""),
        (
            "full wait of the other parity",
            "mbarrier::wait(&shared.full[state.stage], state.parity);",
            "mbarrier::wait(&shared.full[state.stage], state.parity ^ 1);",
        ),
        (
            "empty wait missing",
            "mbarrier::wait(&shared.empty[state.stage], state.parity ^ 1);\n            mbarrier::arrive_exp",
            "mbarrier::arrive_exp",
            {"problem": Problem((0, 8, 8, 9), 136, 1120)},
        ),
        (
            "accumulator full wait missing",
            "mbarrier::wait(&shared.accumulator_full[accumulator.stage], accumulator.parity);",
            "",
        ),
        (
            "accumulator empty wait missing",
            "mbarrier::wait(&shared.accumulator_empty[accumulator.stage], accumulator.parity);",
            "",
        ),
        (
            "accumulator freed before it is read",
            "if (i == chunks_to_free) {",
            "if (i == 0) {",
            {"variant": "m128n128k256_f32", "problem": Problem((128,) * 4, 8, 32, 1)},
        ),
        ("accumulator never freed", "mbarrier::arrive(freed);", "", {"problem": Problem((8, 8, 8, 8, 8), 8, 32)}),
        ("overlap of the first freed at once", "max(0, num_chunks - kSecondAccumulator / kChunk)", "0", OVERLAP),
        (
            "overlap of the second freed a chunk early",
            "min(num_chunks, kOverlapColumns / kChunk);",
            "min(num_chunks, kOverlapColumns / kChunk - 1);",
            OVERLAP,
        ),
        ("overlap drained last", "(kOverlap && first ? num_chunks - 1 - i : i)", "(i)", OVERLAP),
        ("the wrong accumulator freed", "[kOverlap ? first : accumulator.stage]", "[accumulator.stage]", OVERLAP),
        ("stage not committed", "    tcgen05::commit(&shared.empty[stage_idx]);", ""),
        ("accumulator not committed", "tcgen05::commit(&shared.accumulator_full[accumulator.stage]);", ""),
        ("products added to the tile before", "accumulate || step > 0);", "true);"),
        ("products of the block before lost", "accumulate || step > 0);", "step > 0);"),
        ("products of the last block alone", "token_column, full_blocks > 0);", "token_column, false);"),
        ("operand stride of 4 rows", "kStride = 1024 >> 4", "kStride = 512 >> 4", {"file": "device/tcgen05.cuh"}),
        ("64-byte swizzle", "kSwizzle128 = 2;", "kSwizzle128 = 4;", {"file": "device/tcgen05.cuh"}),
        ("scale stride of 16 rows", "kStride = 128 >> 4", "kStride = 256 >> 4", {"file": "device/tcgen05.cuh"}),
        (
            "scales of the operands swapped",
            "instruction, weight_columns, token_columns + token_column,",
            "instruction, token_columns + token_column, weight_columns,",
        ),
        (
            "second block of token scales over the first",
            "token_columns + block * kScaleBlockColumns,",
            "token_columns,",
            {"variant": "m256n128k256_f32", "problem": WIDE_TILE},
        ),
        (
            "weight scales not copied",
            "tcgen05::copy_scales(weight_columns,",
            "if (step < 0) tcgen05::copy_scales(weight_columns,",
        ),
        ("weight scales of the first step", "weight_scales + (step * kScaleBlockBytes >> 4)", "weight_scales"),
        ("tokens of the first step", "tokens + (step * kStepBytes >> 4),", "tokens,"),
        ("one accumulator for two tiles", "tensor_memory + accumulator.stage * kSecondAccumulator;", "tensor_memory;"),
        ("lanes of the first warp", "kSecondAccumulator + (warp * 32 << 16);", "kSecondAccumulator;"),
        ("last step of k missing", "ceil_div(K, kStepK) - full_blocks", "K / kStepK - full_blocks"),
        ("too few columns", "(tile.num_rows + 15) / 16 * 16)", "(tile.num_rows + 7) / 16 * 16)"),
        (
            "scale column of the first 32 rows",
            "token_columns + token_column,",
            "token_columns,",
            {"problem": LONG},
        ),
        (
            "scale box not aligned to 16 bytes",
            "scale_row % 32 * 4;",
            "scale_row % 32 * 4 + scale_row / 32 % 4;",
            {"problem": LONG},
        ),
        ("weights of the first expert", "tile.column_begin, tile.expert);", "tile.column_begin, 0);"),
        (
            "weight scales of the first expert",
            "tile.expert * ceil_div(N, kScaleBlockRows) +",
            "ceil_div(N, kScaleBlockRows) +",
        ),
        (
            "fewer bytes expected",
            "arrive_expect_tx(full, sizeof(Stage))",
            "arrive_expect_tx(full, sizeof(Stage) - 512)",
        ),
        (
            "every lane issues",
            "if (elect_one())\n                issue_stage(",
            "issue_stage(",
        ),
        (
            "freed by fewer threads",
            "mbarrier::init(&shared.accumulator_empty[i], kNumEpilogueThreads);",
            "mbarrier::init(&shared.accumulator_empty[i], kNumEpilogueThreads - 32);",
        ),
        ("output not turned", "[token * 32 + lane]", "[lane * kChunk + token]"),
        ("no row guard", "if (row < num_rows && column < num_columns)", "if (column < num_columns)"),
        ("no column guard", "if (row < num_rows && column < num_columns)", "if (row < num_rows)"),
        ("alpha of the next expert", "alpha[tile.expert]", "alpha[tile.expert + 1]"),
        (
            "tensor memory freed while in use",
            "__syncthreads();\n    if (warp == kTensorMemoryWarp) tcgen05::free",
            "if (warp == kTensorMemoryWarp) tcgen05::free",
        ),
        ("tensor memory not freed", "if (warp == kTensorMemoryWarp) tcgen05::free<", "if (false) tcgen05::free<"),
        (
            "no barrier before the totals",
            "storage.warp_totals[warp] = inclusive;\n        __syncthreads();",
            "storage.warp_totals[warp] = inclusive;",
            {"file": SCHEDULER},
        ),
        ("no proxy fence after the padding", "mbarrier::fence_async_proxy();", ""),
        ("no wait for tensor memory loads", "tcgen05::wait_loads();", ""),
        ("half of tensor memory", "tcgen05::allocate<tcgen05::kNumColumns>", "tcgen05::allocate<256>"),
    ],
)

CAUGHT_90 = _of(
    SM90,
    "90a",
    "m16n128k256_f32",
    MIDDLE,
    [
        (
            "tokens read before they arrive",
            "mbarrier::wait(&shared.full_stage[ring.stage], ring.parity);\n            const int",
            "const int",
        ),
        (
            "weights read before they arrive",
            "mbarrier::wait(&shared.full_stage[ring.stage], ring.parity);\n            const uint8_t",
            "const uint8_t",
        ),
        ("slot read before it is full", "mbarrier::wait(&shared.full_slot[slots.stage], slots.parity);", ""),
        ("slot filled while it is read", "mbarrier::wait(&shared.empty_slot[slots.stage], slots.parity ^ 1);", ""),
        (
            "stage filled while it is read",
            "mbarrier::wait(&shared.empty_stage[s], ring.parity ^ 1);",
            "",
            {"problem": Problem((8, 8, 8), 136, 1120)},
        ),
        (
            "stage released before its tokens are read",
            "            const int num_groups = groups_in_block(k, arguments.depth);\n"
            "            for (int group = 0; group < num_groups; ++group) {\n"
            "                mbarrier::wait(&shared.empty_slot",
            "            if (lane == 0) mbarrier::arrive(&shared.empty_stage[ring.stage]);\n"
            "            const int num_groups = groups_in_block(k, arguments.depth);\n"
            "            for (int group = 0; group < num_groups; ++group) {\n"
            "                mbarrier::wait(&shared.empty_slot",
        ),
        (
            "stage of the other parity",
            "mbarrier::wait(&shared.empty_stage[s], ring.parity ^ 1);",
            "mbarrier::wait(&shared.empty_stage[s], ring.parity);",
        ),
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
        (
            "slot freed while it is multiplied",
            "&& !first_slot) mbarrier::arrive(&shared.empty_slot[previous_slot]);",
            "&& !first_slot) mbarrier::arrive(&shared.empty_slot[slots.stage]);",
        ),
        (
            "slot never freed",
            "&& !first_slot) mbarrier::arrive(&shared.empty_slot[previous_slot]);",
            "&& !first_slot) {}",
        ),
        (
            "last slot never freed",
            "wgmma::wait<0>();\n        if (lane == 0) mbarrier::arrive(&shared.empty_slot[previous_slot]);",
            "wgmma::wait<0>();",
        ),
        (
            "slot full before it is written",
            "if (lane == 0) mbarrier::arrive(&shared.full_slot[slots.stage]);\n                slots.advance();",
            "slots.advance();\n                if (lane == 0) mbarrier::arrive(&shared.full_slot[slots.stage]);",
        ),
        ("scale padding of tokens not cleared", "if (chunk * 32 >= remaining_k) scale[chunk] = 0;", ""),
        (
            "scale padding of weights not cleared",
            "if (k + group * GROUP_K + l * 32 >= arguments.depth) scale[t][i] = 0;",
            "",
        ),
        (
            "no row guard",
            "if (first + token < num_tokens && column + part < num_columns)",
            "if (column + part < num_columns)",
        ),
        (
            "no column guard",
            "if (first + token < num_tokens && column + part < num_columns)",
            "if (first + token < num_tokens)",
        ),
        ("alpha of the first expert", "arguments.alpha[tile.expert]", "arguments.alpha[0]"),
        ("scale factor of the format forgotten", "sum *= fp4::kDescale;", "sum *= 1.0f;"),
        ("panel written without its swizzle", "(((word * 4 + i) ^ (token & 7)) << 4)", "((word * 4 + i) << 4)"),
        ("both halves from one panel", "tokens + k_step / 4 * (PANEL_BYTES >> 4)", "tokens"),
        ("step of k mistaken", "+ k_step % 4 * 2,", "+ (k_step ^ 1) % 4 * 2,"),
        ("products of the slot before lost", "k_step || !first_slot", "k_step"),
        ("packed rows without swizzle", "chunk ^ (PACKED_ROW_BYTES == 128 ? row & 7 : row >> 1 & 3)", "chunk"),
        (
            "swizzle of 64-byte rows mistaken",
            "row & 7 : row >> 1 & 3)",
            "row & 7 : row & 3)",
            {"variant": "m256n128k128_f32", "problem": Problem((5,), 136, 96)},
        ),
        ("scales of the even chunk", "scale_layout::word(row) * 4 + l % 2 * 2;", "scale_layout::word(row) * 4;"),
        ("scale of one half", "half ? 0x4431 : 0x4420", "0x4420"),
        (
            "scale halves swapped",
            "first < 2 ? fp4::broadcast_low(scale[row]) : fp4::broadcast_high(scale[row]);",
            "first < 2 ? fp4::broadcast_high(scale[row]) : fp4::broadcast_low(scale[row]);",
        ),
        ("rows not permuted back", "row = permuted_row(g) + i / 2 * 8;", "row = g + i / 2 * 8;"),
        ("k tail of a block missing", "ceil_div(depth - k, GROUP_K));", "(depth - k) / GROUP_K);"),
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
        ("token scales of the first tile", "TOKEN_SCALE_ROWS < 32 ? tile.row_in_expert % 32 * 4 : 0,", "0,"),
        ("weight scales of the first expert", "tile.expert * scale_blocks_per_expert +", "scale_blocks_per_expert +"),
        (
            "descriptor stride of 4 rows",
            "uint64_t{1024 >> 4} << 32",
            "uint64_t{512 >> 4} << 32",
            {"file": "device/wgmma.cuh"},
        ),
        (
            "nibbles of a pair swapped",
            "((packed << 4) & 0x80808080u) | ((packed << 1) & 0x0E0E0E0Eu)",
            "((packed << 4) & 0x80808080u) | ((packed >> 3) & 0x0E0E0E0Eu)",
            {"file": "device/fp4.cuh"},
        ),
    ],
)

FUSED = Problem((0, 1, 43, 0, 29), 288, 608)  # more chunks than the ring holds
CAUGHT_FUSED = _of(
    "grouped_fp4_swiglu/sm90.cu.j2",
    "90a",
    "m32n256k256",
    FUSED,
    [
        ("chunk full before all have written", "full_chunk[warpgroup][s], 128)", "full_chunk[warpgroup][s], 96)"),
        (
            "chunk written before it is free",
            "mbarrier::wait_together(&shared.empty_chunk[warpgroup][ring.stage], ring.parity ^ 1);",
            "",
        ),
        ("chunk read before it is full", "mbarrier::wait(&shared.full_chunk[warpgroup][stage], ring.parity);", ""),
        ("chunk never freed", "mbarrier::arrive(&shared.empty_chunk[warpgroup][stage]);", ""),
        ("chunk free before all have read", "empty_chunk[warpgroup][s], 32)", "empty_chunk[warpgroup][s], 16)"),
        ("chunk read without its swizzle", "place = chunk_place(group, token);", "place = token * CHUNK_ROW_BYTES;"),
        ("gate taken for up", "swap ? 0x1032 : 0x3210", "0x3210"),
        (
            "fused alpha of the first expert",
            "__ldcg(arguments.epilogue.alpha + tile.expert)",
            "arguments.epilogue.alpha[0]",
        ),
        ("scales of a row too far", "(first ^ t * 16) + i * 256", "first + t * 16 + i * 256"),
        ("group of the other warpgroup", "+ warpgroup * GROUPS_PER_WARPGROUP + group;", "+ group;"),
        (
            "weight of a row of the first tile",
            "epilogue_.row_weight[tile_.row_begin + token]",
            "epilogue_.row_weight[token]",
            {"file": "device/swiglu_epilogue.cuh"},
        ),
        (
            "neighbours of 64-byte rows mistaken",
            "PACKED_ROW_BYTES + 16 : PACKED_ROW_BYTES)",
            "PACKED_ROW_BYTES + 16 : PACKED_ROW_BYTES + 16)",
            {"variant": "m128n256k128", "problem": Problem((5,), 32, 96)},
        ),
    ],
)

CAUGHT_BY_FENCES = [  # and by barriers of a warp, and waits that return early
    *_of(
        SM90,
        "90a",
        "m16n128k256_f32",
        MIDDLE,
        [
            ("no wgmma fence", "wgmma::fence();", ""),
            (
                "no warp barrier in the staging",
                "            __syncwarp();\n#pragma unroll\n            for (int v = lane;",
                "#pragma unroll\n            for (int v = lane;",
            ),
        ],
    ),
    *_of(
        SM100,
        "100a",
        "m8n128k256_f32",
        SMALL,
        [
            (
                "no fence after the barrier",
                "accumulator.parity);\n        tcgen05::fence_after_sync();",
                "accumulator.parity);",
            ),
            ("no fence before the barrier", "                tcgen05::fence_before_sync();", ""),
            (
                "no warp barrier in the staging",
                "    __syncwarp();\n#pragma unroll\n    for (int vector = lane;",
                "#pragma unroll\n    for (int vector = lane;",
            ),
        ],
    ),
    *_of(
        SM120,
        "120a",
        "m8n128k256_f32",
        SMALL,
        [
            ("no warp barrier before the release", "__syncwarp();  // every lane has read the stage", ""),
            ("try_wait not repeated", '"@!done bra WAIT;\\n"', "", {"file": MBARRIER}),
        ],
    ),
]

# Four blocks of k for three stages.
AHEAD = Problem((0, 1, 70, 0, 7, 0), 264, 992, prefetch="weights")
CAUGHT_AHEAD = _of(
    SM90,
    "90a",
    "m64n256k256_f32",
    AHEAD,
    [
        (
            "more blocks ahead than a tile has",
            "min(kNumStages, ceil_div(arguments.depth, BLOCK_K))",
            "kNumStages",
            {"problem": Problem((0, 1, 70, 0, 7, 0), 264, 352, prefetch="weights")},
        ),
        ("another block ahead", "prefetched * BLOCK_K)", "(prefetched ^ 1) * BLOCK_K)"),
        ("weights ahead loaded again", "--prefetched;", "--prefetched, load_weights(s, k);"),
        ("weights ahead not counted down", "--prefetched;", ";"),
        ("weights ahead in one stage", "load_weights(prefetched, ", "load_weights(0, "),
    ],
)

CAUGHT = [*CAUGHT_AHEAD, *CAUGHT_90, *CAUGHT_FUSED, *CAUGHT_100, *CAUGHT_120, *CAUGHT_BY_FENCES]

NOT_CAUGHT = [
    *_of(
        SM90,
        "90a",
        "m16n128k256_f32",
        MIDDLE,
        [
            (
                "no fence after mbarrier init",
                "mbarrier::fence_init();",
                "",
                {"reason": "inside a CTA the barrier that follows orders it, and compilers leave the fence out"},
            ),
        ],
    ),
    *_of(
        SM100,
        "100a",
        "m8n128k256_f32",
        SMALL,
        [
            (
                "scales copied over those in use",
                "mbarrier::wait(&shared.empty[retired.stage], retired.parity);",
                "",
                {
                    "variant": "m256n128k256_f32",
                    "problem": Problem((200,), 24, 1504, 1),
                    "reason": "copies and products run in the order of issue, which kernels in use rely on, too",
                },
            ),
            (
                "no wait for the last commits",
                "i < kNumStages; ++i) {\n        mbarrier::wait(&shared.empty",
                "i < 0; ++i) {\n        mbarrier::wait(&shared.empty",
                {"reason": "the commit of the accumulator, which is waited for, is the last of the queue"},
            ),
        ],
    ),
]
