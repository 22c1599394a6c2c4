"""Barriers as a cohort executes them: mbarrier, bar.sync and its kin, cluster barriers, and the order of grids."""

from __future__ import annotations

import numpy as np

from ..checks.faults import BarrierFault, DivergenceFault, MemoryFault, TrapFault, UnsupportedInstruction
from ..checks.races import NONE, joined
from .barriers import MBarrier
from .cohort import Cohort, Wait
from .waits import ClusterWait, Generation, MbarrierWait, ReductionResult, SeveralGenerations


class SynchronizationOperations(Cohort):
    """`on_` methods carry out what ends a block: they return a wait, or None to go on."""

    gives_up = False  # the last mbarrier.try_wait returned early

    # Clocks

    def _use(self, where: int, lanes: np.ndarray) -> None:
        if self.cta.races is not None:
            for row in np.flatnonzero(lanes.any(1)):
                self.cta.races.use(self.agent(row), where)

    def issued(self, row: int) -> object:
        """The clock that an asynchronous operation of a warp carries to those who wait for it."""
        return None if self.cta.races is None else self.cta.races.release(np.array([self.agent(row)]))

    def asynchronous_read(
        self, row: int, address: np.ndarray, mark: bool = True, rank: int | None = None
    ) -> None:
        """Checks a read of shared addresses by the asynchronous proxy, of this CTA or that with the rank."""
        if self.cta.races is not None and len(address):
            owner = self.cta.rank if rank is None else rank
            self.cta.races.asynchronous_read(self.agent(row), owner, (address & 0xFFFFFF) >> 2, mark)

    def asynchronous_write(self, row: int, address: int, size: int, signal: int | None) -> None:
        if self.cta.races is None:
            return
        races, agent = self.cta.races, self.agent(row)
        races.asynchronous_write(agent, address, size)
        if signal is not None:
            races.use(agent, signal)

    def _arrival(self, row: int, lanes: np.ndarray) -> object:
        """The clock of an arrival of lanes of a warp."""
        races, agent = self.cta.races, self.agent(row)
        return races.release_lane(agent, int(lanes[0])) if len(lanes) == 1 else races.release(np.array([agent]))

    # mbarrier

    def mbarrier(self, address: int) -> MBarrier:
        cta = self.cta.peer(address >> 24)
        barrier = cta.mbarriers.get(address & 0xFFFFFF)
        if barrier is None:
            raise BarrierFault("this mbarrier has not been initialised", address=address)
        return barrier

    def _by_address(self, address: np.ndarray, mask: np.ndarray | None) -> list[tuple[int, np.ndarray]]:
        """(address, lanes) of every distinct address of the lanes that execute."""
        active = self.active(mask)
        values = address[active]
        if not len(values):
            return []
        if not np.count_nonzero(values != values[0]):
            return [(int(values[0]), active)]
        return [(int(value), active & (address == value)) for value in np.unique(values)]

    def mbarrier_init(self, address: np.ndarray, count: np.ndarray, mask: np.ndarray | None) -> None:
        for where, lanes in self._by_address(address, mask):
            region = self.cta.shared
            if where % 8:
                raise MemoryFault("mbarrier at an address that is not a multiple of 8", address=where)
            old = self.cta.mbarriers.get(where & 0xFFFFFF)
            if old is not None and old.waiters:
                raise BarrierFault(f"mbarrier.init of a barrier that threads wait for: {old}", address=where)
            region.bytes_at(where, 8)[:] = 0
            region.mark(where, 8, 1)
            if self.cta.races is not None:
                self.cta.races.write(self.agents(lanes), NONE, np.full(int(lanes.any(1).sum()), where), 8)
            name = f"mbarrier {where:#x} of CTA {self.cta.index}"
            self.cta.mbarriers[where & 0xFFFFFF] = MBarrier(name, int(count[lanes][0]))

    def mbarrier_inval(self, address: np.ndarray, mask: np.ndarray | None) -> None:
        for where, _ in self._by_address(address, mask):
            barrier = self.mbarrier(where)
            if barrier.waiters:
                raise BarrierFault(f"mbarrier.inval of a barrier that threads wait for: {barrier}", address=where)
            del self.cta.mbarriers[where & 0xFFFFFF]
            self.cta.shared.mark(where, 8, 0)

    def mbarrier_bytes(self, action: str, address: np.ndarray, size: np.ndarray, mask: np.ndarray | None) -> None:
        for where, lanes in self._by_address(address, mask):
            total = int(size[lanes].sum(dtype=np.int64))
            barrier = self.mbarrier(where)
            self._use(where, lanes)
            barrier.expect(total) if action == "expect_tx" else barrier.complete(total)

    def mbarrier_arrive(
        self, address: np.ndarray, count: np.ndarray | None, expect: bool, drop: bool, keep_phase: bool,
        mask: np.ndarray | None,
    ) -> np.ndarray:  # fmt: skip
        tokens = np.zeros(self.shape, np.uint64)
        for where, lanes in self._by_address(address, mask):
            barrier = self.mbarrier(where)
            tokens[lanes] = barrier.token()
            self._use(where, lanes)
            if self.cta.races is not None:
                for row in np.flatnonzero(lanes.any(1)):
                    barrier.arriving = joined(barrier.arriving, self._arrival(row, np.flatnonzero(lanes[row])))
            total = int(np.count_nonzero(lanes))
            if count is not None:
                amount = int(count[lanes].sum(dtype=np.int64))
                if expect:
                    barrier.expect(amount)
                else:
                    total = amount
            try:
                barrier.arrive(total, drop, keep_phase)
            except BarrierFault as fault:
                fault.address = where
                raise
        return tokens

    def mbarrier_test(
        self, address: np.ndarray, wanted: np.ndarray, parity: bool, mask: np.ndarray | None
    ) -> np.ndarray:
        result = np.zeros(self.shape, bool)
        for where, lanes in self._by_address(address, mask):
            barrier = self.mbarrier(where)
            for value in np.unique(wanted[lanes]):
                done = barrier.completed(int(value)) if parity else barrier.phase != int(value) >> 20
                result[lanes & (wanted == value)] = done
                if done:
                    self.acquire(lanes & (wanted == value), barrier.clock)
        if not result[self.active(mask)].all():
            self.launch.stalls += 1
        return result

    def mbarrier_try(
        self, address: np.ndarray, wanted: np.ndarray, parity: bool, mask: np.ndarray | None
    ) -> np.ndarray:
        """What try_wait returns: true once it has waited; now and then it gives up before the phase is complete."""
        self.gives_up = self.launch.gives_up()
        return self.mbarrier_test(address, wanted, parity, mask) if self.gives_up else self.full(True)

    def on_mbarrier_wait(
        self, mask: np.ndarray | None, address: np.ndarray, wanted: np.ndarray, parity: bool, result: int | None
    ) -> Wait | None:
        if self.gives_up:
            return None
        groups = []
        for where, lanes in self._by_address(address, mask):
            barrier = self.mbarrier(where)
            self._use(where, lanes)
            values = wanted[lanes]
            keys = (values & values.dtype.type(1)) if parity else values
            if not np.count_nonzero(keys != keys[0]):
                groups.append((barrier, int(keys[0]), parity, lanes))
            else:
                all_keys = wanted & wanted.dtype.type(1) if parity else wanted
                groups += [(barrier, int(v), parity, lanes & (all_keys == v)) for v in np.unique(keys)]
        if len(groups) == 1:
            barrier, value, parity, _ = groups[0]
            if MbarrierWait.done(barrier, value, parity):
                self.acquire(mask, barrier.clock)
                return None
            return MbarrierWait([(barrier, value, parity, None)], result)
        return MbarrierWait(groups, result) if groups else None

    # Barriers of a warp

    def warp_sync(self, mask: np.ndarray | None) -> None:
        if self.cta.races is not None:
            self.cta.races.converge(self.agents(mask))

    def end_reads(self, mask: np.ndarray | None) -> None:
        """mma.sync: no lane goes on before all have the operands that they read."""
        if self.cta.races is not None:
            self.cta.races.end_reads(self.agents(mask))

    # CTA barriers

    def _barrier_number(self, number: np.ndarray, mask: np.ndarray | None) -> int:
        values = np.unique(number[self.active(mask)])
        if len(values) != 1 or values[0] > 15:
            raise BarrierFault(f"barrier numbers {values.tolist()}: expected one of 0 to 15 for the threads of a warp")
        return int(values[0])

    def _arrive(
        self, mask: np.ndarray | None, number: np.ndarray, threads: np.ndarray | None, aligned: bool
    ) -> Generation:
        active = self.active(mask)
        if aligned and mask is not None:
            self.converged(mask)
        barrier = self.cta.barrier(self._barrier_number(number, mask))
        expected = None
        if threads is not None:
            counts = np.unique(threads[active])
            expected = int(counts[0])
            if len(counts) != 1 or expected % 32 or not expected or expected > self.launch.warps * 32:
                raise BarrierFault(
                    f"barrier {barrier.number} with {counts.tolist()} threads of {self.launch.warps * 32}"
                )
        if barrier.generation is None:
            barrier.generation = Generation("")
        generation = barrier.generation
        if not barrier.arrived.any():
            barrier.expected = expected
        elif barrier.expected != expected:
            raise BarrierFault(f"barrier {barrier.number} with {expected} threads, others gave {barrier.expected}")
        if (barrier.arrived[self.warps] & active).any():
            raise BarrierFault(f"a warp arrives twice in one use of {barrier}")
        barrier.arrived[self.warps] |= active
        if self.cta.races is not None:
            generation.clock = joined(generation.clock, self.cta.races.release(self.agents(active)))
        generation.name = str(barrier)
        barrier.settle(self.cta.alive)
        return generation

    def on_bar_sync(
        self, mask: np.ndarray | None, number: np.ndarray, threads: np.ndarray | None, aligned: bool
    ) -> Wait | None:
        groups = np.unique(number[self.active(mask)])
        if len(groups) > 1:  # warps that use different barriers
            return self._several_barriers(mask, number, threads, aligned, groups)
        generation = self._arrive(mask, number, threads, aligned)
        return None if generation.poll(self, mask) else generation

    def _several_barriers(
        self, mask: np.ndarray | None, number: np.ndarray, threads: np.ndarray | None, aligned: bool, groups: np.ndarray
    ) -> Wait:
        active = self.active(mask)
        parts = []
        for value in groups:
            lanes = active & (number == value)
            if (lanes.any(1) & (active & ~lanes).any(1)).any():
                raise DivergenceFault("threads of a warp use different barriers")
            parts.append((self._arrive(lanes, number, threads, False), lanes))
        return SeveralGenerations(parts)

    def on_bar_arrive(
        self, mask: np.ndarray | None, number: np.ndarray, threads: np.ndarray | None, aligned: bool
    ) -> None:
        if threads is None:
            raise BarrierFault("bar.arrive needs the number of threads")
        for value in np.unique(number[self.active(mask)]):
            lanes = self.active(mask) & (number == value)
            self._arrive(None if lanes.all() else lanes, number, threads, aligned)

    def on_bar_reduce(
        self, mask: np.ndarray | None, number: np.ndarray, threads: np.ndarray | None, operation: str,
        value: np.ndarray, register: int, kind: str,
    ) -> Wait:  # fmt: skip
        barrier = self.cta.barrier(self._barrier_number(number, mask))
        generation = barrier.generation or Generation(str(barrier))
        barrier.generation = generation
        generation.reductions.append(value[self.active(mask)])
        reached = self._arrive(mask, number, threads, False)
        return ReductionResult(reached, register, kind, operation)

    # Cluster barriers

    def on_cluster_arrive(self, mask: np.ndarray | None) -> None:
        active = self.active(mask)
        phase = self.cta.cluster.barrier.phase
        tokens = self.cta.cluster_tokens
        if (tokens[self.warps][active] == phase).any():
            raise BarrierFault("barrier.cluster.arrive twice without a wait")
        barrier = self.cta.cluster.barrier
        if self.cta.races is not None:
            barrier.arriving = joined(barrier.arriving, self.cta.races.release(self.agents(active)))
        block = tokens[self.warps]
        block[active] = phase
        tokens[self.warps] = block
        self.cta.cluster.check_barrier()

    def on_cluster_wait(self, mask: np.ndarray | None) -> Wait | None:
        tokens = self.cta.cluster_tokens[self.warps][self.active(mask)]
        if (tokens < 0).any():
            raise BarrierFault("barrier.cluster.wait without an arrive")
        wait = ClusterWait(self.cta.cluster.barrier, int(tokens.max()))
        return None if wait.poll(self, mask) else wait

    # Others

    def on_pause(self, mask: np.ndarray | None) -> None:
        self.launch.yielded = True

    def grid_wait(self, mask: np.ndarray | None) -> None:
        if self.active(mask).any():
            self.cta.space = self.device.space

    def grid_launch_dependents(self, mask: np.ndarray | None) -> None:
        if self.active(mask).any():
            self.launch.allows_dependents = True
            self.launch.waits_before |= self.cta.space is self.device.space

    def on_trap(self, mask: np.ndarray | None, text: str) -> None:
        active = self.active(mask)
        if active.any():
            row, lane = np.argwhere(active)[0]
            raise TrapFault(f"the kernel executed {text}", warp=int(row), lane=int(lane))

    def on_call(self, mask: np.ndarray | None, text: str) -> None:
        if not self.active(mask).any():
            return
        if "__assertfail" in text:
            raise TrapFault("an assertion of the kernel failed")
        raise UnsupportedInstruction("calls of functions are not implemented")
