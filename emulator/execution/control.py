"""Emitters of control flow, warp-level communication, barriers, and the asynchronous tensor cores (PTX ISA 9.7.12 to
9.7.16).
"""

from __future__ import annotations

from collections.abc import Callable

from emulator.execution.memory import list_of, require_whole_warps, shared_address
from emulator.execution.program import Emitter, Modifiers
from emulator.text.instructions import Address, Imm, Instruction, Negated, Pair, Reg, Vector

# Control flow


def _bra(e: Emitter, i: Instruction) -> None:
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


def _brx(e: Emitter, i: Instruction) -> None:
    index = e.array(i.operands[0], "u32")
    e.leave(f"('switch', {e.mask(i)}, {index})")


def _exit(e: Emitter, i: Instruction) -> None:
    e.leave(f"('exit', {e.mask(i)})")


def _trap(e: Emitter, i: Instruction) -> None:
    e.leave(f"(C.on_trap, {e.mask(i)}, {i.text!r})")


def _nanosleep(e: Emitter, i: Instruction) -> None:
    e.leave(f"(C.on_pause, {e.mask(i)})")


def _grid_dependence(e: Emitter, i: Instruction) -> None:
    if i.modifiers[0] not in ("wait", "launch_dependents"):
        raise e.fail("unknown griddepcontrol")
    e.line(f"C.grid_{i.modifiers[0]}({e.mask(i)})")


def _setmaxnreg(e: Emitter, i: Instruction) -> None:
    """Registers are unlimited."""
    count = i.operands[0].value
    if i.modifiers[0] not in ("inc", "dec") or count % 8 or not 24 <= count <= 256:
        raise e.fail(f"setmaxnreg of {count}: expected a multiple of 8 from 24 to 256")
    require_whole_warps(e, i)


# Warp-level communication


def _shfl(e: Emitter, i: Instruction) -> None:
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
    if isinstance(d, Pair):
        e.write(d.second, "pred", f"{value}[1]", i)
        d = d.first
    e.write(d, "b32", f"{value}[0]", i)


