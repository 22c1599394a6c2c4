"""Swizzling modes against the tables of PTX ISA 5.5.7."""

import numpy as np
import pytest

from emulator.checks.faults import IllegalInstruction
from emulator.numbers import swizzle

# Lines of 128 bytes; entry c of a line is the unswizzled 16-byte cell that is found at cell c.
TABLES = {
    "none": ["0 1 2 3 4 5 6 7"],
    "32B": ["0 1 2 3 4 5 6 7", "1 0 3 2 5 4 7 6"],
    "64B": ["0 1 2 3 4 5 6 7", "1 0 3 2 5 4 7 6", "2 3 0 1 6 7 4 5", "3 2 1 0 7 6 5 4"],
    "128B": [
        "0 1 2 3 4 5 6 7",
        "1 0 3 2 5 4 7 6",
        "2 3 0 1 6 7 4 5",
        "3 2 1 0 7 6 5 4",
        "4 5 6 7 0 1 2 3",
        "5 4 7 6 1 0 3 2",
        "6 7 4 5 2 3 0 1",
        "7 6 5 4 3 2 1 0",
    ],
    "128B_atom_32B": ["0 1 2 3 4 5 6 7", "2 3 0 1 6 7 4 5", "4 5 6 7 0 1 2 3", "6 7 4 5 2 3 0 1"],
    "128B_atom_64B": ["0 1 2 3 4 5 6 7", "4 5 6 7 0 1 2 3"],
}


@pytest.mark.parametrize("name", TABLES)
def test_cells_are_where_the_table_puts_them(name):
    """Every byte of 2 KiB at a nonzero base."""
    lines = [[int(cell) for cell in line.split()] for line in TABLES[name]]
    base = 4096
    mode = swizzle.mode(name)
    address = np.arange(2048) + base
    got = mode.apply(address)
    for a, s in zip(address.tolist(), got.tolist(), strict=True):
        line, cell, byte = (a - base) // 128, (a - base) % 128 // 16, a % 16
        where = lines[line % len(lines)].index(cell)
        assert s == base + 128 * line + 16 * where + byte
        assert mode.apply(a) == s
    assert mode.period == 128 * len(lines)


def test_flip_swaps_eight_bytes_in_odd_lines():
    """32-byte atoms with an 8-byte flip in every other line."""
    plain, flipped = swizzle.mode("128B_atom_32B"), swizzle.mode("128B_atom_32B_flip_8B")
    address = np.arange(1024)
    assert np.array_equal(flipped.apply(address), plain.apply(address) ^ np.where(address // 128 % 2 == 1, 8, 0))


def test_unknown_mode():
    """A mode that the ISA has but the emulator does not is refused."""
    with pytest.raises(IllegalInstruction, match="96B"):
        swizzle.mode("96B")
