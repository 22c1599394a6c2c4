"""Faults in the L1 of FP8 layers whose scales are packed, on Blackwell: gates and ups as two parts of a tile."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

SOURCES, ROWS = "mainloop/gated_row_sources.cuh", "epilogue/gated_rows.cuh"
UMMA_ROWS, MEMORY, SM100 = "mainloop/umma_row_scales.cuh", "mainloop/tensor_memory.cuh", "kernel/sm100.cuh"
EPILOGUE = {arch: f"epilogue/swiglu_rows_sm{arch[:-1]}.cuh" for arch in ("100a", "120a")}
SLOTS, FRAGMENTS = "layout/weight_slots.cuh", "mainloop/mma_fragments.cuh"
FEW = {"100a": "m16n256", "120a": "m8n256"}

SMALL = Problem((0, 1, 19, 0, 7), 272, 272)
WORDS = Problem((0, 3, 5), 656, 656)  # more scales than a word has, of K and of the result
TILES = Problem((70, 0, 9, 65), 272, 144)  # each CTA has several
PADDED = Problem((7, 0, 130), 144, 144)


def kernel(arch: str, form: str = "", tile: str = "") -> Kernel:
    return Kernel(arch, tile or FEW[arch], f"grouped_fp8_ue8m0_swiglu{form}")


CAUGHT = [
    fault
    for arch in FEW
    for fault in [
        *planted(
            SOURCES,
            kernel(arch),
            SMALL,
            [
                ("gated rows of the expert before", "gates = tile.batch * 2;", "gates = max(tile.batch - 1, 0) * 2;"),
                ("gated rows of ups for the next gates", "gates = tile.batch * 2;", "gates = tile.batch;"),
                ("gated rows of the first columns", "&sources_.b, full, k, column,", "&sources_.b, full, k, first,"),
                ("gated scales of rows of the first columns", "&sources_.b_scale, full, column,",
                 "&sources_.b_scale, full, first,"),
                ("gated scales of rows of the first word", "k / (4 * scale_rows::STAGE_K)", "0", {"problem": WORDS}),
            ],
        ),
        *planted(
            ROWS,
            kernel(arch),
            SMALL,
            [
                ("packed bias of gates for ups", "int64_t(tile.batch * 2 + part)", "int64_t(tile.batch * 2)"),
                ("packed bias past the columns", "+ column, column < num_columns)", "+ column, true)"),
                ("packed weights of rows that are not there", "if (row >= tile.num_rows) return 0;", "",
                 {"problem": Problem((0, 1, 19, 0, 1), 272, 144)}),
                ("packed weights of the first rows", "row_weight[tile.row + row]", "row_weight[row]"),
                ("packed ups activated", "swiglu::apply(gates, ups, activation);",
                 "swiglu::apply(ups, gates, activation);"),
                ("packed scale a step too large", "__float_as_uint(scale.value) >> 23",
                 "(__float_as_uint(scale.value) >> 23) + 1"),
                ("packed scale in the first byte", "word[block % 4] = code;", "word[0] = code;"),
                ("packed scales in the first word", "int64_t(block / 4) * scale_stride", "0", {"problem": WORDS}),
                ("packed word not filled up", "for (int i = block % 4 + 1; i < 4; ++i) word[i] = 0;", ";"),
                ("packed word filled up by every tile", "if (tile.column + fp8::kBlock >= num_columns)", "if (true)"),
                ("packed scales by those of a", "int64_t(tile.batch) * batch_stride", "0",
                 {"kernel": kernel(arch, "_masked"), "problem": Problem((0, 3, 5), 656, 144)}),
                ("packed padding from its second row on", "vector = tile.num_rows * kRowVectors + thread",
                 "vector = (tile.num_rows + 1) * kRowVectors + thread",
                 {"kernel": kernel(arch, "_ends"), "problem": PADDED}),
                ("packed padding past the columns", "if (column < num_columns) *", "*",
                 {"kernel": kernel(arch, "_ends"), "problem": PADDED}),
                ("packed padding of scales not cleared", "if (vector % kRowVectors == 0) write_scale(tile, row, 0);",
                 "", {"kernel": kernel(arch, "_ends"), "problem": PADDED}),
            ],
        ),
    ]
]  # fmt: skip
CAUGHT += planted(
    UMMA_ROWS,
    kernel("100a"),
    SMALL,
    [
        ("gated scales of gates for ups", "weight_scales[part * kWords + row]", "weight_scales[row]"),
        ("gated scales of ups not turned", "[part * (kWords / 4) + lane] =", "[lane] ="),
        ("gated scales of gates copied for ups", "scales_ + (part * kWords * 4 >> 4)", "scales_"),
        ("gated products with scales of gates", "columns_ + part * Columns::kAtomColumns, token_columns",
         "columns_, token_columns"),
        ("gated scales of ups under those of tokens", "columns_ + kParts * Columns::kAtomColumns",
         "columns_ + Columns::kAtomColumns"),
        ("gated products of gates for ups", "part * kPartBytes + step", "step"),
        ("gated sums of ups over gates", "d + part * Columns::kPartColumns", "d"),
        ("gated accumulators one over the other", ": kParts * kPartColumns;", ": kPartColumns;", {"file": MEMORY}),
        ("gated gates for ups", "source + part * Columns::kPartColumns + begin", "source + begin", {"file": SM100}),
    ],
)  # fmt: skip
CAUGHT += planted(
    EPILOGUE["100a"],
    kernel("100a"),
    TILES,
    [
        ("gated maxima of a warp alone", "warp < kNumWarps; ++warp) result", "warp < 1; ++warp) result"),
        ("gated maxima read before they are there", "= result;\n            synchronize();", "= result;"),
        ("gated maxima written while they are read",
         "            synchronize();  // before the buffers are written again\n", ""),
        ("gated maximum of signed values", "magnitudes[i] = fabsf(values[i])", "magnitudes[i] = values[i]"),
        ("gated weight of the first token", "__shfl_sync(0xFFFFFFFF, weight, i)", "__shfl_sync(0xFFFFFFFF, weight, 0)"),
        ("gated multiplier of the token before", "multiplier, i + 1)", "multiplier, i)"),
        ("gated bytes the other way", "pair & 0xFF, column[(i + 1) * 32] = pair >> 8",
         "pair >> 8, column[(i + 1) * 32] = pair & 0xFF"),
        ("gated columns of the first warp", "tile_.column + warp_ * 32 + lane % 2 * 16",
         "tile_.column + lane % 2 * 16"),
        ("gated rows past the end", "if (row < tile_.num_rows && column", "if (column"),
        ("gated columns past the end", " && column < params_.num_columns)", ")"),
        ("gated scales past the end", "lane < kChunk && begin + lane < tile_.num_rows)", "lane < kChunk)"),
        ("gated bias of the first warp", "tile.column + warp * 32 + threadIdx.x % 32",
         "tile.column + threadIdx.x % 32"),
    ],
)  # fmt: skip
CAUGHT += planted(
    EPILOGUE["120a"],
    kernel("120a", tile="m64n256"),
    TILES,
    [
        ("gated maxima of a warp alone", "warp < kNumWarps; ++warp) result", "warp < 1; ++warp) result"),
        ("gated maxima read before they are there", "        synchronize(place);\n#pragma", "#pragma"),
        ("gated maxima written while they are read", "        synchronize(place);  // before they are written again\n",
         ""),
        ("gated maximum of two lanes", "distance < 16;", "distance < 8;"),
        ("gated maximum of signed values", "max_nan(result, fabsf(value))", "max_nan(result, value)"),
        ("gated barrier of other tokens", "(1 + place.warp_m)", "(1)"),
        ("gated maxima in the place of other tokens", "[Slots::kWarpsM * Slots::MMA_N];  // of", "[1];  // of"),
        ("gated values of the slot beside", "has_ups ? other_first : other_second", "has_ups ? first : second"),
        ("gated gates for ups", "ups[slot] = has_ups ? second : received;", "ups[slot] = has_ups ? received : second;"),
        ("gated tokens of the other lane", "2 * place.l + has_ups)", "2 * place.l)"),
        ("gated columns of the first warp", "tile.column + place.warp_n * kWarpColumns", "tile.column"),
        ("gated bias of another column", "params.bias_of(tile, 1, column + (slot ^ order))",
         "params.bias_of(tile, 1, column + slot)"),
        ("gated bytes in another order", "0x3210 ^ order % 4 * 0x1111", "0x3210"),
        ("gated words in another order", "order / 4 ? make_uint2(words[1], words[0])",
         "false ? make_uint2(words[1], words[0])"),
        ("gated rows past the end", "if (token >= tile.num_rows) continue;", ""),
        ("gated columns past the end", "if (column < params.num_columns)", "if (true)"),
        ("gated token tile of the first", "            Slots::move_up(accumulators);\n", ""),
        ("token tiles 32 apart", "place.lane / 16 * Slots::kTokenStep", "place.lane / 16 * 32", {"file": FRAGMENTS}),
        ("token tiles of a stage 64 apart", "j / 2 * 2 * Slots::kTokenStep", "j / 2 * 64", {"file": FRAGMENTS}),
        ("gated boxes in the place of the first", "places.weights + first * 2 * Mainloop::ROW_BYTES", "places.weights",
         {"file": SOURCES}),
        ("gated scales in the place of the first", "places.weight_scales + first * 2 * 4", "places.weight_scales",
         {"file": SOURCES}),
    ],
)  # fmt: skip
