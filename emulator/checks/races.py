"""Races on shared memory and missing proxy fences, found with vector clocks.

An agent is a warp. A word of shared memory knows the agent that wrote it last and when, and when each agent last read
it. An access is a race if its agent has not synchronised with those before. Barriers carry clocks from those who arrive
to those who wait; asynchronous operations carry the clock of their issuer. Inside a warp a word also knows its lane: an
access of another lane since the last barrier of the warp, or one that came round to it, is a race too. An arrival of
one lane covers what it did itself, and of the others what came before a barrier of the warp. Reads are over earlier:
ldmatrix and mma.sync need what all lanes have read before any lane goes on, so that writes of whoever comes later, of
the warp or by an arrival of one lane, cannot be seen by them.
A second clock says which generic writes a proxy fence has covered, for the reads of the asynchronous proxy.
"""

from __future__ import annotations

import numpy as np

from .faults import EmulatorFault
from .names import CHECKS

_OFFSET = (1 << 24) - 1
SEVERAL, NONE = -1, -2  # lanes: more than one, and none that could race
CLOCKED = {"warps", "lanes", "proxy-fence", "wgmma-fence", "tcgen05-fence"}  # the checks that need clocks


class RaceFault(EmulatorFault):
    """Accesses to shared memory that nothing orders, or that no proxy fence separates.

    `together`: writes of one instruction that several warps execute at once.
    """

    together = False


Clock = tuple[np.ndarray, ...]  # what was done; what a proxy fence, a tcgen05.fence covers of it; which reads are over


def joined(a: Clock | None, b: Clock | None) -> Clock | None:
    if a is None or b is None:
        return a or b
    return tuple(np.maximum(x, y) for x, y in zip(a, b, strict=True))


class _Shadow:
    """What is known of the words of one CTA's shared memory."""

    def __init__(self, words: int, agents: int):
        self.writer = np.zeros(words, np.int16)
        self.wrote = np.zeros(words, np.int32)
        self.generic = np.zeros(words, bool)  # written by ordinary stores
        self.partial = np.zeros(words, bool)  # written by stores of less than a word, which may share it
        self.read = np.zeros((agents, words), np.int32)
        self.writing_lane = np.full(words, NONE, np.int8)
        self.reading_lane = np.full((agents, words), NONE, np.int8)


