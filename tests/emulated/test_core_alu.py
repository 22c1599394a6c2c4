"""Arithmetic instructions of the emulator against exact Python integers and rationals (PTX ISA 9.7.1 to 9.7.9)."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from ptx import evaluate

import emulator

COUNT = 512


def integers(rng: np.random.Generator, bits: int) -> np.ndarray:
    """Random bits, small numbers and the extremes."""
    kind = np.dtype(f"u{bits // 8}").type
    values = rng.integers(0, 1 << bits, COUNT, dtype=kind)
    values[::5] = rng.integers(0, 70, len(values[::5])).astype(kind)
    special = [0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    values[: len(special)] = special
    return rng.permutation(values)


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def floats(rng: np.random.Generator) -> np.ndarray:
    """f32 of all magnitudes, with zeros, subnormals, infinities and NaN."""
    values = rng.integers(0, 1 << 32, COUNT, dtype=np.uint32)
    values[::2] = rng.standard_normal(len(values[::2])).astype(np.float32).view(np.uint32)
    special = [0, 1 << 31, 1, 0x807FFFFF, 0x00800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x3F800000]
    values[: len(special)] = special
    return rng.permutation(values)


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


def clamped_shift(a: int, n: int, bits: int, left: bool) -> int:
    return a << min(n, bits) if left else a >> min(n, bits)


BINARY = {
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul.lo": lambda a, b, bits: a * b,
    "mul.hi": lambda a, b, bits: a * b >> bits,
    "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b),
    "div": lambda a, b, bits: truncated(a, b) if b else -1,
    "rem": lambda a, b, bits: a - truncated(a, b) * b if b else a,
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", BINARY)
def test_integer_binary(name: str, kind: str, rng: np.random.Generator) -> None:
    """Two operands, wrapped to the type; division truncates towards zero."""
    bits = int(kind[1:])
    a, b = integers(rng, bits), integers(rng, bits)
    if name == "div" and kind[0] == "s":
        b[(b == (1 << bits) - 1) & (a == 1 << (bits - 1))] = 1  # overflow is undefined
    got = evaluate(f"{name}.{kind} %z, %a, %b;", [a, b], f"u{bits // 8}")
    read = signed if kind[0] == "s" else lambda v, _: v
    want = [BINARY[name](read(int(x), bits), read(int(y), bits), bits) % (1 << bits) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == want


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind: str, rng: np.random.Generator) -> None:
    """mul.wide and mad.wide have twice the bits."""
    bits = int(kind[1:])
    a, b, c = integers(rng, bits), integers(rng, bits), integers(rng, 2 * bits)
    read = signed if kind[0] == "s" else lambda v, _: v
    products = [read(int(x), bits) * read(int(y), bits) for x, y in zip(a, b, strict=True)]
    got = evaluate(f"mul.wide.{kind} %z, %a, %b;", [a, b], f"u{bits // 4}")
    assert got.tolist() == [p % (1 << 2 * bits) for p in products]
    got = evaluate(f"mad.wide.{kind} %z, %a, %b, %c;", [a, b, c], f"u{bits // 4}")
    assert got.tolist() == [(p + int(z)) % (1 << 2 * bits) for p, z in zip(products, c, strict=True)]


def test_mad_and_carries(rng: np.random.Generator) -> None:
    """mad.lo, mad.hi; a 128-bit sum and difference, and a product, by carries."""
    a, b, c = (integers(rng, 32) for _ in range(3))
    got = evaluate("mad.lo.s32 %z, %a, %b, %c;", [a, b, c], np.uint32)
    assert got.tolist() == [(int(x) * int(y) + int(w)) % (1 << 32) for x, y, w in zip(a, b, c, strict=True)]
    got = evaluate("mad.hi.u32 %z, %a, %b, %c;", [a, b, c], np.uint32)
    assert got.tolist() == [((int(x) * int(y) >> 32) + int(w)) % (1 << 32) for x, y, w in zip(a, b, c, strict=True)]
    x, y = integers(rng, 64), integers(rng, 64)
    for name, sign in (("add", 1), ("sub", -1)):
        text = f"""mov.b64 {{%r0, %r1}}, %a; mov.b64 {{%r2, %r3}}, %b;
                   {name}.cc.u32 %r4, %r0, %r2; {name}c.u32 %r5, %r1, %r3; mov.b64 %z, {{%r4, %r5}};"""
        got = evaluate(text, [x, y], np.uint64)
        assert got.tolist() == [(int(p) + sign * int(q)) % (1 << 64) for p, q in zip(x, y, strict=True)]
    text = """mul.lo.u32 %r0, %a, %b; mul.hi.u32 %r1, %a, %b; mad.lo.cc.u32 %r2, %a, %b, %c;
              madc.hi.u32 %r3, %a, %b, 0; mov.b64 %z, {%r2, %r3};"""
    got = evaluate(text, [a, b, c], np.uint64)
    assert got.tolist() == [int(p) * int(q) + int(w) for p, q, w in zip(a, b, c, strict=True)]


def test_saturated_integers(rng: np.random.Generator) -> None:
    a, b = integers(rng, 32), integers(rng, 32)
    for name, sign in (("add", 1), ("sub", -1)):
        got = evaluate(f"{name}.sat.s32 %z, %a, %b;", [a, b], np.int32)
        want = [signed(int(x), 32) + sign * signed(int(y), 32) for x, y in zip(a, b, strict=True)]
        assert got.tolist() == [min(max(v, -(2**31)), 2**31 - 1) for v in want]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(bits: int, rng: np.random.Generator) -> None:
    """Amounts beyond the width clamp; a signed right shift fills with the sign."""
    a, n = integers(rng, bits), rng.integers(0, bits + 40, COUNT, dtype=np.uint32)
    n[:3] = (0xFFFFFFFF, bits, bits - 1)
    unsigned = f"u{bits // 8}"
    pairs = [(int(x), int(y)) for x, y in zip(a, n, strict=True)]
    got = evaluate(f"shl.b{bits} %z, %a, %b;", [a, n], unsigned)
    assert got.tolist() == [clamped_shift(x, y, bits, True) % (1 << bits) for x, y in pairs]
    got = evaluate(f"shr.u{bits} %z, %a, %b;", [a, n], unsigned)
    assert got.tolist() == [clamped_shift(x, y, bits, False) for x, y in pairs]
    got = evaluate(f"shr.s{bits} %z, %a, %b;", [a, n], unsigned)
    assert got.tolist() == [clamped_shift(signed(x, bits), y, bits, False) % (1 << bits) for x, y in pairs]
    got = evaluate(f"shr.s{bits} %z, %a, {bits + 3};", [a], unsigned)
    assert got.tolist() == [(signed(x, bits) >> bits) % (1 << bits) for x, _ in pairs]


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode: str, rng: np.random.Generator) -> None:
    a, b, n = integers(rng, 32), integers(rng, 32), integers(rng, 32)
    for side in "lr":
        got = evaluate(f"shf.{side}.{mode}.b32 %z, %a, %b, %c;", [a, b, n], np.uint32)
        for x, y, amount, value in zip(a.tolist(), b.tolist(), n.tolist(), got.tolist(), strict=True):
            amount = amount & 31 if mode == "wrap" else min(amount, 32)
            both = y << 32 | x
            assert value == (both << amount >> 32 if side == "l" else both >> amount) & 0xFFFFFFFF


def test_bits(rng: np.random.Generator) -> None:
    """popc, clz, brev, bfind, bfind.shiftamt of 32 and 64 bits, signed and unsigned."""
    for bits in (32, 64):
        a = integers(rng, bits)
        values = a.tolist()
        assert evaluate(f"popc.b{bits} %z, %a;", [a], np.uint32).tolist() == [v.bit_count() for v in values]
        assert evaluate(f"clz.b{bits} %z, %a;", [a], np.uint32).tolist() == [bits - v.bit_length() for v in values]
        got = evaluate(f"brev.b{bits} %z, %a;", [a], f"u{bits // 8}")
        assert got.tolist() == [int(f"{v:0{bits}b}"[::-1], 2) for v in values]
        for kind in "us":
            read = [v if kind == "u" or signed(v, bits) >= 0 else ~v % (1 << bits) for v in values]
            got = evaluate(f"bfind.{kind}{bits} %z, %a;", [a], np.uint32)
            assert got.tolist() == [v.bit_length() - 1 if v else 0xFFFFFFFF for v in read]
            got = evaluate(f"bfind.shiftamt.{kind}{bits} %z, %a;", [a], np.uint32)
            assert got.tolist() == [bits - v.bit_length() if v else 0xFFFFFFFF for v in read]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind: str, rng: np.random.Generator) -> None:
    """bfe as the ISA's pseudocode (9.7.1.19) writes it, and bfi."""
    bits = int(kind[1:])
    a = integers(rng, bits)
    position, length = (rng.integers(0, bits + 8, COUNT, dtype=np.uint32) for _ in range(2))
    length[:2] = (0, 255)
    got = evaluate(f"bfe.{kind} %z, %a, %b, %c;", [a, position, length], f"u{bits // 8}")
    for value, where, count, result in zip(a.tolist(), position.tolist(), length.tolist(), got.tolist(), strict=True):
        sign = 0
        if kind[0] == "s" and count:
            sign = value >> min(where + count - 1, bits - 1) & 1
        want = 0
        for i in range(bits):
            want |= ((value >> where + i & 1) if i < count and where + i < bits else sign) << i
        assert result == want, (value, where, count)
    if kind[0] == "u":
        b = integers(rng, bits)
        got = evaluate(f"bfi.b{bits} %z, %a, %b, %c, %d;", [a, b, position, length], f"u{bits // 8}")
        for x, y, where, count, result in zip(
            a.tolist(), b.tolist(), position.tolist(), length.tolist(), got.tolist(), strict=True
        ):
            want = y
            for i in range(count):
                if where + i < bits:
                    want = want & ~(1 << where + i) | (x >> i & 1) << where + i
            assert result == want


