"""Quantisation in blocks with a scale each, to FP8, MX and NVFP4: what an activation and it make of values with a
bound, and every byte of values that are known."""

from __future__ import annotations

from dataclasses import dataclass

import gemm_problem
import numpy as np
import reference
from quantization import NO_LIMIT, Swiglu, to_e2m1, to_ue4m3

# Largest slope of SiLU with any alpha and of GELU.
SLOPE = 1.13


@dataclass(frozen=True)
class Format:
    """Elements in blocks that share a scale; UE8M0 of MX as the powers of two that they are."""

    name: str
    block: int
    elements: np.ndarray  # values of the codes
    largest: float
    fraction: int  # bits of an element
    step: float  # of the smallest elements

    @property
    def is_mx(self) -> bool:
        return self.block == 32


FP8 = Format("FP8", 128, reference.E4M3, 448, 3, 2.0**-9)
MXFP8 = Format("MXFP8", 32, reference.E4M3, 448, 3, 2.0**-9)
MXFP4 = Format("MXFP4", 32, reference.E2M1, 6, 1, 0.5)
NVFP4 = Format("NVFP4", 16, reference.E2M1, 6, 1, 0.5)
SMALLEST_AMAX = 1e-10  # of FP8


@dataclass
class Quantized:
    """Codes [rows, columns], and scales [rows, blocks]."""

    out: np.ndarray
    scales: np.ndarray
    format: Format

    @property
    def wide_scales(self) -> np.ndarray:
        return _widened(self.scales.astype(np.float64), self.format, self.out.shape[1])

    @property
    def values(self) -> np.ndarray:
        return self.format.elements[self.out] * self.wide_scales

    def bound(self, value: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """How far an element times its scale may be from a value that is known within a bound: half a step more, or
        what is over the largest element."""
        fmt, scale = self.format, self.wide_scales
        largest = (abs(value) + bound) / scale
        binade = np.floor(np.log2(np.clip(largest, fmt.step, fmt.largest)))
        half_step = np.maximum(2.0 ** (binade - fmt.fraction), fmt.step) / 2
        return bound + scale * np.maximum(half_step, largest - fmt.largest) + (abs(value) + bound) * 2.0**-21

    def verify(self, value: np.ndarray, bound: np.ndarray, scale_rounding: str, context: str = "") -> None:
        """Scales follow from a maximum within the bound, and each element is its value, rounded."""
        fmt = self.format
        amax = abs(blocks_of(value, fmt)).max(-1)
        amax = amax if fmt.is_mx else np.maximum(amax, SMALLEST_AMAX)
        off = blocks_of(bound, fmt).max(-1) + amax * 2.0**-21
        held = self.scales.astype(np.float64) * fmt.largest
        if scale_rounding == "none":
            reference.check_within(held, amax, off, f"{context} scales")
        else:
            assert (np.frexp(self.scales)[0] == 0.5).all(), f"{context}: a scale is no power of two"
            if scale_rounding == "ocp":
                held = 2.0 ** (np.floor(np.log2(fmt.largest)) + 1) * self.scales.astype(np.float64)
            right = (held >= amax - off) & ((held <= 2 * (amax + off)) | (self.scales == 2.0**-127))
            assert right.all(), f"{context}: another power of two"
        reference.check_within(self.values, value, self.bound(value, bound), context)


def verify_nvfp4(
    quantized: Quantized, value: np.ndarray, bound: np.ndarray, encode: float, context: str = ""
) -> None:  # fmt: skip
    """Scales, UE4M3 as numbers, are some that follow from a largest magnitude within the bound: they grow with that.
    Where one is 0 so are the elements, and each other element is its value, rounded. encode: 6 * 448 / amax."""
    amax, off = (blocks_of(abs(part), NVFP4).max(-1) for part in (value, bound))
    off = off + amax * 2.0**-21  # of the operations from there to the scale
    low, high = (to_ue4m3(part * encode / 6) for part in (np.maximum(amax - off, 0), amax + off))
    codes = to_ue4m3(quantized.scales)
    assert ((low <= codes) & (codes <= high)).all(), f"{context}: a scale does not follow from the largest of its block"
    is_zero = _widened(codes == 0, NVFP4, value.shape[1])
    assert (NVFP4.elements[quantized.out[is_zero]] == 0).all(), f"{context}: an element without a scale"
    scaled = Quantized(quantized.out, np.where(codes == 0, 1, quantized.scales / encode), NVFP4)
    within = np.where(is_zero, abs(value) + bound, scaled.bound(value, bound))
    reference.check_within(scaled.values, value, within, context)


def _widened(of_blocks: np.ndarray, fmt: Format, columns: int) -> np.ndarray:
    return np.repeat(of_blocks, fmt.block, axis=1)[:, :columns]


def blocks_of(values: np.ndarray, fmt: Format) -> np.ndarray:
    """[rows, columns] as [rows, blocks, of a block], zeros behind."""
    padded = np.zeros((len(values), reference.round_up(values.shape[1], fmt.block)), values.dtype)
    padded[:, : values.shape[1]] = values
    return padded.reshape(len(values), padded.shape[1] // fmt.block, fmt.block)


def activated(
    gate: tuple[np.ndarray, np.ndarray], up: tuple[np.ndarray, np.ndarray], weight: np.ndarray, dtype: str,
    swiglu: Swiglu,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Value and bound of the activation of values with bounds. Limits move nothing farther apart. Each approximation
    and each fp32 operation is off by 2^-22 of its result at most, and an error in the exponent of the sigmoid counts as
    often as that is large, up to where the sigmoid is 0."""
    (gate, of_gate), (up, of_up) = ((value, gemm_problem.rounded_bound(value, bound, dtype))
                                    for value, bound in (gate, up))  # fmt: skip
    limit = swiglu.swiglu_limit
    if limit < NO_LIMIT:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    up = up + swiglu.swiglu_beta
    slope = swiglu.swiglu_alpha if swiglu.activation == "silu" else 1.5957691216 * (1 + 0.044715 * gate**2)
    exponent = np.clip(slope * gate, -700, 700)
    gated = gate / (1 + np.exp(-exponent))
    value = gated * up * weight[:, None]
    bound = abs(weight[:, None]) * (SLOPE * of_gate * (abs(up) + of_up) + abs(gated) * of_up)
    bound = bound + abs(value) * (np.minimum(abs(exponent), 100) * 1.5 + 8) * 2.0**-22 + 1e-30
    return value, gemm_problem.rounded_bound(value, bound, dtype if swiglu.rounding == "activation_type" else "f32")


def quantize(values: np.ndarray, fmt: Format, scale_rounding: str) -> Quantized:
    """fp32 [rows, columns] as kernels do it, every operation rounded to fp32."""
    with np.errstate(all="ignore"):
        amax = abs(blocks_of(values, fmt)).max(-1)
        if fmt.is_mx:
            scales = _powers(amax.astype(np.float64), fmt, scale_rounding)
        else:
            scales = np.maximum(amax, np.float32(SMALLEST_AMAX)) / np.float32(fmt.largest)
            if scale_rounding == "power_of_two":
                scales = np.exp2(np.ceil(np.log2(scales.astype(np.float64))))
        scales = scales.astype(np.float32)
        scaled = values * _widened(np.float32(1) / scales, fmt, values.shape[1])
    if len(fmt.elements) == 16:
        return Quantized(to_e2m1(scaled), scales, fmt)
    codes = to_ue4m3(abs(scaled))
    return Quantized(np.where(np.isnan(scaled), codes, codes | np.signbit(scaled) << 7).astype(np.uint8), scales, fmt)


def _powers(amax: np.ndarray, fmt: Format, scale_rounding: str) -> np.ndarray:
    amax = np.where(np.isinf(amax), 2.0**128, amax)  # the exponent that it has in fp32
    exact = np.log2(amax / fmt.largest) if scale_rounding == "up" else np.log2(amax)
    exponent = np.ceil(exact) if scale_rounding == "up" else np.floor(exact) - np.floor(np.log2(fmt.largest))
    return np.where(np.isnan(amax), np.nan, np.exp2(np.maximum(exponent, -127)))
