"""Faults in the GEMMs of Blackwell whose operands are MN-major, in those with groups along K, and in those of heads."""

from __future__ import annotations

from kernel_fault import SOURCES, TCGEN05, planted
from launches import Problem
from planting import Kernel

OPERANDS, SLOTS, FRAGMENTS = "number/operands.cuh", "layout/weight_slots.cuh", "mainloop/mma_fragments.cuh"
UMMA, SM100, SM120, STORE = ("mainloop/umma.cuh", "kernel/sm100.cuh", "kernel/sm120.cuh", "epilogue/store_sm120.cuh")
TILE = "m128n128_f32"


def kernel(arch: str, family: str) -> Kernel:
    return Kernel(arch, TILE, family)


ROWS = Problem((3, 0, 17), 144, 272)
WORDS = Problem((3, 0, 17), 144, 784)  # K ends in a second word of scales
OF_K = Problem((128, 0, 384), 144, 144)  # K of each group, and rows
HEADS = Problem((19,), 144, 72)
PARAMS = "epilogue/store_params.cuh"
PLACES = {
    "100a": ("epilogue/store_sm100.cuh", "heads_.place(first_column_ + column) - first_column_", "column"),
    "120a": (STORE, "int64_t(tile.row + first_token) * stride + params.heads.place(column)",
             "int64_t(tile.row + first_token) * stride + column"),
}  # fmt: skip
FP8 = {arch: {"kernel": kernel(arch, "grouped_fp8_ue8m0_nn"), "problem": WORDS} for arch in ("100a", "120a")}

CAUGHT = [
    fault
    for arch in ("100a", "120a")
    for fault in [
        *planted(
            SOURCES,
            kernel(arch, "k_grouped_bf16_tn"),
            OF_K,
            [
                ("mn-major tokens of the rows of out", "tile.row : tile.scale_row)", "tile.row : tile.row)"),
                ("mn-major tokens of the first panel", "scale_row) + i * PANEL_ROWS", "scale_row)"),
                ("mn-major tokens in one panel", "places.tokens + i * PANEL_BYTES", "places.tokens"),
                ("k groups with weights of their own", "MnMajor && !kTokenMatrices ?", "MnMajor && kTokenMatrices ?"),
                (
                    "k groups with scales of their own",
                    "Base::matrix(tile));",
                    "tile.batch);",
                    {"kernel": kernel(arch, "k_grouped_fp8_ue8m0_tn")},
                ),
            ],
        ),
        *planted(
            SOURCES,
            kernel(arch, "grouped_bf16_nn"),
            ROWS,
            [
                ("mn-major weights of the first panel", "tile.column + i * PANEL_ROWS", "tile.column"),
                ("mn-major weights in one panel", "places.weights + i * PANEL_BYTES", "places.weights"),
                ("mn-major weights of the first group", "PANEL_ROWS, k,\n                                 matrix(tile)",
                 "PANEL_ROWS, k,\n                                 0"),
            ],
        ),
        *planted(
            PARAMS,
            Kernel(arch, {"100a": "m128n128_bf16", "120a": "m32n128_bf16"}[arch], "gemm_bf16_heads"),
            HEADS,
            [
                ("heads without gaps", *PLACES[arch][1:], {"file": PLACES[arch][0]}),
                ("heads gap of the first one", "(column + width - left) / width * gap", "(column >= left) * gap"),
                ("heads gap behind each", "(column + width - left) / width * gap", "column / width * gap"),
                ("heads rows without gaps", "+ num_columns / heads.width * heads.gap", ""),
            ],
        ),
    ]
]  # fmt: skip
CAUGHT += planted(
    UMMA,
    kernel("100a", "grouped_bf16_nn"),
    ROWS,
    [
        ("mn-major panels without a distance", "kWeightsMnMajor ? PANEL_BYTES : 0", "0"),
        ("mn-major not said", "static_cast<uint32_t>(Operands::WEIGHTS_MN_MAJOR) << 15", "0", {"file": TCGEN05}),
        (
            "mn-major steps along rows of k",
            "WEIGHTS_MN_MAJOR ? Operands::STEP_K * 128 :",
            "WEIGHTS_MN_MAJOR ? Operands::STEP_BYTES :",
            {"file": OPERANDS},
        ),
        (
            "mn-major bytes not said",
            "block_scaled_descriptor<Operands>(num_tokens) | tcgen05::majors<Operands>()",
            "block_scaled_descriptor<Operands>(num_tokens)",
            {"file": "mainloop/umma_row_scales.cuh", **FP8["100a"]},
        ),
    ],
)
CAUGHT += planted(
    SM100,
    kernel("100a", "k_grouped_bf16_tn"),
    OF_K,
    [
        ("no zeros for a group without k",
         "if constexpr (Rows::kDividesK || kSplits > 1) store_zeros(taker, num_rows);", ""),
        ("products of a group without k",
         "if constexpr (Rows::kDividesK || kSplits > 1) return tile.k_begin < tile.k_end;", ""),
        ("mn-major token panels without a distance", "kTokensMnMajor ? PANEL_BYTES : 0", "0", {"file": UMMA}),
        ("mn-major tokens not said", "static_cast<uint32_t>(Operands::TOKENS_MN_MAJOR) << 16", "0", {"file": TCGEN05}),
    ],
)
CAUGHT += planted(
    FRAGMENTS,
    kernel("120a", "grouped_bf16_nn"),
    ROWS,
    [
        ("mn-major weights of the first tile", "t * Slots::MMA_M)", "0)"),
        ("mn-major lower rows where the upper are", "weight + matrix % 2 * 8", "weight"),
        ("outputs not exchanged", "Slots::gather(values);", "", {"file": STORE}),
        (
            "outputs exchanged the other way",
            "upper ? values[i] : values[i | bit]",
            "upper ? values[i | bit] : values[i]",
            {"file": SLOTS},
        ),
        ("scales of weights as if apart", "kNeighbours ? slot * 8 | g", "kNeighbours ? g * 8 | slot",
         {"file": SLOTS, **FP8["120a"]}),
        ("mn-major bytes of the first weights", "Panel::place(place.lane, weight)", "Panel::place(place.lane, 0)",
         FP8["120a"]),
    ],
)  # fmt: skip
CAUGHT += planted(
    FRAGMENTS,
    kernel("120a", "k_grouped_fp8_ue8m0_tn"),
    OF_K,
    [
        ("odd tokens for the even ones", "odd = even + 0x1111", "odd = even"),
        ("pairs of k in the order of matrices", "(matrix ^ row / 4) * 2", "matrix * 2"),
        ("halves of k not exchanged", "threadIdx.x % 4 < 2 ? 0x6420 : 0x2064", "0x6420"),
        ("scales of tokens that are neighbours", "(warp_m * MMA_N + column) * kPair",
         "warp_m * MMA_N * kPair + column", {"file": SLOTS}),
        ("second 64 tokens where the first are", "step * Operands::STEP_K, j / 2 * 64)", "step * Operands::STEP_K, 0)"),
        ("a group without k waits for a stage",
         "if ((!Rows::kDividesK && Schedule::kSplits == 1) || tiles.tile().k_begin < tiles.tile().k_end)", "",
         {"file": SM120}),
    ],
)  # fmt: skip