def test_bmsk_szext_sad_dp4a(rng: np.random.Generator) -> None:
    a, b, c = (integers(rng, 32) for _ in range(3))
    small = rng.integers(0, 40, COUNT, dtype=np.uint32)
    other = rng.integers(0, 40, COUNT, dtype=np.uint32)
    got = evaluate("bmsk.clamp.b32 %z, %a, %b;", [small, other], np.uint32)
    want = [
        (((1 << min(n, 32)) - 1) << x) & 0xFFFFFFFF if x < 32 else 0
        for x, n in zip(small.tolist(), other.tolist(), strict=True)
    ]
    assert got.tolist() == want
    got = evaluate("szext.wrap.s32 %z, %a, %b;", [a, small], np.uint32)
    want = [
        signed(x & (1 << (n & 31)) - 1, n & 31) % (1 << 32) if n & 31 else 0
        for x, n in zip(a.tolist(), small.tolist(), strict=True)
    ]
    assert got.tolist() == want
    got = evaluate("sad.u32 %z, %a, %b, %c;", [a, b, c], np.uint32)
    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    assert got.tolist() == [(z + abs(x - y)) % (1 << 32) for x, y, z in triples]
    got = evaluate("dp4a.s32.u32 %z, %a, %b, %c;", [a, b, c], np.uint32)
    for x, y, z, value in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        products = [signed(x >> 8 * i & 255, 8) * (y >> 8 * i & 255) for i in range(4)]
        assert value == (z + sum(products)) % (1 << 32)


