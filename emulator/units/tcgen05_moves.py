"""tcgen05.cp, ld, st and shift: what moves to, from and in tensor memory (PTX ISA 9.7.16.8 and 9.7.16.9).

The layouts of copies are those of CUTLASS's copy_traits_sm100.hpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checks.faults import IllegalInstruction
from ..numbers import descriptors
from .tcgen05 import COLUMNS, tensor_address, unpack_chunks

# cp.


@dataclass(frozen=True, eq=False)
class CopyForm:
    """One form of tcgen05.cp: row r of the source goes to the lanes `lanes[:, r]`; `bits` of an element before
    unpacking.
    """

    group: int
    lanes: np.ndarray
    chunks: int  # of 16 bytes a row
    bits: int


_ROWS = np.arange(128)
_COPY_LANES = {
    ("128x256b", None): _ROWS[None],
    ("128x128b", None): _ROWS[None],
    # CUTLASS's 4dp256bit: one row for each 32-lane group, at the lane of the address.
    ("4x256b", None): 32 * _ROWS[None, :4],
    ("64x128b", "warpx2::02_13"): np.stack([_ROWS[:64], _ROWS[:64] + 64]),
    ("64x128b", "warpx2::01_23"): np.stack([_ROWS[:64] % 32 + _ROWS[:64] // 32 * 64 + 32 * c for c in range(2)]),
    ("32x128b", "warpx4"): _ROWS.reshape(4, 32),
}
_FORMATS = {(): 8, ("b8x16", "b4x16_p64"): 4, ("b8x16", "b6x16_p32"): 6}


@cache
def copy_form(modifiers: tuple[str, ...]) -> CopyForm:
    """Reads the modifiers of a tcgen05.cp (9.7.16.9.2)."""
    name = f"tcgen05.cp.{'.'.join(modifiers)}"
    groups = [m for m in modifiers if m in ("cta_group::1", "cta_group::2")]
    shapes = [m for m in modifiers if (m, None) in _COPY_LANES or m in ("64x128b", "32x128b")]
    multicast = [m for m in modifiers if m.startswith("warpx")]
    types = tuple(m for m in modifiers if m in ("b8x16", "b4x16_p64", "b6x16_p32"))
    known = len(groups) + len(shapes) + len(multicast) + len(types) == len(modifiers)
    key = ("".join(shapes), multicast[0] if multicast else None)
    if not known or len(groups) != 1 or key not in _COPY_LANES or types not in _FORMATS:
        raise IllegalInstruction(f"{name}: not a form of PTX ISA 9.7.16.9.2")
    return CopyForm(int(groups[0][-1]), _COPY_LANES[key], 2 if "256b" in shapes[0] else 1, _FORMATS[types])


def copy_addresses(f: CopyForm, descriptor: int) -> np.ndarray:
    """Shared addresses [rows, bytes] that tcgen05.cp reads in each CTA: a K-major matrix of one or two 16-byte
    columns.
    """
    d = descriptors.decode_tcgen05(descriptor)
    return descriptors.addresses(d, f.lanes.shape[1], 16 * f.chunks, 1, False)


def copy_cells(f: CopyForm, address: int) -> tuple[np.ndarray, slice]:
    """Lanes [copies, rows] and columns of tensor memory that tcgen05.cp writes."""
    allowed = tuple(range(32)) if f.lanes.shape[1] == 4 else (0,)
    lane, column = tensor_address("tcgen05.cp", address, 4 * f.chunks, allowed)
    return f.lanes + lane, slice(column, column + 4 * f.chunks)


def copy(
    modifiers: tuple[str, ...], tmem: Sequence[np.ndarray], shared: Sequence[np.ndarray], address: int, descriptor: int
) -> None:
    """tcgen05.cp: shared memory to tensor memory. With two CTAs each gets its own shared memory's bytes at the same
    address.

    The ISA names the destination of cta_group::2 but not the source; each CTA's own memory is what CUTLASS's scale
    factor copies rely on. Unpacked 4-bit elements go to bits 5..2 of their byte and 6-bit ones to bits 5..0: where
    tcgen05.mma reads them.
    """
    f = copy_form(modifiers)
    if len(tmem) != f.group or len(shared) != f.group:
        raise IllegalInstruction(f"tcgen05.cp: memory of {len(tmem)} CTAs for cta_group::{f.group}")
    where = copy_addresses(f, descriptor)
    lanes, columns = copy_cells(f, address)
    for memory, target in zip(shared, tmem, strict=True):
        data = descriptors.gather(memory, where)
        if f.bits < 8:
            data = unpack_chunks(data, f.bits) << (2 if f.bits == 4 else 0)
        target[lanes, columns] = np.ascontiguousarray(data).view("<u4")


# ld, st and shift.


@dataclass(frozen=True, eq=False)
class TransferForm:
    """One form of tcgen05.ld or .st: register r of lane t is at lane `lane[t, r]`, column `column[t, r]` of the
    address.

    `second[t]` says whether lane t belongs to the second access of 16x32bx2. With `packed`, `column` counts pairs.
    """

    lane: np.ndarray
    column: np.ndarray
    second: np.ndarray
    rows: int
    packed: bool

    @property
    def registers(self) -> int:
        return self.lane.shape[1]


_MOST = {"32x32b": 128, "16x64b": 128, "16x128b": 64, "16x256b": 32, "16x32bx2": 128}


@cache
def transfer_form(operation: str, modifiers: tuple[str, ...]) -> TransferForm:
    """Reads the modifiers of tcgen05.ld or .st; `operation` is "ld" or "st" (9.7.16.8.3, .4, tables 47 and 48)."""
    name = f"tcgen05.{operation}.{'.'.join(modifiers)}"
    pack = {"ld": "pack::16b", "st": "unpack::16b"}[operation]
    rest = list(modifiers)
    packed = pack in rest
    for required in ["sync", "aligned", "b32"] + [pack] * packed:
        if required not in rest:
            raise IllegalInstruction(f"{name}: .{required} is missing")
        rest.remove(required)
    shapes = [m for m in rest if m in _MOST]
    counts = [m for m in rest if m in {f"x{1 << p}" for p in range(8)}]
    if len(shapes) != 1 or len(counts) != 1 or len(rest) != 2 or int(counts[0][1:]) > _MOST[shapes[0]]:
        raise IllegalInstruction(f"{name}: not a form of PTX ISA 9.7.16.8")
    shape, count = shapes[0], int(counts[0][1:])
    t = np.arange(32)[:, None]
    if shape == "32x32b":
        r = np.arange(count)[None]
        lane, column = t, r
    elif shape == "16x64b":
        r = np.arange(count)[None]
        lane, column = (t >> 2) + 8 * (t & 1), 2 * r + (t >> 1 & 1)
    elif shape == "16x128b":
        r = np.arange(2 * count)[None]
        lane, column = (t >> 2) + 8 * (r & 1), (t & 3) + 4 * (r >> 1)
    elif shape == "16x256b":
        r = np.arange(4 * count)[None]
        lane, column = (t >> 2) + 8 * (r >> 1 & 1), 2 * (t & 3) + (r & 1) + 8 * (r >> 2)
    else:
        r = np.arange(count)[None]
        lane, column = t & 15, r
    lane, column = np.broadcast_arrays(lane, column)
    second = (np.arange(32) >= 16) & (shape == "16x32bx2")
    return TransferForm(lane, column, second, 32 if shape == "32x32b" else 16, packed)


def cells(f: TransferForm, address: int, warp: int, split: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lanes and columns int [32, registers] of tensor memory, or [32, registers, 2] with packing, low half first.

    Args:
        warp: rank of the warp in its CTA; warp % 4 decides the lanes it may touch (9.7.16.8.1).
        split: immHalfSplitoff of 16x32bx2, in columns; None for the other shapes.
    """
    base, first = address >> 16, address & 0xFFFF
    low = 32 * (warp % 4)
    allowed = (low,) if f.rows == 32 else (low, low + 16)
    if base not in allowed:
        raise IllegalInstruction(
            f"tcgen05.ld/st address {address:#010x}: warp {warp} reaches lanes {allowed}, not {base}",
            check="tcgen05-lanes",
        )
    if (split is None) == bool(f.second.any()):
        raise IllegalInstruction("tcgen05.ld/st: immHalfSplitoff belongs to shape 16x32bx2 alone")
    column = f.column if not f.packed else 2 * f.column[..., None] + np.arange(2)
    lane = np.broadcast_to(f.lane if not f.packed else f.lane[..., None], column.shape)
    second = f.second.reshape(-1, *[1] * (column.ndim - 1))
    column = first + column + (second * split if split is not None else 0)
    if column.max() >= COLUMNS:
        raise IllegalInstruction(f"tcgen05.ld/st address {address:#010x}: column {column.max()} of {COLUMNS}")
    return base + lane, column


