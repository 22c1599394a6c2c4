"""mma.sync with floating-point operands, and block scaling (PTX ISA 9.7.14.3 and 9.7.14.5).

Registers are uint32 [W, 32]: W warps that execute the instruction together, 32 lanes. Products are exact in float64,
the sum is taken in float64, and the accumulator is rounded once; or, with `cut`, as sm_90 does it, to the bit. The ISA
leaves order and rounding of the accumulation open.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checks.faults import IllegalInstruction
from ..numbers import accumulate, formats


@dataclass(frozen=True)
class Plan:
    """What the modifiers of an mma say: m16n8k{k}, element types, accumulator type, block scaling."""

    k: int
    a: str
    b: str
    accumulator: str
    bits: int  # of an element in a register: 4, 8, 16 or 32
    scale_vectors: int = 0  # scale factors along k; 0 without block scaling
    scale: str = ""

    @property
    def registers(self) -> tuple[int, int, int]:
        """Number of 32-bit registers a lane gives for A, B and C."""
        words = self.k * self.bits // 32
        return words // 2, words // 4, 4 if self.accumulator == "f32" else 2


_NARROW = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
_SHAPES = {  # (kind, A type) -> k, for m16n8
    **{("", t): (8, 16) for t in ("f16", "bf16")},
    ("", "tf32"): (4, 8),
    **{("", t): (16, 32) for t in ("e4m3", "e5m2")},
    **{("kind::f8f6f4", t): (32,) for t in _NARROW},
    **{("kind::mxf8f6f4", t): (32,) for t in _NARROW},
    ("kind::mxf4", "e2m1"): (64,),
    ("kind::mxf4nvf4", "e2m1"): (64,),
}
_SCALES = {  # kind -> {(scale_vec, stype)}, PTX ISA table 36
    "kind::mxf8f6f4": {("1X", "ue8m0")},
    "kind::mxf4": {("2X", "ue8m0")},
    "kind::mxf4nvf4": {("2X", "ue8m0"), ("4X", "ue4m3")},
}
_DEFAULT_SCALE = {"kind::mxf8f6f4": "1X", "kind::mxf4": "2X"}
_BITS = {"f16": 16, "bf16": 16, "tf32": 32}


@cache
def plan(modifiers: tuple[str, ...]) -> Plan:
    """Reads the modifiers of an mma (without the leading `mma`), in any order that keeps the types' own order."""
    name = f"mma.{'.'.join(modifiers)}"
    rest = list(modifiers)
    for required in ("sync", "aligned", "row", "col"):
        if required not in rest:
            raise IllegalInstruction(f"{name}: .{required} is missing")
        rest.remove(required)
    kinds = [m for m in rest if m.startswith("kind::")]
    vectors = [m for m in rest if m.startswith("scale_vec::")]
    shapes = [m for m in rest if m.startswith("m16n8k") or m.startswith("m8n8k")]
    block = "block_scale" in rest
    types = [m for m in rest if m in formats.FORMATS]
    if len(shapes) != 1 or len(kinds) > 1 or len(vectors) > 1 or len(rest) != 1 + len(kinds + vectors + types) + block:
        raise IllegalInstruction(f"{name}: a modifier is unknown, repeated or missing")
    kind, shape = "".join(kinds), shapes[0]
    if len(types) != (5 if block else 4):
        raise IllegalInstruction(f"{name}: expected {5 if block else 4} types, found {len(types)}")
    d, a, b, c = types[:4]
    ks = _SHAPES.get((kind, a), ())
    if (kind, b) not in _SHAPES or shape not in {f"m16n8k{k}" for k in ks}:
        raise IllegalInstruction(f"{name}: shape {shape} with types {a}, {b} is not in PTX ISA 9.7.14.5.14")
    if a != b and (a in _BITS or b in _BITS):
        raise IllegalInstruction(f"{name}: types of A and B differ")
    half = a == "f16" or (a in _NARROW and not block)
    if d != c or d not in (("f32", "f16") if half else ("f32",)):
        raise IllegalInstruction(f"{name}: accumulator types {d}, {c}")
    k = int(shape[6:])
    bits = _BITS.get(a, 4 if k == 64 else 8)
    if block != (kind in _SCALES):
        raise IllegalInstruction(f"{name}: .block_scale belongs to the kinds {', '.join(_SCALES)}")
    if not block:
        return Plan(k, a, b, d, bits)
    vector = vectors[0].removeprefix("scale_vec::") if vectors else _DEFAULT_SCALE.get(kind)
    if (vector, types[4]) not in _SCALES[kind]:
        raise IllegalInstruction(f"{name}: {kind} takes {sorted(_SCALES[kind])}, found ({vector}, {types[4]})")
    return Plan(k, a, b, d, bits, int(vector[0]), types[4])


