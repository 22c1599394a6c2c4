"""Faults in the GEMMs of Hopper that read operands from shared memory: promotion, rows in each form, and padding."""

from __future__ import annotations

from dataclasses import replace

from kernel_fault import LOADER, SOURCES, WGMMA, planted
from launches import Problem
from planting import Kernel

PROMOTE, SHARED, PLAIN = (f"mainloop/{name}.cuh" for name in ("wgmma_promote", "shared_operands", "wgmma_shared"))
ANY_ROWS, K_GROUPS = "schedule/any_rows.cuh", "schedule/k_groups.cuh"
STORE, STORE_ROWS, STORE_PAIRS, SUM = (
    f"epilogue/{name}.cuh" for name in ("store_sm90", "store_rows_sm90", "store_pairs_sm90", "sum_of_warpgroups")
)
GROUP_SOURCES, PROMOTED_SOURCES = "mainloop/k_group_sources.cuh", "mainloop/promoted_sources.cuh"
TMA = "ptx/tma.cuh"

# Tokens as the columns of the instruction, and as its rows.
COLUMNS, ROWS = (Kernel("90a", f"{tile}_f32", "grouped_fp8") for tile in ("m16n128", "m128n256"))
COLUMNS_BF16, ROWS_BF16 = (Kernel("90a", f"{tile}_bf16", "grouped_fp8") for tile in ("m16n128", "m128n256"))
ENDS, LABELS, MASKED = (Kernel("90a", "m128n128_f32", f"grouped_fp8_{form}") for form in ("ends", "labels", "masked"))
BF16 = Kernel("90a", "m128n128_f32", "grouped_bf16")
SPANS, NARROW, FEW, WHOLE_BLOCKS = (
    Kernel("90a", f"{tile}_f32", "gemm_fp8") for tile in ("m128n192s1", "m64n32s1", "m16n32s1", "m64n256s1")
)
NN = Kernel("90a", "m128n256_f32", "grouped_bf16_nn")
CHANNEL, CHANNEL_TOKENS = (Kernel("90a", "m16n128_bf16", f"grouped_fp8_channel{form}") for form in ("", "_tokens"))
K_BF16, K_FP8 = Kernel("90a", "m64n128_f32", "k_grouped_bf16_tn"), Kernel("90a", "m128n128_f32", "k_grouped_fp8_nt")
SMALL = Problem((0, 1, 19, 0, 7), 136, 400)
WIDE, ONE = Problem((3, 0, 17), 264, 272), Problem((17,), 264, 272)
TWO_TILES = Problem((17, 3, 40), 776, 272)  # of a CTA
OF_K = Problem((128, 0, 256), 136, 72)  # K of each group, and rows
ADDED = replace(OF_K, adds=True)
PADDED = Problem((7, 0, 130, 128), 136, 144)

END_OF_GROUP = "min(tile.num_rows, group(tile.batch) - tile.row)"
FENCE = "                mbarrier::fence_async_proxy();\n"
WARPS_MEET = "barrier_of<2 * 32>(kFirstBarrier + place);"
BEFORE_SUMS = "if (!kColumnScales) free_stage(block.stage);"
TOKEN_BLOCK = "tile.scale_row / 4 * 4 + k / Mainloop::BLOCK_K"
MASKED_COUNT = "kind == kMasked && groups != nullptr ? group(batch) : num_rows"

