"""Emitters of loads, stores, atomics and fences (PTX ISA 9.7.9 and 9.7.13)."""

from __future__ import annotations

import numpy as np

from ..machine.memory import ATOMICS
from ..text.instructions import WIDTHS, Address, Instruction, Sink, Symbol, Vector
from .emitter import Emitter, Modifiers

_CACHE = ("ca", "cg", "cs", "lu", "cv", "nc", "wb", "wt", "nc")
_ORDER = ("weak", "relaxed", "acquire", "release", "volatile", "mmio", "acq_rel")
_SCOPES = ("sys", "gpu", "cluster", "cta")
_PRIORITY = tuple(
    f"{level}::{policy}"
    for level in ("L1", "L2")
    for policy in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate")
)
PREFETCH = ("L2::64B", "L2::128B", "L2::256B")
_SPACES = (
    "global", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry", "param::func", "const",
)  # fmt: skip
_LOADS = {
    "global": "load_global", "shared": "load_shared", "local": "load_local", "param": "load_param",
    "const": "load_const", "generic": "load_generic",
}  # fmt: skip
_STORES = {
    "global": "store_global", "shared": "store_shared", "local": "store_local", "generic": "store_generic",
}  # fmt: skip
_TYPES = (
    "b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64", "b128", "f16",
    "bf16",
)  # fmt: skip
_ATOMIC_TYPES = (
    "b16", "b32", "b64", "u32", "s32", "u64", "s64", "f32", "f64", "f16", "f16x2", "bf16", "bf16x2", "b128",
)  # fmt: skip


def _access(e: Emitter, i: Instruction) -> tuple[str, int, str, bool]:
    """(space, elements, type, takes a cache policy) of ld and st; orders, scopes and cache hints change no value
    here.
    """
    m = Modifiers(e, i)
    kind = m.type(*_TYPES)
    space = m.take(*_SPACES)
    count = int((m.take("v2", "v4", "v8") or "v1")[1:])
    hint = m.flag("L2::cache_hint")
    for group in (_ORDER, _SCOPES, _CACHE, _PRIORITY, _PRIORITY, PREFETCH, ("unified",)):
        m.take(*group)
    m.done()
    return (space or "generic").split("::")[0], count, kind, hint


def space_address(e: Emitter, operand: Address, space: str) -> str:
    return e.address(operand, "u64" if space in ("global", "const", "generic") else "u32")


def load(e: Emitter, i: Instruction) -> None:
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
    address = space_address(e, a, space)
    value = e.temporary(f"C.{_LOADS[space]}({address}, {e.mask(i)}, {size}, {parts}, {e.kernel.site()})")
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


def store(e: Emitter, i: Instruction) -> None:
    if i.modifiers[0] == "async":
        return _store_async(e, i)
    space, count, kind, hint = _access(e, i)
    operands = i.operands[:-1] if hint else i.operands
    if len(operands) != 2:
        raise e.fail(f"{len(operands)} operands, expected 2")
    a, d = operands
    items = d.items if isinstance(d, Vector) else (d,)
    if space == "param" and isinstance(a.base, Symbol) and a.base.name not in e.kernel.function.offsets:
        return None  # an argument of the call that follows, and that is refused
    if len(items) != count or space not in _STORES:
        raise e.fail("this store is not implemented")
    values = []
    for item in items:
        if WIDTHS[kind] == 16:
            value = e.read(item, "b128")
            values += [f"{value}[..., 0]", f"{value}[..., 1]"]
        else:
            values.append(e.array(item, f"b{8 * WIDTHS[kind]}"))
    size = min(WIDTHS[kind], 8)
    address = space_address(e, a, space)
    e.line(f"C.{_STORES[space]}({address}, {e.mask(i)}, {size}, [{', '.join(values)}], {e.kernel.site()})")


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


def atomic(e: Emitter, i: Instruction) -> None:
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
    address = space_address(e, a, space)
    width = WIDTHS[kind]
    for position, (source, target) in enumerate(zip(*items, strict=True)):
        where = address
        if position:
            where = e.temporary(f"{address} + {address}.dtype.type({position * width})")
        base = f"b{8 * width}"
        third = e.array(c[0], base) if c else "None"
        value = e.temporary(
            f"C.atomic({space!r}, {operation!r}, {kind!r}, {where}, {e.mask(i)}, {e.array(source, base)}, {third}, "
            f"{e.kernel.site()})"
        )
        e.write(target, base, value, i)


def prefetch(e: Emitter, i: Instruction) -> None:
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


def fence(e: Emitter, i: Instruction) -> None:
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


def create_policy(e: Emitter, i: Instruction) -> None:
    """A cache policy changes no value."""
    e.write(i.operands[0], "b64", f"C.full({e.constant(0, np.uint64)})", i)
