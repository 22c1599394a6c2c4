"""Times that others published of their kernels on Blackwell, as launches that the performance model predicts.

Their kernels are not here: each stands for its main loop alone, by the shape of its tile, with an epilogue that hides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from chips import CHIPS, Chip
from kernel_facts import Facts, Work
from model_terms import Problem

GEMM_MODEL = "hbarclay/gemm-model, CuTe DSL, 1.3 GHz"
NVFP4MOE = "roycho96/nvfp4moe, grouped"


class Published(NamedTuple):
    """``who`` with which tile; microseconds as published, or made of the FLOP/s that were."""

    who: str
    chip_name: str
    chip: Chip
    facts: Facts
    what: str
    problem: Problem
    microseconds: float


def pair(columns: int, out_bytes: float) -> Facts:
    """A CTA of a pair of sm_100 that multiplies 256 x ``columns`` in NVFP4, K = 256 a stage: it loads 128 rows, half of
    the columns, and the scales of all of them."""
    row, scales = 128, 16
    return Facts(f"pair 256 x {columns}", "100f", (columns, 128, 256), 1, 1, ((columns, Work(70, 0, 4)),),
                 (row // 2 + scales, row + scales), out_bytes, pair=True)  # fmt: skip


def omma(tokens: int, row_bytes: tuple[int, int]) -> Facts:
    """A CTA of sm_120 that multiplies ``tokens`` x 128, K = 128 a stage, in eight warps; bytes of a row of both."""
    products = tokens * 128 // (16 * 8) * 2 // 8
    loop = tokens, Work(3 * products, 0, products)
    return Facts(f"{tokens} x 128", "120f", (tokens, 128, 128), 1, 8, (loop,), row_bytes, 2.0)


def of_gemm_model() -> Iterator[Published]:
    """Dense, fp32 out; clusters of a pair. The clock was locked at 1.3 GHz."""
    chip = CHIPS["B200"]
    chip = chip._replace(clock=chip.clock._replace(value=1.3))
    times = {
        (4096, 7168, 128000): (2966.7, 1856.9, 1585.2, 1430.5),
        (4096, 18432, 7168): (455.3, 292.5, 268.3, 264.2),
        (4096, 7168, 18432): (429.9, 276.1, 259.7, 251.5),
    }
    for (m, n, k), row in times.items():
        for columns, time in zip((64, 128, 192, 256), row, strict=True):
            # The side of 128 rows a CTA is M there: it is the N of a problem here, whose tokens are the other one.
            yield Published(GEMM_MODEL, "B200", chip, pair(columns, 4.0), f"{m} x {n} x {k}", Problem((n,), m, k), time)


def of_nvfp4moe() -> Iterator[Published]:
    """Eight experts with equal counts, bf16 out, prepacked; the clock was not locked."""
    rows = {
        "Qwen3-30B": (65536, 2048, 768, 111.8, 84.6), "Qwen3-235B": (65536, 4096, 1536, 347.5, 210.3),
        "DeepSeek-V3.2": (65536, 7168, 2048, 736.8, 451.7), "MiniMax-M2": (65536, 3072, 1536, 278.6, 163.1),
        "Llama 4 Scout": (8192, 5120, 8192, 314.8, 156.9),
    }  # fmt: skip
    for model, (m, hidden, between, *times) in rows.items():
        counts = (m // 8,) * 8
        problems = {"FC1": Problem(counts, 2 * between, hidden), "FC2": Problem(counts, hidden, between)}
        for (step, problem), time in zip(problems.items(), times, strict=True):
            yield Published(NVFP4MOE, "B200", CHIPS["B200"], pair(256, 2.0), f"{model} {step}", problem, time)


def of_cards() -> Iterator[Published]:
    """RTX PRO 6000 and GB10."""
    nvfp4, fp8_mxfp4 = (72, 72), (129, 68)  # bytes of a row a stage, scales among them
    pro, gb10 = CHIPS["RTX PRO 6000"], CHIPS["GB10"]
    for size, teraflops in ((4096, 1420), (8192, 1595), (16384, 1577)):
        yield Published("CUTLASS example 79b", "RTX PRO 6000", pro, omma(128, nvfp4), f"{size}^3",
                        Problem((size,), size, size), 2 * size**3 / teraflops / 1e6)  # fmt: skip
    server = pro._replace(dram=pro.dram._replace(value=0.93 * 1.597))
    active = 128 * (1 - (1 - 6 / 128) ** 32)  # experts with rows, as expected of 32 tokens that pick 6 of 128
    yield Published("DeepGEMM pull request 380", "RTX PRO 6000 Server", server, omma(32, fp8_mxfp4),
                    "FP8 x MXFP4, 32 tokens, 4096 x 4096", Problem((2,) * round(active), 4096, 4096), 645)  # fmt: skip
    for name, chip, times in (("RTX PRO 6000", pro, (22.4, 25.6)), ("GB10", gb10, (39, 59))):
        for (n, k), time in zip(((512, 7168), (1024, 8192)), times, strict=True):
            yield Published("b12x, dense", name, chip, omma(64, nvfp4), f"1 x {n} x {k}", Problem((1,), n, k), time)


def everything() -> list[Published]:
    """All rows that name a problem and a time."""
    return [*of_gemm_model(), *of_nvfp4moe(), *of_cards()]
