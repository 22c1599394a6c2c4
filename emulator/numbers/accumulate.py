"""Sums of products as the tensor cores of sm_90 take them.

The ISA leaves order and rounding open. An H200 aligns the products and the accumulator to the largest exponent among
them, cuts each off at a fixed number of fraction bits, adds what is left exactly, and cuts the sum off to the type of
the result (f16 is rounded to nearest). The exponent of a product is the sum of its factors' exponents, before the
carry of their significands. Public models of tensor cores say so, and `tests/hopper` holds the record to it.
"""

from __future__ import annotations

import numpy as np

FRACTION = 25  # bits below the largest exponent that a summand keeps
NARROW_FRACTION = 13  # the same of wgmma with 8-bit operands, and the fraction bits of its f32 result
_SMALLEST = {"f16": -14, "bf16": -126, "tf32": -126, "f32": -126, "e4m3": -6, "e5m2": -14}  # exponents
_ZERO = np.int16(-8000)  # exponent of zero, which aligns nothing
_POWERS = np.ldexp(1.0, np.arange(-700, 701))  # of two; [700] is 1
_LARGEST_SCALE = {np.float32: 2.0**100, np.float64: 2.0**700}
_FINE = 24  # negated exponent of the lowest bit of f16, and of most operands


def _exponents(values: np.ndarray, kind: str) -> np.ndarray:
    """int16 exponents of finite float64 values of a type, where subnormals have the smallest."""
    raw = (values.view(np.int64) >> 52).astype(np.int16) & 0x7FF
    return np.where(values == 0, _ZERO, np.maximum(raw - np.int16(1023), np.int16(_SMALLEST[kind])))


def fused(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, kinds: tuple[str, str, str], fraction: int = FRACTION
) -> np.ndarray:
    """float64 [..., m, n]: the cut sums of a [..., m, k] times b [..., n, k] and c [..., m, n], not yet rounded.

    Infinities and NaN come out as the sum in float64 has them.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        plain = a @ b.swapaxes(-1, -2) + c
    if _is_exact(a, b, c, fraction):
        return plain
    finite = np.isfinite(plain)
    total = _cut_sums(a, b, c, kinds, fraction)
    return total if finite.all() else np.where(finite, total, plain)


def _is_exact(a: np.ndarray, b: np.ndarray, c: np.ndarray, fraction: int) -> bool:
    """Whether no summand has a bit that the largest possible exponent would cut off: operands of few bits."""
    with np.errstate(invalid="ignore"):
        whole = [(x * 2.0**_FINE).astype(np.int64) for x in (a, b)]
    if any((w != x * 2.0**_FINE).any() for w, x in zip(whole, (a, b), strict=True)):
        return False
    bits = [int(np.bitwise_or.reduce(np.abs(w), axis=None)) for w in whole]
    if not all(bits):
        products = lowest = -600
    else:
        products = sum(n.bit_length() - 1 for n in bits) - 2 * _FINE
        lowest = sum((n & -n).bit_length() - 1 for n in bits) - 2 * _FINE
    largest = max(products, int(np.frexp(np.abs(c).max())[1]) - 1)
    aligned = c * _POWERS[700 + fraction - largest]
    return lowest >= largest - fraction and bool((aligned == np.trunc(aligned)).all())


def _cut_sums(a: np.ndarray, b: np.ndarray, c: np.ndarray, kinds: tuple[str, str, str], fraction: int) -> np.ndarray:
    # Products of operands of 8 bits and sums of what is left of them are exact in float32, which takes half the time.
    exact = np.float32 if fraction == NARROW_FRACTION else np.float64
    a, b = (np.ascontiguousarray(np.moveaxis(x, -1, 0)) for x in (a, b))  # [k, ..., m or n]
    powers_a, powers_b = _exponents(a, kinds[0]), _exponents(b, kinds[1])
    largest = _exponents(c, kinds[2])
    buffer = np.empty_like(largest)
    for i in range(len(a)):
        np.add(powers_a[i][..., None], powers_b[i][..., None, :], out=buffer)
        np.maximum(largest, buffer, out=largest)
    np.clip(largest, -600, 600, out=largest)  # infinities and NaN reach beyond
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        scale = _POWERS[700 + fraction - largest]
        total = np.trunc(c * scale)
        a, b = a.astype(exact), b.astype(exact)
        scale = np.minimum(scale, _LARGEST_SCALE[exact]).astype(exact)  # of products that are zero it may be larger
        product, sums = np.empty(total.shape, exact), np.zeros(total.shape, exact)
        for i in range(len(a)):
            np.multiply(a[i][..., None], b[i][..., None, :], out=product)
            np.multiply(product, scale, out=product)
            np.trunc(product, out=product)
            np.add(sums, product, out=sums)
    return (total + sums) * _POWERS[700 - fraction + largest]


def rounded(sums: np.ndarray, kind: str, fraction: int = 23) -> np.ndarray:
    """float64 values of cut sums in the accumulator's type: f32 cut to `fraction` bits, or f16 to nearest."""
    if kind == "f16":
        with np.errstate(over="ignore", invalid="ignore"):
            return sums.astype(np.float16).astype(np.float64)
    short = (sums.view(np.int64) & -(1 << 52 - fraction)).view(np.float64)
    magnitude = np.abs(sums)
    tiny = magnitude < 2.0**-126
    if tiny.any():
        lowest = 126 + fraction
        short = np.where(tiny, np.ldexp(np.trunc(np.ldexp(sums, lowest)), -lowest), short)
    return np.where(magnitude < 2.0**128, short, sums)  # infinities and NaN stay
