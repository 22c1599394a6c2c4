"""Faults in the GEMMs of CTA pairs: what the two CTAs tell each other, and which half is whose."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

MAINLOOP, KERNEL = "mainloop/umma_pairs.cuh", "kernel/sm100.cuh"
WRAPPERS, SCHEDULE = {"file": "ptx/tcgen05_pairs.cuh"}, {"file": "schedule/pairs.cuh"}

M128, M256 = Kernel("100a", "m128n256k256_f32"), Kernel("100a", "m256n256k256_f32")
# Two tiles of columns, the second with columns of one CTA alone; tiles with rows of both halves, and of one alone; four
# blocks of K, the last one ends inside a word of scales.
TAILS = Problem((0, 40, 131, 0), 264, 864)
FULL = Problem((400,), 8, 64)
# Of two tiles of columns the second has 32, of one CTA; the other CTA's are past the scales of a row.
GATED = {"kernel": Kernel("100a", "m128n256k256", "grouped_fp4_swiglu"), "problem": Problem((0, 40, 131, 0), 288, 352)}
WIDE = {"kernel": M256, "problem": Problem((0, 5, 140), 136, 1376)}  # more blocks than stages

BOTH = "kBoth = (1 << kNumCtas) - 1;"
TOLD = "cluster::arrive_on(cluster::place_in(0, &shared_.full[ring_.stage]));"
HALF = "rank_ * columns_of_pair(tile.num_rows) / tcgen05::pair::kNumCtas"
ARRIVALS = "leads ? 2 + kReusesScales : 1"
DRAINED = "mbarrier::wait(&shared_.accumulator_empty[accumulator_.stage], accumulator_.parity);"
COLUMNS = "cluster::rank() * (BLOCK_N / 2)"
SUMS = "&shared_.accumulator_full[accumulator_.stage]"
SUMS_HERE = f"pair::commit_here(mbarrier::shared_address({SUMS}))"
NEXT = "&shared_.full[stage]) ^\n                                           kNumBuffers * sizeof(mbarrier::Barrier)"

CAUGHT = planted(
    MAINLOOP,
    M128,
    TAILS,
    [
        ("pair peer never says that a stage is loaded", TOLD, ""),
        ("pair leader issues before the peer has loaded", ARRIVALS, "1 + kReusesScales"),
        ("pair half of the other CTA", HALF, f"(1 - {HALF.replace('rank_ *', 'rank_) *')}"),
        ("pair half of a whole tile", HALF, "rank_ * Mainloop::BLOCK_M / 2"),
        ("pair sums overwritten in one CTA", DRAINED, f"if (kLeads) {DRAINED}", {"problem": FULL}),
        ("pair sums committed to one CTA", f"pair::commit({SUMS})", SUMS_HERE),
        ("pair padding cleared in one CTA", "Scales::clear_padding(", "if (kLeads) Scales::clear_padding("),
        ("pair expects all tokens in each CTA", " - Config::BLOCK_M / 2 * Operands::token_bytes(BLOCK_K);", ";"),
        ("pair multicast mask off by one", BOTH, BOTH.replace("- 1", "- 2"), WRAPPERS),
        ("pair multicast to the next pair", BOTH, BOTH.replace("(1 <<", "(2 <<"), WRAPPERS),
        ("pair commits to one CTA", BOTH, "kBoth = 1;", WRAPPERS),
        ("pair instruction of half of the rows", "instruction + (kM >> 4 << 24)", "instruction", WRAPPERS),
        ("pair columns of one CTA twice", COLUMNS, "0", SCHEDULE),
        ("pair share of K", "tile.k_begin = 0;", "", SCHEDULE),
        (
            "pair frees what the other one reads",
            "cluster::arrive();\n            cluster::wait();\n",
            "__syncthreads();\n",
            {"file": KERNEL},
        ),
        ("pair scales overwritten", "for (int i = 0; i < kNumBuffers; ++i) mbarrier",
         "for (int i = 0; i < kNumStages; ++i) mbarrier", WIDE),
        ("pair scales never free", NEXT, "&shared_.full[stage])", WIDE),
        ("gated pair columns of one CTA twice", COLUMNS, "0", GATED | SCHEDULE),
        ("gated pair scales past a row", " || group >= words * 4)", ")",
         GATED | {"file": "epilogue/swiglu_quantize.cuh"}),
        ("gated pair walks tiles of one CTA", '{{ "Pairs" if pair else "Grouped" }}', "Grouped",
         GATED | {"file": "grouped_fp4_swiglu/sm100.cu.j2"}),
    ],
)  # fmt: skip
