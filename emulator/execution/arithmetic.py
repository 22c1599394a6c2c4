"""Emitters of arithmetic, logic, comparison, conversion and move instructions (PTX ISA 9.7.1 to 9.7.9)."""

from __future__ import annotations

from collections.abc import Callable

from emulator.execution.program import NUMPY, Emitter, Modifiers
from emulator.text.instructions import WIDTHS, Imm, Instruction, Pair, Symbol

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
HALVES = ("f16", "bf16", "f16x2", "bf16x2")
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED_COMPARE = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def _operands(e: Emitter, i: Instruction, count: int) -> tuple:
    if len(i.operands) != count:
        raise e.fail(f"{len(i.operands)} operands, expected {count}")
    return i.operands


def _first_array(e: Emitter, operands: tuple, kind: str) -> list[str]:
    """Sources as names; an array even if all of them are constants."""
    constant = all(isinstance(o, Imm) for o in operands)
    return [e.array(o, kind) if constant and not n else e.read(o, kind) for n, o in enumerate(operands)]


def _wide(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


# Integers


def _add(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    if i.modifiers[-1].startswith(("f", "bf")):
        return _float_binary(e, i)
    kind = m.type(*INTEGERS, "s16x2", "u16x2")
    d, a, b = _operands(e, i, 3)
    sign = {"add": "+", "sub": "-"}[i.opcode]
    if kind.endswith("x2"):
        m.done()
        return _paired_integers(e, i, kind, f"{{}} {sign} {{}}")
    saturated, carries = m.flag("sat"), m.flag("cc")
    m.done()
    if saturated:
        if kind != "s32":
            raise e.fail(".sat needs .s32")
        x, y = _first_array(e, (a, b), "s32")
        name = "add_saturated" if sign == "+" else "subtract_saturated"
        return e.write(d, kind, f"{name}({x}, {y})", i)
    base = "u" + kind[1:]
    x, y = _first_array(e, (a, b), base)
    value = f"{x} {sign} {y}"
    if carries:
        value = e.temporary(value)
        e.line(f"cc = ({value} < {x})" if sign == "+" else f"cc = ({x} < {y})")
        e.has_carry = True
    e.write(d, base, value, i)


def _paired_integers(e: Emitter, i: Instruction, kind: str, form: str) -> None:
    half = kind[:-2]
    view = NUMPY[half].__name__
    parts = [e.temporary(f"halves({e.array(o, 'b32')}, {view})") for o in i.operands[1:]]
    e.write(i.operands[0], "b32", f"from_halves({form.format(*parts)})", i)


def _add_carry(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "s32", "u64", "s64")
    carries = m.flag("cc")
    m.done()
    d, a, b = _operands(e, i, 3)
    if not e.has_carry:
        raise e.fail("the carry that this needs was set in another basic block")
    base = "u" + kind[1:]
    x, y = _first_array(e, (a, b), base)
    carry = e.temporary(f"cc.astype({base})")
    if i.opcode == "addc":
        part = e.temporary(f"{x} + {y}")
        value = e.temporary(f"{part} + {carry}")
        if carries:
            e.line(f"cc = ({part} < {x}) | ({value} < {part})")
    else:
        value = e.temporary(f"{x} - {y} - {carry}")
        if carries:
            e.line(f"cc = ({x} < {y}) | (({x} == {y}) & cc)")
    e.write(d, base, value, i)


def _product(e: Emitter, part: str | None, kind: str, x: str, y: str) -> tuple[str, str]:
    """(expression, type) of mul.{lo,hi,wide}."""
    if part == "wide":
        return f"multiply_wide({x}, {y})", _wide(kind)
    if part == "hi":
        return f"multiply_high({x}, {y})", kind
    if part == "lo":
        return f"{x} * {y}", kind
    raise ValueError(part)


def _mul(e: Emitter, i: Instruction) -> None:
    if i.modifiers[-1].startswith(("f", "bf")):
        return _float_binary(e, i)
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS)
    part = m.take("lo", "hi", "wide")
    m.done()
    d, a, b = _operands(e, i, 3)
    if part is None or (part == "wide" and kind.endswith("64")):
        raise e.fail("mul needs .lo or .hi, or .wide on 16 or 32 bits")
    base = "u" + kind[1:] if part == "lo" else kind
    x, y = _first_array(e, (a, b), base)
    value, result = _product(e, part, base, x, y)
    e.write(d, result, value, i)


def _mad(e: Emitter, i: Instruction) -> None:
    if i.modifiers[-1].startswith(("f", "bf")):
        return _fma(e, i)
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS)
    part = m.take("lo", "hi", "wide")
    carries, saturated = m.flag("cc"), m.flag("sat")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    if part is None:
        raise e.fail("mad needs .lo, .hi or .wide")
    base = "u" + kind[1:] if part == "lo" else kind
    x, y = _first_array(e, (a, b), base)
    value, result = _product(e, part, base, x, y)
    z = e.read(c, result)
    if saturated:
        return e.write(d, kind, f"add_saturated({value}, {z})", i)
    if carries or i.opcode == "madc":
        unsigned = "u" + result[1:]
        product = e.temporary(f"np.asarray({value}).view({unsigned})")
        z = e.read(c, unsigned)
        if i.opcode == "madc":
            if not e.has_carry:
                raise e.fail("the carry that this needs was set in another basic block")
            part_sum = e.temporary(f"{product} + {z}")
            total = e.temporary(f"{part_sum} + cc.astype({unsigned})")
            if carries:
                e.line(f"cc = ({part_sum} < {product}) | ({total} < {part_sum})")
        else:
            total = e.temporary(f"{product} + {z}")
            e.line(f"cc = {total} < {product}")
            e.has_carry = True
        return e.write(d, unsigned, total, i)
    e.write(d, result, f"{value} + {z}", i)


