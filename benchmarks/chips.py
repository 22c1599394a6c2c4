"""What the performance model knows of chips: every number with its unit and where it comes from.

A source says "measured" where the number was timed, here or in what it names, "published" where a vendor states it,
"estimated" where it follows from others, and "fitted", alone, where ``model_fit.py`` chose it for the rows of
``FIT_ROWS``.
"""

from __future__ import annotations

from typing import NamedTuple


class Constant(NamedTuple):
    """A number, its unit and its source."""

    value: float
    unit: str
    source: str


class Chip(NamedTuple):
    """``dram``: what a kernel that only reads reaches. ``intake``: what one SM loads from L2 while all of them do.
    ``start``: what a launch takes beyond its longest term, the first loads and the last stores among it."""

    arch: str  # whose kernels are predicted
    sms: Constant
    clock: Constant
    dram: Constant
    intake: Constant
    start: Constant
    power: Constant | None = None  # None where energies of products are not known


class UnknownChipError(LookupError):
    """A chip that is not in ``CHIPS``."""


H100 = "measured here, one H100 80GB HBM3, 2026-11-27"
MICROBENCH = "measured, SemiAnalysis microbench-blackwell"
GEMM_MODEL = "github.com/hbarclay/gemm-model, NVFP4 sweeps of a B200 at 1.3 GHz"
HOPPER = {
    "sms": Constant(132, "SMs", "published, H100 and H200 SXM"),
    "clock": Constant(1.98, "GHz", "measured here: the highest SM clock in records of 2026-11-30; power lowers it"),
    "intake": Constant(54.5, "GB/s", f"{H100}: bulk copies from L2, 7.2 TB/s over 132 SMs"),
    "start": Constant(12.0, "us", "fitted"),
    "power": Constant(700, "W", "measured here: the limit in records of 2026-11-30"),
}
# Of cards, two of which have no published measurement of their own.
AS_PRO = "estimated: as the RTX PRO 6000"
CARD = {
    "clock": Constant(2.3, "GHz", "estimated: the middle of the 2.1 to 2.6 that are reported"),
    "intake": Constant(46.3, "GB/s", "measured, chipsandcheese: L2 of an RTX PRO 6000 8.7 TB/s, over 188 SMs"),
    "start": Constant(6.5, "us", "estimated: 5 to 8"),
}

CHIPS = {
    "H100": Chip("90a", dram=Constant(2.88, "TB/s", f"{H100}: a TMA stream with 64 KB in flight an SM"), **HOPPER),
    "H200": Chip(
        "90a",
        dram=Constant(4.31, "TB/s", "measured here: read_bandwidth of benchmarks/results/grouped_fp4-h200.json"),
        **HOPPER,
    ),
    "B200": Chip(
        "100f",
        Constant(148, "SMs", "published"),
        Constant(1.965, "GHz", "measured, github.com/roycho96/nvfp4moe: decode at P0; 1.64 at the limit of power"),
        Constant(7.2, "TB/s", f"{MICROBENCH}: TMA, 64 KB in flight an SM"),
        Constant(100, "GB/s", f"estimated: from {GEMM_MODEL}, those that it is compared with; one SM alone 122.7"),
        Constant(6.15, "us", f"fitted by others: the set-up in {GEMM_MODEL}"),
    ),
    "RTX PRO 6000": Chip(
        "120f", Constant(188, "SMs", "published"), dram=Constant(1.67, "TB/s", "estimated: 0.93 of 1.792 published"),
        **CARD,
    ),
    "RTX 5090": Chip(
        "120f", Constant(170, "SMs", "published"), dram=Constant(1.67, "TB/s", "estimated: 0.93 of 1.792 published"),
        **{**CARD, "intake": CARD["intake"]._replace(source=AS_PRO)},
    ),
    "GB10": Chip(
        "120f", Constant(48, "SMs", "published"), dram=Constant(0.254, "TB/s", "estimated: 0.93 of 0.273 published"),
        **{**CARD, "intake": CARD["intake"]._replace(source=AS_PRO)},
    ),
}  # fmt: skip


class Rates(NamedTuple):
    """Of instructions, alike on all chips. The first four are fitted, as is ``start`` of Hopper."""

    # Clocks in which a warpgroup of Hopper only hands over, for each 128 of K.
    hand_over: Constant = Constant(225, "clocks", "fitted")
    # Of the issue slots of dequantising warps, the share that the multiplying warps of their scheduler lose.
    token_issue: Constant = Constant(0.5, "share", "fitted")
    # Of an instruction of a warp that runs alone on its scheduler.
    lone_warp: Constant = Constant(3.6, "clocks", "fitted")
    # Of an instruction between two tiles: stores and barriers wait.
    between_tiles: Constant = Constant(1.5, "clocks", "fitted")
    product: Constant = Constant(1.0, "pJ/FLOP", f"{H100}: torch's bf16 grouped_mm at 700 W")
    weight: Constant = Constant(50, "pJ", f"{H100}, estimated from runs with and without: a weight to half precision")


RATES = Rates()
# Record -> problems that constants were fitted to, every tile of them; never among what the model is compared with.
FIT_ROWS = {
    "tune-h100": (
        "32 x 1, 6144 x 7168", "32 x 8, 6144 x 7168", "32 x 64, 6144 x 7168", "32 x 256, 6144 x 7168",
        "8 x 1, 4096 x 1536", "8 x 256, 4096 x 1536",
    ),
}  # fmt: skip


def chip(name: str) -> Chip:
    """A chip by its name; ``UnknownChipError`` says which there are."""
    if name not in CHIPS:
        raise UnknownChipError(f"no constants of {name!r}; known are {', '.join(CHIPS)}")
    return CHIPS[name]


def product_clocks(generation: str, rows: int, pair: bool = False) -> float:
    """Of a matrix instruction on a tensor core, ``rows`` of the short side.

    Hopper: weights from registers, by warpgroup; measured here on an H100. sm_100: measured, microbench-blackwell, from
    64 rows on, which max(rows / 2, 32 + rows / 4) follows, and 32 + rows / 6 that of a pair. sm_12x: 4096 FP4 FLOP a
    clock and SM, published: of a quarter of it, 16 clocks for m16n8k64.
    """
    if generation == "9":
        return max(13.0 if rows <= 16 else 16.0, rows / 2)
    if generation == "10":
        return max(rows / 2, 32 + rows / (6 if pair else 4))
    return 16.0
