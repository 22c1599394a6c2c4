"""Static profile of a cubin: how many instructions of which kind, and what the main loop is made of.

nvdisasm gives the text; loops are the natural loops of its control flow graph (back edges whose target dominates their
source). Blocks that the compiler placed outside the address range of a loop are its slow paths, such as the retry of a
barrier wait, and are not counted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from generator import images
from generator.errors import ToolchainError
from generator.toolchain import find_disassembler

# Matrix instructions by generation: warp (OMMA is block-scaled FP4), warpgroup, and tensor memory (UTC..).
TENSOR_OPCODES = frozenset({
    "HMMA", "QMMA", "OMMA", "IMMA", "DMMA", "HGMMA", "QGMMA", "IGMMA", "BGMMA",
    "UTCHMMA", "UTCQMMA", "UTCOMMA", "UTCIMMA",
})  # fmt: skip
MEMORY_OPCODES = ("LDSM", "LDS", "STS", "LDL", "STL", "LDG", "STG", "UTMALDG", "UTCCP", "LDTM", "STTM")
_NO_FALL_THROUGH = frozenset({"BRA", "BRX", "JMP", "JMX", "EXIT", "RET"})

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
_LABEL = re.compile(r"^([.$\w]+):\s*$")
_TARGET = re.compile(r"`\(([^)]+)\)")
_SECTION = re.compile(r"^//-+ \.text\.\d+ +-+$", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """One line of SASS. ``opcode`` is the mnemonic up to its first dot; ``targets`` are labels that it may jump to."""

    address: int
    opcode: str
    targets: tuple[str, ...]
    ends_block: bool
    falls_through: bool


@dataclass(frozen=True)
class Mix:
    """Instructions by opcode, of a kernel or of a loop."""

    counts: Counter[str]

    @property
    def instructions(self) -> int:
        return self.counts.total()

    @property
    def tensor(self) -> int:
        """Matrix instructions of any kind."""
        return sum(count for opcode, count in self.counts.items() if opcode in TENSOR_OPCODES)

    @property
    def per_tensor(self) -> float | None:
        """Instructions per matrix instruction; ``None`` where there is none."""
        return self.instructions / self.tensor if self.tensor else None


@dataclass(frozen=True)
class Loop(Mix):
    """A loop; addresses in bytes, the last one included."""

    first: int
    last: int


@dataclass(frozen=True)
class Profile(Mix):
    """A whole kernel. ``loops`` are the innermost ones that hold matrix instructions, that with most of them first;
    ``others`` are innermost loops without any, the longest first; ``around`` is what the loop over tiles has beside
    ``loops``, nothing where there is no such loop."""

    symbol: str
    loops: tuple[Loop, ...]
    others: tuple[Loop, ...] = ()
    around: Mix = Mix(Counter())

    @cached_property
    def main_loop(self) -> Loop | None:
        return self.loops[0] if self.loops else None


def profile(cubin: Path, disassembler: Path | None = None) -> Profile:
    """Profile of the one kernel in a cubin; ``ToolchainError`` where nvdisasm is missing or refuses the file."""
    return parse(disassemble(cubin, disassembler))


def disassemble(cubin: Path, disassembler: Path | None = None) -> str:
    """nvdisasm's text of the one kernel in a cubin; errors as of ``profile``. Its analysis of the branch stack, which
    these GPUs have not, would take a third of the time."""
    command = [disassembler or find_disassembler(), "-c", "-ndf", cubin]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolchainError(f"nvdisasm refuses {cubin}: {done.stderr.strip()}")
    return done.stdout


def disassemble_all(cubins: Sequence[Path]) -> list[str]:
    """The same, as far as ``parse`` reads it, of cubins of one arch, at least one: by one process, which takes eight
    times as long to start as for a kernel."""
    contents = [cubin.read_bytes() for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(images.code_of(contents))
        file.flush()
        _, *parts = _SECTION.split(disassemble(Path(file.name)))
    return [f".text.{images.symbol_of(content)}:\n{part}" for content, part in zip(contents, parts, strict=True)]


def parse(text: str) -> Profile:
    """Profile of nvdisasm's text of one kernel."""
    section = re.search(r"^\.text\.([\w$]+):$", text, re.MULTILINE)
    if section is None:
        raise ToolchainError("nvdisasm showed no code section")
    instructions, labels = _read(text[section.end():].splitlines())
    # The compiler pads the end of a kernel with a branch to itself and NOPs.
    counts = Counter(instruction.opcode for instruction in instructions if instruction.opcode != "NOP")
    found = list(_loops(instructions, labels))
    loops = sorted(_innermost(found, tensor=True), key=lambda loop: (-loop.tensor, loop.first))
    others = sorted(_innermost(found, tensor=False), key=lambda loop: (-loop.instructions, loop.first))
    return Profile(counts, section[1], tuple(loops), tuple(others), _around(loops, [loop for _, loop in found]))


