"""Faults where both operands have scales in rows for 32 of K: what of scales for 128 must not be left."""

from __future__ import annotations

from dataclasses import replace

from kernel_fault import planted
from kernel_faults_ue8m0_mxfp4 import LAYOUT, OF_TOKENS, OF_WEIGHTS, ROW_SCALES, SOURCES, STAGE, STEP, TILES, WORDS
from planting import Kernel

CAUGHT = [
    fault
    for arch, tile in TILES.items()
    for fault in planted(
        ROW_SCALES[arch],
        Kernel(arch, tile, "grouped_mxfp8_rows"),
        WORDS,
        [
            ("scales of mxfp8 tokens loaded as for 128", SOURCES, SOURCES.replace("4 * kTokenScaleK", "512")),
            ("scales of mxfp8 weights loaded as for 128", SOURCES, SOURCES.replace("4 * kWeightScaleK", "512")),
            ("scales of mxfp8 of the first step", STEP, "return 0;", {"file": LAYOUT}),
            ("scales of mxfp8 weights of the first step", OF_WEIGHTS[arch],
             OF_WEIGHTS[arch].replace("kWeightScaleK", "128")),
            ("scales of mxfp8 tokens of the first step", OF_TOKENS[arch],
             OF_TOKENS[arch].replace("kTokenScaleK", "128")),
            ("scales of mxfp8 by the stage", *STAGE[arch]),
        ],
    )
]  # fmt: skip
CAUGHT += planted(
    ROW_SCALES["120a"],
    Kernel("120a", TILES["120a"], "grouped_mxfp8_rows"),
    replace(WORDS, k=160),
    [("scales of mxfp8 behind K", "if (step > 0) return;", "return;")],
)
