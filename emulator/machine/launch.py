"""Running a grid: CTAs, their cohorts, time slices, asynchronous operations, deadlock.

A slice runs one cohort for a random number of blocks; the next cohort is drawn at random from all that can run, of
all resident CTAs. Asynchronous operations are carried out at random slices, or when nothing else can run. All
randomness comes from one seed.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from emulator.checks.faults import (
    BarrierFault,
    DeadlockFault,
    EmulatorFault,
    IllegalInstruction,
    LaunchError,
    MemoryFault,
    UnsupportedInstruction,
    shortened,
)
from emulator.checks.races import CLOCKED, Races, TensorOrder, joined
from emulator.machine.barriers import ClusterBarrier, CtaBarrier
from emulator.machine.cohort import Cohort, Entry
from emulator.machine.memory import RANK_SHIFT, RESERVED_SHARED, WRITTEN, Region, Space
from emulator.machine.operation import Operation
from emulator.machine.polling import LIMIT, TimeLimits
from emulator.machine.synchronization import Generation, WarpgroupWait
from emulator.text.instructions import WIDTHS, Instruction
from emulator.units.tcgen05 import COLUMNS
from emulator.units.tensor import TensorMemory, WarpgroupQueue

if TYPE_CHECKING:
    from emulator.device import Device, Module
    from emulator.execution.program import Block

RESIDENT = 16  # CTAs that start together; more are admitted when these are stuck or take long
ADMISSION = 250  # slices after which as many clusters again are admitted: those that run may wait for them
EARLY = 1 / 8  # of all mbarrier.try_wait, return before their phase is complete
STALLED = 100_000  # slices of nothing but failing polls after which a kernel counts as deadlocked
POISON_WORD = 0x7FFFDEAD  # a NaN, and no plausible index

_TENSOR_INSTRUCTIONS = ("mma.", "wgmma.mma_async.", "tcgen05.mma.")


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


class Cluster:
    def __init__(self, launch: Launch, index: tuple[int, int, int]):
        self.launch = launch
        self.barrier = ClusterBarrier()
        self.ctas: list[Cta] = []
        x, y, z = launch.cluster
        size = RESERVED_SHARED + launch.shared_size
        checks = launch.device.checks
        self.races = Races(x * y * z, launch.warps, size, checks) if checks & CLOCKED else None
        for rank in range(x * y * z):
            place = (rank % x, rank // x % y, rank // (x * y))
            cta = tuple(i * n + p for i, n, p in zip(index, launch.cluster, place, strict=True))
            self.ctas.append(Cta(self, cta, rank))

    def check_barrier(self) -> None:
        """Completes the cluster barrier when every live thread has arrived."""
        phase = self.barrier.phase
        for cta in self.ctas:
            if (cta.alive & (cta.cluster_tokens != phase)).any():
                return
        if any(cta.alive.any() for cta in self.ctas):
            self.barrier.advance()


class Cta:
    """Shared memory, barriers, tensor memory and cohorts of one CTA."""

    def __init__(self, cluster: Cluster, index: tuple[int, int, int], rank: int):
        self.cluster, self.launch, self.index, self.rank = cluster, cluster.launch, index, rank
        self.races = cluster.races
        launch = self.launch
        self.space = launch.early_space
        self.slot = launch.next_slot()
        total = RESERVED_SHARED + launch.shared_size
        self.window = np.full(total, 0xFF, np.uint8)
        self.window_valid = np.zeros(total, np.uint8) if "unwritten" in launch.device.checks else None
        self.shared = Region(
            f"shared memory of CTA {index}", rank << RANK_SHIFT | RESERVED_SHARED, self.window[RESERVED_SHARED:],
            valid=None if self.window_valid is None else self.window_valid[RESERVED_SHARED:],
        )  # fmt: skip
        for offset, data in launch.shared_data:
            self.window[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
            self.shared.mark(self.shared.base - RESERVED_SHARED + offset, len(data), WRITTEN)
        self.local = Region(
            f"local memory of CTA {index}", 0, np.full(launch.local_size * launch.warps * 32, 0xFF, np.uint8)
        )
        self.mbarriers: dict = {}
        self.barriers: dict[int, CtaBarrier] = {}
        threads = np.arange(launch.warps * 32).reshape(-1, 32) < launch.threads
        self.alive = threads
        self.cluster_tokens = np.full(threads.shape, -1, np.int64)
        self.bulk_groups: dict[int, list] = {}
        self.copies: list[tuple] = []
        self.copy_groups = np.zeros(launch.warps * 32, np.int64)
        self.copy_waiters: list[Cohort] = []
        self.warpgroups: dict[int, WarpgroupQueue] = {}
        self._tensor_memory: TensorMemory | None = None
        self.tensor_queue: Operation | None = None
        self.cohorts: list[Cohort] = []

    def start(self) -> Cohort:
        count = self.launch.warps
        cohort = self.launch.cohort_type(
            self, np.arange(count), self.launch.poison(count), None if self.alive.all() else self.alive
        )
        cohort.entries.append(Entry(0, None if cohort.alive is None else cohort.alive))
        self.cohorts = [cohort]
        return cohort

    @property
    def tensor_memory(self) -> TensorMemory:
        if self._tensor_memory is None:
            ordered = "tcgen05-fence" in self.launch.device.checks and self.launch.program.fences_tensor_memory
            self._tensor_memory = TensorMemory(TensorOrder(self.races, COLUMNS) if ordered else None)
        return self._tensor_memory

    def peer(self, rank: int) -> Cta:
        if rank == self.rank:
            return self
        if rank >= len(self.cluster.ctas):
            raise MemoryFault(f"shared address of CTA rank {rank} in a cluster of {len(self.cluster.ctas)}",
                              address=rank << RANK_SHIFT)  # fmt: skip
        found = self.cluster.ctas[rank]
        if not found.alive.any():
            raise MemoryFault(
                f"access to shared memory of CTA {found.index}, which has exited", address=rank << RANK_SHIFT
            )
        return found

    def address_of(self, name: str) -> int:
        launch = self.launch
        if name in launch.shared_offsets:
            return launch.shared_offsets[name] | self.rank << RANK_SHIFT
        return launch.address_of(name)

    def replace(self, old: list[Cohort], new: list[Cohort]) -> None:
        self.cohorts = [cohort for cohort in self.cohorts if cohort not in old] + new

    def exited(self, cohort: Cohort, lanes: np.ndarray) -> None:
        self.alive = self.alive.copy()
        block = self.alive[cohort.warps]
        self.alive[cohort.warps] = block & ~lanes
        for barrier in self.barriers.values():
            self._complete(barrier)
        self.cluster.check_barrier()
        if not self.alive.any():
            self._close()

    def _close(self) -> None:
        """The last thread has exited: tensor memory must be free, and nothing may arrive at the barriers any more."""
        if self._tensor_memory is not None and self._tensor_memory.allocated:
            raise MemoryFault(f"the CTA exits with tensor memory allocated: {self._tensor_memory.allocated}")
        for barrier in self.mbarriers.values():
            barrier.closed = True

    # CTA barriers

    def barrier(self, number: int) -> CtaBarrier:
        found = self.barriers.get(number)
        if found is None:
            found = self.barriers[number] = CtaBarrier(number, self.launch.warps)
        return found

    def arrive(
        self, barrier: CtaBarrier, cohort: Cohort, active: np.ndarray, expected: int | None, waits: bool
    ) -> Generation:
        if barrier.generation is None:
            barrier.generation = Generation("")
        generation = barrier.generation
        if not barrier.arrived.any():
            barrier.expected = expected
        elif barrier.expected != expected:
            raise BarrierFault(f"barrier {barrier.number} with {expected} threads, others gave {barrier.expected}")
        if (barrier.arrived[cohort.warps] & active).any():
            raise BarrierFault(f"a warp arrives twice in one use of {barrier}")
        barrier.arrived[cohort.warps] |= active
        if self.races is not None:
            generation.clock = joined(generation.clock, self.races.release(cohort.agents(active)))
        generation.name = str(barrier)
        self._complete(barrier)
        return generation

    def _complete(self, barrier: CtaBarrier) -> None:
        if not barrier.arrived.any():
            return
        if barrier.expected is None:
            if (self.alive & ~barrier.arrived).any():
                return
        else:
            # A warp whose live threads are all there counts with all 32, also those that have exited.
            rows = barrier.arrived.any(1)
            whole = rows & ~(self.alive & ~barrier.arrived).any(1)
            count = int(32 * whole.sum() + barrier.arrived[rows & ~whole].sum())
            if count < barrier.expected:
                return
            if count > barrier.expected:
                raise BarrierFault(f"{count} threads arrived at {barrier}")
        generation = barrier.generation
        barrier.arrived[:] = False
        barrier.generation = None
        generation.release()

    def wake_copies(self) -> None:
        waiters, self.copy_waiters = self.copy_waiters, []
        for cohort in waiters:
            cohort.wake()


class Launch:
    cohort_type = Cohort

    def __init__(
        self, device: Device, module: Module, name: str, grid: tuple[int, int, int], block: tuple[int, int, int],
        cluster: tuple[int, int, int], shared_bytes: int, parameters: bytes,
    ):  # fmt: skip
        self.device, self.module = device, module
        self.early_space: Space = device.space  # until griddepcontrol.wait
        self.allows_dependents = False
        self.waits_before = False  # some CTA waited before it allowed them
        self.program = module.program(name)
        self.function = self.program.function
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
        self.globals = device.module_variables(module)
        self.runnable: list[Cohort] = []
        self.pending: list[Operation] = []
        self.step = self.stalls = 0
        self.time_limits = TimeLimits(self)
        self.yielded = False
        self.slots = self.quiet = 0
        self.last_block: Block | None = None
        self.counts = [0] * len(self.program.blocks)
        self._poison: dict[int, list[np.ndarray]] = {}
        self._live: dict[int, frozenset[int]] = {}
        counts = tuple(g // c for g, c in zip(grid, cluster, strict=True))
        self.waiting = deque((x, y, z) for z in range(counts[2]) for y in range(counts[1]) for x in range(counts[0]))
        self.resident: list[Cluster] = []

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
        variables += [v for v in self.module.source.variables.values() if v.name in used]
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

    def live(self, entries: list[Entry]) -> frozenset[int]:
        blocks = self.program.blocks
        sets = [blocks[entry.pc].live_in for entry in entries if entry.pc < len(blocks)]
        return frozenset().union(*sets)

    def operation(self, name: str, cta: Cta, steps: list, after: list[Operation] | None = None) -> Operation:
        return Operation(name, cta, steps, after or [], self._origin())

    def _origin(self) -> Instruction | None:
        """The instruction that is being executed."""
        frame = sys._getframe(2)
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

    # Running

    def run(self) -> Statistics:
        with np.errstate(all="ignore"):
            while len(self.resident) * len_of(self.cluster) < RESIDENT and self.waiting:
                self._admit()
            while True:
                self.step += 1
                if self.waiting and self.step % ADMISSION == 0:
                    for _ in range(min(len(self.resident), len(self.waiting))):
                        self._admit()
                if self.step % LIMIT == 0:
                    self.time_limits.expire()
                if self.pending:
                    self._run_due()
                if self.runnable:
                    self._run_slice()
                elif self.pending:
                    self._run_operation(self.random.choice([op for op in self.pending if op.ready()]))
                elif self.waiting:
                    self._admit()
                elif not self.resident:
                    break
                elif not self.time_limits.resume():
                    raise self._deadlock("no thread can make progress")
        self._count()
        return self.statistics

    def _admit(self) -> None:
        cluster = Cluster(self, self.waiting.popleft())
        self.resident.append(cluster)
        for cta in cluster.ctas:
            self.runnable.append(cta.start())

    def _run_due(self) -> None:
        due = [op for op in self.pending if op.due <= self.step and op.ready()]
        for op in due:
            self._run_operation(op)

    def _run_operation(self, operation: Operation) -> None:
        try:
            operation.advance()
        except (EmulatorFault, IllegalInstruction) as error:
            raise self._locate(error, operation.origin, operation.cta, None) from None
        if operation.done:
            self.pending.remove(operation)
        else:
            operation.due = self.step + self.random.randint(0, 20)
        operation.cta.wake_copies()

    def _run_slice(self) -> None:
        runnable = self.runnable
        index = self.random.randrange(len(runnable))
        cohort = runnable[index]
        runnable[index] = runnable[-1]
        runnable.pop()
        if cohort.dead:
            return
        self.yielded = False
        stalls = self.stalls
        try:
            self._execute(cohort, self.random.randint(8, 96))
        except (EmulatorFault, IllegalInstruction) as error:
            raise self._locate(error, self._instruction_of(error), cohort.cta, cohort) from None
        if self.stalls != stalls:
            self.quiet += 1
            if self.quiet > STALLED:
                raise self._deadlock(f"threads have polled mbarriers {STALLED} times, and nothing else has run")
        else:
            self.quiet = 0
        self._put_back(cohort)

    def _put_back(self, cohort: Cohort) -> None:
        cta = cohort.cta
        parts = cohort.separate()
        if len(parts) != 1 or parts[0] is not cohort:
            cta.replace([cohort], parts)
            if not cta.cohorts and not any(c.cohorts for c in cta.cluster.ctas):
                self.resident.remove(cta.cluster)
                if self.waiting:
                    self._admit()
        for part in parts:
            if part is cohort and part.parked:
                continue
            for entry in part.entries:
                entry.blocked = False
            waiting = [entry for entry in part.entries if entry.wait is not None]
            if not waiting or any(entry.wait is None and not entry.deferred for entry in part.entries):
                self.runnable.append(part)
            else:
                self._park(part)

    def _park(self, cohort: Cohort) -> None:
        """Registers a cohort with what it waits for, together with others that wait for the same at the same place."""
        if cohort.is_whole():
            entry = cohort.entries[0]
            same = [
                other for other in cohort.cta.cohorts
                if other is not cohort and other.parked and other.is_whole() and entry.wait.key is not None
                and other.entries[0].pc == entry.pc and other.entries[0].wait.key == entry.wait.key
            ]  # fmt: skip
            if same:
                merged = Cohort.merge([cohort, *same])
                cohort.cta.replace([cohort, *same], [merged])
                cohort = merged
        cohort.parked = True
        ready = [entry.wait.register(cohort) for entry in cohort.entries if entry.wait is not None]
        for entry in cohort.entries:
            entry.blocked = entry.wait is not None
        if any(ready):
            cohort.wake()

    def _execute(self, cohort: Cohort, budget: int) -> None:
        """Runs a cohort until its budget is used up, all of it is blocked, or it has exited."""
        blocks, counts = self.program.blocks, self.counts
        compile_block = self.program.compile
        end = len(blocks)
        size = cohort.shape[0] * 32
        warps = cohort.shape[0]
        while budget > 0 and cohort.entries:
            budget -= 1
            entry = cohort.pick()
            if entry is None:
                return
            if entry.wait is not None:
                ready = entry.wait.poll(cohort, entry.mask)
                if ready is False:
                    entry.blocked = True
                    continue
                if ready is not True:
                    rest = cohort.split(entry, ready, entry.pc)
                    entry.wait, rest.wait = None, entry.wait
                    # `split` moved the ready lanes to the new entry: they go on, the others keep waiting
                    entry.mask, rest.mask = rest.mask, entry.mask
                entry.wait = None
                if len(cohort.entries) > 1:
                    for other in cohort.entries:
                        if other is not entry and other.pc == entry.pc and other.wait is not None:
                            if other.wait.poll(cohort, other.mask) is True:
                                other.wait = None
                                other.blocked = False
                    cohort.join(entry)
            pc, mask = entry.pc, entry.mask
            if pc >= end:
                cohort.leave(entry, None)
                continue
            block = blocks[pc]
            if mask is None:
                if block.warpgroup and not cohort.has_whole_warpgroups(None):
                    entry.wait = WarpgroupWait(pc)
                    continue
                function = block.full or compile_block(block, False)
                counts[pc] += warps
            else:
                if block.convergent and not self._converge(cohort, entry, block):
                    continue
                mask = entry.mask
                if block.warpgroup and not cohort.has_whole_warpgroups(mask):
                    entry.wait = WarpgroupWait(pc)
                    continue
                function = block.masked or compile_block(block, True)
                counts[pc] += int(mask.any(1).sum())
            result = function(cohort, cohort.registers, mask)
            kind = type(result)
            if kind is int:
                entry.pc = result
            elif kind is tuple:
                self.last_block = block
                self._handle(cohort, entry, block, result)
                if self.yielded:
                    return
                if entry not in cohort.entries:
                    continue
            else:
                taken = np.count_nonzero(result)
                following = end if block.following is None else block.following
                if not taken:
                    entry.pc = following
                elif taken == (size if mask is None else np.count_nonzero(mask)):
                    entry.pc = block.taken
                else:
                    entry.pc = following
                    new = cohort.split(entry, result, block.taken)
                    cohort.join(new)
            if len(cohort.entries) > 1:
                cohort.join(entry)

    def _converge(self, cohort: Cohort, entry: Entry, block: Block) -> bool:
        """Whether the lanes that a convergent instruction needs are there; the warps that lack some are put aside."""
        good = cohort.converged_lanes(entry, block)
        present = entry.mask.any(1)
        if (good == present).all():
            return True
        if not good.any():
            entry.deferred = True
            return False
        rest = entry.mask & ~good[:, None]
        entry.mask = entry.mask & good[:, None]
        other = Entry(entry.pc, rest)
        other.deferred = True
        cohort.entries.append(other)
        return True

    def _handle(self, cohort: Cohort, entry: Entry, block: Block, result: tuple) -> None:
        name, mask, *arguments = result
        end = len(self.program.blocks)
        following = end if block.following is None else block.following
        if name == "exit":
            rest = cohort.active(entry.mask) & ~cohort.active(mask) if mask is not None else None
            if rest is not None and rest.any():
                entry.pc = following
            cohort.leave(entry, mask)
            return
        if name == "switch":
            self._switch(cohort, entry, block, mask, arguments[0], following)
            return
        entry.pc = following
        if mask is not None and not np.count_nonzero(cohort.active(mask)):
            return
        wait = getattr(cohort, f"on_{name}")(mask, *arguments)
        if wait is None:
            return
        active = cohort.active(mask)
        if mask is None or not (cohort.active(entry.mask) & ~active).any():
            entry.wait = wait
        else:
            waiting = cohort.split(entry, active, following)
            waiting.wait = wait

    def _switch(
        self, cohort: Cohort, entry: Entry, block: Block, mask: np.ndarray | None, index: np.ndarray, following: int
    ) -> None:
        active = cohort.active(mask)
        rest = cohort.active(entry.mask) & ~active
        cohort.entries.remove(entry)
        if rest.any():
            cohort.entries.append(Entry(following, rest))
        for value in np.unique(index[active]):
            if value >= len(block.targets):
                raise UnsupportedInstruction(f"brx.idx with index {int(value)} of {len(block.targets)} targets")
            lanes = active & (index == value)
            new = Entry(block.targets[int(value)], None if lanes.all() else lanes)
            cohort.entries.append(new)
            cohort.join(new)

    # Reports

    def _count(self) -> None:
        totals: dict[str, int] = {}
        for block, count in zip(self.program.blocks, self.counts, strict=True):
            if count:
                for instruction in block.instructions:
                    totals[instruction.name] = totals.get(instruction.name, 0) + count
        self.statistics.instructions = dict(sorted(totals.items()))
        self.statistics.warp_instructions = sum(totals.values())
        tensor = (count for name, count in totals.items() if name.startswith(_TENSOR_INSTRUCTIONS))
        self.statistics.tensor_instructions = sum(tensor)
        self.statistics.slices = self.step

    def _instruction_of(self, error: BaseException) -> Instruction | None:
        trace, found = error.__traceback__, None
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if name.startswith("<ptx "):
                found = self.program.instruction_at(name, trace.tb_lineno)
            trace = trace.tb_next
        return found

    def _locate(
        self, error: EmulatorFault | IllegalInstruction, instruction: Instruction | None, cta: Cta,
        cohort: Cohort | None,
    ) -> EmulatorFault:  # fmt: skip
        fault = error
        if isinstance(error, IllegalInstruction):
            fault = UnsupportedInstruction(str(error), check=error.check)
        fault.kernel = self.function.name
        fault.cta = cta.index
        if instruction is None and cohort is not None and fault.line is None and self.last_block is not None:
            instruction = self.last_block.instructions[-1]
        if instruction is not None:
            fault.line, fault.text = instruction.line, instruction.text
            if instruction.source is not None:
                file, line = instruction.source
                fault.source = f"{self.program.files.get(file, f'file {file}')}:{line}"
        if cohort is not None:
            if fault.warp is not None and fault.warp < len(cohort.warps):
                fault.warp = int(cohort.warps[fault.warp])
            elif fault.warp is None and len(cohort.warps) == 1:
                fault.warp = int(cohort.warps[0])
        return fault

    def _deadlock(self, why: str) -> DeadlockFault:
        lines = [why]
        blocks = self.program.blocks
        for cluster in self.resident:
            for cta in cluster.ctas:
                for cohort in cta.cohorts:
                    for entry in cohort.entries:
                        lines.append(f"  {cohort} {self._place(blocks, entry)} {entry}")
                for barrier in cta.mbarriers.values():
                    lines.append(f"  {barrier}")
                for barrier in cta.barriers.values():
                    if barrier.arrived.any():
                        lines.append(f"  CTA {cta.index} {barrier}")
            if len(cluster.ctas) > 1:
                lines.append(f"  {cluster.barrier}")
        fault = DeadlockFault("\n".join(lines[:200]))
        fault.kernel = self.function.name
        return fault

    def _place(self, blocks: list, entry: Entry) -> str:
        if entry.pc >= len(blocks):
            return "at the end"
        previous = blocks[entry.pc - 1].instructions[-1] if entry.pc else blocks[0].instructions[0]
        return f"after PTX line {previous.line}: {previous.text}:"


def len_of(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def _poison_array(count: int, width: int, held: type) -> np.ndarray:
    shape = (count, 32, 2) if width == 16 else (count, 32)
    if held is np.bool_:
        return np.zeros(shape, bool)
    pattern = (POISON_WORD << 32 | POISON_WORD) & ((1 << 8 * np.dtype(held).itemsize) - 1)
    unsigned = np.dtype(f"u{np.dtype(held).itemsize}")
    return np.full(shape, pattern, unsigned).view(held)
