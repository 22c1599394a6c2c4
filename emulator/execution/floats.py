"""Emitters of floating-point arithmetic (PTX ISA 9.7.3 to 9.7.5)."""

from __future__ import annotations

from ..text.instructions import WIDTHS, Instruction
from .emitter import HALVES, NUMPY, Emitter, Modifiers, arrays, flushed, operands, pairs


def _finish(e: Emitter, i: Instruction, kind: str, value: str, ftz: bool, sat: bool) -> None:
    if ftz:
        value = f"flush({value})"
    if sat:
        value = f"saturate({value})"
    e.write(i.operands[0], kind, _canonical(kind, value), i)


def _canonical(kind: str, value: str) -> str:
    return f"canonical({value})" if kind == "f32" else value


def _write_pairs(e: Emitter, i: Instruction, kind: str, value: str) -> None:
    width = "u64" if kind == "f32x2" else "u32"
    e.write(
        i.operands[0], "b64" if kind == "f32x2" else "b32", f"np.ascontiguousarray({value}).view({width})[..., 0]", i
    )


def binary(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", "f32x2", *HALVES)
    source = m.take("f16", "bf16") if kind == "f32" else None
    mode, ftz, sat = m.take("rn", "rz", "rm", "rp") or "rn", m.flag("ftz"), m.flag("sat")
    m.done()
    d, a, b = operands(e, i, 3)
    sign = {"add": "+", "sub": "-", "mul": "*"}[i.opcode]
    if kind in HALVES:
        half = kind.removesuffix("x2")
        if ftz or mode != "rn":
            raise e.fail("only .rn without .ftz is implemented for half precision")
        packed = kind.endswith("x2")
        x, y = (pairs(e, o, kind) if packed else e.array(o, half if half == "bf16" else "b16") for o in (a, b))
        value = f"half_binary({i.opcode!r}, {half!r}, {x}, {y})"
        if sat:
            value = f"narrow({half!r}, saturate(widen({half!r}, {value})))"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    if kind == "f32x2":
        if mode != "rn":
            raise e.fail("only .rn is implemented for .f32x2")
        x, y = (flushed(e, pairs(e, o, kind), ftz) for o in (a, b))
        value = f"{x} {sign} {y}"
        return _write_pairs(e, i, kind, f"flush({value})" if ftz else value)
    if source:
        x = e.temporary(f"widen({source!r}, {e.array(a, 'b16')})")
        y = e.read(b, "f32")
    else:
        x, y = arrays(e, (a, b), (kind, kind))
    x, y = flushed(e, x, ftz), flushed(e, y, ftz)
    if mode == "rn":
        value = f"{x} {sign} {y}"
        if ftz and sign == "*" and kind == "f32":
            value = f"flush_exact({value}, np.multiply({x}, {y}, dtype=f64))"
    elif kind == "f32":
        if sign == "*":
            value = f"round_f32({x}.astype(f64) * {y}, {mode!r})"  # the product is exact in float64
        else:
            value = f"fma32_directed({x}, f32(1), {'-' if sign == '-' else ''}{y}, {mode!r})"
    else:
        raise e.fail("this rounding of .f64 is not implemented")
    _finish(e, i, kind, value, ftz, sat)


def fma(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", "f32x2", *HALVES)
    source = m.take("f16", "bf16") if kind == "f32" else None
    mode, ftz, sat, relu = m.take("rn", "rz", "rm", "rp"), m.flag("ftz"), m.flag("sat"), m.flag("relu")
    m.done()
    d, a, b, c = operands(e, i, 4)
    if mode is None:
        raise e.fail("a rounding modifier is required")
    if kind in HALVES:
        half = kind.removesuffix("x2")
        if ftz or sat or mode != "rn":
            raise e.fail("only .rn with or without .relu is implemented for half precision")
        packed = kind.endswith("x2")
        x, y, z = (pairs(e, o, kind) if packed else e.array(o, "b16") for o in (a, b, c))
        value = f"half_fma({half!r}, {x}, {y}, {z}, {relu})"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    if kind == "f32x2":
        if mode != "rn":
            raise e.fail("only .rn is implemented for .f32x2")
        x, y, z = (flushed(e, pairs(e, o, kind), ftz) for o in (a, b, c))
        value = f"fma32({x}, {y}, {z})"
        return _write_pairs(e, i, kind, f"flush({value})" if ftz else value)
    if kind == "f64":
        if mode != "rn":
            raise e.fail("only .rn is implemented for .f64")
        x, y, z = (e.read(o, kind) for o in (a, b, c))
        return e.write(d, kind, f"C.wide(fma64({x}, {y}, {z}))", i)
    if source:
        x, y = (e.temporary(f"widen({source!r}, {e.array(o, 'b16')})") for o in (a, b))
        z = e.read(c, kind)
    else:
        x, y, z = (flushed(e, v, ftz) for v in arrays(e, (a, b, c), (kind, kind, kind)))
    value = f"fma32({x}, {y}, {z})" if mode == "rn" else f"fma32_directed({x}, {y}, {z}, {mode!r})"
    if ftz:
        value = f"flush_exact({value}, np.multiply({x}, {y}, dtype=f64) + {z})"
    _finish(e, i, kind, value, ftz, sat)


def divide(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64")
    mode = m.take("approx", "full", "rn", "rz", "rm", "rp")
    ftz = m.flag("ftz")
    m.done()
    d, a, b = operands(e, i, 3)
    x, y = (flushed(e, v, ftz) for v in arrays(e, (a, b), (kind, kind)))
    if kind == "f32" and mode in ("rz", "rm", "rp"):
        value = f"divide32({x}, {y}, {mode!r})"
    elif mode == "approx":
        value = f"divide_approximate({x}, {y})"
    elif mode in ("full", "rn"):
        value = f"{x} / {y}"
    else:
        raise e.fail("this rounding of div.f64 is not implemented")
    _finish(e, i, kind, value, ftz, False)


def sign(e: Emitter, i: Instruction) -> None:
    """neg and abs of floats change the sign bit of numbers; a NaN of f32 and f16 becomes the canonical one."""
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", *HALVES)
    ftz = m.flag("ftz")
    m.done()
    d, a = operands(e, i, 2)
    negate = i.opcode == "neg"
    if kind == "f32":
        value = flushed(e, e.array(a, kind), ftz)
        return _finish(e, i, kind, f"-{value}" if negate else f"np.abs({value})", False, False)
    if kind == "f16":
        value = f"widen('f16', {e.array(a, 'b16')})"
        return e.write(d, "b16", f"narrow('f16', {'-' if negate else 'np.abs'}({value}))", i)
    base = {"f64": "b64", "bf16": "b16"}.get(kind, "b32")
    bit = 0x80008000 if base == "b32" else 1 << (8 * WIDTHS[base] - 1)
    value, numpy = e.array(a, base), NUMPY[base]
    if negate and kind == "f64":
        number = e.array(a, kind)
        e.write(d, kind, f"where(np.isnan({number}), {number}, -{number})", i)
    elif negate:
        e.write(d, base, f"{value} ^ {e.constant(bit, numpy)}", i)
    else:
        e.write(d, base, f"{value} & {e.constant(~bit & ((1 << 8 * WIDTHS[base]) - 1), numpy)}", i)


def minmax(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", *HALVES)
    ftz, nan, magnitude = m.flag("ftz"), m.flag("NaN"), m.flag("xorsign")
    magnitude_only = m.flag("abs")
    m.done()
    if magnitude:
        raise e.fail(".xorsign is not implemented")
    d, *sources = i.operands
    if kind in HALVES:
        half = kind.removesuffix("x2")
        packed = kind.endswith("x2")
        values = [pairs(e, o, kind) if packed else e.array(o, "b16") for o in sources]
        if ftz:
            values = [f"flush_half({v})" for v in values]
        value = f"half_minmax({i.opcode!r}, {half!r}, {values[0]}, {values[1]}, {nan}, {magnitude_only})"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    values = [flushed(e, v, ftz) for v in arrays(e, sources, [kind] * len(sources))]
    value = values[0]
    for other in values[1:]:
        value = f"float_minmax({i.opcode!r}, {value}, {other}, {nan}, {magnitude_only})"
    _finish(e, i, kind, value, False, False)


def approximate(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", *HALVES)
    mode, ftz = m.take("approx", "rn", "rz", "rm", "rp"), m.flag("ftz")
    m.done()
    d, a = operands(e, i, 2)
    if kind in HALVES:
        half = kind.removesuffix("x2")
        if i.opcode not in ("ex2", "tanh"):
            raise e.fail("not an instruction of half precision")
        packed = kind.endswith("x2")
        x = pairs(e, a, kind) if packed else e.array(a, "b16")
        value = f"narrow({half!r}, approximate({i.opcode!r}, widen({half!r}, {x}).astype(f64)))"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    x = flushed(e, e.array(a, kind), ftz)
    if mode in (None, "approx") or (mode == "rn" and kind == "f64"):
        value = f"approximate({i.opcode!r}, {x})"
    elif i.opcode == "sqrt" and kind == "f32":
        value = f"sqrt32({x}, {mode!r})"
    elif i.opcode == "rcp" and kind == "f32":
        value = f"divide32(np.ones_like({x}), {x}, {mode!r})"
    else:
        raise e.fail(f"rounding .{mode} is not implemented here")
    _finish(e, i, kind, value, ftz, False)


_TESTP = {
    "finite": "np.isfinite({0})",
    "infinite": "np.isinf({0})",
    "number": "~np.isnan({0})",
    "notanumber": "np.isnan({0})",
    "normal": "np.isfinite({0}) & (({0} == 0) | (np.abs({0}) >= np.finfo({0}.dtype).tiny))",
    "subnormal": "({0} != 0) & (np.abs({0}) < np.finfo({0}.dtype).tiny)",
}


def testp(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind, test = m.type("f32", "f64"), m.take(*_TESTP)
    m.done()
    d, a = operands(e, i, 2)
    if test is None:
        raise e.fail("unknown test")
    e.write(d, "pred", _TESTP[test].format(e.array(a, kind)), i)
