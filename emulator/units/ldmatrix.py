"""ldmatrix and stmatrix: which byte of shared memory every byte of every register comes from (PTX ISA 9.7.14.5.15,
.16).

The functions return addresses only, so that the caller can check bounds, validity and races before it reads or writes.
The ISA gives the fragments as figures; the 8-bit shapes follow its text (four consecutive columns across two rows for
m16n16, e0 in the lowest byte for m16n8) and the layout traits of CUTLASS's copy_traits_sm100.hpp with the byte
exchange of copy_sm100.hpp undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checks.faults import IllegalInstruction

ROW_BYTES = 16  # bytes that a row address stands for, and its alignment
_LANE = np.arange(32)
_GROUP, _QUAD = _LANE >> 2, _LANE & 3


@dataclass(frozen=True, eq=False)
class Form:
    """One form of ldmatrix or stmatrix.

    Attributes:
        rows: number of row addresses used: those of lanes 0 .. rows - 1.
        lane: int [32, registers, 4], the lane whose row address byte j of a register uses.
        offset: int [32, registers, 4], byte offset from that address. With `bits` < 8 it is the index of the element.
        bits: 8, or the width of the packed elements (4 or 6) that become bytes.
    """

    rows: int
    lane: np.ndarray
    offset: np.ndarray
    bits: int = 8

    @property
    def registers(self) -> int:
        return self.lane.shape[1]

    @property
    def bytes_read(self) -> int:
        """Bytes of each 16-byte row that are read or written; the rest is padding."""
        return 16 * self.bits // 8


_COUNT = {"x1": 1, "x2": 2, "x4": 4}
_PACKED = {"b4x16_p64": 4, "b6x16_p32": 6}
_IGNORED = {"sync", "aligned", "shared", "shared::cta"}


@cache
def load_form(modifiers: tuple[str, ...]) -> Form:
    """The form of an ldmatrix with these modifiers (without the leading `ldmatrix`)."""
    shape, count, transposed, types = _parse("ldmatrix", modifiers)
    bits = _PACKED.get(types[-1], 8)
    if shape == "m8n8" and types == ("b16",):
        return _eight_by_eight(count, transposed)
    if shape == "m8n16" and types[0] == "b8x16" and bits < 8 and not transposed:
        byte = np.arange(4)
        lane = np.stack([np.broadcast_to(8 * m + _GROUP[:, None], (32, 4)) for m in range(count)], axis=1)
        offset = np.stack([4 * _QUAD[:, None] + byte] * count, axis=1)
        return Form(8 * count, lane, offset, bits)
    if shape == "m16n16" and transposed and count <= 2 and (types == ("b8",) or (types[0] == "b8x16" and bits < 8)):
        # Register 2m + h of lane (g, q): source rows 4q .. 4q + 3 of matrix m, source column g + 8h.
        byte = np.arange(4)
        lane = np.stack([16 * (r >> 1) + 4 * _QUAD[:, None] + byte for r in range(2 * count)], axis=1)
        offset = np.stack([np.broadcast_to(_GROUP[:, None] + 8 * (r & 1), (32, 4)) for r in range(2 * count)], axis=1)
        return Form(16 * count, lane, offset, bits)
    raise IllegalInstruction(f"ldmatrix.{'.'.join(modifiers)}: not a form of PTX ISA 9.7.14.5.15")


@cache
def store_form(modifiers: tuple[str, ...]) -> Form:
    """The form of an stmatrix with these modifiers (without the leading `stmatrix`)."""
    shape, count, transposed, types = _parse("stmatrix", modifiers)
    if shape == "m8n8" and types == ("b16",):
        return _eight_by_eight(count, transposed)
    if shape == "m16n8" and types == ("b8",) and transposed:
        # Byte j is element (row g + 8 (j >> 1), column 2q + (j & 1)), as in an mma accumulator; an address is a column.
        byte = np.arange(4)
        lane = np.stack([8 * m + 2 * _QUAD[:, None] + (byte & 1) for m in range(count)], axis=1)
        offset = np.stack([_GROUP[:, None] + 8 * (byte >> 1)] * count, axis=1)
        return Form(8 * count, lane, offset)
    raise IllegalInstruction(f"stmatrix.{'.'.join(modifiers)}: not a form of PTX ISA 9.7.14.5.16")


def addresses(form: Form, rows: np.ndarray) -> np.ndarray:
    """Byte addresses [W, 32, registers, 4] from the row addresses [W, 32] that the lanes hold.

    For packed elements (`form.bits` < 8) use `packed_addresses`.
    """
    return rows[:, form.lane] + form.offset


def packed_addresses(form: Form, rows: np.ndarray) -> np.ndarray:
    """Byte addresses [W, 32, registers, 4, 2] of the two bytes that an element of 4 or 6 bits may lie in.

    The second equals the first where the element does not cross into the next byte.
    """
    first = form.offset * form.bits
    both = np.stack([first >> 3, first + form.bits - 1 >> 3], axis=-1)
    return rows[:, form.lane][..., None] + both


def unpack(form: Form, data: np.ndarray) -> np.ndarray:
    """Bytes [W, 32, registers, 4] with one element each in the low bits, from what `packed_addresses` named."""
    shift = (form.offset * form.bits & 7).astype(np.uint16)
    word = data[..., 0].astype(np.uint16) | data[..., 1].astype(np.uint16) << np.uint16(8)
    return (word >> shift & np.uint16((1 << form.bits) - 1)).astype(np.uint8)


def to_registers(data: np.ndarray) -> np.ndarray:
    """uint32 [W, 32, registers] from bytes [W, 32, registers, 4], lowest byte first."""
    return np.ascontiguousarray(data, np.uint8).view("<u4")[..., 0]


def to_bytes(registers: np.ndarray) -> np.ndarray:
    """Bytes [W, 32, registers, 4] of uint32 [W, 32, registers]."""
    return np.ascontiguousarray(registers, "<u4")[..., None].view(np.uint8)


def _parse(root: str, modifiers: tuple[str, ...]) -> tuple[str, int, bool, tuple[str, ...]]:
    name = f"{root}.{'.'.join(modifiers)}"
    if "sync" not in modifiers or "aligned" not in modifiers:
        raise IllegalInstruction(f"{name}: .sync.aligned is mandatory")
    rest = [m for m in modifiers if m not in _IGNORED]
    shapes = [m for m in rest if m in ("m8n8", "m8n16", "m16n16", "m16n8")]
    counts = [m for m in rest if m in _COUNT]
    types = tuple(m for m in rest if m in ("b16", "b8", "b8x16", *_PACKED))
    transposed = "trans" in rest
    if len(shapes) != 1 or len(counts) != 1 or not types or len(rest) != 2 + len(types) + transposed:
        raise IllegalInstruction(f"{name}: expected one shape, one count and a type")
    return shapes[0], _COUNT[counts[0]], transposed, types


def _eight_by_eight(count: int, transposed: bool) -> Form:
    """8x8 matrices of 16-bit elements: lane (g, q) holds row g, columns 2q and 2q + 1 of the (transposed) matrix."""
    byte = np.arange(4)
    if transposed:
        lane, offset = 2 * _QUAD[:, None] + (byte >> 1), 2 * _GROUP[:, None] + (byte & 1)
    else:
        lane, offset = np.broadcast_to(_GROUP[:, None], (32, 4)), 4 * _QUAD[:, None] + byte
    return Form(8 * count, np.stack([8 * m + lane for m in range(count)], axis=1), np.stack([offset] * count, axis=1))
