"""Emitters of loads, stores, atomics, fences, asynchronous copies and tensor-core instructions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emulator.execution.program import Emitter, Modifiers
from emulator.machine.memory import ATOMICS
from emulator.text.instructions import WIDTHS, Address, Imm, Instruction, Sink, Symbol, Vector

_CACHE = ("ca", "cg", "cs", "lu", "cv", "nc", "wb", "wt", "nc")
_ORDER = ("weak", "relaxed", "acquire", "release", "volatile", "mmio", "acq_rel")
_SCOPES = ("sys", "gpu", "cluster", "cta")
_PRIORITY = tuple(
    f"{level}::{policy}"
    for level in ("L1", "L2")
    for policy in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate")
)
_PREFETCH = ("L2::64B", "L2::128B", "L2::256B")
_SPACES = (
    "global", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry", "param::func", "const",
)  # fmt: skip
_TYPES = (
    "b8",
    "u8",
    "s8",
    "b16",
    "u16",
    "s16",
    "b32",
    "u32",
    "s32",
    "f32",
    "b64",
    "u64",
    "s64",
    "f64",
    "b128",
    "f16",
    "bf16",
)
_WIDE = {"b8": "u8", "b16": "u16", "b32": "u32", "b64": "u64", "f16": "u16", "bf16": "u16"}


def _access(e: Emitter, i: Instruction) -> tuple[str, int, str, bool]:
    """(space, elements, type, takes a cache policy) of ld and st; orders, scopes and cache hints change no value
    here.
    """
    m = Modifiers(e, i)
    kind = m.type(*_TYPES)
    space = m.take(*_SPACES)
    count = int((m.take("v2", "v4", "v8") or "v1")[1:])
    hint = m.flag("L2::cache_hint")
    for group in (_ORDER, _SCOPES, _CACHE, _PRIORITY, _PRIORITY, _PREFETCH, ("unified",)):
        m.take(*group)
    m.done()
    return (space or "generic").split("::")[0], count, kind, hint


def _address(e: Emitter, operand: Address, space: str) -> str:
    return e.address(operand, "u64" if space in ("global", "const", "generic") else "u32")


def _load(e: Emitter, i: Instruction) -> None:
    space, count, kind, hint = _access(e, i)
    operands = i.operands[:-1] if hint else i.operands
    if len(operands) != 2:
        raise e.fail(f"{len(operands)} operands, expected 2")
    d, a = operands
    items = d.items if isinstance(d, Vector) else (d,)
    if len(items) != count:
        raise e.fail(f"{len(items)} results for .v{count}")
    width = WIDTHS[kind]
    if space == "param" and isinstance(a.base, Symbol):
        for position, item in enumerate(items):
            value = e.temporary(f"C.parameter({a.base.name!r}, {a.base.offset + position * width}, {width})")
            _write_loaded(e, item, kind, value, i)
        return
    e.reads = True
    size, parts = (8, count * 2) if width == 16 else (width, count)
    value = e.temporary(f"C.load_{space}({_address(e, a, space)}, {e.mask(i)}, {size}, {parts}, {e.program.site()})")
    for position, item in enumerate(items):
        if width == 16:
            e.write(item, "b128", f"{value}[..., {2 * position}:{2 * position + 2}]", i)
        else:
            _write_loaded(e, item, kind, f"{value}[..., {position}]" if count > 1 else value, i)


def _write_loaded(e: Emitter, item: object, kind: str, value: str, i: Instruction) -> None:
    """Loads extend to the width of the register, with the sign where the type has one."""
    if isinstance(item, Sink):
        return
    if kind[0] == "s":
        value = f"{value}.view(s{8 * WIDTHS[kind]})"
        return e.write(item, kind, value, i)
    e.write(item, f"u{8 * WIDTHS[kind]}" if kind not in ("b128", "f32", "f64") else f"b{8 * WIDTHS[kind]}", value, i)


def _store(e: Emitter, i: Instruction) -> None:
    if i.modifiers[0] == "async":
        return _store_async(e, i)
    space, count, kind, hint = _access(e, i)
    operands = i.operands[:-1] if hint else i.operands
    if len(operands) != 2:
        raise e.fail(f"{len(operands)} operands, expected 2")
    a, d = operands
    items = d.items if isinstance(d, Vector) else (d,)
    if space == "param" and isinstance(a.base, Symbol) and a.base.name not in e.program.function.offsets:
        return None  # an argument of the call that follows, and that is refused
    if len(items) != count or space in ("param", "const"):
        raise e.fail("this store is not implemented")
    values = []
    for item in items:
        if WIDTHS[kind] == 16:
            value = e.read(item, "b128")
            values += [f"{value}[..., 0]", f"{value}[..., 1]"]
        else:
            values.append(e.array(item, f"b{8 * WIDTHS[kind]}"))
    size = min(WIDTHS[kind], 8)
    e.line(f"C.store_{space}({_address(e, a, space)}, {e.mask(i)}, {size}, [{', '.join(values)}], {e.program.site()})")


def _store_async(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.flag("async")
    m.flag("weak")
    kind = m.type("b32", "b64", "u32", "u64", "s32", "s64", "f32", "f64")
    count = int((m.take("v2", "v4") or "v1")[1:])
    if not (m.flag("shared::cluster") and m.flag("mbarrier::complete_tx::bytes")):
        raise e.fail("only st.async to .shared::cluster with an mbarrier is implemented")
    m.done()
    a, d, barrier = i.operands
    items = d.items if isinstance(d, Vector) else (d,)
    values = ", ".join(e.array(item, f"b{8 * WIDTHS[kind]}") for item in items)
    if len(items) != count:
        raise e.fail(f"{len(items)} values for .v{count}")
    where = f"{e.address(a, 'u32')}, {e.address(barrier, 'u32')}"
    e.line(f"C.store_async({where}, {e.mask(i)}, {WIDTHS[kind]}, [{values}])")


_ATOMIC_TYPES = (
    "b16",
    "b32",
    "b64",
    "u32",
    "s32",
    "u64",
    "s64",
    "f32",
    "f64",
    "f16",
    "f16x2",
    "bf16",
    "bf16x2",
    "b128",
)


def _atomic(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type(*_ATOMIC_TYPES)
    space = (m.take("global", "shared", "shared::cta", "shared::cluster") or "generic").split("::")[0]
    operation = m.take(*ATOMICS)
    count = int((m.take("v2", "v4", "v8") or "v1")[1:])
    hint = m.flag("L2::cache_hint")
    for group in (_ORDER, _SCOPES, ("noftz",)):
        m.take(*group)
    m.done()
    result = i.opcode == "atom"
    operands = i.operands[:-1] if hint else i.operands
    d = operands[0] if result else Sink()
    a, b, *c = operands[1:] if result else operands
    if operation is None or (operation == "cas") != bool(c) or kind == "b128":
        raise e.fail("this atomic is not implemented")
    if operation in ("and", "or", "xor", "exch", "cas"):
        kind = f"b{8 * WIDTHS[kind]}"
    items = (b.items, d.items if isinstance(d, Vector) else (d,) * count) if isinstance(b, Vector) else ((b,), (d,))
    address = _address(e, a, space)
    width = WIDTHS[kind]
    for position, (source, target) in enumerate(zip(*items, strict=True)):
        where = address
        if position:
            where = e.temporary(f"{address} + {address}.dtype.type({position * width})")
        base = f"b{8 * width}"
        third = e.array(c[0], base) if c else "None"
        value = e.temporary(
            f"C.atomic({space!r}, {operation!r}, {kind!r}, {where}, {e.mask(i)}, {e.array(source, base)}, {third}, "
            f"{e.program.site()})"
        )
        e.write(target, base, value, i)


def _prefetch(e: Emitter, i: Instruction) -> None:
    """A hint. An address of a tensor map must still be one."""
    m = Modifiers(e, i)
    tensormap = m.flag("tensormap")
    for group in (
        ("global", "local", "const", "param", "param::entry"),
        ("L1", "L2", "L2::evict_last", "L2::evict_normal"),
    ):
        m.take(*group)
    m.done()
    if tensormap:
        e.line(f"C.check_tensor_map({e.address(i.operands[0], 'u64')}, {e.mask(i)})")


def _fence(e: Emitter, i: Instruction) -> None:
    """Memory is sequentially consistent here; a fence tells the proxy checks what it orders."""
    known = {
        "sc", "acq_rel", "acquire", "release", "cta", "cluster", "gpu", "sys", "proxy", "alias", "async",
        "async::global", "async::shared::cta", "async::shared::cluster", "async::generic", "tensormap::generic",
        "mbarrier_init", "global",
        "shared::cta", "shared::cluster", "gl", "sync_restrict::shared::cta", "sync_restrict::shared::cluster",
        "async.shared::cta",
    }  # fmt: skip
    for modifier in i.modifiers:
        if modifier not in known:
            raise e.fail(f"unknown modifier .{modifier}")
    if "async" in i.modifiers:
        e.line(f"C.fence_async({e.mask(i)})")


# Asynchronous copies


def _cp(e: Emitter, i: Instruction) -> None:
    if i.modifiers[0] == "reduce":
        return _bulk(e, i)
    if i.modifiers[0] != "async":
        raise e.fail("unknown copy")
    if "bulk" in i.modifiers:
        return _bulk(e, i)
    if i.modifiers[1] in ("ca", "cg"):
        return _copy_async(e, i)
    mask = e.mask(i)
    match i.modifiers[1]:
        case "commit_group":
            e.line(f"C.copy_commit({mask})")
        case "wait_group":
            e.leave(f"(C.on_copy_wait, {mask}, {i.operands[0].value})")
        case "wait_all":
            e.leave(f"(C.on_copy_wait, {mask}, 0, True)")
        case "mbarrier":
            if i.modifiers[2] != "arrive":
                raise e.fail("unknown copy")
            noinc = "noinc" in i.modifiers
            space = "generic" if not any(n.startswith("shared") for n in i.modifiers) else "shared"
            e.line(f"C.copy_arrive({shared_address(e, i.operands[0], space)}, {mask}, {noinc})")
        case _:
            raise e.fail("unknown copy")


def shared_address(e: Emitter, operand: Address, space: str = "shared") -> str:
    if space == "generic":
        return e.temporary(f"C.to_shared({e.address(operand, 'u64')}, {e.mask(e.current)})")
    return e.address(operand, "u32")


def _copy_async(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.take("async")
    m.take("ca", "cg")
    if not (m.take("shared", "shared::cta") and m.flag("global")):
        raise e.fail("expected .shared.global")
    hint = m.flag("L2::cache_hint")
    m.take(*_PREFETCH)
    m.done()
    operands = i.operands[:-1] if hint else i.operands
    d, a, size, *rest = operands
    taken = "None"
    if rest and getattr(rest[0], "type", "") == "pred":
        taken = f"where({e.read(rest[0], 'pred')}, 0, {size.value})"
    elif rest:
        taken = e.array(rest[0], "u32")
    if size.value not in (4, 8, 16):
        raise e.fail(f"copy of {size.value} bytes")
    e.line(
        f"C.copy_async({e.address(d, 'u32')}, {e.address(a, 'u64')}, {e.mask(i)}, {size.value}, {taken}, "
        f"{e.program.site()})"
    )


def _bulk(e: Emitter, i: Instruction) -> None:
    """cp.async.bulk, cp.reduce.async.bulk and their tensor and prefetch forms (9.7.9.25.4 and .5)."""
    m = Modifiers(e, i)
    reduce = m.flag("reduce")
    m.flag("async")
    m.flag("bulk")
    mask = e.mask(i)
    if m.flag("commit_group"):
        m.done()
        return e.line(f"C.bulk_commit({mask})")
    if m.flag("wait_group"):
        read = m.flag("read")
        m.done()
        return e.leave(f"(C.on_bulk_wait, {mask}, {i.operands[0].value}, {read})")
    prefetch = m.flag("prefetch")
    tensor = m.flag("tensor")
    spaces = [n for n in m.rest if n in ("shared::cluster", "shared::cta", "global", "L2")]
    m.rest = [n for n in m.rest if n not in spaces]
    group = int((m.take("cta_group::1", "cta_group::2") or "cta_group::1")[-1])
    by_barrier = m.flag("mbarrier::complete_tx::bytes")
    by_group = m.flag("bulk_group")
    multicast = m.flag("multicast::cluster")
    hint = m.flag("L2::cache_hint")
    if prefetch:
        m.rest.clear()
        return None
    if by_barrier == by_group:
        raise e.fail("expected .mbarrier::complete_tx::bytes or .bulk_group")
    operands = list(i.operands)
    if hint:
        operands.pop()
    if tensor:
        rank = int((m.take("1d", "2d", "3d", "4d", "5d") or "0d")[0])
        mode = m.take("tile", "im2col", "im2col::w", "tile::gather4", "tile::scatter4") or "tile"
        operation = m.take("add", "min", "max", "inc", "dec", "and", "or", "xor") if reduce else None
        m.done()
        if mode.startswith("im2col") or rank == 0 or (reduce and operation is None):
            raise e.fail(f"mode .{mode} is not implemented")
        return _bulk_tensor(e, i, operands, spaces, rank, mode, operation, multicast, group, mask)
    kind = operation = None
    if reduce:
        m.flag("noftz")
        kind = m.type("s32", "u32", "s64", "u64", "f16", "bf16", "f32", "f64", "b32", "b64")
        operation = m.take("add", "min", "max", "inc", "dec", "and", "or", "xor")
    if m.flag("cp_mask") or spaces not in (
        ["shared::cluster", "global"], ["shared::cta", "global"], ["global", "shared::cta"],
        ["shared::cluster", "shared::cta"],
    ):  # fmt: skip
        raise e.fail("this bulk copy is not implemented")
    m.done()
    d, s, size, *rest = operands
    barrier = e.address(rest.pop(0), "u32") if by_barrier else "None"
    targets = e.array(rest.pop(0), "u16") if multicast else "None"
    if rest:
        raise e.fail("too many operands")
    into, out = (e.address(o, "u64" if space == "global" else "u32") for o, space in zip((d, s), spaces, strict=True))
    direction = f"{spaces[0].split('::')[0]}_{spaces[1].split('::')[0]}"
    e.line(
        f"C.bulk({direction!r}, {into}, {out}, {e.array(size, 'u32')}, {barrier}, {targets}, {operation!r}, {kind!r}, "
        f"{mask})"
    )


def _bulk_tensor(
    e: Emitter, i: Instruction, operands: list, spaces: list[str], rank: int, mode: str, operation: str | None,
    multicast: bool, group: int, mask: str,
) -> None:  # fmt: skip
    count = 5 if "gather" in mode or "scatter" in mode else rank
    if spaces[0] == "global":
        tensor, source, *rest = operands
        shared, barrier, targets = source, "None", "None"
    else:
        shared, tensor, mbar, *rest = operands
        barrier = e.address(mbar, "u32")
        targets = e.array(rest.pop(0), "u16") if multicast else "None"
    if rest or not isinstance(tensor, Address) or len(tensor.coordinates) != count:
        raise e.fail(f"expected a tensor map with {count} coordinates")
    coordinates = ", ".join(e.array(c, "s32") for c in tensor.coordinates)
    name = "tensor_store" if spaces[0] == "global" else "tensor_load"
    e.line(
        f"C.{name}({e.address(shared, 'u32')}, {e.address(Address(tensor.base, tensor.offset), 'u64')}, "
        f"[{coordinates}], "
        f"{barrier}, {targets}, {operation!r}, {mode!r}, {group}, {mask})"
    )


def _tensormap(e: Emitter, i: Instruction) -> None:
    m = i.modifiers
    if m[0] == "replace":
        field = m[2]
        space = "global" if "global" in m else "shared" if any(n.startswith("shared") for n in m) else "generic"
        kind = m[-1]
        if m[1] != "tile" or kind not in ("b32", "b64") or "b1024" not in m:
            raise e.fail("unknown form of tensormap.replace")
        a, *rest = i.operands
        index = rest[0].value if len(rest) == 2 else 0
        value = e.array(rest[-1], kind)
        e.line(f"C.tensormap_replace({space!r}, {_address(e, a, space)}, {field!r}, {index}, {value}, {e.mask(i)})")
    elif m[0] == "cp_fenceproxy":
        d, s, size = i.operands
        if m[1:3] != ("global", "shared::cta") or size.value != 128:
            raise e.fail("unknown form of tensormap.cp_fenceproxy")
        e.line(f"C.tensormap_copy({e.address(d, 'u64')}, {e.address(s, 'u32')}, {e.mask(i)})")
    else:
        raise e.fail("unknown tensormap instruction")


# Tensor cores


def list_of(e: Emitter, operand: object, kind: str = "b32") -> str:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    return "[" + ", ".join(e.array(item, kind) for item in items) + "]"


def _write_list(e: Emitter, operand: object, value: str, i: Instruction, kind: str = "b32") -> None:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    for position, item in enumerate(items):
        e.write(item, kind, f"{value}[{position}]", i)


def require_whole_warps(e: Emitter, i: Instruction) -> None:
    if i.guard is not None:
        e.line(f"C.converged({e.mask(i)})")
    elif e.is_masked:
        e.line("C.converged(m)")


def _mma(e: Emitter, i: Instruction) -> None:
    from emulator.units import mma

    require_whole_warps(e, i)
    e.program.namespace.setdefault("mma_execute", mma.execute)
    modifiers = tuple(i.modifiers)
    mma.plan(modifiers)
    if e.reads:
        e.line(f"C.end_reads({e.mask(i)})")
        e.reads = False
    d, a, b, c, *scales = i.operands
    arguments = f"{modifiers!r}, {list_of(e, a)}, {list_of(e, b)}, {list_of(e, c)}"
    if not scales:
        value = e.temporary(f"mma_execute({arguments}, cut=C.device.cuts_sums)")
        return _write_list(e, d, value, i)
    scale_a, ids_a, scale_b, ids_b = scales
    selectors = [*ids_a.items, *ids_b.items]
    data = e.array(scale_a, "b32"), e.array(scale_b, "b32")
    if all(isinstance(item, Imm) for item in selectors):
        byte_a, thread_a, byte_b, thread_b = (item.value for item in selectors)
        value = e.temporary(
            f"mma_execute({arguments}, {data[0]}, {byte_a}, {thread_a}, {data[1]}, {byte_b}, {thread_b})"
        )
    else:
        e.program.namespace.setdefault("mma_execute_selected", mma.execute_selected)
        chosen = ", ".join(e.array(item, "u16") for item in selectors)
        value = e.temporary(
            f"mma_execute_selected({arguments}, {data[0]}, {data[1]}, [{chosen}], C.active({e.mask(i)}))"
        )
    _write_list(e, d, value, i)


def _ldmatrix(e: Emitter, i: Instruction) -> None:
    require_whole_warps(e, i)
    d, a = i.operands
    shared = any(n.startswith("shared") for n in i.modifiers)
    address = shared_address(e, a, "shared" if shared else "generic")
    value = e.temporary(f"C.load_matrix({address}, {e.mask(i)}, {i.modifiers!r})")
    _write_list(e, d, value, i)


def _stmatrix(e: Emitter, i: Instruction) -> None:
    require_whole_warps(e, i)
    a, s = i.operands
    shared = any(n.startswith("shared") for n in i.modifiers)
    address = shared_address(e, a, "shared" if shared else "generic")
    e.line(f"C.store_matrix({address}, {e.mask(i)}, {i.modifiers!r}, {list_of(e, s)})")


def _nothing(e: Emitter, i: Instruction) -> None:
    """createpolicy: a cache policy, which changes no value."""
    e.write(i.operands[0], "b64", f"C.full({e.constant(0, np.uint64)})", i)


EMITTERS: dict[str, Callable[[Emitter, Instruction], None]] = {
    "ld": _load, "ldu": _load, "st": _store, "atom": _atomic, "red": _atomic, "prefetch": _prefetch, "fence": _fence,
    "membar": _fence, "cp": _cp, "tensormap": _tensormap, "mma": _mma, "ldmatrix": _ldmatrix, "stmatrix": _stmatrix,
    "createpolicy": _nothing,
}  # fmt: skip
