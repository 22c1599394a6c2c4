"""Faults where FP8, whose packed scales are for 128 of K, meets MXFP4, whose scales are for 32."""

from __future__ import annotations

from kernel_fault import planted
from planting import Kernel, Problem

LAYOUT = "layout/scale_rows.cuh"
ROW_SCALES = {"100a": "mainloop/umma_row_scales.cuh", "120a": "mainloop/mma_row_scales.cuh"}
TILES = {"100a": "m16n128_f32", "120a": "m8n128_f32"}
WORDS = Problem((0, 1, 19, 0, 7), 136, 768)  # K ends in the second block of a second word of the scales of FP8

SOURCES = "RowScaledSources<4 * kTokenScaleK, 4 * kWeightScaleK>"
STEP = "return scale_k == STAGE_K ? 0 : step;"
OF_WEIGHTS = {
    "100a": "tcgen05::scale_ids(scale_rows::step_byte(kWeightScaleK, step),",
    "120a": "weights[t], tokens[j], scale_rows::step_byte(kWeightScaleK, step),",
}
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
