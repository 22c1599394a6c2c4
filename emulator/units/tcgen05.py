"""tcgen05: its forms, instruction descriptors and addresses (PTX ISA 9.7.16).

Tensor memory of a CTA is uint32 [128 lanes, 512 columns]; an address is lane << 16 | column (9.7.16.1.1). Shared
memory of a CTA is uint8 with index = address in the CTA's shared window. A cta_group::2 instruction works on lists of
two, the CTA with even rank first. `tcgen05_mma` and `tcgen05_moves` change tensor memory in place; asynchrony, ordering
and allocation are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checks.faults import IllegalInstruction
from ..numbers import formats

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


# What the instructions share.


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


def tensor_address(name: str, address: int, columns: int, lanes: tuple[int, ...] = (0,)) -> tuple[int, int]:
    lane, column = address >> 16, address & 0xFFFF
    if lane not in lanes or column + columns > COLUMNS:
        raise IllegalInstruction(
            f"{name} tensor memory address {address:#010x}: lane {lane} (allowed {lanes}), "
            f"columns {column}..{column + columns - 1} of {COLUMNS}"
        )
    return lane, column
