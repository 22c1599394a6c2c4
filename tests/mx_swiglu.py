"""Problems of the fused GEMMs of MX operands: the float64 result of every element with its bound, and all bytes from
known sums."""

from __future__ import annotations

import dataclasses

import block_quantization
import fp8_swiglu
import numpy as np
import reference
import schedules
from block_quantization import MXFP4, MXFP8, Quantized
from quantization import EMULATED, load, store

# Of the operands and of the result.
FORMATS = {"mxfp4": (reference.MXFP4, MXFP4), "mxfp8": (reference.MXFP8, MXFP8),
           "mxfp8_mxfp4": (reference.MXFP8_MXFP4, MXFP8)}  # fmt: skip
FAMILIES = {f"grouped_{operands}_swiglu": formats for operands, formats in FORMATS.items()}
MASKED = {f"{family}_masked": formats for family, formats in FAMILIES.items()}


@dataclasses.dataclass(frozen=True)
class Settings(fp8_swiglu.Settings):
    """The scalars of a launch."""

    scale_rounding: str = "up"


GPT_OSS = Settings("f32", "none", swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)
MANY = [Settings(), GPT_OSS, Settings("f16", scale_rounding="ocp", activation="gelu_tanh", swiglu_limit=7.0)]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A grouped GEMM of about 1 in size, and what its epilogue needs."""

    gemm: reference.GroupedProblem
    row_weight: np.ndarray  # f32 [M]
    up_alpha: np.ndarray | None = None  # f32 [E]
    bias: np.ndarray | None = None  # f32 [E, 2 I]
    on_hopper: bool = False

    @classmethod
    def random(
        cls, rng: np.random.Generator, family: str, counts: list[int], i: int, k: int, extras: bool = False,
        on_hopper: bool = False, **options: object,
    ) -> Problem:  # fmt: skip
        """extras: a bias, and an alpha of its own for up."""
        operands, _ = FAMILIES[family.removesuffix("_masked")]
        k = reference.round_up(k, 128) if operands is reference.MXFP8_MXFP4 else k
        gemm = reference.grouped_problem(rng, counts, 2 * i, k, formats=operands, **options)
        size = abs(reference.grouped_reference(gemm).value).mean()
        gemm = dataclasses.replace(gemm, alpha=(gemm.alpha / size * 2).astype(np.float32))
        weight = (rng.choice([1, -1], gemm.shape[0]) * rng.uniform(0.5, 2, gemm.shape[0])).astype(np.float32)
        if not extras:
            return cls(gemm, weight, on_hopper=on_hopper)
        up_alpha = gemm.alpha * rng.uniform(0.25, 4, len(counts)).astype(np.float32)
        bias = rng.standard_normal((len(counts), 2 * i)).astype(np.float32)
        return cls(gemm, weight, up_alpha, bias, on_hopper)

    def inputs(
        self, rng: np.random.Generator | None = None, max_rows: int | None = None
    ) -> dict[str, np.ndarray | None]:  # fmt: skip
        """Of a launch; by mask where ``max_rows`` is given, with ``rng`` for the rows that are not there."""
        if max_rows is None:
            rows = {**self.gemm.inputs(), "row_weight": self.row_weight}
        else:
            rows = schedules.masked_layer_inputs(self.gemm, rng, max_rows, self.row_weight)
        return {**rows, "up_alpha": self.up_alpha, "bias": self.bias}

    @property
    def owned(self) -> int:
        return int(self.gemm.expert_offsets[-1])

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """f32 [owned, 2 I] both: alpha, and a bias."""
        alphas = np.repeat(self.gemm.alpha[:, None], self.gemm.shape[1], axis=1)
        if self.up_alpha is not None:
            alphas[:, 1::2] = self.up_alpha[:, None]
        expert = np.repeat(np.arange(len(alphas)), np.diff(self.gemm.expert_offsets))
        return alphas[expert], np.full_like(alphas, -0.0)[expert] if self.bias is None else self.bias[expert]

    @property
    def of_one(self) -> reference.GroupedProblem:
        """The GEMM with an alpha of 1."""
        return dataclasses.replace(self.gemm, alpha=np.ones_like(self.gemm.alpha))

    def expected(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """float64 [owned, I] of what is quantised, and how far from that it may be."""
        alphas, bias = (part.astype(np.float64) for part in self.factors)
        sums = reference.grouped_reference(self.of_one, on_hopper=self.on_hopper)
        value = alphas * sums.value + bias
        bound = abs(alphas) * reference.accumulation_bound(sums, self.gemm.shape[2])
        bound = bound + (abs(alphas * sums.value) + abs(value) + bound) * 2.0**-23
        gate, up = ((value[:, part::2], bound[:, part::2]) for part in (0, 1))
        return block_quantization.activated(gate, up, self.row_weight[: self.owned], settings.intermediate,
                                            settings.swiglu)  # fmt: skip

    def exact(self, sums: np.ndarray, fmt: block_quantization.Format, settings: Settings) -> Quantized:
        """Of fp32 sums, which are known to the bit."""
        dtype, (alphas, bias) = settings.intermediate, self.factors
        products = alphas * sums + bias
        gate, up = (load(store(products[:, part::2], dtype), dtype) for part in (0, 1))
        values = settings.swiglu.apply(gate, up, self.row_weight[: self.owned], dtype, EMULATED)
        return block_quantization.quantize(values, fmt, settings.scale_rounding)


class Outputs:
    """out and out_scale of a launch, poisoned; by mask where ``max_rows`` is given, of each matrix."""

    def __init__(self, problem: Problem, fmt: block_quantization.Format, max_rows: int | None = None) -> None:
        columns = problem.gemm.shape[1]
        self.problem, self.format, self.blocks, self.max_rows = problem, fmt, columns // 64, max_rows
        rows, scale_rows = schedules.extents(problem.gemm, max_rows)
        self.out = reference.GuardedOutput(rows, columns // (4 if fmt is MXFP4 else 2), "u8")
        self.out_scale = reference.GuardedOutput(scale_rows, reference.round_up(self.blocks, 4), "u8")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        experts = self.problem.gemm.shape[3]
        return {name: schedules.matrices(buffer.array, experts, self.max_rows)
                for name, buffer in (("out", self.out), ("out_scale", self.out_scale))}  # fmt: skip

    def rows(self, context: str) -> Quantized:
        """Of the experts; zeros fill up their words of scales, and nothing else is written."""
        blocks = self.blocks
        at, scales_at = schedules.places(self.problem.gemm, self.max_rows)
        codes, scales = self.out.array[at], self.out_scale.array.reshape(-1)
        if self.format is MXFP4:
            codes = np.stack([codes & 0xF, codes >> 4], axis=-1).reshape(len(at), -1)
        rows = scales_at[:, None]
        places = reference.scale_offset(rows, np.arange(reference.round_up(blocks, 4)), blocks)
        assert (scales[places[:, blocks:]] == 0).all(), f"{context}: padding of scales is not zero"
        others = [np.delete(scales, places.reshape(-1)), np.delete(self.out.array, at, axis=0)]
        intact = self.out.intact(len(self.out.array)) and self.out_scale.intact(len(self.out_scale.array))
        untouched = intact and all((part == self.out.POISON).all() for part in others)
        assert untouched, f"{context}: wrote outside of the rows"
        return Quantized(codes, reference.UE8M0[scales[places[:, :blocks]]].astype(np.float32), self.format)
