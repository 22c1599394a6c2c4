"""Floating-point arithmetic of PTX on numpy arrays, where it differs from numpy's.

Every function is element-wise over lanes. The differences: float-to-integer conversion saturates (9.7.9.21), fma rounds
once (9.7.3.6), directed rounding, flush to zero, minimum and maximum of NaN (9.7.3.11). NaN results of f32, f16 and
bf16 are 0x7fffffff and 0x7fff; those of f64 keep numpy's payload.
The approximate functions (rcp.approx, ex2.approx, ...) are computed in float64 and rounded: hardware is within the
error that the ISA allows of them, but not equal bit for bit.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from . import formats
from .types import (
    count_nonzero,
    f16,
    f32,
    f64,
    fmax,
    fmin,
    s32,
    s64,
    u16,
    u32,
    u64,
    where,
)


def flush(a: np.ndarray) -> np.ndarray:
    """Subnormal f32 values become zeros of the same sign."""
    return where(np.abs(a) < f32(2.0**-126), np.copysign(f32(0), a), a)


_NAN = np.array(0x7FFFFFFF, u32).view(f32)


def canonical(a: np.ndarray) -> np.ndarray:
    """f32 results with the one NaN that arithmetic gives, 0x7fffffff (9.7.3)."""
    nan = a != a
    return where(nan, _NAN, a) if count_nonzero(nan) else a


def flush_exact(rounded: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Flushes results that are tiny before rounding, as an H200 does: 2^-126 itself may be one rounded up."""
    return where(np.abs(exact) < 2.0**-126, np.copysign(f32(0), rounded), rounded)


def flush_half(bits: np.ndarray) -> np.ndarray:
    """Subnormal f16 values, as bits, become zeros of the same sign."""
    return where(bits & u16(0x7C00), bits, bits & u16(0x8000))


def saturate(a: np.ndarray) -> np.ndarray:
    """Clamps to [0, 1]; NaN becomes +0."""
    return where(np.isnan(a), a.dtype.type(0), np.clip(a, 0, 1) + a.dtype.type(0)).astype(a.dtype)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def sum_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64 rounded to odd: a second rounding to at most 51 bits is then as if it were the only one."""
    total, error = _two_sum(a, b)
    bits = np.ascontiguousarray(total).view(s64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    # One step towards the exact value makes an even last bit odd; downwards in magnitude if the signs differ.
    step = where((error > 0) == (total > 0), 1, -1)
    return where(inexact, bits + step, bits).view(f64)


def round_f32(exact: np.ndarray, mode: str) -> np.ndarray:
    """float64 rounded (to odd before) to f32 in mode rn, rz, rm or rp."""
    nearest = exact.astype(f32)
    if mode == "rn":
        return nearest
    back = nearest.astype(f64)
    if mode == "rz":
        adjusted = where(np.abs(back) > np.abs(exact), np.nextafter(nearest, f32(0)), nearest)
    elif mode == "rm":
        adjusted = where(back > exact, np.nextafter(nearest, f32(-np.inf)), nearest)
    else:
        adjusted = where(back < exact, np.nextafter(nearest, f32(np.inf)), nearest)
    return where(np.isfinite(exact), adjusted, nearest)


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in f32 with one rounding to nearest. The product is exact in float64, the sum nearly always is good."""
    product = np.multiply(a, b, dtype=f64)
    total = product + c
    bits = total.view(u64)
    risky = (bits & u64(0x1FFFFFFF)) == u64(0x10000000)
    tiny = np.abs(total) < 2.0**-125
    if count_nonzero(risky | tiny):
        return sum_to_odd(product, np.broadcast_to(c, product.shape).astype(f64)).astype(f32)
    return total.astype(f32)


def fma32_directed(a: np.ndarray, b: np.ndarray, c: np.ndarray, mode: str) -> np.ndarray:
    product = np.multiply(a, b, dtype=f64)
    exact = sum_to_odd(product, np.asarray(c, f64))
    if mode == "rm":  # an exact zero sum of opposite signs is -0
        exact = where((exact == 0) & (np.signbit(product) != np.signbit(c)), -0.0, exact)
    return round_f32(exact, mode)


