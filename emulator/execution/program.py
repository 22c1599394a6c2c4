"""Entry points as programs: their blocks, and the Python of each, made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable

from ..machine.code import Block
from ..numbers import floats, integers, types
from ..text.instructions import Function, Instruction
from ..units import mma
from .blocks import blocks_of, symbols_of
from .emitter import NUMPY, Emitter, Kernel
from .liveness import solve, storage
from .opcodes import EMITTERS

# What generated code sees, besides constants: the arithmetic of PTX, numpy, and the types of registers. Not Python's
# own functions, of which it needs none.
_NAMESPACE = {
    **vars(types), **vars(integers), **vars(floats), **{kind.__name__: kind for kind in NUMPY.values()}, "mma": mma,
    "__builtins__": {},
}  # fmt: skip


class Program:
    """The blocks of one entry point, and the functions generated of them on first use: a `machine.code.Program`."""

    def __init__(self, function: Function, files: dict[int, str]):
        self.function, self.files = function, files
        self.blocks = blocks_of(function)
        solve(function, self.blocks)
        self.storage = storage(function)
        self.symbols = symbols_of(function)
        self.fences_tensor_memory = any(
            i.opcode == "tcgen05" and i.form.startswith("fence") for i in function.instructions
        )
        self._kernel = Kernel(function, self.storage, dict(_NAMESPACE))

    def compile(self, block: Block, masked: bool) -> Callable:
        emitter = Emitter(self._kernel, block, masked)
        source = emitter.function(EMITTERS)
        name = f"<ptx {self.function.name} block {block.index}{' masked' if masked else ''}>"
        scope: dict[str, object] = {}
        exec(compile(source, name, "exec"), self._kernel.namespace, scope)  # noqa: S102
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
