"""Every variant of the dense and of the masked schedule, executed from its PTX on the emulated device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
import schedules
import shipped_matrix
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

ARCHS = ("90a", "100a", "120a")
MATRIX = [variant for variant in shipped_matrix.VARIANTS if variant.arch in ARCHS]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def every_variant(*families: str) -> pytest.MarkDecorator:
    variants = [variant for variant in MATRIX if variant.family in families]
    return pytest.mark.parametrize("variant", variants, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")


@every_variant(*(f"grouped_{operands}_masked" for operands in schedules.OPERANDS))
def test_masked(
    variant: Variant, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """Masks of 0, of 1, of all rows, and around a tile; tails of N and K. No row from the mask on is written, and what
    they hold does not matter."""
    rows, name = variant.axes["block_m"], variant.family.removesuffix("_masked")
    operands = schedules.OPERANDS[name.removeprefix("grouped_")]
    k = 384 if operands is reference.MXFP8_MXFP4 else 352  # TMA unpacks whole rows of 128 elements
    problem = reference.grouped_problem(rng, [0, rows + 3, 1, max(rows - 1, 1)], variant.axes["block_n"] + 8, k,
                                        formats=operands, wide=operands is not reference.NVFP4)  # fmt: skip
    out = reference.GuardedOutput(4 * (rows + 3), problem.shape[1], variant.axes["out"])
    schedule = reschedule()
    array = out.array.reshape(4, rows + 3, -1)
    loader.launch(name, **schedules.masked_inputs(problem, rng, rows + 3), out=RawBuffer.of(array), prefetch="weights",
                  variant=variant.variant, device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    context = f"{variant.label} {schedule}"
    expected = reference.grouped_reference(problem, on_hopper=variant.arch == "90a")
    schedules.verify_masked(problem, expected, array, out.out_type, context)
    assert out.intact(len(out.array)), f"{context}: wrote outside of out"


@every_variant("gemm_fp4")
def test_dense(
    variant: Variant, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """A tile and a few rows, tails of N and K, and a bias, which adds to each column."""
    n = variant.axes["block_n"] + 8
    problem = reference.grouped_problem(rng, [variant.axes["block_m"] + 3], n, 352)
    out = reference.GuardedOutput(problem.shape[0], n, variant.axes["out"])
    schedule = reschedule()
    loader.launch("gemm_fp4", **schedules.dense_inputs(problem), out=RawBuffer.of(out.array), variant=variant.variant,
                  device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    reference.verify(problem, reference.grouped_reference(problem), out, f"{variant.label} {schedule}")


@pytest.mark.parametrize("arch", ARCHS)
def test_a_bias_of_one_matrix(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """Without a variant: selection finds one."""
    problem = reference.grouped_problem(rng, [5], 72, 160)
    bias = rng.standard_normal(72).astype(np.float32)
    plain, biased = np.empty((2, 5, 72), np.float32)
    for out, given in ((plain, {}), (biased, {"bias": bias})):
        loader.launch("gemm_fp4", **schedules.dense_inputs(problem), **given, out=out, device=f"emulated:{arch}",
                      packs=packs)  # fmt: skip
    assert (biased == plain + bias).all()


@pytest.mark.parametrize("arch", ARCHS)
def test_expected_rows_choose_the_tile(arch: str, packs: list[str] | None) -> None:
    """By default the tile is one for full matrices."""
    given = {"E": 8, "Mmax": 1024, "N": 2048, "K": 2048, "out": "bf16", "device": arch, "packs": packs}
    few, full = (loader.explain("grouped_fp4_masked", **given, **rows).variant for rows in ({"expected_rows": 4}, {}))
    assert int(few[1 : few.index("n")]) < int(full[1 : full.index("n")])
