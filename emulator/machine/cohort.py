"""A cohort: warps of one CTA that execute together as one wide vector, and the places where their lanes are.

Lanes that diverge are entries with a program counter and a mask; the lowest program counter runs first. Entries
whose warps are disjoint become cohorts of their own when one of them blocks or when the time slice ends; cohorts
that wait for the same thing at the same place merge. Registers are kept as a list of arrays [warps, 32], replaced
and never written in place.
"""

from __future__ import annotations

import numpy as np

from ..checks.faults import DivergenceFault
from ..checks.races import Clock
from ..text.instructions import Imm, Reg
from .code import Block
from .cta import Cta
from .memory import unsigned
from .special import special

LANES = np.arange(32, dtype=np.uint32)
_MASKED_BY_OPERAND = {"shfl", "vote", "match", "redux", "elect"}


class Wait:
    """What lanes wait for. `key` is equal for waits that end together, or None."""

    key: object = None

    def poll(self, cohort: Cohort, mask: np.ndarray | None) -> bool | np.ndarray:
        raise NotImplementedError

    def register(self, cohort: Cohort) -> bool:
        """Sees to it that the cohort is woken; whether some lanes can go on already."""
        raise NotImplementedError

    def select(self, rows: np.ndarray) -> Wait:
        return self


class Entry:
    """Lanes at one place. `mask` None: all lanes of the cohort. `wait`: what they wait for, before the block `pc`
    runs.
    """

    __slots__ = ("pc", "mask", "wait", "blocked", "deferred")

    def __init__(self, pc: int, mask: np.ndarray | None = None, wait: Wait | None = None):
        self.pc, self.mask, self.wait = pc, mask, wait
        self.blocked = self.deferred = False

    def __str__(self) -> str:
        if self.wait is None:
            return "waits for the other lanes of the warp" if self.deferred else "runs"
        return f"waits for {self.wait}"


_LANES = np.arange(32, dtype=np.int8)


