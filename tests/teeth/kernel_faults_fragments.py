"""Faults where FP4 weights become bf16 in registers on Hopper, and tokens lie as wgmma reads them."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

FRAGMENTS, FACTORS, LOADS = (
    {"file": f"{name}.cuh"} for name in ("number/fp4_fragments", "mainloop/weight_factors", "mainloop/fragment_sources")
)
# More stages than the ring has; of the last one there are five steps, and of N eight columns.
SEVERAL, TAILS = Kernel("90a", "m16n256_bf16_bf16", "grouped_bf16_nvfp4"), Problem((0, 19, 1, 0, 9), 264, 1232)
HALVES = Kernel("90a", "m32n256_f16_f16", "grouped_bf16_nvfp4")
MX = {"kernel": Kernel("90a", "m16n256_bf16_bf16", "grouped_bf16_mxfp4"),
      "problem": Problem((0, 19, 1, 0, 9), 264, 1248)}  # fmt: skip
SHORT_RING = Kernel("90a", "m64n256_bf16_bf16", "grouped_bf16_nvfp4")
READY = "            mbarrier::wait(&shared_.ready[ring_.stage], ring_.parity);\n"
LOADED = "                    mbarrier::wait(&shared.full[ring.stage], ring.parity);\n"
CONVERT = "                convert(fragments[turn % 2], packed, factors, word);\n"
LOAD_NEXT = "                if (converted && t + 1 < kTilesPerWarpgroup) load_rows(packed, factors, t + 1);\n"
PANEL = "places.tokens + i * Mainloop::PANEL_BYTES"

CAUGHT = planted(
    "mainloop/wgmma_fragments.cuh",
    SEVERAL,
    TAILS,
    [
        ("fragments without signs", "pair &= 0x81C081C0u", "pair &= 0x01C001C0u", FRAGMENTS),
        ("fragments of one place where there are two", "word << (4 + kUp) ^ turned", "word << (4 + kUp)", FRAGMENTS),
        ("fragments turned too far", "word, word, 4 - kUp", "word, word, 5 - kUp", FRAGMENTS),
        ("fragments of f16 where those of bf16 are", "place_pairs<3>", "place_pairs<0>",
         FRAGMENTS | {"kernel": HALVES}),
        ("fragments of f16 with signs of magnitudes", "(found[i] & 0x8", "(magnitudes[i] & 0x8",
         FRAGMENTS | {"kernel": HALVES}),
        ("fragments whose sums are not descaled", "sum *= Decode::kDescale", "sum *= 1"),
        ("fragments with the factor of the other step", "i < 2 ? fp4::both_low", "i >= 2 ? fp4::both_low"),
        ("fragments with rows and halves of K swapped", "[row + i % 2 * 2]", "[row * 2 + i % 2]"),
        ("fragments of the word before", "packed[row][first + word]", "packed[row][first]"),
        ("factors of the word before", "factors[row][first + word]", "factors[row][first]"),
        ("factors of the row eight before", "FactorRows::packed_place(factors_begin_, tile, i)",
         "FactorRows::packed_place(factors_begin_, tile, 0)"),
        ("weights of the first tile of a warpgroup", "PackedRows::packed_place(packed_begin_, tile, i)",
         "PackedRows::packed_place(packed_begin_, 0, i)"),
        ("weights of a neighbouring lane", "(row, lane % 4)", "(row, lane % 4 ^ 1)"),
        ("tokens of the first panel", "step / 4 * PANEL_BYTES", "0 * PANEL_BYTES"),
        ("tokens of the step before", "step % 4 * 32", "step / 2 % 2 * 64"),
        ("tokens of the first half of a stage twice", "k + i * Mainloop::PANEL_K", "k", LOADS),
        ("tokens of both halves in one place", PANEL, "places.tokens", LOADS),
        ("tokens of the first box twice", "tile.row + box * BOX_ROWS", "tile.row", LOADS | {"kernel": HALVES}),
        ("tokens of all boxes in one place", " + box * BOX_BYTES", "", LOADS | {"kernel": HALVES}),
        ("no box for rows that do not fill it", "ceil_div(tile.num_rows, BOX_ROWS)", "tile.num_rows / BOX_ROWS",
         LOADS | {"kernel": HALVES}),
        ("one announcement of weights and tokens", "init(&shared.full[s], 2)", "init(&shared.full[s], 1)"),
        ("rows of the first tile of a warpgroup again", "load_rows(packed, factors, t + 1)",
         "load_rows(packed, factors, t)"),
        ("rows of the next tile before those of this one are converted", CONVERT + LOAD_NEXT, LOAD_NEXT + CONVERT),
        ("scales of the first 128 columns", "atom + i);", "atom);", LOADS),
        ("scales of the first expert", "tile.batch * weight_atoms_ + tile", "tile", LOADS),
        ("scales behind K", "left <= 0 ? 0 : (1u << left / kScaleK * 8) - 1", "~0u", FACTORS),
        ("scales of half a stage behind K", "(left - w * 4 * SCALE_K)", "(left)", FACTORS),
        ("factors of rows in the order of words", "i * 32 + lane]", "lane * 4 + i]", FACTORS),
        ("factors of a power of two less", "kBias = 94,", "kBias = 93,", FRAGMENTS | MX),
        ("factors of the first of four powers", ">> byte % 4 * 8", ">> 0", FACTORS | MX),
        ("factors of powers behind K", "& there[byte / 4]", "", FACTORS | MX),
        ("factors made of scales that are not there yet", LOADED, ""),
        ("factors read before they are there", READY, ""),
        ("stages freed a turn early", "if (turn == 1 && !first)", "if (turn == 0 && !first)", {"kernel": SHORT_RING}),
        ("stages never freed at the end of a tile", "            release_previous();\n            __syncwarp();",
         "            __syncwarp();"),
        ("fragments written while they are read", "fragments[turn % 2], packed", "fragments[0], packed"),
        ("fragments of products that still run", "wgmma::wait<1>();", "wgmma::wait<2>();"),
    ],
)  # fmt: skip
