"""Every variant of grouped_fp8_swiglu and grouped_fp8_ue8m0_swiglu, executed from its PTX on the emulated device, with
rows in every form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import gemm_problem
import numpy as np
import pytest
import reference
import shipped_matrix
from block_quantization import Quantized
from fp8_swiglu import FORMATS, GPT_OSS, Outputs, Problem, Settings
from packs import ARCHS

import loader
from generator.matrix import Variant

MATRIX = shipped_matrix.VARIANTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def variants(form: str = "", families: Iterable[str] = FORMATS) -> pytest.MarkDecorator:
    named = {f"{family}{form}" for family in families}
    found = [v for v in MATRIX if v.family in named and v.arch in ARCHS]
    return pytest.mark.parametrize("variant", found, ids=lambda v: v.label)


def base(variant: Variant) -> str:
    """The family whose call it is, whatever its form of rows."""
    return next(family for family in FORMATS if variant.family.startswith(family))


class Run:
    """Launches one variant under a fresh schedule; returns what it made of the rows."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule, self.context = packs, reschedule, ""

    def __call__(
        self, variant: Variant, problem: Problem, settings: Settings, form: str = "", prefetch: str = "none"
    ) -> Quantized:
        inputs, places = problem.inputs(form)
        family = base(variant)
        outputs = Outputs.of(inputs["a"].shape[:-1], problem.columns, FORMATS[family])
        self.context = f"{variant.label} {settings} {self.reschedule()}"
        loader.launch(family, **inputs, **outputs.arrays, **settings.scalars(FORMATS[family]),
                      prefetch=prefetch, variant=variant.variant, device=f"emulated:{variant.arch}",
                      packs=self.packs)  # fmt: skip
        return outputs.rows(places, gemm_problem.FORMS[form][1], self.context)

    def sums(self, variant: Variant, problem: gemm_problem.GemmProblem) -> np.ndarray:
        """fp32 of the GEMM, whose order of sums does not depend on the tile."""
        inputs, _ = gemm_problem.by_offsets(problem, spare=0)
        out = np.empty((len(problem.a), problem.b.shape[1]), np.float32)
        loader.launch(f"grouped_{problem.format}", **inputs, out=out, device=f"emulated:{variant.arch}",
                      packs=self.packs)  # fmt: skip
        return out


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


def random(rng: np.random.Generator, variant: Variant, *shape: object, extras: bool = False) -> Problem:
    return Problem.random(rng, *shape, extras=extras, fmt=FORMATS[base(variant)])


def check(run: Run, variant: Variant, problem: Problem, settings: Settings, form: str = "", **options: str) -> None:
    quantized = run(variant, problem, settings, form, **options)
    quantized.verify(*problem.expected(settings), settings.scales(problem.gate.format), run.context)