def execute(
    modifiers: tuple[str, ...],
    a: list[np.ndarray],
    b: list[np.ndarray],
    c: list[np.ndarray],
    scale_a: np.ndarray | None = None,
    scale_a_byte: int = 0,
    scale_a_thread: int = 0,
    scale_b: np.ndarray | None = None,
    scale_b_byte: int = 0,
    scale_b_thread: int = 0,
    cut: bool = False,
) -> list[np.ndarray]:
    """D = A B + C for W warps: registers of D, uint32 [W, 32], from those of A, B, C and the scale factors.

    `cut`: sums as sm_90 takes them. The selectors hold for all lanes; `execute_selected` takes one a lane.

    Raises:
        IllegalInstruction: for modifiers, register counts or selectors that the ISA does not allow.
    """
    p = plan(modifiers)
    if (len(a), len(b), len(c)) != p.registers:
        raise IllegalInstruction(
            f"mma.{'.'.join(modifiers)}: {len(a)}, {len(b)}, {len(c)} registers of A, B, C; expected {p.registers}"
        )
    if (scale_a is None) != (not p.scale) or (scale_b is None) != (not p.scale):
        raise IllegalInstruction(f"mma.{'.'.join(modifiers)}: scale operands belong to .block_scale alone")
    left, right = operand_a(p, a), operand_b(p, b)
    if p.scale:
        left = _scaled(left, row_scales(p, scale_a, scale_a_byte, scale_a_thread))
        right = _scaled(right, column_scales(p, scale_b, scale_b_byte, scale_b_thread))
    if cut:
        return accumulator_registers(p, _cut_sum(p, left, right, accumulator(p, c)))
    with np.errstate(invalid="ignore", over="ignore"):
        total = left @ right.swapaxes(1, 2) + accumulator(p, c)
    return accumulator_registers(p, total)


def execute_selected(
    modifiers: tuple[str, ...],
    a: list[np.ndarray],
    b: list[np.ndarray],
    c: list[np.ndarray],
    scale_a: np.ndarray,
    scale_b: np.ndarray,
    selectors: list[np.ndarray],
    active: np.ndarray,
) -> list[np.ndarray]:
    """`execute` with selectors from registers: byte and thread of A, then of B, [W, 32] each.

    The ISA does not ask that the lanes of a warp agree. A lane gets what the instruction gives where its selectors are
    those of the whole warp, as by the loop over their values that ptxas makes.
    """
    keys = np.stack([np.broadcast_to(s, active.shape) for s in selectors], -1)
    chosen = keys[active]
    if not np.count_nonzero(chosen != chosen[:1]):  # nearly always, and sorting is slow
        values = chosen[:1].tolist()
    else:
        values = np.unique(chosen, axis=0).tolist()
    result: list[np.ndarray] = []
    for byte_a, thread_a, byte_b, thread_b in values:
        d = execute(modifiers, a, b, c, scale_a, byte_a, thread_a, scale_b, byte_b, thread_b)
        if len(values) == 1:
            return d
        here = (keys == (byte_a, thread_a, byte_b, thread_b)).all(-1)
        result = [np.where(here, new, old) for new, old in zip(d, result or d, strict=True)]
    return result or execute(modifiers, a, b, c, scale_a, 0, 0, scale_b, 0, 0)


def _cut_sum(p: Plan, left: np.ndarray, right: np.ndarray, before: np.ndarray) -> np.ndarray:
    """float64 [W, 16, 8] sums of sm_90, which has no products of 8-bit types: the compiler makes two of f16 of them, of
    the lower and of the upper halves of the words, and adds the accumulator afterwards.
    """
    kinds = p.a, p.b, p.accumulator
    if p.bits != 8:
        return accumulate.rounded(accumulate.fused(left, right, before, kinds), p.accumulator)
    total = np.zeros_like(before)
    for half in (0, 2):
        a, b = (x.reshape(*x.shape[:2], -1, 4)[..., half : half + 2].reshape(*x.shape[:2], -1) for x in (left, right))
        total = accumulate.rounded(accumulate.fused(a, b, total, kinds), p.accumulator)
    with np.errstate(invalid="ignore", over="ignore"):
        return total + before


