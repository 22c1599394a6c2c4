"""Integer arithmetic of PTX on numpy arrays, where it differs from numpy's.

Every function is element-wise over lanes. The differences: integer division truncates and division by zero gives all
ones (9.7.1.8), shift amounts are clamped (9.7.8).
"""

from __future__ import annotations

import numpy as np

from .types import (
    maximum,
    minimum,
    s8,
    s32,
    s64,
    u8,
    u32,
    u64,
    where,
)


def truncated_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "u":
        return where(b == 0, ~a.dtype.type(0), a // b)
    quotient = a // b
    quotient = where((a % b != 0) & ((a < 0) != (b < 0)), quotient + a.dtype.type(1), quotient)
    return where(b == 0, a.dtype.type(-1), quotient)


def truncated_remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "u":
        return where(b == 0, a, a % b)
    return where(b == 0, a, np.fmod(a, b))


def multiply_wide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    wide = np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")
    return a.astype(wide) * b.astype(wide)


def multiply_high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    bits = a.dtype.itemsize * 8
    if bits < 64:
        return (multiply_wide(a, b) >> bits).astype(a.dtype)
    low, shift = u64(0xFFFFFFFF), u64(32)
    ua, ub = np.asarray(a).view(u64), np.asarray(b).view(u64)
    a0, a1, b0, b1 = ua & low, ua >> shift, ub & low, ub >> shift
    middle = a1 * b0 + ((a0 * b0) >> shift)
    other = a0 * b1 + (middle & low)
    high = a1 * b1 + (middle >> shift) + (other >> shift)
    if a.dtype.kind == "i":
        high = high - where(np.asarray(a) < 0, ub, u64(0)) - where(np.asarray(b) < 0, ua, u64(0))
        return high.view(s64)
    return high


def add_saturated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(a.astype(s64) + b.astype(s64), -(2**31), 2**31 - 1).astype(s32)


def subtract_saturated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(a.astype(s64) - b.astype(s64), -(2**31), 2**31 - 1).astype(s32)


def shift_left(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    bits = a.dtype.itemsize * 8
    return where(n < bits, a << (n & u32(bits - 1)).astype(a.dtype), a.dtype.type(0))


def shift_right(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    bits = a.dtype.itemsize * 8
    if a.dtype.kind == "i":
        return a >> minimum(n, u32(bits - 1)).astype(a.dtype)
    return where(n < bits, a >> (n & u32(bits - 1)).astype(a.dtype), a.dtype.type(0))


def funnel_left(a: np.ndarray, b: np.ndarray, n: np.ndarray) -> np.ndarray:
    return ((_join(a, b) << n.astype(u64)) >> u64(32)).astype(u32)


def funnel_right(a: np.ndarray, b: np.ndarray, n: np.ndarray) -> np.ndarray:
    return (_join(a, b) >> n.astype(u64)).astype(u32)


def _join(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.asarray(low, u64) | (np.asarray(high, u64) << u64(32))


def find_leading(a: np.ndarray, shift_amount: bool) -> np.ndarray:
    """bfind: position of the most significant bit that differs from the sign, or its distance from the top."""
    bits = a.dtype.itemsize * 8
    unsigned = where(a < 0, ~a, a).astype(f"u{a.dtype.itemsize}") if a.dtype.kind == "i" else a
    position = u32(bits - 1) - leading_zeros(unsigned)
    return where(unsigned == 0, u32(0xFFFFFFFF), u32(bits - 1) - position if shift_amount else position)


def leading_zeros(a: np.ndarray) -> np.ndarray:
    bits = a.dtype.itemsize * 8
    count = np.zeros(a.shape, u32)
    rest = a
    step = bits // 2
    while step:
        empty = (rest >> a.dtype.type(bits - step)) == 0
        count = where(empty, count + u32(step), count)
        rest = where(empty, rest << a.dtype.type(step), rest)
        step //= 2
    return where(a == 0, u32(bits), count)


def population(a: np.ndarray) -> np.ndarray:
    ones = np.array([n.bit_count() for n in range(256)], u32)
    octets = np.ascontiguousarray(a).view(u8).reshape(*a.shape, a.dtype.itemsize)
    return ones[octets].sum(-1, dtype=u32)


def reverse_bits(a: np.ndarray) -> np.ndarray:
    reverse = np.array([int(f"{n:08b}"[::-1], 2) for n in range(256)], u8)
    octets = np.ascontiguousarray(a).view(u8).reshape(*a.shape, a.dtype.itemsize)
    return np.ascontiguousarray(reverse[octets][..., ::-1]).view(a.dtype).reshape(a.shape)


def extract_field(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfe (9.7.1.19), for u32, s32, u64, s64."""
    bits = a.dtype.itemsize * 8
    kind = a.dtype.type
    position, length = position & u32(0xFF), length & u32(0xFF)
    if a.dtype.kind == "u":
        wide = shift_right(a, position)
        keep = shift_left(np.ones(a.shape, a.dtype), length) - kind(1)
        return where(length >= bits, wide, wide & keep)
    top = minimum(position.astype(s64) + length.astype(s64) - 1, bits - 1)
    sign = (a >> top.clip(0).astype(a.dtype)) & kind(1)
    available = maximum(minimum(length.astype(s64), bits - position.astype(s64)), 0)
    unsigned = a.view(f"u{a.dtype.itemsize}")
    field = shift_right(unsigned, position)
    keep = shift_left(np.ones_like(unsigned), available.astype(u32)) - unsigned.dtype.type(1)
    keep = where(available >= bits, ~unsigned.dtype.type(0), keep)
    value = where(sign != 0, field & keep | ~keep, field & keep).view(a.dtype)
    return where(length == 0, kind(0), value)


def insert_field(a: np.ndarray, b: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfi (9.7.1.20): the low bits of a go into b."""
    bits = b.dtype.itemsize * 8
    position, length = position & u32(0xFF), length & u32(0xFF)
    keep = shift_left(np.ones(b.shape, b.dtype), length) - b.dtype.type(1)
    keep = shift_left(where(length >= bits, ~b.dtype.type(0), keep), position)
    return b & ~keep | shift_left(a, position) & keep


def bit_mask(a: np.ndarray, b: np.ndarray, wrap: bool) -> np.ndarray:
    """bmsk (9.7.1.22): b ones starting at bit a."""
    if wrap:
        a, b = a & u32(31), b & u32(31)
    ones = where(b < 32, (u64(1) << minimum(b, u32(32)).astype(u64)) - u64(1), u64(0xFFFFFFFF))
    return where(a < 32, ones << minimum(a, u32(32)).astype(u64), u64(0)).astype(u32)


def extend_field(a: np.ndarray, n: np.ndarray, wrap: bool) -> np.ndarray:
    """szext (9.7.1.21): sign- or zero-extends the low n bits."""
    count = n & u32(31) if wrap else minimum(n, u32(32))
    wide = a.astype(s64) & ((s64(1) << count.astype(s64)) - 1)
    if a.dtype.kind == "i":
        sign = (wide >> maximum(count.astype(s64) - 1, 0)) & 1
        wide = where((count > 0) & (sign != 0), wide - (s64(1) << count.astype(s64)), wide)
    return wide.astype(u32).view(a.dtype)


def lookup3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> np.ndarray:
    result = np.zeros(np.broadcast(a, b, c).shape, u32)
    for row in range(8):
        if table >> row & 1:
            term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result = result | term
    return result


def permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt (9.7.9.7), default mode."""
    both, selector = np.broadcast_arrays(_join(a, b), selector)
    octets = both.copy()[..., None].view(u8)
    choice = selector[..., None] >> _NIBBLES
    chosen = np.take_along_axis(octets, (choice & u32(7)).astype(np.intp), -1)
    return where(choice & u32(8), -(chosen >> u8(7)), chosen).view(u32)[..., 0]


_NIBBLES = np.arange(0, 16, 4, dtype=u32)
_PERMUTE_MODES = {
    "f4e": (0x3210, 0x4321, 0x5432, 0x6543),
    "b4e": (0x5670, 0x6701, 0x7012, 0x0123),
    "rc8": (0x0000, 0x1111, 0x2222, 0x3333),
    "ecl": (0x3210, 0x3211, 0x3222, 0x3333),
    "ecr": (0x0000, 0x1110, 0x2210, 0x3210),
    "rc16": (0x1010, 0x3232, 0x1010, 0x3232),
}


def permute_mode(a: np.ndarray, b: np.ndarray, selector: np.ndarray, mode: str) -> np.ndarray:
    return permute(a, b, np.array(_PERMUTE_MODES[mode], u32)[selector & u32(3)])


def dot_bytes(a: np.ndarray, b: np.ndarray, c: np.ndarray, signed_a: bool, signed_b: bool) -> np.ndarray:
    """dp4a (9.7.1.23); c has the type of the result."""
    left = np.ascontiguousarray(a).view(s8 if signed_a else u8).reshape(*a.shape, 4).astype(s64)
    right = np.ascontiguousarray(b).view(s8 if signed_b else u8).reshape(*b.shape, 4).astype(s64)
    return (c.astype(s64) + (left * right).sum(-1)).astype(u32)


def halves(a: np.ndarray, kind: type) -> np.ndarray:
    """[..., 2] of the low and high half of 32-bit values, as 16-bit integers."""
    return np.ascontiguousarray(a).view(kind).reshape(*np.shape(a), 2)


def from_halves(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).view(u32)[..., 0]


def clamp_integer(a: np.ndarray, kind: type) -> np.ndarray:
    """Integer conversion with .sat."""
    info, source = np.iinfo(kind), np.iinfo(a.dtype)
    low, high = max(info.min, source.min), min(info.max, source.max)
    return np.clip(a, a.dtype.type(low), a.dtype.type(high)).astype(kind)
