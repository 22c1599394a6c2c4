"""wgmma.mma_async with floating-point operands (PTX ISA 9.7.15.5.2).

Registers are uint32 [4, 32]: the four warps of a warpgroup, warp w computing rows 16 w .. 16 w + 15. Sums are those
of sm_90, to the bit (`accumulate`).
Asynchrony and the checks of wgmma.fence, commit_group and wait_group are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checks.faults import IllegalInstruction
from ..numbers import accumulate, descriptors, formats


@dataclass(frozen=True)
class Form:
    """m64 n k, element types and the accumulator's type."""

    n: int
    k: int
    a: str
    b: str
    accumulator: str

    @property
    def element_bytes(self) -> int:
        return 32 // self.k

    @property
    def registers(self) -> int:
        """Accumulator registers of a lane."""
        return self.n // 2 if self.accumulator == "f32" else self.n // 4


_TYPES = {  # (A, B) -> (k, accumulator types)
    ("f16", "f16"): (16, ("f16", "f32")),
    ("bf16", "bf16"): (16, ("f32",)),
    ("tf32", "tf32"): (8, ("f32",)),
    **{(a, b): (32, ("f16", "f32")) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")},
}


@cache
def form(modifiers: tuple[str, ...]) -> Form:
    """Reads the modifiers of a wgmma.mma_async (those after `wgmma.mma_async`)."""
    name = f"wgmma.mma_async.{'.'.join(modifiers)}"
    rest = [m for m in modifiers if m not in ("sync", "aligned")]
    if len(modifiers) - len(rest) != 2 or len(rest) != 4 or tuple(rest[2:]) not in _TYPES:
        raise IllegalInstruction(f"{name}: expected .sync.aligned.shape.dtype.atype.btype of PTX ISA 9.7.15.5.2")
    k, accumulators = _TYPES[rest[2], rest[3]]
    shapes = {f"m64n{n}k{k}": n for n in range(8, 257, 8)}
    if rest[0] not in shapes or rest[1] not in accumulators:
        raise IllegalInstruction(f"{name}: shape {rest[0]} or accumulator type {rest[1]} is not one of these operands")
    return Form(shapes[rest[0]], k, rest[2], rest[3], rest[1])


def execute(
    modifiers: tuple[str, ...],
    accumulators: list[np.ndarray],
    a: list[np.ndarray] | int,
    b_descriptor: int,
    shared: np.ndarray,
    *,
    scale_d: bool = True,
    negate_a: bool = False,
    negate_b: bool = False,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> list[np.ndarray]:
    """D = A B + D, or D = A B where `scale_d` is false: registers of D, uint32 [4, 32].

    Args:
        accumulators: registers of D before, uint32 [4, 32].
        a: four registers uint32 [4, 32], or a matrix descriptor.
        b_descriptor: matrix descriptor of B.
        shared: uint8, the shared window of the CTA.
        negate_a, negate_b: imm-scale-a, imm-scale-b of -1.
        transpose_a, transpose_b: imm-trans-a, imm-trans-b; 16-bit types in shared memory alone.

    Raises:
        IllegalInstruction: for forms, operand counts and descriptors that the ISA does not allow.
    """
    f = form(modifiers)
    if len(accumulators) != f.registers:
        raise IllegalInstruction(f"wgmma m64n{f.n}k{f.k}: {len(accumulators)} accumulators, expected {f.registers}")
    left = _a_from_registers(f, a, transpose_a) if isinstance(a, list) else _matrix(f, f.a, 64, a, shared, transpose_a)
    right = _matrix(f, f.b, f.n, b_descriptor, shared, transpose_b)
    if negate_a != negate_b:
        left = -left
    before = accumulator_values(f, accumulators) if scale_d else np.zeros((64, f.n))
    narrow = f.element_bytes == 1
    fraction = accumulate.NARROW_FRACTION if narrow else accumulate.FRACTION
    total = accumulate.fused(left, right, before, (f.a, f.b, f.accumulator), fraction)
    return accumulator_registers(f, accumulate.rounded(total, f.accumulator, min(fraction, 23)))


def shared_addresses(
    modifiers: tuple[str, ...],
    a: list[np.ndarray] | int,
    b_descriptor: int,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> np.ndarray:
    """Addresses of the shared bytes that the instruction reads; the same errors for descriptors as `execute`."""
    f = form(modifiers)
    where = [_addresses(f, f.n, b_descriptor, transpose_b).reshape(-1)]
    if not isinstance(a, list):
        where.append(_addresses(f, 64, a, transpose_a).reshape(-1))
    return np.concatenate(where)


def accumulator_values(f: Form, registers: list[np.ndarray]) -> np.ndarray:
    """float64 [64, n]: element i of a lane is row 16 w + g + 8 (i >> 1 & 1), column 8 (i >> 2) + 2 l + (i & 1)."""
    words = np.stack(registers, axis=-1)  # [4, 32, registers]
    values = words.view(np.float32 if f.accumulator == "f32" else np.float16)
    values = values.reshape(4, 8, 4, f.n // 8, 2, 2).transpose(0, 4, 1, 3, 2, 5)  # [w, half, g, column / 8, l, pair]
    with np.errstate(invalid="ignore"):
        return values.reshape(64, f.n).astype(np.float64)


def accumulator_registers(f: Form, total: np.ndarray) -> list[np.ndarray]:
    """Registers of D, uint32 [4, 32], of float64 [64, n]: the inverse of `accumulator_values` with one rounding."""
    bits = formats.round_to_f32(total) if f.accumulator == "f32" else formats.round_to_f16(total)
    bits = bits.reshape(4, 2, 8, f.n // 8, 4, 2).transpose(0, 2, 4, 3, 1, 5)
    words = np.ascontiguousarray(bits).reshape(4, 32, f.n // 2).view(np.uint32)
    return [words[:, :, i] for i in range(words.shape[2])]


def _a_from_registers(f: Form, registers: list[np.ndarray], transpose: bool) -> np.ndarray:
    """float64 [64, k]: register i holds row g + 8 (i & 1), the 32-bit word l of the (i >> 1)-th 16 bytes of k."""
    if len(registers) != 4 or transpose:
        raise IllegalInstruction(f"wgmma: {len(registers)} registers of A, transposed {transpose}; expected 4, not so")
    words = np.stack(registers, axis=1).reshape(4, 2, 2, 8, 4).transpose(0, 2, 3, 1, 4)  # [w, half, g, chunk, l]
    return _values(f.a, np.ascontiguousarray(words).reshape(64, 8).view(np.uint8))


def _addresses(f: Form, rows: int, descriptor: int, transpose: bool) -> np.ndarray:
    if transpose and f.element_bytes != 2:
        raise IllegalInstruction(f"wgmma: operands of type {f.a}, {f.b} cannot be transposed, only .f16 and .bf16")
    d = descriptors.decode_wgmma(descriptor)
    return descriptors.addresses(d, rows, f.k, f.element_bytes, transpose)


def _matrix(f: Form, name: str, rows: int, descriptor: int, shared: np.ndarray, transpose: bool) -> np.ndarray:
    """float64 [rows, k] of the matrix that a descriptor describes."""
    return _values(name, descriptors.gather(shared, _addresses(f, rows, descriptor, transpose)))


def _values(name: str, raw: np.ndarray) -> np.ndarray:
    """float64 elements of bytes [rows, 32]; tf32 loses its low 13 bits (9.7.15.5.2, Precision and rounding)."""
    raw = np.ascontiguousarray(raw)
    if name == "tf32":
        return formats.decode(name, raw.view("<u4"))
    return formats.table(name)[raw.view("<u2") if name in ("f16", "bf16") else raw]
