"""Counts of what launches execute, access by access, and when each warp runs or waits.

    with profile() as launches:
        loader.launch(...)  # or Device.launch
    print(report(launches[0]))

A warp-instruction is an instruction that one warp executes, with whatever lanes. Loads and stores are judged by the
addresses of a warp. Shared memory has 32 banks of 4 bytes; a warp's access goes in phases of 32 lanes of up to 4 bytes,
16 lanes of 8 or 8 lanes of 16, and a phase takes as many wavefronts as the busiest bank has different words to move:
all beyond one are bank conflicts. Global memory moves in sectors of 32 bytes. What tensor cores read from shared
memory, and what bulk copies write there, are no accesses of a warp. Caches and time are not modelled; a step of a CTA
is a basic block that its warps execute together, or a step of one of its asynchronous operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from ..device import launcher
from ..execution.program import Program
from ..machine.code import Block
from ..machine.cohort import Cohort, Wait
from ..machine.device import Machine
from ..machine.launch import Launch
from ..machine.memory import WINDOW_SHIFT
from ..machine.operation import Operation
from ..machine.state import Statistics
from ..machine.waits import MbarrierWait, WarpgroupWait
from ..text.instructions import Source
from ..units import ldmatrix
from ..units.tensor_memory import AllocationWait
from ..units.warps import Warps

BANKS, WORD, SECTOR, ROW = 32, 4, 32, 16
READY, RUNS, EXITED = "ready", "runs", "exited"
ROLE = 2 / 3  # of the code that two warps execute, the part that is common to warps of one role
SHOWN = 12  # rows of a table that could be long
_WAITS = (
    "mbarrier.try_wait", "mbarrier.test_wait", "bar.sync", "bar.red", "barrier.sync", "barrier.red",
    "barrier.cluster.wait", "cp.async.wait", "cp.async.bulk.wait_group", "wgmma.wait_group", "tcgen05.wait",
)  # fmt: skip

Index: TypeAlias = tuple[int, int, int]  # of a CTA
Warp: TypeAlias = tuple[Index, int]  # CTA, number in it
Site: TypeAlias = tuple[int, frozenset[str]]  # PTX line of a wait, and what is waited for


@dataclass
class Access:
    """A load, store or atomic of the PTX, in one state space.

    `moved` are wavefronts of shared memory or sectors of global memory; `least` is what the same accesses take without
    conflicts, or with the bytes of each packed together.
    """

    space: str
    line: int
    text: str
    requests: int = 0
    moved: int = 0
    least: int = 0

    @property
    def excess(self) -> int:
        return self.moved - self.least


@dataclass
class Role:
    """Warps of a CTA that execute the same code; a CTA without work for it executes less of that code."""

    warps: list[int]
    instructions: Counter[str]  # warp-instructions by opcode with its modifiers
    threads: int  # instructions times the lanes that executed them: divergence and the schedule do not change it


@dataclass
class Profile:
    """What one launch executed."""

    kernel: str
    executed: dict[Warp, Counter[Block]] = field(default_factory=dict)
    lanes: dict[Warp, Counter[Block]] = field(default_factory=dict)  # the same, times the lanes
    accesses: dict[tuple[str, int], Access] = field(default_factory=dict)
    tensor_memory: Counter[str] = field(default_factory=Counter)  # tcgen05.mma and cp that were issued
    timeline: dict[Warp, list[tuple[int, str | Site]]] = field(default_factory=dict)  # (first step, state)
    bytes_loaded: int = 0  # by bulk and tensor copies
    bytes_stored: int = 0
    steps: Counter[Index] = field(default_factory=Counter)  # of each CTA

    def roles(self) -> list[Role]:
        """Warps, over all CTAs, that share at least ROLE of the code that they execute."""
        blocks: dict[int, set[Block]] = {}
        for (_, number), counts in sorted(self.executed.items(), key=lambda item: item[0]):
            blocks.setdefault(number, set()).update(counts)
        groups: list[list[int]] = []
        for number in sorted(blocks):
            for group in groups:
                first = blocks[group[0]]
                if _size(first & blocks[number]) >= ROLE * _size(first | blocks[number]):
                    group.append(number)
                    break
            else:
                groups.append([number])
        return [Role(group, self._instructions(group), self._threads(group)) for group in groups]

    def _instructions(self, numbers: Sequence[int]) -> Counter[str]:
        total: Counter[str] = Counter()
        for (_, number), counts in self.executed.items():
            if number in numbers:
                for block, count in counts.items():
                    for instruction in block.instructions:
                        total[instruction.name] += count
        return total

    def _threads(self, numbers: Sequence[int]) -> int:
        return sum(
            count * len(block.instructions)
            for (_, number), counts in self.lanes.items() if number in numbers
            for block, count in counts.items()
        )  # fmt: skip

    def instructions(self) -> Counter[str]:
        """Warp-instructions by opcode with its modifiers."""
        return sum((role.instructions for role in self.roles()), Counter())

    def tensor(self) -> Counter[str]:
        """Tensor-core instructions: mma by warp, wgmma by warpgroup, tcgen05 by issuing thread."""
        found = Counter(self.tensor_memory)
        for name, count in self.instructions().items():
            if name.startswith("mma."):
                found[name] += count
            elif name.startswith("wgmma.mma_async"):
                found[name] += count // 4
        return found

    def waits(self) -> Counter[str]:
        """Warp-instructions that may wait, whether they had to or not."""
        return Counter({n: c for n, c in self.instructions().items() if n.startswith(_WAITS)})

    def total(self, space: str) -> Access:
        """The sum of the accesses to a state space: shared or global."""
        found = Access(space, 0, "")
        for access in self.accesses.values():
            if access.space == space:
                found.requests += access.requests
                found.moved += access.moved
                found.least += access.least
        return found

    def barriers(self) -> dict[Site, str]:
        """A name for what is waited for at each site; sites that share a line or a barrier share the name."""
        groups: list[tuple[set[Site], set[int], set[str]]] = []
        for site in {state for states in self.timeline.values() for _, state in states if not isinstance(state, str)}:
            sites, lines, names = {site}, {site[0]}, set(site[1])
            for group in [g for g in groups if g[1] & lines or g[2] & names]:
                groups.remove(group)
                sites, lines, names = sites | group[0], lines | group[1], names | group[2]
            groups.append((sites, lines, names))
        return {site: _label(names) for sites, _, names in groups for site in sites}

    def stays(self, warp: Warp) -> list[tuple[int, int, str | Site]]:
        """(first step, step after the last, state) of a warp, in order."""
        states = self.timeline[warp]
        ends = [step for step, _ in states[1:]] + [self.steps[warp[0]]]
        return [(step, end, state) for (step, state), end in zip(states, ends, strict=True)]

    def blocked(self) -> dict[str, tuple[int, int]]:
        """What was waited for -> (how often a warp had to wait, steps that it waited)."""
        labels, found = self.barriers(), {}
        for warp in self.timeline:
            for step, end, state in self.stays(warp):
                if not isinstance(state, str):
                    times, steps = found.get(labels[state], (0, 0))
                    found[labels[state]] = times + 1, steps + end - step
        return dict(sorted(found.items()))

    def counts(self) -> dict[str, object]:
        """What does not depend on the schedule, to be recorded and compared."""
        shared, memory = self.total("shared"), self.total("global")
        return {
            "thread_instructions": {_warps(role.warps): role.threads for role in self.roles()},
            "tensor": dict(sorted(self.tensor().items())),
            "waits": dict(sorted(self.waits().items())),
            "shared": {"requests": shared.requests, "wavefronts": shared.moved, "conflicts": shared.excess},
            "global": {"requests": memory.requests, "sectors": memory.moved},
            "bulk_bytes": {"loaded": self.bytes_loaded, "stored": self.bytes_stored},
        }


def _size(blocks: set[Block]) -> int:
    return sum(len(block.instructions) for block in blocks)


def _label(names: set[str]) -> str:
    barriers = sorted(int(name.split()[1], 16) for name in names if name.startswith("mbarrier "))
    rest = sorted(name for name in names if not name.startswith("mbarrier "))
    if len(barriers) == 1:
        rest.append(f"mbarrier {barriers[0]:#x}")
    elif barriers:
        rest.append(f"{len(barriers)} mbarriers from {barriers[0]:#x} to {barriers[-1]:#x}")
    return ", ".join(rest)


def _warps(numbers: Sequence[int]) -> str:
    """Numbers as ranges: 0, 2-5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


