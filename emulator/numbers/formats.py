"""Floating-point formats of PTX: decoding tables, rounding, and every float-to-float `cvt`.

A value is handled as bits in an unsigned integer array, or as its exact value in float64, which holds every finite
value of every format here. Formats: PTX ISA 5.2.3; conversions: 9.7.9.21. All functions are element-wise over any
array shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checks.faults import IllegalInstruction


@dataclass(frozen=True)
class Format:
    """Sign, exponent and mantissa fields of one format; `nan` is the canonical NaN, `largest` the code of MAX_NORM."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: int
    nan: int | None = None
    infinity: bool = False
    signed: bool = True
    pad: int = 0  # unused low bits of the container, as in tf32

    @property
    def sign_bit(self) -> int:
        return self.exponent_bits + self.mantissa_bits

    @property
    def width(self) -> int:
        return self.sign_bit + self.signed


FORMATS = {
    format.name: format
    for format in (
        Format("e2m1", 2, 1, 1, 0x7),
        Format("e2m3", 2, 3, 1, 0x1F),
        Format("e3m2", 3, 2, 3, 0x1F),
        Format("e4m3", 4, 3, 7, 0x7E, nan=0x7F),
        Format("e5m2", 5, 2, 15, 0x7B, nan=0x7F, infinity=True),
        Format("ue4m3", 4, 3, 7, 0x7E, nan=0x7F, signed=False),
        Format("ue8m0", 8, 0, 127, 0xFE, nan=0xFF, signed=False),
        Format("f16", 5, 10, 15, 0x7BFF, nan=0x7FFF, infinity=True),
        Format("bf16", 8, 7, 127, 0x7F7F, nan=0x7FFF, infinity=True),
        Format("tf32", 8, 10, 127, 0x3FBFF, nan=0x3FFFF, infinity=True, pad=13),
        Format("f32", 8, 23, 127, 0x7F7FFFFF, nan=0x7FFFFFFF, infinity=True),
    )
}


@cache
def table(name: str) -> np.ndarray:
    """float64 values of all codes of a format of at most 16 bits, indexed by the code."""
    f = FORMATS[name]
    code = np.arange(1 << f.width, dtype=np.int64)
    exponent = (code >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1)
    mantissa = code & ((1 << f.mantissa_bits) - 1)
    if name == "ue8m0":  # no mantissa, no zero and no subnormals: every code but NaN is a power of two
        value = np.ldexp(1.0, exponent - f.bias)
    else:
        normal = exponent > 0
        significand = mantissa + (normal.astype(np.int64) << f.mantissa_bits)
        value = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - f.bias - f.mantissa_bits)
    magnitude = code & ((1 << f.sign_bit) - 1)
    if f.infinity:
        value[magnitude == f.largest + 1] = np.inf
    if f.nan is not None:
        value[magnitude > f.largest + f.infinity] = np.nan
    if f.signed:
        value = np.where(code >> f.sign_bit & 1, -value, value)
    value.setflags(write=False)
    return value


@cache
def container_table(name: str) -> np.ndarray:
    """float64 values of the 256 bytes that hold one element of `kind::f8f6f4` / `kind::mxf8f6f4` (PTX ISA 9.7.14.5.14).

    e2m1 sits in bits 5..2, e2m3 and e3m2 in bits 5..0; padding bits are ignored.
    """
    byte = np.arange(256)
    if name == "e2m1":
        return table(name)[byte >> 2 & 0xF]
    if name in ("e2m3", "e3m2"):
        return table(name)[byte & 0x3F]
    return table(name)


@cache
def scale_table(name: str) -> np.ndarray:
    """float64 values of the 256 bytes of a scale factor; the top bit of ue4m3 is padding (PTX ISA 5.2.3)."""
    byte = np.arange(256)
    if name == "ue4m3":
        return table(name)[byte & 0x7F]
    if name == "ue8m0":
        return table(name)
    raise IllegalInstruction(f"scale type .{name}: expected .ue8m0 or .ue4m3")


