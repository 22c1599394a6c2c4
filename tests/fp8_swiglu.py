"""Problems of grouped_fp8_swiglu: the float64 result of every element with its bound, and all bytes from known sums."""

from __future__ import annotations

import dataclasses

import gemm_problem
import numpy as np
import reference
from gemm_problem import BLOCK, GemmProblem
from quantization import EMULATED, NO_LIMIT, Swiglu, load, store, to_ue4m3

LARGEST, SMALLEST_AMAX = 448, 1e-10
# Largest slope of SiLU with any alpha and of GELU.
SLOPE = 1.13


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scalars of ``grouped_fp8_swiglu``."""

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


GPT_OSS = Settings("f32", "none", "power_of_two", swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)


@dataclasses.dataclass
class Quantized:
    """E4M3 [rows, I], and fp32 scales [rows, blocks of I]."""

    out: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        wide = np.repeat(self.scales.astype(np.float64), BLOCK, axis=1)[:, : self.out.shape[1]]
        return reference.E4M3[self.out] * wide


@dataclasses.dataclass(frozen=True)
class Problem:
    """Two GEMMs of the same tokens, and what the epilogue needs of each row."""

    gate: GemmProblem
    up: GemmProblem
    bias: np.ndarray | None  # f32 [E, 2, I]
    row_weight: np.ndarray | None  # f32 of each row

    @classmethod
    def random(cls, rng: np.random.Generator, counts: list[int], i: int, k: int, extras: bool = False) -> Problem:
        """Every scale another one. extras: with a bias and row weights."""
        gate, up = (gemm_problem.gemm_problem(rng, "fp8", counts, i, k) for _ in range(2))
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
        inputs, places = gemm_problem.FORMS[form][0](self.gate)
        inputs["b"] = np.stack([self.gate.b, self.up.b], axis=1)
        inputs["b_scale"] = np.stack([self.gate.b_scale, self.up.b_scale], axis=1)
        if self.bias is not None:
            inputs["bias"] = self.bias
        if self.row_weight is not None:
            weight = np.full(inputs["a"].shape[:-1], np.nan, np.float32)
            weight.reshape(-1)[places] = self.row_weight
            inputs["row_weight"] = weight
        return inputs, places

    def expected(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """float64 [rows, I] of what is quantised, and how far from that it may be."""
        sums = [gemm_problem.expected(part) for part in (self.gate, self.up)]
        gate, up = ((value + self._bias(part), bound + (abs(value) + abs(self._bias(part)) + bound) * 2.0**-23)
                    for part, (value, bound) in enumerate(sums))  # fmt: skip
        return activated(gate, up, self._weight(), settings)

    def exact(self, gate: np.ndarray, up: np.ndarray, settings: Settings) -> Quantized:
        """Of fp32 sums, which are known to the bit."""
        dtype = settings.intermediate
        gate, up = (load(store(sums + self._bias(part), dtype), dtype) for part, sums in enumerate((gate, up)))
        return quantize(settings.swiglu.apply(gate, up, self._weight(), dtype, EMULATED), settings.scale_rounding)

    def _bias(self, part: int) -> np.ndarray:
        return np.float32(-0.0) if self.bias is None else self.bias[self.gate.groups, part]

    def _weight(self) -> np.ndarray:
        return np.ones(len(self.gate.a), np.float32) if self.row_weight is None else self.row_weight


def activated(
    gate: tuple[np.ndarray, np.ndarray], up: tuple[np.ndarray, np.ndarray], weight: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Value and bound of the activation of values with bounds. Limits move nothing farther apart. Each approximation
    and each fp32 operation is off by 2^-22 of its result at most, and an error in the exponent of the sigmoid counts as
    often as that is large, up to where the sigmoid is 0."""
    dtype, limit = settings.intermediate, settings.swiglu_limit
    (gate, of_gate), (up, of_up) = ((value, gemm_problem.rounded_bound(value, bound, dtype))
                                    for value, bound in (gate, up))  # fmt: skip
    if limit < NO_LIMIT:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    up = up + settings.swiglu_beta
    slope = settings.swiglu_alpha if settings.activation == "silu" else 1.5957691216 * (1 + 0.044715 * gate**2)
    exponent = np.clip(slope * gate, -700, 700)
    gated = gate / (1 + np.exp(-exponent))
    value = gated * up * weight[:, None]
    bound = abs(weight[:, None]) * (SLOPE * of_gate * (abs(up) + of_up) + abs(gated) * of_up)
    bound = bound + abs(value) * (np.minimum(abs(exponent), 100) * 1.5 + 8) * 2.0**-22 + 1e-30
    return value, gemm_problem.rounded_bound(value, bound, dtype if settings.rounding == "activation_type" else "f32")


