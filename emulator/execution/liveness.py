"""Registers of an entry point: which of them each block needs, and as what numpy type each is kept."""

from __future__ import annotations

from functools import cache
from itertools import compress

import numpy as np

from ..machine.code import Block
from ..text.instructions import WIDTHS, Function
from .blocks import registers_of, result_count

_FLOAT_OPCODES = {
    "add", "sub", "mul", "fma", "mad", "div", "max", "min", "neg", "abs", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "setp",
    "cvt", "tanh", "sin", "cos",
}  # fmt: skip


def solve(function: Function, blocks: list[Block]) -> None:
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
    numbers, size = list(range(len(function.registers))), -(-len(function.registers) // 8)

    @cache  # blocks share sets, and all sets the numbers in them: of a long kernel they are most of what is kept
    def members(bits: int) -> frozenset[int]:
        octets = np.frombuffer(bits.to_bytes(size, "little"), np.uint8)
        return frozenset(compress(numbers, np.unpackbits(octets, bitorder="little").tobytes()))

    for index, block in enumerate(blocks):
        block.live_in, block.live_out = members(live_in[index]), members(live_out[index])


def storage(function: Function) -> list[type]:
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