@cache
def pair_table() -> np.ndarray:
    """float64 [256, 2]: the two e2m1 elements of a packed byte, low nibble first."""
    byte = np.arange(256)
    return np.stack([table("e2m1")[byte & 0xF], table("e2m1")[byte >> 4]], axis=-1)


def decode(name: str, bits: np.ndarray) -> np.ndarray:
    """Exact float64 values of the codes `bits` of a format; tf32 ignores the low 13 bits of its 32."""
    if name == "f64":
        return np.ascontiguousarray(bits, np.uint64).view(np.float64)
    if name in ("f32", "tf32"):
        keep = 0xFFFFFFFF << FORMATS[name].pad & 0xFFFFFFFF
        with np.errstate(invalid="ignore"):
            return (np.ascontiguousarray(bits, np.uint32) & np.uint32(keep)).view(np.float32).astype(np.float64)
    return table(name)[bits]


_ROUNDS_UP = {  # whether magnitudes grow: of integers in units of the last place, what is beyond, and signs
    "rn": lambda whole, rest, negative: (rest > 0.5) | ((rest == 0.5) & (whole & 1 == 1)),
    "rna": lambda whole, rest, negative: rest >= 0.5,
    "rz": lambda whole, rest, negative: np.zeros_like(negative),
    "rm": lambda whole, rest, negative: negative & (rest > 0),
    "rp": lambda whole, rest, negative: ~negative & (rest > 0),
}


def encode(
    name: str, values: np.ndarray, rounding: str = "rn", *, relu: bool = False, satfinite: bool = False
) -> np.ndarray:
    """Codes (uint32) of float64 `values` rounded to a format: rn, rna, rz, rm or rp (PTX ISA 9.7.9.21).

    Without `satfinite` an overflow gives infinity, or NaN where the format has none, in the directions that `rounding`
    rounds away from zero, and MAX_NORM in the others. NaN gives the canonical NaN, or +MAX_NORM where there is none.
    ue8m0 takes the magnitude: its smallest value 2^-127 also stands for everything below it.
    """
    f = FORMATS[name]
    values = np.asarray(values, np.float64)
    negative = np.signbit(values)
    magnitude = np.abs(values)
    finite = np.isfinite(values)
    magnitude = np.where(finite, magnitude, 0.0)

    smallest = -f.bias if name == "ue8m0" else 1 - f.bias
    exponent = np.where(magnitude == 0, smallest, np.maximum(np.frexp(magnitude)[1] - 1, smallest))
    exact = np.ldexp(magnitude, f.mantissa_bits - exponent)  # in units of the last place, at most 2^(mantissa_bits + 1)
    whole = np.floor(exact)
    rest = exact - whole
    if name == "ue8m0":  # below the smallest power of two
        tiny = whole == 0
        whole, rest = np.where(tiny, 1.0, whole), np.where(tiny, 0.0, rest)
        negative = np.zeros_like(negative)
    whole = whole.astype(np.int64)
    if rounding not in _ROUNDS_UP:
        raise IllegalInstruction(f"rounding modifier .{rounding}: expected .rn, .rna, .rz, .rm or .rp")
    up = _ROUNDS_UP[rounding](whole, rest, negative)
    # Adding the significand with its leading one raises the exponent field from 0 to that of a normal number, and so
    # does a carry out of the mantissa.
    code = (exponent.astype(np.int64) - smallest << f.mantissa_bits) + whole + up
    if name == "ue8m0":
        code -= 1

    infinite = np.isinf(values)
    overflow = finite & (code > f.largest)
    away = {"rz": np.zeros_like(finite), "rm": negative, "rp": ~negative}.get(rounding, np.ones_like(finite))
    beyond = f.largest + 1 if f.infinity else f.nan
    if satfinite or beyond is None:
        code = np.where(overflow | infinite, f.largest, code)
    else:
        code = np.where(overflow, np.where(away, beyond, f.largest), code)
        code = np.where(infinite, beyond, code)
    if f.signed:
        code = code | (negative.astype(np.int64) << f.sign_bit)
    if relu:
        code = np.where(negative, 0, code)
    code = np.where(np.isnan(values), f.largest if f.nan is None else f.nan, code)
    if f.pad:
        code = code << f.pad
        code = np.where(np.isnan(values), 0x7FFFE000, code)
    return code.astype(np.uint32)


