"""Faults in the GEMMs of Hopper that quantise rows to E4M3, and in the L1 of FP8 layers: gates and ups apart."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

GATED, SHARED, PROMOTE = (f"mainloop/{name}.cuh" for name in ("gated_sources", "shared_operands", "wgmma_promote"))
SWIGLU, QUANTIZE, FP8 = "epilogue/swiglu_rows_sm90.cuh", "epilogue/quantize_rows_sm90.cuh", "number/fp8.cuh"

STORE = "epilogue/store_quantized_sm90.cuh"
PLAIN = Kernel("90a", "m128n256", "grouped_fp8_quantized")
FEW, MANY = (Kernel("90a", tile, "grouped_fp8_swiglu") for tile in ("m64n256", "m128n256"))
ENDS, MASKED = (Kernel("90a", "m128n256", f"grouped_fp8_swiglu_{form}") for form in ("ends", "masked"))
SMALL = Problem((0, 1, 19, 0, 7), 272, 272)
PADDED = Problem((7, 0, 130), 144, 144)
TILES = Problem((70, 0, 9, 65), 272, 144)  # each CTA has several

CAUGHT = [
    *planted(
        GATED,
        MANY,
        SMALL,
        [
            ("gates for ups", "tile.batch * 2 + half);", "tile.batch * 2);"),
            ("gates and ups of the expert before", "tile.batch * 2 + half);", "max(tile.batch - 1, 0) * 2 + half);"),
            ("scales of gates for ups", "(tile.batch * 2 + half) * blocks", "(tile.batch * 2) * blocks"),
            ("gated scales of the first columns", "* blocks + tile.column / 128;", "* blocks;"),
            ("gated weights of the first columns", "full, k, tile.column,", "full, k, 0,"),
            ("ups over the gates", "places.weights + half * kHalfBytes", "places.weights"),
        ],
    ),
    *planted(
        SHARED,
        FEW,
        SMALL,
        [
            ("shared columns of the first warpgroup", "warpgroup() * kColumns * ROW_BYTES", "0"),
            ("shared tokens of the second warpgroup", "kTokenRows && !kSharesTokens ?", "kTokenRows ?"),
            ("shared tiles side by side", "kTokenRows ? BLOCK_N / kTiles * ROW_BYTES",
             "kTokenRows ? kColumns * ROW_BYTES"),
            ("shared scales of rows that are not there", "Base::kSharesTokens ? threadIdx", "false ? threadIdx",
             {"file": PROMOTE}),
        ],
    ),
    *planted(
        QUANTIZE,
        FEW,
        TILES,
        [
            ("maxima of a warpgroup alone", "if constexpr (kShared) exchange(maxima, warp, lane);", ""),
            ("maxima read before they are written", "        barrier_of<32 * kNumConsumerWarps>();\n", ""),
            ("maxima written while they are read", "        turn_ ^= 1;\n", ""),
            ("maxima of the row above", "buffer[1 - warp / 4][row + half * 8]", "buffer[1 - warp / 4][row]"),
        ],
    ),
    *planted(
        QUANTIZE,
        MANY,
        TILES,
        [
            ("maximum of two lanes", "distance < 4;", "distance < 2;"),
            ("maximum of signed values", "largest[i % 2], fabsf(values[i])", "largest[i % 2], values[i]"),
            ("scales of the first columns", "first / fp8::kBlock * out_.scale_stride", "0"),
            ("scales past the rows", "if (row < tile.num_stored)\n            out_.out_scale", "out_.out_scale"),
            ("E4M3 past the rows", "if (row < tile.num_stored && column", "if (column"),
            ("E4M3 past the columns", "if (row < tile.num_stored && column < out_.num_columns)",
             "if (row < tile.num_stored)"),
            ("padding of E4M3 not cleared", "row < tile.num_rows ? *reinterpret_cast", "true ? *reinterpret_cast",
             {"kernel": ENDS, "problem": PADDED}),
            ("padding of scales not cleared", "= row < tile.num_rows ? scale : 0;", "= scale;",
             {"kernel": ENDS, "problem": PADDED}),
            ("scales by those of a", "tile.batch * out_.batch_stride + row", "row",
             {"kernel": MASKED, "problem": Problem((0, 1, 19, 0, 7), 272, 400)}),
        ],
    ),
    *planted(
        SWIGLU,
        MANY,
        SMALL,
        [
            ("bias of gates for ups", "int64_t(tile.batch * 2 + part)", "int64_t(tile.batch * 2)"),
            ("bias of the neighbouring columns", "Quantized::column(warp, lane, i);",
             "Quantized::column(warp, lane, i ^ 2);"),
            ("bias past the columns", "bias::load_pair(bias, column, column < num_columns)",
             "bias::load_pair(bias, column, true)"),
            ("weight of the row above", "lane / 4 + half * 8);", "lane / 4);"),
            ("weight of rows that are not there", "row < tile.num_rows ? params_.row_weight",
             "true ? params_.row_weight"),
            ("up of the row above", "ups[i] = sums[1][i / 2 * 4 + half * 2", "ups[i] = sums[1][i / 2 * 4"),
            ("zeros without a scale", "max_nan(amax, kSmallestAmax)", "amax", {"file": FP8}),
            ("scales a step too small", "kLargest = 448,", "kLargest = 512,", {"file": FP8}),
            ("E4M3 of neighbours the other way", "make_float2(first, second)",
             "make_float2(second, first)", {"file": FP8}),
        ],
    ),
    *planted(
        STORE,
        PLAIN,
        Problem((0, 3, 19), 272, 272),
        [
            ("quantised columns of the first block", "tile.column + t * fp8::kBlock", "tile.column"),
            ("quantised block past the columns", "if (first >= num_columns) return;", ""),
            ("quantised sums of the row above", "i * 2 + half * 2]", "i * 2]"),
            ("quantised sums of the first block", "&sums[t][", "&sums[0]["),
            ("quantised with the first alpha", "params_.alpha[tile.batch]", "params_.alpha[0]"),
            ("quantised with the first bias", "params_.bias + int64_t(tile.batch) * num_columns", "params_.bias"),
            ("quantised bias past the columns", "column, column < num_columns)", "column, true)"),
        ],
    ),
]  # fmt: skip
NOT_CAUGHT = planted(
    QUANTIZE,
    MANY,
    TILES,
    [
        (
            "E4M3 read before it is staged",
            "        }\n        __syncwarp();\n        write(",
            "        }\n        write(",
            {"reason": "the emulator does not know the lane of a store of less than a word"},
        ),
    ],
)
