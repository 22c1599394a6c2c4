"""What is common to the CTAs of a launch: its shape, the layout of its memory, what is pending, and its counts."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..checks.faults import LaunchError, UnsupportedInstruction, shortened
from ..text.instructions import WIDTHS, Instruction, Source
from .barriers import Waiter
from .code import Program
from .device import Machine
from .memory import RESERVED_SHARED, Region, Space
from .operation import Operation, Owner

EARLY = 1 / 8  # of all mbarrier.try_wait, return before their phase is complete
POISON_WORD = 0x7FFFDEAD  # a NaN, and no plausible index


@dataclass
class Statistics:
    """What a launch executed. `instructions` counts warp-instructions by opcode with its modifiers."""

    instructions: dict[str, int] = field(default_factory=dict)
    warp_instructions: int = 0
    tensor_instructions: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0
    operations: int = 0
    slices: int = 0


class LaunchState:
    def __init__(
        self, device: Machine, source: Source, program: Program, grid: tuple[int, int, int],
        block: tuple[int, int, int], cluster: tuple[int, int, int], shared_bytes: int, parameters: bytes,
    ):  # fmt: skip
        self.device, self.source, self.program = device, source, program
        self.early_space: Space = device.space  # until griddepcontrol.wait
        self.allows_dependents = False
        self.waits_before = False  # some CTA waited before it allowed them
        self.function = program.function
        self.grid, self.block, self.cluster = grid, block, cluster
        self.explicit_cluster = cluster != (1, 1, 1)
        self.threads = block[0] * block[1] * block[2]
        self.warps = -(-self.threads // 32)
        self.lazy = device.lazy
        self.random = random.Random(device.seed)
        self.statistics = Statistics()
        self._check(parameters)
        data = np.frombuffer(bytes(parameters) or b"\0", np.uint8)
        self.parameters = Region("the kernel's parameters", 0, data, writable=False)
        self.dynamic_shared = shared_bytes
        self._lay_out()
        self.globals = device.module_variables(source)
        self.runnable: list[Waiter] = []
        self.pending: list[Operation] = []
        self.step = self.stalls = 0
        self.yielded = False
        self.slots = 0
        self._poison: dict[int, list[np.ndarray]] = {}
        counts = tuple(g // c for g, c in zip(grid, cluster, strict=True))
        self.waiting = deque((x, y, z) for z in range(counts[2]) for y in range(counts[1]) for x in range(counts[0]))

    def _check(self, parameters: bytes) -> None:
        function = self.function
        name = shortened(function.name)
        if len(parameters) != function.parameter_bytes:
            raise LaunchError(
                f"{name} takes {function.parameter_bytes} bytes of parameters, got {len(parameters)}"
            )
        if not 1 <= self.threads <= 1024:
            raise LaunchError(f"{name}: block of {self.threads} threads, expected 1 to 1024")
        if min(self.grid) < 1 or any(g % c for g, c in zip(self.grid, self.cluster, strict=True)):
            raise LaunchError(
                f"{name}: grid {self.grid} is empty or no multiple of the cluster {self.cluster}"
            )
        if np.prod(self.cluster) > 16:
            raise LaunchError(f"{name}: cluster {self.cluster} of more than 16 CTAs")
        required = function.directives.get("reqntid")
        if required is not None and np.prod(required) != self.threads:
            raise LaunchError(f"{name}: block {self.block}, the kernel requires {required}")
        limit = function.directives.get("maxntid")
        if limit is not None and np.prod(limit) < self.threads:
            raise LaunchError(f"{name}: block {self.block}, the kernel allows {limit}")
        needed = function.directives.get("reqnctapercluster")
        if needed and int(np.prod(needed)) != int(np.prod(self.cluster)):
            raise LaunchError(f"{name}: cluster {self.cluster}, the kernel requires {needed}")

    def _lay_out(self) -> None:
        """Offsets of shared variables, static ones first, in the shared window; of local ones in a thread's local
        memory.
        """
        used = self.program.symbols
        variables = list(self.function.variables.values())
        variables += [v for v in self.source.variables.values() if v.name in used]
        offset, local = RESERVED_SHARED, 0
        self.shared_offsets: dict[str, int] = {}
        self.local_offsets: dict[str, int] = {}
        self.shared_data: list[tuple[int, bytes]] = []
        for v in sorted((v for v in variables if v.space == "shared" and not v.dynamic), key=lambda v: -v.align):
            offset = -(-offset // v.align) * v.align
            self.shared_offsets[v.name] = offset
            if v.data:
                self.shared_data.append((offset, v.data))
            offset += v.size
        dynamic = [v for v in variables if v.space == "shared" and v.dynamic]
        alignment = max([16, *(v.align for v in dynamic)])
        if dynamic or self.dynamic_shared:
            offset = -(-offset // alignment) * alignment
        for v in dynamic:
            self.shared_offsets[v.name] = offset
        self.shared_size = offset - RESERVED_SHARED + self.dynamic_shared
        if self.shared_size > self.device.shared_limit:
            raise LaunchError(
                f"{shortened(self.function.name)}: {self.shared_size} bytes of shared memory, the device has "
                f"{self.device.shared_limit}"
            )
        for v in variables:
            if v.space == "local":
                local = -(-local // v.align) * v.align
                self.local_offsets[v.name] = local
                local += v.size
        self.local_size = -(-local // 16) * 16

    # What cohorts ask for

    def next_slot(self) -> int:
        self.slots += 1
        return (self.slots - 1) % self.device.sm_count

    def address_of(self, name: str) -> int:
        if name in self.function.offsets:
            return self.function.offsets[name]
        if name in self.local_offsets:
            return self.local_offsets[name]
        if name in self.globals:
            return self.globals[name]
        raise UnsupportedInstruction(f"unknown symbol {name}")

    def parameter_bytes(self, name: str, offset: int, width: int) -> bytes:
        start = self.function.offsets.get(name)
        if start is None:
            raise UnsupportedInstruction(f"{name} is not a parameter of the kernel")
        return self.parameters.bytes_at(start + offset, width).tobytes()

    def poison(self, count: int) -> list[np.ndarray]:
        """Registers that nothing has written, for `count` warps."""
        template = self._poison.get(count)
        if template is None:
            arrays: dict[tuple, np.ndarray] = {}
            template = []
            for kind, held in zip(self.function.registers, self.program.storage, strict=True):
                key = (WIDTHS[kind], held)
                if key not in arrays:
                    arrays[key] = _poison_array(count, WIDTHS[kind], held)
                template.append(arrays[key])
            self._poison[count] = template
        return list(template)

    def poison_of(self, register: int, count: int) -> np.ndarray:
        if count not in self._poison:
            self.poison(count)
        return self._poison[count][register]

    def operation(
        self, name: str, cta: Owner, steps: list[Callable[[], None]], after: list[Operation] | None = None
    ) -> Operation:
        return Operation(name, cta, steps, after or [], self.origin())

    def origin(self) -> Instruction | None:
        """The instruction that is being executed."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<ptx "):
                return self.program.instruction_at(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        return None

    def post(self, operation: Operation) -> None:
        self.statistics.operations += 1
        if not self.lazy and operation.ready():
            while not operation.done:
                operation.advance()
            operation.cta.wake_copies()
            return
        if self.lazy and self.random.random() < 0.5:
            operation.due = self.step + self.random.randint(1, 40)
        elif not self.lazy:
            operation.due = self.step
        self.pending.append(operation)

    def gives_up(self) -> bool:
        """Whether an mbarrier.try_wait returns before its phase is complete, as it may at any time."""
        return self.lazy and self.random.random() < EARLY

    def cancel_cluster(self) -> tuple[int, int, int] | None:
        """Takes a cluster that has not started, for clusterlaunchcontrol: the index of its first CTA."""
        if not self.waiting:
            return None
        return tuple(i * n for i, n in zip(self.waiting.popleft(), self.cluster, strict=True))


def _poison_array(count: int, width: int, held: type) -> np.ndarray:
    shape = (count, 32, 2) if width == 16 else (count, 32)
    if held is np.bool_:
        return np.zeros(shape, bool)
    pattern = (POISON_WORD << 32 | POISON_WORD) & ((1 << 8 * np.dtype(held).itemsize) - 1)
    unsigned = np.dtype(f"u{np.dtype(held).itemsize}")
    return np.full(shape, pattern, unsigned).view(held)