_CONTAINER = {"f16": np.uint16, "bf16": np.uint16, "tf32": np.uint32, "f32": np.uint32, "f64": np.uint64}
_NARROW = ("e4m3", "e5m2", "e2m1", "e2m3", "e3m2")


def convert(
    destination: str,
    source: str,
    operands: tuple[np.ndarray, ...],
    rounding: str | None = None,
    *,
    relu: bool = False,
    satfinite: bool = False,
    sat: bool = False,
    ftz: bool = False,
) -> np.ndarray:
    """Float-to-float `cvt` (PTX ISA 9.7.9.21) on bits.

    Args:
        destination, source: type names without the dot, such as "e2m1x2" and "f32".
        operands: bits as unsigned integers: one array, or two f32 arrays for a packed result (the first goes to the
            high half), broadcast against each other.
        rounding: rn, rz, rm, rp, rna; rni, rzi, rmi, rpi for f16, bf16, f32 and f64 onto themselves; None where exact.

    Returns:
        Bits: uint8 for e2m1x2, uint16 for the other narrow pairs, f16 and bf16, uint32, or uint64 for f64.

    Raises:
        IllegalInstruction: for a combination that the ISA does not list. `.rs` is not implemented.
    """
    if destination.endswith("x2"):
        return _convert_pair(destination[:-2], source, operands, rounding, relu, satfinite, sat or ftz)
    if destination.endswith("x4") or rounding == "rs":
        raise IllegalInstruction(f"cvt.{rounding}.{destination}.{source}: stochastic rounding is not implemented")
    if destination not in _CONTAINER or source not in _CONTAINER or source == "tf32" or len(operands) != 1:
        raise IllegalInstruction(f"cvt.{destination}.{source} with {len(operands)} operands is not in PTX ISA 9.7.9.21")
    _check_scalar(destination, source, rounding, relu, satfinite, sat, ftz)
    bits = np.asarray(operands[0]).astype(_CONTAINER[source])  # a wider register gives its low bits
    if source == "bf16" and destination == "f32" and not (sat or ftz):  # a shift: NaN payloads stay
        return bits.astype(np.uint32) << np.uint32(16)
    mode = rounding if rounding in ("rn", "rz", "rm", "rp", "rna") else "rn"
    if not (sat or ftz or rounding in _INTEGER_ROUNDING or destination == "f64"):
        if source == "f32":
            code = _encode_f32(destination, bits, mode, relu, satfinite).astype(_CONTAINER[destination])
            if mode == "rna":  # which cuts the payload of a NaN off
                code = np.where(bits << np.uint32(1) > 0xFF000000, bits & np.uint32(0xFFFFE000), code)
            return code
        if source in ("f16", "bf16"):
            return _recode(destination, source, mode, relu, satfinite)[bits].astype(_CONTAINER[destination])
    values = decode(source, bits)
    if ftz and source == "f32":
        values = np.where(np.abs(values) < 2.0**-126, np.copysign(0.0, values), values)
    if rounding in _INTEGER_ROUNDING:
        values = _INTEGER_ROUNDING[rounding](values)
    if sat:
        values = np.where(np.isnan(values), 0.0, np.clip(values, 0.0, 1.0) + 0.0)
    if destination == "f64":
        return _nan_payload(destination, source, bits, np.ascontiguousarray(values).view(np.uint64))
    code = encode(destination, values, mode, relu=relu, satfinite=satfinite)
    if ftz and destination == "f32":
        code = np.where(code & 0x7F800000 == 0, code & 0x80000000, code)
    return code.astype(_CONTAINER[destination]) if sat else _nan_payload(destination, source, bits, code)


