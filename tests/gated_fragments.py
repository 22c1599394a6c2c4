"""Problems of grouped_bf16_nvfp4_swiglu and grouped_bf16_mxfp4_swiglu: random ones, with the float64 result of every
element and its bound."""

from __future__ import annotations

import dataclasses

import block_quantization
import fragment_problem
import gemm_problem
import numpy as np
import reference
from fragment_problem import FragmentProblem
from quantization import EMULATED, NO_LIMIT, Swiglu, load, store

FORMATS = {"grouped_bf16_nvfp4_swiglu": reference.NVFP4, "grouped_bf16_mxfp4_swiglu": reference.MXFP4}
GATES = 64  # rows of gates, and then as many of their ups


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scalars of a launch."""

    intermediate: str = "bf16"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float = NO_LIMIT
    activation: str = "silu"

    @property
    def swiglu(self) -> Swiglu:
        """The result is rounded once, to the type of tokens."""
        return Swiglu("none", self.swiglu_alpha, self.swiglu_beta, self.swiglu_limit, self.activation)


GPT_OSS = Settings("f32", swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)


def halves(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of [.., 2 I] in the order of the weight rows those of gates and of ups, [.., I] each."""
    *lead, size = columns.shape
    parts = columns.reshape(*lead, size // (2 * GATES), 2, GATES)
    return tuple(parts[..., half, :].reshape(*lead, size // 2) for half in (0, 1))


@dataclasses.dataclass(frozen=True)
class Problem:
    """A GEMM whose rows of weights are gates and ups, and what else the epilogue may take."""

    gemm: FragmentProblem
    extras: dict[str, np.ndarray]  # of bias [E, 2 I], up_alpha [E] and row_weight [M], those that a call gives

    @classmethod
    def random(
        cls, rng: np.random.Generator, element: str, counts: list[int], i: int, k: int, *, extras: bool = False,
        whole: bool = False, **options: object,
    ) -> Problem:  # fmt: skip
        """Gates and ups are of the size of what SiLU bends. whole: tokens are small integers, so that sums are exact.
        options: of ``fragment_problem``; K is rounded up to whole blocks of a scale."""
        k = reference.round_up(k, options.get("formats", reference.NVFP4).group)
        gemm = fragment_problem.fragment_problem(rng, element, counts, 2 * i, k, **options)
        if whole:
            integers = rng.integers(-8, 9, (gemm.owned, k)).astype(np.float32)
            gemm.tokens[: gemm.owned] = store(integers, element)
        sums = fragment_problem.expected(gemm).value
        if sums.size:
            gemm.weights.alpha[:] *= np.float32(2 / np.sqrt(np.mean(sums**2)))
        if not extras:
            return cls(gemm, {})
        experts, rows = len(counts), gemm.shape[0]
        weight = (rng.choice([1, -1], rows) * rng.uniform(0.5, 2, rows)).astype(np.float32)
        weight[gemm.owned :] = np.nan
        return cls(gemm, {"bias": rng.standard_normal((experts, 2 * i)).astype(np.float32),
                          "up_alpha": gemm.weights.alpha * rng.uniform(0.5, 2, experts).astype(np.float32),
                          "row_weight": weight})  # fmt: skip

    @property
    def call(self) -> str:
        """The family that is called, which theirs overload."""
        return "grouped_fp4_swiglu" if self.gemm.weights.formats is reference.NVFP4 else "grouped_mxfp4_swiglu"

    @property
    def columns(self) -> int:
        """Of the result."""
        return self.gemm.shape[1] // 2

    def inputs(self) -> dict[str, np.ndarray]:
        """The input arguments by name; uint16 stands for bf16."""
        return self.gemm.inputs() | self.extras

    def output(self) -> reference.GuardedOutput:
        """Poisoned, as large as a launch takes it."""
        return reference.GuardedOutput(self.gemm.shape[0], self.columns, self.gemm.element)

    def expected(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """float64 [rows, I], and how far what is stored may be from that."""
        parts = []
        for part, products in enumerate(self._products()):
            value, bound = products.value + self._bias, reference.accumulation_bound(products, self.gemm.shape[2])
            bound = bound + (abs(products.value) + abs(value) + bound) * 2.0**-23
            parts.append((halves(value)[part], halves(bound)[part]))
        value, bound = block_quantization.activated(*parts, self._weight, settings.intermediate, settings.swiglu)
        return value, gemm_problem.rounded_bound(value, bound, self.gemm.element)

    def exact(self, settings: Settings) -> np.ndarray:
        """What is stored, [rows, I], where tokens are ``whole``: every byte."""
        dtype = settings.intermediate
        sums = (products.value.astype(np.float32) + self._bias for products in self._products())
        gate, up = (halves(load(store(both, dtype), dtype))[part] for part, both in enumerate(sums))
        return store(settings.swiglu.apply(gate, up, self._weight, dtype, EMULATED), self.gemm.element)

    def _products(self) -> list[reference.Expected]:
        """[rows, 2 I] with the alpha of gates, and with that of ups."""
        weights = self.gemm.weights
        alphas = weights.alpha, self.extras.get("up_alpha", weights.alpha)
        return [fragment_problem.expected(dataclasses.replace(
                    self.gemm, weights=dataclasses.replace(weights, alpha=alpha))) for alpha in alphas]  # fmt: skip

    @property
    def _bias(self) -> np.ndarray:
        """Of each row, [rows, 2 I] or one for all."""
        expert = np.repeat(np.arange(self.gemm.shape[3]), np.diff(self.gemm.weights.expert_offsets))
        return self.extras["bias"][expert] if "bias" in self.extras else np.float32(-0.0)

    @property
    def _weight(self) -> np.ndarray:
        return self.extras.get("row_weight", np.ones(self.gemm.shape[0], np.float32))[: self.gemm.owned]

    def verify(self, settings: Settings, out: reference.GuardedOutput, context: str) -> None:
        """Every row of an expert within its bound, and nothing else written."""
        reference.check_within(out.values(self.gemm.owned), *self.expected(settings), context)
        assert out.intact(self.gemm.owned), f"{context}: wrote outside the rows of the experts"
