"""wgmma as a cohort issues it: queues of warpgroups, and what is in flight. The arithmetic is in `wgmma`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..checks.faults import UnsupportedInstruction
from ..checks.races import RaceFault
from ..machine.cta import Cta, Unit
from ..machine.synchronization import SynchronizationOperations
from . import wgmma


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
        self.reading: dict[int, int] = {}  # register of A -> last group that reads it
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


class Warpgroups(Unit):
    def __init__(self, cta: Cta):
        super().__init__(cta)
        self.queues: dict[int, WarpgroupQueue] = {}  # by the number of the warpgroup


class WarpgroupOperations(SynchronizationOperations):
    def _warpgroups(self, mask: np.ndarray | None) -> Iterable[tuple[WarpgroupQueue, slice]]:
        active = self.active(mask).any(1)
        queues = self.cta.unit(Warpgroups).queues
        for group in np.unique(self.warps[active] // 4):
            rows = np.flatnonzero(self.warps // 4 == group)
            yield queues.setdefault(int(group), WarpgroupQueue()), slice(int(rows[0]), int(rows[0]) + 4)

    def wgmma(
        self, modifiers: tuple[str, ...], registers: list[int], values: list[np.ndarray], fragments: list[int],
        a: object, b: np.ndarray, scale_d: np.ndarray, immediates: tuple[int, ...], mask: np.ndarray | None, line: int,
    ) -> None:  # fmt: skip
        self.converged(mask)
        modifiers = tuple(m for m in modifiers if m != "mma_async")
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
                queue.reading.update(dict.fromkeys(fragments, queue.group))
            if self.cta.races is not None:
                extra = {k: v for k, v in options.items() if k.startswith("transpose")}
                where = wgmma.shared_addresses(modifiers, left, int(b[first, 0]), **extra)
                self.asynchronous_read(first, where[::4], mark=False)  # over when it is carried out
            options_here = options | {"scale_d": bool(scale[first, 0])}
            queue.operations.append((queue.group, modifiers, registers, initial, left, int(b[first, 0]), options_here))
            queue.in_flight.update(registers)
            queue.written.update(dict.fromkeys(registers, queue.group))
            if not self.launch.lazy:
                self._carry_out(queue, first, queue.group)

    def _carry_out(self, queue: WarpgroupQueue, first: int, last: int) -> None:
        """Carries out the operations of the groups up to `last` of the warpgroup whose first row that is."""
        while queue.operations and queue.operations[0][0] <= last:
            _, modifiers, registers, initial, a, b, options = queue.operations.pop(0)
            accumulators = [queue.results[r] if initial[r] is None else initial[r].view(np.uint32) for r in registers]
            extra = {k: v for k, v in options.items() if k.startswith("transpose")}
            where = wgmma.shared_addresses(modifiers, a, b, **extra)
            self.cta.require_written(where)
            self.asynchronous_read(first, where[::4])
            results = wgmma.execute(modifiers, accumulators, a, b, self.cta.window, **options)
            queue.results.update(zip(registers, results, strict=True))

    def in_flight(self, register: int, value: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """What an accumulator register shows until the wait."""
        poison = self.launch.poison_of(register, len(self.warps))
        return poison if mask is None else np.where(self.active(mask), poison, value)

    def overwrite_fragment(self, register: int, mask: np.ndarray | None) -> None:
        """A register gets another value that some wgmma reads: RaceFault where it is in flight (9.7.15.7.3)."""
        if not any(register in queue.reading for queue in self.cta.unit(Warpgroups).queues.values()):
            return
        for queue, _ in self._warpgroups(mask):
            if register in queue.reading:
                raise RaceFault(
                    "a register is written that a wgmma.mma_async in flight reads as a fragment of A",
                    check="wgmma-fence",
                )

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
        for queue, rows in self._warpgroups(mask):
            last = queue.group - 1 - count
            self._carry_out(queue, rows.start, last)
            queue.reading = {register: group for register, group in queue.reading.items() if group > last}
            for register in [r for r, group in queue.written.items() if group <= last]:
                old = self.registers[register]
                new = old.copy()
                queue.fenced = False
                queue.delivered[register] = queue.results.pop(register)
                new[rows] = queue.delivered[register].view(old.dtype)
                self.registers[register] = new
                queue.in_flight.discard(register)
                del queue.written[register]
        self.warp_sync(mask)