CAUGHT = [
    *planted(
        PROMOTED_SOURCES,
        CHANNEL,
        SMALL,
        [
            ("channel scales of the first group", "tile.batch * b_rows + tile.column", "tile.column"),
            ("channel scales of the first columns", "* b_rows + tile.column", "* b_rows"),
        ],
    ),
    *planted(
        PROMOTE,
        CHANNEL_TOKENS,
        SMALL,
        [
            ("channel scales of tokens alone", "[j * 4 + 2] += rows.y * of_columns.x", "[j * 4 + 2] += of_columns.x"),
        ],
    ),
    *planted(
        PROMOTE,
        COLUMNS,
        SMALL,
        [
            ("token scales of the block before", TOKEN_BLOCK, TOKEN_BLOCK.replace("+ k", "+ max(k - 128, 0)"),
             {"file": PROMOTED_SOURCES}),
            ("weight scales of the block before", "weights, block + i * kStride)", "weights, max(block + i - 1, 0))"),
            ("token scales from a row that is not aligned", "first_token_ = tile.scale_row % 4;", "first_token_ = 0;"),
            ("bytes of the scales not expected", " + (BLOCK_M + 4 + kWeightScales) * 4;", ";"),
            ("scales freed before they are read", BEFORE_SUMS, BEFORE_SUMS.replace("!", "")),
            ("blocks of a batch not all waited for", "wgmma::wait<kLeft - 1>();", "wgmma::wait<kCount - 1>();"),
            ("scales of the next stage in a batch", "block.of_weights, block.stage, 0);",
             "block.of_weights, stages_.stage(), 0);"),
            (
                "sums of a block not begun anew",
                "products_.issue(running.sums, stages_.stage(), 0, false);",
                "products_.issue(running.sums, stages_.stage(), 0, true);",
            ),
            ("scale of the neighbouring token", "of_columns.y * block[j * 4 + 1]", "of_columns.x * block[j * 4 + 1]"),
            (
                "weights of the first warpgroup alone",
                "warpgroup() * kTiles * kWarpgroupBytes",
                "0",
                {"file": SHARED},
            ),
            (
                "half a step along K",
                "step * kRowStep),",
                "step * kRowStep / 2),",
                {"file": SHARED},
            ),
        ],
    ),
    *planted(
        PROMOTE,
        ROWS,
        WIDE,
        [
            ("rows weight scales of the first columns", "(t * Base::kColumns + j * 8) / kSpan", "0"),
            ("rows scale of the row above", "make_float2(scales[0], scales[8])", "make_float2(scales[0], scales[0])"),
            ("rows weight scales of the block before", "(of_weights, block_of_k)",
             "(of_weights, max(block_of_k - 1, 0))"),
            ("rows stage never freed", "if (!kColumnScales && t == kTiles - 1) free_stage(stages_.stage());", ""),
            (
                "rows spans with the scale of the first",
                "j * 8) / kSpan",
                "j * 8) / 96",
                {"kernel": SPANS, "problem": ONE},
            ),
            (
                "rows spans as of a tile that starts with a block",
                "(tile.column % 128 + i * kSpan) / 128",
                "i * kSpan / 128",
                {"kernel": SPANS, "problem": ONE},
            ),
            (
                "rows columns of the first warpgroup multiplied by both",
                "warpgroup() * kColumns * ROW_BYTES",
                "0",
                {"file": SHARED, "kernel": WHOLE_BLOCKS, "problem": ONE},
            ),
            (
                "rows columns of the first warpgroup stored by both",
                "warp / 4 * (2 * kSums)",
                "0",
                {"file": STORE_ROWS, "kernel": WHOLE_BLOCKS, "problem": ONE},
            ),
            (
                "rows of few tokens not cleared",
                "if constexpr (kTokenSpace > BLOCK_M) clear_other_rows(shared);",
                "",
                {"file": SHARED, "kernel": FEW, "problem": ONE},
            ),
            (
                "rows of few tokens cleared while others multiply",
                "            barrier_of<kThreads>();\n",
                "",
                {"file": SHARED, "kernel": FEW, "problem": ONE},
            ),
            (
                "rows both halves of a warpgroup in one",
                "first / (2 * kSums) * (2 * kSums) + ",
                "",
                {"file": STORE_ROWS, "kernel": WHOLE_BLOCKS, "problem": ONE},
            ),
            (
                "rows read before they are in order",
                f"{FENCE}                __syncwarp();\n",
                FENCE,
                {"file": STORE_ROWS},
            ),
            (
                "rows of a matrix in the place of others",
                "lane % 16 * 128",
                "lane % 8 * 128",
                {"file": STORE_ROWS, "kernel": ROWS_BF16},
            ),
            (
                "matrices not as the swizzle has them",
                "i / 4 + lane / 16 ^ lane % 8",
                "i / 4 + lane / 16",
                {"file": STORE_ROWS, "kernel": ROWS_BF16},
            ),
            ("box taken before it is there", FENCE, "", {"file": STORE_ROWS}),
            (
                "box written while another is taken from there",
                "tma::wait_until_read<kBuffers - 1>();",
                "{}",
                {"file": STORE_ROWS, "problem": TWO_TILES},
            ),
            ("box in no group", "tma::commit_stores();", "{}", {"file": STORE_ROWS, "problem": TWO_TILES}),
            ("box left behind by its warp", "tma::wait_until_read<0>();", "{}", {"file": STORE_ROWS}),
            ("box of rows that are not there", "&& num_rows >= kRows", "", {"file": STORE_ROWS}),
            (
                "tokens of a matrix in the place of others",
                "lane / 8 % 2 * 16",
                "lane / 16 * 16",
                {"file": STORE, "kernel": COLUMNS_BF16},
            ),
            (
                "rows stored past the group",
                "row < num_stored && part < end",
                "part < end",
                {"file": STORE_ROWS},
            ),
        ],
    ),
    *planted(
        SHARED,
        NARROW,
        ONE,
        [
            ("shares of K of the first tile in all", "before_ = (before + blocks) % kStride;", ""),
            ("shares of K the same", "kSharesK ? warpgroup() : 0", "0"),
            ("shares of K without the other", "half[0][i] += ", "", {"file": SUM}),
            ("shares of K twice", "shared_.sums[1 - own]", "shared_.sums[own]", {"file": SUM}),
            ("shares of K read before they are there", f"{WARPS_MEET}  // of", "// of", {"file": SUM}),
            ("shares of K of the next tile", f"{WARPS_MEET}  // before", "// before", {"file": SUM}),
            ("pairs past the rows", "row >= tile.num_stored || ", "", {"file": STORE_PAIRS}),
            ("pairs past the columns", " || column >= params_.num_columns", "", {"file": STORE_PAIRS}),
            ("pairs of the first warpgroup by both", "warp / 4 * kColumns + ", "", {"file": STORE_PAIRS}),
            ("pairs of one half", "lane / 4 + half * 8", "lane / 4", {"file": STORE_PAIRS}),
        ],
    ),
    *planted(
        ANY_ROWS,
        ENDS,
        PADDED,
        [
            ("ends padding multiplied", END_OF_GROUP, "tile.num_rows"),
            ("ends one row too few", END_OF_GROUP, END_OF_GROUP.replace("tile.row", "tile.row - 1")),
            ("ends group begins where the last one ended", "aligned(group(batch - 1))", "group(batch - 1)"),
            (
                "ends padding not zeros",
                "row < num_rows ? place(box, row, part) : uint4{}",
                "place(box, row, part)",
                {"file": STORE_ROWS},
            ),
            ("labels one row too many", "return low;", "return low + 1;", {"kernel": LABELS}),
            ("labels one row too few", "return low;", "return low - 1;", {"kernel": LABELS}),
            ("labels of the first row", "__ldcg(groups + tile.row)", "__ldcg(groups)", {"kernel": LABELS}),
            (
                "labels padding takes the first weights",
                "exists ? labelled(tile.row, tile.num_rows, label) : 0",
                "labelled(tile.row, tile.num_rows, label)",
                {"kernel": LABELS},
            ),
            ("masked scales of the first group", "batch * scales_of_group", "0", {"kernel": MASKED}),
            (
                "masked count of the group before",
                MASKED_COUNT,
                MASKED_COUNT.replace("group(batch)", "group(max(batch - 1, 0))"),
                {"kernel": MASKED},
            ),
        ],
    ),
    *planted(
        PLAIN,
        BF16,
        Problem((0, 1, 19, 0, 7), 136, 400),
        [
            ("bf16 stage freed while it is read", "wgmma::wait<1>();", "wgmma::wait<2>();"),
            ("bf16 last stage never freed", "if (before < blocks && has_warp_lead)", "if (blocks < 0)"),
            ("bf16 results read before they are there", "wgmma::wait<0>();", ""),
        ],
    ),
    *planted(
        SHARED,
        NN,
        WIDE,
        [
            ("nn steps along k as in rows of k", "kColumnStep = kColumnsMnMajor ? 16 * 128 : 32", "kColumnStep = 32"),
            (
                "nn columns of the first box",
                "tile.column + i * PANEL_ROWS, k,",
                "tile.column, k,",
                {"file": SOURCES},
            ),
            ("nn next 64 columns where the first are", "mn_major ? 8192u >> 4 : 1u", "1u", {"file": WGMMA}),
        ],
    ),
    *planted(
        K_GROUPS,
        K_BF16,
        OF_K,
        [
            ("k groups begin at the first k", "tile.k_begin = scan::clamp_rows(__ldcg(k_offsets + tile.batch), depth);",
             "tile.k_begin = 0;"),
            ("k groups one group too long", "k_offsets + tile.batch + 1", "k_offsets + num_batches"),
            ("k groups all in the first matrix", "return batch * num_rows;", "return 0;"),
        ],
    ),
    *planted(
        STORE_ROWS,
        K_FP8,
        ADDED,
        [
            ("rows in place of what they are added to", "kAddsInMemory && params_.accumulate", "false"),
            ("rows that are no box not added", "params_.map != nullptr && __all_sync(0xFFFFFFFF, is_whole);",
             "params_.map != nullptr;"),
        ],
    ),
    *planted(
        GROUP_SOURCES,
        K_FP8,
        OF_K,
        [
            ("k group has the maps of the first one", "tile.batch == batch_ ||", "batch_ >= 0 ||"),
            ("k group begins with the first one", "sources_.b_data + int64_t(tile.k_begin) * num_columns_",
             "sources_.b_data"),
            ("k group without its pitch", '"l"(int64_t(pitch))', '"l"(int64_t(128))', {"file": TMA}),
            ("k group scales of the first one", "tile.column + k / Mainloop::BLOCK_K",
             "tile.column + (k - tile.k_begin) / Mainloop::BLOCK_K", {"file": PROMOTED_SOURCES}),
        ],
    ),
]  # fmt: skip

NOT_CAUGHT = planted(
    LOADER,
    K_FP8,
    OF_K,
    [
        (
            "maps changed while loads by them are on their way",
            "mbarrier::wait(&shared_.full[stage], stage < ring_.stage ? ring_.parity : ring_.parity ^ 1);",
            "break;",
            {"reason": "a load of the emulator takes the map when it is issued"},
        ),
    ],
)
