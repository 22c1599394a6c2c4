"""Grouped GEMMs of 16-bit tokens and NVFP4 weights in fragment order: random problems, float64 results and bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import reference

from integrations.weight_fragments import to_fragments

# Below these, halves are subnormal: the tensor core aligns them as if they were as large.
SMALLEST_NORMAL = {"bf16": (0.0, 0.0), "f16": (2.0**-14, 2.0**-7)}  # of tokens, and of weights, which are times 2^-7


@dataclass(frozen=True)
class FragmentProblem:
    """Tokens [M, K] as bits of bf16 or as f16, and the rest of a problem in NVFP4, whose own tokens do not count."""

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
        """The input arguments of ``grouped_bf16_nvfp4`` by name; uint16 stands for bf16."""
        names = ("b_scale", "alpha", "expert_offsets")
        return {"a": self.tokens, "b_fragments": to_fragments(self.weights.b),
                **{name: getattr(self.weights, name) for name in names}}  # fmt: skip


def fragment_problem(
    rng: np.random.Generator, element: str, counts: list[int], n: int, k: int, *, wide: bool = False,
    unowned_rows: int = 0,
) -> FragmentProblem:  # fmt: skip
    """As ``reference.grouped_problem``; of tokens, exponents over a range of 2^16, and NaN in the rows of no expert.

    Of wide scales some are 448: f16 tokens are small, so that results stay in its range.
    """
    weights = reference.grouped_problem(rng, counts, n, k, wide=wide, unowned_rows=unowned_rows)
    values = rng.standard_normal((sum(counts) + unowned_rows, k)) * np.exp2(rng.integers(-15, 2, (1, k)))
    values = values.astype(np.float32)
    values[sum(counts) :] = np.nan
    tokens = values.astype(np.float16) if element == "f16" else (values.view(np.uint32) >> 16).astype(np.uint16)
    return FragmentProblem(tokens, weights, element)


def expected(problem: FragmentProblem) -> reference.Expected:
    """Float64, and what bounds its fp32 sum; no sum is taken to be exact."""
    weights, (of_tokens, of_weights) = problem.weights, SMALLEST_NORMAL[problem.element]
    a = reference.as_float64(problem.tokens[: problem.owned], problem.element)
    value, magnitude = np.zeros((2, problem.owned, problem.shape[1]))
    for expert, (begin, end) in enumerate(zip(weights.expert_offsets, weights.expert_offsets[1:], strict=False)):
        rows, alpha = a[begin:end], float(weights.alpha[expert])
        b = reference.dequantize(weights.b[expert], weights.b_groups[expert])
        value[begin:end] = alpha * (rows @ b.T)
        aligned = [np.where(x != 0, np.maximum(abs(x), least), 0) for x, least in ((rows, of_tokens), (b, of_weights))]
        magnitude[begin:end] = abs(alpha) * (aligned[0] @ aligned[1].T)
    return reference.Expected(value, magnitude, np.zeros_like(value, bool))


def verify(problem: FragmentProblem, result: reference.Expected, out: reference.GuardedOutput, context: str) -> float:
    """Every row of an expert within its bound, and nothing else written; the largest error over its bound."""
    ratio = reference.check(out.values(problem.owned), result, problem.shape[2], out.out_type, context)
    assert out.intact(problem.owned), f"{context}: wrote outside the rows of the experts"
    return ratio
