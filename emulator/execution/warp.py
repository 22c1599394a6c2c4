"""Emitters of communication between the lanes of a warp (PTX ISA 9.7.9.6 and 9.7.13.9 to 9.7.13.14)."""

from __future__ import annotations

from ..text.instructions import Instruction, Pair
from .emitter import Emitter, Modifiers


def _write_pair(e: Emitter, d: object, value: str, i: Instruction) -> None:
    """Writes a value, and where d|p is given also the predicate that comes with it."""
    if isinstance(d, Pair):
        e.write(d.second, "pred", f"{value}[1]", i)
        d = d.first
    e.write(d, "b32", f"{value}[0]", i)


def shfl(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.type("b32")
    m.flag("sync")
    mode = m.take("idx", "up", "down", "bfly")
    m.done()
    d, a, b, c, members = i.operands
    value = e.temporary(
        f"C.shuffle({mode!r}, {e.array(a, 'b32')}, {e.array(b, 'u32')}, {e.array(c, 'u32')}, "
        f"{e.array(members, 'b32')}, {e.mask(i)})"
    )
    _write_pair(e, d, value, i)


def vote(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("pred", "b32")
    m.flag("sync")
    mode = m.take("all", "any", "uni", "ballot")
    m.done()
    d, a, members = i.operands
    value = f"C.vote({mode!r}, {e.array(a, 'pred')}, {e.array(members, 'b32')}, {e.mask(i)})"
    e.write(d, kind, value, i)


def match_(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("b32", "b64")
    mode = m.take("any", "all")
    m.flag("sync")
    m.done()
    d, a, members = i.operands
    value = e.temporary(f"C.match({mode!r}, {e.array(a, kind)}, {e.array(members, 'b32')}, {e.mask(i)})")
    _write_pair(e, d, value, i)


def redux(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "s32", "b32", "f32")
    operation = m.take("add", "min", "max", "and", "or", "xor")
    m.flag("sync")
    absolute, nan = m.flag("abs"), m.flag("NaN")
    m.done()
    d, a, members = i.operands
    value = f"C.reduce({operation!r}, {e.array(a, kind)}, {e.array(members, 'b32')}, {e.mask(i)}, {absolute}, {nan})"
    e.write(d, kind, value, i)


def elect(e: Emitter, i: Instruction) -> None:
    d, members = i.operands
    if not isinstance(d, Pair):
        raise e.fail("expected d|p")
    value = e.temporary(f"C.elect({e.array(members, 'b32')}, {e.mask(i)})")
    e.write(d.second, "pred", f"{value}[1]", i)
    e.write(d.first, "b32", f"{value}[0]", i)


def activemask(e: Emitter, i: Instruction) -> None:
    e.write(i.operands[0], "b32", f"C.active_mask({e.mask(i)})", i)