def blocks_of(values: np.ndarray) -> np.ndarray:
    """[rows, I] as [rows, blocks, 128], zeros behind."""
    padded = np.zeros((len(values), reference.round_up(values.shape[1], BLOCK)), values.dtype)
    padded[:, : values.shape[1]] = values
    return padded.reshape(len(values), -1, BLOCK)


def quantize(values: np.ndarray, scale_rounding: str) -> Quantized:
    """fp32 [rows, I] as the kernel does it, every operation rounded to fp32."""
    with np.errstate(all="ignore"):
        scales = np.maximum(abs(blocks_of(values)).max(-1), np.float32(SMALLEST_AMAX)) / np.float32(LARGEST)
        if scale_rounding == "power_of_two":
            scales = np.exp2(np.ceil(np.log2(scales.astype(np.float64)))).astype(np.float32)
        scaled = values * np.repeat(np.float32(1) / scales, BLOCK, axis=1)[:, : values.shape[1]]
    codes = to_ue4m3(abs(scaled))
    return Quantized(np.where(np.isnan(scaled), codes, codes | np.signbit(scaled) << 7).astype(np.uint8), scales)


def quantization_bound(quantized: Quantized, value: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """How far E4M3 times its scale may be from a value that is known within a bound: half a step more."""
    scale = np.repeat(quantized.scales.astype(np.float64), BLOCK, axis=1)[:, : value.shape[1]]
    largest = np.minimum((abs(value) + bound) / scale, LARGEST)
    step = 2.0 ** np.maximum(np.floor(np.log2(np.maximum(largest, 2.0**-20))) - 3, -9)
    return bound + scale * step / 2 + (abs(value) + bound) * 2.0**-21


def verify(quantized: Quantized, value: np.ndarray, bound: np.ndarray, scale_rounding: str, context: str = "") -> None:
    """Scales follow from a maximum within the bound, and each element is its value, rounded."""
    amax = np.maximum(abs(blocks_of(value)).max(-1), SMALLEST_AMAX)
    off = blocks_of(bound).max(-1) + amax * 2.0**-21
    held = quantized.scales.astype(np.float64) * LARGEST
    if scale_rounding == "power_of_two":
        assert (np.frexp(quantized.scales)[0] == 0.5).all(), f"{context}: a scale is no power of two"
        assert ((held >= amax - off) & (held < 2 * (amax + off))).all(), f"{context}: another power of two"
    else:
        reference.check_within(held, amax, off, f"{context} scales")
    reference.check_within(quantized.values, value, quantization_bound(quantized, value, bound), context)


@dataclasses.dataclass
class Outputs:
    """out and out_scale of a launch, poisoned."""

    out: reference.GuardedOutput
    out_scale: reference.GuardedOutput
    lead: tuple[int, ...]

    @classmethod
    def of(cls, lead: tuple[int, ...], columns: int) -> Outputs:
        matrices, rows = int(np.prod(lead[:-1])), lead[-1]
        scale_rows = matrices * reference.ceil_div(columns, BLOCK)
        return cls(reference.GuardedOutput(matrices * rows, columns, "u8"),
                   reference.GuardedOutput(scale_rows, reference.round_up(rows, 4), "f32"), lead)  # fmt: skip

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
        return Quantized(self.out.array[places], scales[places])
