"""Every opcode with its modifiers that five CUTLASS kernels and seventeen Triton kernels for Hopper and Blackwell
use is known.

`opcodes.txt` holds one instruction of each. Code is generated of it, for whole and for partial warps;
nothing is executed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ptx import module

from emulator.execution.program import Program
from emulator.text.parse import parse

INSTRUCTIONS = (Path(__file__).parent / "opcodes.txt").read_text().splitlines()
SCOPE = ".reg .b32 %f<64>; .reg .b8 %b<4>; .reg .pred %unused; L0: TB: .branchtargets L0;"


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "partial"])
@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda text: text.split()[0])
def test_opcode(instruction: str, masked: bool) -> None:
    """The instruction is in the generated block, which is valid Python."""
    source = parse(module(f"{SCOPE}\n{instruction};"))
    program = Program(source.entries["kernel"], {})
    for block in program.blocks:
        program.compile(block, masked)
    texts = [i.text for block in program.blocks for i in block.instructions]
    assert instruction in texts
