"""Slow builders of shared-memory matrices from the canonical layouts of PTX ISA 9.7.16.3.3 (and 9.7.15.5.1.2.1.3)."""

from __future__ import annotations

import numpy as np

# mode: (B of Swizzle<B, 4, 3>, 128-bit columns of an atom)
MODES = {"none": (0, 1), "32B": (1, 2), "64B": (2, 4), "128B": (3, 8)}


def swizzled(mode: str, address: int) -> int:
    """CuTe's Swizzle<B, 4, 3>: bits 4.. are XORed with bits 7..; Swizzle<2, 5, 2> for the 32-byte atom."""
    if mode == "128B_atom_32B":
        return address ^ (address >> 2 & 0b11 << 5)
    return address ^ (address >> 3 & (1 << MODES[mode][0]) - 1 << 4)


def element_offset(major: str, mode: str, bits: int, mn: int, k: int, leading: int, stride: int) -> int:
    """Offset in bytes, before swizzling, of element (mn, k); `bits` of an element, `leading` and `stride` in bytes."""
    t = 128 // bits
    size = bits // 8
    if mode == "128B_atom_32B":  # CUTLASS mma_sm100_desc.hpp: ((8,n),(4,k)):((1,LBO),(8,SBO)) in 16-byte units
        assert major == "MN"
        return (mn % t + mn // t % 8 * t + k % 4 * 8 * t) * size + mn // (8 * t) * leading + k // 4 * stride
    width = MODES[mode][1]
    if major == "K":
        if mode == "none":  # ((8,m),(T,2k)):((1T,SBO),(1,LBO))
            return (mn % 8 * t + k % t) * size + mn // 8 * stride + k // t * leading
        return (mn % 8 * width * t + k % t + k // t * t) * size + mn // 8 * stride  # ((8,m),(T,2k)):((wT,SBO),(1,T))
    if mode == "none":  # ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
        return (mn % t + k % 8 * t) * size + mn // t * stride + k // 8 * leading
    # ((T,w,m),(8,k)):((1,T,LBO),(wT,SBO))
    return (mn % t + mn // t % width * t + k % 8 * width * t) * size + mn // (t * width) * leading + k // 8 * stride


def strides(major: str, mode: str, rows: int, k_bytes: int, bits: int) -> tuple[int, int]:
    """Leading and stride byte offsets of a compact matrix, padded by 16 bytes in places to tell them apart."""
    if mode == "128B_atom_32B":
        atoms = rows * bits // 8 // 128
        return 512, 512 * atoms + 1024
    span = 16 * MODES[mode][1]
    if major == "K":
        return (rows * 16 + 256, 128) if mode == "none" else (16, 8 * span + 1024 * (rows <= 64))
    atoms = -(-rows * bits // 8 // span)
    if mode == "none":
        return 128 * atoms + 512, 128
    return 8 * span, 8 * span * atoms + 1024


def build(
    shared: np.ndarray, start: int, major: str, mode: str, codes: np.ndarray, bits: int, leading: int, stride: int
) -> None:
    """Writes the codes [mn, k] of 8, 16 or 32 bits into `shared`, one element at a time."""
    size = bits // 8
    for mn in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            offset = element_offset(major, mode, bits, mn, k, leading, stride)
            for byte, value in enumerate(int(codes[mn, k]).to_bytes(size, "little")):
                shared[swizzled(mode, start + offset + byte)] = value
