"""tcgen05.mma: operands in shared and tensor memory, the product, and what it touches (PTX ISA 9.7.16.10).

The ISA shows the data paths of D and of the scale factors as figures only. The layouts here are those of CUTLASS's
mma_traits_sm100_frag.hpp (`tmem_frg`, `tmem_sf_frg`). Where a scale factor has to be present in several 32-lane groups,
every group uses its own copy, so that a missing copy changes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checks.faults import IllegalInstruction
from ..numbers import descriptors, formats
from .tcgen05 import COLUMNS, LANES, Instruction, form, instruction, tensor_address, unpack_chunks


def _element_bytes(i: Instruction) -> int:
    """Bytes of an element's container in shared memory; packed 4-bit kinds are addressed by bytes of two elements."""
    return {"f16": 2, "tf32": 4}.get(i.form.kind, 1)


def _matrix_addresses(i: Instruction, side: str, descriptor: int) -> np.ndarray:
    """Shared addresses [rows of this CTA, bytes along k] of A or B."""
    d = descriptors.decode_tcgen05(descriptor)
    transposed = i.transpose_a if side == "A" else i.transpose_b
    atom = d.swizzle == "128B_atom_32B"
    if transposed and (i.form.kind == "tf32") != atom:
        raise IllegalInstruction(
            f"transposed {side} of kind::{i.form.kind} with {d.swizzle} swizzling (PTX ISA table 52)"
        )
    rows = i.rows if side == "A" else i.n // i.ctas
    size = _element_bytes(i)
    return descriptors.addresses(d, rows, 32 // size, size, transposed)


def _decode_shared(i: Instruction, name: str, raw: np.ndarray) -> np.ndarray:
    """float64 [rows, k] of bytes [rows, 32] as shared memory holds them (9.7.16.10.4)."""
    kind, rows = i.form.kind, len(raw)
    if kind in ("mxf4", "mxf4nvf4"):
        return formats.pair_table()[raw].reshape(rows, 64)
    if kind in ("f8f6f4", "mxf8f6f4"):
        width = formats.FORMATS[name].width
        if width == 8:
            return formats.table(name)[raw]
        return formats.table(name)[unpack_chunks(raw, width)]
    return _decode_words(name, raw)


def _decode_tensor_memory(i: Instruction, words: np.ndarray) -> np.ndarray:
    """float64 [lanes, k] of A in tensor memory, uint32 [lanes, 8] (9.7.16.10.4.3, .5)."""
    raw = np.ascontiguousarray(words, "<u4").view(np.uint8)
    kind = i.form.kind
    if kind in ("mxf4", "mxf4nvf4"):
        return formats.pair_table()[raw].reshape(len(raw), 64)
    if kind in ("f8f6f4", "mxf8f6f4"):
        return formats.container_table(i.a)[raw]
    return _decode_words(i.a, raw)


def _decode_words(name: str, raw: np.ndarray) -> np.ndarray:
    raw = np.ascontiguousarray(raw)
    return formats.decode(name, raw.view("<u4")) if name == "tf32" else formats.table(name)[raw.view("<u2")]


def _lanes(i: Instruction, lane: int) -> np.ndarray:
    """Lanes that hold D, in the order of rows; for the split layout those of the first half of the columns, then the
    second.
    """
    if i.rows == 64 and not i.split:  # layout F: 16 of each 32 lanes
        row = np.arange(64)
        return lane + row % 16 + 32 * (row // 16)
    return np.arange(LANES)


def _scale_columns(i: Instruction, side: str) -> int:
    """Columns of tensor memory that hold one word of scale factors for every row of a 32-lane group."""
    rows = i.rows if side == "A" else (i.n // 2 if i.split else i.n)
    return -(-rows // 32)


def _scale_address(side: str, address: int, columns: int) -> int:
    # Bits 30 and 31 may repeat SFA_ID / SFB_ID, as CUTLASS's addresses of 8-bit tensor memory do.
    return tensor_address(f"scale factors of {side},", address & 0x3FFFFFFF, columns)[1]


def _scales(i: Instruction, side: str, tmem: np.ndarray, column: int, group: int) -> np.ndarray:
    """float64 [rows, scale_vectors] of the scale factors in lanes 32 group .. + 31: row r in lane r % 32, column r /
    32.
    """
    count = _scale_columns(i, side)
    words = tmem[32 * group : 32 * group + 32, column : column + count].T.reshape(-1)
    rows = i.rows if side == "A" else (i.n // 2 if i.split else i.n)
    first = i.scale_a_id if side == "A" else i.scale_b_id
    codes = np.ascontiguousarray(words[:rows], "<u4")[:, None].view(np.uint8)[:, first : first + i.form.scale_vectors]
    return formats.scale_table(i.scale)[codes]


# mma.


def mma(
    modifiers: tuple[str, ...],
    tmem: Sequence[np.ndarray],
    shared: Sequence[np.ndarray],
    d: int,
    a: int,
    b: int,
    idesc: int,
    accumulate: bool,
    *,
    a_in_tmem: bool = False,
    scale_a: int | None = None,
    scale_b: int | None = None,
    disable_output_lane: Sequence[int] | None = None,
    scale_input_d: int = 0,
) -> None:
    """tcgen05.mma (9.7.16.10.9.1): D = A B + D in tensor memory, or D = A B where `accumulate` is false.

    Args:
        tmem, shared: one array a CTA of the group.
        d, scale_a, scale_b: tensor memory addresses.
        a: shared memory descriptor, or the tensor memory address where `a_in_tmem`.
        b: shared memory descriptor. With two CTAs, A's rows and B's columns are halves in the shared memory of each.
        disable_output_lane: 4 words a CTA; a set bit keeps a lane of D as it is.
        scale_input_d: D is divided by 2 to this power first; kinds f16 and tf32 only.
    """
    i = _checked(modifiers, tmem, shared, idesc, scale_a, scale_b, disable_output_lane, scale_input_d)
    lane, column = tensor_address("D,", d, i.columns, _d_lanes(i))
    lanes = _lanes(i, lane)
    right = np.concatenate([_decode_shared(i, i.b, _read(i, "B", s, b)) for s in shared])
    right = -right if i.negate_b else right
    for cta in range(i.ctas):
        if a_in_tmem:
            first, start = tensor_address("A,", a, 8, _d_lanes(i))
            left = _decode_tensor_memory(i, tmem[cta][_lanes(i, first), start : start + 8])
        else:
            left = _decode_shared(i, i.a, _read(i, "A", shared[cta], a))
            left = np.concatenate([left, left]) if i.split else left
        left = -left if i.negate_a else left
        product = _product(i, left, right, tmem[cta], scale_a, scale_b)
        _accumulate(i, tmem[cta], lanes, column, product, accumulate, scale_input_d, _mask(disable_output_lane, cta))


def _checked(
    modifiers: tuple[str, ...],
    tmem: Sequence[np.ndarray],
    shared: Sequence[np.ndarray],
    idesc: int,
    scale_a: int | None,
    scale_b: int | None,
    disable_output_lane: Sequence[int] | None,
    scale_input_d: int,
) -> Instruction:
    f = form(modifiers)
    i = instruction(f, idesc)
    name = f"tcgen05.mma.{'.'.join(modifiers)}"
    if len(tmem) != f.group or len(shared) != f.group:
        raise IllegalInstruction(f"{name}: memory of {len(tmem)} CTAs for cta_group::{f.group}")
    if (scale_a is None) != (f.scale_vectors == 0) or (scale_b is None) != (f.scale_vectors == 0):
        raise IllegalInstruction(f"{name}: scale factor addresses belong to .block_scale alone")
    if disable_output_lane is not None and (f.scale_vectors or len(disable_output_lane) != 4 * f.group):
        raise IllegalInstruction(f"{name}: disable-output-lane of {len(disable_output_lane)} words")
    if scale_input_d and (f.kind not in ("f16", "tf32") or not 0 <= scale_input_d <= 15):
        raise IllegalInstruction(f"{name}: scale-input-d {scale_input_d}")
    return i


def _d_lanes(i: Instruction) -> tuple[int, ...]:
    return (0, 16) if i.rows == 64 and not i.split else (0,)


def _read(i: Instruction, side: str, shared: np.ndarray, descriptor: int) -> np.ndarray:
    return descriptors.gather(shared, _matrix_addresses(i, side, descriptor))


def _product(
    i: Instruction,
    left: np.ndarray,
    right: np.ndarray,
    tmem: np.ndarray,
    scale_a: int | None,
    scale_b: int | None,
) -> np.ndarray:
    """float64 [lanes, columns] of A B as D lies: a split D multiplies its two halves of lanes with halves of B."""
    halves = 2 if i.split else 1
    left, right = left.reshape(halves, -1, i.k), right.reshape(halves, -1, i.k)
    with np.errstate(invalid="ignore", over="ignore"):
        if not i.scale:
            return np.concatenate([left[h] @ right[h].T for h in range(halves)])
        column_a = _scale_address("A", scale_a, _scale_columns(i, "A"))
        column_b = _scale_address("B", scale_b, _scale_columns(i, "B"))
        groups = 4 // halves  # 32-lane groups of each half
        parts = []
        for h in range(halves):
            rows = left[h].reshape(groups, 32, i.k)
            for g in range(groups):
                group = groups * h + g
                scales = _scales(i, "A", tmem, column_a, group)[32 * g : 32 * g + 32]
                columns = _scaled(right[h], _scales(i, "B", tmem, column_b, group))
                parts.append(_scaled(rows[g], scales) @ columns.T)
        return np.concatenate(parts)


def _scaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return (values.reshape(*scales.shape, -1) * scales[..., None]).reshape(values.shape)


def _mask(words: Sequence[int] | None, cta: int) -> np.ndarray:
    """Lanes that are written: bool [128]."""
    if words is None:
        return np.ones(LANES, bool)
    bits = np.array(words[4 * cta : 4 * cta + 4], "<u4").view(np.uint8)
    return np.unpackbits(bits, bitorder="little") == 0


def _accumulate(
    i: Instruction,
    tmem: np.ndarray,
    lanes: np.ndarray,
    column: int,
    product: np.ndarray,
    accumulate: bool,
    scale_input_d: int,
    enabled: np.ndarray,
) -> None:
    """Rounds `product`, plus the scaled D where `accumulate`, into the `enabled` lanes of D."""
    window = slice(column, column + i.columns)
    with np.errstate(invalid="ignore", over="ignore"):
        if accumulate:
            old = tmem[lanes, window]
            values = old.view(np.float32) if i.d == "f32" else (old & 0xFFFF).astype(np.uint16).view(np.float16)
            product = product + np.ldexp(values.astype(np.float64), -scale_input_d)
        else:
            product = product + 0.0  # a sum of negative zeros is the positive zero that D starts from
    bits = formats.round_to_f32(product) if i.d == "f32" else formats.round_to_f16(product).astype(np.uint32)
    keep = enabled[lanes]
    tmem[lanes[keep], window] = bits[keep]


@dataclass(frozen=True)
class Footprint:
    """What an instruction touches, for each CTA: shared byte addresses read; bool [128, 512] of tensor memory."""

    shared: list[np.ndarray]
    reads: list[np.ndarray]
    writes: list[np.ndarray]


def mma_footprint(
    modifiers: tuple[str, ...],
    d: int,
    a: int,
    b: int,
    idesc: int,
    accumulate: bool,
    *,
    a_in_tmem: bool = False,
    scale_a: int | None = None,
    scale_b: int | None = None,
) -> Footprint:
    """Memory that `mma` with these operands reads and writes; the same errors."""
    i = instruction(form(modifiers), idesc)
    lane, column = tensor_address("D,", d, i.columns, _d_lanes(i))
    lanes = _lanes(i, lane)
    reads, writes = np.zeros((LANES, COLUMNS), bool), np.zeros((LANES, COLUMNS), bool)
    writes[lanes, column : column + i.columns] = True
    if accumulate:
        reads |= writes
    where = _matrix_addresses(i, "B", b).reshape(-1)
    if a_in_tmem:
        first, start = tensor_address("A,", a, 8, _d_lanes(i))
        reads[_lanes(i, first), start : start + 8] = True
    else:
        where = np.concatenate([where, _matrix_addresses(i, "A", a).reshape(-1)])
    for side, address in (("A", scale_a), ("B", scale_b)):
        if i.scale:
            count = _scale_columns(i, side)
            start = _scale_address(side, address, count)
            rows = i.rows if side == "A" else (i.n // 2 if i.split else i.n)
            used = (np.arange(LANES)[:, None] % 32 + 32 * np.arange(count)) < rows
            reads[:, start : start + count] |= used
    return Footprint([where] * i.ctas, [reads] * i.ctas, [writes] * i.ctas)