def test_logic(rng: np.random.Generator) -> None:
    """and, or, xor, not, cnot, and every table of lop3 on a sample."""
    a, b, c = (integers(rng, 32) for _ in range(3))
    assert (evaluate("and.b32 %z, %a, %b;", [a, b], np.uint32) == a & b).all()
    assert (evaluate("xor.b32 %z, %a, 0xF0F0F0F0;", [a], np.uint32) == a ^ 0xF0F0F0F0).all()
    assert (evaluate("not.b32 %z, %a;", [a], np.uint32) == ~a).all()
    assert (evaluate("cnot.b32 %z, %a;", [a], np.uint32) == (a == 0)).all()
    for table in (0x00, 0x96, 0xE8, 0xCA, 0x1B, 0xFF):
        got = evaluate(f"lop3.b32 %z, %a, %b, %c, {table};", [a, b, c], np.uint32)
        want = np.zeros(COUNT, np.uint32)
        for bit in range(32):
            row = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
            want |= (table >> row & 1).astype(np.uint32) << np.uint32(bit)
        assert (got == want).all(), hex(table)


def test_prmt(rng: np.random.Generator) -> None:
    """Every selector nibble with its sign replication, and the modes."""
    a, b, s = (integers(rng, 32) for _ in range(3))
    got = evaluate("prmt.b32 %z, %a, %b, %c;", [a, b, s], np.uint32)
    for x, y, selector, value in zip(a.tolist(), b.tolist(), s.tolist(), got.tolist(), strict=True):
        octets = struct.pack("<II", x, y)
        want = 0
        for i in range(4):
            nibble = selector >> 4 * i & 15
            octet = octets[nibble & 7]
            want |= (0xFF * (octet >> 7) if nibble & 8 else octet) << 8 * i
        assert value == want
    got = evaluate("prmt.b32.b4e %z, %a, %b, %c;", [a, b, s], np.uint32)
    for x, y, selector, value in zip(a.tolist(), b.tolist(), s.tolist(), got.tolist(), strict=True):
        octets = struct.pack("<II", x, y)
        want = bytes(octets[((selector & 3) - i) % 8] for i in range(4))
        assert value == int.from_bytes(want, "little")


COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "f32", "f64"])
def test_setp_selp(kind: str, rng: np.random.Generator) -> None:
    """Comparisons into a predicate and its complement, combined with another predicate; unordered forms of floats."""
    bits = int(kind[1:])
    a = floats(rng) if kind == "f32" else integers(rng, bits)
    b = np.where(rng.integers(0, 3, COUNT) == 0, a, rng.permutation(a))
    view = f"{ {'s': 'i', 'u': 'u', 'f': 'f'}[kind[0]] }{bits // 8}"
    x, y = a.view(view), b.view(view)
    names = list(COMPARE) + (["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"] if kind[0] == "f" else [])
    for name in names:
        text = f"""setp.{name}.{kind} %p0|%p1, %a, %b; selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 2, 0, %p1;
                   setp.gt.u32 %p2, %tid, 100; setp.{name}.and.{kind} %p3, %a, %b, !%p2; selp.u32 %r2, 4, 0, %p3;
                   or.b32 %r0, %r0, %r1; or.b32 %z, %r0, %r2;"""
        got = evaluate(text, [a, b], np.uint32)
        want = []
        for t, (p, q) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
            unordered = kind[0] == "f" and (math.isnan(p) or math.isnan(q))
            if name in ("num", "nan"):
                true = unordered == (name == "nan")
            elif unordered:
                true = name.endswith("u")
            else:
                true = {"eq": p == q, "ne": p != q, "lt": p < q, "le": p <= q, "gt": p > q, "ge": p >= q}[name[:2]]
            want.append(int(true) | int(not true) << 1 | int(true and not t > 100) << 2)
        assert got.tolist() == want, name


def rounded(value: Fraction, mode: str) -> float:
    """An exact value rounded to f32 in a mode, by a search between neighbours."""
    with np.errstate(over="ignore"):
        nearest = np.float32(float(value)) if abs(value) < 2**130 else np.float32(math.copysign(math.inf, value))
        candidates = {nearest, np.nextafter(nearest, np.float32(np.inf)), np.nextafter(nearest, np.float32(-np.inf))}
    finite = sorted((c for c in candidates if np.isfinite(c)), key=float)
    below = [c for c in finite if Fraction(float(c)) <= value]
    above = [c for c in finite if Fraction(float(c)) >= value]
    low = below[-1] if below else np.float32(-np.inf)
    high = above[0] if above else np.float32(np.inf)
    match mode:
        case "rm":
            return float(low)
        case "rp":
            return float(high)
        case "rz":
            return float(low if value > 0 else high)
    if not np.isfinite(low) or not np.isfinite(high):  # beyond the largest: half a unit more is infinity
        limit = Fraction(2) ** 128 - Fraction(2) ** 103
        return float(math.copysign(math.inf, value)) if abs(value) >= limit else float(low if value > 0 else high)
    down, up = value - Fraction(float(low)), Fraction(float(high)) - value
    if down == up:
        return float(low if not low.view(np.uint32) & 1 else high)
    return float(low if down < up else high)


