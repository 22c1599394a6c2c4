"""Emitters of barriers and mbarriers (PTX ISA 9.7.13.1 to 9.7.13.3 and 9.7.13.15)."""

from __future__ import annotations

from ..text.instructions import Address, Instruction, Negated, Reg
from .emitter import Emitter, Modifiers, shared_address

_CTA = {"sync": "on_bar_sync", "arrive": "on_bar_arrive"}
_CLUSTER = {"arrive": "on_cluster_arrive", "wait": "on_cluster_wait"}


def barrier(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    mask = e.mask(i)
    if m.rest[:1] == ["warp"]:
        return e.line(f"C.warp_sync({mask})")  # the lanes are together when the block starts
    if m.flag("cluster"):
        method = _CLUSTER.get(m.take(*_CLUSTER))
        m.take("release", "relaxed", "acquire")
        m.flag("aligned")
        m.done()
        if method is None:
            raise e.fail("unknown barrier")
        return e.leave(f"(C.{method}, {mask})")
    m.flag("cta")
    action = m.take("sync", "arrive", "red")
    aligned = m.flag("aligned") or i.opcode == "bar"
    operands = list(i.operands)
    if action == "red":
        operation = m.take("popc", "and", "or")
        kind = m.type("u32", "pred")
        m.done()
        d, number, *count, source = operands
        if not isinstance(d, Reg):
            raise e.fail("expected a register as the result")
        threads = e.array(count[0], "u32") if count else "None"
        value = e.array(source, "pred")
        if isinstance(source, Negated):
            value = e.read(source, "pred")
        number = e.array(number, "u32")
        return e.leave(
            f"(C.on_bar_reduce, {mask}, {number}, {threads}, {operation!r}, {value}, {d.index}, {kind!r})"
        )
    m.done()
    if action is None or not operands:
        raise e.fail("unknown barrier")
    number, *count = operands
    threads = e.array(count[0], "u32") if count else "None"
    e.leave(f"(C.{_CTA[action]}, {mask}, {e.array(number, 'u32')}, {threads}, {aligned})")
    return None


def mbarrier(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    action = m.rest.pop(0)
    m.type("b64")
    if action == "pending_count":
        m.done()
        d, a = i.operands
        return e.write(d, "u32", f"({e.array(a, 'b64')} & u64(0xFFFFF)).astype(u32)", i)
    for name in ("release", "relaxed", "acquire"):
        m.flag(name)
    parity = m.flag("parity")
    scope = [n for n in m.rest if n in ("cta", "cluster")]
    m.rest = [n for n in m.rest if n not in scope]
    space = m.take("shared", "shared::cta", "shared::cluster")
    expect = m.flag("expect_tx")
    no_complete = m.flag("noComplete")
    m.done()
    operands = list(i.operands)
    state = None if isinstance(operands[0], Address) else operands.pop(0)
    address = shared_address(e, operands.pop(0), "shared" if space else "generic")
    mask = e.mask(i)
    match action:
        case "init":
            e.line(f"C.mbarrier_init({address}, {e.array(operands[0], 'u32')}, {mask})")
        case "inval":
            e.line(f"C.mbarrier_inval({address}, {mask})")
        case "expect_tx" | "complete_tx":
            e.line(f"C.mbarrier_bytes({action!r}, {address}, {e.array(operands[0], 'u32')}, {mask})")
        case "arrive" | "arrive_drop":
            count = e.array(operands[0], "u32") if operands else "None"
            drop = action == "arrive_drop"
            value = f"C.mbarrier_arrive({address}, {count}, {expect}, {drop}, {no_complete}, {mask})"
            if isinstance(state, Reg):
                e.write(state, "b64", value, i)
            else:
                e.line(value)
        case "test_wait" | "try_wait":
            wanted = e.array(operands[0], "u32" if parity else "b64")
            if action == "test_wait":
                e.write(state, "pred", f"C.mbarrier_test({address}, {wanted}, {parity}, {mask})", i)
                return e.leave(f"(C.on_pause, {mask})")
            e.write(state, "pred", f"C.mbarrier_try({address}, {wanted}, {parity}, {mask})", i)
            result = state.index if isinstance(state, Reg) else None
            return e.leave(f"(C.on_mbarrier_wait, {mask}, {address}, {wanted}, {parity}, {result})")
        case _:
            raise e.fail("unknown mbarrier instruction")
    return None
