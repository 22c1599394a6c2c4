"""Every variant of grouped_fp8_swiglu, executed from its PTX on the emulated device, with rows in every form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import gemm_problem
import numpy as np
import pytest
import reference
import shipped_matrix
from block_quantization import Quantized
from fp8_swiglu import GPT_OSS, Outputs, Problem, Settings

import loader
from generator.matrix import Variant

MATRIX = shipped_matrix.VARIANTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def variants(form: str = "") -> pytest.MarkDecorator:
    found = [v for v in MATRIX if v.family == f"grouped_fp8_swiglu{form}" and v.arch == "90a"]
    return pytest.mark.parametrize("variant", found, ids=lambda v: f"{v.arch}-{v.variant}")


class Run:
    """Launches one variant under a fresh schedule; returns what it made of the rows."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule, self.context = packs, reschedule, ""

    def __call__(
        self, variant: Variant, problem: Problem, settings: Settings, form: str = "", prefetch: str = "none"
    ) -> Quantized:
        inputs, places = problem.inputs(form)
        outputs = Outputs.of(inputs["a"].shape[:-1], problem.columns)
        self.context = f"{variant.label} {settings} {self.reschedule()}"
        loader.launch("grouped_fp8_swiglu", **inputs, **outputs.arrays, **dataclasses.asdict(settings),
                      prefetch=prefetch, variant=variant.variant, device=f"emulated:{variant.arch}",
                      packs=self.packs)  # fmt: skip
        return outputs.rows(places, gemm_problem.FORMS[form][1], self.context)

    def sums(self, variant: Variant, problem: gemm_problem.GemmProblem) -> np.ndarray:
        """fp32 of grouped_fp8, whose order of sums does not depend on the tile."""
        inputs, _ = gemm_problem.by_offsets(problem, spare=0)
        out = np.empty((len(problem.a), problem.b.shape[1]), np.float32)
        loader.launch("grouped_fp8", **inputs, out=out, device=f"emulated:{variant.arch}", packs=self.packs)
        return out


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


def check(run: Run, variant: Variant, problem: Problem, settings: Settings, form: str = "", **options: str) -> None:
    quantized = run(variant, problem, settings, form, **options)
    quantized.verify(*problem.expected(settings), settings.scale_rounding, run.context)