def _vote(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("pred", "b32")
    m.flag("sync")
    mode = m.take("all", "any", "uni", "ballot")
    m.done()
    d, a, members = i.operands
    value = f"C.vote({mode!r}, {e.array(a, 'pred')}, {e.array(members, 'b32')}, {e.mask(i)})"
    e.write(d, kind, value, i)


def _match(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("b32", "b64")
    mode = m.take("any", "all")
    m.flag("sync")
    m.done()
    d, a, members = i.operands
    value = e.temporary(f"C.match({mode!r}, {e.array(a, kind)}, {e.array(members, 'b32')}, {e.mask(i)})")
    if isinstance(d, Pair):
        e.write(d.second, "pred", f"{value}[1]", i)
        d = d.first
    e.write(d, "b32", f"{value}[0]", i)


def _redux(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "s32", "b32", "f32")
    operation = m.take("add", "min", "max", "and", "or", "xor")
    m.flag("sync")
    absolute, nan = m.flag("abs"), m.flag("NaN")
    m.done()
    d, a, members = i.operands
    value = f"C.reduce({operation!r}, {e.array(a, kind)}, {e.array(members, 'b32')}, {e.mask(i)}, {absolute}, {nan})"
    e.write(d, kind, value, i)


def _elect(e: Emitter, i: Instruction) -> None:
    d, members = i.operands
    if not isinstance(d, Pair):
        raise e.fail("expected d|p")
    value = e.temporary(f"C.elect({e.array(members, 'b32')}, {e.mask(i)})")
    e.write(d.second, "pred", f"{value}[1]", i)
    e.write(d.first, "b32", f"{value}[0]", i)


def _activemask(e: Emitter, i: Instruction) -> None:
    e.write(i.operands[0], "b32", f"C.active_mask({e.mask(i)})", i)


# Barriers


def _bar(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    mask = e.mask(i)
    if m.rest[:1] == ["warp"]:
        return e.line(f"C.warp_sync({mask})")  # the lanes are together when the block starts
    if m.flag("cluster"):
        action = m.take("arrive", "wait")
        m.take("release", "relaxed", "acquire")
        m.flag("aligned")
        m.done()
        return e.leave(f"(C.on_cluster_{action}, {mask})")
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
    e.leave(f"(C.on_bar_{action}, {mask}, {e.array(number, 'u32')}, {threads}, {aligned})")
    return None


def _mbarrier(e: Emitter, i: Instruction) -> None:
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


def _cluster_launch_control(e: Emitter, i: Instruction) -> None:
    m = i.modifiers
    if m[0] == "try_cancel":
        a, b = i.operands
        shared = any(n.startswith("shared") for n in m)
        where = ", ".join(shared_address(e, o, "shared" if shared else "generic") for o in (a, b))
        return e.line(f"C.try_cancel({where}, {any('multicast' in n for n in m)}, {e.mask(i)})")
    if m[0] != "query_cancel":
        raise e.fail("unknown clusterlaunchcontrol")
    d, a = i.operands
    handle = e.read(a, "b128")
    if m[1] == "is_canceled":
        return e.write(d, "pred", f"({handle}[..., 0] & u64(1)) != u64(0)", i)
    form = m[1].removeprefix("get_first_ctaid")
    axes = {"": "xyz", "::x": "x", "::y": "y", "::z": "z"}[form]
    items = d.items if isinstance(d, Vector) else (d,)
    words = {"x": "({0}[..., 0] >> u64(32))", "y": "({0}[..., 1] & u64(0xFFFFFFFF))", "z": "({0}[..., 1] >> u64(32))"}
    for item, axis in zip(items, axes, strict=False):
        e.write(item, "b32", f"{words[axis].format(handle)}.astype(u32)", i)
    return None


# Hopper and Blackwell tensor cores


def _set_in_flight(e: Emitter, registers: tuple[Reg, ...], mask: str) -> None:
    """Poisons results of asynchronous instructions: whoever reads them before the wait gets this."""
    for r in registers:
        e.line(f"v{r.index} = C.in_flight({r.index}, {e.register(r)}, {mask})")
        e.written.add(r.index)
        for key in [key for key in e.cached if key[0] == r.index]:
            del e.cached[key]


def _wgmma(e: Emitter, i: Instruction) -> None:
    mask = e.mask(i)
    match i.modifiers[0]:
        case "fence":
            e.line(f"C.wgmma_fence({mask})")
        case "commit_group":
            e.line(f"C.wgmma_commit({mask})")
        case "wait_group":
            e.leave(f"(C.on_wgmma_wait, {mask}, {i.operands[0].value})")
        case "mma_async":
            d, a, b, scale_d, *immediates = i.operands
            if not isinstance(d, Vector) or not all(isinstance(r, Reg) for r in d.items):
                raise e.fail("expected a vector of registers as the accumulator")
            if not all(isinstance(o, Imm) for o in immediates):
                raise e.fail("imm-scale and imm-trans must be constants")
            numbers = [r.index for r in d.items]
            values = "[" + ", ".join(f"({e.read(r, 'b' + r.type[1:])})" for r in d.items) + "]"
            left = list_of(e, a) if isinstance(a, Vector) else e.array(a, "b64")
            e.line(
                f"C.wgmma({i.modifiers!r}, {numbers}, {values}, {left}, {e.array(b, 'b64')}, "
                f"{e.read(scale_d, 'pred')}, {tuple(o.value for o in immediates)}, {mask}, {i.line})"
            )
            _set_in_flight(e, d.items, mask)
        case _:
            raise e.fail("unknown wgmma instruction")


def _tcgen05(e: Emitter, i: Instruction) -> None:
    m = i.modifiers
    mask = e.mask(i)
    action = m[0]
    match action:
        case "alloc":
            a, count = i.operands
            shared = any(n.startswith("shared") for n in m)
            address = shared_address(e, a, "shared" if shared else "generic")
            e.leave(f"(C.on_tmem_alloc, {mask}, {m!r}, {address}, {e.array(count, 'u32')})")
        case "dealloc":
            a, count = i.operands
            e.line(f"C.tmem_dealloc({m!r}, {e.array(a, 'b32')}, {e.array(count, 'u32')}, {mask})")
        case "relinquish_alloc_permit":
            e.line(f"C.tmem_relinquish({mask})")
        case "fence::before_thread_sync" | "fence::after_thread_sync":
            e.line(f"C.tmem_fence({action!r}, {mask})")
        case "wait::ld":
            e.line(f"C.tmem_wait({mask})")
        case "wait::st":
            require_whole_warps(e, i)  # stores are complete when they are issued
        case "ld":
            d, a, *offset = i.operands
            registers = d.items if isinstance(d, Vector) else (d,)
            if not all(isinstance(r, Reg) for r in registers):
                raise e.fail("expected registers as the results")
            extra = e.array(offset[0], "u64") if offset else "None"
            value = e.temporary(f"C.tmem_load({m!r}, {len(registers)}, {e.address(a, 'u32')}, {mask}, {extra})")
            for position, register in enumerate(registers):
                e.write(register, "b32", f"{value}[{position}]", i)
        case "st":
            a, *offset, s = i.operands
            extra = e.array(offset[0], "u64") if offset else "None"
            e.line(f"C.tmem_store({m!r}, {e.address(a, 'u32')}, {list_of(e, s)}, {mask}, {extra})")
        case "cp":
            a, s = i.operands
            e.line(f"C.tmem_copy({m!r}, {e.address(a, 'u32')}, {e.array(s, 'u64')}, {mask})")
        case "shift":
            e.line(f"C.tmem_shift({m!r}, {e.address(i.operands[0], 'u32')}, {mask})")
        case "commit":
            a, *targets = i.operands
            # Without a state space the ISA wants a generic address; hardware takes the low 32 bits of it, and Triton
            # passes a shared address there.
            shared = any(n.startswith("shared") for n in m)
            address = e.address(a, "u32") if shared else e.temporary(f"{e.address(a, 'u64')}.astype(u32)")
            masks = e.array(targets[0], "u16") if targets else "None"
            e.line(f"C.tmem_commit({m!r}, {address}, {masks}, {mask})")
        case "mma":
            operands = []
            for o in i.operands:
                if isinstance(o, Address):
                    operands.append(f"({e.address(o, 'u32')},)")  # a tuple marks tensor memory
                elif isinstance(o, Vector):
                    operands.append(list_of(e, o))
                elif isinstance(o, Imm):
                    operands.append(str(o.value))
                else:
                    kind = "pred" if isinstance(o, Negated) else f"b{o.type[1:]}" if o.type != "pred" else "pred"
                    operands.append(e.read(o, kind))
            e.line(f"C.tmem_mma({m!r}, ({', '.join(operands)},), {mask})")
        case _:
            raise e.fail("unknown tcgen05 instruction")


def _unsupported_call(e: Emitter, i: Instruction) -> None:
    e.leave(f"(C.on_call, {e.mask(i)}, {i.text!r})")


EMITTERS: dict[str, Callable[[Emitter, Instruction], None]] = {
    "bra": _bra, "brx": _brx, "ret": _exit, "exit": _exit, "trap": _trap, "brkpt": _trap, "nanosleep": _nanosleep,
    "call": _unsupported_call, "griddepcontrol": _grid_dependence, "setmaxnreg": _setmaxnreg, "shfl": _shfl,
    "vote": _vote, "match": _match, "redux": _redux, "elect": _elect, "activemask": _activemask, "bar": _bar,
    "barrier": _bar, "mbarrier": _mbarrier, "clusterlaunchcontrol": _cluster_launch_control, "wgmma": _wgmma,
    "tcgen05": _tcgen05,
}  # fmt: skip
