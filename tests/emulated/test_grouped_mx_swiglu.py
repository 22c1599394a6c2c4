"""Every variant of the fused GEMMs of MX operands, executed from its PTX on the emulated device with all checks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import reference
import schedules
import shipped_matrix
from block_quantization import MXFP4, Quantized
from mx_swiglu import FAMILIES, GPT_OSS, MANY, MASKED, Outputs, Problem, Settings
from packs import ARCHS
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

MATRIX = [v for v in shipped_matrix.VARIANTS if v.arch in ARCHS]
pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def variants(families: dict[str, object]) -> pytest.MarkDecorator:
    found = [v for v in MATRIX if v.family in families]
    return pytest.mark.parametrize("variant", found, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")


every_variant = variants(FAMILIES)


def random_problem(
    variant: Variant, rng: np.random.Generator, counts: list[int], i: int, k: int, **options: object
) -> Problem:  # fmt: skip
    return Problem.random(rng, variant.family, counts, i, k, on_hopper=variant.arch == "90a", **options)


class Run:
    """Launches one variant under a fresh schedule; returns what it made of the rows."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule, self.context = packs, reschedule, ""

    def __call__(self, variant: Variant, problem: Problem, settings: Settings, prefetch: str = "none") -> Quantized:
        outputs = Outputs(problem, FAMILIES[variant.family][1])
        self.context = f"{variant.label} {settings} {self.reschedule()}"
        loader.launch(variant.family, **problem.inputs(), **outputs.arrays, **dataclasses.asdict(settings),
                      prefetch=prefetch, variant=variant.variant, device=f"emulated:{variant.arch}",
                      packs=self.packs)  # fmt: skip
        return outputs.rows(self.context)

    def sums(self, variant: Variant, problem: Problem) -> np.ndarray:
        """fp32 of the GEMM alone, by a tile with as many rows: the order of a sum is the same."""
        family, wanted = variant.family.removesuffix("_swiglu"), {"block_m": variant.axes["block_m"], "out": "f32"}
        alone, *_ = [other.variant for other in MATRIX if other.family == family and other.arch == variant.arch
                     and wanted.items() <= other.axes.items()]  # fmt: skip
        out = np.full((problem.gemm.shape[0], problem.gemm.shape[1]), np.nan, np.float32)
        loader.launch(family, **problem.of_one.inputs(), out=RawBuffer.of(out), variant=alone,
                      device=f"emulated:{variant.arch}", packs=self.packs)  # fmt: skip
        return out[: problem.owned]


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


