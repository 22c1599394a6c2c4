"""wgmma and tcgen05 as a cohort issues them: queues, asynchrony, and what is in flight. The arithmetic is in `wgmma`
and `tcgen05`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from emulator.checks.faults import BarrierFault, MemoryFault, UninitializedRead, UnsupportedInstruction
from emulator.checks.races import NONE, RaceFault, TensorOrder, joined
from emulator.machine.memory import WRITTEN
from emulator.machine.synchronization import Wait
from emulator.units import tcgen05, tcgen05_mma, tcgen05_moves, wgmma

if TYPE_CHECKING:
    from emulator.machine.cohort import Cohort
    from emulator.machine.launch import Cta

_NOT_FORM = {"mma_async", "mma", "ld", "st", "cp", "commit", "shift", "alloc", "dealloc"}


class WarpgroupQueue:
    """wgmma operations of one warpgroup: issued in order, carried out at the wait at the latest.

    `results` holds accumulators (uint32 [4, 32]) of operations that were carried out and not yet waited for.
    """

    def __init__(self) -> None:
        self.operations: list[tuple] = []  # (group, modifiers, registers, initial values, a, b, scale_d, options)
        self.results: dict[int, np.ndarray] = {}
        self.in_flight: set[int] = set()
        self.group = 0  # the open group
        self.written: dict[int, int] = {}  # register -> last group that writes it
        self.ever_fenced = self.fenced = False  # by wgmma.fence; since the last wait
        self.delivered: dict[int, np.ndarray] = {}  # register -> its accumulator at the last wait

    def check_fence(self, initial: dict[int, np.ndarray | None], accumulates: bool) -> None:
        """RaceFault where registers were changed after the last wait without a wgmma.fence, or none was ever executed.

        What is written between a fence and the instruction that it is for is not seen.
        """
        if self.fenced:
            return
        if not self.ever_fenced:
            raise RaceFault("wgmma.mma_async before the first wgmma.fence of its warpgroup", check="wgmma-fence")
        for register, value in initial.items() if accumulates else ():
            known = self.delivered.get(register)
            if value is not None and (known is None or (value.view(np.uint32) != known).any()):
                raise RaceFault(
                    "wgmma.mma_async with an accumulator that was changed since the last wgmma.fence",
                    check="wgmma-fence",
                )


class TensorMemory:
    """Tensor memory of a CTA: words uint32 [128, 512], which are written, and how many writes are in flight to each.

    `order`: of its accesses; None without checks, and for kernels without any tcgen05.fence, as compilers make them:
    hardware runs those, too.
    """

    def __init__(self, order: TensorOrder | None = None) -> None:
        self.order = order
        self.words = np.full((tcgen05.LANES, tcgen05.COLUMNS), 0x7FFFDEAD, np.uint32)
        self.written = np.zeros((tcgen05.LANES, tcgen05.COLUMNS), bool)
        self.busy = np.zeros((tcgen05.LANES, tcgen05.COLUMNS), np.int16)
        self.allocated: dict[int, int] = {}  # first column -> columns
        self.relinquished = False
        self.waiters: list[Cohort] = []
        self.pair: PairAllocation | None = None  # of the even CTA: what one of a pair waits for the other with
        self.loads: dict[int, list[tuple]] = {}  # warp -> cells of its loads that it has not waited for

    def taken(self) -> np.ndarray:
        """bool [COLUMNS]: those that are allocated."""
        taken = np.zeros(tcgen05.COLUMNS, bool)
        for first, columns in self.allocated.items():
            taken[first : first + columns] = True
        return taken

    def allocate(self, first: int, count: int) -> None:
        self.allocated[first] = count
        self.written[:, first : first + count] = False
        if self.order is not None:
            self.order.forget(slice(first, first + count))

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for cohort in waiters:
            cohort.wake()

    def check_loads(self, cells: np.ndarray | tuple) -> None:
        """RaceFault where cells (a mask or indices) are written that a load may still read (9.7.16.6.4.5)."""
        if not self.loads:
            return
        written = np.zeros(self.written.shape, bool)
        written[cells] = True
        for warp, loads in self.loads.items():
            if any(written[read].any() for read in loads):
                raise RaceFault(
                    f"write to tensor memory that a tcgen05.ld of warp {warp} reads, without a tcgen05.wait::ld",
                    check="tcgen05-wait",
                )


class PairAllocation:
    """One tcgen05.alloc: of the tensor memory of a CTA, or of a pair of CTAs once a warp of each is there."""

    def __init__(self, ctas: list[Cta], count: int):
        self.ctas, self.count = ctas, count
        self.ranks: set[int] = set()  # of the CTAs whose warp is there
        self.first: int | None = None  # the column it was given

    def room(self) -> int | None:
        """First column of free ones in every CTA."""
        if len(self.ranks) < len(self.ctas):
            return None
        taken = np.any([cta.tensor_memory.taken() for cta in self.ctas], axis=0)
        starts = range(0, tcgen05.COLUMNS - self.count + 1, self.count)
        return next((f for f in starts if not taken[f : f + self.count].any()), None)

    def settle(self) -> bool:
        """Whether the columns are allocated, by now."""
        if self.first is None and (first := self.room()) is not None:
            self.first = first
            self.ctas[0].tensor_memory.pair = None
            for cta in self.ctas:
                cta.tensor_memory.allocate(first, self.count)
                cta.tensor_memory.wake()
        return self.first is not None


class AllocationWait(Wait):
    """tcgen05.alloc until enough columns are free; then writes their address, for all lanes of the warp."""

    def __init__(self, cta: Cta, address: int, allocation: PairAllocation):
        self.cta, self.address, self.allocation = cta, address, allocation

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool:
        if not self.allocation.settle():
            return False
        region = self.cta.shared
        if self.cta.races is not None:
            self.cta.races.write(cohort.agents(mask), NONE, np.full(1, self.address), 4, generic=False)
            self.cta.races.converge(cohort.agents(mask))
        region.bytes_at(self.address, 4)[:] = np.array([self.allocation.first], np.uint32).view(np.uint8)
        region.mark(self.address, 4, WRITTEN)
        return True

    def register(self, cohort: Cohort) -> bool:
        self.cta.tensor_memory.waiters.append(cohort)
        return self.allocation.first is not None or self.allocation.room() is not None

    def __str__(self) -> str:
        found = self.allocation
        if len(found.ranks) < len(found.ctas):
            return f"the tcgen05.alloc.cta_group::2 of the other CTA of the pair, for {found.count} columns"
        return f"{found.count} columns of tensor memory, allocated {self.cta.tensor_memory.allocated}"


class TensorOperations:
    """Mixin of Cohort."""

    # wgmma

    def _warpgroups(self, mask: np.ndarray | None) -> Iterable[tuple[WarpgroupQueue, slice]]:
        active = self.active(mask).any(1)
        for group in np.unique(self.warps[active] // 4):
            rows = np.flatnonzero(self.warps // 4 == group)
            yield self.cta.warpgroups.setdefault(int(group), WarpgroupQueue()), slice(int(rows[0]), int(rows[0]) + 4)

    def wgmma(
        self, modifiers: tuple[str, ...], registers: list[int], values: list[np.ndarray], a: object, b: np.ndarray,
        scale_d: np.ndarray, immediates: tuple[int, ...], mask: np.ndarray | None, line: int,
    ) -> None:  # fmt: skip
        self.converged(mask)
        modifiers = tuple(m for m in modifiers if m not in _NOT_FORM)
        in_registers = isinstance(a, list)
        options = {"negate_a": immediates[0] < 0, "negate_b": immediates[1] < 0}
        for value in immediates[:2]:
            if value not in (1, -1):
                raise UnsupportedInstruction(f"imm-scale of {value}: expected 1 or -1")
        transposes = immediates[2:]
        if transposes:
            options["transpose_b"] = bool(transposes[-1])
            if not in_registers:
                options["transpose_a"] = bool(transposes[0])
        scale = np.broadcast_to(scale_d, self.shape)
        for queue, rows in self._warpgroups(mask):
            first = rows.start
            left = [np.ascontiguousarray(x[rows]) for x in a] if in_registers else int(a[first, 0])
            initial = {
                r: None if r in queue.in_flight else np.ascontiguousarray(v[rows])
                for r, v in zip(registers, values, strict=True)
            }
            if "wgmma-fence" in self.device.checks:
                queue.check_fence(initial, bool(scale[first, 0]))
            if self.cta.races is not None:
                extra = {k: v for k, v in options.items() if k.startswith("transpose")}
                where = wgmma.shared_addresses(modifiers, left, int(b[first, 0]), **extra)
                self.asynchronous_read(first, where[::4], mark=False)
            options_here = options | {"scale_d": bool(scale[first, 0])}
            queue.operations.append((queue.group, modifiers, registers, initial, left, int(b[first, 0]), options_here))
            queue.in_flight.update(registers)
            queue.written.update(dict.fromkeys(registers, queue.group))
            if not self.launch.lazy:
                self._carry_out(queue, queue.group)

    def _carry_out(self, queue: WarpgroupQueue, last: int) -> None:
        """Carries out the operations of the groups up to `last`."""
        while queue.operations and queue.operations[0][0] <= last:
            _, modifiers, registers, initial, a, b, options = queue.operations.pop(0)
            accumulators = [queue.results[r] if initial[r] is None else initial[r].view(np.uint32) for r in registers]
            extra = {k: v for k, v in options.items() if k.startswith("transpose")}
            self._check_shared(wgmma.shared_addresses(modifiers, a, b, **extra), self.cta)
            results = wgmma.execute(modifiers, accumulators, a, b, self.cta.window, **options)
            queue.results.update(zip(registers, results, strict=True))

    def _check_shared(self, where: np.ndarray, cta: Cta) -> None:
        if cta.window_valid is None or not len(where):
            return
        if int(where.max()) >= len(cta.window_valid):
            raise MemoryFault("a matrix descriptor reaches beyond shared memory", address=int(where.max()))
        bad = cta.window_valid[where] != WRITTEN
        if bad.any():
            state = "nothing has written" if cta.window_valid[where][bad][0] == 0 else "is being written asynchronously"
            raise UninitializedRead(f"tensor core read of shared memory that {state}", address=int(where[bad][0]))

    def in_flight(self, register: int, value: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """What an accumulator register shows until the wait."""
        poison = self.launch.poison_of(register, len(self.warps))
        return poison if mask is None else np.where(self.active(mask), poison, value)

    def wgmma_fence(self, mask: np.ndarray | None) -> None:
        self.converged(mask)
        for queue, _ in self._warpgroups(mask):
            queue.ever_fenced = queue.fenced = True

    def wgmma_commit(self, mask: np.ndarray | None) -> None:
        self.converged(mask)
        for queue, _ in self._warpgroups(mask):
            queue.group += 1

    def on_wgmma_wait(self, mask: np.ndarray | None, count: int) -> None:
        """A product needs what all lanes have read, so that its end counts as a barrier of the warp."""
        self.converged(mask)
        self.warp_sync(mask)
        for queue, rows in self._warpgroups(mask):
            last = queue.group - 1 - count
            self._carry_out(queue, last)
            for register in [r for r, group in queue.written.items() if group <= last]:
                old = self.registers[register]
                new = old.copy()
                queue.fenced = False
                queue.delivered[register] = queue.results.pop(register)
                new[rows] = queue.delivered[register].view(old.dtype)
                self.registers[register] = new
                queue.in_flight.discard(register)
                del queue.written[register]

    # tcgen05

    def _tmem(self) -> TensorMemory:
        return self.cta.tensor_memory

    def _group(self, modifiers: tuple[str, ...]) -> list[Cta]:
        """The CTAs that an instruction works on, even rank first."""
        if "cta_group::2" not in modifiers:
            return [self.cta]
        even = self.cta.rank & ~1
        return [self.cta.peer(even), self.cta.peer(even + 1)]

    def on_tmem_alloc(
        self, mask: np.ndarray | None, modifiers: tuple[str, ...], address: np.ndarray, count: np.ndarray
    ) -> Wait | None:
        self.converged(mask)
        memory = self._tmem()
        rows = np.flatnonzero(self.active(mask).any(1))
        if len(rows) != 1:
            raise UnsupportedInstruction(f"tcgen05.alloc by {len(rows)} warps at once")
        columns = int(count[rows[0], 0])
        if columns not in (32, 64, 128, 256, 512):
            raise UnsupportedInstruction(f"tcgen05.alloc of {columns} columns: expected a power of 2 from 32 to 512")
        if memory.relinquished:
            raise BarrierFault("tcgen05.alloc after relinquish_alloc_permit")
        wait = AllocationWait(self.cta, int(address[rows[0], 0]), self._allocation(self._group(modifiers), columns))
        return None if wait.poll(self, mask) else wait

    def _allocation(self, ctas: list[Cta], columns: int) -> PairAllocation:
        memory = ctas[0].tensor_memory
        found = memory.pair or PairAllocation(ctas, columns)
        if found.count != columns or self.cta.rank in found.ranks:
            raise BarrierFault(
                f"tcgen05.alloc.cta_group::2 of {columns} columns while one of {found.count} waits for the other CTA"
            )
        found.ranks.add(self.cta.rank)
        memory.pair = found if len(ctas) == 2 else memory.pair
        return found

    def tmem_dealloc(
        self, modifiers: tuple[str, ...], address: np.ndarray, count: np.ndarray, mask: np.ndarray | None
    ) -> None:
        self.converged(mask)
        memory = self._tmem()
        for row in np.flatnonzero(self.active(mask).any(1)):
            first, columns = int(address[row, 0]), int(count[row, 0])
            if memory.allocated.get(first) != columns:
                raise MemoryFault(
                    f"tcgen05.dealloc of {columns} columns at {first}: allocated are {memory.allocated}", address=first
                )
            del memory.allocated[first]
            memory.wake()

    def tmem_relinquish(self, mask: np.ndarray | None) -> None:
        self._tmem().relinquished = True

    def tmem_fence(self, action: str, mask: np.ndarray | None) -> None:
        """It counts for the checks: the words of tensor memory have one order here, that of the queue."""
        if self.cta.races is not None:
            self.cta.races.fence_tensor(self.agents(mask), "before" in action)

    def tmem_wait(self, mask: np.ndarray | None) -> None:
        """tcgen05.wait::ld: what the loads before it have read may be written again."""
        self.converged(mask)
        loads = self._tmem().loads
        if loads:
            for warp in self.warps[self.active(mask).any(1)]:
                loads.pop(int(warp), None)

    def _check_allocated(self, memory: TensorMemory, low: int, high: int) -> None:
        for first, columns in memory.allocated.items():
            if first <= low and high < first + columns:
                return
        raise MemoryFault(f"columns {low} to {high} of tensor memory are not allocated: {memory.allocated}")

    def _transfers(
        self, operation: str, modifiers: tuple[str, ...], address: np.ndarray, mask: np.ndarray | None, split: object
    ) -> Iterable[tuple[int, int, int | None, tuple]]:
        self.converged(mask)
        form = tcgen05_moves.transfer_form(operation, tuple(m for m in modifiers if m != operation))
        own_lanes = "tcgen05-lanes" in self.device.checks
        for row in np.flatnonzero(self.active(mask).any(1)):
            where = int(address[row, 0])
            if not own_lanes:  # as if the bits of the lane that name a warp's quarter counted for nothing
                where = where & ~(3 << 21) | int(self.warps[row]) % 4 << 21
            half = None if split is None else int(np.broadcast_to(split, self.shape)[row, 0])
            cells = tcgen05_moves.cells(form, where, int(self.warps[row]), half)
            self._check_allocated(self._tmem(), int(cells[1].min()), int(cells[1].max()))
            yield int(row), where, half, cells

    def tmem_load(
        self, modifiers: tuple[str, ...], registers: int, address: np.ndarray, mask: np.ndarray | None, split: object
    ) -> list[np.ndarray]:
        """The values of the registers, uint32 [warps, 32] each.

        Whatever takes them waits for the load, with a tcgen05.wait::ld or without: an intra-thread ordering through
        true register dependency is respected (9.7.16.6.4.5), and ptxas gives the load a scoreboard for it.
        """
        form = tcgen05_moves.transfer_form("ld", tuple(m for m in modifiers if m != "ld"))
        if registers != form.registers:
            raise UnsupportedInstruction(f"tcgen05.ld with {registers} registers, expected {form.registers}")
        memory = self._tmem()
        loaded = np.zeros((registers, *self.shape), np.uint32)
        for row, where, half, cells in self._transfers("ld", modifiers, address, mask, split):
            if "unwritten" in self.device.checks:
                if memory.busy[cells].any():
                    raise UninitializedRead("read of tensor memory while an mma or copy into it is in flight",
                                            address=where, warp=row)  # fmt: skip
                if not memory.written[cells].all():
                    raise UninitializedRead("read of tensor memory that nothing has written", address=where, warp=row)
            warp = int(self.warps[row])
            if memory.order is not None:
                memory.order.read(self.agent(row), np.unique(cells[1]))
            if "tcgen05-wait" in self.device.checks:
                memory.loads.setdefault(warp, []).append(cells)
            loaded[:, row] = tcgen05_moves.load(form, memory.words, where, warp, half).T
        return list(loaded)

    def tmem_store(
        self, modifiers: tuple[str, ...], address: np.ndarray, values: list[np.ndarray], mask: np.ndarray | None,
        split: object,
    ) -> None:  # fmt: skip
        form = tcgen05_moves.transfer_form("st", tuple(m for m in modifiers if m != "st"))
        memory = self._tmem()
        stacked = np.stack(values, -1)
        for row, where, half, cells in self._transfers("st", modifiers, address, mask, split):
            if memory.order is not None:
                memory.order.write(self.agent(row), np.unique(cells[1]))
            memory.check_loads(cells)
            tcgen05_moves.store(form, memory.words, where, int(self.warps[row]), stacked[row], half)
            memory.written[cells] = True

    def _post_tensor(self, name: str, ctas: list[Cta], run: object) -> None:
        """Queues work behind all that the tensor cores of these CTAs were given before."""
        before = [cta.tensor_queue for cta in ctas if cta.tensor_queue is not None]
        operation = self.launch.operation(name, self.cta, [run], before)
        for cta in ctas:
            cta.tensor_queue = operation
        self.launch.post(operation)

    def tmem_mma(self, modifiers: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        form_modifiers = tuple(m for m in modifiers if m != "mma")
        for row, lane in self.lanes(mask):
            self._issue_mma(form_modifiers, operands, row, lane)

    def _issue_mma(self, modifiers: tuple[str, ...], operands: tuple, row: int, lane: int) -> None:
        def number(operand: object) -> int:
            value = operand[0] if isinstance(operand, tuple) else operand
            return int(value) if isinstance(value, int) else int(np.broadcast_to(value, self.shape)[row, lane])

        d, a, b, idesc, *rest = operands
        options: dict[str, object] = {"a_in_tmem": isinstance(a, tuple)}
        if "block_scale" in modifiers:
            options["scale_a"], options["scale_b"] = number(rest.pop(0)), number(rest.pop(0))
        footprint_options = dict(options)
        if isinstance(rest[0], list):
            options["disable_output_lane"] = [number(v) for v in rest.pop(0)]
        accumulate = bool(number(rest.pop(0)))
        if rest:
            options["scale_input_d"] = number(rest.pop(0))
        place = (number(d), number(a), number(b), number(idesc), accumulate)
        ctas = self._group(modifiers)
        if len(ctas) == 2 and self.cta.rank & 1:
            raise UnsupportedInstruction("tcgen05.mma.cta_group::2 issued by the CTA of odd rank")
        memories = [cta.tensor_memory for cta in ctas]
        footprint = tcgen05_mma.mma_footprint(modifiers, *place, **footprint_options) if self.device.checks else None
        if footprint is not None:
            self.asynchronous_read(row, footprint.shared[0][::4])
            for memory, reads, writes in zip(memories, footprint.reads, footprint.writes, strict=True):
                columns = np.flatnonzero(writes.any(0))
                self._check_allocated(memory, int(columns[0]), int(columns[-1]))
                if memory.order is not None:
                    memory.order.read(self.agent(row), np.flatnonzero(reads.any(0)))
                    memory.order.write(self.agent(row), columns)
                memory.check_loads(writes)
                memory.busy += writes

        def run() -> None:
            if footprint is not None:
                for cta, where, reads in zip(ctas, footprint.shared, footprint.reads, strict=True):
                    self._check_shared(where, cta)
                    if "unwritten" in self.device.checks and (reads & ~cta.tensor_memory.written).any():
                        lane_, column = np.argwhere(reads & ~cta.tensor_memory.written)[0]
                        raise UninitializedRead(
                            f"tcgen05.mma reads tensor memory that nothing has written, lane {lane_} column {column}"
                        )
            tcgen05_mma.mma(modifiers, [m.words for m in memories], [cta.window for cta in ctas], *place, **options)
            if footprint is not None:
                for memory, writes in zip(memories, footprint.writes, strict=True):
                    memory.busy -= writes
                    memory.written |= writes

        self._post_tensor("tcgen05.mma", ctas, run)

    def tmem_copy(
        self, modifiers: tuple[str, ...], address: np.ndarray, descriptor: np.ndarray, mask: np.ndarray | None
    ) -> None:
        modifiers = tuple(m for m in modifiers if m != "cp")
        form = tcgen05_moves.copy_form(modifiers)
        ctas = self._group(modifiers)
        for row, lane in self.lanes(mask):
            where, source = int(address[row, lane]), int(descriptor[row, lane])
            cells = tcgen05_moves.copy_cells(form, where)
            self.asynchronous_read(row, tcgen05_moves.copy_addresses(form, source).reshape(-1)[::4])
            for cta in ctas:
                self._check_allocated(cta.tensor_memory, cells[1].start, cells[1].stop - 1)
                if cta.tensor_memory.order is not None:
                    cta.tensor_memory.order.write(self.agent(row), np.arange(cells[1].start, cells[1].stop))
                cta.tensor_memory.check_loads(cells)
                cta.tensor_memory.busy[cells] += 1

            def run(where=where, source=source, cells=cells) -> None:
                for cta in ctas:
                    self._check_shared(tcgen05_moves.copy_addresses(form, source).reshape(-1), cta)
                memories = [cta.tensor_memory.words for cta in ctas]
                tcgen05_moves.copy(modifiers, memories, [cta.window for cta in ctas], where, source)
                for cta in ctas:
                    cta.tensor_memory.busy[cells] -= 1
                    cta.tensor_memory.written[cells] = True

            self._post_tensor("tcgen05.cp", ctas, run)

    def tmem_shift(self, modifiers: tuple[str, ...], address: np.ndarray, mask: np.ndarray | None) -> None:
        modifiers = tuple(m for m in modifiers if m != "shift")
        ctas = self._group(modifiers)
        for row, lane in self.lanes(mask):
            where = int(address[row, lane])
            run = lambda w=where: tcgen05_moves.shift([c.tensor_memory.words for c in ctas], modifiers, w)  # noqa: E731
            self._post_tensor("tcgen05.shift", ctas, run)

    def tmem_commit(
        self, modifiers: tuple[str, ...], address: np.ndarray, targets: np.ndarray | None, mask: np.ndarray | None
    ) -> None:
        """tcgen05.commit: an arrival on each barrier when everything issued before is complete."""
        ctas = self._group(modifiers)
        for row, lane in self.lanes(mask):
            where = int(address[row, lane])
            places = [where]
            if targets is not None:
                places = [rank << 24 | where & 0xFFFFFF for rank in self._ranks(row, lane, where, targets)]
            barriers = [self.mbarrier(place) for place in places]

            clock = None if self.cta.races is None else self.cta.races.commit(self.agent(row))

            def run(barriers=barriers, clock=clock) -> None:
                for barrier in barriers:
                    barrier.arriving = joined(barrier.arriving, clock)
                    barrier.arrive(1)

            self._post_tensor("tcgen05.commit", ctas, run)
