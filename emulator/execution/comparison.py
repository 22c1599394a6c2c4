"""Emitters of comparison and selection (PTX ISA 9.7.6 and 9.7.7)."""

from __future__ import annotations

from ..text.instructions import WIDTHS, Instruction, Pair
from .emitter import HALVES, INTEGERS, NUMPY, Emitter, Modifiers, arrays, flushed, operands, pairs

_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED_COMPARE = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
_SET_TYPES = ("b16", "b32", "b64", *INTEGERS, "f32", "f64", *HALVES)
_OPERATORS = (*_COMPARE, *_UNSIGNED_COMPARE, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
_COMBINE = {"and": "&", "or": "|", "xor": "^"}


def _comparison(e: Emitter, operator: str, kind: str, a: object, b: object, ftz: bool) -> str:
    if kind in HALVES:
        half = kind.removesuffix("x2")
        x, y = (f"widen({half!r}, {pairs(e, o, kind) if kind.endswith('x2') else e.array(o, 'b16')})" for o in (a, b))
        return f"compare_float({operator!r}, {x}, {y})"
    x, y = arrays(e, (a, b), (kind, kind))
    if kind in ("f32", "f64"):
        x, y = flushed(e, x, ftz), flushed(e, y, ftz)
        if operator in ("eq", "lt", "le", "gt", "ge"):
            return f"{x} {_COMPARE[operator]} {y}"
        return f"compare_float({operator!r}, {x}, {y})"
    sign = _COMPARE.get(operator) or _UNSIGNED_COMPARE.get(operator)
    if sign is None:
        raise e.fail(f"unknown comparison .{operator}")
    return f"{x} {sign} {y}"


def setp(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*_SET_TYPES)
    operator = m.take(*_OPERATORS)
    combine, ftz = m.take(*_COMBINE), m.flag("ftz")
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
    sign = _COMBINE.get(combine or "")
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


def set_(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*_SET_TYPES)
    result = m.type("u16", "s16", "u32", "s32", "f32", *HALVES)
    operator = m.take(*_OPERATORS)
    combine, ftz = m.take(*_COMBINE), m.flag("ftz")
    m.done()
    if operator is None or result in HALVES or kind.endswith("x2"):
        raise e.fail("this form of set is not implemented")
    d, a, b, *rest = i.operands
    value = _comparison(e, operator, kind, a, b, ftz)
    if combine:
        value = f"({value}) {_COMBINE[combine]} {e.read(rest[0], 'pred')}"
    if result == "f32":
        return e.write(d, "f32", f"({value}).astype(f32)", i)
    ones = e.constant(-1 if result[0] == "s" else (1 << 8 * WIDTHS[result]) - 1, NUMPY[result])
    e.write(d, result, f"where({value}, {ones}, {e.constant(0, NUMPY[result])})", i)


def slct(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    test = m.type("s32", "f32")
    kind = m.type("b16", "b32", "b64", *INTEGERS, "f32", "f64")
    ftz = m.flag("ftz")
    m.done()
    d, a, b, c = operands(e, i, 4)
    z = flushed(e, e.array(c, test), ftz)
    e.write(d, kind, f"where({z} >= 0, {e.read(a, kind)}, {e.read(b, kind)})", i)
