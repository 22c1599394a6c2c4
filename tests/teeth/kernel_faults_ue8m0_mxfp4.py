"""Faults where FP8, whose packed scales are for 128 of K, meets MXFP4, whose scales are for 32, on either side."""

from __future__ import annotations

from kernel_fault import LDMATRIX, TCGEN05, planted
from launches import Problem
from planting import Kernel

LAYOUT, OPERANDS, MMA_SYNC = "layout/scale_rows.cuh", "number/operands.cuh", "ptx/mma_sync.cuh"
ROW_SCALES = {"100a": "mainloop/umma_row_scales.cuh", "120a": "mainloop/mma_row_scales.cuh"}
TILES = {"100a": "m16n128_f32", "120a": "m8n128_f32"}
TWO_TILES = Kernel("120a", "m128n128_f32", "grouped_mxfp4_fp8_ue8m0")  # of tokens, a warp
WORDS = Problem((0, 1, 19, 0, 7), 136, 768)  # K ends in the second block of a second word of the scales of FP8

SOURCES = "RowScaledSources<4 * kTokenScaleK, 4 * kWeightScaleK>"
STEP = "return scale_k == STAGE_K ? 0 : step;"
OF_WEIGHTS = {
    "100a": "tcgen05::scale_ids(scale_rows::step_byte(kWeightScaleK, step),",
    "120a": "weights[t], tokens[j], scale_rows::step_byte(kWeightScaleK, step),",
}
OF_TOKENS = {"100a": "scale_rows::step_byte(kTokenScaleK, step));\n#pragma unroll",
             "120a": "scale_rows::step_byte(kTokenScaleK, step));"}  # fmt: skip
# Of the word, where those of one operand last four stages and those of the other do not.
STAGE = {
    "100a": ("scale_k == STAGE_K ? k / STAGE_K % 4 : 0;", "k / STAGE_K % 4;", {"file": LAYOUT}),
    "120a": ("kScaleK == scale_rows::STAGE_K ? word >> shift : word", "word >> shift"),
}

CAUGHT = [
    fault
    for arch, tile in TILES.items()
    for fault in planted(
        ROW_SCALES[arch],
        Kernel(arch, tile, "grouped_fp8_ue8m0_mxfp4"),
        WORDS,
        [
            ("scales for 32 of K loaded as for 128", SOURCES, SOURCES.replace("kWeight", "kToken")),
            ("scales for 128 of K loaded as for 32", SOURCES, SOURCES.replace("kToken", "kWeight")),
            ("scale for 32 of K of the first step", STEP, "return 0;", {"file": LAYOUT}),
            ("scale for 128 of K of each step", STEP, "return step;", {"file": LAYOUT}),
            ("scale for 32 of K by the other operand", OF_WEIGHTS[arch],
             OF_WEIGHTS[arch].replace("kWeightScaleK", "kTokenScaleK")),
            ("scale for 32 of K by the stage", *STAGE[arch]),
        ],
    )
]  # fmt: skip
CAUGHT += [
    fault
    for arch, tile in TILES.items()
    for fault in planted(
        ROW_SCALES[arch],
        Kernel(arch, tile, "grouped_mxfp4_fp8_ue8m0"),
        WORDS,
        [
            ("scales of tokens for 32 of K loaded as for 128", SOURCES, SOURCES.replace("kToken", "kWeight")),
            ("scale of tokens for 32 of K by the other operand", OF_TOKENS[arch],
             OF_TOKENS[arch].replace("kTokenScaleK", "kWeightScaleK")),
            ("e2m1 tokens counted as they lie in shared memory", "return k / (TOKENS == Format::E2M1 ? 2 : 1);",
             "return k;", {"file": OPERANDS}),
        ],
    )
]  # fmt: skip
CAUGHT += planted(
    LDMATRIX,
    Kernel("120a", TILES["120a"], "grouped_mxfp4_fp8_ue8m0"),
    WORDS,
    [
        ("e2m1 tokens of one tile not shifted", '"=r"(registers[1])\n                 : "r"(address)\n'
         '                 : "memory");\n    shift_e2m1(registers);', '"=r"(registers[1]) : "r"(address) : "memory");'),
        ("e2m1 tokens of two tiles not shifted", "    shift_e2m1(first), shift_e2m1(second);", "",
         {"kernel": TWO_TILES, "problem": Problem((3, 70), 136, 256)}),
        ("e2m1 tokens as e4m3", '("e4m3.e2m1")', '("e4m3.e4m3")', {"file": MMA_SYNC}),
    ],
)  # fmt: skip
CAUGHT += planted(
    TCGEN05,
    Kernel("100a", TILES["100a"], "grouped_mxfp4_fp8_ue8m0"),
    WORDS,
    [("e2m1 tokens as e4m3", "Operands::TOKENS == decltype(Operands::TOKENS)::E2M1 ? kE2M1 : kE4M3", "kE4M3")],
)
