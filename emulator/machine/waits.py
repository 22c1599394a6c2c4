"""What the lanes of a cohort wait for: phases of barriers, groups of copies, the other warps of a warpgroup."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .barriers import ClusterBarrier, MBarrier
from .cohort import Cohort, Wait
from .cta import Cta


class MbarrierWait(Wait):
    """Phases of mbarriers: (barrier, phase or parity, which of both, lanes or None for all)."""

    def __init__(self, groups: list[tuple[MBarrier, int, bool, np.ndarray | None]], result: int | None = None):
        self.groups, self.result = groups, result  # the predicate that says whether the phase has completed
        self.key = (id(groups[0][0]), groups[0][1]) if len(groups) == 1 and groups[0][3] is None else None

    @staticmethod
    def done(barrier: MBarrier, wanted: int, parity: bool) -> bool:
        return barrier.completed(wanted) if parity else barrier.phase != wanted >> 20

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool | np.ndarray:
        if len(self.groups) == 1:
            if not self.done(*self.groups[0][:3]):
                return False
            cohort.acquire(mask, self.groups[0][0].clock)
            return True
        ready = np.zeros(cohort.shape, bool)
        for barrier, wanted, parity, lanes in self.groups:
            if self.done(barrier, wanted, parity):
                ready |= lanes
                cohort.acquire(lanes, barrier.clock)
        needed = cohort.active(mask)
        if not (ready & needed).any():
            return False
        return True if not (needed & ~ready).any() else ready & needed

    def register(self, cohort: Cohort) -> bool:
        waiting = [cohort.active(entry.mask) for entry in cohort.entries if entry.wait is self]
        ready = False
        for barrier, wanted, parity, lanes in self.groups:
            if lanes is not None and not any((mask & lanes).any() for mask in waiting):
                continue  # these went on already
            if self.done(barrier, wanted, parity):
                ready = True
            else:
                barrier.waiters.append(cohort)
        return ready

    def select(self, rows: np.ndarray) -> MbarrierWait:
        if len(self.groups) == 1:
            return self
        kept = [(b, w, p, lanes[rows]) for b, w, p, lanes in self.groups if lanes[rows].any()]
        return MbarrierWait(kept or self.groups[:1], self.result)

    def give_up(self, cohort: Cohort, mask: np.ndarray | None) -> None:
        """The result of lanes that do not wait any longer is false."""
        if self.result is not None:
            cohort.registers[self.result] = cohort.registers[self.result] & ~cohort.active(mask)

    def __str__(self) -> str:
        parts = []
        for barrier, wanted, parity, _ in self.groups:
            parts.append(f"{'parity' if parity else 'phase'} {wanted & 1 if parity else wanted >> 20} of {barrier}")
        return "; ".join(parts)


class Generation(Wait):
    """One use of a CTA barrier; ends for everybody at once."""

    def __init__(self, name: str):
        self.name, self.done = name, False
        self.waiters: list[Cohort] = []
        self.key = None
        self.clock = None
        self.reductions: list[tuple[Cohort, np.ndarray | None, np.ndarray]] = []
        self.result: int | None = None

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool:
        if self.done:
            cohort.acquire(mask, self.clock)
        return self.done

    def register(self, cohort: Cohort) -> bool:
        self.waiters.append(cohort)
        return self.done

    def release(self) -> None:
        self.done = True
        merged: dict[int, list[Cohort]] = {}
        waiters, self.waiters = self.waiters, []
        for cohort in dict.fromkeys(waiters):
            if cohort.dead:
                continue
            if cohort.is_whole() and cohort.parked and cohort.entries[0].wait is self:
                merged.setdefault(cohort.entries[0].pc, []).append(cohort)
            else:
                cohort.wake()
        for cohorts in merged.values():
            if len(cohorts) == 1:
                cohorts[0].wake()
            else:
                first = cohorts[0]
                whole = first.merge(cohorts)
                first.cta.replace(cohorts, [whole])
                whole.parked = True
                whole.wake()

    def __str__(self) -> str:
        return self.name


class ReductionResult(Wait):
    """barrier.red: writes the result to a register when the barrier completes."""

    def __init__(self, generation: Generation, register: int, kind: str, operation: str):
        self.generation, self.target, self.kind, self.operation = generation, register, kind, operation

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool:
        if not self.generation.poll(cohort, mask):
            return False
        values = np.concatenate(self.generation.reductions)
        result = {"popc": values.sum(), "and": values.all(), "or": values.any()}[self.operation]
        kind = np.bool_ if self.kind == "pred" else np.uint32
        old = cohort.registers[self.target]
        new = np.full(cohort.shape, result, kind).view(old.dtype)
        cohort.registers[self.target] = new if mask is None else np.where(mask, new, old)
        return True

    def register(self, cohort: Cohort) -> bool:
        return self.generation.register(cohort)

    def __str__(self) -> str:
        return str(self.generation)


class ClusterWait(Wait):
    def __init__(self, barrier: ClusterBarrier, phase: int):
        self.barrier, self.phase = barrier, phase
        self.key = (id(barrier), phase)

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool:
        if self.barrier.phase <= self.phase:
            return False
        cohort.acquire(mask, self.barrier.clock)
        return True

    def register(self, cohort: Cohort) -> bool:
        self.barrier.waiters.append(cohort)
        return self.barrier.phase > self.phase

    def __str__(self) -> str:
        return str(self.barrier)


class GroupWait(Wait):
    """Groups of asynchronous copies of the threads of a cohort: `pending` says whether some are not complete."""

    def __init__(self, cta: Cta, name: str, pending: Callable[[], bool]):
        self.cta, self.name, self.pending = cta, name, pending

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool:
        return not self.pending()

    def register(self, cohort: Cohort) -> bool:
        self.cta.copy_waiters.append(cohort)
        return not self.pending()

    def __str__(self) -> str:
        return self.name


class WarpgroupWait(Wait):
    """The other warps of the warpgroup, which a wgmma instruction needs."""

    def __init__(self, pc: int):
        self.pc = pc
        self.key = ("warpgroup", pc)

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool | np.ndarray:
        return cohort.in_whole_warpgroups(mask)

    def register(self, cohort: Cohort) -> bool:
        waiting = [entry.mask for entry in cohort.entries if entry.wait is self]
        return any(cohort.in_whole_warpgroups(mask) is not False for mask in waiting)

    def __str__(self) -> str:
        return "the other warps of the warpgroup"


class SeveralGenerations(Wait):
    """Barriers of different warps of one cohort."""

    def __init__(self, parts: list[tuple[Generation, np.ndarray]]):
        self.parts = parts

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool | np.ndarray:
        ready = np.zeros(cohort.shape, bool)
        for generation, lanes in self.parts:
            if generation.poll(cohort, lanes):
                ready |= lanes
        needed = cohort.active(mask)
        if not (ready & needed).any():
            return False
        return True if not (needed & ~ready).any() else ready & needed

    def register(self, cohort: Cohort) -> bool:
        return any([generation.register(cohort) for generation, _ in self.parts])

    def select(self, rows: np.ndarray) -> Wait:
        kept = [(generation, lanes[rows]) for generation, lanes in self.parts if lanes[rows].any()]
        return kept[0][0] if len(kept) == 1 else SeveralGenerations(kept)

    def __str__(self) -> str:
        return "; ".join(str(generation) for generation, _ in self.parts)
