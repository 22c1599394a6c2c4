"""Every variant of the GEMMs for MX operands, executed from its PTX on the emulated device with all checks on."""

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
Run = Callable[[Variant, reference.GroupedProblem, str], bytes]


def every_variant(schedule: str) -> pytest.MarkDecorator:
    found = [v for v in MATRIX if v.family in (f"{schedule}_{operands}" for operands in schedules.MX_OPERANDS)]
    return pytest.mark.parametrize("variant", found, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")


def random_problem(
    rng: np.random.Generator, variant: Variant, counts: list[int], n: int, k: int, **options: bool | int
) -> reference.GroupedProblem:
    """With K as the family takes it: any number of scales, or whole rows of elements that TMA unpacks."""
    operands = variant.family.partition("_")[2]
    k = reference.round_up(k, 128) if operands == "mxfp8_mxfp4" else k
    return reference.grouped_problem(rng, counts, n, k, formats=schedules.MX_OPERANDS[operands], **options)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    """A checked launch under a fresh schedule; returns the bytes of the output."""

    def launch(variant: Variant, problem: reference.GroupedProblem, prefetch: str) -> bytes:
        schedule = reschedule()
        out = reference.GuardedOutput(problem.shape[0], problem.shape[1], variant.axes["out"])
        inputs = problem.inputs() if variant.family.startswith("grouped") else schedules.dense_inputs(problem)
        loader.launch(variant.family, **inputs, out=RawBuffer.of(out.array), prefetch=prefetch, variant=variant.variant,
                      device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
        context = f"{variant.label} (M, N, K, E) = {problem.shape} prefetch={prefetch} {schedule}"
        expected = reference.grouped_reference(problem, on_hopper=variant.arch == "90a")
        reference.verify(problem, expected, out, context)
        return out.array.tobytes()

    return launch


@every_variant("grouped")
def test_many_awkward_things_at_once(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Empty experts, one row, a row tile and three rows, a row tile less one; tails of N and K, and of K inside a word
    of scales, each of another power of two from 2^-127 to 2^127; unused scale blocks, rows without an expert, NaN in
    all padding. Every schedule gives the same bytes, and so do weights that are loaded ahead."""
    rows, k = variant.axes["block_m"], 2 * variant.axes["block_k"]
    problem = random_problem(rng, variant, [0, 1, rows + 3, 0, rows - 1, 0], variant.axes["block_n"] + 8, k + 96,
                             wide=True, gaps=True, unowned_rows=2)  # fmt: skip
    assert len({run(variant, problem, prefetch) for prefetch in ("none", "weights")}) == 1


SMALL = {
    "all_rows_in_one_expert": ([0, 0, 9, 0], 24, 96),
    "smallest": ([1], 8, 32),
    "one_row_each": ([1] * 5, 136, 64),
    "no_scale_padding": ([3, 0, 2], 128, 256),
    "one_scale_of_the_last_word": ([35, 2], 40, 160),
}


@every_variant("grouped")
def test_small_problems(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """On two of the shapes smaller than any tile, with scales for which the sums of MXFP4 are exact."""
    for name in rng.choice(list(SMALL), 2, replace=False):
        run(variant, random_problem(rng, variant, *SMALL[name]), "none")


@every_variant("gemm")
def test_dense(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """A tile and a few rows, tails of N and K."""
    rows, columns = variant.axes["block_m"] + 3, variant.axes["block_n"] + 8
    run(variant, random_problem(rng, variant, [rows], columns, 352, wide=True), "none")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("operands", schedules.MX_OPERANDS)
def test_selection_without_a_variant(
    arch: str, operands: str, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """numpy arrays without a variant: selection finds one, which adds a bias after alpha."""
    problem = reference.grouped_problem(rng, [0, 5, 2], 72, 256, formats=schedules.MX_OPERANDS[operands])
    bias = rng.standard_normal((3, 72)).astype(np.float32)
    plain, biased = np.empty((2, 7, 72), np.float32)
    for out, given in ((plain, {}), (biased, {"bias": bias})):
        loader.launch(f"grouped_{operands}", **problem.inputs(), **given, out=out, device=f"emulated:{arch}",
                      packs=packs)  # fmt: skip
    assert (biased == plain + np.repeat(bias, [0, 5, 2], axis=0)).all()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("operands", schedules.MX_OPERANDS)
def test_a_nan_scale_reaches_its_row_alone(
    arch: str, operands: str, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """All of that row, and no byte of another."""
    problem = reference.grouped_problem(rng, [5], 72, 256, formats=schedules.MX_OPERANDS[operands])
    inputs = problem.inputs()
    scales = inputs["a_scale"].copy()
    scales.reshape(-1)[reference.scale_offset(3, rng.integers(8), 8)] = problem.formats.nan_scale
    plain, hit = np.empty((2, 5, 72), np.float32)
    for out, given in ((plain, inputs), (hit, {**inputs, "a_scale": scales})):
        loader.launch(f"grouped_{operands}", **given, out=out, device=f"emulated:{arch}", packs=packs)
    assert np.isnan(hit[3]).all()
    assert (np.delete(hit, 3, 0) == np.delete(plain, 3, 0)).all()