def _per_lane(function: object, *operands: np.ndarray) -> np.ndarray:
    arrays = np.broadcast_arrays(*operands)
    flat = [array.ravel() for array in arrays]
    return np.array([function(*(float(x) for x in row)) for row in zip(*flat, strict=True)], f64).reshape(
        arrays[0].shape
    )


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    def one(x: float, y: float, z: float) -> float:
        if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(z)) or not x * y + z and not (x and y):
            return x * y + z
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if not exact:
            return x * y + z
        try:
            return float(exact)
        except OverflowError:
            return float(np.copysign(np.inf, float(exact > 0) - 0.5))

    return _per_lane(one, a, b, c)


def divide32(a: np.ndarray, b: np.ndarray, mode: str) -> np.ndarray:
    """IEEE division of f32: float64 has more than twice the bits, so a second rounding to nearest does no harm."""
    if mode == "rn":
        return a / b
    quotient = a.astype(f64) / b.astype(f64)
    # q * b is inexact in float64 in general; fma tells on which side of the exact quotient q lies.
    rest = -fma64(quotient, b.astype(f64), -a.astype(f64))
    bits = quotient.view(s64)
    toward = where((rest > 0) == ((quotient > 0) == (b > 0)), 1, -1)
    inexact = (np.abs(rest) > 0) & np.isfinite(quotient)  # the rest of a division by infinity is NaN
    odd = where(inexact & (bits & 1 == 0), bits + toward, bits).view(f64)
    return round_f32(odd, mode)


def divide_approximate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """div.approx.f32: a divisor beyond 2^126 gives zero, or NaN under an infinity (9.7.3.8)."""
    quotient = a / b
    beyond = (np.abs(b) > f32(2.0**126)) & np.isfinite(b)
    return where(beyond, quotient * f32(0), quotient) if count_nonzero(beyond) else quotient


def sqrt32(a: np.ndarray, mode: str) -> np.ndarray:
    if mode == "rn":
        return np.sqrt(a)
    wide = a.astype(f64)
    root = np.sqrt(wide)
    rest = fma64(root, root, -wide)
    bits = root.view(s64)
    odd = where((rest != 0) & (bits & 1 == 0) & np.isfinite(root), bits + where(rest > 0, -1, 1), bits).view(f64)
    return round_f32(odd, mode)


def approximate(name: str, a: np.ndarray) -> np.ndarray:
    """rcp, sqrt, rsqrt, sin, cos, lg2, ex2, tanh of f32, rounded from float64."""
    wide = a.astype(f64)
    match name:
        case "rcp":
            value = 1.0 / wide
        case "sqrt":
            value = np.sqrt(wide)
        case "rsqrt":
            value = 1.0 / np.sqrt(wide)
        case "sin":
            value = np.sin(wide)
        case "cos":
            value = np.cos(wide)
        case "lg2":
            value = np.log2(wide)
        case "ex2":
            value = np.exp2(wide)
        case "tanh":
            value = np.tanh(wide)
        case _:
            raise ValueError(name)
    return value.astype(a.dtype)


def widen(kind: str, bits: np.ndarray) -> np.ndarray:
    """16-bit floats, given as bits, as f32."""
    if kind == "f16":
        return bits.view(f16).astype(f32)
    return (bits.astype(u32) << u32(16)).view(f32)


def narrow(kind: str, value: np.ndarray) -> np.ndarray:
    """f32 or float64 values rounded to nearest even as bits of f16 or bf16."""
    if kind == "f16":
        return where(np.isnan(value), u16(0x7FFF), value.astype(f16).view(u16))
    if value.dtype == f64:
        single = value.astype(f32)
        back = single.astype(f64)
        bits = single.view(s32)  # to odd, so that the rounding below is the only one
        step = where(np.abs(back) > np.abs(value), -1, 1).astype(s32)
        value = where((back != value) & (bits & 1 == 0) & np.isfinite(single), bits + step, bits).view(f32)
    bits = np.ascontiguousarray(value).view(u32)
    rounded = (bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)
    return where(np.isnan(value), u32(0x7FFF), rounded).astype(u16)


