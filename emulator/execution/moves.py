"""Emitters of moves, conversions, and of what turns addresses of one state space into another's (PTX ISA 9.7.9)."""

from __future__ import annotations

from ..machine.memory import LOCAL_WINDOW, PARAM_WINDOW, RANK_SHIFT, SHARED_WINDOW
from ..text.instructions import Instruction, Symbol
from .emitter import INTEGERS, NUMPY, Emitter, Modifiers, operands

_FLOATS = ("f16", "bf16", "f32", "f64", "tf32")
_PACKED = ("f16x2", "bf16x2", "e4m3x2", "e5m2x2", "e2m1x2", "e2m3x2", "e3m2x2", "ue8m0x2")
_BITS = {"f16": "b16", "bf16": "b16", "f32": "b32", "tf32": "b32", "f64": "b64", "f16x2": "b32", "bf16x2": "b32",
         "e2m1x2": "b8"}  # fmt: skip


def mov(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("pred", "b16", "b32", "b64", "b128", *INTEGERS, "f16", "bf16", "f32", "f64")
    m.done()
    d, a = operands(e, i, 2)
    if isinstance(a, Symbol) and a.name in e.kernel.function.offsets:
        return e.write(d, kind, e.read(a, kind), i)
    e.write(d, kind, e.array(a, kind), i)


def cvta(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "u64")
    to = m.flag("to")
    space = m.take("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry")
    m.done()
    d, a = operands(e, i, 2)
    if kind == "u32" or space is None:
        raise e.fail("expected a state space and .u64")
    value = e.array(a, kind)
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}.get(space.split("::")[0])
    if window is None:
        return e.write(d, kind, value, i)
    offset = e.constant(window, NUMPY["u64"])
    e.write(d, kind, f"{value} {'-' if to else '+'} {offset}", i)


