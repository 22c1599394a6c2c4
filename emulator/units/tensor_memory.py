"""Tensor memory, and tcgen05 as a cohort issues it: queues, asynchrony, and what is in flight. The arithmetic is in
`tcgen05_mma` and `tcgen05_moves`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..checks.faults import BarrierFault, MemoryFault, UninitializedRead, UnsupportedInstruction
from ..checks.races import NONE, RaceFault, TensorOrder, joined
from ..machine.barriers import Waiter
from ..machine.cohort import Cohort, Wait
from ..machine.cta import Cta, Unit
from ..machine.memory import WRITTEN
from ..machine.operation import Operation
from . import tcgen05, tcgen05_mma, tcgen05_moves
from .copies import CopyOperations


class TensorMemory(Unit):
    """Tensor memory of a CTA: words uint32 [128, 512], which are written, and how many writes are in flight to each.

    `order`: of its accesses; None without checks, and for kernels without any tcgen05.fence, as compilers make them:
    hardware runs those, too.
    """

    def __init__(self, cta: Cta):
        super().__init__(cta)
        ordered = "tcgen05-fence" in cta.launch.device.checks and cta.launch.program.fences_tensor_memory
        self.order = TensorOrder(cta.races, tcgen05.LANES, tcgen05.COLUMNS) if ordered else None
        self.words = np.full((tcgen05.LANES, tcgen05.COLUMNS), 0x7FFFDEAD, np.uint32)
        self.written = np.zeros((tcgen05.LANES, tcgen05.COLUMNS), bool)
        self.busy = np.zeros((tcgen05.LANES, tcgen05.COLUMNS), np.int16)
        self.allocated: dict[int, int] = {}  # first column -> columns
        self.freed_by_peer: set[int] = set()  # first columns of what the other CTA of the pair has freed
        self.relinquished = False
        self.group: int | None = None  # CTAs of every instruction so far
        self.waiters: list[Waiter] = []
        self.pair: PairAllocation | None = None  # of the even CTA: what one of a pair waits for the other with
        self.loads: dict[int, list[tuple]] = {}  # warp -> cells of its loads that it has not waited for
        self.last: Operation | None = None  # that the tensor core was given

    def close(self) -> None:
        if self.allocated:
            raise MemoryFault(f"the CTA exits with tensor memory allocated: {self.allocated}")

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
        taken = np.any([cta.unit(TensorMemory).taken() for cta in self.ctas], axis=0)
        starts = range(0, tcgen05.COLUMNS - self.count + 1, self.count)
        return next((f for f in starts if not taken[f : f + self.count].any()), None)

    def settle(self) -> bool:
        """Whether the columns are allocated, by now."""
        if self.first is None and (first := self.room()) is not None:
            self.first = first
            self.ctas[0].unit(TensorMemory).pair = None
            for cta in self.ctas:
                cta.unit(TensorMemory).allocate(first, self.count)
                cta.unit(TensorMemory).wake()
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
        self.cta.unit(TensorMemory).waiters.append(cohort)
        return self.allocation.first is not None or self.allocation.room() is not None

    def __str__(self) -> str:
        found = self.allocation
        if len(found.ranks) < len(found.ctas):
            return f"the tcgen05.alloc.cta_group::2 of the other CTA of the pair, for {found.count} columns"
        return f"{found.count} columns of tensor memory, allocated {self.cta.unit(TensorMemory).allocated}"


class TensorMemoryOperations(CopyOperations):
    def _tmem(self) -> TensorMemory:
        return self.cta.unit(TensorMemory)

    def _is_pair(self, modifiers: tuple[str, ...]) -> bool:
        """Whether it is an instruction of cta_group::2; all of a kernel are, or none is (9.7.16.7.1)."""
        memory, count = self._tmem(), 2 if "cta_group::2" in modifiers else 1
        memory.group = memory.group or count
        if memory.group != count:
            raise UnsupportedInstruction(f"tcgen05 with cta_group::{count} after one with cta_group::{memory.group}")
        return count == 2

    def _group(self, modifiers: tuple[str, ...]) -> list[Cta]:
        """The CTAs that an instruction works on, even rank first; neither has exited (9.7.16.5)."""
        if not self._is_pair(modifiers):
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
        memory = ctas[0].unit(TensorMemory)
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
        memory, is_pair = self._tmem(), self._is_pair(modifiers)
        for row in np.flatnonzero(self.active(mask).any(1)):
            first, columns = int(address[row, 0]), int(count[row, 0])
            if memory.allocated.get(first) != columns:
                raise MemoryFault(
                    f"tcgen05.dealloc of {columns} columns at {first}: allocated are {memory.allocated}", address=first
                )
            if memory.busy[:, first : first + columns].any():
                raise MemoryFault("tcgen05.dealloc while an mma or copy to the columns is in flight", address=first)
            del memory.allocated[first]
            memory.wake()
            if is_pair and first not in memory.freed_by_peer:  # both are to free it: what is the other's goes with it
                self.cta.cluster.ctas[self.cta.rank ^ 1].unit(TensorMemory).freed_by_peer.add(first)
            memory.freed_by_peer.discard(first)

    def tmem_relinquish(self, modifiers: tuple[str, ...], mask: np.ndarray | None) -> None:
        self._is_pair(modifiers)
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
            if first <= low and high < first + columns and first not in memory.freed_by_peer:
                return
        freed = f", of which the peer has freed {memory.freed_by_peer}" if memory.freed_by_peer else ""
        raise MemoryFault(f"columns {low} to {high} of tensor memory are not allocated: {memory.allocated}{freed}")

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
                memory.order.read(self.agent(row), memory.order.cells(*cells))
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
                memory.order.write(self.agent(row), memory.order.cells(*cells))
            memory.check_loads(cells)
            tcgen05_moves.store(form, memory.words, where, int(self.warps[row]), stacked[row], half)
            memory.written[cells] = True

    def _post_tensor(self, name: str, ctas: list[Cta], run: Callable[[], None]) -> None:
        """Queues work behind all that the tensor cores of these CTAs were given before."""
        memories = [cta.unit(TensorMemory) for cta in ctas]
        before = [memory.last for memory in memories if memory.last is not None]
        operation = self.launch.operation(name, self.cta, [run], before)
        for memory in memories:
            memory.last = operation
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
        memories = [cta.unit(TensorMemory) for cta in ctas]
        footprint = tcgen05_mma.mma_footprint(modifiers, *place, **footprint_options) if self.device.checks else None
        if footprint is not None:
            for cta, where in zip(ctas, footprint.shared, strict=True):
                self.asynchronous_read(row, where[::4], rank=cta.rank)
            for memory, reads, writes in zip(memories, footprint.reads, footprint.writes, strict=True):
                columns = np.flatnonzero(writes.any(0))
                self._check_allocated(memory, int(columns[0]), int(columns[-1]))
                if memory.order is not None:
                    memory.order.read(self.agent(row), memory.order.marked(reads))
                    memory.order.write(self.agent(row), memory.order.marked(writes))
                memory.check_loads(writes)
                memory.busy += writes

        def run() -> None:
            self._group(modifiers)  # still there
            if footprint is not None:
                for cta, where, reads in zip(ctas, footprint.shared, footprint.reads, strict=True):
                    cta.require_written(where)
                    if "unwritten" in self.device.checks and (reads & ~cta.unit(TensorMemory).written).any():
                        lane_, column = np.argwhere(reads & ~cta.unit(TensorMemory).written)[0]
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
            for cta in ctas:
                self.asynchronous_read(
                    row, tcgen05_moves.copy_addresses(form, source).reshape(-1)[::4], rank=cta.rank
                )
                self._check_allocated(cta.unit(TensorMemory), cells[1].start, cells[1].stop - 1)
                if (order := cta.unit(TensorMemory).order) is not None:
                    columns = np.arange(cells[1].start, cells[1].stop)
                    order.write(self.agent(row), order.cells(cells[0].reshape(-1, 1), columns))
                cta.unit(TensorMemory).check_loads(cells)
                cta.unit(TensorMemory).busy[cells] += 1

            def run(where=where, source=source, cells=cells) -> None:
                self._group(modifiers)  # still there
                for cta in ctas:
                    cta.require_written(tcgen05_moves.copy_addresses(form, source).reshape(-1))
                memories = [cta.unit(TensorMemory).words for cta in ctas]
                tcgen05_moves.copy(modifiers, memories, [cta.window for cta in ctas], where, source)
                for cta in ctas:
                    cta.unit(TensorMemory).busy[cells] -= 1
                    cta.unit(TensorMemory).written[cells] = True

            self._post_tensor("tcgen05.cp", ctas, run)

    def tmem_shift(self, modifiers: tuple[str, ...], address: np.ndarray, mask: np.ndarray | None) -> None:
        modifiers = tuple(m for m in modifiers if m != "shift")
        ctas = self._group(modifiers)
        for row, lane in self.lanes(mask):
            where = int(address[row, lane])
            run = lambda w=where: tcgen05_moves.shift([c.unit(TensorMemory).words for c in ctas], modifiers, w)  # noqa: E731
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
                places = [rank << 24 | where & 0xFFFFFF for rank in self.ranks(row, lane, where, targets)]
            barriers = [self.mbarrier(place) for place in places]

            clock = None if self.cta.races is None else self.cta.races.commit(self.agent(row))

            def run(barriers=barriers, clock=clock) -> None:
                for barrier in barriers:
                    barrier.arriving = joined(barrier.arriving, clock)
                    barrier.arrive(1)

            self._post_tensor("tcgen05.commit", ctas, run)
