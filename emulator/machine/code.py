"""What the machine runs: blocks of instructions, and what it asks of the program that makes code of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..text.instructions import Function, Instruction

EXIT, SWITCH = "exit", "switch"


@dataclass(eq=False)
class Block:
    """Instructions that run together. `taken` and `following` are block numbers; `live_in` register numbers.

    `full` and `masked` are its code, for all lanes and for the lanes of a mask: a function of (cohort, registers, mask)
    that returns what comes next. That is a block number, a boolean array (lanes that take the branch), or a tuple of an
    action, the lanes that it is for (None: all) and its operands. The action is EXIT, SWITCH, or a method of the cohort
    that gives a wait, or None to go on.
    """

    index: int
    instructions: list[Instruction]
    following: int | None = None
    taken: int | None = None
    targets: tuple[int, ...] = ()
    live_in: frozenset[int] = frozenset()
    live_out: frozenset[int] = frozenset()
    full: Callable | None = None
    masked: Callable | None = None
    convergent: bool = False
    warpgroup: bool = False
    lines: dict[bool, list[Instruction | None]] = field(default_factory=dict)


class Program(Protocol):
    """The blocks of one entry point.

    `storage` has the numpy type of every register, `symbols` the names that instructions use, `files` the CUDA sources.
    """

    function: Function
    files: dict[int, str]
    blocks: list[Block]
    storage: list[type]
    symbols: set[str]
    fences_tensor_memory: bool

    def compile(self, block: Block, masked: bool) -> Callable:
        """Makes the code of a block."""

    def instruction_at(self, name: str, line: int) -> Instruction | None:
        """The instruction that line `line` of generated code was made of; `name` is that of its code object."""
