"""Matrix descriptors of wgmma and tcgen05, and the addresses of the elements they describe.

Both instructions use the same canonical layouts (PTX ISA 9.7.15.5.1.2 and 9.7.16.3.3); the 64-bit encodings differ in
the swizzle field and in a constant (9.7.15.5.1.2.2, 9.7.16.4.1). Addresses are bytes in the shared window of a CTA.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..checks.faults import IllegalInstruction
from . import swizzle

_WGMMA_SWIZZLE = {0: "none", 1: "128B", 2: "64B", 3: "32B"}
_TCGEN05_SWIZZLE = {0: "none", 1: "128B_atom_32B", 2: "128B", 4: "64B", 6: "32B"}


@dataclass(frozen=True)
class MatrixDescriptor:
    """A decoded descriptor; `start`, `leading` and `stride` in bytes, all multiples of 16."""

    start: int
    leading: int
    stride: int
    swizzle: str


def decode_wgmma(descriptor: int) -> MatrixDescriptor:
    """Descriptor of wgmma (9.7.15.5.1.2.2): swizzle in bits 62..63, base offset in 49..51, all else reserved."""
    _check_zero("wgmma", descriptor, (14, 15, 30, 31, 46, 47, 48, *range(52, 62)))
    return _decode("wgmma", descriptor, _WGMMA_SWIZZLE[descriptor >> 62 & 3])


def decode_tcgen05(descriptor: int) -> MatrixDescriptor:
    """Descriptor of tcgen05 (9.7.16.4.1, table 40).

    The ISA prints a malformed constant for bits 53..60; CUTLASS writes 0, which is what is accepted here. The absolute
    leading-dimension mode of bit 52 exists on sm_103a only.
    """
    _check_zero("tcgen05", descriptor, (14, 15, 30, 31, *range(52, 61)))
    if descriptor >> 46 & 7 != 1:
        raise IllegalInstruction(
            f"tcgen05 descriptor {descriptor:#018x}: bits 46..48 are {descriptor >> 46 & 7}, not 1"
        )
    mode = _TCGEN05_SWIZZLE.get(descriptor >> 61 & 7)
    if mode is None:
        raise IllegalInstruction(f"tcgen05 descriptor {descriptor:#018x}: swizzling mode {descriptor >> 61} is invalid")
    return _decode("tcgen05", descriptor, mode)


def _check_zero(name: str, descriptor: int, bits: tuple[int, ...]) -> None:
    wrong = [bit for bit in bits if descriptor >> bit & 1]
    if wrong or descriptor >> 64:
        raise IllegalInstruction(f"{name} descriptor {descriptor:#018x}: reserved bits {wrong} are set")


def _decode(name: str, descriptor: int, mode: str) -> MatrixDescriptor:
    base = descriptor >> 49 & 7
    if base:
        raise IllegalInstruction(f"{name} descriptor {descriptor:#018x}: base offset {base} is not implemented, only 0")
    field = lambda low: (descriptor >> low & 0x3FFF) << 4  # noqa: E731
    return MatrixDescriptor(field(0), field(16), field(32), mode)


def addresses(d: MatrixDescriptor, rows: int, k: int, element_bytes: int, mn_major: bool) -> np.ndarray:
    """Byte addresses int64 [rows, k * element_bytes] of a rows x k matrix, row = M or N index, bytes in the order of k.

    `rows` is a multiple of 8, and k elements are a multiple of 16 bytes (K-major) or of 8 elements (MN-major).
    """
    phase = d.start % 1024  # swizzling depends on no higher address bits
    return _relative(d.leading, d.stride, d.swizzle, phase, rows, k, element_bytes, mn_major) + (d.start - phase)


@lru_cache(maxsize=256)
def _relative(
    leading: int, stride: int, mode: str, phase: int, rows: int, k: int, element_bytes: int, mn_major: bool
) -> np.ndarray:
    pattern = swizzle.mode(mode)
    row = np.arange(rows)[:, None]
    if not mn_major:
        byte = np.arange(k * element_bytes)[None, :]
        if mode == "none":
            offset = row % 8 * 16 + row // 8 * stride + byte // 16 * leading + byte % 16
        else:
            if k * element_bytes > pattern.span:
                raise IllegalInstruction(f"{k * element_bytes} bytes of k exceed the {pattern.span}-byte swizzle span")
            offset = row % 8 * pattern.span + row // 8 * stride + byte
    else:
        # Consecutive rows are consecutive in memory; an atom is `span` bytes of rows times 8 of k (4 with 32-byte
        # atoms).
        depth = 4 if mode == "128B_atom_32B" else 8
        index = np.repeat(np.arange(k), element_bytes)[None, :]
        byte = row * element_bytes + np.tile(np.arange(element_bytes), k)[None, :]
        within, outer = byte % pattern.span, byte // pattern.span
        far, near = (stride, leading) if mode == "none" else (leading, stride)
        offset = within + outer * far + index % depth * pattern.span + index // depth * near
    result = pattern.apply(offset + phase)
    result.setflags(write=False)
    return result


def gather(shared: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Bytes of `shared` (uint8) at the addresses `where`; an address beyond the window is an IllegalInstruction."""
    if where.size and int(where.max()) >= len(shared):
        raise IllegalInstruction(
            f"descriptor reaches shared address {int(where.max()):#x}, the CTA's window ends at {len(shared):#x}"
        )
    return shared[where]