def isspacep(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    space = m.take("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry")
    m.done()
    d, a = operands(e, i, 2)
    if space is None:
        raise e.fail("no state space")
    e.write(d, "pred", f"C.is_space({space!r}, {e.array(a, 'u64')})", i)


def cvt(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    if i.modifiers[0] == "pack":
        return _cvt_pack(e, i)
    all_types = (*INTEGERS, "u8", "s8", *_FLOATS, *_PACKED)
    source = m.type(*all_types)
    result = m.type(*all_types)
    rounding = m.take("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi")
    flags = {name: m.flag(name) for name in ("relu", "satfinite", "sat", "ftz")}
    m.done()
    d, *sources = i.operands
    if not sources:
        raise e.fail("cvt without a source")
    integer_source, integer_result = (
        source[0] in "us" and source != "ue8m0x2",
        result[0] in "us" and result != "ue8m0x2",
    )
    if integer_source and integer_result:
        if len(sources) != 1:
            raise e.fail("expected one source")
        value = e.array(sources[0], source)
        if flags["sat"]:
            return e.write(d, result, f"clamp_integer({value}, {NUMPY[result].__name__})", i)
        return e.write(d, result, f"{value}.astype({NUMPY[result].__name__})", i)
    if integer_result:
        if rounding not in ("rni", "rzi", "rmi", "rpi"):
            raise e.fail("float to integer needs .rni, .rzi, .rmi or .rpi")
        a = e.array(sources[0], source if source in ("f32", "f64") else "b16")
        if source in ("f16", "bf16"):
            a = f"widen({source!r}, {a})"
        if flags["ftz"]:
            a = f"flush({a})"
        return e.write(d, result, f"float_to_integer({a}, {NUMPY[result].__name__}, {rounding!r})", i)
    if integer_source:
        return _integer_to_float(e, i, result, source, rounding, flags)
    if result == source and rounding is None and not any(flags.values()):
        return e.write(d, _BITS[result], e.array(sources[0], _BITS[source]), i)
    plain = not any(flags.values())
    if plain and (result, source) == ("f32", "bf16"):
        return e.write(d, "f32", f"convert_f32_bf16({e.array(sources[0], 'b16')})", i)
    if plain and (result, source) == ("f32", "f16"):
        return e.write(d, "f32", f"canonical(widen('f16', {e.array(sources[0], 'b16')}))", i)
    if plain and (result, source) == ("f64", "f32"):
        return e.write(d, "f64", f"{e.array(sources[0], 'f32')}.astype(f64)", i)
    if plain and (result, source, rounding) == ("f32", "f64", "rn"):
        return e.write(d, "f32", f"{e.array(sources[0], 'f64')}.astype(f32)", i)
    if plain and rounding == "rn" and source == "f32" and result in ("f16", "bf16"):
        return e.write(d, "b16", f"narrow({result!r}, {e.array(sources[0], 'f32')})", i)
    if plain and rounding == "rn" and source == "f32" and result in ("f16x2", "bf16x2") and len(sources) == 2:
        high, low = e.array(sources[0], "f32"), e.array(sources[1], "f32")
        return e.write(d, "b32", f"pack_f32({result[:-2]!r}, {high}, {low})", i)
    values = ", ".join(e.array(o, _BITS.get(source, "b16")) for o in sources)
    value = f"convert({result!r}, {source!r}, ({values},), {rounding!r}, {flags!r})"
    e.write(d, _BITS.get(result, "b16"), value, i)


def _integer_to_float(e: Emitter, i: Instruction, result: str, source: str, rounding: str | None, flags: dict) -> None:
    if rounding not in ("rn", "rz", "rm", "rp"):
        raise e.fail("integer to float needs .rn, .rz, .rm or .rp")
    if flags["relu"] or flags["satfinite"] or result == "tf32":
        raise e.fail("unknown conversion")
    d, a = operands(e, i, 2)
    value = e.array(a, source)
    if result == "f32":
        value = f"integer_to_f32({value}, {rounding!r})"
        return e.write(d, "f32", f"saturate({value})" if flags["sat"] else value, i)
    if rounding != "rn" or flags["sat"]:
        raise e.fail("only .rn is implemented for this conversion")
    if result == "f64":
        return e.write(d, "f64", f"{value}.astype(f64)", i)
    if source.endswith("64"):
        raise e.fail("64-bit integers to 16-bit floats are not implemented")
    e.write(d, "b16", f"narrow({result!r}, {value}.astype(f64))", i)


def _cvt_pack(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    m.flag("pack")
    if i.modifiers[-1] == "b32":
        raise e.fail("cvt.pack to 8 bits and less is not implemented")
    m.type("s32")
    kind = m.type("u16", "s16")
    if not m.flag("sat"):
        raise e.fail("cvt.pack needs .sat")
    m.done()
    d, a, b = operands(e, i, 3)
    high, low = (f"clamp_integer({e.array(o, 's32')}, {NUMPY[kind].__name__}).view(u16).astype(u32)" for o in (a, b))
    e.write(d, "b32", f"{high} << u32(16) | {low}", i)


def mapa(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "u64")
    space = m.take("shared::cluster")
    m.done()
    d, a, b = operands(e, i, 3)
    rank = e.array(b, "u32")
    if space:
        address = e.array(a, kind)
    else:
        address = e.temporary(f"{e.array(a, 'u64')} - {e.constant(SHARED_WINDOW, NUMPY['u64'])}")
    value = f"C.map_rank({address}, {rank})"
    if not space:
        value = f"{value} + {e.constant(SHARED_WINDOW, NUMPY['u64'])}"
    e.write(d, kind, value, i)


def getctarank(e: Emitter, i: Instruction) -> None:
    m = Modifiers(e, i)
    kind = m.type("u32", "u64")
    space = m.take("shared::cluster")
    m.done()
    d, a = operands(e, i, 2)
    value = e.array(a, kind)
    shared = value if space else f"({value} - {e.constant(SHARED_WINDOW, NUMPY['u64'])})"
    e.write(d, "u32", f"({shared} >> {e.constant(RANK_SHIFT, NUMPY[kind])}).astype(u32)", i)