def _nan_payload(destination: str, source: str, bits: np.ndarray, code: np.ndarray) -> np.ndarray:
    """A NaN to or from f64 becomes quiet and keeps sign and top of its payload, but from f32 (with .ftz) it becomes the
    canonical NaN of f32 first: seen on an H200. Elsewhere `code` stands."""
    if "f64" not in (destination, source) or destination == source:
        return code.astype(_CONTAINER[destination])
    wide = np.uint64(0x7FFFFFFFE0000000)
    if source == "f16":
        wide = (bits & np.uint64(0x8000)) << np.uint64(48) | np.uint64(0x7FF8 << 48)
        wide = wide | (bits & np.uint64(0x3FF)) << np.uint64(42)
    elif source == "f64":
        f = FORMATS[destination]
        top = bits >> np.uint64(52 - f.mantissa_bits) & np.uint64((1 << f.mantissa_bits) - 1)
        quiet = ((1 << f.exponent_bits) - 1) << f.mantissa_bits | 1 << (f.mantissa_bits - 1)
        wide = bits >> np.uint64(63) << np.uint64(f.sign_bit) | np.uint64(quiet) | top
    return np.where(np.isnan(decode(source, bits)), wide, code).astype(_CONTAINER[destination])


_INTEGER_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _check_scalar(
    destination: str, source: str, rounding: str | None, relu: bool, satfinite: bool, sat: bool, ftz: bool
) -> None:
    name = f"cvt{f'.{rounding}' if rounding else ''}.{destination}.{source}"
    if destination == "tf32":
        allowed = ("rn", "rz") if relu else ("rn", "rz", "rna")
        if source != "f32" or rounding not in allowed or sat or ftz:
            raise IllegalInstruction(f"{name}: .tf32 takes .f32 with {', '.join('.' + a for a in allowed)}")
        return
    if (relu or satfinite) and not (destination in ("f16", "bf16") and source == "f32" and rounding in ("rn", "rz")):
        raise IllegalInstruction(f"{name}: .relu and .satfinite need .f16 or .bf16 from .f32 with .rn or .rz")
    if ftz and "f32" not in (destination, source):
        raise IllegalInstruction(f"{name}: .ftz needs an .f32 operand")
    if sat and "bf16" in (destination, source):
        raise IllegalInstruction(f"{name}: .sat is for .f16, .f32 and .f64")
    if rounding == "rna" or (rounding in _INTEGER_ROUNDING and destination != source):
        raise IllegalInstruction(f"{name}: this rounding is not for these types")
    s, d = (FORMATS.get(t) for t in (source, destination))
    loses = source != destination and (
        d is not None and (s is None or s.mantissa_bits > d.mantissa_bits or s.exponent_bits > d.exponent_bits)
    )
    if loses and rounding is None:
        raise IllegalInstruction(f"{name}: a rounding modifier is required where precision or range is lost")
    # The ISA's own example rounds the exact cvt.f64.bf16; elsewhere an exact conversion takes no modifier.
    if rounding in ("rn", "rz", "rm", "rp") and not loses and (source != "bf16" or destination == "bf16"):
        raise IllegalInstruction(f"{name}: a rounding modifier is illegal where nothing is lost")