class Races:
    """Clocks of the warps of one cluster and the shadow of its shared memory."""

    def __init__(self, ctas: int, warps: int, shared_bytes: int, checks: frozenset[str] = frozenset(CHECKS)):
        agents = ctas * warps
        self.checks = checks
        self.warps, self.words = warps, -(-shared_bytes // 4)
        self.seen = np.eye(agents, dtype=np.int32)
        self.seen_reads = np.eye(agents, dtype=np.int32)  # at least what is seen
        self.own, self.own_reads = (clock.reshape(-1)[:: agents + 1] for clock in (self.seen, self.seen_reads))
        self.fenced = np.zeros((agents, agents), np.int32)
        self.alone = np.zeros((agents, 32), np.int32)  # own clock up to which a lane has released what it did itself
        self.tensor = np.zeros((agents, agents), np.int32)  # tcgen05.fence::before_thread_sync that an agent knows of
        self.tensor_ordered = np.zeros((agents, agents), np.int32)  # those before its last fence::after_thread_sync
        self.converged = np.zeros(agents, np.int32)  # own clock up to which the lanes of an agent are ordered
        self.have_read = np.zeros(agents, np.int32)  # own clock up to which the reads of all lanes are over
        self.shadows = [_Shadow(self.words, agents) for _ in range(ctas)]

    # Clocks

    def release(self, agents: np.ndarray) -> Clock:
        held = self.seen, self.fenced, self.tensor, self.seen_reads
        clock = tuple(known[agents].max(0) for known in held)
        self._tick(agents)
        return clock

    def _tick(self, agents: np.ndarray | int) -> None:
        self.own[agents] += 1
        self.own_reads[agents] += 1

    def release_lane(self, agent: int, lane: int) -> Clock:
        """An arrival of one lane: of what the others did it covers what a barrier of the warp came after."""
        own = self.seen[agent, agent]
        clock = self.release(np.array([agent]))
        clock[0][agent], clock[3][agent] = self.converged[agent], self.have_read[agent]
        self.alone[agent, lane] = own
        return clock

    def acquire(self, agents: np.ndarray, clock: Clock | None) -> None:
        if clock is not None:
            self.seen[agents] = np.maximum(self.seen[agents], clock[0])
            self.fenced[agents] = np.maximum(self.fenced[agents], clock[1])
            self.tensor[agents] = np.maximum(self.tensor[agents], clock[2])
            self.seen_reads[agents] = np.maximum(self.seen_reads[agents], clock[3])
            self.converged[agents] = np.maximum(self.converged[agents], clock[0][agents])
            self.have_read[agents] = np.maximum(self.have_read[agents], clock[3][agents])

    def converge(self, agents: np.ndarray) -> None:
        """A barrier of the lanes of each agent."""
        self.converged[agents] = self.have_read[agents] = self.own[agents]
        self._tick(agents)

    def end_reads(self, agents: np.ndarray) -> None:
        """What all lanes of each agent have read is there."""
        self.have_read[agents] = self.own[agents]
        self._tick(agents)

    def fence(self, agents: np.ndarray) -> None:
        """A proxy fence covers all writes that its thread knows of."""
        self.fenced[agents] = np.maximum(self.fenced[agents], self.seen[agents])
        self._tick(agents)

    def fence_tensor(self, agents: np.ndarray, before: bool) -> None:
        """tcgen05.fence before or after what synchronises threads."""
        if before:
            self.tensor[agents, agents] = self.seen[agents, agents]
            self._tick(agents)
        else:
            self.tensor_ordered[agents] = self.tensor[agents]

    def commit(self, agent: int) -> Clock:
        """The clock that a tcgen05.commit carries: the work that its thread has issued needs no fence before it."""
        self.tensor[agent, agent] = self.seen[agent, agent]
        return self.release(np.array([agent]))

    # Accesses: `agents` int [L], their `lanes` int [L] or one for all, shared `address` int [L], each of `size` bytes

    def _each(
        self, agents: np.ndarray, lanes: np.ndarray | int, address: np.ndarray, size: int
    ) -> list[tuple[_Shadow, np.ndarray, np.ndarray, np.ndarray]]:
        address = address.astype(np.int64)
        ranks = address >> 24
        first, count = (address & _OFFSET) >> 2, max(1, size // 4)
        if not len(ranks) or ranks.max() >= len(self.shadows) or first.max() + count > self.words:
            return []  # the access itself faults
        words = first[:, None] + np.arange(count)
        lane = np.full((len(agents), 1), lanes, np.int8) if isinstance(lanes, int) else lanes[:, None]
        if not np.count_nonzero(ranks != ranks[0]):
            return [(self.shadows[int(ranks[0])], agents, lane, words)]
        return [
            (self.shadows[int(r)], agents[here], lane[here], words[here])
            for r in np.unique(ranks)
            for here in (ranks == r,)
        ]

    def read(self, agents: np.ndarray, lanes: np.ndarray | int, address: np.ndarray, size: int) -> None:
        for shadow, who, lane, words in self._each(agents, lanes, address, size):
            column = who[:, None]
            self._after_writes(shadow, column, lane, words, "read")
            when, by = shadow.read.reshape(-1), shadow.reading_lane.reshape(-1)
            at = column * self.words + words
            recent = when.take(at) > self.have_read.take(column)
            by[at] = np.where(recent & (by.take(at) != lane), SEVERAL, lane)
            shared = by.take(at) != lane  # with reads before, or lanes that read one word together
            if np.count_nonzero(shared):
                by[at[shared]] = SEVERAL
            when[at] = self.own.take(who)[:, None]

    def write(
        self, agents: np.ndarray, lanes: np.ndarray | int, address: np.ndarray, size: int, generic: bool = True,
        same: bool = False,
    ) -> None:  # fmt: skip
        """`same`: every thread writes what is there or what the others write; such writes race with reads alone."""
        for shadow, who, lane, words in self._each(agents, lanes, address, size):
            column = who[:, None]
            part = size < 4
            if not (part and shadow.partial[words].any()):
                if not same:
                    self._after_writes(shadow, column, lane, words, "write")
                self._after_reads(shadow, column, lane, words)
                self._after_reads_of_others(shadow, who, words, shadow.read.take(words, 1))
            shadow.writer[words] = column
            shadow.wrote[words] = self.own.take(who)[:, None]
            shadow.generic[words] = generic
            shadow.partial[words] = part
            shadow.writing_lane[words] = NONE if part or same else lane
            if part or same or "warps" not in self.checks:
                continue
            if np.count_nonzero(shadow.writer.take(words) != column):
                row, k = (int(i[0]) for i in np.nonzero(shadow.writer[words] != column))
                word = int(words[row, k])
                fault = self._fault("write", int(who[row]), "written", int(shadow.writer[word]), word)
                fault.together = True
                raise fault

    def asynchronous_write(self, agent: int, address: int, size: int) -> None:
        """A write by the asynchronous proxy, issued by an agent: of whole words in a row, which are many."""
        rank, first = address >> 24, (address & _OFFSET) >> 2
        end = first + size // 4
        if rank >= len(self.shadows) or end > self.words:
            return  # the access itself faults
        shadow, here = self.shadows[rank], slice(first, end)
        words = np.arange(first, end)[None]
        self._ordered(shadow, np.array([[agent]]), words, "write", "written")
        self._after_reads_of_others(shadow, np.array([agent]), words, shadow.read[:, None, here])
        shadow.writer[here] = agent
        shadow.wrote[here] = self.own[agent]
        shadow.generic[here] = shadow.partial[here] = False
        shadow.writing_lane[here] = NONE

    def use(self, agent: int, address: int) -> None:
        """An access to an mbarrier, whose initialisation must be visible.

        A missing fence.mbarrier_init is no fault: compilers' kernels do without it inside a CTA.
        """
        shadow, word = self.shadows[address >> 24], (address & _OFFSET) >> 2
        if shadow.wrote[word] > self.seen[agent, shadow.writer[word]]:  # they are many, and most are in order
            self._ordered(shadow, np.array([[agent]]), np.array([[word]]), "use of an mbarrier", "initialised")

    def asynchronous_read(self, agent: int, rank: int, words: np.ndarray, mark: bool) -> None:
        """A read by the asynchronous proxy, issued by an agent, of words of a CTA."""
        shadow = self.shadows[rank]
        words = words[words < self.words]
        self._ordered(shadow, np.array([[agent]]), words[None], "asynchronous read", "written")
        self._covered(shadow, agent, words)
        if mark:
            shadow.read[agent, words] = self.seen[agent, agent]

    def _ordered(self, shadow: _Shadow, column: np.ndarray, words: np.ndarray, what: str, before: str) -> None:
        """No word that another agent has written unordered."""
        before_it = column * len(self.seen) + shadow.writer.take(words)
        late = shadow.wrote.take(words) > self.seen.reshape(-1).take(before_it)
        if not np.count_nonzero(late):
            return
        late &= ~self._released(shadow.writer[words], shadow.writing_lane[words], shadow.wrote[words])
        if late.any() and "warps" in self.checks:
            row, k = (int(i[0]) for i in np.nonzero(late))
            word = int(words[row, k])
            raise self._fault(what, int(column[row, 0]), before, int(shadow.writer[word]), word)

    def _after_writes(
        self, shadow: _Shadow, column: np.ndarray, lane: np.ndarray, words: np.ndarray, what: str
    ) -> None:
        """No word that another agent has written unordered, or another lane of the same warp since their last
        barrier."""
        self._ordered(shadow, column, words, what, "written")
        late = (shadow.wrote.take(words) > self.converged.take(column)) & (shadow.writer.take(words) == column)
        if np.count_nonzero(late):
            other = shadow.writing_lane[words]
            late &= (other != NONE) & (lane != NONE) & ((other != lane) | (lane == SEVERAL))
            self._raise_between_lanes(late, column, lane, other, words, what, "written")

    def _after_reads_of_others(self, shadow: _Shadow, who: np.ndarray, words: np.ndarray, read: np.ndarray) -> None:
        """No word that an agent has read unordered; `read` [agents, L, words] is when."""
        late = read > self.seen_reads[who].T[:, :, None]
        if not np.count_nonzero(late):
            return
        readers = np.arange(len(late))[:, None, None]
        late &= ~self._released(readers, shadow.reading_lane[:, words], read)
        if late.any() and "warps" in self.checks:
            reader, row, k = (int(i[0]) for i in np.nonzero(late))
            raise self._fault("write", int(who[row]), "read", reader, int(words[row, k]))

    def _released(self, agents: np.ndarray, lanes: np.ndarray, when: np.ndarray) -> np.ndarray:
        """Accesses of lanes that have arrived alone since. Whoever waits for another arrival has them for granted."""
        return (lanes >= 0) & (when <= self.alone[agents, np.maximum(lanes, 0)])

    def _after_reads(self, shadow: _Shadow, column: np.ndarray, lane: np.ndarray, words: np.ndarray) -> None:
        """A word that another lane of the same warp has read since all of its reads were over."""
        late = shadow.read.reshape(-1).take(column * self.words + words) > self.have_read.take(column)
        if np.count_nonzero(late):
            other = shadow.reading_lane[column, words]
            late &= (other != NONE) & (lane != NONE) & ((other != lane) | (lane == SEVERAL))
            self._raise_between_lanes(late, column, lane, other, words, "write", "read")

    def _raise_between_lanes(
        self, late: np.ndarray, column: np.ndarray, lane: np.ndarray, other: np.ndarray, words: np.ndarray, what: str,
        before: str,
    ) -> None:  # fmt: skip
        if not late.any() or "lanes" not in self.checks:
            return
        row, k = (int(i[0]) for i in np.nonzero(late))
        one, two = ("several lanes" if n < 0 else f"lane {n}" for n in (int(lane[row, 0]), int(other[row, k])))
        raise RaceFault(
            f"{what} by {one} of {self.name(int(column[row, 0]))} of shared memory that {two} of it has {before}, "
            "with no barrier of the warp between",
            address=4 * int(words[row, k]),
            check="lanes",
        )

    def _covered(self, shadow: _Shadow, agent: int, words: np.ndarray) -> None:
        bare = shadow.generic[words] & (shadow.wrote[words] > self.fenced[agent, shadow.writer[words]])
        if bare.any() and "proxy-fence" in self.checks:
            word = int(words[int(np.argmax(bare))])
            raise RaceFault(
                f"asynchronous read of what {self.name(int(shadow.writer[word]))} wrote, without a proxy fence",
                address=4 * word,
                check="proxy-fence",
            )

    def name(self, agent: int) -> str:
        cta, warp = divmod(agent, self.warps)
        return f"warp {warp}" + (f" of CTA rank {cta}" if len(self.shadows) > 1 else "")

    def _fault(self, what: str, agent: int, before: str, other: int, word: int) -> RaceFault:
        return RaceFault(
            f"{what} by {self.name(agent)} of shared memory that {self.name(other)} has {before}, unordered",
            address=4 * word,
            check="warps",
        )


class TensorOrder:
    """Which agent last wrote each cell of a CTA's tensor memory, a column of 32 lanes, when, and when each agent last
    read it. A warp loads and stores those of 32 lanes, and no other warp of its four reaches them.

    An access is a race where no tcgen05.fence::before_thread_sync (or commit) of the one side, and then
    fence::after_thread_sync of the other, lies between.
    """

    def __init__(self, races: Races, lanes: int, columns: int):
        self._races = races
        self._columns = columns
        cells = lanes // 32 * columns
        self._writer = np.zeros(cells, np.int16)
        self._wrote = np.zeros(cells, np.int32)
        self._read = np.zeros((len(races.seen), cells), np.int32)

    def cells(self, lanes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The cells in which these words lie."""
        return np.unique(lanes // 32 * self._columns + columns)

    def marked(self, words: np.ndarray) -> np.ndarray:
        """The cells of a mask of words, bool [lanes, columns]."""
        return np.flatnonzero(words.reshape(-1, 32, self._columns).any(1))

    def read(self, agent: int, cells: np.ndarray) -> None:
        self._after_writes(agent, cells, "read")
        self._read[agent, cells] = self._races.seen[agent, agent]

    def write(self, agent: int, cells: np.ndarray) -> None:
        self._after_writes(agent, cells, "write")
        late = self._read[:, cells] > self._races.tensor_ordered[agent][:, None]
        late[agent] = False
        if late.any():
            other, k = (int(i[0]) for i in np.nonzero(late))
            raise self._fault("write", agent, "read", other, int(cells[k]))
        self._writer[cells] = agent
        self._wrote[cells] = self._races.seen[agent, agent]

    def forget(self, columns: slice) -> None:
        """Columns that are allocated anew."""
        self._wrote.reshape(-1, self._columns)[:, columns] = 0
        self._read.reshape(len(self._read), -1, self._columns)[:, :, columns] = 0

    def _after_writes(self, agent: int, cells: np.ndarray, what: str) -> None:
        writer = self._writer[cells]
        late = (self._wrote[cells] > self._races.tensor_ordered[agent, writer]) & (writer != agent)
        if late.any():
            k = int(np.argmax(late))
            raise self._fault(what, agent, "written", int(writer[k]), int(cells[k]))

    def _fault(self, what: str, agent: int, before: str, other: int, cell: int) -> RaceFault:
        names = self._races.name(agent), self._races.name(other)
        return RaceFault(
            f"{what} by {names[0]} of column {cell % self._columns} of tensor memory that {names[1]} has {before}, "
            "without a tcgen05.fence on both sides of what orders them",
            check="tcgen05-fence",
        )
