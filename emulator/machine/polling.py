"""Time limits of mbarrier.try_wait (PTX ISA 9.7.13.15.16): a suspended thread resumes before the phase completes."""

from __future__ import annotations

from .cta import Cluster
from .state import LaunchState
from .waits import MbarrierWait

LIMIT = 1000  # slices after which whoever is suspended resumes
PATIENCE = 100  # times that all threads may resume in vain before the kernel counts as deadlocked


class TimeLimits:
    def __init__(self, launch: LaunchState, resident: list[Cluster]):
        self.launch, self.resident = launch, resident
        self.before: tuple | None = None
        self.vain = 0

    def expire(self) -> bool:
        """Lets every blocked try_wait return false; whether there was one."""
        found = False
        for cohort in [c for cluster in self.resident for cta in cluster.ctas for c in cta.cohorts if c.parked]:
            waiting = [entry for entry in cohort.entries if isinstance(entry.wait, MbarrierWait)]
            for entry in waiting:
                entry.wait.give_up(cohort, entry.mask)
                entry.wait = None
            if waiting:
                cohort.wake()
                found = True
        return found

    def resume(self) -> bool:
        """Where nothing else can go on: whether a try_wait can, and it is not the same each time."""
        now = self._progress()
        self.vain = self.vain + 1 if now == self.before else 0
        self.before = now
        return self.vain < PATIENCE and self.expire()

    def _progress(self) -> tuple:
        """Changes whenever a thread does more than to poll; stores to memory are not seen."""
        ctas = [cta for cluster in self.resident for cta in cluster.ctas]
        barriers = [barrier for cta in ctas for barrier in cta.mbarriers.values()]
        return (
            self.launch.statistics.operations,
            len(self.launch.waiting),
            sum(int(cta.alive.sum()) for cta in ctas),
            sum(barrier.arrivals for barrier in barriers),
            sum(barrier.phase for barrier in barriers),
            sum(int(barrier.arrived.sum()) for cta in ctas for barrier in cta.barriers.values()),
            sum(cluster.barrier.phase for cluster in self.resident),
        )