def half_binary(name: str, kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = widen(kind, a), widen(kind, b)
    match name:
        case "add":
            return narrow(kind, x + y)
        case "sub":
            return narrow(kind, x - y)
        case "mul":
            return narrow(kind, x * y)
    raise ValueError(name)


def half_fma(kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, relu: bool) -> np.ndarray:
    product = np.multiply(widen(kind, a), widen(kind, b), dtype=f64)
    value = sum_to_odd(product, widen(kind, c).astype(f64))
    if relu:
        value = where(value <= 0, 0.0, value)
    return narrow(kind, value)


def float_minmax(name: str, a: np.ndarray, b: np.ndarray, nan: bool, magnitude: bool = False) -> np.ndarray:
    """min or max: -0 is below +0; NaN loses against a number unless `nan`; `magnitude` compares absolute values."""
    if magnitude:
        x, y = np.abs(a), np.abs(b)
        first = (x < y) if name == "min" else (x > y)
        tie = x == y
        plain = float_minmax(name, a, b, nan)
        return where(tie | np.isnan(a) | np.isnan(b), plain, where(first, a, b))
    if name == "min":
        value = fmin(a, b)
        value = where((a == 0) & (b == 0), where(np.signbit(a), a, b), value)
    else:
        value = fmax(a, b)
        value = where((a == 0) & (b == 0), where(np.signbit(a), b, a), value)
    if nan:
        value = where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), value)
    return value.astype(a.dtype)


def half_minmax(name: str, kind: str, a: np.ndarray, b: np.ndarray, nan: bool, magnitude: bool) -> np.ndarray:
    return narrow(kind, float_minmax(name, widen(kind, a), widen(kind, b), nan, magnitude))


def compare_float(operator: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Comparisons of floats, with the unordered forms (9.7.6.2)."""
    match operator:
        case "eq":
            return a == b
        case "ne":
            return (a < b) | (a > b)
        case "lt":
            return a < b
        case "le":
            return a <= b
        case "gt":
            return a > b
        case "ge":
            return a >= b
        case "equ":
            return ~((a < b) | (a > b))
        case "neu":
            return a != b
        case "ltu":
            return ~(a >= b)
        case "leu":
            return ~(a > b)
        case "gtu":
            return ~(a <= b)
        case "geu":
            return ~(a < b)
        case "num":
            return ~(np.isnan(a) | np.isnan(b))
        case "nan":
            return np.isnan(a) | np.isnan(b)
    raise ValueError(operator)


_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_integer(a: np.ndarray, kind: type, mode: str) -> np.ndarray:
    """Rounds and saturates; NaN gives 0, or the top bit alone where either type has 64 bits (9.7.9.21)."""
    rounded = _ROUND[mode](a.astype(f64))
    info = np.iinfo(kind)
    low, high = float(info.min), float(info.max)
    inside = (rounded >= low) & (rounded <= high) & (rounded < 2.0**64 if info.max > 2**63 else True)
    if info.bits == 64:
        inside = inside & (rounded < high)  # high rounds up to the power of two
    safe = where(inside, rounded, 0.0).astype(kind)
    result = where(rounded >= high, kind(info.max), where(inside, safe, kind(info.min)))
    nan = 0
    if info.bits == 64 or a.dtype == f64:
        nan = info.min if info.min < 0 else 1 << (info.bits - 1)
    return where(np.isnan(a), kind(nan), result).astype(kind)


def integer_to_f32(a: np.ndarray, mode: str) -> np.ndarray:
    if mode == "rn":
        return a.astype(f32)
    if a.dtype.itemsize < 8:
        return round_f32(a.astype(f64), mode)
    nearest = a.astype(f32)
    exact = [int(x) for x in a.ravel()]
    back = [int(x) for x in nearest.ravel()]
    difference = np.array([(b > e) - (b < e) for b, e in zip(back, exact, strict=True)]).reshape(a.shape)
    magnitude = difference * np.sign(nearest)
    if mode == "rz":
        return where(magnitude > 0, np.nextafter(nearest, f32(0)), nearest)
    if mode == "rm":
        return where(difference > 0, np.nextafter(nearest, f32(-np.inf)), nearest)
    return where(difference < 0, np.nextafter(nearest, f32(np.inf)), nearest)


def convert_f32_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(u32) << u32(16)).view(f32)


def pack_f32(kind: str, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """cvt.rn.{f16x2,bf16x2}.f32."""
    return narrow(kind, high).astype(u32) << u32(16) | narrow(kind, low).astype(u32)


def convert(destination: str, source: str, operands: tuple, rounding: str | None, flags: dict[str, bool]) -> np.ndarray:
    return formats.convert(destination, source, operands, rounding, **flags)
