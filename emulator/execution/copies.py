"""Emitters of asynchronous copies, tensor maps and cluster launch control (PTX ISA 9.7.9.25 to 9.7.9.28, 9.7.13.17)."""

from __future__ import annotations

from ..text.instructions import Address, Instruction, Reg, Vector
from .emitter import Emitter, Modifiers, shared_address
from .memory import PREFETCH, space_address

_REDUCTIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")
_DIRECTIONS = {  # state spaces of destination and source
    ("shared::cluster", "global"): "shared_global", ("shared::cta", "global"): "shared_global",
    ("global", "shared::cta"): "global_shared", ("shared::cluster", "shared::cta"): "shared_shared",
}  # fmt: skip


def copy(e: Emitter, i: Instruction) -> None:
    if i.modifiers[0] == "reduce" or i.modifiers[0] == "async" and "bulk" in i.modifiers:
        return _bulk(e, i)
    if i.modifiers[0] != "async":
        raise e.fail("unknown copy")
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


def _copy_async(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.take("async")
    m.take("ca", "cg")
    if not (m.take("shared", "shared::cta") and m.flag("global")):
        raise e.fail("expected .shared.global")
    hint = m.flag("L2::cache_hint")
    m.take(*PREFETCH)
    m.done()
    operands = i.operands[:-1] if hint else i.operands
    d, a, size, *rest = operands
    taken = "None"
    if rest and isinstance(rest[0], Reg) and rest[0].type == "pred":
        taken = f"where({e.read(rest[0], 'pred')}, 0, {size.value})"
    elif rest:
        taken = e.array(rest[0], "u32")
    if size.value not in (4, 8, 16):
        raise e.fail(f"copy of {size.value} bytes")
    e.line(
        f"C.copy_async({e.address(d, 'u32')}, {e.address(a, 'u64')}, {e.mask(i)}, {size.value}, {taken}, "
        f"{e.kernel.site()})"
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
    if m.flag("prefetch"):
        return None
    tensor = m.flag("tensor")
    spaces = [n for n in m.rest if n in ("shared::cluster", "shared::cta", "global", "L2")]
    m.rest = [n for n in m.rest if n not in spaces]
    group = int((m.take("cta_group::1", "cta_group::2") or "cta_group::1")[-1])
    by_barrier, by_group = m.flag("mbarrier::complete_tx::bytes"), m.flag("bulk_group")
    multicast = m.flag("multicast::cluster")
    operands = list(i.operands[:-1] if m.flag("L2::cache_hint") else i.operands)
    if by_barrier == by_group:
        raise e.fail("expected .mbarrier::complete_tx::bytes or .bulk_group")
    if tensor:
        return _bulk_tensor(e, m, operands, spaces, reduce, multicast, group, mask)
    return _bulk_plain(e, m, operands, spaces, reduce, by_barrier, multicast, mask)


def _bulk_plain(
    e: Emitter, m: Modifiers, operands: list, spaces: list[str], reduce: bool, by_barrier: bool, multicast: bool,
    mask: str,
) -> None:  # fmt: skip
    kind = operation = None
    if reduce:
        m.flag("noftz")
        kind = m.type("s32", "u32", "s64", "u64", "f16", "bf16", "f32", "f64", "b32", "b64")
        operation = m.take(*_REDUCTIONS)
    if m.flag("cp_mask") or tuple(spaces) not in _DIRECTIONS:
        raise e.fail("this bulk copy is not implemented")
    m.done()
    d, s, size, *rest = operands
    barrier = e.address(rest.pop(0), "u32") if by_barrier else "None"
    targets = e.array(rest.pop(0), "u16") if multicast else "None"
    if rest:
        raise e.fail("too many operands")
    into, out = (e.address(o, "u64" if space == "global" else "u32") for o, space in zip((d, s), spaces, strict=True))
    direction = _DIRECTIONS[tuple(spaces)]
    e.line(
        f"C.bulk({direction!r}, {into}, {out}, {e.array(size, 'u32')}, {barrier}, {targets}, {operation!r}, {kind!r}, "
        f"{mask})"
    )


def _bulk_tensor(
    e: Emitter, m: Modifiers, operands: list, spaces: list[str], reduce: bool, multicast: bool, group: int, mask: str
) -> None:
    rank = int((m.take("1d", "2d", "3d", "4d", "5d") or "0d")[0])
    mode = m.take("tile", "im2col", "im2col::w", "tile::gather4", "tile::scatter4") or "tile"
    operation = m.take(*_REDUCTIONS) if reduce else None
    m.done()
    if mode.startswith("im2col") or rank == 0 or (reduce and operation is None):
        raise e.fail(f"mode .{mode} is not implemented")
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


def tensormap(e: Emitter, i: Instruction) -> None:
    m = i.modifiers
    if m[0] == "replace":
        field = m[2]
        space = "global" if "global" in m else "shared" if any(n.startswith("shared") for n in m) else "generic"
        kind = m[-1]
        if m[1] != "tile" or kind not in ("b32", "b64") or "b1024" not in m:
            raise e.fail("unknown form of tensormap.replace")
        a, *rest = i.operands
        index = rest[0].value if len(rest) == 2 else 0
        value, address = e.array(rest[-1], kind), space_address(e, a, space)
        e.line(f"C.tensormap_replace({space!r}, {address}, {field!r}, {index}, {value}, {e.mask(i)})")
    elif m[0] == "cp_fenceproxy":
        d, s, size = i.operands
        if m[1:3] != ("global", "shared::cta") or size.value != 128:
            raise e.fail("unknown form of tensormap.cp_fenceproxy")
        e.line(f"C.tensormap_copy({e.address(d, 'u64')}, {e.address(s, 'u32')}, {e.mask(i)})")
    else:
        raise e.fail("unknown tensormap instruction")


def cluster_launch_control(e: Emitter, i: Instruction) -> None:
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