# Collection


class CountedProgram(Program):
    """A program whose blocks tell the launch that they run."""

    def made(self, block: Block, code: Callable) -> Callable:
        def counted(cohort: CountedCohort, registers: list[np.ndarray], mask: np.ndarray | None) -> object:
            cohort.launch.ran(cohort, block, mask)
            return code(cohort, registers, mask)

        return counted


class CountedLaunch(Launch):
    def __init__(self, launches: list[Profile], device: Machine, source: Source, program: Program, *rest: object):
        counted = CountedProgram(program.function, program.files)
        super().__init__(CountedCohort, device, source, counted, *rest)
        self.profile = Profile(self.function.name)
        launches.append(self.profile)

    def gives_up(self) -> bool:
        return False  # the number of polls would depend on the seed

    def run(self) -> Statistics:
        statistics = super().run()
        self.profile.bytes_loaded, self.profile.bytes_stored = statistics.bytes_loaded, statistics.bytes_stored
        return statistics

    def ran(self, cohort: Cohort, block: Block, mask: np.ndarray | None) -> None:
        lanes_of_warps = cohort.active(mask).sum(1)
        running = self._warps_of(cohort, mask)
        if len(running) < len(cohort.warps):
            self._settle(cohort, running)
        for warp, lanes in zip(running, lanes_of_warps[lanes_of_warps > 0], strict=True):
            self.profile.executed.setdefault(warp, Counter())[block] += 1
            self.profile.lanes.setdefault(warp, Counter())[block] += int(lanes)
            self.enter(warp, RUNS)
        self.profile.steps[cohort.cta.index] += 1

    def _run_operation(self, operation: Operation) -> None:
        self.profile.steps[operation.cta.index] += 1
        super()._run_operation(operation)

    def _warps_of(self, cohort: Cohort, mask: np.ndarray | None) -> list[Warp]:
        return [(cohort.cta.index, int(number)) for number in cohort.warps[cohort.active(mask).any(1)]]

    def enter(self, warp: Warp, state: str | Site) -> None:
        """Notes that a warp is in a state from now on."""
        states = self.profile.timeline.setdefault(warp, [])
        if states and states[-1][1] == state:
            return
        if len(states) > 1 and states[-1][1] == READY and states[-2][1] == state != RUNS:  # was woken, and waits on
            states.pop()
        else:
            states.append((self.profile.steps[warp[0]], state))

    def _put_back(self, cohort: Cohort) -> None:
        self._settle(cohort, [])
        super()._put_back(cohort)

    def _settle(self, cohort: Cohort, running: Sequence[Warp]) -> None:
        """Notes what the warps of a cohort do that do not run."""
        states = dict.fromkeys(((cohort.cta.index, int(number)) for number in cohort.warps), EXITED)
        for entry in sorted(cohort.entries, key=lambda entry: entry.wait is None):  # a warp with ready lanes is ready
            state = READY if entry.wait is None else self._site(entry.pc, entry.wait)
            states.update(dict.fromkeys(self._warps_of(cohort, entry.mask), state))
        for warp, state in states.items():
            if warp not in running:
                self.enter(warp, state)

    def _site(self, pc: int, wait: Wait) -> Site:
        blocks = self.program.blocks
        last = blocks[pc].instructions[0] if isinstance(wait, WarpgroupWait) else blocks[pc - 1].instructions[-1]
        match wait:
            case MbarrierWait():
                names = [barrier.name.partition(" of ")[0] for barrier, *_ in wait.groups]
            case AllocationWait():
                names = ["tensor memory"]
            case _:
                names = [part.partition(":")[0].partition(" in phase")[0] for part in str(wait).split("; ")]
        return last.line, frozenset(names)