class Cohort:
    """Warps, their registers and where their lanes are. What instructions do is in the classes that derive from it."""

    def __init__(self, cta: Cta, warps: np.ndarray, registers: list[np.ndarray], alive: np.ndarray | None):
        self.cta, self.warps, self.registers = cta, warps, registers
        self.launch = cta.launch
        self.device = cta.launch.device
        self.shape = (len(warps), 32)
        self.alive = None if alive is None or alive.all() else alive
        self.entries: list[Entry] = []
        self.parked = self.dead = False
        self._constants: dict[object, np.ndarray] = {}
        self._places: tuple[np.ndarray, np.ndarray] | None = None

    def __str__(self) -> str:
        return f"CTA {self.cta.index} warps {self.warps.tolist()}"

    # Entries

    def wake(self) -> None:
        if self.dead:
            return
        for entry in self.entries:
            entry.blocked = False
        if self.parked:
            self.parked = False
            self.launch.runnable.append(self)

    def die(self) -> None:
        """Others go on with its warps. Barriers may still know it, and its entries know them."""
        self.dead, self.entries = True, []

    def pick(self) -> Entry | None:
        """The entry to run next: the lowest program counter, now and then another, so that no loop starves the rest."""
        entries = self.entries
        if len(entries) == 1:
            entry = entries[0]
            if entry.deferred:
                self._raise_divergence(entry)
            return None if entry.blocked else entry
        ready = [entry for entry in entries if not entry.blocked and not entry.deferred]
        if not ready:
            for entry in entries:
                if entry.deferred and not any(e.blocked for e in entries):
                    self._raise_divergence(entry)
            return None
        if len(ready) > 1 and self.launch.random.random() < 1 / 16:
            return self.launch.random.choice(ready)
        return min(ready, key=lambda entry: entry.pc)

    def _raise_divergence(self, entry: Entry) -> None:
        instruction = self.launch.program.blocks[entry.pc].instructions[0]
        fault = DivergenceFault("threads of a warp that this instruction needs together are elsewhere or waiting")
        fault.line, fault.text = instruction.line, instruction.text
        fault.warp = int(self.warps[int(np.argmax(entry.mask.any(1)))])
        raise fault

    def split(self, entry: Entry, mask: np.ndarray, pc: int) -> Entry:
        """Moves the lanes of `mask` from an entry to a new one."""
        rest = ~mask if entry.mask is None else entry.mask & ~mask
        if entry.mask is None and self.alive is not None:
            rest &= self.alive
        entry.mask = rest
        new = Entry(pc, mask)
        self.entries.append(new)
        return new

    def join(self, entry: Entry) -> None:
        """Merges an entry with others at the same place, now that it has moved."""
        for other in self.entries:
            if other is not entry and other.pc == entry.pc and other.wait is None and entry.wait is None:
                self.entries.remove(other)
                entry.mask = entry.mask | other.mask
                entry.deferred = False
                if entry.mask.all():
                    entry.mask = None
                break

    def leave(self, entry: Entry, mask: np.ndarray | None) -> None:
        """The lanes of `mask` (None: all of the entry) exit."""
        gone = entry.mask if mask is None else mask if entry.mask is None else entry.mask & mask
        for other in self.entries:
            other.deferred = False
        if gone is None:
            self.entries.remove(entry)
            self.cta.exited(self.warps, np.ones(self.shape, bool))
            return
        alive = np.ones(self.shape, bool) if self.alive is None else self.alive
        self.alive = alive & ~gone
        kept = alive & ~gone if entry.mask is None else entry.mask & ~gone
        if kept.any():
            entry.mask = kept
        else:
            self.entries.remove(entry)
        self.cta.exited(self.warps, gone)

    def converged_lanes(self, entry: Entry, block: Block) -> np.ndarray:
        """bool [warps]: the warps of an entry whose lanes that the block's first instruction needs are all there."""
        mask = entry.mask
        alive = np.ones(self.shape, bool) if self.alive is None else self.alive
        instruction = block.instructions[0]
        needed = alive
        if instruction.opcode in _MASKED_BY_OPERAND or instruction.modifiers[:1] == ("warp",):
            members = instruction.operands[-1]
            if isinstance(members, Reg):
                value = self.registers[members.index].view(np.uint32)
                first = value[np.arange(len(self.warps)), mask.argmax(1)]
                needed = alive & ((first[:, None] >> LANES) & 1 != 0)
            elif isinstance(members, Imm):
                needed = alive & ((np.uint32(members.value & 0xFFFFFFFF) >> LANES) & 1 != 0)
        elif instruction.opcode == "barrier" and "aligned" not in instruction.modifiers:
            return mask.any(1)
        return mask.any(1) & ~(needed & ~mask).any(1)

    # Cohorts

    def select(self, rows: np.ndarray) -> Cohort:
        """A cohort of some of the warps, with the registers that are live in it; the caller gives it its entries."""
        launch = self.launch
        live = self._live()
        count = len(rows)
        registers = launch.poison(count)
        for index in live:
            registers[index] = self.registers[index][rows]
        return type(self)(self.cta, self.warps[rows], registers, None if self.alive is None else self.alive[rows])

    def _live(self) -> frozenset[int]:
        blocks = self.launch.program.blocks
        return frozenset().union(*(blocks[entry.pc].live_in for entry in self.entries if entry.pc < len(blocks)))

    def separate(self) -> list[Cohort]:
        """This cohort as cohorts that share no warp between entries; also drops warps that have exited."""
        if self.dead:
            return []
        if not self.entries:
            self.dead = True
            return []
        if len(self.entries) == 1 and self.entries[0].mask is None and self.alive is None:
            return [self]
        groups: list[tuple[np.ndarray, list[Entry]]] = []
        for entry in self.entries:
            warps = self._all(entry.mask).any(1)
            members = [entry]
            kept = []
            for other, entries in groups:
                if (other & warps).any():
                    warps = warps | other
                    members = entries + members
                else:
                    kept.append((other, entries))
            groups = [*kept, (warps, members)]
        if len(groups) == 1 and groups[0][0].all():
            return [self]
        found = []
        for warps, entries in groups:
            rows = np.flatnonzero(warps)
            part = self.select(rows)
            for entry in entries:
                mask = self._all(entry.mask)[rows]
                new = Entry(entry.pc, None if mask.all() else mask, entry.wait)
                new.deferred = entry.deferred
                part.entries.append(new)
                if entry.wait is not None:
                    new.wait = entry.wait.select(rows)
            found.append(part)
        self.die()
        return found

    def _all(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(self.shape, bool) if self.alive is None else self.alive
        return mask

    def is_whole(self) -> bool:
        return not self.dead and self.alive is None and len(self.entries) == 1 and self.entries[0].mask is None

    @staticmethod
    def merge(cohorts: list[Cohort]) -> Cohort:
        """One cohort of several whole ones at the same place; the first one's wait is kept."""
        first = cohorts[0]
        launch = first.launch
        warps = np.concatenate([c.warps for c in cohorts])
        order = np.argsort(warps, kind="stable")
        sorted_already = bool((order[1:] > order[:-1]).all())
        registers = launch.poison(len(warps))
        for index in first._live():
            value = np.concatenate([c.registers[index] for c in cohorts])
            registers[index] = value if sorted_already else value[order]
        merged = type(first)(first.cta, warps[order], registers, None)
        entry = first.entries[0]
        merged.entries.append(Entry(entry.pc, None, entry.wait))
        for cohort in cohorts:
            cohort.die()
        return merged

    # Races

    def agents(self, mask: np.ndarray | None) -> np.ndarray:
        """Numbers in the cluster of the warps that execute."""
        warps = self.warps if mask is None and self.alive is None else self.warps[self.active(mask).any(1)]
        return warps + self.cta.rank * self.launch.warps

    def agent(self, row: int) -> int:
        return int(self.warps[row]) + self.cta.rank * self.launch.warps

    def accesses(self, address: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(agents, lanes, addresses), flat, of the lanes that execute."""
        if self._places is None:
            agents = self.warps + self.cta.rank * self.launch.warps
            self._places = np.repeat(agents, 32), np.tile(_LANES, len(agents))
        who, lanes = self._places
        address = address.reshape(-1)
        if mask is None and self.alive is None:
            return who, lanes, address
        active = self.active(mask).reshape(-1)
        return who[active], lanes[active], address[active]

    def acquire(self, mask: np.ndarray | None, clock: Clock | None) -> None:
        if self.cta.races is not None:
            self.cta.races.acquire(self.agents(mask), clock)

    # Values that generated code asks for

    def full(self, value: object) -> np.ndarray:
        return np.full(self.shape, value)

    def special(self, name: str) -> np.ndarray:
        if name in ("clock", "clock_hi", "clock64", "globaltimer", "globaltimer_lo", "globaltimer_hi"):
            ticks = self.launch.step * 32
            if name in ("clock64", "globaltimer"):
                return np.full(self.shape, ticks, np.uint64)
            return np.full(self.shape, ticks >> 32 if name.endswith("hi") else ticks & 0xFFFFFFFF, np.uint32)
        found = self._constants.get(name)
        if found is None:
            value = special(name, self.cta, self.warps[:, None].astype(np.uint32))
            kind = np.uint64 if name in ("gridid", "current_graph_exec") else np.uint32
            found = self._constants[name] = np.ascontiguousarray(np.broadcast_to(np.asarray(value, kind), self.shape))
        return found

    def symbol(self, name: str, offset: int, width: int) -> np.ndarray:
        key = (name, offset, width)
        found = self._constants.get(key)
        if found is None:
            address = self.cta.address_of(name) + offset
            found = self._constants[key] = np.full(self.shape, address, unsigned(width))
        return found

    def parameter(self, name: str, offset: int, width: int) -> np.ndarray:
        key = ("parameter", name, offset, width)
        found = self._constants.get(key)
        if found is None:
            value = int.from_bytes(self.launch.parameter_bytes(name, offset, width), "little")
            found = self._constants[key] = np.full(self.shape, value, unsigned(width))
        return found

    def wide(self, value: np.ndarray) -> np.ndarray:
        return np.broadcast_to(value, self.shape)

    def active(self, mask: np.ndarray | None) -> np.ndarray:
        """bool [warps, 32]: the lanes that execute."""
        return self._all(mask)

    def in_whole_warpgroups(self, mask: np.ndarray | None) -> bool | np.ndarray:
        """Those of `mask` whose warpgroup is there with all of its warps; a bool where that is all of them, or none."""
        active = self.active(mask)
        present = active.any(1)
        groups, of_warp, counts = np.unique(self.warps[present] // 4, return_inverse=True, return_counts=True)
        whole = (counts == 4)[of_warp]
        if whole.all() or not whole.any():
            return bool(whole.all())
        rows = np.zeros(len(self.warps), bool)
        rows[present] = whole
        return active & rows[:, None]

    def converged(self, mask: np.ndarray | None) -> None:
        """Faults unless each warp takes part with all of its lanes or with none."""
        active = self.active(mask)
        alive = self._all(None)
        partial = active.any(1) & (alive & ~active).any(1)
        if partial.any():
            raise DivergenceFault(
                "a warp executes an aligned instruction with some of its threads", warp=int(np.argmax(partial))
            )

    def lanes(self, mask: np.ndarray | None) -> list[tuple[int, int]]:
        """(row, lane) of the lanes that execute."""
        return [(int(r), int(lane)) for r, lane in np.argwhere(self.active(mask))]
