"""Every variant of grouped_bf16_nvfp4_swiglu and grouped_bf16_mxfp4_swiglu, executed from PTX with all checks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import fragment_problem
import gemm_problem
import numpy as np
import pytest
import reference
import shipped_matrix
from gated_fragments import FORMATS, GPT_OSS, Problem, Settings
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family in FORMATS]
TILES = shipped_matrix.one_output(VARIANTS)

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


class Run:
    """Launches one variant, each time under a fresh schedule and into a poisoned output."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule = packs, reschedule

    def __call__(
        self, variant: Variant, problem: Problem, settings: Settings, prefetch: str = "none"
    ) -> reference.GuardedOutput:
        """The output of a launch, which is within its bounds."""
        context = f"{variant.label} {problem.gemm.shape} {settings} prefetch={prefetch} {self.reschedule()}"
        out = self.launch(problem, settings, variant=variant.variant, prefetch=prefetch)
        problem.verify(settings, out, context)
        return out

    def launch(self, problem: Problem, settings: Settings, **options: str) -> reference.GuardedOutput:
        out = problem.output()
        loader.launch(problem.call, **gemm_problem.buffers(problem.inputs()), out=RawBuffer.of(out.array),
                      **dataclasses.asdict(settings), device="emulated:90a", packs=self.packs, **options)  # fmt: skip
        return out


def random_problem(rng: np.random.Generator, variant: Variant, counts: list[int], i: int, k: int,
                   **options: object) -> Problem:  # fmt: skip
    """For the tokens and the weights of the variant."""
    return Problem.random(rng, variant.axes["element"], counts, i, k, formats=FORMATS[variant.family], **options)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


@shipped_matrix.each(TILES)
def test_many_awkward_things_at_once(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Empty experts, one row, a row tile and three rows, a row tile less one; half a tile of columns, a tail of K, also
    inside a word of scales; NaN in rows without an expert and in padding. Every schedule gives the same bytes, and so
    do weights that are loaded ahead."""
    rows, k = variant.axes["block_m"], (variant.axes["stages"] + 1) * 128 + 80
    counts = [0, 1, rows + 3, 0, rows - 1, 0]
    problem = random_problem(rng, variant, counts, 192, k, unowned_rows=2)
    settings = Settings(str(rng.choice(["f32", "bf16", "f16"])))
    assert len({run(variant, problem, settings, prefetch).array.tobytes() for prefetch in ("none", "weights")}) == 1


@shipped_matrix.each(VARIANTS)
def test_all_that_may_be_left_out(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Bias, an alpha of up, weights of rows, and the activations that models have."""
    counts = [3, 0, variant.axes["block_m"] + 1]
    problem = random_problem(rng, variant, counts, 64, 96, extras=True, unowned_rows=1)
    run(variant, problem, GPT_OSS)
    run(variant, problem, Settings(swiglu_limit=3.0, activation="gelu_tanh"), "weights")


SMALL = {
    "all_rows_in_one_expert": ([0, 0, 9, 0], 64, 96),
    "smallest": ([1], 64, 16),
    "one_row_each": ([1] * 5, 192, 64),
    "no_scale_padding": ([3, 0, 2], 128, 256),
}


@shipped_matrix.each(TILES)
def test_small_problems_with_wide_scales(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Scale bytes over all that are numbers, subnormal ones too, on two of the shapes smaller than any tile."""
    for name in rng.permutation(list(SMALL))[:2]:
        run(variant, random_problem(rng, variant, *SMALL[name], wide=True), Settings("f32"))


@shipped_matrix.each(VARIANTS)
def test_every_byte_of_exact_sums(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Gates and ups are rounded to the type between, activated in fp32 and rounded once to that of tokens."""
    counts = [5, 0, variant.axes["block_m"] + 1]
    problem = random_problem(rng, variant, counts, 128, 336, extras=True, whole=True)
    settings = dataclasses.replace(GPT_OSS, intermediate=str(rng.choice(["f32", "bf16", "f16"])))
    assert (run(variant, problem, settings).array == problem.exact(settings)).all()


@pytest.mark.parametrize("family", FORMATS)
def test_nan_stays_in_its_row_and_column(family: str, run: Run, rng: np.random.Generator) -> None:
    """A token that has one makes its row of the result NaN, a scale of a gate or of an up its column of the expert; so
    does a power of two that bf16 has not."""
    variant = rng.choice([v for v in VARIANTS if v.family == family])
    problem = random_problem(rng, variant, [5, 4], 128, 160)
    problem.gemm.tokens[2, 77] = {"bf16": 0x7FC0, "f16": np.nan}[variant.axes["element"]]
    scales = problem.gemm.weights.b_groups.copy()
    nans = {"grouped_bf16_nvfp4_swiglu": [reference.NAN_SCALE], "grouped_bf16_mxfp4_swiglu": [161, 254, 255]}[family]
    scales[1, [9, 128 + 64 + 20], -2] = rng.choice(nans, 2)
    weights = fragment_problem.with_scales(problem.gemm.weights, scales)
    problem = dataclasses.replace(problem, gemm=dataclasses.replace(problem.gemm, weights=weights))
    nan = np.isnan(run.launch(problem, Settings(), variant=variant.variant).values(9))
    assert nan[2].all() and nan[5:, [9, 64 + 20]].all() and nan.sum() == 128 + 8


@pytest.mark.parametrize(
    "family, element", [("grouped_bf16_nvfp4_swiglu", "f16"), ("grouped_bf16_mxfp4_swiglu", "bf16")]
)
def test_selection_without_a_variant(family: str, element: str, run: Run, rng: np.random.Generator) -> None:
    """The name of the weights' order selects the family, and the type of tokens the variant."""
    problem = Problem.random(rng, element, [0, 5, 2], 64, 160, formats=FORMATS[family])
    problem.verify(Settings(), run.launch(problem, Settings()), family)


def test_no_rows_is_no_launch(run: Run, rng: np.random.Generator) -> None:
    """M = 0 computes nothing and is no error."""
    run.launch(Problem.random(rng, "f16", [0, 0], 64, 64), Settings())


def test_gelu_takes_no_alpha(run: Run, rng: np.random.Generator) -> None:
    """It is no sigmoid of gate whose factor could be another; nothing is left out in silence."""
    settings = Settings(activation="gelu_tanh", swiglu_alpha=1.702)
    with pytest.raises(loader.ConstraintError, match="activation == 0 or swiglu_alpha == 1 does not hold"):
        run.launch(Problem.random(rng, "bf16", [1], 64, 16), settings)
