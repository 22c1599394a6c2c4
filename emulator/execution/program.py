"""Generated numpy source for basic blocks: control flow, liveness, register access.

A block becomes a Python function of (cohort, registers, mask) over lanes [warps, 32], in two versions: for all
lanes, and for the lanes of a mask. It returns what comes next: a block number, a boolean array (lanes that take the
branch), or a tuple (handler, mask, operands ...) for an instruction that may block. Registers are arrays that are
never written in place. The instructions themselves are in `arithmetic`, `memory` and `control`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from emulator.checks.faults import IllegalInstruction, UnsupportedInstruction
from emulator.machine.code import Block
from emulator.numbers import floats, integers, types
from emulator.text.instructions import (
    WIDTHS,
    Address,
    Function,
    Imm,
    Instruction,
    Negated,
    Pair,
    Reg,
    Scope,
    Sink,
    Special,
    Symbol,
    Vector,
)

# Opcodes whose first operand is no result.
_NO_RESULT = {
    "st", "red", "bra", "brx", "bar", "barrier", "fence", "membar", "prefetch", "prefetchu", "applypriority", "discard",
    "cp", "stmatrix", "wgmma", "setmaxnreg", "griddepcontrol", "nanosleep", "ret", "exit", "trap", "brkpt", "call",
    "pmevent", "tensormap", "clusterlaunchcontrol", "multimem",
}  # fmt: skip
_CONVERGENT = {
    "shfl",
    "vote",
    "match",
    "redux",
    "elect",
    "mma",
    "ldmatrix",
    "stmatrix",
    "wgmma",
    "setmaxnreg",
    "movmatrix",
}
_TCGEN05_CONVERGENT = {"alloc", "dealloc", "relinquish_alloc_permit", "ld", "st", "wait::ld", "wait::st"}

NUMPY = {
    "pred": np.bool_, "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "b32": np.uint32, "u32": np.uint32,
    "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64, "f16x2": np.uint32, "bf16x2": np.uint32,
    "f32x2": np.uint64, "b128": np.uint64,
}  # fmt: skip
_FLOAT_OPCODES = {
    "add", "sub", "mul", "fma", "mad", "div", "max", "min", "neg", "abs", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "setp",
    "cvt", "tanh", "sin", "cos",
}  # fmt: skip


def result_count(instruction: Instruction) -> int:
    """How many leading operands are results."""
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode == "mbarrier":
        return int(modifiers[0] in ("arrive", "arrive_drop", "test_wait", "try_wait", "pending_count")) * (
            len(instruction.operands) and not isinstance(instruction.operands[0], Address)
        )
    if opcode == "tcgen05":
        return int(modifiers[0] == "ld")
    if opcode in ("bar", "barrier"):
        return int("red" in modifiers)
    if opcode == "clusterlaunchcontrol":
        return int("query_cancel" in modifiers)
    return int(opcode not in _NO_RESULT)


def is_terminator(i: Instruction) -> bool:
    opcode, modifiers = i.opcode, i.modifiers
    if opcode in ("bra", "brx", "ret", "exit", "trap", "brkpt", "call", "nanosleep"):
        return True
    if opcode in ("bar", "barrier"):
        return modifiers[:2] not in (("warp", "sync"),)
    if opcode == "mbarrier":
        return modifiers[0] in ("test_wait", "try_wait")
    if opcode == "cp":
        return "wait_group" in modifiers or "wait_all" in modifiers
    if opcode == "wgmma":
        return modifiers[0] == "wait_group"
    return opcode == "tcgen05" and modifiers[0] == "alloc"


def is_convergent(i: Instruction) -> bool:
    if i.opcode in ("bar", "barrier"):
        return "cluster" not in i.modifiers or "aligned" in i.modifiers
    if i.opcode == "tcgen05":
        return i.modifiers[0] in _TCGEN05_CONVERGENT
    return i.opcode in _CONVERGENT or "aligned" in i.modifiers


def registers_of(operand: object) -> list[Reg]:
    match operand:
        case Reg():
            return [operand]
        case Vector(items=items):
            return [r for item in items for r in registers_of(item)]
        case Address(base=base, coordinates=coordinates):
            return registers_of(base) + [r for item in coordinates for r in registers_of(item)]
        case Pair(first=first, second=second):
            return registers_of(first) + registers_of(second)
        case Negated(register=register):
            return [register]
    return []


def _symbols(operands: tuple) -> list[Symbol]:
    found = []
    for operand in operands:
        if isinstance(operand, Address):
            operand = operand.base
        if isinstance(operand, Symbol):
            found.append(operand)
    return found


class Program:
    """The blocks of one entry point, and the functions generated of them on first use."""

    _sites = itertools.count()

    def __init__(self, function: Function, files: dict[int, str]):
        self.function, self.files = function, files
        self.blocks = _blocks(function)
        _liveness(function, self.blocks)
        self.storage = _storage(function)
        self.constants: dict[tuple, str] = {}
        self.namespace: dict[str, object] = vars(types) | vars(integers) | vars(floats) | {
            kind.__name__: kind for kind in NUMPY.values()
        }
        self.fences_tensor_memory = any(
            i.opcode == "tcgen05" and i.modifiers[0].startswith("fence") for i in function.instructions
        )
        self.symbols = {o.name for i in function.instructions for o in _symbols(i.operands)}

    def compile(self, block: Block, masked: bool) -> Callable:
        emitter = Emitter(self, block, masked)
        source = emitter.function()
        name = f"<ptx {self.function.name} block {block.index}{' masked' if masked else ''}>"
        scope: dict[str, object] = {}
        exec(compile(source, name, "exec"), self.namespace, scope)  # noqa: S102
        code = self.made(block, scope["block"])
        block.lines[masked] = emitter.origins
        if masked:
            block.masked = code
        else:
            block.full = code
        return code

    def made(self, block: Block, code: Callable) -> Callable:
        """What runs for the block, of the code that was generated."""
        return code

    def instruction_at(self, name: str, line: int) -> Instruction | None:
        """The instruction that line `line` of a generated function was made of."""
        prefix = f"<ptx {self.function.name} block "
        if not name.startswith(prefix):
            return None
        index, _, masked = name[len(prefix) : -1].partition(" ")
        return self.blocks[int(index)].lines[bool(masked)][line - 1]

    def constant(self, value: int | float, kind: type) -> str:
        """Name of a numpy scalar in the namespace of the generated code."""
        key = (repr(value), kind)
        name = self.constants.get(key)
        if name is None:
            name = self.constants[key] = f"k{len(self.constants)}"
            self.namespace[name] = kind(value)
        return name

    def site(self) -> int:
        return next(self._sites)


def _blocks(function: Function) -> list[Block]:
    instructions = function.instructions
    count = len(instructions)
    starts = {0}
    scopes: set[Scope] = set()
    for instruction in instructions:
        scope: Scope | None = instruction.scope
        while scope is not None and scope not in scopes:
            scopes.add(scope)
            starts.update(scope.labels.values())
            scope = scope.parent
    seen = False
    for position, instruction in enumerate(instructions):
        seen = seen and position not in starts
        if is_convergent(instruction) and not seen:
            starts.add(position)
            seen = True
        if is_terminator(instruction):
            starts.add(position + 1)
            seen = False
    order = sorted(s for s in starts if s < count)
    number = {start: index for index, start in enumerate(order)}
    blocks = []
    for index, start in enumerate(order):
        end = order[index + 1] if index + 1 < len(order) else count
        body = instructions[start:end]
        block = Block(index, body, following=index + 1 if end < count else None)
        block.convergent = is_convergent(body[0])
        block.warpgroup = body[0].opcode == "wgmma"
        last = body[-1]
        if last.opcode == "bra":
            block.taken = _target(number, last, last.operands[0].name, count)
            if last.guard is None:
                block.following = None
        elif last.opcode == "brx":
            table = last.scope.table(last.operands[1].name)
            if table is None:
                raise UnsupportedInstruction(f"PTX line {last.line}: no branch targets {last.operands[1].name}")
            block.targets = tuple(_target(number, last, name, count) for name in table)
            block.following = None if last.guard is None else block.following
        elif last.opcode in ("ret", "exit", "trap") and last.guard is None:
            block.following = None
        blocks.append(block)
    return blocks


def _target(number: dict[int, int], instruction: Instruction, name: str, count: int) -> int:
    position = instruction.scope.label(name)
    if position is None:
        raise UnsupportedInstruction(f"PTX line {instruction.line}: no label {name}: {instruction.text}")
    return number.get(position, len(number)) if position < count else len(number)


def _liveness(function: Function, blocks: list[Block]) -> None:
    """Which registers each block needs from before, as bit sets solved backwards to a fixed point."""
    uses, kills = [], []
    for block in blocks:
        use = kill = 0
        for i in block.instructions:
            results = result_count(i)
            read = [r for operand in i.operands[results:] for r in registers_of(operand)]
            if i.guard is not None:
                read.append(i.guard[0])
            written = [r for operand in i.operands[:results] for r in registers_of(operand)]
            for r in read:
                use |= (1 << r.index) & ~kill
            for r in written:
                if i.guard is not None:
                    use |= (1 << r.index) & ~kill
                else:
                    kill |= 1 << r.index
        uses.append(use)
        kills.append(kill)
    live_in = [0] * (len(blocks) + 1)
    live_out = [0] * len(blocks)
    changed = True
    while changed:
        changed = False
        for index in range(len(blocks) - 1, -1, -1):
            block = blocks[index]
            out = 0
            for successor in (block.following, block.taken, *block.targets):
                if successor is not None:
                    out |= live_in[successor]
            into = uses[index] | (out & ~kills[index])
            if into != live_in[index] or out != live_out[index]:
                live_in[index], live_out[index] = into, out
                changed = True
    for index, block in enumerate(blocks):
        block.live_in, block.live_out = _members(live_in[index]), _members(live_out[index])


def _members(bits: int) -> frozenset[int]:
    text = bin(bits)[:1:-1]
    return frozenset(position for position, digit in enumerate(text) if digit == "1")


def _storage(function: Function) -> list[type]:
    """numpy type that each register is kept in: 32 and 64 bits that mostly hold floats are kept as floats."""
    votes = [0] * len(function.registers)
    for i in function.instructions:
        if i.opcode in ("mov", "ld", "st", "selp"):
            continue
        kind = i.modifiers[-1] if i.modifiers else ""
        weight = 1 if i.opcode in _FLOAT_OPCODES and kind in ("f32", "f64") else -1
        if i.opcode == "cvt" and i.operands:
            weights = [1 if m in ("f32", "f64") else -1 for m in i.modifiers[-2:]]
            for operand, one in zip(i.operands, weights + weights[-1:] * 2, strict=False):
                for r in registers_of(operand):
                    votes[r.index] += one
            continue
        for operand in i.operands:
            for r in registers_of(operand):
                votes[r.index] += weight
    storage = []
    for kind, vote in zip(function.registers, votes, strict=True):
        width = WIDTHS[kind]
        if kind in ("f32", "f64") or (kind in ("b32", "b64") and vote > 0):
            storage.append(np.float32 if width == 4 else np.float64)
        else:
            storage.append({0: np.bool_, 1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}[width])
    return storage


class Emitter:
    """Writes the source of one version of a block."""

    def __init__(self, program: Program, block: Block, masked: bool):
        self.program, self.block, self.is_masked = program, block, masked
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
        fault.kernel, fault.line, fault.text = self.program.function.name, i.line, i.text
        return fault

    def constant(self, value: int | float, kind: type) -> str:
        return self.program.constant(value, kind)

    # Function

    def function(self) -> str:
        from emulator.execution import arithmetic as codegen_alu
        from emulator.execution import control as codegen_sync
        from emulator.execution import memory as codegen_memory

        emitters = codegen_alu.EMITTERS | codegen_memory.EMITTERS | codegen_sync.EMITTERS
        for instruction in self.block.instructions:
            self.current = instruction
            emit = emitters.get(instruction.opcode)
            if emit is None:
                raise self.fail(f"unknown opcode {instruction.name}")
            try:
                emit(self, instruction)
            except IllegalInstruction as error:
                raise self.fail(str(error)) from None
            except (ValueError, AttributeError, IndexError) as error:  # such as one operand too many to unpack
                raise self.fail(f"operands that {instruction.name} does not take ({error})") from error
        if not self.finished:
            self.leave(str(self.block.following) if self.block.following is not None else "('exit', m)")
        return "\n".join(self.lines) + "\n"

    def leave(self, result: str) -> None:
        """Stores the registers that later blocks need, and returns."""
        for index in sorted(self.written & self.block.live_out):
            if self.is_masked:
                mask = "m[..., None]" if self.program.function.registers[index] == "b128" else "m"
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
        held = self.program.storage[r.index]
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
        key = ("bits", int(bits))
        name = self.program.constants.get(key)
        if name is None:
            name = self.program.constants[key] = f"k{len(self.program.constants)}"
            self.program.namespace[name] = bits.view(np.float32)
        return name

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
        held = self.program.storage[operand.index]
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