class CountedCohort(Warps):
    """Counts accesses before they are carried out. Bulk copies and tensor memory are counted elsewhere."""

    def _add(self, space: str, active: np.ndarray, moved: int, least: int) -> None:
        origin = self.launch.origin()
        found = self.launch.profile.accesses.setdefault((space, origin.line), Access(space, origin.line, origin.text))
        found.requests += int(active.any(-1).sum())
        found.moved += moved
        found.least += least

    def _count_shared(self, address: np.ndarray, mask: np.ndarray | None, size: int) -> None:
        active = self.active(mask)
        self._add("shared", active, *wavefronts(address, active, size))

    def _count_global(self, address: np.ndarray, mask: np.ndarray | None, size: int) -> None:
        active = self.active(mask)
        self._add("global", active, *sectors(address, active, size))

    def wake(self) -> None:
        if self.parked and not self.dead:
            for number in self.warps:
                self.launch.enter((self.cta.index, int(number)), READY)
        super().wake()

    def load_shared(self, address, mask, size, count, site=0):  # noqa: ANN001, ANN201
        self._count_shared(address, mask, size * count)
        return super().load_shared(address, mask, size, count, site)

    def store_shared(self, address, mask, size, values, site=0):  # noqa: ANN001, ANN201
        self._count_shared(address, mask, size * len(values))
        super().store_shared(address, mask, size, values, site)

    def load_global(self, address, mask, size, count, site):  # noqa: ANN001, ANN201
        self._count_global(address, mask, size * count)
        return super().load_global(address, mask, size, count, site)

    def store_global(self, address, mask, size, values, site):  # noqa: ANN001, ANN201
        self._count_global(address, mask, size * len(values))
        super().store_global(address, mask, size, values, site)

    def load_generic(self, address, mask, size, count, site):  # noqa: ANN001, ANN201
        if not np.count_nonzero(address[self.active(mask)] >> WINDOW_SHIFT):
            self._count_global(address, mask, size * count)  # `load_global` of this class is not called then
        return super().load_generic(address, mask, size, count, site)

    def atomic(self, space, operation, kind, address, mask, b, c, site):  # noqa: ANN001, ANN201
        active = self.active(mask)
        shared = active & (space == "shared" or space == "generic" and address >> WINDOW_SHIFT != 0)
        if shared.any():
            self._count_shared(address.astype(np.uint32), shared, b.dtype.itemsize)
        if (active & ~shared).any():
            self._count_global(address, active & ~shared, b.dtype.itemsize)
        return super().atomic(space, operation, kind, address, mask, b, c, site)

    def load_matrix(self, rows, mask, modifiers):  # noqa: ANN001, ANN201
        self._matrix_access(rows, mask, ldmatrix.load_form(modifiers))
        return super().load_matrix(rows, mask, modifiers)

    def store_matrix(self, rows, mask, modifiers, values):  # noqa: ANN001, ANN201
        self._matrix_access(rows, mask, ldmatrix.store_form(modifiers))
        super().store_matrix(rows, mask, modifiers, values)

    def _matrix_access(self, rows: np.ndarray, mask: np.ndarray | None, form: ldmatrix.Form) -> None:
        lanes = np.arange(32) < form.rows  # those that give an address
        self._count_shared(rows, self.active(mask) & lanes, ROW)

    def copy_async(self, into, out, mask, size, taken, site):  # noqa: ANN001, ANN201
        self._count_shared(into, mask, size)
        self._count_global(out, mask, size)
        super().copy_async(into, out, mask, size, taken, site)

    def tmem_mma(self, modifiers, operands, mask):  # noqa: ANN001, ANN201
        self.launch.profile.tensor_memory[".".join(("tcgen05", *modifiers))] += int(self.active(mask).sum())
        super().tmem_mma(modifiers, operands, mask)

    def tmem_copy(self, modifiers, address, descriptor, mask):  # noqa: ANN001, ANN201
        self.launch.profile.tensor_memory[".".join(("tcgen05", *modifiers))] += int(self.active(mask).sum())
        super().tmem_copy(modifiers, address, descriptor, mask)


