"""Swizzling modes of shared memory: which byte a linear offset lands on (PTX ISA 5.5.7).

A mode XORs bits of the 128-byte line index into the position inside the line, so each is an involution on addresses.
The pattern hangs on absolute shared-memory addresses: pass addresses, not offsets from an unaligned tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checks.faults import IllegalInstruction


@dataclass(frozen=True)
class Swizzle:
    """Bits [7, 7 + bits) of the address are XORed into bits [target, target + bits)."""

    span: int  # bytes of a row that a swizzled tile has
    bits: int
    target: int
    flip: bool = False  # swap the 8-byte halves of 16 bytes in odd lines

    @property
    def period(self) -> int:
        """Bytes after which the pattern repeats; the alignment at which its base offset is 0."""
        return 128 << self.bits

    def apply(self, address: np.ndarray | int) -> np.ndarray | int:
        """Shared-memory address that holds the byte which is at `address` without swizzling."""
        line = address >> 7 & ((1 << self.bits) - 1)
        swizzled = address ^ line << self.target
        return swizzled ^ ((address >> 7 & 1) << 3) if self.flip else swizzled


NONE = Swizzle(16, 0, 4)
MODES = {
    "none": NONE,
    "32B": Swizzle(32, 1, 4),
    "64B": Swizzle(64, 2, 4),
    "128B": Swizzle(128, 3, 4),
    "128B_atom_32B": Swizzle(128, 2, 5),
    "128B_atom_32B_flip_8B": Swizzle(128, 2, 5, flip=True),
    "128B_atom_64B": Swizzle(128, 1, 6),
}


def mode(name: str) -> Swizzle:
    """The swizzling mode of a name in `MODES`."""
    try:
        return MODES[name]
    except KeyError:
        raise IllegalInstruction(f"swizzling mode {name!r}: expected one of {', '.join(MODES)}") from None
