"""Triton's kernels on the emulated device: each element of each result equals the float64 product rounded once.

Operands are chosen so that every partial sum is exact in float32: then the order of accumulation cannot matter and no
tolerance is needed. Triton's compiled code ran on hardware; agreement means that this project reads the ISA as it does.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

import emulator

kernels = pytest.importorskip("kernels", reason="needs triton", exc_type=ImportError)

SEEDS = range(8)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])
ARCH = {90: "90a", 100: "100a", 120: "120a"}


def packed(rng: np.random.Generator, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Random e2m1 rows: two a byte with the even k in the low nibble, and their values."""
    codes = rng.integers(0, 16, (rows, k), dtype=np.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4, E2M1[codes]


def scale_factors(rng: np.random.Generator, kind: str, rows: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct-looking factors: ue4m3 in steps of 1/8 from 1 to 15/8, or ue8m0 from 2^-2 to 2^1, and their values."""
    if kind == "nvfp4":
        eighths = rng.integers(0, 8, (rows, count), dtype=np.uint8)
        return 0x38 + eighths, 1 + eighths / 8
    power = rng.integers(-2, 2, (rows, count))
    return (127 + power).astype(np.uint8), 2.0**power


def to_bf16(values: np.ndarray) -> np.ndarray:
    """bf16 bits of values that are exact in float32, to nearest even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def launch(
    compiled: kernels.Compiled,
    arch: str,
    buffers: list[np.ndarray],
    sizes: tuple[int, int, int],
    grid: tuple[int, int, int],
    schedule: dict,
) -> None:
    """Runs a kernel; the last of the buffers is its output."""
    device = emulator.Device(arch, checks=True, **schedule)
    scratch = np.zeros(compiled.scratch_bytes * grid[0] * grid[1] + compiled.scratch_alignment, np.uint8)
    base = -(-scratch.ctypes.data // compiled.scratch_alignment) * compiled.scratch_alignment
    for index, buffer in enumerate(buffers):
        device.map_buffer(buffer.ctypes.data, buffer.nbytes, buffer is buffers[-1], f"operand {index}")
    if compiled.scratch_bytes:
        device.map_buffer(base, compiled.scratch_bytes * grid[0] * grid[1], True, "scratch")
    pointers = struct.pack(f"<{len(buffers)}Q", *(buffer.ctypes.data for buffer in buffers))
    integers = struct.pack("<3i", *sizes)
    padding = bytes(-len(pointers + integers) % 8)
    parameters = pointers + integers + padding + struct.pack("<2Q", base, 0)
    module = emulator.load(compiled.ptx)
    block = (compiled.threads, 1, 1)
    device.launch(module, compiled.name, grid, block, (1, 1, 1), compiled.shared_bytes, parameters)


def check(got: np.ndarray, want: np.ndarray) -> None:
    """Equality of every element, naming the first that differs."""
    bits = to_bf16(want)
    wrong = np.argwhere(got != bits)
    assert not len(wrong), f"{len(wrong)} of {got.size} differ, first {wrong[0]}: {got[tuple(wrong[0])]:#06x}"


SCHEDULES = pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])


@SCHEDULES
@pytest.mark.parametrize("tma", [False, True], ids=["pointers", "tma"])
@pytest.mark.parametrize("capability", [100, 120])
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_block_scaled(kind: str, capability: int, tma: bool, lazy: bool) -> None:
    """dot_scaled through mma.sync on sm_120 and through tcgen05 on sm_100."""
    tile, (m, n, k) = (128, 128, 128), (256, 128, 384)
    compiled = kernels.build(kind, capability, tma, tile)
    vector = 16 if kind == "nvfp4" else 32
    rng = np.random.default_rng(7)
    a, a_values = packed(rng, m, k)
    b, b_values = packed(rng, n, k)
    a_scale, a_factors = scale_factors(rng, kind, m, k // vector)
    b_scale, b_factors = scale_factors(rng, kind, n, k // vector)
    want = (a_values * np.repeat(a_factors, vector, 1)) @ (b_values * np.repeat(b_factors, vector, 1)).T
    for seed in SEEDS:
        out = np.full((m, n), 0xFFFF, np.uint16)
        buffers = [a, a_scale, b, b_scale, out]
        grid = (m // tile[0], n // tile[1], 1)
        launch(compiled, ARCH[capability], buffers, (m, n, k), grid, {"seed": seed, "lazy": lazy})
        check(out, want)


@SCHEDULES
@pytest.mark.parametrize("capability, tile", [(90, (128, 128, 64)), (100, (128, 128, 64)), (120, (128, 64, 64))])
def test_warp_specialised(capability: int, tile: tuple[int, int, int], lazy: bool) -> None:
    """A bf16 GEMM with TMA and a warp-specialised loop: wgmma, tcgen05 and mma.sync."""
    m, n, k = 256, 128, 256
    compiled = kernels.build("bf16", capability, True, tile)
    rng = np.random.default_rng(8)
    values = [rng.integers(-32, 33, (rows, k)) / 8 for rows in (m, n)]
    a, b = (to_bf16(v) for v in values)
    want = values[0] @ values[1].T
    for seed in SEEDS:
        out = np.full((m, n), 0xFFFF, np.uint16)
        grid = (m // tile[0], n // tile[1], 1)
        launch(compiled, ARCH[capability], [a, b, out], (m, n, k), grid, {"seed": seed, "lazy": lazy})
        check(out, want)
