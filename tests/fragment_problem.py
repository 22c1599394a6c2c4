"""Grouped GEMMs of 16-bit tokens and FP4 weights in fragment order: random problems, float64 results and bounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import reference

from integrations.weight_fragments import to_fragments

FORMATS = {"grouped_bf16_nvfp4": reference.NVFP4, "grouped_bf16_mxfp4": reference.MXFP4}
# Below these, halves are subnormal: the tensor core aligns them as if they were as large.
SMALLEST_NORMAL = {"bf16": (0.0, 0.0), "f16": (2.0**-14, 2.0**-7)}  # of tokens, and of weights, which are times 2^-7
LARGEST_POWER = 160  # of UE8M0: a larger one is NaN
WEIGHT_STEP = 2.0**-101  # of MXFP4, whose weights are over 2^32 in bf16


@dataclass(frozen=True)
class FragmentProblem:
    """Tokens [M, K] as bits of bf16 or as f16, and the rest of a problem in FP4, whose own tokens do not count."""

    tokens: np.ndarray
    weights: reference.GroupedProblem
    element: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """M, N, K, E."""
        return self.weights.shape

    @property
    def owned(self) -> int:
        """Rows that are an expert's."""
        return int(self.weights.expert_offsets[-1])

    def inputs(self) -> dict[str, np.ndarray]:
        """The input arguments by name; uint16 stands for bf16."""
        names = ("b_scale", "alpha", "expert_offsets")
        return {"a": self.tokens, "b_fragments": to_fragments(self.weights.b),
                **{name: getattr(self.weights, name) for name in names}}  # fmt: skip


def fragment_problem(
    rng: np.random.Generator, element: str, counts: list[int], n: int, k: int, *, wide: bool = False,
    unowned_rows: int = 0, formats: reference.Formats = reference.NVFP4,
) -> FragmentProblem:  # fmt: skip
    """As ``reference.grouped_problem``; of tokens, exponents over a range of 2^16, and NaN in the rows of no expert.

    Of wide scales some are 448: f16 tokens are small, so that results stay in its range. Where a UE8M0 scale is large,
    tokens are small.
    """
    weights = reference.grouped_problem(
        rng, counts, n, k, wide=wide and formats.group == 16, unowned_rows=unowned_rows, formats=formats
    )
    exponents = rng.integers(-15, 2, k)
    if wide and formats.group == 32:
        weights, centre = _wide_powers(rng, weights)
        exponents = exponents - np.repeat(centre, 32)
    values = rng.standard_normal((sum(counts) + unowned_rows, k)) * np.exp2(exponents)
    values = values.astype(np.float32)
    values[sum(counts) :] = np.nan
    tokens = values.astype(np.float16) if element == "f16" else (values.view(np.uint32) >> 16).astype(np.uint16)
    return FragmentProblem(tokens, weights, element)


def _wide_powers(
    rng: np.random.Generator, weights: reference.GroupedProblem
) -> tuple[reference.GroupedProblem, np.ndarray]:
    """With scales around a power of each block of K, over all that there are, some of them 0; and the powers."""
    groups = weights.b_groups.shape[-1]
    centre = rng.permutation(np.linspace(-103, LARGEST_POWER - 127 - 3, groups).astype(int))
    powers = reference.random_powers(rng, weights.b_groups.shape, centre, wide=True)
    powers[rng.random(powers.shape) < 1 / 16] = 0
    return with_scales(weights, powers), centre


def with_scales(weights: reference.GroupedProblem, scales: np.ndarray) -> reference.GroupedProblem:
    """The problem with these bytes [E, N, blocks], and NaN in all padding."""
    experts, n, groups = scales.shape
    shape = (experts, reference.round_up(n, 128), reference.round_up(groups, 4))
    padded = np.full(shape, weights.formats.nan_scale, np.uint8)
    padded[:, :n, :groups] = scales
    return dataclasses.replace(weights, b_groups=scales, b_scale=reference.to_scale_layout(padded))


def dequantized(weights: reference.GroupedProblem, expert: int) -> np.ndarray:
    """Weights [N, K] of an expert as they are multiplied."""
    formats = weights.formats
    values = reference.dequantize(weights.b[expert], weights.b_groups[expert], formats.weights, formats.scales)
    return values if formats.group == 16 else np.rint(values / WEIGHT_STEP) * WEIGHT_STEP


def expected(problem: FragmentProblem) -> reference.Expected:
    """Float64, and what bounds its fp32 sum; no sum is taken to be exact."""
    weights, (of_tokens, of_weights) = problem.weights, SMALLEST_NORMAL[problem.element]
    a = reference.as_float64(problem.tokens[: problem.owned], problem.element)
    value, magnitude = np.zeros((2, problem.owned, problem.shape[1]))
    for expert, (begin, end) in enumerate(zip(weights.expert_offsets, weights.expert_offsets[1:], strict=False)):
        rows, alpha = a[begin:end], float(weights.alpha[expert])
        b = dequantized(weights, expert)
        value[begin:end] = alpha * (rows @ b.T)
        aligned = [np.where(x != 0, np.maximum(abs(x), least), 0) for x, least in ((rows, of_tokens), (b, of_weights))]
        magnitude[begin:end] = abs(alpha) * (aligned[0] @ aligned[1].T)
    return reference.Expected(value, magnitude, np.zeros_like(value, bool))


def verify(problem: FragmentProblem, result: reference.Expected, out: reference.GuardedOutput, context: str) -> float:
    """Every row of an expert within its bound, and nothing else written; the largest error over its bound."""
    ratio = reference.check(out.values(problem.owned), result, problem.shape[2], out.out_type, context)
    assert out.intact(problem.owned), f"{context}: wrote outside the rows of the experts"
    return ratio
