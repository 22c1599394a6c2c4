"""Faults in the GEMMs of Blackwell for bf16, and for FP8 with packed scales of rows; in what all forms of rows need."""

from __future__ import annotations

from kernel_fault import SOURCES, TCGEN05, planted
from launches import Problem
from planting import Kernel

OPERANDS = "number/operands.cuh"
KERNEL = {"100a": {"file": "kernel/sm100.cuh"}, "120a": {"file": "kernel/sm120.cuh"}}
STORE = {"100a": "epilogue/store_sm100.cuh", "120a": "epilogue/store_sm120.cuh"}
UMMA_SCALES, UMMA_ROWS, MMA_ROWS = (f"mainloop/{name}.cuh" for name in ("umma_scales", "umma_row_scales",
                                                                      "mma_row_scales"))  # fmt: skip
TILES = {"100a": "m16n128_f32", "120a": "m8n128_f32"}
WIDE = {"100a": "m128n128_f32", "120a": "m128n128_f32"}


def kernel(arch: str, family: str, tiles: dict[str, str] = TILES) -> Kernel:
    return Kernel(arch, tiles[arch], f"grouped_{family}")


SMALL = Problem((0, 1, 19, 0, 7), 136, 400)
PADDED = Problem((7, 0, 130), 136, 144)
WORDS = Problem((0, 1, 19, 0, 7), 136, 784)  # K ends in the third block of a second word of scales
MASKED = {arch: {"kernel": kernel(arch, "fp8_ue8m0_masked"), "problem": WORDS} for arch in TILES}

CLEAR = {
    "100a": "if constexpr (Rows::kHasPadding) output.clear(num_rows, tiles.tile().num_stored);",
    "120a": "if constexpr (Rows::kHasPadding) Epilogue::clear_padding(tiles.tile(), params);",
}
FIRST_CLEARED = {
    "100a": "vector = begin * kRowVectors +",
    "120a": "vector = tile.num_rows * kRowVectors +",
}
CLEARED_COLUMNS = {
    "100a": "column = vector % kRowVectors * kVector; column < num_columns_)",
    "120a": "if (column < params.num_columns)",
}

CAUGHT = [
    fault
    for arch in TILES
    for fault in [
        *planted(
            STORE[arch],
            kernel(arch, "bf16_ends"),
            PADDED,
            [
                ("ends padding not cleared", CLEAR[arch], "", KERNEL[arch]),
                (
                    "ends first row of padding not cleared",
                    FIRST_CLEARED[arch],
                    FIRST_CLEARED[arch].replace("* kRowVectors", "* kRowVectors + kRowVectors"),
                ),
                (
                    "ends padding cleared past the columns",
                    CLEARED_COLUMNS[arch],
                    CLEARED_COLUMNS[arch].replace("column < num_columns_", "true")
                    .replace("column < params.num_columns", "true"),
                ),
                (
                    "bf16 coordinates in bytes",
                    "coordinate(int k) { return k; }",
                    "coordinate(int k) { return byte(k); }",
                    {"file": OPERANDS},
                ),
            ],
        ),
        *planted(
            SOURCES,
            kernel(arch, "fp8_ue8m0"),
            WORDS,
            [
                (
                    "packed scales of tokens from a row that is not aligned",
                    "scale_row - scale_rows::first_word(scale_row),",
                    "scale_row,",
                ),
                (
                    "packed scales of the first word",
                    "full, tile.column, k / kWeightWordK,",
                    "full, tile.column, 0,",
                ),
                ("packed scales of the first group", "Base::matrix(tile));", "0);"),
                (
                    "packed scales of the first columns",
                    "full, tile.column, k / kWeightWordK,",
                    "full, 0, k / kWeightWordK,",
                ),
                ("packed scales of the first mask", "tile.scale_row / sources_.token_stride +", "", MASKED[arch]),
                ("packed scales by the row of all", "scale_row % sources_.token_stride;", "row;", MASKED[arch]),
            ],
        ),
    ]
]  # fmt: skip
CAUGHT += planted(
    UMMA_SCALES,
    kernel("100a", "bf16"),
    SMALL,
    [
        (
            "bf16 tokens of the first step",
            "tokens + (step * operands::TOKEN_STEP<Operands> >> 4)",
            "tokens",
        ),
        (
            "bf16 products added to the tile before",
            "instruction,\n                             accumulate || step > 0);",
            "instruction, true);",
        ),
        ("bf16 of one operand alone", "kBf16 << 10 | kBf16 << 7", "kBf16 << 7", {"file": TCGEN05}),
        ("bf16 sums in f16", "kBf16 << 7 | kF32 << 4;", "kBf16 << 7;", {"file": TCGEN05}),
        (
            "accumulator for padding alone",
            "return !Rows::kHasPadding || tile.num_rows > 0;",
            "return true;",
            {**KERNEL["100a"], "kernel": kernel("100a", "bf16_labels"), "problem": PADDED},
        ),
    ],
)
CAUGHT += planted(
    UMMA_ROWS,
    kernel("100a", "fp8_ue8m0"),
    WORDS,
    [
        ("packed words not turned", "const int row = lane + 32 * i;", "const int row = 4 * lane + i;"),
        ("packed words of the rows before", "token_scales[first + min(", "token_scales[min("),
        ("packed words turned while they are read", "        __syncwarp();\n", ""),
        ("packed words turned without a fence", "        mbarrier::fence_async_proxy();\n", ""),
        (
            "packed scale of the first block",
            "scale_k == STAGE_K ? k / STAGE_K % 4 : 0",
            "0",
            {"file": "layout/scale_rows.cuh"},
        ),
        (
            "packed scales of the weights for the tokens",
            "scales_ + (sizeof(Stage::weight_scales) >> 4)",
            "scales_",
        ),
        ("packed scales of weights alone expected", "4 * (kWeightWords + kTokenWords)", "4 * kWeightWords"),
    ],
)
CAUGHT += planted(
    MMA_ROWS,
    kernel("120a", "fp8_ue8m0"),
    WORDS,
    [
        ("packed scale of the first block", "{ shift = (shift + 8) % 32; }", "{}"),
        ("packed scales past the word", "{ shift = (shift + 8) % 32; }", "{ shift += 8; }"),
        ("packed scales of the first weight tile", "[offsets.weights ^ Slots::row(0, 2 * t)]", "[offsets.weights]"),
        ("packed words of the rows before", "tokens += scale_rows::first_word(tile.scale_row);", ""),
        (
            "packed scales of the first token tile",
            "[offsets.tokens + Slots::token(j, 0)]",
            "[offsets.tokens]",
            {"kernel": kernel("120a", "fp8_ue8m0", WIDE), "problem": Problem((3, 70), 136, 784)},
        ),
        ("packed scales of a step before", "tokens[j] = step == 0", "tokens[j] = step == 1"),
        ("packed scales of weights alone expected", "4 * (Config::BLOCK_N + kTokenWords)", "4 * Config::BLOCK_N"),
    ],
)
