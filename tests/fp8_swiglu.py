"""Problems of grouped_fp8_swiglu and grouped_fp8_ue8m0_swiglu: the float64 result of every element with its bound, and
all bytes from known sums."""

from __future__ import annotations

import dataclasses

import gemm_problem
import numpy as np
import reference
from block_quantization import FP8, Quantized, activated, quantize
from gemm_problem import BLOCK, GemmProblem
from quantization import EMULATED, NO_LIMIT, Swiglu, load, store

# Families, and the format of their operands, which is that of the result.
FORMATS = {"grouped_fp8_swiglu": "fp8", "grouped_fp8_ue8m0_swiglu": "fp8_ue8m0"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scalars of a launch; scales that are packed are powers of two, whatever these say."""

    intermediate: str = "bf16"
    rounding: str = "activation_type"
    scale_rounding: str = "none"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float = NO_LIMIT
    activation: str = "silu"

    @property
    def swiglu(self) -> Swiglu:
        return Swiglu(self.rounding, self.swiglu_alpha, self.swiglu_beta, self.swiglu_limit, self.activation)

    def scalars(self, fmt: str) -> dict[str, object]:
        """Of a launch with operands of the format."""
        found = dataclasses.asdict(self)
        return found if fmt == "fp8" else {name: value for name, value in found.items() if name != "scale_rounding"}

    def scales(self, fmt: str) -> str:
        """The rule that scales of the result follow."""
        return self.scale_rounding if fmt == "fp8" else "power_of_two"


GPT_OSS = Settings("f32", "none", "power_of_two", swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Two GEMMs of the same tokens, and what the epilogue needs of each row."""

    gate: GemmProblem
    up: GemmProblem
    bias: np.ndarray | None  # f32 [E, 2, I]
    row_weight: np.ndarray | None  # f32 of each row

    @classmethod
    def random(
        cls, rng: np.random.Generator, counts: list[int], i: int, k: int, extras: bool = False, fmt: str = "fp8"
    ) -> Problem:
        """Every scale another one. extras: with a bias and row weights."""
        gate, up = (_of_ordinary_size(rng, gemm_problem.gemm_problem(rng, fmt, counts, i, k)) for _ in range(2))
        up = dataclasses.replace(up, a=gate.a, a_scale=gate.a_scale)
        if not extras:
            return cls(gate, up, None, None)
        bias = rng.standard_normal((len(counts), 2, i)).astype(np.float32)
        return cls(gate, up, bias, (rng.choice([1, -1], sum(counts)) * rng.uniform(0.5, 2, sum(counts))).astype("f4"))

    @property
    def columns(self) -> int:
        return self.gate.b.shape[1]

    def inputs(self, form: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Of a launch, in a form of rows; and where in out the rows are. Nobody's rows have NaN."""
        (inputs, places), (of_up, _) = (gemm_problem.FORMS[form][0](part) for part in (self.gate, self.up))
        for name in ("b", "b_scale"):
            inputs[name] = np.stack([inputs[name], of_up[name]], axis=1)
        if self.bias is not None:
            inputs["bias"] = self.bias
        if self.row_weight is not None:
            weight = np.full(inputs["a"].shape[:-1], np.nan, np.float32)
            weight.reshape(-1)[places] = self.row_weight
            inputs["row_weight"] = weight
        return inputs, places

    def clear(self, row: int) -> None:
        """The sums of a row of tokens become 0: by its scales, or, where these hold no 0, in spite of the largest."""
        if self.gate.format == "fp8":
            self.gate.a_scale[row] = 0
        else:
            self.gate.a[row], self.gate.a_scale[row] = 0, 2.0**127

    def expected(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """float64 [rows, I] of what is quantised, and how far from that it may be."""
        sums = [gemm_problem.expected(part) for part in (self.gate, self.up)]
        gate, up = ((value + self._bias(part), bound + (abs(value) + abs(self._bias(part)) + bound) * 2.0**-23)
                    for part, (value, bound) in enumerate(sums))  # fmt: skip
        return activated(gate, up, self._weight(), settings.intermediate, settings.swiglu)

    def exact(self, gate: np.ndarray, up: np.ndarray, settings: Settings) -> Quantized:
        """Of fp32 sums, which are known to the bit."""
        dtype = settings.intermediate
        gate, up = (load(store(sums + self._bias(part), dtype), dtype) for part, sums in enumerate((gate, up)))
        values = settings.swiglu.apply(gate, up, self._weight(), dtype, EMULATED)
        return quantize(values, FP8, settings.scales(self.gate.format))

    def _bias(self, part: int) -> np.ndarray:
        return np.float32(-0.0) if self.bias is None else self.bias[self.gate.groups, part]

    def _weight(self) -> np.ndarray:
        return np.ones(len(self.gate.a), np.float32) if self.row_weight is None else self.row_weight


def _of_ordinary_size(rng: np.random.Generator, problem: GemmProblem) -> GemmProblem:
    """With packed scales of about the size of fp32 ones, so that sums are of the size of what SiLU bends."""
    if problem.format == "fp8":
        return problem
    a_scale, b_scale = (np.exp2(rng.integers(-14, -3, scale.shape)).astype(np.float32)
                        for scale in (problem.a_scale, problem.b_scale))  # fmt: skip
    return dataclasses.replace(problem, a_scale=a_scale, b_scale=b_scale)


@dataclasses.dataclass
class Outputs:
    """out and out_scale of a launch, poisoned."""

    out: reference.GuardedOutput
    out_scale: reference.GuardedOutput
    lead: tuple[int, ...]

    @classmethod
    def of(cls, lead: tuple[int, ...], columns: int, fmt: str = "fp8") -> Outputs:
        """Packed scales are words of four."""
        matrices, rows = int(np.prod(lead[:-1])), lead[-1]
        of_scale, dtype = (BLOCK, "f32") if fmt == "fp8" else (4 * BLOCK, "i32")
        scale_rows = matrices * reference.ceil_div(columns, of_scale)
        return cls(reference.GuardedOutput(matrices * rows, columns, "u8"),
                   reference.GuardedOutput(scale_rows, reference.round_up(rows, 4), dtype), lead)  # fmt: skip

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        columns, matrices = self.out.array.shape[1], self.lead[:-1]
        return {"out": self.out.array.reshape(*self.lead, columns),
                "out_scale": self.out_scale.array.reshape(*matrices, -1, self.out_scale.array.shape[1])}  # fmt: skip

    def rows(self, places: np.ndarray, padding: str, context: str) -> Quantized:
        """Those at the places; that the others are zeros, or as before, with their scales, and nothing else was
        written."""
        rows = self.lead[-1]
        scales = self.arrays["out_scale"].reshape(-1, *self.arrays["out_scale"].shape[-2:]).swapaxes(1, 2)
        behind = np.ascontiguousarray(scales[:, rows:])
        scales = scales[:, :rows].reshape(-1, scales.shape[2])
        unchanged = 0 if padding == "zeros" else self.out.POISON
        for written in (self.out.array, scales):
            rest = np.ascontiguousarray(np.delete(written, places, axis=0)).view(np.uint8)
            assert (rest == unchanged).all(), f"{context}: rows of padding are not {padding}"
        intact = self.out.intact(len(self.out.array)) and self.out_scale.intact(len(self.out_scale.array))
        assert intact and (behind.view(np.uint8) == self.out.POISON).all(), f"{context}: wrote outside of the rows"
        return Quantized(self.out.array[places], self._numbers(scales[places], context), FP8)

    def _numbers(self, scales: np.ndarray, context: str) -> np.ndarray:
        """fp32 [rows, blocks] of scales, or of words of four. What fills up the last word is 0."""
        if scales.dtype == np.float32:
            return scales
        codes = np.ascontiguousarray(scales).view(np.uint8)
        codes, rest = np.split(codes, [reference.ceil_div(self.out.array.shape[1], BLOCK)], axis=1)
        assert (rest == 0).all(), f"{context}: a word is not filled up"
        return np.where(codes == gemm_problem.NAN_SCALE, np.nan, np.exp2(codes.astype(np.float64) - 127)).astype("f4")