def same(got: np.ndarray, want: list[float]) -> None:
    """Equality of f32 bits, any NaN being equal to any other."""
    expected = np.array(want, np.float32)
    equal = (got.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(got) & np.isnan(expected))
    where = np.flatnonzero(~equal)
    assert not len(where), f"{len(where)} differ, first {where[0]}: {got[where[0]]!r} for {expected[where[0]]!r}"


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_fma_rounds_once(mode: str, rng: np.random.Generator) -> None:
    """fma, add and mul of f32 against rationals, with sums that nearly cancel or lie near a midpoint."""
    a, b, c = (floats(rng) for _ in range(3))
    near = slice(0, COUNT, 3)
    with np.errstate(all="ignore"):
        product = a.view(np.float32)[near] * b.view(np.float32)[near]
    c[near] = (-product).view(np.uint32) ^ rng.integers(0, 4, len(product)).astype(np.uint32)
    tie = slice(1, COUNT, 3)  # c dwarfs a product that is a hair off half a unit of it
    a[tie] = (
        (np.float32(1 + 2.0**-23) * np.float32(2.0) ** rng.integers(-20, 20, len(a[tie])))
        .astype(np.float32)
        .view(np.uint32)
    )
    c[tie] = (a[tie].view(np.float32) * np.float32(2.0**24)).view(np.uint32)
    b[tie] = np.where(rng.integers(0, 2, len(b[tie])), 0x3F800000, 0x3F7FFFFF).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        x, y, z = (v.view(np.float32).astype(float) for v in (a, b, c))
    cases = {  # name: operands, their product and sum
        "fma": ("%a, %b, %c", lambda i: (x[i], y[i], z[i])),
        "add": ("%a, %c", lambda i: (x[i], 1.0, z[i])),
        "mul": ("%a, %b", lambda i: (x[i], y[i], math.copysign(0.0, x[i]) * math.copysign(1, y[i]))),
    }
    for name, (operands, terms) in cases.items():
        got = evaluate(f"{name}.{mode}.f32 %z, {operands};", [a, b, c], np.float32)
        want = []
        for i in range(COUNT):
            p, q, r = terms(i)
            if not all(map(math.isfinite, (p, q, r))):
                with np.errstate(invalid="ignore"):
                    want.append(float(np.float64(p) * q + r))
                continue
            exact = Fraction(p) * Fraction(q) + Fraction(r)
            if exact:
                want.append(math.copysign(rounded(exact, mode), exact))
            else:  # zeros of one sign keep it; of both signs, or a sum that cancels, they give -0 downwards alone
                signs = {math.copysign(1, p) * math.copysign(1, q), math.copysign(1, r)}
                want.append(-0.0 if signs == {-1} or (len(signs) == 2 and mode == "rm") else 0.0)
        same(got, want)