def load(f: TransferForm, tmem: np.ndarray, address: int, warp: int, split: int | None = None) -> np.ndarray:
    """tcgen05.ld: registers uint32 [32, registers] of one warp."""
    data = tmem[cells(f, address, warp, split)]
    return data if not f.packed else data[..., 0] & np.uint32(0xFFFF) | data[..., 1] << np.uint32(16)


def store(
    f: TransferForm, tmem: np.ndarray, address: int, warp: int, registers: np.ndarray, split: int | None = None
) -> None:
    """tcgen05.st: registers uint32 [32, registers] of one warp to tensor memory; unpacked halves are zero-extended."""
    if f.packed:
        registers = np.stack([registers & np.uint32(0xFFFF), registers >> np.uint32(16)], axis=-1)
    tmem[cells(f, address, warp, split)] = registers


def shift(tmem: Sequence[np.ndarray], modifiers: tuple[str, ...], address: int) -> None:
    """tcgen05.shift.down: 8 columns of 32 lanes move one lane towards lane 0 of the group; the last lane stays
    (9.7.16.9.3).

    The ISA's figure is not text; the direction is inferred from tcgen05.cp.4x256b, which CUTLASS describes as
    refilling the last lane of each group, and which is ordered after a shift.
    """
    group = [m for m in modifiers if m in ("cta_group::1", "cta_group::2")]
    if len(group) != 1 or sorted(modifiers) != sorted([*group, "down"]) or len(tmem) != int(group[0][-1]):
        raise IllegalInstruction(f"tcgen05.shift.{'.'.join(modifiers)} on {len(tmem)} CTAs")
    lane, column = tensor_address("tcgen05.shift", address, 8, (0, 32, 64, 96))
    for memory in tmem:
        window = memory[lane : lane + 32, column : column + 8]
        window[:-1] = window[1:].copy()