@variants()
def test_offsets(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of a tile and a few; tails of I and K; NaN behind; bias, row weights and limits."""
    counts = [0, variant.axes["block_m"] + 3, 1, 0, 9]
    check(run, variant, random(rng, variant, counts, 144, 400), Settings(), prefetch="weights")
    check(run, variant, random(rng, variant, counts, 272, 144, extras=True), GPT_OSS)


@variants("_ends")
def test_ends(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Padding of every group, and its scales, become zeros; a group of no row has none."""
    check(run, variant, random(rng, variant, [7, 0, 130, 128], 144, 272, extras=True), Settings(), "_ends")


@variants("_labels")
def test_labels(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Padding, also whole tiles of it at the end, and its scales, become zeros."""
    check(run, variant, random(rng, variant, [1, 0, 100, 128], 144, 272, extras=True), Settings(), "_labels")


@variants("_masked")
def test_masked(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Masks of 0, 1, all rows but three; scales of each matrix apart. Rows from the mask on are left as they are."""
    rows = variant.axes["block_m"] + 2
    problem = random(rng, variant, [0, rows, 1, rows - 6], 272, 144, extras=True)
    check(run, variant, problem, Settings("f16", swiglu_limit=7.0), "_masked")


@variants("", ["grouped_fp8_ue8m0_swiglu"])
def test_words(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Scales of more than a word a row, of K and of the result; the last words are filled up."""
    counts = [3, 0, variant.axes["block_m"] + 1]
    check(run, variant, random(rng, variant, counts, 656, 656, extras=True), Settings())


@variants("_masked", ["grouped_fp8_ue8m0_swiglu"])
def test_words_of_each_matrix(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """More words of the result than of K: those of a matrix do not lie where the tokens' do."""
    check(run, variant, random(rng, variant, [5, 0, 2], 656, 144), Settings("f32"), "_masked")


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
            problem = random(rng, variant, counts, i, k, extras=settings.activation == "silu")
            gate, up = (run.sums(variant, part) for part in (problem.gate, problem.up))
            expected = problem.exact(gate, up, settings)
            got = run(variant, problem, settings)
            assert (got.scales == expected.scales).all(), run.context
            assert (got.out == expected.out).all(), run.context


@variants()
def test_values_that_are_no_ordinary_numbers(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """A NaN is in all of its block of its row, and in no other; rows of zeros have the smallest scale."""
    problem = random(rng, variant, [9], 272, 144, extras=True)
    problem.bias[:] = 0
    problem.clear(2)
    problem.gate.a_scale[3, 1] = np.nan
    problem.row_weight[4], problem.bias[0, 1, 130] = np.nan, np.nan
    is_nan = np.zeros((9, 3), bool)
    is_nan[3], is_nan[4], is_nan[:, 1] = True, True, True
    for settings in (Settings("f32"), GPT_OSS):
        quantized = run(variant, problem, settings)
        assert (np.isnan(quantized.scales) == is_nan).all()
        if settings.swiglu_beta == 0:
            exact = np.float32(1e-10) / np.float32(448)
            smallest = exact if settings.scales(problem.gate.format) == "none" else 2.0**-42  # the power above
            assert (quantized.scales[2, [0, 2]] == smallest).all() and (quantized.out[2, :128] & 0x7F == 0).all()
        problem.bias[0, 1, 130] = 0
        value, bound = problem.expected(settings)
        problem.bias[0, 1, 130] = np.nan
        rows, blocks = [0, 1, 5, 6, 7, 8], [*range(128), *range(256, 272)]
        kept = Quantized(quantized.out[rows][:, blocks], quantized.scales[rows][:, [0, 2]], quantized.format)
        rule = settings.scales(problem.gate.format)
        kept.verify(value[rows][:, blocks], bound[rows][:, blocks], rule, run.context)


@variants()
def test_the_next_gemm_takes_the_result_as_it_is(
    variant: Variant, run: Run, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """L2 of a layer, on out and out_scale, against float64 of both."""
    counts, i, n = [5, 0, variant.axes["block_m"] + 1], 272, 72
    problem, settings = random(rng, variant, counts, i, 144, extras=True), Settings()
    (inputs, places), fmt = problem.inputs(""), problem.gate.format
    outputs = Outputs.of(inputs["a"].shape[:-1], i, fmt)
    options = {"device": f"emulated:{variant.arch}", "packs": packs}
    loader.launch(base(variant), **inputs, **outputs.arrays, **settings.scalars(fmt), variant=variant.variant,
                  **options)  # fmt: skip
    second = gemm_problem.gemm_problem(rng, fmt, counts, n, i)
    out = np.full((len(inputs["a"]), n), np.nan, np.float32)
    of_second, _ = gemm_problem.by_offsets(second)
    of_second |= {"a": outputs.arrays["out"], "a_scale": outputs.arrays["out_scale"]}
    loader.launch(f"grouped_{fmt}", **of_second, out=out, **options)
    between = outputs.rows(places, "as before", "L1")
    second = dataclasses.replace(second, a=between.out, a_scale=between.scales)
    _, of_second = gemm_problem.expected(second)
    value, bound = problem.expected(settings)
    bound = between.bound(value, bound)
    rows_of_scale = 128 if fmt == "fp8" else 1
    weights = second.operands[1].dequantized(second.b, np.repeat(second.b_scale, rows_of_scale, 1)[:, :n])
    whole = np.stack([weights[e] @ row for row, e in zip(value, second.groups, strict=True)])
    of_first = np.stack([abs(weights[e]) @ row for row, e in zip(bound, second.groups, strict=True)])
    reference.check_within(out[places].astype(np.float64), whole, of_first + of_second, run.context)
    assert np.isnan(out[len(places) :]).all()


@variants()
def test_gelu_takes_no_alpha(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """It is no sigmoid of gate whose factor could be another; nothing is left out in silence."""
    settings = Settings(activation="gelu_tanh", swiglu_alpha=1.702)
    with pytest.raises(loader.ConstraintError, match="activation == 0 or swiglu_alpha == 1 does not hold"):
        run(variant, random(rng, variant, [1], 16, 16), settings)


@pytest.mark.parametrize(("family", "arch"), [("grouped_fp8_swiglu", "90a"), ("grouped_fp8_ue8m0_swiglu", "100a")])
def test_selection_takes_a_tile_by_the_rows_of_a_group(
    family: str, arch: str, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Without a variant, few rows and many; both are right."""
    fmt = FORMATS[family]
    for counts in ([3, 1], [200]):
        problem = Problem.random(rng, counts, 48, 48, fmt=fmt)
        inputs, places = problem.inputs("")
        outputs = Outputs.of(inputs["a"].shape[:-1], 48, fmt)
        loader.launch(family, **inputs, **outputs.arrays, intermediate="bf16", device=f"emulated:{arch}",
                      packs=packs)  # fmt: skip
        quantized = outputs.rows(places, "as before", "")
        quantized.verify(*problem.expected(Settings()), Settings().scales(fmt))