def test_float_unary_and_minmax(rng: np.random.Generator) -> None:
    """neg and abs touch the sign bit; min and max order zeros, and NaN loses, or wins with .NaN."""
    a, b = floats(rng), floats(rng)
    a[:4], b[:4] = (0, 0x80000000, 0x7FC00000, 0x3F800000), (0x80000000, 0, 0x3F800000, 0x7FC00000)
    unordered = np.isnan(a.view(np.float32))
    assert (evaluate("neg.f32 %z, %a;", [a], np.uint32) == np.where(unordered, 0x7FFFFFFF, a ^ 0x80000000)).all()
    assert (evaluate("abs.f32 %z, %a;", [a], np.uint32) == np.where(unordered, 0x7FFFFFFF, a & 0x7FFFFFFF)).all()
    for name, choose in (("min", min), ("max", max)):
        for nan in ("", ".NaN"):
            got = evaluate(f"{name}{nan}.f32 %z, %a, %b;", [a, b], np.float32)
            want = []
            for x, y in zip(a.view(np.float32).tolist(), b.view(np.float32).tolist(), strict=True):
                if math.isnan(x) or math.isnan(y):
                    want.append(math.nan if nan or (math.isnan(x) and math.isnan(y)) else y if math.isnan(x) else x)
                else:
                    want.append(choose(x, y, key=lambda v: (v, math.copysign(1, v))))
            same(got, want)
    flushed = evaluate("add.ftz.f32 %z, %a, 0f00000000;", [a], np.float32)
    small = np.abs(a.view(np.float32)) < 2.0**-126
    assert (flushed[small] == 0).all() and small.any()


def test_half_precision_arithmetic(rng: np.random.Generator) -> None:
    """f16x2 and bf16x2 add, mul and fma, each rounded once."""
    a, b, c = (integers(rng, 32) for _ in range(3))
    for kind in ("f16", "bf16"):
        decode = lambda v, k=kind: half_value(v, k)  # noqa: E731
        for name in ("add.rn", "mul.rn", "fma.rn"):
            sources = "%a, %b, %c" if name.startswith("fma") else "%a, %b"
            got = evaluate(f"{name}.{kind}x2 %z, {sources};", [a, b, c], np.uint32)
            for i, value in enumerate(got.tolist()):
                for half in range(2):
                    x, y, z = (decode(int(v[i]) >> 16 * half & 0xFFFF) for v in (a, b, c))
                    want = {
                        "add": lambda x=x, y=y: (x, 1, y),
                        "mul": lambda x=x, y=y: (x, y, -0.0),
                        "fma": lambda x=x, y=y, z=z: (x, y, z),
                    }
                    x, y, z = want[name[:3]]()
                    if not all(map(math.isfinite, (x, y, z))):
                        continue
                    exact = Fraction(x) * Fraction(y) + Fraction(z)
                    if exact:
                        assert value >> 16 * half & 0xFFFF == half_code(exact, kind), (name, kind, i)


def half_value(code: int, kind: str) -> float:
    if kind == "f16":
        return float(np.uint16(code).view(np.float16))
    return float(np.uint32(code << 16).view(np.float32))


def half_code(value: Fraction, kind: str) -> int:
    """Nearest even by a search over all non-negative codes."""
    sign = 0x8000 if value < 0 else 0
    value = abs(value)
    largest = 0x7BFF if kind == "f16" else 0x7F7F
    low, high = 0, largest
    while low < high:
        middle = (low + high + 1) // 2
        if Fraction(half_value(middle, kind)) <= value:
            low = middle
        else:
            high = middle - 1
    below = Fraction(half_value(low, kind))
    if low == largest:
        step = below - Fraction(half_value(low - 1, kind))
        return sign | (largest + 1 if value >= below + step / 2 else low)
    above = Fraction(half_value(low + 1, kind))
    if value - below == above - value:
        return sign | (low if low % 2 == 0 else low + 1)
    return sign | (low if value - below < above - value else low + 1)


def test_division_and_roots(rng: np.random.Generator) -> None:
    """div.rn, sqrt.rn and rcp.rn are correctly rounded; the approximations are within 2 ulp."""
    a, b = floats(rng), floats(rng)
    x, y = a.view(np.float32), b.view(np.float32)
    with np.errstate(all="ignore"):
        same(evaluate("div.rn.f32 %z, %a, %b;", [a, b], np.float32), (x / y).tolist())
        same(evaluate("sqrt.rn.f32 %z, %a;", [a], np.float32), np.sqrt(x).tolist())
        same(evaluate("rcp.rn.f32 %z, %a;", [a], np.float32), (np.float32(1) / x).tolist())
        got = evaluate(
            "ex2.approx.f32 %z, %a;",
            [(x * 0 + rng.uniform(-20, 20, COUNT).astype(np.float32)).view(np.uint32)],
            np.float32,
        )
    assert np.isfinite(got).sum() > COUNT // 2
    for mode in ("rz", "rm", "rp"):
        got = evaluate(f"div.{mode}.f32 %z, %a, %b;", [a, b], np.float32)
        for p, q, value in zip(x.tolist(), y.tolist(), got.tolist(), strict=True):
            if math.isfinite(p) and math.isfinite(q) and p and q:
                want = rounded(Fraction(p) / Fraction(q), mode)
                assert value == want, (mode, p, q)


