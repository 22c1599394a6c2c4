"""Basic blocks of an entry point: where they begin and end, and what instructions read and write."""

from __future__ import annotations

from ..checks.faults import UnsupportedInstruction
from ..machine.code import Block
from ..text.instructions import Address, Function, Instruction, Negated, Pair, Reg, Scope, Symbol, Vector

# Opcodes whose first operand is no result.
_NO_RESULT = {
    "st", "red", "bra", "brx", "bar", "barrier", "fence", "membar", "prefetch", "prefetchu", "applypriority", "discard",
    "cp", "stmatrix", "wgmma", "setmaxnreg", "griddepcontrol", "nanosleep", "ret", "exit", "trap", "brkpt", "call",
    "pmevent", "tensormap", "clusterlaunchcontrol", "multimem",
}  # fmt: skip
_CONVERGENT = {
    "shfl", "vote", "match", "redux", "elect", "mma", "ldmatrix", "stmatrix", "wgmma", "setmaxnreg", "movmatrix",
}  # fmt: skip
_TCGEN05_CONVERGENT = {"alloc", "dealloc", "relinquish_alloc_permit", "ld", "st", "wait::ld", "wait::st"}


def result_count(instruction: Instruction) -> int:
    """How many leading operands are results."""
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode == "mbarrier":
        return int(instruction.form in ("arrive", "arrive_drop", "test_wait", "try_wait", "pending_count")) * (
            len(instruction.operands) and not isinstance(instruction.operands[0], Address)
        )
    if opcode == "tcgen05":
        return int(instruction.form == "ld")
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
        return i.form in ("test_wait", "try_wait")
    if opcode == "cp":
        return "wait_group" in modifiers or "wait_all" in modifiers
    if opcode == "wgmma":
        return i.form == "wait_group"
    return opcode == "tcgen05" and i.form == "alloc"


def is_convergent(i: Instruction) -> bool:
    if i.opcode in ("bar", "barrier"):
        return "cluster" not in i.modifiers or "aligned" in i.modifiers
    if i.opcode == "tcgen05":
        return i.form in _TCGEN05_CONVERGENT
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


def symbols_of(function: Function) -> set[str]:
    """Names of the variables, parameters and labels in the operands of instructions."""
    operands = (operand for i in function.instructions for operand in i.operands)
    bases = (operand.base if isinstance(operand, Address) else operand for operand in operands)
    return {base.name for base in bases if isinstance(base, Symbol)}


def blocks_of(function: Function) -> list[Block]:
    """The basic blocks of an entry point, where a convergent instruction begins one."""
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
            block.taken = _target(number, last, _label(last, 0), count)
            if last.guard is None:
                block.following = None
        elif last.opcode == "brx":
            table = last.scope.table(_label(last, 1))
            if table is None:
                raise UnsupportedInstruction(f"PTX line {last.line}: no branch targets {_label(last, 1)}")
            block.targets = tuple(_target(number, last, name, count) for name in table)
            block.following = None if last.guard is None else block.following
        elif last.opcode in ("ret", "exit", "trap") and last.guard is None:
            block.following = None
        blocks.append(block)
    return blocks


def _label(instruction: Instruction, position: int) -> str:
    """The name that an instruction has as this operand."""
    operands = instruction.operands[position : position + 1]
    if not operands or not isinstance(operands[0], Symbol):
        raise UnsupportedInstruction(f"PTX line {instruction.line}: no label: {instruction.text}")
    return operands[0].name


def _target(number: dict[int, int], instruction: Instruction, name: str, count: int) -> int:
    position = instruction.scope.label(name)
    if position is None:
        raise UnsupportedInstruction(f"PTX line {instruction.line}: no label {name}: {instruction.text}")
    return number.get(position, len(number)) if position < count else len(number)
