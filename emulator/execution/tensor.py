"""Emitters of mma, ldmatrix, stmatrix, wgmma and tcgen05 (PTX ISA 9.7.14 to 9.7.16)."""

from __future__ import annotations

from ..text.instructions import Address, Imm, Instruction, Negated, Reg, Vector
from ..units import mma
from .emitter import Emitter, EmitterFunction, list_of, require_whole_warps, shared_address


def _shared(e: Emitter, i: Instruction, address: Address) -> str:
    """A shared address; a generic one where the instruction names no state space."""
    return shared_address(e, address, "shared" if any(n.startswith("shared") for n in i.modifiers) else "generic")


def _write_list(e: Emitter, operand: object, value: str, i: Instruction, kind: str = "b32") -> None:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    for position, item in enumerate(items):
        e.write(item, kind, f"{value}[{position}]", i)


def mma_sync(e: Emitter, i: Instruction) -> None:
    require_whole_warps(e, i)
    modifiers = tuple(i.modifiers)
    mma.plan(modifiers)
    if e.reads:
        e.line(f"C.end_reads({e.mask(i)})")
        e.reads = False
    d, a, b, c, *scales = i.operands
    arguments = f"{modifiers!r}, {list_of(e, a)}, {list_of(e, b)}, {list_of(e, c)}"
    if not scales:
        value = e.temporary(f"mma.execute({arguments}, cut=C.device.cuts_sums)")
        return _write_list(e, d, value, i)
    scale_a, ids_a, scale_b, ids_b = scales
    selectors = [*ids_a.items, *ids_b.items]
    data = e.array(scale_a, "b32"), e.array(scale_b, "b32")
    if all(isinstance(item, Imm) for item in selectors):
        byte_a, thread_a, byte_b, thread_b = (item.value for item in selectors)
        value = e.temporary(
            f"mma.execute({arguments}, {data[0]}, {byte_a}, {thread_a}, {data[1]}, {byte_b}, {thread_b})"
        )
    else:
        chosen = ", ".join(e.array(item, "u16") for item in selectors)
        value = e.temporary(
            f"mma.execute_selected({arguments}, {data[0]}, {data[1]}, [{chosen}], C.active({e.mask(i)}))"
        )
    _write_list(e, d, value, i)


def ldmatrix(e: Emitter, i: Instruction) -> None:
    require_whole_warps(e, i)
    d, a = i.operands
    value = e.temporary(f"C.load_matrix({_shared(e, i, a)}, {e.mask(i)}, {i.modifiers!r})")
    _write_list(e, d, value, i)


def stmatrix(e: Emitter, i: Instruction) -> None:
    require_whole_warps(e, i)
    a, s = i.operands
    e.line(f"C.store_matrix({_shared(e, i, a)}, {e.mask(i)}, {i.modifiers!r}, {list_of(e, s)})")


# wgmma


def _set_in_flight(e: Emitter, registers: tuple[Reg, ...], mask: str) -> None:
    """Poisons results of asynchronous instructions: whoever reads them before the wait gets this."""
    for r in registers:
        e.line(f"v{r.index} = C.in_flight({r.index}, {e.register(r)}, {mask})")
        e.written.add(r.index)
        for key in [key for key in e.cached if key[0] == r.index]:
            del e.cached[key]


def wgmma(e: Emitter, i: Instruction) -> None:
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
            fragments = [r.index for r in a.items if isinstance(r, Reg)] if isinstance(a, Vector) else []
            e.line(
                f"C.wgmma({i.modifiers!r}, {numbers}, {values}, {fragments}, {left}, {e.array(b, 'b64')}, "
                f"{e.read(scale_d, 'pred')}, {tuple(o.value for o in immediates)}, {mask}, {i.line})"
            )
            _set_in_flight(e, d.items, mask)
        case _:
            raise e.fail("unknown wgmma instruction")


# tcgen05


def tcgen05(e: Emitter, i: Instruction) -> None:
    emit = _TCGEN05.get(i.modifiers[0])
    if emit is None:
        raise e.fail("unknown tcgen05 instruction")
    emit(e, i)


