"""The source of a block: registers, operands and modifiers as the emitters of instructions read and write them.

A block becomes a Python function of (cohort, registers, mask) over lanes [warps, 32], in two versions: for all lanes,
and for the lanes of a mask. Registers are arrays that are never written in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ..checks.faults import IllegalInstruction, UnsupportedInstruction
from ..machine.code import EXIT, Block
from ..text.instructions import (
    WIDTHS,
    Address,
    Function,
    Imm,
    Instruction,
    Negated,
    Reg,
    Sink,
    Special,
    Symbol,
    Vector,
)

NUMPY = {
    "pred": np.bool_, "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "b32": np.uint32, "u32": np.uint32,
    "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64, "f16x2": np.uint32, "bf16x2": np.uint32,
    "f32x2": np.uint64, "b128": np.uint64,
}  # fmt: skip
INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
HALVES = ("f16", "bf16", "f16x2", "bf16x2")


class Kernel:
    """What the blocks of an entry point share: how its registers are kept, and the names that generated code sees."""

    _sites = itertools.count()

    def __init__(self, function: Function, storage: list[type], namespace: dict[str, object]):
        self.function, self.storage, self.namespace = function, storage, namespace
        self.constants: dict[tuple, str] = {}
        # That a wgmma reads while it is in flight.
        self.fragments = frozenset(
            r.index for i in function.instructions if i.opcode == "wgmma" and i.form.startswith("mma_async")
            if isinstance(i.operands[1], Vector) for r in i.operands[1].items if isinstance(r, Reg)
        )  # fmt: skip

    def constant(self, value: int | float, kind: type) -> str:
        """Name of a numpy scalar in the namespace of the generated code."""
        return self.name((repr(value), kind), kind(value))

    def name(self, key: tuple, value: object) -> str:
        """The name of a value that generated code uses."""
        found = self.constants.get(key)
        if found is None:
            found = self.constants[key] = f"k{len(self.constants)}"
            self.namespace[found] = value
        return found

    def site(self) -> int:
        return next(self._sites)


class Emitter:
    """Writes the source of one version of a block."""

    def __init__(self, kernel: Kernel, block: Block, masked: bool):
        self.kernel, self.block, self.is_masked = kernel, block, masked
        self.lines: list[str] = ["def block(C, R, m):"]
        self.origins: list[Instruction | None] = [None]
        self.loaded: set[int] = set()
        self.written: set[int] = set()
        self.cached: dict[tuple[int, str], str] = {}
        self.temporaries = 0
        self.current: Instruction | None = None
        self.finished = False
        self.has_carry = False
        self.reads = True  # lanes may have read shared memory since the last mma

    # Text

    def line(self, text: str) -> None:
        self.lines.append("    " + text)
        self.origins.append(self.current)

    def temporary(self, expression: str) -> str:
        name = f"t{self.temporaries}"
        self.temporaries += 1
        self.line(f"{name} = {expression}")
        return name

    def fail(self, message: str) -> UnsupportedInstruction:
        fault = UnsupportedInstruction(message)
        i = self.current
        fault.kernel, fault.line, fault.text = self.kernel.function.name, i.line, i.text
        return fault

    def constant(self, value: int | float, kind: type) -> str:
        return self.kernel.constant(value, kind)

    # Function

    def function(self, emitters: dict[str, EmitterFunction]) -> str:
        for instruction in self.block.instructions:
            self.current = instruction
            emit = emitters.get(instruction.opcode)
            if emit is None:
                raise self.fail(f"unknown opcode {instruction.name}")
            try:
                emit(self, instruction)
            except IllegalInstruction as error:
                raise self.fail(str(error)) from None
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # one too many, say
                raise self.fail(f"operands that {instruction.name} does not take ({error})") from error
        if not self.finished:
            self.leave(str(self.block.following) if self.block.following is not None else f"({EXIT!r}, m)")
        return "\n".join(self.lines) + "\n"

    def leave(self, result: str) -> None:
        """Stores the registers that later blocks need, and returns."""
        for index in sorted(self.written & self.block.live_out):
            if self.is_masked:
                mask = "m[..., None]" if self.kernel.function.registers[index] == "b128" else "m"
                self.line(f"R[{index}] = where({mask}, v{index}, R[{index}])")
            else:
                self.line(f"R[{index}] = v{index}")
        self.line(f"return {result}")
        self.finished = True

    def mask(self, i: Instruction) -> str:
        """Expression for the lanes that execute an instruction; "None" for all."""
        if i.guard is None:
            return "m" if self.is_masked else "None"
        return self.guarded(i.guard)

    def guarded(self, guard: tuple[Reg, bool]) -> str:
        """Name of the lanes that a guard leaves of those that execute the block."""
        register, negated = guard
        value = self.register(register)
        if negated:
            value = self.cached.get((register.index, "not")) or self._cache((register.index, "not"), f"~{value}")
        return self.temporary(f"m & {value}") if self.is_masked else value

    # Registers

    def register(self, r: Reg) -> str:
        name = f"v{r.index}"
        if r.index not in self.loaded:
            self.line(f"{name} = R[{r.index}]")
            self.loaded.add(r.index)
        return name

    def _cache(self, key: tuple[int, str], expression: str) -> str:
        name = self.cached[key] = self.temporary(expression)
        return name

    def read(self, operand: object, kind: str) -> str:
        """Name of an operand's value as an array (or scalar, for constants) of the numpy type of `kind`."""
        match operand:
            case Reg():
                return self._read_register(operand, kind)
            case Imm():
                return self._read_constant(operand, kind)
            case Special(name=name):
                value = self.temporary(f"C.special({name!r})")
                if name in ("clock64", "globaltimer", "gridid", "current_graph_exec"):
                    return value if WIDTHS[kind] == 8 else self.temporary(f"{value}.astype(u{8 * WIDTHS[kind]})")
                if WIDTHS[kind] != 4:
                    return self.temporary(f"{value}.astype({NUMPY[kind].__name__})")
                return value if NUMPY[kind] is np.uint32 else self.temporary(f"{value}.view({NUMPY[kind].__name__})")
            case Symbol(name=name, offset=offset):
                return self.temporary(f"C.symbol({name!r}, {offset}, {WIDTHS[kind]})")
            case Negated(register=register):
                return self.temporary(f"~{self.register(register)}")
            case Vector(items=items):
                return self.pack(items, kind)
        raise self.fail(f"operand {operand} where a value of type .{kind} is expected")

    def _read_register(self, r: Reg, kind: str) -> str:
        name = self.register(r)
        wanted = NUMPY[kind]
        held = self.kernel.storage[r.index]
        if held is wanted and (kind == "b128") == (r.type == "b128"):
            return name
        have, want = WIDTHS[r.type], WIDTHS[kind]
        key = (r.index, wanted.__name__)
        if key in self.cached:
            return self.cached[key]
        if have == want and kind != "pred":
            return self._cache(key, f"{name}.view({wanted.__name__})")
        if have > want > 0 and have <= 8:
            if held in (np.float32, np.float64):
                name = self._cache((r.index, f"uint{8 * have}"), f"{name}.view(u{8 * have})")
            narrow = f"{name}.astype(u{8 * want})"
            if np.dtype(wanted).kind != "u":
                narrow += f".view({wanted.__name__})"
            return self._cache(key, narrow)
        raise self.fail(f"register of type .{r.type} where .{kind} is expected")

    def _read_constant(self, operand: Imm, kind: str) -> str:
        wanted = NUMPY[kind]
        if kind == "pred":
            return self.constant(bool(operand.value), np.bool_)
        value = operand.value
        if operand.kind == "f64" and kind in ("f32", "b32"):
            value = int(np.float32(np.uint64(value).view(np.float64)).view(np.uint32))
        elif operand.kind == "f32" and kind == "f64":
            value = int(np.float64(np.uint32(value).view(np.float32)).view(np.uint64))
        elif operand.kind == "int" and kind in ("f32", "f64"):
            return self.constant(float(value), wanted)
        width = WIDTHS[kind]
        bits = np.dtype(f"u{width}").type(value & ((1 << 8 * width) - 1))
        return self.constant(bits.view(wanted).item(), wanted) if kind != "f32" else self._float_constant(bits)

    def _float_constant(self, bits: np.uint32) -> str:
        return self.kernel.name(("bits", int(bits)), bits.view(np.float32))

    def array(self, operand: object, kind: str) -> str:
        """Like `read`, but always an array over the lanes."""
        value = self.read(operand, kind)
        if isinstance(operand, Imm):
            return self.temporary(f"C.full({value})")
        return value

    def pack(self, items: tuple, kind: str) -> str:
        width = WIDTHS[kind]
        each = width // len(items)
        if width == 16:
            if len(items) == 2:
                words = [self.array(item, "b64") for item in items]
            else:
                words = [self.pack(items[:2], "b64"), self.pack(items[2:], "b64")]
            return self.temporary(f"np.stack([{words[0]}, {words[1]}], -1)")
        parts = []
        for position, item in enumerate(items):
            if isinstance(item, Sink):
                raise self.fail("_ as a source")
            value = f"{self.array(item, f'b{8 * each}')}.astype(u{8 * width})"
            if position:
                value = f"({value} << {self.constant(8 * each * position, np.dtype(f'u{width}').type)})"
            parts.append(value)
        value = self.temporary(" | ".join(parts))
        wanted = NUMPY[kind]
        return value if np.dtype(wanted).kind == "u" else self.temporary(f"{value}.view({wanted.__name__})")

    def write(self, operand: object, kind: str, value: str, i: Instruction, scalar: bool = False) -> None:
        """Assigns a value of the numpy type of `kind` to a result, for the lanes that the guard leaves."""
        match operand:
            case Sink():
                return
            case Vector(items=items):
                self.unpack(items, kind, value, i)
                return
            case Reg():
                pass
            case _:
                raise self.fail(f"{operand} as a result")
        if scalar:
            value = f"C.full({value})"
        have, want = WIDTHS[operand.type], WIDTHS[kind]
        held = self.kernel.storage[operand.index]
        given = NUMPY[kind]
        if (kind == "pred") != (operand.type == "pred") or have < want:
            raise self.fail(f"result of type .{kind} in a register of type .{operand.type}")
        if have > want:
            if have > 8:
                raise self.fail(f"result of type .{kind} in a register of type .{operand.type}")
            sign = "s" if np.dtype(given).kind == "i" else "u"
            if np.dtype(given).kind == "f":
                value = f"({value}).view(u{8 * want})"
            value = f"({value}).astype({sign}{8 * have})"
            given = np.dtype(f"{'i' if sign == 's' else 'u'}{have}").type
        if given is not held:
            value = f"({value}).view({held.__name__})"
        name = f"v{operand.index}"
        if i.guard is not None:
            old = self.register(operand)
            lanes = self.guarded(i.guard)
            if operand.type == "b128":
                lanes += "[..., None]"
            value = f"where({lanes}, {value}, {old})"
        self.line(f"{name} = {value}")
        if operand.index in self.kernel.fragments:
            self.line(f"C.overwrite_fragment({operand.index}, {self.mask(i)})")
        self.loaded.add(operand.index)
        self.written.add(operand.index)
        for key in [key for key in self.cached if key[0] == operand.index]:
            del self.cached[key]

    def unpack(self, items: tuple, kind: str, value: str, i: Instruction) -> None:
        width = WIDTHS[kind]
        each = width // len(items)
        value = self.temporary(value)
        if width == 16:
            for half in range(2):
                part = items[half * len(items) // 2 : (half + 1) * len(items) // 2]
                word = f"{value}[..., {half}]"
                if len(part) == 1:
                    self.write(part[0], "b64", word, i)
                else:
                    self.unpack(part, "b64", word, i)
            return
        if np.dtype(NUMPY[kind]).kind != "u":
            value = self.temporary(f"{value}.view(u{8 * width})")
        for position, item in enumerate(items):
            shift = self.constant(8 * each * position, np.dtype(f"u{width}").type)
            part = f"({value} >> {shift})" if position else value
            self.write(item, f"b{8 * each}", f"{part}.astype(u{8 * each})", i)

    def address(self, operand: Address, kind: str) -> str:
        """Array of addresses of type u32 or u64."""
        if not isinstance(operand, Address):
            raise self.fail(f"{operand} where an address is expected")
        base = operand.base
        if isinstance(base, Reg):
            if WIDTHS[base.type] < WIDTHS[kind]:
                value = self.temporary(f"{self._read_register(base, 'u32')}.astype(u64)")
            else:
                value = self._read_register(base, kind)
            if operand.offset:
                bits = 8 * WIDTHS[kind]
                offset = self.constant(operand.offset & ((1 << bits) - 1), np.uint64 if bits == 64 else np.uint32)
                return self.temporary(f"{value} + {offset}")
            return value
        if isinstance(base, Imm):
            return self.temporary(f"C.full({self.constant(base.value + operand.offset, NUMPY[kind])})")
        return self.read(base, kind)


class Modifiers:
    """The modifiers of an instruction, taken one by one; what nobody took is unknown."""

    def __init__(self, emitter: Emitter, i: Instruction):
        self.emitter, self.rest = emitter, list(i.modifiers)

    def flag(self, *names: str) -> bool:
        return self.take(*names) is not None

    def take(self, *names: str) -> str | None:
        for position, name in enumerate(self.rest):
            if name in names:
                return self.rest.pop(position)
        return None

    def type(self, *allowed: str) -> str:
        """The last modifier, a type."""
        if not self.rest or self.rest[-1] not in allowed:
            raise self.emitter.fail(f"type .{self.rest[-1] if self.rest else '?'} is not one of {', '.join(allowed)}")
        return self.rest.pop()

    def done(self) -> None:
        if self.rest:
            raise self.emitter.fail(f"unknown modifier .{'.'.join(self.rest)}")


EmitterFunction: TypeAlias = Callable[[Emitter, Instruction], None]


def rule(types: tuple[str, ...], form: str, *kinds: str, result: str = "") -> EmitterFunction:
    """The emitter of an instruction without modifiers but its type, whose sources go into an expression.

    `kinds` are the types of the sources, `result` that of the result; "" is the type of the instruction.
    """

    def emit(e: Emitter, i: Instruction) -> None:
        m = Modifiers(e, i)
        kind = m.type(*types)
        m.done()
        d, *sources = operands(e, i, 1 + len(kinds))
        values = arrays(e, sources, [k or kind for k in kinds])
        e.write(d, result or kind, form.format(*values), i)

    return emit


def operands(e: Emitter, i: Instruction, count: int) -> tuple:
    if len(i.operands) != count:
        raise e.fail(f"{len(i.operands)} operands, expected {count}")
    return i.operands


def arrays(e: Emitter, sources: Sequence[object], kinds: Sequence[str]) -> list[str]:
    """Sources as names; an array among them even if all are constants."""
    constant = all(isinstance(o, Imm) for o in sources)
    return [
        e.array(o, kind) if constant and not n else e.read(o, kind)
        for n, (o, kind) in enumerate(zip(sources, kinds, strict=True))
    ]


def pairs(e: Emitter, operand: object, kind: str) -> str:
    """A packed pair as an array [warps, 32, 2] of the elements' type."""
    if kind == "f32x2":
        return e.temporary(f"np.ascontiguousarray({e.array(operand, 'b64')})[..., None].view(f32)")
    return e.temporary(f"halves({e.array(operand, 'b32')}, u16)")


def flushed(e: Emitter, name: str, ftz: bool) -> str:
    return e.temporary(f"flush({name})") if ftz else name


def shared_address(e: Emitter, operand: Address, space: str = "shared") -> str:
    if space == "generic":
        return e.temporary(f"C.to_shared({e.address(operand, 'u64')}, {e.mask(e.current)})")
    return e.address(operand, "u32")


def list_of(e: Emitter, operand: object, kind: str = "b32") -> str:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    return "[" + ", ".join(e.array(item, kind) for item in items) + "]"


def require_whole_warps(e: Emitter, i: Instruction) -> None:
    if i.guard is not None:
        e.line(f"C.converged({e.mask(i)})")
    elif e.is_masked:
        e.line("C.converged(m)")
