"""Faults of sm_90 where UE8M0 scales of rows and of blocks turn sums of FP8, and of E2M1 made from it, into fp32."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

STEPS, WORDS, LAYOUT = "mainloop/wgmma_promote_steps.cuh", "mainloop/scale_words.cuh", "layout/scale_rows.cuh"
E2M1, TABLE, UE8M0 = ({"file": f"number/{name}.cuh"} for name in ("e2m1", "mx_table", "ue8m0"))

COUNTS = (0, 1, 19, 0, 7)
# Scales in rows. K ends in the second word of scales for 128: of FP8 in the fifth stage, else in the sixth.
FP8, MXFP4_WEIGHTS, MXFP4_TOKENS, MXFP8_ROWS = (
    Kernel("90a", "m64n128_f32", f"grouped_{operands}")
    for operands in ("fp8_ue8m0", "fp8_ue8m0_mxfp4", "mxfp4_fp8_ue8m0", "mxfp8_rows")
)
ODD, EVEN = (Problem(COUNTS, 136, k, on_hopper=True) for k in (592, 768))
WIDE = {"kernel": Kernel("90a", "m128n128_f32", "grouped_fp8_ue8m0"),
        "problem": Problem((3, 70), 136, 256, on_hopper=True)}  # fmt: skip
# Scales in blocks of 128 rows. Behind K, in the last stage, they are NaN.
MXFP4, MXFP8, MIXED = (
    Kernel("90a", "m64n128k128_f32", f"grouped_{operands}") for operands in ("mxfp4", "mxfp8", "mxfp8_mxfp4")
)
PACKED = Problem(COUNTS, 136, 352, operands="MXFP4")
OF_BYTES = {"kernel": MXFP8, "problem": Problem(COUNTS, 136, 352, operands="MXFP8", on_hopper=True)}
OF_MIXED = {"kernel": MIXED, "problem": Problem(COUNTS, 136, 384, operands="MXFP8_MXFP4", on_hopper=True)}
SECOND_HALF = {"problem": Problem((0, 1, 70, 0, 7), 136, 160, operands="MXFP4")}

LOADED = "                    mbarrier::wait(&shared.full[ring.stage], ring.parity);\n"
FENCE = "if constexpr (kPacksTokens || kPacksWeights) mbarrier::fence_async_proxy();"
LAST_PART = "if (i % kParts == kParts - 1) mbarrier"
PROMOTE = "                promote(sums, products[i % 2], shared_.scales[stage][i % kParts]);\n"
ARRIVE = f"                {LAST_PART}::arrive(&shared_.empty[stage]);\n"
OWN_ROW = "% (BLOCK_M / 16) : threadIdx.x / 32 - 4)"
BLOCK_WORD = "scale_layout::load<kCount>(words, stage + scale_layout::word(lane));"
ROW_WORDS = "for (int i = 0; i < kCount; ++i) words[i] = stage[i * 32 + lane];"

CAUGHT = planted(
    STEPS,
    FP8,
    ODD,
    [
        ("steps multiplied before they are ready", "wait(&shared_.ready[stage]", "wait(&shared_.full[stage]"),
        ("steps scales read before they are there", LOADED, ""),
        ("steps empty by one warp", "Base::kNumConsumerWarps * 32", "32"),
        ("steps empty before scales are read", PROMOTE + ARRIVE, ARRIVE + PROMOTE),
        ("steps second of two stages", "stages[i / kParts];", "stages[0];"),
        ("steps last of an odd number of stages", "if (kBatch > 1 && left > 0) add_stages<1>(sums[0]);", ""),
        ("steps scale of the token eight before", "scales[own_row_ + 8]", "scales[own_row_]"),
        ("steps scales of tokens for weights", "(scales + BLOCK_M + own_column_", "(scales + own_column_"),
        ("steps scales of the other half of the weights", "Base::warpgroup() * kColumns : 0", "0 : 0"),
        ("steps scales of the first 64 tokens", OWN_ROW, OWN_ROW.replace("- 4", "% 4"), WIDE),
        ("steps scales of the first stage", "scale_rows::stage_byte(kScaleK, k) + ", ""),
        ("steps scales past the word", "? k / STAGE_K % 4 : 0", "? k / STAGE_K : 0", {"file": LAYOUT}),
        ("steps scales of a row that is not aligned", "stage + scale_rows::first_word(scale_row), lane", "stage, lane",
         {"file": WORDS}),
    ],
)  # fmt: skip
CAUGHT += planted(
    STEPS,
    MXFP4_WEIGHTS,
    EVEN,
    [
        ("steps of e2m1 unpacked without a fence", FENCE, ""),
        ("steps weights for 32 of K by the scale of tokens", "write_part<Words::kWeightScaleK>",
         "write_part<Words::kTokenScaleK>"),
        ("steps scales for 32 of K loaded as for 128", "4 * kWeightScaleK>;", "4 * kTokenScaleK>;", {"file": WORDS}),
        ("steps packed weights counted as elements", "Operands::weight_bytes(k); }", "k; }"),
        ("steps packed tokens counted as elements", "Operands::token_bytes(k); }", "k; }", {"kernel": MXFP4_TOKENS}),
    ],
)  # fmt: skip
CAUGHT += planted(
    STEPS,
    MXFP8_ROWS,
    EVEN,
    [
        ("steps empty after the first part", LAST_PART, LAST_PART.replace("kParts - 1", "0")),
        ("steps products written while they are read", "start(products[(i + 1) % 2]", "start(products[i % 2]"),
        ("steps products read while they run", "wgmma::wait<1>()", "wgmma::wait<2>()"),
        ("steps last products read while they run", "wgmma::wait<0>()", "wgmma::wait<1>()"),
        ("steps scales of the first part", "shared_.scales[stage][i % kParts]", "shared_.scales[stage][0]"),
    ],
)
CAUGHT += planted(
    STEPS,
    MXFP4,
    PACKED,
    [
        ("steps scales behind K", "k + part * kScaleK < k_end", "k + part * kScaleK <= k_end", OF_BYTES),
        ("steps scales of blocks in the order of rows", BLOCK_WORD, ROW_WORDS, {"file": WORDS}),
        ("steps scales of the first half of a block", "scale_row % scale_layout::ATOM_ROWS + lane", "lane",
         {"file": WORDS, **SECOND_HALF}),
        ("steps 2^-127 as nothing", "exponent == 0 || exponent == 0xFF", "exponent == 0xFF", UE8M0),
        ("steps packed weights over packed tokens", "weights = shared.packed[stage] + kPackedTokens;",
         "weights = shared.packed[stage];"),
        ("steps e2m1 by the table of E5M2", "{0x3C383000, 0x4C484440}", "{0x3E3C3800, 0x46444240}", E2M1),
        ("steps e2m1 without signs", "magnitudes | (signs & 0x80808080u)", "magnitudes", TABLE),
        ("steps e2m1 of the first half", "table.elements(packed.x >> 16)", "table.elements(packed.x)", E2M1),
        ("steps e2m1 read without a swizzle", "(part / 2 ^ row / 2 % 4) << 4", "part / 2 << 4"),
        ("steps e4m3 written without a swizzle", "(part ^ row % 8) << 4", "part << 4", OF_MIXED),
    ],
)  # fmt: skip