def test_packed_pairs_of_f32(rng: np.random.Generator) -> None:
    """fma.rn.f32x2 is two fma.rn.f32."""
    a, b, c = (rng.standard_normal((256, 2)).astype(np.float32) for _ in range(3))
    from ptx import launch, module

    text = module(
        """ld.param.u64 %in0, [p0]; ld.param.u64 %in1, [p1]; ld.param.u64 %in2, [p2]; ld.param.u64 %out, [p3];
           mul.wide.u32 %offset, %tid, 8;
           add.u64 %in0, %in0, %offset; add.u64 %in1, %in1, %offset; add.u64 %in2, %in2, %offset;
           add.u64 %out, %out, %offset;
           ld.global.b64 %d0, [%in0]; ld.global.b64 %d1, [%in1]; ld.global.b64 %d2, [%in2];
           fma.rn.f32x2 %d3, %d0, %d1, %d2; st.global.b64 [%out], %d3;""", 4, "sm_100a")  # fmt: skip
    out = np.zeros_like(a)
    launch(text, [a, b, c, out], 256, arch="100a")
    want = [rounded(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)), "rn")
            for p, q, r in zip(a.flat, b.flat, c.flat, strict=True)]  # fmt: skip
    same(out.ravel(), want)


INTEGER_TYPES = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")


@pytest.mark.parametrize("source", INTEGER_TYPES)
@pytest.mark.parametrize("result", INTEGER_TYPES)
def test_integer_conversions(source: str, result: str, rng: np.random.Generator) -> None:
    """Extension with the source's sign, truncation, and saturation. Results in wider registers are extended."""
    bits, wide = int(source[1:]), int(result[1:])
    register = max(bits, 16)
    a = integers(rng, register)
    values = [signed(v, bits) if source[0] == "s" else v % (1 << bits) for v in a.tolist()]
    out = max(wide, 16)
    got = evaluate(f"cvt.{result}.{source} %z, %a;", [a], f"u{out // 8}")
    narrow = [signed(v, wide) if result[0] == "s" else v % (1 << wide) for v in values]
    assert got.tolist() == [v % (1 << out) for v in narrow]
    low, high = (-(1 << wide - 1), (1 << wide - 1) - 1) if result[0] == "s" else (0, (1 << wide) - 1)
    got = evaluate(f"cvt.sat.{result}.{source} %z, %a;", [a], f"u{out // 8}")
    assert got.tolist() == [min(max(v, low), high) % (1 << out) for v in values]


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("result", ["s32", "u32", "s64", "u64", "s16", "u8"])
def test_float_to_integer(result: str, mode: str, rng: np.random.Generator) -> None:
    """Rounding in each direction, saturation, and the values of NaN."""
    a = floats(rng)
    a[::2] = (
        (rng.standard_normal(len(a[::2])) * 10.0 ** rng.integers(0, 20, len(a[::2]))).astype(np.float32).view(np.uint32)
    )
    wide = int(result[1:])
    out = max(wide, 16)
    got = evaluate(f"cvt.{mode}.{result}.f32 %z, %a;", [a], f"u{out // 8}")
    low, high = (-(1 << wide - 1), (1 << wide - 1) - 1) if result[0] == "s" else (0, (1 << wide) - 1)
    function = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]
    for x, value in zip(a.view(np.float32).tolist(), got.tolist(), strict=True):
        if math.isnan(x):
            want = 1 << 63 if wide == 64 else 0
        elif math.isinf(x):
            want = high if x > 0 else low
        else:
            want = min(max(function(x), low), high)
        assert value == want % (1 << out), (x, mode, result)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["s32", "u32", "s64", "u64"])
