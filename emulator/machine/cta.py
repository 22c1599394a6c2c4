"""Clusters and CTAs: shared and local memory, barriers, and the state of the units beside the warps."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from ..checks.faults import MemoryFault, UninitializedRead
from ..checks.races import CLOCKED, Races
from .barriers import ClusterBarrier, CtaBarrier, MBarrier, Waiter
from .memory import RANK_SHIFT, RESERVED_SHARED, WRITTEN, Region
from .state import LaunchState


class Unit:
    """What a unit beside the warps keeps of a CTA; made when the CTA first uses it."""

    def __init__(self, cta: Cta):
        pass

    def close(self) -> None:
        """The last thread of the CTA has exited."""


U = TypeVar("U", bound=Unit)


class Cluster:
    def __init__(self, launch: LaunchState, index: tuple[int, int, int]):
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

    def close(self) -> None:
        """The launch is over. Breaks the circles of references that would keep the memory of the CTAs until Python
        looks for circles, which it does rarely where much else is kept.
        """
        for cta in self.ctas:
            cta.release()
        self.ctas.clear()


class Cta:
    """Shared memory, barriers, units and cohorts of one CTA."""

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
        self.mbarriers: dict[int, MBarrier] = {}
        self.barriers: dict[int, CtaBarrier] = {}
        threads = np.arange(launch.warps * 32).reshape(-1, 32) < launch.threads
        self.alive = threads
        self.cluster_tokens = np.full(threads.shape, -1, np.int64)
        self.copy_waiters: list[Waiter] = []
        self.cohorts: list[Waiter] = []
        self._units: dict[type[Unit], Unit] = {}

    def unit(self, kind: type[U]) -> U:
        found = self._units.get(kind)
        if found is None:
            found = self._units[kind] = kind(self)
        return found

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

    def replace(self, old: list[Waiter], new: list[Waiter]) -> None:
        self.cohorts = [cohort for cohort in self.cohorts if cohort not in old] + new

    def exited(self, warps: np.ndarray, lanes: np.ndarray) -> None:
        self.alive = self.alive.copy()
        self.alive[warps] = self.alive[warps] & ~lanes
        for barrier in self.barriers.values():
            barrier.settle(self.alive)
        self.cluster.check_barrier()
        if not self.alive.any():
            self._close()

    def _close(self) -> None:
        """The last thread has exited: nothing may arrive at the barriers any more."""
        for unit in self._units.values():
            unit.close()
        for barrier in self.mbarriers.values():
            barrier.closed = True

    def release(self) -> None:
        """Lets go of what knows the CTA."""
        self.cohorts.clear()
        self._units.clear()

    def barrier(self, number: int) -> CtaBarrier:
        found = self.barriers.get(number)
        if found is None:
            found = self.barriers[number] = CtaBarrier(number, self.launch.warps)
        return found

    def wake_copies(self) -> None:
        waiters, self.copy_waiters = self.copy_waiters, []
        for cohort in waiters:
            cohort.wake()

    def require_written(self, where: np.ndarray) -> None:
        """Raises where a tensor core reads shared addresses that nothing has written, or only asynchronously."""
        if self.window_valid is None or not len(where):
            return
        if int(where.max()) >= len(self.window_valid):
            raise MemoryFault("a matrix descriptor reaches beyond shared memory", address=int(where.max()))
        bad = self.window_valid[where] != WRITTEN
        if bad.any():
            first = int(where[bad][0])
            state = "is being written asynchronously" if self.window_valid[first] else "nothing has written"
            raise UninitializedRead(f"tensor core read of shared memory that {state}", address=first)
