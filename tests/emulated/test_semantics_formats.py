"""Formats and cvt against exact rational arithmetic and a search for the neighbouring values (PTX ISA 5.2.3,
9.7.9.21).
"""

import functools
from bisect import bisect_right
from fractions import Fraction

import numpy as np
import pytest

from emulator.checks.faults import IllegalInstruction
from emulator.numbers import formats

NARROW = ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")
WIDE = ("f16", "bf16", "tf32", "f32")
F16 = np.arange(1 << 16, dtype=np.uint32)


@functools.cache
def exact(exponent_bits: int, mantissa_bits: int, bias: int, code: int) -> Fraction:
    """Value of the exponent and mantissa fields of `code`, as IEEE 754 defines them."""
    exponent, mantissa = code >> mantissa_bits, code % (1 << mantissa_bits)
    assert exponent < 1 << exponent_bits
    if exponent == 0:
        return Fraction(mantissa, 1 << mantissa_bits) * Fraction(2) ** (1 - bias)
    return (1 + Fraction(mantissa, 1 << mantissa_bits)) * Fraction(2) ** (exponent - bias)


# name: exponent bits, mantissa bits, bias, codes (without sign) that are infinite and NaN
FIELDS = {
    "e2m1": (2, 1, 1, [], []),
    "e2m3": (2, 3, 1, [], []),
    "e3m2": (3, 2, 3, [], []),
    "e4m3": (4, 3, 7, [], [0x7F]),
    "e5m2": (5, 2, 15, [0x7C], [0x7D, 0x7E, 0x7F]),
    "f16": (5, 10, 15, [0x7C00], range(0x7C01, 0x8000)),
    "bf16": (8, 7, 127, [0x7F80], range(0x7F81, 0x8000)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_code_decodes_to_its_exact_value(name):
    """Both signs of every code of every format with a sign."""
    exponent_bits, mantissa_bits, bias, infinite, nan = FIELDS[name]
    half = 1 << exponent_bits + mantissa_bits
    values = formats.table(name)
    assert len(values) == 2 * half
    for code in range(half):
        positive, negative = values[code], values[half + code]
        if code in nan:
            assert np.isnan(positive) and np.isnan(negative)
        elif code in infinite:
            assert positive == np.inf and negative == -np.inf
        else:
            want = float(exact(exponent_bits, mantissa_bits, bias, code))
            assert positive == want and negative == -want and np.signbit(negative) and not np.signbit(positive)


def test_scale_bytes():
    """ue8m0 is 2^(b-127) with 0xFF NaN; ue4m3 is e4m3 without sign, its top bit ignored, 0x7F NaN."""
    ue8m0, ue4m3 = formats.scale_table("ue8m0"), formats.scale_table("ue4m3")
    assert all(ue8m0[b] == float(Fraction(2) ** (b - 127)) for b in range(255)) and np.isnan(ue8m0[255])
    for b in range(127):
        assert ue4m3[b] == ue4m3[b | 0x80] == float(exact(4, 3, 7, b))
    assert np.isnan(ue4m3[0x7F]) and np.isnan(ue4m3[0xFF])
    assert ue4m3[0x38] == 1.0 and ue4m3[0] == 0.0


def test_containers():
    """kind::f8f6f4: e2m1 in bits 5..2, e2m3 and e3m2 in bits 5..0 of a byte, padding ignored (9.7.14.5.14)."""
    for byte in range(256):
        assert formats.container_table("e2m1")[byte] == formats.table("e2m1")[(byte >> 2) % 16]
        assert formats.container_table("e2m3")[byte] == formats.table("e2m3")[byte % 64]
        assert formats.container_table("e3m2")[byte] == formats.table("e3m2")[byte % 64]
        low, high = formats.pair_table()[byte]
        assert (low, high) == (formats.table("e2m1")[byte % 16], formats.table("e2m1")[byte // 16])


@functools.cache
def magnitudes(name: str) -> list[Fraction]:
    """Exact values of the finite codes without sign, which are in order."""
    exponent_bits, mantissa_bits, bias, infinite, nan = FIELDS[name]
    codes = range(min([*infinite, *nan, 1 << exponent_bits + mantissa_bits]))
    return [exact(exponent_bits, mantissa_bits, bias, code) for code in codes]


def neighbours(name: str, x: Fraction) -> tuple[int, int]:
    """Codes of the largest magnitude <= |x| and the smallest >= |x|, by bisection over exact values."""
    values = magnitudes(name)
    last = len(values) - 1
    if abs(x) >= values[last]:
        return last, last
    low = bisect_right(values, abs(x)) - 1
    return (low, low) if values[low] == abs(x) else (low, low + 1)


def expected(name: str, x: float, rounding: str, relu: bool = False) -> int:
    """Code of `x` with saturation, from the definition of each rounding mode (9.7.9.21, Floating Point Notes)."""
    exponent_bits, mantissa_bits, bias, _, nan = FIELDS[name]
    sign = 1 << exponent_bits + mantissa_bits
    if np.isnan(x):
        return {"e4m3": 0x7F, "e5m2": 0x7F, "f16": 0x7FFF, "bf16": 0x7FFF}.get(name, sign - 1)
    negative = bool(np.signbit(x))
    if relu and negative:
        return 0
    if np.isinf(x):
        low = high = neighbours(name, Fraction(10) ** 40)[0]
    else:
        low, high = neighbours(name, Fraction(float(x)))
    if low != high:
        below = abs(Fraction(float(x))) - exact(exponent_bits, mantissa_bits, bias, low)
        above = exact(exponent_bits, mantissa_bits, bias, high) - abs(Fraction(float(x)))
        if rounding == "rz" or (rounding == "rm" and not negative) or (rounding == "rp" and negative):
            high = low
        elif rounding in ("rm", "rp"):
            low = high
        elif below < above or (below == above and (rounding == "rn" and low % 2 == 0)):
            high = low
        else:
            low = high
    return high | (sign if negative else 0)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", NARROW)
def test_every_f16_rounds_to_the_nearest_narrow_value(name, relu):
    """All 65,536 f16 inputs, as f32 for the formats that take no f16x2."""
    values = formats.decode("f16", F16)
    got = formats.encode(name, values, "rn", relu=relu, satfinite=True)
    want = [expected(name, v, "rn", relu) for v in values]
    assert got.tolist() == want


@pytest.mark.parametrize("name", NARROW)
def test_ties_and_their_neighbours_in_f32(name):
    """Every midpoint of two adjacent values, and the f32 values next to it: the tie goes to the even code."""
    finite = np.unique(np.abs(formats.table(name)[np.isfinite(formats.table(name))]))
    middle = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    points = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))])
    points = np.concatenate([points, -points]).astype(np.float32)
    got = formats.encode(name, points.astype(np.float64), "rn", satfinite=True)
    assert got.tolist() == [expected(name, v, "rn") for v in points.astype(np.float64)]


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_f32_to_sixteen_bits_in_every_direction(name, rounding):
    """Random f32 bit patterns and the surroundings of midpoints; overflow saturates."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, 3000, dtype=np.uint32)
    near = formats.decode(name, rng.integers(0, 1 << 15, 1000)).astype(np.float32)
    bits = np.concatenate([bits, near.view(np.uint32) + rng.integers(0, 3, 1000, dtype=np.uint32)])
    if name == "bf16":
        bits = np.concatenate([bits, (bits & 0xFFFF0000) + 0x7FFF, (bits & 0xFFFF0000) + 0x8000])
    values = formats.decode("f32", bits)
    got = formats.encode(name, values, rounding, satfinite=True)
    assert got.tolist() == [expected(name, v, rounding) for v in values]


@pytest.mark.parametrize("name", ["f16", "f32"])
def test_rounding_to_nearest_agrees_with_the_host(name):
    """f64 to f16 and f32 with rn, overflow to infinity included, equals numpy's conversion."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal(20000) * 2.0 ** rng.integers(-160, 140, 20000)
    with np.errstate(over="ignore", under="ignore"):
        want = values.astype(np.float16).view(np.uint16) if name == "f16" else values.astype(np.float32).view(np.uint32)
    got = formats.convert(name, "f64", (values.view(np.uint64),), "rn")
    assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_nearest_sixteen_bits_without_modifiers(name):
    """cvt.rn.f16.f32 and .bf16.f32, and their pairs: every value, its neighbours, midpoints, overflow and NaN."""
    exact = formats.decode(name, F16).astype(np.float32).view(np.uint32)
    step = np.uint32(0x1000 if name == "f16" else 0x8000)
    random = np.random.default_rng(5).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits = np.concatenate([exact, exact + 1, exact + step, exact + step - 1, random])
    want = formats.encode(name, formats.decode("f32", bits), "rn")
    assert np.array_equal(formats.convert(name, "f32", (bits,), "rn"), want)
    pair = formats.convert(f"{name}x2", "f32", (bits, bits[::-1]), "rn")
    assert np.array_equal(pair, want << 16 | want[::-1])


