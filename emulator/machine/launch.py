"""Running a grid: CTAs, their cohorts, time slices, asynchronous operations, deadlock.

A slice runs one cohort for a random number of blocks; the next cohort is drawn at random from all that can run, of
all resident CTAs. Asynchronous operations are carried out at random slices, or when nothing else can run. All
randomness comes from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from weakref import WeakSet

import numpy as np

from ..checks.faults import DeadlockFault, EmulatorFault, IllegalInstruction, UnsupportedInstruction
from ..text.instructions import Instruction
from .code import EXIT, SWITCH, Block
from .cohort import Cohort, Entry, Wait
from .cta import Cluster, Cta
from .operation import Operation
from .polling import LIMIT, TimeLimits
from .state import LaunchState, Statistics
from .waits import WarpgroupWait

RESIDENT = 16  # CTAs that start together; more are admitted when these are stuck or take long
ADMISSION = 250  # slices after which as many clusters again are admitted: those that run may wait for them
STALLED = 100_000  # slices of nothing but failing polls after which a kernel counts as deadlocked

_TENSOR_INSTRUCTIONS = ("mma.", "wgmma.mma_async.", "tcgen05.mma.")


class Launch(LaunchState):
    """`cohort_type` makes the cohorts: it has the methods that the program's code calls."""

    def __init__(self, cohort_type: type[Cohort], *arguments: object):
        super().__init__(*arguments)
        self.cohort_type = cohort_type
        self.resident: list[Cluster] = []
        self.clusters: WeakSet[Cluster] = WeakSet()  # that were admitted
        self.time_limits = TimeLimits(self, self.resident)
        self.counts = [0] * len(self.program.blocks)
        self.quiet = 0
        self.last_block: Block | None = None

    def run(self) -> Statistics:
        try:
            with np.errstate(all="ignore"):
                self._run()
        finally:
            for cluster in self.clusters:
                cluster.close()
        self._count()
        return self.statistics

    def _run(self) -> None:
        while len(self.resident) * math.prod(self.cluster) < RESIDENT and self.waiting:
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

    def _admit(self) -> None:
        cluster = Cluster(self, self.waiting.popleft())
        self.resident.append(cluster)
        self.clusters.add(cluster)
        for cta in cluster.ctas:
            alive = None if cta.alive.all() else cta.alive
            cohort = self.cohort_type(cta, np.arange(self.warps), self.poison(self.warps), alive)
            cohort.entries.append(Entry(0, cohort.alive))
            cta.cohorts = [cohort]
            self.runnable.append(cohort)

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
        blocks = self.program.blocks
        while budget > 0 and cohort.entries:
            budget -= 1
            entry = cohort.pick()
            if entry is None:
                return
            if entry.wait is not None and not self._resume(cohort, entry):
                continue
            if entry.pc >= len(blocks):
                cohort.leave(entry, None)
                continue
            block = blocks[entry.pc]
            code = self._code(cohort, entry, block)
            if code is None:
                continue
            result = code(cohort, cohort.registers, entry.mask)
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
                self._branch(cohort, entry, block, result)
            if len(cohort.entries) > 1:
                cohort.join(entry)

    def _resume(self, cohort: Cohort, entry: Entry) -> bool:
        """Whether lanes of an entry need not wait any longer; those that still do become an entry of their own."""
        ready = entry.wait.poll(cohort, entry.mask)
        if ready is False:
            entry.blocked = True
            return False
        if ready is not True:
            self._put_aside(cohort, entry, ready, entry.wait)
        entry.wait = None
        if len(cohort.entries) > 1:
            for other in cohort.entries:
                if other is not entry and other.pc == entry.pc and other.wait is not None:
                    if other.wait.poll(cohort, other.mask) is True:
                        other.wait = None
                        other.blocked = False
            cohort.join(entry)
        return True

    @staticmethod
    def _put_aside(cohort: Cohort, entry: Entry, ready: np.ndarray, wait: Wait) -> None:
        """The lanes of `ready` go on as the entry; its others wait."""
        rest = cohort.split(entry, ready, entry.pc)
        rest.wait = wait
        entry.mask, rest.mask = rest.mask, entry.mask  # `split` moved the ready ones to the new entry

    def _code(self, cohort: Cohort, entry: Entry, block: Block) -> Callable | None:
        """The code of the block for an entry's lanes; None where others are needed that are not there."""
        if entry.mask is not None and block.convergent and not self._converge(cohort, entry, block):
            return None
        if block.warpgroup:
            ready = cohort.in_whole_warpgroups(entry.mask)
            if ready is False:
                entry.wait = WarpgroupWait(entry.pc)
                return None
            if ready is not True:
                self._put_aside(cohort, entry, ready, WarpgroupWait(entry.pc))
        if entry.mask is None:
            self.counts[entry.pc] += len(cohort.warps)
            return block.full or self.program.compile(block, False)
        self.counts[entry.pc] += np.count_nonzero(entry.mask.any(1))
        return block.masked or self.program.compile(block, True)

    def _branch(self, cohort: Cohort, entry: Entry, block: Block, lanes: np.ndarray) -> None:
        taken = np.count_nonzero(lanes)
        following = len(self.program.blocks) if block.following is None else block.following
        if not taken:
            entry.pc = following
        elif taken == (lanes.size if entry.mask is None else np.count_nonzero(entry.mask)):
            entry.pc = block.taken
        else:
            entry.pc = following
            cohort.join(cohort.split(entry, lanes, block.taken))

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
        action, mask, *arguments = result
        end = len(self.program.blocks)
        following = end if block.following is None else block.following
        if action == EXIT:
            rest = cohort.active(entry.mask) & ~cohort.active(mask) if mask is not None else None
            if rest is not None and rest.any():
                entry.pc = following
            cohort.leave(entry, mask)
            return
        if action == SWITCH:
            self._switch(cohort, entry, block, mask, arguments[0], following)
            return
        entry.pc = following
        if mask is not None and not np.count_nonzero(cohort.active(mask)):
            return
        wait = action(mask, *arguments)
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

    def _place(self, blocks: list[Block], entry: Entry) -> str:
        if entry.pc >= len(blocks):
            return "at the end"
        previous = blocks[entry.pc - 1].instructions[-1] if entry.pc else blocks[0].instructions[0]
        return f"after PTX line {previous.line}: {previous.text}:"