def _convert_pair(
    destination: str,
    source: str,
    operands: tuple[np.ndarray, ...],
    rounding: str | None,
    relu: bool,
    satfinite: bool,
    other: bool,
) -> np.ndarray:
    name = f"cvt.{rounding}.{destination}x2.{source}"
    sources = {"f16": ("f32",), "bf16": ("f32",), "ue8m0": ("f32", "bf16x2")} | dict.fromkeys(_NARROW, ("f32",))
    # e2m1x2 from f16x2 is not in the syntax of PTX ISA 9.0, but ptxas 13.0 assembles it.
    sources |= dict.fromkeys(("e4m3", "e5m2", "e2m1"), ("f32", "f16x2"))
    sources["f16"] += tuple(f"{n}x2" for n in _NARROW)
    sources["bf16"] += ("ue8m0x2",)
    if source not in sources.get(destination, ()):
        raise IllegalInstruction(f"{name}: not in PTX ISA 9.7.9.21")
    if len(operands) != (2 if source == "f32" else 1) or other:
        raise IllegalInstruction(f"{name}: wrong number of operands, or a modifier that it does not take")
    if destination in _NARROW and not (rounding == "rn" and satfinite):
        raise IllegalInstruction(f"{name}: .rn and .satfinite are mandatory")
    if destination == "ue8m0" and (rounding not in ("rz", "rp") or relu):
        raise IllegalInstruction(f"{name}: takes .rz or .rp, and no .relu")
    if destination in ("f16", "bf16"):
        if rounding not in (("rn", "rz") if source == "f32" else ("rn",)):
            raise IllegalInstruction(f"{name}: rounding modifier .{rounding} is not allowed")
        if source != "f32" and (satfinite or (relu and source == "ue8m0x2")):
            raise IllegalInstruction(f"{name}: modifier is not allowed")

    if source == "f32":
        high, low = np.broadcast_arrays(*(np.asarray(bits, np.uint32) for bits in operands))
        codes = _encode_f32(destination, np.stack([high, low]), rounding, relu, satfinite)
    else:
        element, half = source[:-2], _half_width(source[:-2])
        bits = np.asarray(operands[0]).astype(np.uint32)
        mask = np.uint32((1 << FORMATS[element].width) - 1)
        halves = np.stack([bits >> np.uint32(half) & mask, bits & mask])
        codes = _recode(destination, element, rounding, relu, satfinite)[halves]
    return (codes[0] << np.uint32(_half_width(destination)) | codes[1]).astype(_PAIR[destination])


def _encode_f32(name: str, bits: np.ndarray, rounding: str, relu: bool, satfinite: bool) -> np.ndarray:
    """`encode` of f32 bits; the common roundings to f16 and bf16 by shorter ways."""
    if rounding != "rn" or relu or satfinite or name not in ("f16", "bf16"):
        return encode(name, decode("f32", bits), rounding, relu=relu, satfinite=satfinite)
    nan = (bits & np.uint32(0x7FFFFFFF)) > 0x7F800000
    if name == "bf16":
        code = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            code = bits.view(np.float32).astype(np.float16).view(np.uint16).astype(np.uint32)
    return np.where(nan, np.uint32(0x7FFF), code)


@cache
def _recode(destination: str, source: str, rounding: str, relu: bool, satfinite: bool) -> np.ndarray:
    """Codes (uint32) of a format for every code of one of at most 16 bits."""
    return encode(destination, table(source), rounding, relu=relu, satfinite=satfinite)


_PAIR = {"f16": np.uint32, "bf16": np.uint32, "e2m1": np.uint8} | dict.fromkeys(
    ("e4m3", "e5m2", "e2m3", "e3m2", "ue8m0"), np.uint16
)


def _half_width(name: str) -> int:
    return {"e2m1": 4, "f16": 16, "bf16": 16}.get(name, 8)


def round_to_f32(values: np.ndarray) -> np.ndarray:
    """uint32 bits of float64 values rounded to nearest even, NaN canonical."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        bits = np.asarray(values).astype(np.float32).view(np.uint32)
    nan = np.isnan(values)
    if nan.any():
        bits[nan] = 0x7FFFFFFF
    return bits


def round_to_f16(values: np.ndarray) -> np.ndarray:
    """uint16 bits of float64 values rounded to nearest even, NaN canonical."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        bits = np.asarray(values).astype(np.float16).view(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        bits[nan] = 0x7FFF
    return bits