def test_overflow_without_saturation():
    """Directions away from zero give infinity, directions towards it the largest finite number."""
    for sign in (1, -1):
        x = np.array([sign * 1e30], np.float32).view(np.uint32)
        top = 0x8000 if sign < 0 else 0
        infinity, largest = top | 0x7C00, top | 0x7BFF
        assert formats.encode("f16", formats.decode("f32", x), "rn")[0] == infinity
        assert formats.encode("f16", formats.decode("f32", x), "rz")[0] == largest
        assert formats.encode("f16", formats.decode("f32", x), "rm")[0] == (largest if sign > 0 else infinity)
        assert formats.encode("f16", formats.decode("f32", x), "rp")[0] == (infinity if sign > 0 else largest)
        assert formats.convert("f16", "f32", (x,), "rn", satfinite=True)[0] == largest


@pytest.mark.parametrize("rounding", ["rn", "rz", "rna"])
def test_tf32(rounding):
    """10 mantissa bits in the high bits of the word, the low 13 zero; rna sends ties away from zero."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 0x7F000000, 5000, dtype=np.uint32) | rng.integers(0, 2, 5000, dtype=np.uint32) << 31
    bits = np.concatenate([bits, (bits & 0xFFFFE000) + 0x1000, (bits & 0xFFFFE000) + 0x0FFF, (bits & 0xFFFFE000)])
    rest, kept = bits & 0x1FFF, bits & 0xFFFFE000
    odd = (kept >> 13) & 1 == 1
    up = {"rz": np.zeros(len(bits), bool), "rna": rest >= 0x1000, "rn": (rest > 0x1000) | ((rest == 0x1000) & odd)}
    want = kept + (up[rounding].astype(np.uint32) << 13)
    assert np.array_equal(formats.convert("tf32", "f32", (bits,), rounding), want)
    nan = formats.convert("tf32", "f32", (np.array([0xFF802345], np.uint32),), rounding)[0]
    assert nan == (0xFF802000 if rounding == "rna" else 0x7FFFE000)  # as an H200 answers


def test_ue8m0_takes_the_exponent():
    """rz keeps the exponent field, rp raises it where the mantissa is not zero; sign ignored; below 2^-127 the byte is
    0.
    """
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 1 << 32, 20000, dtype=np.uint32)
    bits = np.concatenate(
        [bits, np.array([0, 0x80000000, 1, 0x3FFFFF, 0x400000, 0x400001, 0x7FFFFF, 0x800000], np.uint32)]
    )
    bits = np.concatenate([bits, np.array([0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x3F800000], np.uint32)])
    zero = np.zeros_like(bits)
    for rounding in ("rz", "rp"):
        got = formats.convert("ue8m0x2", "f32", (bits, zero), rounding, satfinite=True)
        for b, code in zip(bits.tolist(), got.tolist(), strict=True):
            exponent, mantissa = (b >> 23) & 0xFF, b & 0x7FFFFF
            if exponent == 0xFF:
                want = 0xFF if mantissa else 0xFE
            else:  # 2^-127 is the subnormal 0x400000
                exceeds = mantissa > 0 if exponent else mantissa > 0x400000
                want = min(exponent + (rounding == "rp" and exceeds), 0xFE)
            assert code >> 8 == want and code & 0xFF == 0


@pytest.mark.parametrize("rounding", ["rz", "rp"])
def test_every_bf16_pair_to_ue8m0(rounding):
    """All 65,536 bf16 values in either half convert as the same value does from f32."""
    high = F16 << 16
    packed = formats.convert("ue8m0x2", "bf16x2", (high | F16[::-1],), rounding, satfinite=True)
    want = formats.convert("ue8m0x2", "f32", (high, F16[::-1] << 16), rounding, satfinite=True)
    assert np.array_equal(packed, want)


def test_ue8m0_without_saturation_overflows_to_nan():
    """There is no infinity to overflow to."""
    x = np.array([0x7F7FFFFF, 0x7F800000], np.uint32)
    assert formats.convert("ue8m0x2", "f32", (x, x), "rp").tolist() == [0xFFFF, 0xFFFF]
    assert formats.convert("ue8m0x2", "f32", (x, x), "rz").tolist() == [0xFEFE, 0xFFFF]


@pytest.mark.parametrize("destination", ["e4m3x2", "e5m2x2", "e2m1x2", "e2m3x2", "e3m2x2", "f16x2", "bf16x2"])
def test_first_source_goes_to_the_high_half(destination):
    """cvt packs operand a above operand b (9.7.9.21, Semantics)."""
    one, two = (np.array([v], np.float32).view(np.uint32) for v in (1.0, -2.0))
    packed = int(formats.convert(destination, "f32", (one, two), "rn", satfinite=True)[0])
    name = destination[:-2]
    half = {"e2m1": 4, "f16": 16, "bf16": 16}.get(name, 8)
    high, low = packed >> half, packed & (1 << half) - 1
    assert formats.table(name)[high] == 1.0 and formats.table(name)[low] == -2.0


@pytest.mark.parametrize("name", NARROW)
def test_every_narrow_pair_to_f16x2(name):
    """The high element of the source lands in the high half; NaN becomes the canonical 0x7FFF."""
    width = formats.FORMATS[name].width
    half = 4 if name == "e2m1" else 8
    code = np.arange(1 << width, dtype=np.uint32)
    source = code << half | code[::-1]
    got = formats.convert("f16x2", f"{name}x2", (source,), "rn")
    values = formats.table(name)
    with np.errstate(over="ignore"):
        f16 = np.where(np.isnan(values), 0x7FFF, values.astype(np.float16).view(np.uint16)).astype(np.uint32)
    assert np.array_equal(got, f16 << 16 | f16[::-1])


def test_f16x2_to_fp8_and_ue8m0_to_bf16x2():
    """The packed sources keep the order of their halves."""
    pair = np.array([0x3C00C000], np.uint32)  # 1.0, -2.0
    assert formats.convert("e4m3x2", "f16x2", (pair,), "rn", satfinite=True)[0] == 0x38C0
    assert formats.convert("e2m1x2", "f16x2", (pair,), "rn", satfinite=True)[0] == 0x2C
    assert formats.convert("bf16x2", "ue8m0x2", (np.array([0x7F00FF >> 8 & 0xFFFF], np.uint16),), "rn")[0] == 0x3F800040
    assert formats.convert("bf16x2", "ue8m0x2", (np.array([0xFF7F], np.uint16),), "rn")[0] == 0x7FFF3F80


def test_nan_and_relu():
    """NaN: canonical where the format has one, +MAX_NORM where it has none; relu turns negative results into +0."""
    nan, minus = np.array([0xFFC00001], np.uint32), np.array([-3.0], np.float32).view(np.uint32)
    for name, code in {"e4m3": 0x7F, "e5m2": 0x7F, "e2m3": 0x1F, "e3m2": 0x1F}.items():
        packed = formats.convert(f"{name}x2", "f32", (nan, minus), "rn", relu=True, satfinite=True)
        assert packed[0] == code << 8
    assert formats.convert("e2m1x2", "f32", (nan, minus), "rn", satfinite=True)[0] == 0x7D
    assert formats.convert("f16x2", "f32", (nan, minus), "rn", relu=True)[0] == 0x7FFF0000
    assert formats.convert("f32", "f16", (np.array([0xFE00], np.uint16),))[0] == 0x7FFFFFFF


def test_scalar_modifiers():
    """ftz flushes subnormal f32, sat clamps to [0, 1] and NaN to 0, rni rounds halves to even."""
    f = lambda *v: np.array(v, np.float32).view(np.uint32)  # noqa: E731
    tiny = np.array([1, 0x80000001], np.uint32)
    assert formats.convert("f32", "f32", (tiny,), ftz=True).tolist() == [0, 0x80000000]
    assert np.array_equal(formats.convert("f32", "f32", (f(-1, 0.25, 7, np.nan),), sat=True), f(0, 0.25, 1, 0))
    assert np.array_equal(formats.convert("f32", "f32", (f(0.5, 1.5, -2.5),), "rni"), f(0, 2, -2))
    assert formats.convert("f64", "bf16", (np.array([0x3FC0], np.uint16),)).view(np.float64)[0] == 1.5


@pytest.mark.parametrize(
    "destination, source, count, rounding, options",
    [
        ("e4m3x2", "f32", 2, "rn", {}),
        ("e2m1x2", "f32", 2, "rz", {"satfinite": True}),
        ("e2m3x2", "f16x2", 1, "rn", {"satfinite": True}),
        ("ue8m0x2", "bf16x2", 1, "rz", {"relu": True}),
        ("f32", "f16", 1, "rn", {}),
        ("f16", "bf16", 1, "rn", {"sat": True}),
        ("e2m1x4", "f32", 4, "rs", {"satfinite": True}),
        ("ue8m0x2", "f32", 2, "rn", {}),
        ("bf16x2", "e4m3x2", 1, "rn", {}),
        ("f16", "f32", 1, None, {}),
        ("tf32", "f32", 1, "rm", {}),
        ("tf32", "f32", 1, "rna", {"relu": True}),
        ("f16", "f64", 1, "rn", {"ftz": True}),
        ("f32", "f16", 1, "rni", {}),
        ("s32", "f32", 1, "rzi", {}),
    ],
)
def test_illegal_conversions(destination, source, count, rounding, options):
    """Combinations that the syntax of 9.7.9.21 does not have are refused."""
    operands = (np.zeros(1, np.uint32),) * count
    with pytest.raises(IllegalInstruction, match="cvt"):
        formats.convert(destination, source, operands, rounding, **options)