def wavefronts(address: np.ndarray, active: np.ndarray, size: int) -> tuple[int, int]:
    """(wavefronts, phases) of accesses of `size` bytes a lane to shared addresses [warps, 32]."""
    lanes = 32 // max(1, size // WORD)
    words = address.astype(np.int64).reshape(-1, lanes, 1) // WORD + np.arange(max(1, size // WORD))
    there = np.broadcast_to(active.reshape(-1, lanes, 1), words.shape)
    phase = np.broadcast_to(np.arange(len(words)).reshape(-1, 1, 1), words.shape)
    moved = np.unique(np.stack([phase[there], words[there]], -1), axis=0)
    busy = np.zeros((len(words), BANKS), np.int64)
    np.add.at(busy, (moved[:, 0], moved[:, 1] % BANKS), 1)
    return int(busy.max(1).sum()), int(there.any((1, 2)).sum())


def sectors(address: np.ndarray, active: np.ndarray, size: int) -> tuple[int, int]:
    """(sectors, sectors if the bytes lay side by side) of accesses of `size` bytes a lane to addresses [warps, 32]."""
    moved = least = 0
    for where, there in zip(address, active, strict=True):
        different = np.unique(where[there])
        moved += len(np.unique(different // np.uint64(SECTOR)))
        least += -(-len(different) * size // SECTOR)
    return moved, least


@contextmanager
def profile() -> Iterator[list[Profile]]:
    """Counts the launches that this thread makes inside, on any emulated device: a Profile each, in order."""
    launches: list[Profile] = []
    token = launcher.set(partial(CountedLaunch, launches))
    try:
        yield launches
    finally:
        launcher.reset(token)


# Report


def report(found: Profile) -> str:
    """The tables of a profile, as text."""
    shared, memory = found.total("shared"), found.total("global")
    roles = found.roles()
    parts = [
        f"{found.kernel}: {sum(r.instructions.total() for r in roles)} warp-instructions, {len(found.steps)} CTAs, "
        f"at most {max(found.steps.values())} steps each",
        _table("Roles", ("warps", "instructions", "by threads", "most frequent"),
               [(_warps(r.warps), r.instructions.total(), r.threads, _frequent(r.instructions)) for r in roles]),
        _table("Tensor cores", ("instructions", "name"), [(n, name) for name, n in sorted(found.tensor().items())]),
        _table("Waits", ("executed", "instruction"), [(n, name) for name, n in sorted(found.waits().items())]),
        _table("Had to wait for", ("what", "times", "steps"), [(w, *n) for w, n in found.blocked().items()]),
        _table("Memory", ("space", "requests", "moved", "least", "a request"),
               [(name, a.requests, f"{a.moved} {unit}", a.least, f"{a.moved / max(1, a.requests):.2f}")
                for name, a, unit in (("shared", shared, "wavefronts"), ("global", memory, "sectors"))]),
        f"Bulk and tensor copies: {found.bytes_loaded} bytes loaded, {found.bytes_stored} bytes stored",
    ]  # fmt: skip
    for space, what in (("shared", "Bank conflicts"), ("global", "Sectors beyond the least")):
        worst = sorted((a for a in found.accesses.values() if a.space == space and a.excess), key=lambda a: -a.excess)
        rows = [(a.excess, a.requests, a.line, a.text) for a in worst[:SHOWN]]
        rest = sum(a.excess for a in worst[SHOWN:])
        rows += [(rest, "", "", f"{len(worst) - SHOWN} more accesses")] if rest else []
        total = sum(a.excess for a in worst)
        parts.append(_table(f"{what}: {total}", ("beyond", "requests", "PTX line", "access"), rows))
    return "\n\n".join(parts)


def _frequent(instructions: Counter[str]) -> str:
    opcodes: Counter[str] = Counter()
    for name, count in instructions.items():
        opcodes[name.partition(".")[0]] += count
    return ", ".join(f"{count} {name}" for name, count in opcodes.most_common(5))


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of a width each, numbers to the right; the title alone where there are no rows."""
    if not rows:
        return f"{title}: none" if ":" not in title else title
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(row[i], int) or row[i] == "" for row in rows) for i in range(len(headers))]
    lines = ["  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
             for row in cells]  # fmt: skip
    return "\n  ".join([title, *lines])
