"""tcgen05: matrix multiply, copies into tensor memory, loads and stores of it (PTX ISA 9.7.16).

Tensor memory of a CTA is uint32 [128 lanes, 512 columns]; an address is lane << 16 | column (9.7.16.1.1). Shared
memory of a CTA is uint8 with index = address in the CTA's shared window. A cta_group::2 instruction works on lists of
two, the CTA with even rank first. Functions change tensor memory in place; asynchrony, ordering and allocation are the
caller's.

The ISA shows the data paths of D and of the scale factors as figures only. The layouts here are those of CUTLASS's
mma_traits_sm100_frag.hpp (`tmem_frg`, `tmem_sf_frg`) and copy_traits_sm100.hpp. Where a scale factor has to be present
in several 32-lane groups, every group uses its own copy, so that a missing copy changes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from emulator.checks.faults import IllegalInstruction
from emulator.numbers import descriptors, formats

LANES, COLUMNS = 128, 512


# Forms and instruction descriptors of mma.


@dataclass(frozen=True)
class Form:
    """What the modifiers of tcgen05.mma say. `scale_vectors` is 0 without block scaling."""

    kind: str
    group: int
    scale_vectors: int = 0


@dataclass(frozen=True)
class Instruction:
    """A form together with its decoded 32-bit instruction descriptor (9.7.16.4.2).

    m, n, k are of the whole instruction. `bits` is the width of an element, `container` the bits it takes in shared
    memory.
    """

    form: Form
    m: int
    n: int
    k: int
    a: str
    b: str
    d: str
    negate_a: bool
    negate_b: bool
    transpose_a: bool
    transpose_b: bool
    scale: str = ""
    scale_a_id: int = 0
    scale_b_id: int = 0

    @property
    def ctas(self) -> int:
        return self.form.group

    @property
    def rows(self) -> int:
        """Rows of A, and of D, that each CTA holds."""
        return self.m // self.ctas

    @property
    def split(self) -> bool:
        """Whether D lies as 64 rows x two halves of the columns (M = 128 over two CTAs, layout B)."""
        return self.ctas == 2 and self.m == 128

    @property
    def columns(self) -> int:
        """Columns of tensor memory that D takes in each CTA."""
        return self.n // 2 if self.split else self.n


_VECTORS = {  # kind -> {modifier: scale factors along k}, tables 54 and 55
    "mxf8f6f4": {None: 1, "scale_vec::1X": 1, "block32": 1},
    "mxf4": {None: 2, "scale_vec::2X": 2, "block32": 2},
    "mxf4nvf4": {"scale_vec::2X": 2, "block32": 2, "scale_vec::4X": 4, "block16": 4},
}
_PLAIN = ("f16", "tf32", "f8f6f4")
_NARROW = {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1"}
_TYPES = {
    "f16": {0: "f16", 1: "bf16"},
    "tf32": {2: "tf32"},
    "f8f6f4": _NARROW,
    "mxf8f6f4": _NARROW,
    "mxf4": {1: "e2m1"},
    "mxf4nvf4": {1: "e2m1"},
}
_K = {"f16": 16, "tf32": 8, "f8f6f4": 32, "mxf8f6f4": 32, "mxf4": 64, "mxf4nvf4": 64}
_NO_EFFECT = ("collector::a::discard", "collector::a::fill")


@cache
def form(modifiers: tuple[str, ...]) -> Form:
    """Reads the modifiers of a tcgen05.mma (those after `tcgen05.mma`).

    `collector::a::fill` and `::discard` do not change results. `::use` and `::lastuse` would need the buffer's
    contents to be followed; they, `.ashift`, `.ws`, `.sp` and `kind::i8` are not implemented.
    """
    name = f"tcgen05.mma.{'.'.join(modifiers)}"
    rest = [m for m in modifiers if m not in _NO_EFFECT]
    groups = [m for m in rest if m.startswith("cta_group::")]
    kinds = [m for m in rest if m.startswith("kind::")]
    block = "block_scale" in rest
    vectors = [m for m in rest if m.startswith("scale_vec::") or m in ("block16", "block32")]
    if len(groups) != 1 or len(kinds) != 1 or len(vectors) > 1 or len(rest) != 2 + block + len(vectors):
        raise IllegalInstruction(f"{name}: a modifier is unknown, not implemented, repeated or missing")
    kind, group = kinds[0].removeprefix("kind::"), groups[0].removeprefix("cta_group::")
    if group not in ("1", "2"):
        raise IllegalInstruction(f"{name}: .{groups[0]}")
    if not block:
        if kind not in _PLAIN or vectors:
            raise IllegalInstruction(f"{name}: kind::{kind} without .block_scale; expected one of {', '.join(_PLAIN)}")
        return Form(kind, int(group))
    vector = vectors[0] if vectors else None
    if vector not in _VECTORS.get(kind, {}):
        raise IllegalInstruction(f"{name}: .block_scale of kind::{kind} with {vector or 'no scale vector size'}")
    return Form(kind, int(group), _VECTORS[kind][vector])


@cache
def instruction(f: Form, descriptor: int) -> Instruction:
    """Decodes an instruction descriptor (tables 42 to 44) and checks it against tables 39, 49, 50 and 55."""
    name = f"tcgen05.mma kind::{f.kind} cta_group::{f.group} instruction descriptor {descriptor:#010x}"

    def field(low: int, width: int) -> int:
        return descriptor >> low & (1 << width) - 1

    def require(good: bool, what: str) -> None:
        if not good:
            raise IllegalInstruction(f"{name}: {what}")

    block, packed = f.scale_vectors > 0, f.kind in ("mxf4", "mxf4nvf4")
    require(descriptor >> 32 == 0, "more than 32 bits")
    require(field(2, 1) == 0, "bit 2: sparse matrices are not implemented")
    reserved = [(0, 2), (3, 1), (6, 1)] + ([(24, 3)] if block else [(23, 1), (29, 1), (30, 2)])
    reserved += [(12, 1)] if packed else []
    reserved += [(31, 1)] if block else []
    for low, width in reserved:
        require(field(low, width) == 0, f"bits {low}..{low + width - 1} are {field(low, width)}, must be 0")
    types = _TYPES[f.kind]
    a, b = types.get(field(7, 3)), types.get(field(10, 2 if packed else 3))
    require(a is not None and b is not None, f"types A {field(7, 3)}, B {field(10, 3)}; expected {types}")
    require(f.kind not in ("f16", "tf32") or a == b, f"types of A and B differ: {a}, {b}")
    if block:
        d = "f32"
        m = field(27, 2) << 7
    else:
        formats_d = {0: "f16", 1: "f32"} if f.kind != "tf32" else {1: "f32"}
        d = formats_d.get(field(4, 2), "")
        require(d != "", f"type of D {field(4, 2)}; expected {formats_d}")
        require(d != "f16" or a != "bf16", "bf16 operands need an f32 D")
        m = field(24, 5) << 4
    n = field(17, 6) << 3
    sizes = {(1, False): (64, 128), (1, True): (128,), (2, False): (128, 256), (2, True): (128, 256)}[f.group, block]
    step = 8 * f.group
    require(m in sizes, f"M = {m}; expected one of {sizes}")
    require(step <= n <= 256 and n % step == 0, f"N = {n}; expected {step}..256 in steps of {step}")
    transpose_a, transpose_b = bool(field(15, 1)), bool(field(16, 1))
    require(not packed or not (transpose_a or transpose_b), "this kind has no transposed operands")
    for side, transposed, element in (("A", transpose_a, a), ("B", transpose_b, b)):
        # Table 52 has no 4- or 6-bit transposed operands; CUTLASS builds them (an 8-bit container in shared memory).
        narrow = formats.FORMATS[element].width < 8
        require(not (transposed and narrow), f"{side} of type {element} cannot be transposed")
    eight = f.kind in ("f8f6f4", "mxf8f6f4")
    require(
        not (transpose_b and eight) or n % (2 * step) == 0, f"N = {n}: transposed 8-bit B needs steps of {2 * step}"
    )
    scale, scale_a_id, scale_b_id = "", 0, 0
    if block:
        scale = "ue8m0" if field(23, 1) else "ue4m3"
        # Table 44 gives kind::mxf4nvf4 both scale types; with ue4m3 there are 4 factors a row, with ue8m0 2 or 4.
        allowed = {("mxf8f6f4", 1): ("ue8m0",), ("mxf4", 2): ("ue8m0",), ("mxf4nvf4", 2): ("ue8m0",)}
        require(scale in allowed.get((f.kind, f.scale_vectors), ("ue8m0", "ue4m3")), f"scale type {scale}")
        scale_a_id, scale_b_id = field(29, 2), field(4, 2)
        ids = {1: (0, 1, 2, 3), 2: (0, 2), 4: (0,)}[f.scale_vectors]
        require(scale_a_id in ids and scale_b_id in ids, f"SFA_ID {scale_a_id}, SFB_ID {scale_b_id}; expected {ids}")
    return Instruction(
        f, m, n, _K[f.kind], a, b, d, bool(field(13, 1)), bool(field(14, 1)), transpose_a, transpose_b,
        scale, scale_a_id, scale_b_id,
    )  # fmt: skip


# Operands of mma.


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


def unpack_chunks(raw: np.ndarray, width: int) -> np.ndarray:
    """uint8 [rows, bytes]: the 16 elements of `width` 4 or 6 bits that lead each 16-byte chunk, one a byte, in the low
    bits.

    What follows them in the chunk is padding (9.7.16.10.4.4, 9.7.16.9.1).
    """
    chunks = raw.reshape(len(raw), -1, 16)
    first = np.arange(16) * width
    low, high = chunks[..., first >> 3], chunks[..., np.minimum((first >> 3) + 1, 15)]
    word = low.astype(np.uint16) | high.astype(np.uint16) << np.uint16(8)
    return (word >> (first & 7).astype(np.uint16) & np.uint16((1 << width) - 1)).astype(np.uint8).reshape(raw.shape)


def _address(name: str, address: int, columns: int, lanes: tuple[int, ...] = (0,)) -> tuple[int, int]:
    lane, column = address >> 16, address & 0xFFFF
    if lane not in lanes or column + columns > COLUMNS:
        raise IllegalInstruction(
            f"{name} tensor memory address {address:#010x}: lane {lane} (allowed {lanes}), "
            f"columns {column}..{column + columns - 1} of {COLUMNS}"
        )
    return lane, column


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
    return _address(f"scale factors of {side},", address & 0x3FFFFFFF, columns)[1]


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
    lane, column = _address("D,", d, i.columns, _d_lanes(i))
    lanes = _lanes(i, lane)
    right = np.concatenate([_decode_shared(i, i.b, _read(i, "B", s, b)) for s in shared])
    right = -right if i.negate_b else right
    for cta in range(i.ctas):
        if a_in_tmem:
            first, start = _address("A,", a, 8, _d_lanes(i))
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
    lane, column = _address("D,", d, i.columns, _d_lanes(i))
    lanes = _lanes(i, lane)
    reads, writes = np.zeros((LANES, COLUMNS), bool), np.zeros((LANES, COLUMNS), bool)
    writes[lanes, column : column + i.columns] = True
    if accumulate:
        reads |= writes
    where = _matrix_addresses(i, "B", b).reshape(-1)
    if a_in_tmem:
        first, start = _address("A,", a, 8, _d_lanes(i))
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
    lane, column = _address("tcgen05.cp", address, 4 * f.chunks, allowed)
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
    lane, column = _address("tcgen05.shift", address, 8, (0, 32, 64, 96))
    for memory in tmem:
        window = memory[lane : lane + 32, column : column + 8]
        window[:-1] = window[1:].copy()
