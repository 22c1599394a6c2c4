"""Every variant of grouped_bf16_nvfp4 and of grouped_bf16_mxfp4, executed from its PTX with all checks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import fragment_problem
import gemm_problem
import numpy as np
import pytest
import quantization
import reference
import shipped_matrix
from fragment_problem import FORMATS, FragmentProblem
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family in FORMATS]
OVERLOADED = {"grouped_bf16_nvfp4": "grouped_fp4", "grouped_bf16_mxfp4": "grouped_mxfp4"}
TILES = shipped_matrix.one_output(VARIANTS)
PREFETCH = ("none", "weights")

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


class Runner:
    """Launches through the loader on an emulated device, each time under a fresh schedule."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self._packs, self._reschedule = packs, reschedule

    def __call__(self, variant: Variant, problem: FragmentProblem, **arguments: object) -> reference.GuardedOutput:
        """The output of a launch, and that it wrote no rows but those of experts."""
        schedule = self._reschedule()
        out = reference.GuardedOutput(problem.shape[0], problem.shape[1], variant.axes["out"])
        loader.launch(OVERLOADED[variant.family], **gemm_problem.buffers(problem.inputs()), out=RawBuffer.of(out.array),
                      variant=variant.variant, device="emulated:90a", packs=self._packs, **arguments)  # fmt: skip
        assert out.intact(problem.owned), f"{variant.label} {problem.shape} {schedule}: wrote outside of experts' rows"
        return out

    def verify(self, variant: Variant, problem: FragmentProblem, result: reference.Expected, prefetch: str) -> bytes:
        """The bytes of the output of a launch, which is within its bounds."""
        out = self(variant, problem, prefetch=prefetch)
        fragment_problem.verify(problem, result, out, f"{variant.label} {problem.shape} prefetch={prefetch}")
        return out.array.tobytes()


def random_problem(rng: np.random.Generator, variant: Variant, counts: list[int], n: int, k: int,
                   **options: object) -> FragmentProblem:  # fmt: skip
    """In the formats of the variant, K rounded up to whole blocks of a scale."""
    formats = FORMATS[variant.family]
    k = reference.round_up(k, formats.group)
    return fragment_problem.fragment_problem(rng, variant.axes["element"], counts, n, k, formats=formats, **options)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Runner:
    return Runner(packs, reschedule)


