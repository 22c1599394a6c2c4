"""Faults in the L1 of layers with 16-bit tokens and FP4 weights on Hopper: 64 gates and their ups in turn."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

GATED, STORE = "epilogue/store_gated_sm90.cuh", "epilogue/store_sm90.cuh"
FRAGMENTS, FACTORS = "number/fp4_fragments.cuh", "mainloop/weight_factors.cuh"
FEW, MANY = (Kernel("90a", tile, "grouped_bf16_nvfp4_swiglu") for tile in ("m16n256_bf16_bf16", "m64n256_f16_f16"))
MX = Kernel("90a", "m16n256_bf16_bf16", "grouped_bf16_mxfp4_swiglu")
SMALL = Problem((0, 1, 19, 0, 7), 192, 144)

CAUGHT = planted(
    GATED,
    FEW,
    SMALL,
    [
        ("gated columns of both warpgroups alike", "tile.column / 2 + warp / 4 * 64", "tile.column / 2"),
        ("gated columns of the first tile", "tile, tile.column / 2 + warp", "tile, warp"),
        ("gated columns as many as weight rows", "tile.column / 2 + warp / 4 * 64", "tile.column + warp / 4 * 64"),
        ("activated gates without ups", "&sums[1][first / 2]", "&sums[0][first / 2]"),
        ("activated ups as gates", "activated(&sums[0][first / 2]", "activated(&sums[1][first / 2]"),
        ("activated tokens of the first turn", "&sums[1][first / 2], gate", "&sums[1][0], gate", {"kernel": MANY}),
        ("gated alpha of the first expert", "params.up_alpha) + tile.batch);", "params.up_alpha));"),
        ("alpha of gates for ups", "(part == 0 || params.up_alpha == nullptr ? params.alpha", "(true ? params.alpha"),
        ("alpha of ups for gates", "(part == 0 || params.up", "(params.up"),
        ("gated bias of gates for ups", "warp / 4 * 128 + part * 64", "warp / 4 * 128"),
        ("gated bias of the first warpgroup", "tile.column + warp / 4 * 128", "tile.column"),
        ("gated bias of the first expert", "static_cast<int64_t>(tile.batch) * num_rows + row", "row"),
        ("gated bias past the rows", "row + i * 8 < num_rows);", "true);"),
        ("gated bias of the row above", "bias[i / 2 % 2]", "bias[0]"),
        ("gates not rounded between", "swiglu::round_to(gates, params_.intermediate);", "", {"kernel": MANY}),
        ("ups not rounded between", "swiglu::round_to(ups, params_.intermediate);", "", {"kernel": MANY}),
        ("gated rows without their weight", "if (params_.row_weight != nullptr) weigh(gates, tile, first);", ""),
        ("weight of the token before", "thread_index_again() % 4 * 2 + i % 2", "thread_index_again() % 4 * 2"),
        ("weight of the first eight tokens", "first + i / 4 * 8 +", "first +"),
        ("weight of the first turn", "first + i / 4 * 8 +", "i / 4 * 8 +", {"kernel": MANY}),
        ("weight of tokens that are not there", "token < tile.num_rows ? params_.row_weight",
         "true ? params_.row_weight"),
        ("sums of the first turn", "stage(staging, sums(first)", "stage(staging, sums(0)",
         {"file": STORE, "kernel": MANY}),
        ("gated powers of two less", "kBias = 94,", "kBias = 93,", {"file": FRAGMENTS, "kernel": MX}),
        ("gated powers that are too large", "byte > kLargest ?", "byte >= 127 ?", {"file": FRAGMENTS, "kernel": MX}),
        ("gated powers behind K", "& there[byte / 4]", "", {"file": FACTORS, "kernel": MX}),
        ("gated powers of the columns before", "tile.column + warp / 4 * 128 + part", "tile.column + part",
         {"kernel": MX}),
    ],
)  # fmt: skip