@variants()
def test_offsets(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of a tile and a few; tails of I and K; NaN behind; bias, row weights and limits."""
    counts = [0, variant.axes["block_m"] + 3, 1, 0, 9]
    check(run, variant, Problem.random(rng, counts, 144, 400), Settings(), prefetch="weights")
    check(run, variant, Problem.random(rng, counts, 272, 144, extras=True), GPT_OSS)


@variants("_ends")
def test_ends(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Padding of every group, and its scales, become zeros; a group of no row has none."""
    check(run, variant, Problem.random(rng, [7, 0, 130, 128], 144, 272, extras=True), Settings(), "_ends")


@variants("_labels")
def test_labels(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Padding, also whole tiles of it at the end, and its scales, become zeros."""
    check(run, variant, Problem.random(rng, [1, 0, 100, 128], 144, 272, extras=True), Settings(), "_labels")


@variants("_masked")
def test_masked(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Masks of 0, 1, all rows but three; scales of each matrix apart. Rows from the mask on are left as they are."""
    rows = variant.axes["block_m"] + 2
    problem = Problem.random(rng, [0, rows, 1, rows - 6], 272, 144, extras=True)
    check(run, variant, problem, Settings("f16", swiglu_limit=7.0), "_masked")


SMALL = {"one row": ([1], 16, 16), "a block": ([3], 128, 128), "columns of two tiles": ([2, 0, 5], 144, 160)}
EXACT = [
    Settings(),
    GPT_OSS,
    Settings("f16", scale_rounding="power_of_two", swiglu_limit=7.0),
    Settings("bf16", "none", activation="gelu_tanh"),
]


@variants()
def test_every_byte_is_that_of_grouped_fp8_and_the_activation(
    variant: Variant, run: Run, rng: np.random.Generator
) -> None:
    """Scales, too, of every kind of rounding, and with the parameters of the activation."""
    for counts, i, k in SMALL.values():
        for settings in EXACT:
            problem = Problem.random(rng, counts, i, k, extras=settings.activation == "silu")
            gate, up = (run.sums(variant, part) for part in (problem.gate, problem.up))
            expected = problem.exact(gate, up, settings)
            got = run(variant, problem, settings)
            assert (got.scales == expected.scales).all(), run.context
            assert (got.out == expected.out).all(), run.context


@variants()
def test_values_that_are_no_ordinary_numbers(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """A NaN is in all of its block of its row, and in no other; rows of zeros have the smallest scale."""
    problem = Problem.random(rng, [9], 272, 144, extras=True)
    problem.bias[:] = 0
    problem.gate.a_scale[2], problem.gate.a_scale[3, 1] = 0, np.nan
    problem.row_weight[4], problem.bias[0, 1, 130] = np.nan, np.nan
    is_nan = np.zeros((9, 3), bool)
    is_nan[3], is_nan[4], is_nan[:, 1] = True, True, True
    for settings in (Settings("f32"), GPT_OSS):
        quantized = run(variant, problem, settings)
        assert (np.isnan(quantized.scales) == is_nan).all()
        if settings.swiglu_beta == 0:
            smallest = np.float32(1e-10) / np.float32(448)
            assert (quantized.scales[2, [0, 2]] == smallest).all() and (quantized.out[2, :128] & 0x7F == 0).all()
        problem.bias[0, 1, 130] = 0
        value, bound = problem.expected(settings)
        problem.bias[0, 1, 130] = np.nan
        rows, blocks = [0, 1, 5, 6, 7, 8], [*range(128), *range(256, 272)]
        kept = Quantized(quantized.out[rows][:, blocks], quantized.scales[rows][:, [0, 2]], quantized.format)
        kept.verify(value[rows][:, blocks], bound[rows][:, blocks], settings.scale_rounding, run.context)


@variants()
def test_the_next_gemm_takes_the_result_as_it_is(
    variant: Variant, run: Run, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """L2 of a layer, on out and out_scale, against float64 of both."""
    counts, i, n = [5, 0, variant.axes["block_m"] + 1], 272, 72
    problem, settings = Problem.random(rng, counts, i, 144, extras=True), Settings()
    inputs, places = problem.inputs("")
    outputs = Outputs.of(inputs["a"].shape[:-1], i)
    options = {"device": f"emulated:{variant.arch}", "packs": packs}
    loader.launch("grouped_fp8_swiglu", **inputs, **outputs.arrays, **dataclasses.asdict(settings),
                  variant=variant.variant, **options)  # fmt: skip
    second = gemm_problem.gemm_problem(rng, "fp8", counts, n, i)
    out = np.full((len(inputs["a"]), n), np.nan, np.float32)
    loader.launch("grouped_fp8", a=outputs.arrays["out"], a_scale=outputs.arrays["out_scale"], b=second.b,
                  b_scale=second.b_scale, expert_offsets=inputs["expert_offsets"], out=out, **options)  # fmt: skip
    between = outputs.rows(places, "as before", "L1")
    second = dataclasses.replace(second, a=between.out, a_scale=between.scales)
    _, of_second = gemm_problem.expected(second)
    value, bound = problem.expected(settings)
    bound = between.bound(value, bound)
    scale = np.repeat(np.repeat(second.b_scale.astype(np.float64), 128, 1)[:, :n], 128, 2)[..., :i]
    weights = reference.E4M3[second.b] * scale
    whole = np.stack([weights[e] @ row for row, e in zip(value, second.groups, strict=True)])
    of_first = np.stack([abs(weights[e]) @ row for row, e in zip(bound, second.groups, strict=True)])
    reference.check_within(out[places].astype(np.float64), whole, of_first + of_second, run.context)
    assert np.isnan(out[len(places) :]).all()


@variants()
def test_gelu_takes_no_alpha(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """It is no sigmoid of gate whose factor could be another; nothing is left out in silence."""
    settings = Settings(activation="gelu_tanh", swiglu_alpha=1.702)
    with pytest.raises(loader.ConstraintError, match="activation == 0 or swiglu_alpha == 1 does not hold"):
        run(variant, Problem.random(rng, [1], 16, 16), settings)


def test_selection_takes_a_tile_by_the_rows_of_a_group(
    packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Without a variant, few rows and many; both are right."""
    for counts in ([3, 1], [200]):
        problem = Problem.random(rng, counts, 48, 48)
        inputs, places = problem.inputs("")
        outputs = Outputs.of(inputs["a"].shape[:-1], 48)
        loader.launch("grouped_fp8_swiglu", **inputs, **outputs.arrays, intermediate="bf16", device="emulated:90a",
                      packs=packs)  # fmt: skip
        outputs.rows(places, "as before", "").verify(*problem.expected(Settings()), "none")
