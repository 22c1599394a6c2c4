"""SwiGLU of a grouped GEMM and its quantisation to NVFP4, bit for bit: fp32 operations in numpy, each rounded once.

Approximate instructions are taken as float64 rounded to fp32, which is what the emulated device gives.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from reference import E2M1, GROUP, UE4M3, GroupedProblem, GuardedOutput, pack_e2m1, round_up, scale_offset

FLT_MAX = float(np.finfo(np.float32).max)
LOG2_E = np.float32(1.44269504)
UNWRITTEN = GuardedOutput.POISON


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scalars of ``grouped_fp4_swiglu``."""

    global_scale_kind: str = "encode"
    division: str = "approximate"
    intermediate: str = "bf16"
    rounding: str = "activation_type"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float = FLT_MAX


def flushed(values: np.ndarray) -> np.ndarray:
    """Fp32 with subnormal numbers as zeros of their sign."""
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def reciprocal(values: np.ndarray) -> np.ndarray:
    """rcp.approx.ftz.f32"""
    return flushed((1 / flushed(values).astype(np.float64)).astype(np.float32))


def power_of_2(values: np.ndarray) -> np.ndarray:
    """ex2.approx.ftz.f32"""
    return flushed(np.exp2(flushed(values).astype(np.float64)).astype(np.float32))


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """Fp32 values rounded to nearest even as ``dtype`` would store them."""
    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def nearest(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Index of the entry of an ascending table that is nearest; the even index of two, the last beyond the end."""
    middles = (table[1:] + table[:-1]) / 2
    index = np.searchsorted(middles, values.astype(np.float64), side="left")
    tie = np.append(middles, np.inf)[index] == values
    return index + (tie & (index % 2 == 1))


def activate(gate: np.ndarray, up: np.ndarray, settings: Settings) -> np.ndarray:
    """gate * sigmoid(alpha * gate) * (up + beta) on clamped fp32 values."""
    alpha, beta, limit = np.float32([settings.swiglu_alpha, settings.swiglu_beta, settings.swiglu_limit])
    if limit < FLT_MAX:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * reciprocal(1 + power_of_2(-alpha * LOG2_E * gate)) * (up + beta)


def quantize(values: np.ndarray, encode_scale: np.ndarray, division: str) -> tuple[np.ndarray, np.ndarray]:
    """Packed E2M1 [M, K/2] and scale bytes [M, K/16] of fp32 values [M, K]; ``encode_scale``: fp32 [M]."""
    groups = values.reshape(len(values), -1, GROUP)
    amax, encode_scale = np.abs(groups).max(axis=-1), encode_scale[:, None]
    sixth = np.float32(1) / np.float32(6)
    scale = amax * (encode_scale * sixth) if division == "ieee" else encode_scale * (amax * sixth)
    stored = nearest(UE4M3[:0x7F], scale)
    value = UE4M3[stored].astype(np.float32)
    if division == "ieee":
        multiplier = np.minimum(encode_scale / value, np.float32(FLT_MAX))
    else:
        multiplier = reciprocal(value * reciprocal(encode_scale))
    scaled = groups * np.where(stored == 0, np.float32(0), multiplier)[..., None]
    codes = nearest(E2M1[:8], np.abs(scaled)) | np.signbit(scaled) * 8
    return pack_e2m1(codes.reshape(values.shape)), stored.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Bytes of the owned rows, [rows, I/2] and [rows, I/16], and which groups are known: bool [rows, I/16]."""

    out: np.ndarray
    groups: np.ndarray
    known: np.ndarray

    def verify(self, problem: GroupedProblem, out: GuardedOutput, out_scale: GuardedOutput, context: str) -> None:
        """Every known byte, zeros in the padding of owned rows of scales, and nothing else written."""
        owned, columns = self.groups.shape
        rows = scale_rows(problem)[:, None]
        padded = round_up(columns, 4)
        scales = out_scale.array.reshape(-1)
        got = scales[scale_offset(rows, np.arange(padded), columns)]
        wrong = np.argwhere(self.known & (got[:, :columns] != self.groups))
        assert not len(wrong), f"{context}: {len(wrong)} scales differ, first of (row, group) {wrong[0]}"
        written = out.array[:owned].reshape(owned, columns, GROUP // 2)
        wrong = np.argwhere(self.known & (written != self.out.reshape(written.shape)).any(axis=-1))
        assert not len(wrong), f"{context}: {len(wrong)} groups differ, first (row, group) {wrong[0]}"
        assert (got[:, columns:] == 0).all(), f"{context}: padding of scales is not zero"
        others = np.ones(scales.shape, bool)
        others[scale_offset(rows, np.arange(padded), columns)] = False
        assert (scales[others] == UNWRITTEN).all(), f"{context}: scales of rows without an expert were written"
        assert out.intact(owned) and out_scale.intact(len(out_scale.array)), f"{context}: wrote outside the rows"


def scale_rows(problem: GroupedProblem) -> np.ndarray:
    """Row of the scale buffers of each owned row."""
    counts = np.diff(problem.expert_offsets)
    experts = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(experts)) - problem.expert_offsets[experts] + problem.scale_offsets[experts]


def swiglu_reference(
    problem: GroupedProblem,
    products: np.ndarray,
    row_weight: np.ndarray,
    global_scale: np.ndarray,
    settings: Settings,
    known: np.ndarray | None = None,
) -> Quantized:
    """What ``grouped_fp4_swiglu`` makes of ``products``, the fp32 result of ``grouped_fp4`` [rows, 2 I], gate and up in
    turn. known: bool [rows, 2 I], where ``products`` are exact to the bit; everywhere if not given."""
    owned, columns = products.shape
    experts = np.repeat(np.arange(len(global_scale)), np.diff(problem.expert_offsets))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        gate, up = (round_to(np.ascontiguousarray(products[:, part::2]), settings.intermediate) for part in (0, 1))
        values = activate(gate, up, settings) * row_weight[:owned, None]
        if settings.rounding == "activation_type":
            values = round_to(values, settings.intermediate)
        encode = 1 / global_scale if settings.global_scale_kind == "decode" else global_scale
        out, groups = quantize(values, encode[experts], settings.division)
    if known is None:
        known = np.ones(products.shape, bool)
    return Quantized(out, groups, known.reshape(owned, columns // (2 * GROUP), 2 * GROUP).all(axis=-1))
