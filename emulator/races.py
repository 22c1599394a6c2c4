"""Races on shared memory and missing proxy fences, found with vector clocks.

An agent is a warp; lanes of a warp count as ordered. A word of shared memory knows the agent that wrote it last and
when, and when each agent last read it. An access is a race if its agent has not synchronised with those before.
Barriers carry clocks from those who arrive to those who wait; asynchronous operations carry the clock of their issuer.
A second clock says which generic writes a proxy fence has covered, for the reads of the asynchronous proxy.
"""

from __future__ import annotations

import numpy as np

from emulator.faults import EmulatorFault

_OFFSET = (1 << 24) - 1


class RaceFault(EmulatorFault):
    """Accesses to shared memory that nothing orders, or that no proxy fence separates.

    `together`: writes of one instruction that several warps execute at once.
    """

    together = False


Clock = tuple[np.ndarray, np.ndarray]


def joined(a: Clock | None, b: Clock | None) -> Clock | None:
    if a is None or b is None:
        return a or b
    return np.maximum(a[0], b[0]), np.maximum(a[1], b[1])


class _Shadow:
    """What is known of the words of one CTA's shared memory."""

    def __init__(self, words: int, agents: int):
        self.writer = np.zeros(words, np.int16)
        self.wrote = np.zeros(words, np.int32)
        self.generic = np.zeros(words, bool)  # written by ordinary stores
        self.partial = np.zeros(words, bool)  # written by stores of less than a word, which may share it
        self.read = np.zeros((agents, words), np.int32)


class Races:
    """Clocks of the warps of one cluster and the shadow of its shared memory."""

    def __init__(self, ctas: int, warps: int, shared_bytes: int):
        agents = ctas * warps
        self.warps, self.words = warps, -(-shared_bytes // 4)
        self.seen = np.eye(agents, dtype=np.int32)
        self.fenced = np.zeros((agents, agents), np.int32)
        self.shadows = [_Shadow(self.words, agents) for _ in range(ctas)]

    # Clocks

    def release(self, agents: np.ndarray) -> Clock:
        clock = self.seen[agents].max(0), self.fenced[agents].max(0)
        self.seen[agents, agents] += 1
        return clock

    def acquire(self, agents: np.ndarray, clock: Clock | None) -> None:
        if clock is not None:
            self.seen[agents] = np.maximum(self.seen[agents], clock[0])
            self.fenced[agents] = np.maximum(self.fenced[agents], clock[1])

    def fence(self, agents: np.ndarray) -> None:
        """A proxy fence covers all writes that its thread knows of."""
        self.fenced[agents] = np.maximum(self.fenced[agents], self.seen[agents])
        self.seen[agents, agents] += 1

    # Accesses: `agents` int [L], shared `address` int [L], each of `size` bytes

    def _each(self, agents: np.ndarray, address: np.ndarray, size: int) -> list[tuple[_Shadow, np.ndarray, np.ndarray]]:
        address = address.astype(np.int64)
        ranks = address >> 24
        words = ((address & _OFFSET) >> 2)[:, None] + np.arange(max(1, size // 4))
        if not len(ranks) or ranks.max() >= len(self.shadows) or words.max() >= self.words:
            return []  # the access itself faults
        if not np.count_nonzero(ranks != ranks[0]):
            return [(self.shadows[int(ranks[0])], agents, words)]
        return [(self.shadows[int(r)], agents[ranks == r], words[ranks == r]) for r in np.unique(ranks)]

    def read(self, agents: np.ndarray, address: np.ndarray, size: int) -> None:
        for shadow, who, words in self._each(agents, address, size):
            column = who[:, None]
            self._ordered(shadow, column, words, "read", "written")
            shadow.read[column, words] = self.seen[who, who][:, None]

    def write(
        self, agents: np.ndarray, address: np.ndarray, size: int, generic: bool = True, same: bool = False
    ) -> None:
        """`same`: every thread writes what is there or what the others write; such writes race with reads alone."""
        for shadow, who, words in self._each(agents, address, size):
            column = who[:, None]
            part = size < 4
            if not (part and shadow.partial[words].any()):
                if not same:
                    self._ordered(shadow, column, words, "write", "written")
                late = shadow.read[:, words] > self.seen[who].T[:, :, None]
                if late.any():
                    reader, row, k = (int(i[0]) for i in np.nonzero(late))
                    raise self._fault("write", int(who[row]), "read", reader, int(words[row, k]))
            shadow.writer[words] = column
            shadow.wrote[words] = self.seen[who, who][:, None]
            shadow.generic[words] = generic
            shadow.partial[words] = part
            if not part and not same and (shadow.writer[words] != column).any():
                row, k = (int(i[0]) for i in np.nonzero(shadow.writer[words] != column))
                word = int(words[row, k])
                fault = self._fault("write", int(who[row]), "written", int(shadow.writer[word]), word)
                fault.together = True
                raise fault

    def use(self, agent: int, address: int) -> None:
        """An access to an mbarrier, whose initialisation must be visible.

        A missing fence.mbarrier_init is no fault: compilers' kernels do without it inside a CTA.
        """
        words = np.array([[(address & _OFFSET) >> 2]])
        self._ordered(self.shadows[address >> 24], np.array([[agent]]), words, "use of an mbarrier", "initialised")

    def asynchronous_read(self, agent: int, rank: int, words: np.ndarray, mark: bool) -> None:
        """A read by the asynchronous proxy, issued by an agent, of words of a CTA."""
        shadow = self.shadows[rank]
        words = words[words < self.words]
        self._ordered(shadow, np.array([[agent]]), words[None], "asynchronous read", "written")
        self._covered(shadow, agent, words)
        if mark:
            shadow.read[agent, words] = self.seen[agent, agent]

    def _ordered(self, shadow: _Shadow, column: np.ndarray, words: np.ndarray, what: str, before: str) -> None:
        late = shadow.wrote[words] > self.seen[column, shadow.writer[words]]
        if late.any():
            row, k = (int(i[0]) for i in np.nonzero(late))
            word = int(words[row, k])
            raise self._fault(what, int(column[row, 0]), before, int(shadow.writer[word]), word)

    def _covered(self, shadow: _Shadow, agent: int, words: np.ndarray) -> None:
        bare = shadow.generic[words] & (shadow.wrote[words] > self.fenced[agent, shadow.writer[words]])
        if bare.any():
            word = int(words[int(np.argmax(bare))])
            raise RaceFault(
                f"asynchronous read of what {self._name(int(shadow.writer[word]))} wrote, without a proxy fence",
                address=4 * word,
            )

    def _name(self, agent: int) -> str:
        cta, warp = divmod(agent, self.warps)
        return f"warp {warp}" + (f" of CTA rank {cta}" if len(self.shadows) > 1 else "")

    def _fault(self, what: str, agent: int, before: str, other: int, word: int) -> RaceFault:
        return RaceFault(
            f"{what} by {self._name(agent)} of shared memory that {self._name(other)} has {before}, unordered",
            address=4 * word,
        )
