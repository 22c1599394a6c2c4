"""Emitters of control flow (PTX ISA 9.7.12), and of what grids and warps tell the device."""

from __future__ import annotations

from ..machine.code import EXIT, SWITCH
from ..text.instructions import Instruction
from .emitter import Emitter, require_whole_warps


def bra(e: Emitter, i: Instruction) -> None:
    for modifier in i.modifiers:
        if modifier != "uni":
            raise e.fail(f"unknown modifier .{modifier}")
    if i.guard is None:
        return e.leave(str(e.block.taken))
    register, negated = i.guard
    taken = e.register(register)
    if negated:
        taken = e.temporary(f"~{taken}")
    e.leave(e.temporary(f"{taken} & m") if e.is_masked else taken)


def brx(e: Emitter, i: Instruction) -> None:
    index = e.array(i.operands[0], "u32")
    e.leave(f"({SWITCH!r}, {e.mask(i)}, {index})")


def leave(e: Emitter, i: Instruction) -> None:
    e.leave(f"({EXIT!r}, {e.mask(i)})")


def trap(e: Emitter, i: Instruction) -> None:
    e.leave(f"(C.on_trap, {e.mask(i)}, {i.text!r})")


def nanosleep(e: Emitter, i: Instruction) -> None:
    e.leave(f"(C.on_pause, {e.mask(i)})")


def grid_dependence(e: Emitter, i: Instruction) -> None:
    method = {"wait": "grid_wait", "launch_dependents": "grid_launch_dependents"}.get(i.modifiers[0])
    if method is None:
        raise e.fail("unknown griddepcontrol")
    e.line(f"C.{method}({e.mask(i)})")


def setmaxnreg(e: Emitter, i: Instruction) -> None:
    """Registers are unlimited."""
    count = i.operands[0].value
    if i.modifiers[0] not in ("inc", "dec") or count % 8 or not 24 <= count <= 256:
        raise e.fail(f"setmaxnreg of {count}: expected a multiple of 8 from 24 to 256")
    require_whole_warps(e, i)


def call(e: Emitter, i: Instruction) -> None:
    e.leave(f"(C.on_call, {e.mask(i)}, {i.text!r})")