def _alloc(e: Emitter, i: Instruction) -> None:
    a, count = i.operands
    e.leave(f"(C.on_tmem_alloc, {e.mask(i)}, {i.modifiers!r}, {_shared(e, i, a)}, {e.array(count, 'u32')})")


def _dealloc(e: Emitter, i: Instruction) -> None:
    a, count = i.operands
    e.line(f"C.tmem_dealloc({i.modifiers!r}, {e.array(a, 'b32')}, {e.array(count, 'u32')}, {e.mask(i)})")


def _relinquish(e: Emitter, i: Instruction) -> None:
    e.line(f"C.tmem_relinquish({i.modifiers!r}, {e.mask(i)})")


def _tensor_fence(e: Emitter, i: Instruction) -> None:
    e.line(f"C.tmem_fence({i.modifiers[0]!r}, {e.mask(i)})")


def _wait_load(e: Emitter, i: Instruction) -> None:
    e.line(f"C.tmem_wait({e.mask(i)})")


def _tensor_load(e: Emitter, i: Instruction) -> None:
    d, a, *offset = i.operands
    registers = d.items if isinstance(d, Vector) else (d,)
    if not all(isinstance(r, Reg) for r in registers):
        raise e.fail("expected registers as the results")
    extra = e.array(offset[0], "u64") if offset else "None"
    value = e.temporary(
        f"C.tmem_load({i.modifiers!r}, {len(registers)}, {e.address(a, 'u32')}, {e.mask(i)}, {extra})"
    )
    _write_list(e, d, value, i)


def _tensor_store(e: Emitter, i: Instruction) -> None:
    a, *offset, s = i.operands
    extra = e.array(offset[0], "u64") if offset else "None"
    e.line(f"C.tmem_store({i.modifiers!r}, {e.address(a, 'u32')}, {list_of(e, s)}, {e.mask(i)}, {extra})")


def _tensor_copy(e: Emitter, i: Instruction) -> None:
    a, s = i.operands
    e.line(f"C.tmem_copy({i.modifiers!r}, {e.address(a, 'u32')}, {e.array(s, 'u64')}, {e.mask(i)})")


def _tensor_shift(e: Emitter, i: Instruction) -> None:
    e.line(f"C.tmem_shift({i.modifiers!r}, {e.address(i.operands[0], 'u32')}, {e.mask(i)})")


def _commit(e: Emitter, i: Instruction) -> None:
    """Without a state space the ISA wants a generic address; hardware takes the low 32 bits of it, and Triton passes a
    shared address there."""
    a, *targets = i.operands
    shared = any(n.startswith("shared") for n in i.modifiers)
    address = e.address(a, "u32") if shared else e.temporary(f"{e.address(a, 'u64')}.astype(u32)")
    masks = e.array(targets[0], "u16") if targets else "None"
    e.line(f"C.tmem_commit({i.modifiers!r}, {address}, {masks}, {e.mask(i)})")


def _tensor_mma(e: Emitter, i: Instruction) -> None:
    if not i.operands:
        raise e.fail("tcgen05.mma without operands")
    operands = []
    for o in i.operands:
        if isinstance(o, Address):
            operands.append(f"({e.address(o, 'u32')},)")  # a tuple marks tensor memory
        elif isinstance(o, Vector):
            operands.append(list_of(e, o))
        elif isinstance(o, Imm):
            operands.append(str(o.value))
        else:
            predicate = isinstance(o, Negated) or o.type == "pred"
            operands.append(e.read(o, "pred" if predicate else f"b{o.type[1:]}"))
    e.line(f"C.tmem_mma({i.modifiers!r}, ({', '.join(operands)},), {e.mask(i)})")


_TCGEN05: dict[str, EmitterFunction] = {
    "alloc": _alloc, "dealloc": _dealloc, "relinquish_alloc_permit": _relinquish,
    "fence::before_thread_sync": _tensor_fence, "fence::after_thread_sync": _tensor_fence, "wait::ld": _wait_load,
    "wait::st": require_whole_warps,  # stores are complete when they are issued
    "ld": _tensor_load, "st": _tensor_store, "cp": _tensor_copy, "shift": _tensor_shift, "commit": _commit,
    "mma": _tensor_mma,
}  # fmt: skip
