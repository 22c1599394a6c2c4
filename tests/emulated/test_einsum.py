"""Every variant of the einsums, executed from its PTX on the emulated device."""

from __future__ import annotations

from collections.abc import Callable

import einsum_problem
import gemm_problem
import numpy as np
import pytest
import reference
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


def variants(*families: str) -> pytest.MarkDecorator:
    found = [variant for variant in MATRIX if variant.family in families]
    return pytest.mark.parametrize("variant", found, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")


OF_MATRICES = ("einsum_bf16", "einsum_bf16_nn", "einsum_bf16_tn", "einsum_fp8", "einsum_fp8_ue8m0",
               "einsum_fp8_ue8m0_nn", "einsum_fp8_ue8m0_tn")  # fmt: skip


class Run:
    """Launches one variant, and verifies what came out and that nothing else was written."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator) -> None:
        self.packs, self.reschedule, self.rng = packs, reschedule, rng

    def __call__(self, variant: Variant, rows: int, groups: int, n: int, k: int, **scalars: str) -> None:
        _, fmt, letters, _ = gemm_problem.named(variant.family)
        problem = gemm_problem.gemm_problem(self.rng, fmt, [rows] * groups, n, k)
        problem.on_hopper = variant.arch == "90a"
        out = reference.GuardedOutput(rows * groups, n, variant.axes["out"])
        array = out.array.reshape(einsum_problem.shape(rows, groups, n, letters))
        context = f"{variant.label} {self.reschedule()}"
        loader.launch(variant.family, **einsum_problem.inputs(problem, letters), out=RawBuffer.of(array),
                      variant=variant.variant, device=f"emulated:{variant.arch}", packs=self.packs,
                      **scalars)  # fmt: skip
        places = einsum_problem.places(rows, groups, letters)
        gemm_problem.verify(problem, places, out, rows * groups, "as before", context)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator) -> Run:
    return Run(packs, reschedule, rng)


@variants(*OF_MATRICES)
def test_matrices(variant: Variant, run: Run) -> None:
    """A tile and a few rows, tails of N and K, rows and matrices with pitches of their own, of NaN in between."""
    run(variant, variant.axes["block_m"] + 3, 3, variant.axes["block_n"] + 8, 203, prefetch="weights")


@variants(*OF_MATRICES)
def test_smallest(variant: Variant, run: Run) -> None:
    """One row, one matrix, 8 columns, one element along K; and one row of several matrices."""
    run(variant, 1, 1, 8, 1)
    run(variant, 1, 5, 24, 40)


@variants("einsum_bf16_tn", "einsum_fp8_ue8m0_tn")
def test_accumulate(variant: Variant, packs: list[str] | None, rng: np.random.Generator) -> None:
    """add: the product and what out held, once."""
    rows, groups, n = 21, 2, 136
    _, fmt, letters, _ = gemm_problem.named(variant.family)
    problem = gemm_problem.gemm_problem(rng, fmt, [rows] * groups, n, 150)
    before = rng.standard_normal((groups, rows, n)).astype(np.float32)
    out = before.copy()
    loader.launch(variant.family, **einsum_problem.inputs(problem, letters), out=out, accumulate="add",
                  variant=variant.variant, device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    value, bound = gemm_problem.expected(problem)
    value, before = value + before.reshape(value.shape), before.reshape(value.shape)
    bound = bound + (abs(value) + abs(before)) * 2.0**-22
    reference.check_within(out.reshape(value.shape).astype(np.float64), value, bound, variant.label)


@variants("einsum_bf16_shares")
@pytest.mark.parametrize(("matrices", "k", "shares"), [(5, 72, 3), (2, 128, 7), (1, 8, 1)])
def test_shares(
    variant: Variant, matrices: int, k: int, shares: int, packs: list[str] | None, reschedule: Callable[[], str],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Each share has its own blocks of K and no other; a share without any is zeros. A block ends with its matrix."""
    rows, n, block = variant.axes["block_m"] + 3, variant.axes["block_n"] + 8, variant.axes.get("block_k", 64)
    problem = gemm_problem.gemm_problem(rng, "bf16", [rows], n, matrices * k)
    out = reference.GuardedOutput(shares * rows, n, "f32")
    context = f"{variant.label} {reschedule()}"
    loader.launch("einsum_bf16_shares", **gemm_problem.buffers(einsum_problem.chained(problem, matrices)),
                  out=out.array.reshape(shares, rows, n), prefetch="weights", variant=variant.variant,
                  device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    begins = einsum_problem.share_bounds(matrices, k, shares, block)
    for share, (begin, end) in enumerate(zip(begins, begins[1:], strict=False)):
        part = einsum_problem.of_share(problem, matrices, block, begin, end)
        value, bound = gemm_problem.expected(part)
        stored = out.array[share * rows : (share + 1) * rows].astype(np.float64)
        reference.check_within(stored, value, bound + abs(value) * 2.0**-22 + 2.0**-149,
                               f"{context} share {share}")  # fmt: skip
    assert out.intact(shares * rows), f"{context}: wrote outside of out"


@variants("sum_of_shares")
@pytest.mark.parametrize("accumulate", ["overwrite", "add"])
@pytest.mark.parametrize(("shares", "rows", "n"), [(1, 1, 4), (7, 3, 44), (44, 5, 136)])
def test_sum_of_shares(
    variant: Variant, shares: int, rows: int, n: int, accumulate: str, packs: list[str] | None,
    reschedule: Callable[[], str], rng: np.random.Generator,
) -> None:  # fmt: skip
    """All shares, and with add what out held, rounded once; nothing is written behind the last element."""
    parts = rng.standard_normal((shares, rows, n)).astype(np.float32)
    out = reference.GuardedOutput(rows, n, variant.axes["out"])
    held = rng.standard_normal((rows, n)).astype(np.float32)
    if out.out_type == "bf16":
        held = (held.view(np.uint32) >> 16).astype(np.uint16)
    if accumulate == "add":
        out.array[:] = held
    before = reference.as_float64(held, out.out_type) if accumulate == "add" else np.zeros((rows, n))
    context = f"{variant.label} {reschedule()}"
    loader.launch("sum_of_shares", shares=parts, out=RawBuffer.of(out.array), accumulate=accumulate,
                  variant=variant.variant, device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    value = parts.astype(np.float64).sum(0) + before
    bound = (abs(parts).astype(np.float64).sum(0) + abs(before)) * (shares + 1) * 2.0**-24
    reference.check_within(reference.as_float64(out.array, out.out_type), value,
                           gemm_problem.rounded_bound(value, bound, out.out_type), context)  # fmt: skip
    assert out.intact(rows), f"{context}: wrote outside of out"