def _read(lines: Iterable[str]) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions in address order, and label -> index of the instruction that follows it."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in lines:
        if label := _LABEL.match(line):
            if label[1].startswith(".text."):
                raise ToolchainError(f"expected one kernel, nvdisasm also shows {label[1]}")
            labels[label[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            instructions.append(_instruction(match))
    return instructions, labels


def _instruction(match: re.Match[str]) -> Instruction:
    address, predicate, mnemonic, operands = match.groups()
    opcode = mnemonic.partition(".")[0]
    jumps = opcode in _NO_FALL_THROUGH
    targets = []
    if jumps:
        targets = _TARGET.findall(operands)
        if listed := re.search(r"BRANCH_TARGETS\s+([^\"]+)\"", operands):
            targets += listed[1].split(",")
    # A uniform branch carries its predicate as an operand: `BRA.U UP0, target`.
    conditional = predicate is not None or (opcode == "BRA" and "," in operands)
    return Instruction(int(address, 16), opcode, tuple(targets), jumps, conditional or not jumps)


def _blocks(instructions: list[Instruction], labels: dict[str, int]) -> tuple[list[range], list[list[int]]]:
    """Basic blocks as ranges of instruction indices, and the successors of each block."""
    starts = {0, *labels.values(), *(i + 1 for i, instruction in enumerate(instructions) if instruction.ends_block)}
    bounds = [*sorted(start for start in starts if start < len(instructions)), len(instructions)]
    blocks = [range(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]
    index = {block.start: number for number, block in enumerate(blocks)}
    successors = []
    for number, block in enumerate(blocks):
        last = instructions[block[-1]]
        following = [index[labels[target]] for target in last.targets if labels.get(target) in index]
        if last.falls_through and number + 1 < len(blocks):
            following.append(number + 1)
        successors.append(following)
    return blocks, successors


def _dominators(predecessors: list[list[int]]) -> list[set[int]]:
    """Blocks that every path from block 0 to each block passes; for an unreachable block, all of them."""
    everything = set(range(len(predecessors)))
    dominators = [{0}, *(set(everything) for _ in predecessors[1:])]
    changed = True
    while changed:
        changed = False
        for block in range(1, len(predecessors)):
            reached = [dominators[predecessor] for predecessor in predecessors[block]]
            new = {block} | (set.intersection(*reached) if reached else everything)
            if new != dominators[block]:
                dominators[block], changed = new, True
    return dominators


def _reachable(successors: list[list[int]]) -> set[int]:
    seen, pending = set(), [0]
    while pending:
        block = pending.pop()
        if block not in seen:
            seen.add(block)
            pending += successors[block]
    return seen


def _natural_loops(successors: list[list[int]]) -> Iterator[tuple[int, int, set[int]]]:
    """Header, last latch and body of every loop."""
    predecessors: list[list[int]] = [[] for _ in successors]
    for block, following in enumerate(successors):
        for successor in following:
            predecessors[successor].append(block)
    dominators, reachable = _dominators(predecessors), _reachable(successors)
    latches: dict[int, list[int]] = {}
    for block in sorted(reachable):
        for successor in successors[block]:
            if successor in dominators[block] and successor <= block:
                latches.setdefault(successor, []).append(block)
    for header, sources in latches.items():
        body, pending = {header}, list(sources)
        while pending:
            block = pending.pop()
            if block not in body:
                body.add(block)
                pending += predecessors[block]
        yield header, max(sources), body


def _loops(instructions: list[Instruction], labels: dict[str, int]) -> Iterator[tuple[set[int], Loop]]:
    """Body, in blocks, and mix of every loop."""
    if not instructions:
        return
    blocks, successors = _blocks(instructions, labels)
    for header, latch, body in _natural_loops(successors):
        inside = [index for block in sorted(body) if header <= block <= latch for index in blocks[block]]
        counts = Counter(instructions[index].opcode for index in inside)
        yield body, Loop(counts, instructions[inside[0]].address, instructions[inside[-1]].address)


def _innermost(found: list[tuple[set[int], Loop]], tensor: bool) -> list[Loop]:
    """The loops that hold matrix instructions, or that hold none, without those around another one of them."""
    alike = [(body, loop) for body, loop in found if bool(loop.tensor) == tensor]
    return [loop for body, loop in alike if not any(other < body for other, _ in alike)]


def _around(loops: list[Loop], found: list[Loop]) -> Mix:
    """The shortest loop around all of ``loops``, less these."""
    if not loops:
        return Mix(Counter())
    first, last = min(loop.first for loop in loops), max(loop.last for loop in loops)
    wider = [loop for loop in found if loop not in loops and loop.first <= first and last <= loop.last]
    if not wider:
        return Mix(Counter())
    counts = Counter(min(wider, key=lambda loop: loop.instructions).counts)
    for loop in loops:
        counts.subtract(loop.counts)
    return Mix(+counts)