def operand_a(p: Plan, registers: list[np.ndarray]) -> np.ndarray:
    """float64 [W, 16, k] of the registers of A.

    Register i holds row g + 8 (i & 1) and the 32-bit word l of the (i >> 1)-th 16 bytes of that row (9.7.14.5.6-11; for
    m16n8k16 with 8-bit elements and m16n8k4 there is one such chunk).
    """
    words = np.stack(registers, axis=1).reshape(-1, len(registers) // 2, 2, 8, 4)  # [W, chunk, half, g, l]
    words = words.transpose(0, 2, 3, 1, 4)
    return _values(p.a, p.bits, np.ascontiguousarray(words)).reshape(len(words), 16, p.k)


def operand_b(p: Plan, registers: list[np.ndarray]) -> np.ndarray:
    """float64 [W, 8, k], the columns of B: register i holds column g, word l of the i-th 16 bytes along k."""
    words = np.stack(registers, axis=1).reshape(-1, len(registers), 8, 4).transpose(0, 2, 1, 3)
    return _values(p.b, p.bits, np.ascontiguousarray(words)).reshape(len(words), 8, p.k)


def accumulator(p: Plan, registers: list[np.ndarray]) -> np.ndarray:
    """float64 [W, 16, 8] of the registers of C: element i is row g + 8 (i >> 1), column 2 l + (i & 1)."""
    words = np.stack(registers, axis=-1)  # [W, 32, registers]
    if p.accumulator == "f32":
        values = words.view(np.float32)
    else:
        values = words.view(np.float16)
    values = values.reshape(-1, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4)  # [W, half, g, l, pair]
    with np.errstate(invalid="ignore"):
        return values.reshape(-1, 16, 8).astype(np.float64)


def accumulator_registers(p: Plan, total: np.ndarray) -> list[np.ndarray]:
    """Registers of D, uint32 [W, 32], of float64 [W, 16, 8]: the inverse of `accumulator` with one rounding."""
    bits = formats.round_to_f32(total) if p.accumulator == "f32" else formats.round_to_f16(total)
    bits = bits.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4)  # [W, g, l, half, pair]
    words = np.ascontiguousarray(bits).reshape(len(bits), 32, 4)
    if p.accumulator == "f16":
        words = words.view(np.uint32)
    return [words[:, :, i] for i in range(words.shape[2])]


def row_scales(p: Plan, registers: np.ndarray, byte: int, thread: int) -> np.ndarray:
    """float64 [W, 16, scale_vectors]: in each quad, the thread pair `thread` gives rows g and g + 8 (9.7.14.3)."""
    _check_selector("a", p, byte, thread, 2)
    lanes = np.arange(8) * 4 + 2 * thread
    rows = np.concatenate([registers[:, lanes], registers[:, lanes + 1]], axis=1)
    return _scale_values(p, rows, byte)


def column_scales(p: Plan, registers: np.ndarray, byte: int, thread: int) -> np.ndarray:
    """float64 [W, 8, scale_vectors]: in each quad, the thread `thread` gives column g (9.7.14.3)."""
    _check_selector("b", p, byte, thread, 4)
    return _scale_values(p, registers[:, np.arange(8) * 4 + thread], byte)


def _check_selector(operand: str, p: Plan, byte: int, thread: int, threads: int) -> None:
    bytes_allowed = {1: (0, 1, 2, 3), 2: (0, 2), 4: (0,)}[p.scale_vectors]
    if byte not in bytes_allowed or not 0 <= thread < threads:
        raise IllegalInstruction(
            f"mma scale_vec::{p.scale_vectors}X: byte-id-{operand} {byte} (allowed {bytes_allowed}), "
            f"thread-id-{operand} {thread} (allowed 0..{threads - 1}), PTX ISA table 37"
        )


def _scale_values(p: Plan, words: np.ndarray, byte: int) -> np.ndarray:
    codes = np.ascontiguousarray(words, "<u4")[..., None].view(np.uint8)[..., byte : byte + p.scale_vectors]
    return formats.scale_table(p.scale)[codes]


def _scaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    count, rows, vectors = scales.shape
    with np.errstate(invalid="ignore", over="ignore"):
        return (values.reshape(count, rows, vectors, -1) * scales[..., None]).reshape(values.shape)


def _values(name: str, bits: int, words: np.ndarray) -> np.ndarray:
    """float64 elements of contiguous uint32 words, lowest bits first, along a new last axis."""
    if bits == 4:
        return formats.pair_table()[words[..., None].view(np.uint8)]
    if bits == 8:
        return formats.container_table(name)[words[..., None].view(np.uint8)]
    if bits == 16:
        return formats.table(name)[words[..., None].view(np.uint16)]
    return formats.decode(name, words)
