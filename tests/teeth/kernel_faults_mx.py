"""Faults in what the main loops of Blackwell make of the formats of their operands."""

from __future__ import annotations

from kernel_fault import LDMATRIX, SOURCES, TCGEN05, planted
from launches import Problem
from planting import Kernel

OPERANDS, MMA_SYNC = "number/operands.cuh", "ptx/mma_sync.cuh"
UMMA, MMA_LOOP, MMA_SCALES = "mainloop/umma_scales.cuh", "mainloop/mma_sync.cuh", "mainloop/mma_scales.cuh"

COUNTS = (0, 1, 19, 0, 7, 0)
MXFP8 = {arch: Kernel(arch, tile, "grouped_mxfp8") for arch, tile in (("100a", "m16n128k128_f32"),
                                                                        ("120a", "m8n128k128_f32"))}  # fmt: skip
MXFP4 = {arch: Kernel(arch, tile, "grouped_mxfp4") for arch, tile in (("100a", "m16n128k256_f32"),
                                                                        ("120a", "m8n128k256_f32"))}  # fmt: skip
BYTES = Problem(COUNTS, 136, 352, operands="MXFP8")
PACKED = Problem(COUNTS, 136, 608, operands="MXFP4")  # K ends inside a step
MIXED = {
    arch: {"kernel": Kernel(arch, kernel.variant, "grouped_mxfp8_mxfp4"),
           "problem": Problem(COUNTS, 136, 384, operands="MXFP8_MXFP4")}
    for arch, kernel in MXFP8.items()
}  # fmt: skip
OF_PACKED = {"100a": {"kernel": MXFP4["100a"], "problem": PACKED}, "120a": {"kernel": MXFP4["120a"], "problem": PACKED}}

SCALE_BYTE = "return step % STEPS_PER_WORD * SCALES_PER_STEP;"
SCALE_BLOCK = "k / SCALE_K, atom + i);"
SCALE_IDS = "return weights << 29 | tokens << 4;"

CAUGHT = [
    fault
    for arch in ("100a", "120a")
    for fault in planted(
        OPERANDS,
        MXFP8[arch],
        BYTES,
        [
            ("mxfp8 scale of the first step", SCALE_BYTE, "return 0;"),
            ("mxfp8 scale of the step after", SCALE_BYTE, SCALE_BYTE.replace("step %", "(step + 1) %")),
            ("mxfp4 scale of the first step", SCALE_BYTE, "return 0;", OF_PACKED[arch]),
            (
                "mxfp8 weight scales of the block before",
                SCALE_BLOCK,
                SCALE_BLOCK.replace("k / SCALE_K", "max(k / SCALE_K - 1, 0)"),
                {"file": SOURCES},
            ),
            (
                "mxfp4 weights counted as they lie in shared memory",
                "return k / (WEIGHTS == Format::E2M1 ? 2 : 1);",
                "return k;",
                MIXED[arch],
            ),
            (
                "mxfp8 half of the bytes of a row",
                "return k / (PACKED ? 2 : 1);",
                "return k < 129 ? k : k / 2;",
            ),
        ],
    )
]
CAUGHT += planted(
    UMMA,
    MXFP8["100a"],
    BYTES,
    [
        ("mxfp8 scale id of the weights alone", SCALE_IDS, "return weights << 29;", {"file": TCGEN05}),
        ("mxfp8 scale id of the tokens alone", SCALE_IDS, "return tokens << 4;", {"file": TCGEN05}),
        (
            "mxfp4 weights as E5M2",
            "kE2M1 = Operands::PACKED ? 1 : 5,",
            "kE2M1 = 1,",
            {"file": TCGEN05, **MIXED["100a"]},
        ),
        (
            "mxfp4 scale padding not cleared",
            "if (Operands::SCALES_PER_STEP == 1 || depth % Operands::STEP_K == 0) return;",
            "return;",
            OF_PACKED["100a"],
        ),
        (
            "mxfp4 scale padding of the first step",
            "half = step % Operands::STEPS_PER_WORD * 2 + 1;",
            "half = 1;",
            {"kernel": MXFP4["100a"], "problem": Problem(COUNTS, 136, 352, operands="MXFP4")},
        ),
        (
            "mxfp4 scales of the word before",
            "const int word = step / Operands::STEPS_PER_WORD;",
            "const int word = 0;",
            OF_PACKED["100a"],
        ),
    ],
)
CAUGHT += planted(
    MMA_LOOP,
    MXFP8["120a"],
    BYTES,
    [
        (
            "mxfp8 scale padding not cleared",
            "if (kLast) current.scales.clear_padding(k, step, k_end);",
            "",
        ),
        (
            "mxfp8 scale padding by the step",
            "k + step / Operands::STEPS_PER_WORD * SCALE_K, k_end",
            "k + step * Operands::STEP_K, k_end",
            {"file": MMA_SCALES},
        ),
        (
            "mxfp4 weights not shifted",
            "for (uint32_t& elements : registers) elements <<= 2;",
            "",
            {"file": LDMATRIX, **MIXED["120a"]},
        ),
        ("mxfp4 scale of the tokens of the first step", '", 0}, %11, {" byte_b ", 0};"', '", 0}, %11, {0, 0};"',
         {"file": MMA_SYNC, **OF_PACKED["120a"]}),
        (
            "mxfp4 scales of the word before",
            "stage.weight_scales[step / Operands::STEPS_PER_WORD]",
            "stage.weight_scales[0]",
            {"file": MMA_SCALES, **OF_PACKED["120a"]},
        ),
    ],
)  # fmt: skip
