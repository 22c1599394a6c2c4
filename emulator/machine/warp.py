"""Communication between the lanes of a warp (PTX ISA 9.7.9.6 and 9.7.13.9 to 9.7.13.14)."""

from __future__ import annotations

import numpy as np

from .cohort import Cohort

LANES = np.arange(32, dtype=np.int64)
_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def ballot(lanes: np.ndarray) -> np.ndarray:
    """uint32 [warps, 1] with a bit for every true lane of bool [warps, 32]."""
    return (lanes * _BITS).sum(1, dtype=np.uint32)[:, None]


class WarpOperations(Cohort):
    """Only lanes that execute and are named in the member mask take part."""

    def _members(self, members: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        return self.active(mask) & ((members & _BITS) != 0)

    def shuffle(
        self, mode: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, members: np.ndarray, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """shfl.sync: (value, whether the source lane was in range). c holds the clamp and, in bits 8 to 12, the
        segment mask.
        """
        b, c = b.astype(np.int64) & 31, c.astype(np.int64)
        segment, clamp = (c >> 8) & 31, c & 31
        top = (LANES & segment) | (clamp & ~segment)
        bottom = LANES & segment
        match mode:
            case "up":
                source = LANES - b
                valid = source >= top
            case "down":
                source = LANES + b
                valid = source <= top
            case "bfly":
                source = LANES ^ b
                valid = source <= top
            case _:
                source = bottom | (b & ~segment)
                valid = source <= top
        source = np.where(valid, source, LANES) & 31
        rows = np.arange(len(a))[:, None]
        value = a[rows, source]
        there = self._members(members, mask)
        if mask is not None or self.alive is not None:  # a lane that is not there has no value to give
            value = np.where(there[rows, source], value, np.uint32(0xDEADBEEF))
        return value, valid

    def vote(self, mode: str, a: np.ndarray, members: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        there = self._members(members, mask)
        true = there & a
        match mode:
            case "ballot":
                result = ballot(true)
            case "all":
                result = (true == there).all(1)[:, None]
            case "any":
                result = true.any(1)[:, None]
            case _:
                result = (true == there).all(1)[:, None] | ~true.any(1)[:, None]
        return np.broadcast_to(result, self.shape)

    def match(
        self, mode: str, a: np.ndarray, members: np.ndarray, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        there = self._members(members, mask)
        equal = (a[:, :, None] == a[:, None, :]) & there[:, None, :]
        groups = (equal * _BITS).sum(2, dtype=np.uint32)
        if mode == "any":
            return groups, np.ones(self.shape, bool)
        everybody = np.broadcast_to(ballot(there), self.shape)
        same = groups == everybody
        same = np.broadcast_to((same | ~there).all(1)[:, None], self.shape)
        return np.where(same, everybody, np.uint32(0)), same

    def reduce(
        self, operation: str, a: np.ndarray, members: np.ndarray, mask: np.ndarray | None, absolute: bool, nan: bool
    ) -> np.ndarray:
        """redux.sync over the lanes of the member mask."""
        there = self._members(members, mask)
        kind = a.dtype.type
        if absolute:
            a = np.abs(a)
        match operation:
            case "add":
                result = np.where(there, a, kind(0)).sum(1, dtype=kind)
            case "and":
                result = np.bitwise_and.reduce(np.where(there, a, ~kind(0)), 1)
            case "or":
                result = np.bitwise_or.reduce(np.where(there, a, kind(0)), 1)
            case "xor":
                result = np.bitwise_xor.reduce(np.where(there, a, kind(0)), 1)
            case _:
                function = np.minimum if operation == "min" else np.maximum
                if a.dtype.kind == "f":
                    rest = kind(np.inf if operation == "min" else -np.inf)
                    if not nan:
                        function = np.fmin if operation == "min" else np.fmax
                        all_nan = (np.isnan(a) | ~there).all(1)
                        result = function.reduce(np.where(there, a, rest), 1)
                        result = np.where(all_nan, kind(np.nan), result)
                        return np.broadcast_to(result[:, None], self.shape)
                else:
                    info = np.iinfo(a.dtype)
                    rest = kind(info.max if operation == "min" else info.min)
                result = function.reduce(np.where(there, a, rest), 1)
        return np.broadcast_to(result[:, None], self.shape)

    def elect(self, members: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(leader lane, whether this lane is it): the lowest lane of the member mask, in every warp that takes part."""
        there = self._members(members, mask)
        leader = there.argmax(1).astype(np.uint32)[:, None]
        chosen = there & (LANES[None] == leader)
        return np.broadcast_to(leader, self.shape), chosen

    def active_mask(self, mask: np.ndarray | None) -> np.ndarray:
        return np.broadcast_to(ballot(self.active(mask)), self.shape)