def _mul24(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind, part = m.type("u32", "s32"), m.take("lo", "hi")
    m.done()
    shift = e.constant(8, NUMPY[kind])
    x, y = (f"(({e.array(o, kind)} << {shift}) >> {shift})" for o in i.operands[1:3])
    product = e.temporary(f"multiply_wide({x}, {y})")
    value = f"({product} >> {16 if part == 'hi' else 0}).astype({kind})"
    if i.opcode == "mad24":
        value = f"{value} + {e.read(i.operands[3], kind)}"
    e.write(i.operands[0], kind, value, i)


def _sad(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS)
    m.done()
    d, a, b, c = _operands(e, i, 4)
    x, y = _first_array(e, (a, b), kind)
    e.write(d, kind, f"{e.read(c, kind)} + (maximum({x}, {y}) - minimum({x}, {y}))", i)


def _divide(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    if i.modifiers[-1] in ("f32", "f64"):
        kind = m.type("f32", "f64")
        mode = m.take("approx", "full", "rn", "rz", "rm", "rp")
        ftz = m.flag("ftz")
        m.done()
        d, a, b = _operands(e, i, 3)
        x, y = (_flushed(e, v, ftz) for v in _first_array(e, (a, b), kind))
        if kind == "f32" and mode in ("rz", "rm", "rp"):
            value = f"divide32({x}, {y}, {mode!r})"
        elif mode == "approx":
            value = f"divide_approximate({x}, {y})"
        elif mode in ("full", "rn"):
            value = f"{x} / {y}"
        else:
            raise e.fail("this rounding of div.f64 is not implemented")
        return _finish_float(e, i, kind, value, ftz, False)
    kind = m.type(*INTEGERS)
    m.done()
    d, a, b = _operands(e, i, 3)
    x, y = e.array(a, kind), e.array(b, kind)
    name = "truncated_divide" if i.opcode == "div" else "truncated_remainder"
    e.write(d, kind, f"{name}({x}, {y})", i)


def _unary_integer(form: str, *allowed: str, result: str | None = None) -> Callable[[Emitter, Instruction], None]:
    def emit(e: Emitter, i: Instruction) -> None:
        m = Modifiers(e, i)
        kind = m.type(*allowed)
        m.done()
        d, a = _operands(e, i, 2)
        e.write(d, result or kind, form.format(e.array(a, kind)), i)

    return emit


def _negate(e: Emitter, i: Instruction) -> None:
    if i.modifiers[-1].startswith(("f", "bf")):
        return _sign(e, i)
    form = "-{0}" if i.opcode == "neg" else "np.abs({0})"
    _unary_integer(form, "s16", "s32", "s64")(e, i)


def _minmax(e: Emitter, i: Instruction) -> None:
    if i.modifiers[-1].startswith(("f", "bf")):
        return _float_minmax(e, i)
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS, "s16x2", "u16x2")
    relu = m.flag("relu")
    m.done()
    form = ("minimum" if i.opcode == "min" else "maximum") + "({}, {})"
    if relu:
        form = f"maximum({form}, 0)"
    if kind.endswith("x2"):
        return _paired_integers(e, i, kind, form)
    d, a, b = _operands(e, i, 3)
    e.write(d, kind, form.format(*_first_array(e, (a, b), kind)), i)


def _bfind(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind, amount = m.type("u32", "s32", "u64", "s64"), m.flag("shiftamt")
    m.done()
    d, a = _operands(e, i, 2)
    e.write(d, "u32", f"find_leading({e.array(a, kind)}, {amount})", i)


def _bfe(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "s32", "u64", "s64")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    e.write(d, kind, f"extract_field({e.array(a, kind)}, {e.read(b, 'u32')}, {e.read(c, 'u32')})", i)


def _bfi(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("b32", "b64")
    m.done()
    f, a, b, c, d = _operands(e, i, 5)
    sources = f"{e.array(a, kind)}, {e.array(b, kind)}, {e.read(c, 'u32')}, {e.read(d, 'u32')}"
    e.write(f, kind, f"insert_field({sources})", i)


def _szext(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind, mode = m.type("u32", "s32"), m.take("clamp", "wrap")
    m.done()
    d, a, b = _operands(e, i, 3)
    e.write(d, kind, f"extend_field({e.array(a, kind)}, {e.array(b, 'u32')}, {mode == 'wrap'})", i)


def _bmsk(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.type("b32")
    mode = m.take("clamp", "wrap")
    m.done()
    d, a, b = _operands(e, i, 3)
    e.write(d, "b32", f"bit_mask({e.array(a, 'u32')}, {e.array(b, 'u32')}, {mode == 'wrap'})", i)


def _dp4a(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    right, left = m.type("u32", "s32"), m.type("u32", "s32")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    kind = "u32" if left == right == "u32" else "s32"
    sources = f"{e.array(a, 'b32')}, {e.array(b, 'b32')}, {e.array(c, kind)}"
    e.write(d, "b32", f"dot_bytes({sources}, {left == 's32'}, {right == 's32'})", i)


# Logic and shifts


def _logic(sign: str) -> Callable[[Emitter, Instruction], None]:
    def emit(e: Emitter, i: Instruction) -> None:
        m = Modifiers(e, i)
        kind = m.type("pred", "b16", "b32", "b64")
        m.done()
        d, a, b = _operands(e, i, 3)
        x, y = _first_array(e, (a, b), kind)
        e.write(d, kind, f"{x} {sign} {y}", i)

    return emit


def _cnot(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("b16", "b32", "b64")
    m.done()
    d, a = _operands(e, i, 2)
    e.write(d, kind, f"({e.array(a, kind)} == 0).astype(u{8 * WIDTHS[kind]})", i)


def _lop3(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.type("b32")
    combine = m.take("or", "and")
    m.done()
    if combine:
        d, a, b, c, table, q = _operands(e, i, 6)
    else:
        d, a, b, c, table = _operands(e, i, 5)
    value = e.temporary(f"lookup3({e.array(a, 'b32')}, {e.read(b, 'b32')}, {e.read(c, 'b32')}, {table.value & 0xFF})")
    if combine:
        if not isinstance(d, Pair):
            raise e.fail("expected d|p")
        e.write(d.second, "pred", f"({value} != 0) {'|' if combine == 'or' else '&'} {e.read(q, 'pred')}", i)
        d = d.first
    e.write(d, "b32", value, i)


def _shift(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    left = i.opcode == "shl"
    kind = m.type(*(("b16", "b32", "b64") if left else (*INTEGERS, "b16", "b32", "b64")))
    m.done()
    d, a, b = _operands(e, i, 3)
    x = e.array(a, kind)
    if isinstance(b, Imm):
        bits = 8 * WIDTHS[kind]
        amount = b.value & 0xFFFFFFFF
        if amount < bits:
            value = f"{x} {'<<' if left else '>>'} {e.constant(amount, NUMPY[kind])}"
        elif kind[0] == "s":
            value = f"{x} >> {e.constant(bits - 1, NUMPY[kind])}"
        else:
            value = f"C.full({e.constant(0, NUMPY[kind])})"
        return e.write(d, kind, value, i)
    e.write(d, kind, f"{'shift_left' if left else 'shift_right'}({x}, {e.read(b, 'u32')})", i)


def _funnel(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.type("b32")
    side, mode = m.take("l", "r"), m.take("clamp", "wrap")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    x, y = e.array(a, "b32"), e.array(b, "b32")
    amount = e.array(c, "u32")
    limited = f"minimum({amount}, u32(32))" if mode == "clamp" else f"({amount} & u32(31))"
    e.write(d, "b32", f"{'funnel_left' if side == 'l' else 'funnel_right'}({x}, {y}, {limited})", i)


def _prmt(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    mode = m.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    m.type("b32")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    sources = f"{e.array(a, 'b32')}, {e.read(b, 'b32')}, {e.array(c, 'b32')}"
    e.write(d, "b32", f"permute_mode({sources}, {mode!r})" if mode else f"permute({sources})", i)


# Floating point


def _flushed(e: Emitter, name: str, ftz: bool) -> str:
    return e.temporary(f"flush({name})") if ftz else name


def _finish_float(e: Emitter, i: Instruction, kind: str, value: str, ftz: bool, sat: bool) -> None:
    if ftz:
        value = f"flush({value})"
    if sat:
        value = f"saturate({value})"
    e.write(i.operands[0], kind, _canonical(kind, value), i)


def _canonical(kind: str, value: str) -> str:
    return f"canonical({value})" if kind == "f32" else value


def _pairs(e: Emitter, operand: object, kind: str) -> str:
    """A packed pair as an array [warps, 32, 2] of the elements' type."""
    if kind == "f32x2":
        return e.temporary(f"np.ascontiguousarray({e.array(operand, 'b64')})[..., None].view(f32)")
    return e.temporary(f"halves({e.array(operand, 'b32')}, u16)")


def _write_pairs(e: Emitter, i: Instruction, kind: str, value: str) -> None:
    width = "u64" if kind == "f32x2" else "u32"
    e.write(
        i.operands[0], "b64" if kind == "f32x2" else "b32", f"np.ascontiguousarray({value}).view({width})[..., 0]", i
    )


def _float_binary(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", "f32x2", *HALVES)
    source = m.take("f16", "bf16") if kind == "f32" else None
    mode, ftz, sat = m.take("rn", "rz", "rm", "rp") or "rn", m.flag("ftz"), m.flag("sat")
    m.done()
    d, a, b = _operands(e, i, 3)
    sign = {"add": "+", "sub": "-", "mul": "*"}[i.opcode]
    if kind in HALVES:
        half = kind.removesuffix("x2")
        if ftz or mode != "rn":
            raise e.fail("only .rn without .ftz is implemented for half precision")
        packed = kind.endswith("x2")
        x, y = (_pairs(e, o, kind) if packed else e.array(o, half if half == "bf16" else "b16") for o in (a, b))
        value = f"half_binary({i.opcode!r}, {half!r}, {x}, {y})"
        if sat:
            value = f"narrow({half!r}, saturate(widen({half!r}, {value})))"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    if kind == "f32x2":
        if mode != "rn":
            raise e.fail("only .rn is implemented for .f32x2")
        x, y = (_flushed(e, _pairs(e, o, kind), ftz) for o in (a, b))
        value = f"{x} {sign} {y}"
        return _write_pairs(e, i, kind, f"flush({value})" if ftz else value)
    if source:
        x = e.temporary(f"widen({source!r}, {e.array(a, 'b16')})")
        y = e.read(b, "f32")
    else:
        x, y = _first_array(e, (a, b), kind)
    x, y = _flushed(e, x, ftz), _flushed(e, y, ftz)
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
    _finish_float(e, i, kind, value, ftz, sat)


def _fma(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", "f32x2", *HALVES)
    source = m.take("f16", "bf16") if kind == "f32" else None
    mode, ftz, sat, relu = m.take("rn", "rz", "rm", "rp"), m.flag("ftz"), m.flag("sat"), m.flag("relu")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    if mode is None:
        raise e.fail("a rounding modifier is required")
    if kind in HALVES:
        half = kind.removesuffix("x2")
        if ftz or sat or mode != "rn":
            raise e.fail("only .rn with or without .relu is implemented for half precision")
        packed = kind.endswith("x2")
        x, y, z = (_pairs(e, o, kind) if packed else e.array(o, "b16") for o in (a, b, c))
        value = f"half_fma({half!r}, {x}, {y}, {z}, {relu})"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    if kind == "f32x2":
        if mode != "rn":
            raise e.fail("only .rn is implemented for .f32x2")
        x, y, z = (_flushed(e, _pairs(e, o, kind), ftz) for o in (a, b, c))
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
        x, y, z = (_flushed(e, v, ftz) for v in _first_array(e, (a, b, c), kind))
    value = f"fma32({x}, {y}, {z})" if mode == "rn" else f"fma32_directed({x}, {y}, {z}, {mode!r})"
    if ftz:
        value = f"flush_exact({value}, np.multiply({x}, {y}, dtype=f64) + {z})"
    _finish_float(e, i, kind, value, ftz, sat)


def _sign(e: Emitter, i: Instruction) -> None:
    """neg and abs of floats change the sign bit of numbers; a NaN of f32 and f16 becomes the canonical one."""
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", *HALVES)
    ftz = m.flag("ftz")
    m.done()
    d, a = _operands(e, i, 2)
    negate = i.opcode == "neg"
    if kind == "f32":
        value = _flushed(e, e.array(a, kind), ftz)
        return _finish_float(e, i, kind, f"-{value}" if negate else f"np.abs({value})", False, False)
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


def _float_minmax(e: Emitter, i: Instruction) -> None:
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
        values = [_pairs(e, o, kind) if packed else e.array(o, "b16") for o in sources]
        if ftz:
            values = [f"flush_half({v})" for v in values]
        value = f"half_minmax({i.opcode!r}, {half!r}, {values[0]}, {values[1]}, {nan}, {magnitude_only})"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    values = [_flushed(e, v, ftz) for v in _first_array(e, tuple(sources), kind)]
    value = values[0]
    for other in values[1:]:
        value = f"float_minmax({i.opcode!r}, {value}, {other}, {nan}, {magnitude_only})"
    _finish_float(e, i, kind, value, False, False)


def _approximate(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64", *HALVES)
    mode, ftz = m.take("approx", "rn", "rz", "rm", "rp"), m.flag("ftz")
    m.done()
    d, a = _operands(e, i, 2)
    if kind in HALVES:
        half = kind.removesuffix("x2")
        if i.opcode not in ("ex2", "tanh"):
            raise e.fail("not an instruction of half precision")
        packed = kind.endswith("x2")
        x = _pairs(e, a, kind) if packed else e.array(a, "b16")
        value = f"narrow({half!r}, approximate({i.opcode!r}, widen({half!r}, {x}).astype(f64)))"
        return _write_pairs(e, i, kind, value) if packed else e.write(d, "b16", value, i)
    x = _flushed(e, e.array(a, kind), ftz)
    if mode in (None, "approx") or (mode == "rn" and kind == "f64"):
        value = f"approximate({i.opcode!r}, {x})"
    elif i.opcode == "sqrt" and kind == "f32":
        value = f"sqrt32({x}, {mode!r})"
    elif i.opcode == "rcp" and kind == "f32":
        value = f"divide32(np.ones_like({x}), {x}, {mode!r})"
    else:
        raise e.fail(f"rounding .{mode} is not implemented here")
    _finish_float(e, i, kind, value, ftz, False)


def _copysign(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("f32", "f64")
    m.done()
    d, a, b = _operands(e, i, 3)
    x, y = _first_array(e, (a, b), kind)
    e.write(d, kind, f"np.copysign({y}, {x})", i)


_TESTP = {
    "finite": "np.isfinite({0})",
    "infinite": "np.isinf({0})",
    "number": "~np.isnan({0})",
    "notanumber": "np.isnan({0})",
    "normal": "np.isfinite({0}) & (({0} == 0) | (np.abs({0}) >= np.finfo({0}.dtype).tiny))",
    "subnormal": "({0} != 0) & (np.abs({0}) < np.finfo({0}.dtype).tiny)",
}


def _testp(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind, test = m.type("f32", "f64"), m.take(*_TESTP)
    m.done()
    d, a = _operands(e, i, 2)
    if test is None:
        raise e.fail("unknown test")
    e.write(d, "pred", _TESTP[test].format(e.array(a, kind)), i)


# Comparison and selection


def _comparison(e: Emitter, operator: str, kind: str, a: object, b: object, ftz: bool) -> str:
    if kind in HALVES:
        half = kind.removesuffix("x2")
        x, y = (f"widen({half!r}, {_pairs(e, o, kind) if kind.endswith('x2') else e.array(o, 'b16')})" for o in (a, b))
        return f"compare_float({operator!r}, {x}, {y})"
    x, y = _first_array(e, (a, b), kind)
    if kind in ("f32", "f64"):
        x, y = _flushed(e, x, ftz), _flushed(e, y, ftz)
        if operator in ("eq", "lt", "le", "gt", "ge"):
            return f"{x} {_COMPARE[operator]} {y}"
        return f"compare_float({operator!r}, {x}, {y})"
    sign = _COMPARE.get(operator) or _UNSIGNED_COMPARE.get(operator)
    if sign is None:
        raise e.fail(f"unknown comparison .{operator}")
    return f"{x} {sign} {y}"


_SET_TYPES = ("b16", "b32", "b64", *INTEGERS, "f32", "f64", *HALVES)
_OPERATORS = (*_COMPARE, *_UNSIGNED_COMPARE, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


def _setp(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*_SET_TYPES)
    operator = m.take(*_OPERATORS)
    combine, ftz = m.take("and", "or", "xor"), m.flag("ftz")
    m.done()
    if operator is None:
        raise e.fail("no comparison")
    d, a, b, *rest = i.operands
    if bool(rest) != bool(combine):
        raise e.fail("a third operand goes with .and, .or or .xor")
    value = _comparison(e, operator, kind, a, b, ftz)
    if kind in ("f16x2", "bf16x2"):
        both = e.temporary(value)
        if not isinstance(d, Pair) or combine:
            raise e.fail("expected p|q and no boolean operation")
        e.write(d.first, "pred", f"{both}[..., 0]", i)
        return e.write(d.second, "pred", f"{both}[..., 1]", i)
    sign = {"and": "&", "or": "|", "xor": "^"}.get(combine or "")
    if isinstance(d, Pair):
        value = e.temporary(value)
        other = f"~{value}"
        if sign:
            third = e.read(rest[0], "pred")
            value, other = e.temporary(f"{value} {sign} {third}"), f"({other}) {sign} {third}"
        other = e.temporary(other)
        e.write(d.first, "pred", value, i)
        return e.write(d.second, "pred", other, i)
    if sign:
        value = f"({value}) {sign} {e.read(rest[0], 'pred')}"
    e.write(d, "pred", value, i)


def _set(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*_SET_TYPES)
    result = m.type("u16", "s16", "u32", "s32", "f32", *HALVES)
    operator = m.take(*_OPERATORS)
    combine, ftz = m.take("and", "or", "xor"), m.flag("ftz")
    m.done()
    if operator is None or result in HALVES or kind.endswith("x2"):
        raise e.fail("this form of set is not implemented")
    d, a, b, *rest = i.operands
    value = _comparison(e, operator, kind, a, b, ftz)
    if combine:
        value = f"({value}) {({'and': '&', 'or': '|', 'xor': '^'})[combine]} {e.read(rest[0], 'pred')}"
    if result == "f32":
        return e.write(d, "f32", f"({value}).astype(f32)", i)
    ones = e.constant(-1 if result[0] == "s" else (1 << 8 * WIDTHS[result]) - 1, NUMPY[result])
    e.write(d, result, f"where({value}, {ones}, {e.constant(0, NUMPY[result])})", i)


def _selp(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("b16", "b32", "b64", *INTEGERS, "f32", "f64")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    x, y = e.read(a, kind), e.read(b, kind)
    e.write(d, kind, f"where({e.read(c, 'pred')}, {x}, {y})", i)


def _slct(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    test = m.type("s32", "f32")
    kind = m.type("b16", "b32", "b64", *INTEGERS, "f32", "f64")
    ftz = m.flag("ftz")
    m.done()
    d, a, b, c = _operands(e, i, 4)
    z = _flushed(e, e.array(c, test), ftz)
    e.write(d, kind, f"where({z} >= 0, {e.read(a, kind)}, {e.read(b, kind)})", i)


# Moves and conversions


def _mov(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("pred", "b16", "b32", "b64", "b128", *INTEGERS, "f16", "bf16", "f32", "f64")
    m.done()
    d, a = _operands(e, i, 2)
    if isinstance(a, Symbol) and a.name in e.program.function.offsets:
        return e.write(d, kind, e.read(a, kind), i)
    e.write(d, kind, e.array(a, kind), i)


def _cvta(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "u64")
    to = m.flag("to")
    space = m.take("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry")
    m.done()
    d, a = _operands(e, i, 2)
    if kind == "u32" or space is None:
        raise e.fail("expected a state space and .u64")
    value = e.array(a, kind)
    window = {"shared": 1 << 56, "local": 1 << 57, "param": 1 << 58}.get(space.split("::")[0])
    if window is None:
        return e.write(d, kind, value, i)
    offset = e.constant(window, NUMPY["u64"])
    e.write(d, kind, f"{value} {'-' if to else '+'} {offset}", i)


def _isspacep(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    space = m.take("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry")
    m.done()
    d, a = _operands(e, i, 2)
    if space is None:
        raise e.fail("no state space")
    e.write(d, "pred", f"C.is_space({space!r}, {e.array(a, 'u64')})", i)


_FLOATS = ("f16", "bf16", "f32", "f64", "tf32")
_PACKED = ("f16x2", "bf16x2", "e4m3x2", "e5m2x2", "e2m1x2", "e2m3x2", "e3m2x2", "ue8m0x2")
_BITS = {"f16": "b16", "bf16": "b16", "f32": "b32", "tf32": "b32", "f64": "b64", "f16x2": "b32", "bf16x2": "b32",
         "e2m1x2": "b8"}  # fmt: skip


def _cvt(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    if i.modifiers[0] == "pack":
        return _cvt_pack(e, i)
    all_types = (*INTEGERS, "u8", "s8", *_FLOATS, *_PACKED)
    source = m.type(*all_types)
    result = m.type(*all_types)
    rounding = m.take("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi")
    flags = {name: m.flag(name) for name in ("relu", "satfinite", "sat", "ftz")}
    m.done()
    d, *sources = i.operands
    integer_source, integer_result = (
        source[0] in "us" and source != "ue8m0x2",
        result[0] in "us" and result != "ue8m0x2",
    )
    if integer_source and integer_result:
        if len(sources) != 1:
            raise e.fail("expected one source")
        value = e.array(sources[0], source)
        if flags["sat"]:
            return e.write(d, result, f"clamp_integer({value}, {NUMPY[result].__name__})", i)
        return e.write(d, result, f"{value}.astype({NUMPY[result].__name__})", i)
    if integer_result:
        if rounding not in ("rni", "rzi", "rmi", "rpi"):
            raise e.fail("float to integer needs .rni, .rzi, .rmi or .rpi")
        a = e.array(sources[0], source if source in ("f32", "f64") else "b16")
        if source in ("f16", "bf16"):
            a = f"widen({source!r}, {a})"
        if flags["ftz"]:
            a = f"flush({a})"
        return e.write(d, result, f"float_to_integer({a}, {NUMPY[result].__name__}, {rounding!r})", i)
    if integer_source:
        return _integer_to_float(e, i, result, source, rounding, flags)
    if result == source and rounding is None and not any(flags.values()):
        return e.write(d, _BITS[result], e.array(sources[0], _BITS[source]), i)
    plain = not any(flags.values())
    if plain and (result, source) == ("f32", "bf16"):
        return e.write(d, "f32", f"convert_f32_bf16({e.array(sources[0], 'b16')})", i)
    if plain and (result, source) == ("f32", "f16"):
        return e.write(d, "f32", f"canonical(widen('f16', {e.array(sources[0], 'b16')}))", i)
    if plain and (result, source) == ("f64", "f32"):
        return e.write(d, "f64", f"{e.array(sources[0], 'f32')}.astype(f64)", i)
    if plain and (result, source, rounding) == ("f32", "f64", "rn"):
        return e.write(d, "f32", f"{e.array(sources[0], 'f64')}.astype(f32)", i)
    if plain and rounding == "rn" and source == "f32" and result in ("f16", "bf16"):
        return e.write(d, "b16", f"narrow({result!r}, {e.array(sources[0], 'f32')})", i)
    if plain and rounding == "rn" and source == "f32" and result in ("f16x2", "bf16x2") and len(sources) == 2:
        high, low = e.array(sources[0], "f32"), e.array(sources[1], "f32")
        return e.write(d, "b32", f"pack_f32({result[:-2]!r}, {high}, {low})", i)
    values = ", ".join(e.array(o, _BITS.get(source, "b16")) for o in sources)
    value = f"convert({result!r}, {source!r}, ({values},), {rounding!r}, {flags!r})"
    e.write(d, _BITS.get(result, "b16"), value, i)


def _integer_to_float(e: Emitter, i: Instruction, result: str, source: str, rounding: str | None, flags: dict) -> None:
    if rounding not in ("rn", "rz", "rm", "rp"):
        raise e.fail("integer to float needs .rn, .rz, .rm or .rp")
    if flags["relu"] or flags["satfinite"] or result == "tf32":
        raise e.fail("unknown conversion")
    d, a = _operands(e, i, 2)
    value = e.array(a, source)
    if result == "f32":
        value = f"integer_to_f32({value}, {rounding!r})"
        return e.write(d, "f32", f"saturate({value})" if flags["sat"] else value, i)
    if rounding != "rn" or flags["sat"]:
        raise e.fail("only .rn is implemented for this conversion")
    if result == "f64":
        return e.write(d, "f64", f"{value}.astype(f64)", i)
    if source.endswith("64"):
        raise e.fail("64-bit integers to 16-bit floats are not implemented")
    e.write(d, "b16", f"narrow({result!r}, {value}.astype(f64))", i)


def _cvt_pack(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.flag("pack")
    if i.modifiers[-1] == "b32":
        raise e.fail("cvt.pack to 8 bits and less is not implemented")
    m.type("s32")
    kind = m.type("u16", "s16")
    if not m.flag("sat"):
        raise e.fail("cvt.pack needs .sat")
    m.done()
    d, a, b = _operands(e, i, 3)
    high, low = (f"clamp_integer({e.array(o, 's32')}, {NUMPY[kind].__name__}).view(u16).astype(u32)" for o in (a, b))
    e.write(d, "b32", f"{high} << u32(16) | {low}", i)


def _mapa(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "u64")
    space = m.take("shared::cluster")
    m.done()
    d, a, b = _operands(e, i, 3)
    rank = e.array(b, "u32")
    if space:
        address = e.array(a, kind)
    else:
        address = e.temporary(f"{e.array(a, 'u64')} - {e.constant(1 << 56, NUMPY['u64'])}")
    value = f"C.map_rank({address}, {rank})"
    if not space:
        value = f"{value} + {e.constant(1 << 56, NUMPY['u64'])}"
    e.write(d, kind, value, i)


def _getctarank(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "u64")
    space = m.take("shared::cluster")
    m.done()
    d, a = _operands(e, i, 2)
    value = e.array(a, kind)
    shared = value if space else f"({value} - {e.constant(1 << 56, NUMPY['u64'])})"
    e.write(d, "u32", f"({shared} >> {e.constant(24, NUMPY[kind])}).astype(u32)", i)


def _not(e: Emitter, i: Instruction) -> None:
    _unary_integer("~{0}", "pred", "b16", "b32", "b64")(e, i)


EMITTERS: dict[str, Callable[[Emitter, Instruction], None]] = {
    "add": _add, "sub": _add, "addc": _add_carry, "subc": _add_carry, "mul": _mul, "mad": _mad, "madc": _mad,
    "mul24": _mul24, "mad24": _mul24, "sad": _sad, "div": _divide, "rem": _divide, "abs": _negate, "neg": _negate,
    "min": _minmax, "max": _minmax, "bfind": _bfind, "bfe": _bfe, "bfi": _bfi, "szext": _szext, "bmsk": _bmsk,
    "popc": _unary_integer("population({0})", "b32", "b64", result="u32"),
    "clz": _unary_integer("leading_zeros({0})", "b32", "b64", result="u32"),
    "brev": _unary_integer("reverse_bits({0})", "b32", "b64"),
    "dp4a": _dp4a, "and": _logic("&"), "or": _logic("|"), "xor": _logic("^"), "not": _not, "cnot": _cnot,
    "lop3": _lop3, "shl": _shift, "shr": _shift, "shf": _funnel, "prmt": _prmt, "fma": _fma, "copysign": _copysign,
    "testp": _testp, "setp": _setp, "set": _set, "selp": _selp, "slct": _slct, "mov": _mov, "cvt": _cvt, "cvta": _cvta,
    "isspacep": _isspacep, "mapa": _mapa, "getctarank": _getctarank,
    **dict.fromkeys(("rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh"), _approximate),
}  # fmt: skip