@shipped_matrix.each(VARIANTS)
def test_many_awkward_things_at_once(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Empty experts, one row, a row tile and three rows, a row tile less one; tails of N and K, and of K inside a word
    of scales; NaN in rows without an expert and in padding. Every schedule gives the same bytes, and so do weights that
    are loaded ahead."""
    rows, stages = variant.axes["block_m"], variant.axes["stages"]
    n, k = variant.axes["block_n"] + 8, (stages + 1) * 128 + 80
    problem = random_problem(rng, variant, [0, 1, rows + 3, 0, rows - 1, 0], n, k, unowned_rows=2)
    result = fragment_problem.expected(problem)
    assert len({run.verify(variant, problem, result, prefetch) for prefetch in PREFETCH}) == 1


SMALL = {
    "all_rows_in_one_expert": ([0, 0, 9, 0], 24, 96),
    "smallest": ([1], 8, 16),
    "one_row_each": ([1] * 5, 136, 64),
    "no_scale_padding": ([3, 0, 2], 128, 256),
}


@shipped_matrix.each(TILES)
def test_small_problems_with_wide_scales(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Scale bytes over all that are numbers, subnormal ones too, on two of the shapes smaller than any tile."""
    for name, prefetch in zip(rng.permutation(list(SMALL)), PREFETCH, strict=False):
        problem = random_problem(rng, variant, *SMALL[name], wide=True)
        run.verify(variant, problem, fragment_problem.expected(problem), prefetch)


@shipped_matrix.each([v for v in TILES if v.axes["counts"] > 1])
def test_every_number_of_boxes(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """A tile loads and multiplies its tokens in steps: of each number of steps the fewest rows and the most."""
    step = variant.axes["step"]
    rows = [n for n in range(1, variant.axes["block_m"] + 1) if n % step < 2]
    problem = random_problem(rng, variant, list(rng.permutation(rows)), 40, 144)
    run.verify(variant, problem, fragment_problem.expected(problem), str(rng.choice(PREFETCH)))


@pytest.mark.parametrize("family, element", [("grouped_bf16_nvfp4", "bf16"), ("grouped_bf16_nvfp4", "f16"),
                                             ("grouped_bf16_mxfp4", "bf16")])  # fmt: skip
def test_every_weight_times_every_scale_is_exact(
    family: str, element: str, run: Runner, rng: np.random.Generator
) -> None:
    """One token is a row of the identity each, so each element of the result is one weight times its scale; every byte.
    Weights are all that there are, and scales all that are numbers. Of MXFP4 the smallest are rounded."""
    chosen = [v for v in VARIANTS if (v.family, v.axes["element"], v.axes["block_n"]) == (family, element, 256)]
    variant, n, k = rng.choice(chosen), 128, 256
    problem = random_problem(rng, variant, [k], n, k)
    weights = problem.weights
    scales = 0x7F if family == "grouped_bf16_nvfp4" else fragment_problem.LARGEST_POWER + 1
    weights.b[:] = rng.permuted(np.arange(n * k // 2) % 256).reshape(weights.b.shape)
    weights.b_groups[:] = rng.permuted(np.arange(weights.b_groups.size) % scales).reshape(weights.b_groups.shape)
    weights.b_scale[:] = reference.to_scale_layout(weights.b_groups)
    weights.alpha[:] = 1
    one = {"bf16": 0x3F80, "f16": 1}[element]
    problem.tokens[:] = np.eye(k, dtype=problem.tokens.dtype) * problem.tokens.dtype.type(one)
    exact = fragment_problem.dequantized(weights, 0).T
    expected = quantization.store(exact.astype(np.float32), element)
    assert (run(variant, problem).values(k) == reference.as_float64(expected, element)).all()


@shipped_matrix.each(TILES)
def test_a_bias_is_added_in_fp32(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """To the product with alpha, each rounded on its own, before the result is rounded once more; every byte. Tokens
    are small integers, so that sums are exact."""
    n, element = variant.axes["block_n"] + 24, variant.axes["element"]
    problem = random_problem(rng, variant, [3, 0, variant.axes["block_m"] + 1], n, 96)
    whole = rng.integers(-8, 9, problem.tokens.shape).astype(np.float32)
    problem.tokens[:] = quantization.store(whole, element)
    bias = (rng.standard_normal((3, n)) * 8).astype(np.float32)
    bias[:, ::7], bias[:, 1::7] = -0.0, 2.0**-140
    expert = np.repeat(np.arange(3), np.diff(problem.weights.expert_offsets))
    products = fragment_problem.expected(problem).value.astype(np.float32)
    expected = quantization.store(products + bias[expert], element)
    out = run(variant, problem, bias=bias, prefetch=str(rng.choice(PREFETCH)))
    assert (out.array == expected).all(), variant.label


@pytest.mark.parametrize("family", FORMATS)
def test_nan_stays_in_its_row_and_column(family: str, run: Runner, rng: np.random.Generator) -> None:
    """A token that has one makes its row of the result NaN, a scale of a weight its column of the expert; so does a
    power of two that bf16 has not."""
    variant = rng.choice([v for v in VARIANTS if v.family == family])
    problem = random_problem(rng, variant, [5, 4], 40, 160)
    problem.tokens[2, 77] = {"bf16": 0x7FC0, "f16": np.nan}[variant.axes["element"]]
    scales = problem.weights.b_groups.copy()
    scales[1, 9, -2] = {"grouped_bf16_nvfp4": 0x7F, "grouped_bf16_mxfp4": rng.choice([161, 254, 255])}[family]
    problem = dataclasses.replace(problem, weights=fragment_problem.with_scales(problem.weights, scales))
    nan = np.isnan(run(variant, problem).values(9))
    assert nan[2].all() and nan[5:, 9].all() and nan.sum() == 40 + 4


@pytest.mark.parametrize("family, element", [("grouped_bf16_nvfp4", "f16"), ("grouped_bf16_mxfp4", "bf16")])
def test_selection_without_a_variant(
    family: str, element: str, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """The name of the weights' order selects the family, and the type of tokens the variant."""
    problem = fragment_problem.fragment_problem(rng, element, [0, 5, 2], 72, 160, formats=FORMATS[family])
    out = reference.GuardedOutput(problem.shape[0], 72, element)
    loader.launch(OVERLOADED[family], **gemm_problem.buffers(problem.inputs()), out=RawBuffer.of(out.array),
                  device="emulated:90a", packs=packs)  # fmt: skip
    fragment_problem.verify(problem, fragment_problem.expected(problem), out, family)


def test_the_result_has_the_type_of_tokens(packs: list[str] | None, rng: np.random.Generator) -> None:
    """No variant rounds the sums of one type to another."""
    problem = fragment_problem.fragment_problem(rng, "f16", [3], 24, 64)
    out = RawBuffer.of(np.zeros((3, 24), np.uint16))
    with pytest.raises(loader.NoKernelError):
        loader.launch("grouped_fp4", **problem.inputs(), out=out, device="emulated:90a", packs=packs)


def test_no_rows_is_no_launch(packs: list[str] | None, rng: np.random.Generator) -> None:
    """M = 0 computes nothing and is no error."""
    problem = fragment_problem.fragment_problem(rng, "f16", [0, 0], 64, 64)
    out = np.empty((0, 64), np.float16)
    loader.launch("grouped_fp4", **problem.inputs(), out=out, device="emulated:90a", packs=packs)
