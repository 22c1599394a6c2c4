"""Emitters of integer arithmetic, logic and shifts that have forms of their own (PTX ISA 9.7.1, 9.7.2, 9.7.8)."""

from __future__ import annotations

from ..text.instructions import WIDTHS, Imm, Instruction, Pair
from .emitter import INTEGERS, NUMPY, Emitter, Modifiers, arrays, operands


def _wide(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


def add(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS, "s16x2", "u16x2")
    d, a, b = operands(e, i, 3)
    sign = {"add": "+", "sub": "-"}[i.opcode]
    if kind.endswith("x2"):
        m.done()
        return _paired(e, i, kind, f"{{}} {sign} {{}}")
    saturated, carries = m.flag("sat"), m.flag("cc")
    m.done()
    if saturated:
        if kind != "s32":
            raise e.fail(".sat needs .s32")
        x, y = arrays(e, (a, b), ("s32", "s32"))
        name = "add_saturated" if sign == "+" else "subtract_saturated"
        return e.write(d, kind, f"{name}({x}, {y})", i)
    base = "u" + kind[1:]
    x, y = arrays(e, (a, b), (base, base))
    value = f"{x} {sign} {y}"
    if carries:
        value = e.temporary(value)
        e.line(f"cc = ({value} < {x})" if sign == "+" else f"cc = ({x} < {y})")
        e.has_carry = True
    e.write(d, base, value, i)


def _paired(e: Emitter, i: Instruction, kind: str, form: str) -> None:
    half = kind[:-2]
    view = NUMPY[half].__name__
    parts = [e.temporary(f"halves({e.array(o, 'b32')}, {view})") for o in i.operands[1:]]
    e.write(i.operands[0], "b32", f"from_halves({form.format(*parts)})", i)


def add_carry(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "s32", "u64", "s64")
    carries = m.flag("cc")
    m.done()
    d, a, b = operands(e, i, 3)
    if not e.has_carry:
        raise e.fail("the carry that this needs was set in another basic block")
    base = "u" + kind[1:]
    x, y = arrays(e, (a, b), (base, base))
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


def multiply(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS)
    part = m.take("lo", "hi", "wide")
    m.done()
    d, a, b = operands(e, i, 3)
    if part is None or (part == "wide" and kind.endswith("64")):
        raise e.fail("mul needs .lo or .hi, or .wide on 16 or 32 bits")
    base = "u" + kind[1:] if part == "lo" else kind
    x, y = arrays(e, (a, b), (base, base))
    value, result = _product(e, part, base, x, y)
    e.write(d, result, value, i)


def multiply_add(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS)
    part = m.take("lo", "hi", "wide")
    carries, saturated = m.flag("cc"), m.flag("sat")
    m.done()
    d, a, b, c = operands(e, i, 4)
    if part is None:
        raise e.fail("mad needs .lo, .hi or .wide")
    base = "u" + kind[1:] if part == "lo" else kind
    x, y = arrays(e, (a, b), (base, base))
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


def multiply24(e: Emitter, i: Instruction) -> None:
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


def divide(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS)
    m.done()
    d, a, b = operands(e, i, 3)
    x, y = e.array(a, kind), e.array(b, kind)
    name = "truncated_divide" if i.opcode == "div" else "truncated_remainder"
    e.write(d, kind, f"{name}({x}, {y})", i)


def minmax(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*INTEGERS, "s16x2", "u16x2")
    relu = m.flag("relu")
    m.done()
    form = ("minimum" if i.opcode == "min" else "maximum") + "({}, {})"
    if relu:
        form = f"maximum({form}, 0)"
    if kind.endswith("x2"):
        return _paired(e, i, kind, form)
    d, a, b = operands(e, i, 3)
    e.write(d, kind, form.format(*arrays(e, (a, b), (kind, kind))), i)


def bfind(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind, amount = m.type("u32", "s32", "u64", "s64"), m.flag("shiftamt")
    m.done()
    d, a = operands(e, i, 2)
    e.write(d, "u32", f"find_leading({e.array(a, kind)}, {amount})", i)


def szext(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind, mode = m.type("u32", "s32"), m.take("clamp", "wrap")
    m.done()
    d, a, b = operands(e, i, 3)
    e.write(d, kind, f"extend_field({e.array(a, kind)}, {e.array(b, 'u32')}, {mode == 'wrap'})", i)


def bmsk(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.type("b32")
    mode = m.take("clamp", "wrap")
    m.done()
    d, a, b = operands(e, i, 3)
    e.write(d, "b32", f"bit_mask({e.array(a, 'u32')}, {e.array(b, 'u32')}, {mode == 'wrap'})", i)


def dp4a(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    right, left = m.type("u32", "s32"), m.type("u32", "s32")
    m.done()
    d, a, b, c = operands(e, i, 4)
    kind = "u32" if left == right == "u32" else "s32"
    sources = f"{e.array(a, 'b32')}, {e.array(b, 'b32')}, {e.array(c, kind)}"
    e.write(d, "b32", f"dot_bytes({sources}, {left == 's32'}, {right == 's32'})", i)


# Logic and shifts


def lop3(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.type("b32")
    combine = m.take("or", "and")
    m.done()
    if combine:
        d, a, b, c, table, q = operands(e, i, 6)
    else:
        d, a, b, c, table = operands(e, i, 5)
    value = e.temporary(f"lookup3({e.array(a, 'b32')}, {e.read(b, 'b32')}, {e.read(c, 'b32')}, {table.value & 0xFF})")
    if combine:
        if not isinstance(d, Pair):
            raise e.fail("expected d|p")
        e.write(d.second, "pred", f"({value} != 0) {'|' if combine == 'or' else '&'} {e.read(q, 'pred')}", i)
        d = d.first
    e.write(d, "b32", value, i)


def shift(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    left = i.opcode == "shl"
    kind = m.type(*(("b16", "b32", "b64") if left else (*INTEGERS, "b16", "b32", "b64")))
    m.done()
    d, a, b = operands(e, i, 3)
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


def funnel(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.type("b32")
    side, mode = m.take("l", "r"), m.take("clamp", "wrap")
    m.done()
    d, a, b, c = operands(e, i, 4)
    x, y = e.array(a, "b32"), e.array(b, "b32")
    amount = e.array(c, "u32")
    limited = f"minimum({amount}, u32(32))" if mode == "clamp" else f"({amount} & u32(31))"
    e.write(d, "b32", f"{'funnel_left' if side == 'l' else 'funnel_right'}({x}, {y}, {limited})", i)


def prmt(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    mode = m.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    m.type("b32")
    m.done()
    d, a, b, c = operands(e, i, 4)
    sources = f"{e.array(a, 'b32')}, {e.read(b, 'b32')}, {e.array(c, 'b32')}"
    e.write(d, "b32", f"permute_mode({sources}, {mode!r})" if mode else f"permute({sources})", i)