def test_integer_to_float(source: str, mode: str, rng: np.random.Generator) -> None:
    bits = int(source[1:])
    a = integers(rng, bits)
    got = evaluate(f"cvt.{mode}.f32.{source} %z, %a;", [a], np.float32)
    values = [signed(v, bits) if source[0] == "s" else v for v in a.tolist()]
    same(got, [rounded(Fraction(v), mode) if v else 0.0 for v in values])


def test_float_conversions(rng: np.random.Generator) -> None:
    """f32 to packed f16 and bf16 (the first operand is the high half), f16 and bf16 to f32, f32 to and from f64."""
    a, b = floats(rng), floats(rng)
    for kind in ("f16", "bf16"):
        got = evaluate(f"cvt.rn.{kind}x2.f32 %z, %a, %b;", [a, b], np.uint32)
        for x, y, value in zip(a.view(np.float32).tolist(), b.view(np.float32).tolist(), got.tolist(), strict=True):
            for part, code in ((x, value >> 16), (y, value & 0xFFFF)):
                if math.isfinite(part) and part:
                    assert code == half_code(Fraction(part), kind)
        codes = rng.permutation(np.arange(1 << 16, dtype=np.uint32))[:COUNT].astype(np.uint16)
        got = evaluate(f"cvt.f32.{kind} %z, %a;", [codes], np.float32)
        same(got, [half_value(int(code), kind) for code in codes])
    wide = evaluate("cvt.f64.f32 %z, %a;", [a], np.float64)
    with np.errstate(invalid="ignore"):
        same(wide.astype(np.float32), a.view(np.float32).tolist())
    values = rng.standard_normal(COUNT)
    same(evaluate("cvt.rn.f32.f64 %z, %a;", [values.view(np.uint64)], np.float32), values.astype(np.float32).tolist())


def test_packed_fp4_goes_through_formats() -> None:
    """cvt.rn.satfinite.e2m1x2.f32: the first operand is the high nibble; a byte register is written by mov."""
    values = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
    high, low = (v.ravel().copy() for v in np.meshgrid(values, -values, indexing="ij"))
    text = "{ .reg .b8 %byte; cvt.rn.satfinite.e2m1x2.f32 %byte, %a, %b; cvt.u32.u8 %z, %byte; }"
    got = evaluate(text, [high.view(np.uint32), low.view(np.uint32)], np.uint32)
    codes = np.arange(8)
    want = (codes[:, None] << 4 | codes[None, :] | 8).ravel()
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize(
    "text, what",
    [
        ("frobnicate.b32 %z, %a;", "unknown opcode frobnicate.b32"),
        ("add.wibble.s32 %z, %a, %a;", "unknown modifier .wibble"),
        ("add.q32 %z, %a, %a;", "type .q32"),
        ("add.s32 %z, %a;", "2 operands, expected 3"),
        ("mul.s32 %z, %a, %a;", "mul needs .lo or .hi"),
        ("cvt.rn.e9m9x2.f32 %z, %a, %a;", "type .e9m9x2"),
        ("rem.f32 %z, %a, %a;", "type .f32 is not one of"),
        ("barrier.cluster.aligned;", "unknown barrier"),
    ],
)
def test_unknown_instructions_are_errors(text: str, what: str) -> None:
    """An opcode, modifier, type or operand count that is not known names itself, its text and its line."""
    with pytest.raises(emulator.UnsupportedInstruction) as caught:
        evaluate(text, [np.zeros(32, np.uint32)], np.uint32)
    assert what in str(caught.value) and text.rstrip(";") in str(caught.value)
    assert caught.value.line is not None and caught.value.kernel == "kernel"


def test_unknown_instruction_that_is_not_executed_is_none() -> None:
    """Code that no thread reaches needs no emulation."""
    text = "mov.u32 %z, 7; bra SKIP; frobnicate.b32 %z, %a; SKIP:"
    assert (evaluate(text, [np.zeros(32, np.uint32)], np.uint32) == 7).all()
