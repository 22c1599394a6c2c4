"""Every variant of the FP8 GEMMs that quantise their result, executed from its PTX on the emulated device."""

from __future__ import annotations

from collections.abc import Callable

import gemm_problem
import numpy as np
import pytest
import shipped_matrix
from block_quantization import FP8, Quantized, quantize
from fp8_swiglu import Outputs

import loader
from generator.matrix import Variant

FORMS = {"gemm_fp8_quantized": gemm_problem.dense, "grouped_fp8_quantized": gemm_problem.by_offsets,
         "grouped_fp8_quantized_masked": gemm_problem.FORMS["_masked"][0]}  # fmt: skip
VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family in FORMS and v.arch == "90a"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")


class Run:
    """Launches one variant under a fresh schedule; returns what it made of the rows."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule, self.context = packs, reschedule, ""

    def __call__(self, variant: Variant, problem: gemm_problem.GemmProblem, **options: object) -> Quantized:
        inputs, places = FORMS[variant.family](problem)
        outputs = Outputs.of(inputs["a"].shape[:-1], problem.b.shape[1])
        self.context = f"{variant.label} {options.get('scale_rounding')} {self.reschedule()}"
        loader.launch(variant.family.removesuffix("_masked"), **inputs, **outputs.arrays, **options,
                      variant=variant.variant, device=f"emulated:{variant.arch}", packs=self.packs)  # fmt: skip
        return outputs.rows(places, "as before", self.context)

    def values(self, variant: Variant, problem: gemm_problem.GemmProblem, **options: object) -> np.ndarray:
        """fp32 of the GEMM alone; the order of its sums does not depend on a tile."""
        inputs, places = FORMS[variant.family](problem)
        out = np.full((*inputs["a"].shape[:-1], problem.b.shape[1]), np.nan, np.float32)
        loader.launch(variant.family.removesuffix("_masked").removesuffix("_quantized"), **inputs, out=out, **options,
                      device=f"emulated:{variant.arch}", packs=self.packs)  # fmt: skip
        return out.reshape(-1, out.shape[-1])[places]


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


def problem_of(variant: Variant, rng: np.random.Generator, n: int, k: int) -> gemm_problem.GemmProblem:
    """A tile of rows and a few, or groups of none, one and several."""
    rows = variant.axes["block_m"] + 3
    counts = [rows] if variant.family.startswith("gemm") else [0, rows, 1, 0, 9]
    return gemm_problem.gemm_problem(rng, "fp8", counts, n, k)


@every_variant
def test_elements_and_scales(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Within the bound of the sums, on tails of N and K, one and two blocks a tile; NaN behind the rows."""
    for n, k, rule in ((400, 400, "none"), (272, 144, "power_of_two"), (16, 16, "none")):
        problem = problem_of(variant, rng, n, k)
        quantized = run(variant, problem, scale_rounding=rule)
        value, bound = gemm_problem.expected(problem)
        quantized.verify(value, gemm_problem.rounded_bound(value, bound, "f32"), rule, run.context)


@every_variant
def test_every_byte_is_that_of_the_gemm_quantised(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """With alpha and bias; a NaN stays in its block, and zeros have the smallest scale."""
    problem = problem_of(variant, rng, 272, 272)
    groups = len(problem.counts)
    bias = rng.standard_normal((groups, 272)).astype(np.float32)
    bias[:, 130] = np.nan
    problem.a_scale[1], bias[:, :128] = 0, np.where(np.arange(groups)[:, None] == problem.groups[1], 0, bias[:, :128])
    options = {"alpha": rng.uniform(-2, 2, groups).astype(np.float32),
               "bias": bias[0] if variant.family.startswith("gemm") else bias}  # fmt: skip
    values = run.values(variant, problem, **options)
    for rule in ("none", "power_of_two"):
        expected, got = quantize(values, FP8, rule), run(variant, problem, scale_rounding=rule, **options)
        assert np.array_equal(got.scales, expected.scales, equal_nan=True), run.context
        assert (got.out == expected.out).all(), run.context
        assert np.isnan(got.scales[:, 1]).all() and not np.isnan(got.scales[:, [0, 2]]).any()
        assert (got.out[1, :128] & 0x7F == 0).all()
