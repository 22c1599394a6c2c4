"""Every kernel of Blackwell whose CTAs share K of a tile, executed from its PTX on the emulated device."""

from __future__ import annotations

from collections.abc import Callable

import gemm_problem
import numpy as np
import pytest
import reference
import schedules
import shipped_matrix
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

SPLIT = [variant for variant in shipped_matrix.VARIANTS
         if variant.arch in ("100a", "120a") and variant.axes.get("splits", 1) > 1 and variant.axes.get("out") == "f32"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def depth_of(variant: Variant, stages: int) -> int:
    """K of so many stages, of which the last is not whole where K may end within one."""
    known = variant.axes | variant.constants
    whole = "mxfp8_rows" in variant.family or ("fp8" in variant.family and "mxfp4" in variant.family)
    return stages * known["block_k"] - (0 if whole else 32)


def inputs_and_check(
    variant: Variant, rng: np.random.Generator, rows: int, n: int, k: int
) -> tuple[dict[str, object], Callable[[reference.GuardedOutput, str], None]]:
    """Of a random problem: the buffers and scalars of a call, and what compares its result with a float64 reference."""
    operands = schedules.OPERANDS.get(variant.family.removeprefix("gemm_"))
    if operands is not None:
        blocks = reference.grouped_problem(rng, [rows], n, k, formats=operands, wide=operands is not reference.NVFP4)
        expected = reference.grouped_reference(blocks)
        return schedules.dense_inputs(blocks), lambda out, context: reference.verify(blocks, expected, out, context)
    _, fmt, letters, _ = gemm_problem.named(variant.family)
    problem = gemm_problem.gemm_problem(rng, fmt, [rows], n, k)
    inputs, places = gemm_problem.dense(problem)
    return (gemm_problem.buffers(gemm_problem.in_majors(inputs, letters)),
            lambda out, context: gemm_problem.verify(problem, places, out, rows, "as before", context))  # fmt: skip


# Stages of a tile, and how many schedules: other results than fp32 run where all GEMMs do.
FULL = [(variant, 3 * variant.axes["splits"] - 1, 2) for variant in SPLIT]
EMPTY = [(variant, variant.axes["splits"] + 1, 1) for variant in SPLIT if variant.axes["splits"] == 8]


@pytest.mark.parametrize(
    ("variant", "stages", "num_schedules"),
    [*FULL, *EMPTY],
    ids=lambda v: v if isinstance(v, int) else f"{v.arch}-{v.family}-{v.variant}",
)
def test_shares(
    variant: Variant, stages: int, num_schedules: int, packs: list[str] | None, reschedule: Callable[[], str],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Three stages for each CTA and two for the last one, or two for half of them and none for others. A cluster has
    four tiles, so the rings go round. Sums are in the order of the CTAs: of fp32 each schedule gives the same bytes."""
    rows, n = variant.axes["block_m"] + 3, variant.axes["block_n"] + 64
    inputs, check = inputs_and_check(variant, rng, rows, n, depth_of(variant, stages))
    stored = set()
    for _ in range(num_schedules):
        out = reference.GuardedOutput(rows, n, variant.axes["out"])
        context = f"{variant.label} {reschedule()}"
        loader.launch(variant.family, **inputs, out=RawBuffer.of(out.array), variant=variant.variant,
                      device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
        check(out, context)
        stored.add(out.array.tobytes())
    assert len(stored) == 1