@every_variant
def test_many_awkward_things_at_once(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Empty experts, one row, a row tile and three rows, a row tile less one; tails of I and K, and of K inside a word
    of scales; unused scale blocks, rows without an expert, NaN in all padding; scales of out that fill no word."""
    rows = variant.axes["block_m"]
    counts = [0, 1, rows + 3, 0, rows - 1, 0]
    for settings, prefetch, i in zip(MANY, ("none", "weights", "weights"), (96, 160, 32), strict=True):
        problem = random_problem(variant, rng, counts, i, 608, extras=i > 32, gaps=True, unowned_rows=2)
        quantized = run(variant, problem, settings, prefetch)
        quantized.verify(*problem.expected(settings), settings.scale_rounding, run.context)


SMALL = {"smallest": ([1], 32, 32), "one row each": ([1] * 5, 160, 64), "a word of scales": ([3, 0, 2], 128, 256)}


@every_variant
def test_every_byte_is_that_of_the_gemm_and_the_activation(
    variant: Variant, run: Run, rng: np.random.Generator
) -> None:
    """Scales by both rules, every type in between, an alpha of its own for up, a bias, weights and limits."""
    _, fmt = FAMILIES[variant.family]
    for counts, i, k in SMALL.values():
        problem = random_problem(variant, rng, counts, i, k, extras=True)
        sums = run.sums(variant, problem)
        for settings in [*MANY, Settings("bf16", "none", "ocp")]:
            expected, got = problem.exact(sums, fmt, settings), run(variant, problem, settings)
            assert (got.scales == expected.scales).all(), run.context
            assert (got.out == expected.out).all(), run.context


@every_variant
def test_values_that_are_no_ordinary_numbers(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """A NaN is in its block of 32, and in no other; blocks of zeros have the smallest scale, and are zeros."""
    problem = random_problem(variant, rng, [9], 96, 96, extras=True)
    _, fmt = FAMILIES[variant.family]
    problem.row_weight[2], problem.row_weight[4], problem.bias[0, 2 * 33 + 1] = 0, np.nan, np.nan
    is_nan = np.zeros((9, 3), bool)
    is_nan[4], is_nan[:, 1] = True, True
    for rule in ("up", "ocp"):
        settings = dataclasses.replace(GPT_OSS, scale_rounding=rule)
        quantized = run(variant, problem, settings)
        assert (np.isnan(quantized.scales) == is_nan).all(), run.context
        assert (quantized.scales[2, [0, 2]] == 2.0**-127).all() and (fmt.elements[quantized.out[2, :32]] == 0).all()
        value, bound = problem.expected(settings)
        kept = Quantized(quantized.out[:4, :32], quantized.scales[:4, :1], fmt)
        kept.verify(value[:4, :32], bound[:4, :32], rule, run.context)


@every_variant
def test_the_next_gemm_takes_the_result_as_it_is(
    variant: Variant, run: Run, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """L2 of a layer, on out and out_scale, against float64 of both; what L1 left in padding does not reach it."""
    operands, fmt = FAMILIES[variant.family]
    counts, i, n = [5, 0, variant.axes["block_m"] + 1], 128, 72
    problem, settings = random_problem(variant, rng, counts, i, 96, extras=True), Settings()
    out = np.full((problem.owned, i // (2 if fmt is MXFP4 else 1)), 0xFF, np.uint8)
    out_scale = np.full((len(problem.gemm.a_scale), 4), 0xFF, np.uint8)
    options = {"device": f"emulated:{variant.arch}", "packs": packs}
    loader.launch(variant.family, **problem.inputs(), out=out, out_scale=out_scale, variant=variant.variant, **options,
                  **dataclasses.asdict(settings))  # fmt: skip
    weights = reference.grouped_problem(rng, counts, n, i, formats=operands)
    result = np.full((problem.owned, n), np.nan, np.float32)
    loader.launch(variant.family.removesuffix("_swiglu"), **{**weights.inputs(), "a": out, "a_scale": out_scale},
                  out=RawBuffer.of(result), **options)  # fmt: skip
    scales = out_scale.reshape(-1)[reference.scale_offset(schedules.places(problem.gemm)[1][:, None], np.arange(4), 4)]
    second = dataclasses.replace(weights, a=out, a_groups=scales)
    of_second = reference.error_bound(reference.grouped_reference(second, on_hopper=problem.on_hopper), i, "f32")
    codes = np.stack([out & 0xF, out >> 4], axis=-1).reshape(problem.owned, i) if fmt is MXFP4 else out
    between = Quantized(codes, reference.UE8M0[scales].astype(np.float32), fmt)
    value, bound = problem.expected(settings)
    b = weights.alpha[:, None, None] * reference.dequantize(weights.b, weights.b_groups, operands.weights,
                                                            operands.scales)  # fmt: skip
    expert = np.repeat(np.arange(len(counts)), counts)
    whole = np.stack([b[e] @ row for row, e in zip(value, expert, strict=True)])
    of_first = np.stack([abs(b[e]) @ row for row, e in zip(between.bound(value, bound), expert, strict=True)])
    reference.check_within(result.astype(np.float64), whole, of_first + of_second, run.context)


@variants(MASKED)
def test_rows_by_mask(
    variant: Variant, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """Masks of 0, of 1, of all rows, and around a tile; scales of matrices that fill no block of 128 rows, of results
    that fill no word. The next GEMM by mask takes both as they are; nothing from the mask on is read or written."""
    rows, (operands, fmt) = variant.axes["block_m"], MASKED[variant.family]
    counts, i = [0, rows + 3, 1, max(rows - 1, 1)], 256 if operands is reference.MXFP8_MXFP4 else 160
    problem = random_problem(variant, rng, counts, i, 352, extras=True)
    settings, outputs = Settings(), Outputs(problem, fmt, rows + 3)
    options = {"device": f"emulated:{variant.arch}", "packs": packs}
    context = f"{variant.label} {reschedule()}"
    loader.launch(variant.family.removesuffix("_masked"), **problem.inputs(rng, rows + 3), **outputs.arrays,
                  **dataclasses.asdict(settings), prefetch="weights", variant=variant.variant, **options)  # fmt: skip
    outputs.rows(context).verify(*problem.expected(settings), settings.scale_rounding, context)
    weights = reference.grouped_problem(rng, counts, 72, i, formats=operands)
    schedules.check_next_layer(weights, *outputs.arrays.values(), rows + 3, f"L2 of {context}", problem.on_hopper,
                               **options)  # fmt: skip
