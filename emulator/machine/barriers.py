"""mbarrier objects (PTX ISA 9.7.13.15), CTA barriers (9.7.13.1) and cluster barriers (9.7.13.3)."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..checks.faults import BarrierFault
from ..checks.races import joined

MAX_COUNT = (1 << 20) - 1


class Waiter(Protocol):
    def wake(self) -> None:
        """What was waited for may have come."""


class Use(Protocol):
    """One use of a CTA barrier."""

    def release(self) -> None:
        """All threads have arrived."""


class MBarrier:
    """Counts of one mbarrier object. A phase completes when no arrivals and no bytes are pending."""

    __slots__ = ("name", "expected", "pending", "bytes", "phase", "waiters", "arrivals", "closed", "arriving", "clock")

    def __init__(self, name: str, count: int):
        if not 1 <= count <= MAX_COUNT:
            raise BarrierFault(f"mbarrier.init with a count of {count}: expected 1 to {MAX_COUNT}")
        self.name = name
        self.expected = self.pending = count
        self.bytes = 0
        self.phase = 0
        self.waiters: list[Waiter] = []
        self.arrivals = 0
        self.closed = False  # its CTA has exited
        self.arriving = self.clock = None  # clocks of those who arrive in this phase, and who did before

    def __str__(self) -> str:
        return (
            f"{self.name}: phase {self.phase} (parity {self.phase & 1}), pending arrivals {self.pending} of "
            f"{self.expected}, pending bytes {self.bytes}"
        )

    def token(self) -> int:
        """The state that arrive returns: phase, pending count."""
        return self.phase << 20 | self.pending

    def completed(self, parity: int) -> bool:
        """Whether the phase of this parity, the current or the one before, has completed. Only bit 0 counts."""
        return (self.phase ^ parity) & 1 != 0

    def _check_open(self) -> None:
        if self.closed:
            raise BarrierFault(f"arrival or transaction after the exit of the CTA that owns {self}")

    def arrive(self, count: int, drop: bool = False, keep_phase: bool = False) -> None:
        self._check_open()
        if count > self.pending:
            raise BarrierFault(f"arrival of {count} overruns the phase of {self}")
        if keep_phase and count == self.pending and not self.bytes:
            raise BarrierFault(f"arrive.noComplete completes the phase of {self}")
        self.pending -= count
        self.arrivals += count
        if drop:
            self.expected -= count
        self._advance()

    def expect(self, size: int) -> None:
        self._check_open()
        self.bytes += size
        self._check_bytes()

    def complete(self, size: int, clock: object = None) -> None:
        self._check_open()
        self.arriving = joined(self.arriving, clock)
        self.bytes -= size
        self._check_bytes()
        self._advance()

    def _check_bytes(self) -> None:
        if abs(self.bytes) > MAX_COUNT:
            raise BarrierFault(f"tx-count overflow of {self}")

    def _advance(self) -> None:
        if self.pending or self.bytes:
            return
        self.phase += 1
        self.clock = self.arriving
        self.pending = self.expected
        self.wake()

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for cohort in waiters:
            cohort.wake()


class CtaBarrier:
    """One of the 16 barriers of a CTA. `arrived` are the threads of the current use, bool [warps, 32]."""

    def __init__(self, number: int, warps: int):
        self.number = number
        self.expected: int | None = None  # threads; None: all of the CTA
        self.arrived = np.zeros((warps, 32), bool)
        self.generation: Use | None = None

    def __str__(self) -> str:
        expected = "all threads" if self.expected is None else f"{self.expected} threads"
        warps = np.flatnonzero(self.arrived.any(1)).tolist()
        return f"barrier {self.number}: expects {expected}, warps {warps} have arrived"

    def settle(self, alive: np.ndarray) -> None:
        """Releases the current use if those of the live threads that it needs have arrived."""
        if not self.arrived.any():
            return
        if self.expected is None:
            if (alive & ~self.arrived).any():
                return
        else:
            # A warp whose live threads are all there counts with all 32, also those that have exited.
            rows = self.arrived.any(1)
            whole = rows & ~(alive & ~self.arrived).any(1)
            count = int(32 * whole.sum() + self.arrived[rows & ~whole].sum())
            if count < self.expected:
                return
            if count > self.expected:
                raise BarrierFault(f"{count} threads arrived at {self}")
        generation = self.generation
        self.arrived[:] = False
        self.generation = None
        generation.release()


class ClusterBarrier:
    """barrier.cluster: all threads of the cluster arrive, then wait. Who has arrived is kept by the CTAs."""

    def __init__(self) -> None:
        self.phase = 0
        self.arriving = self.clock = None
        self.waiters: list[Waiter] = []

    def __str__(self) -> str:
        return f"cluster barrier in phase {self.phase}"

    def advance(self) -> None:
        self.phase += 1
        self.clock = self.arriving
        waiters, self.waiters = self.waiters, []
        for cohort in waiters:
            cohort.wake()
