"""A CUDA kernel as nvcc translates it for each architecture, against the same program in plain Python."""

from __future__ import annotations

import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_core_alu import half_code, half_value, truncated

import emulator
from generator.toolchain import find_toolchain

GRID, BLOCK = 3, 256
COUNT = GRID * BLOCK
WORD = 0xFFFFFFFF


def f32(value: Fraction | float) -> float:
    """To f32, at once; all values here are far from overflow, and float(Fraction) rounds correctly."""
    if isinstance(value, Fraction):
        exact = np.float64(float(value))
        bits = int(exact.view(np.int64))
        if Fraction(float(exact)) != value and not bits & 1:  # to odd, so that the second rounding does no harm
            bits += 1 if (Fraction(float(exact)) < value) == (exact > 0) else -1
        exact = np.int64(bits).view(np.float64)
        return float(np.float32(exact))
    return float(np.float32(value))


def fma(a: float, b: float, c: float) -> float:
    return f32(Fraction(a) * Fraction(b) + Fraction(c))


def permuted(low: int, high: int, selector: int) -> int:
    octets = struct.pack("<II", low, high)
    return int.from_bytes(bytes(octets[selector >> 4 * i & 7] for i in range(4)), "little")


def accumulated(row: np.ndarray, weights: np.ndarray, thread: int, index: int) -> float:
    total = 0.0
    for j in range(thread % 7):
        total = fma(float(row[(thread + j) % 256]), float(weights[j]), total)
        if total > 100:
            break
    match index % 9:
        case 0:
            return f32(total + 1)
        case 1:
            return f32(total * 3)
        case 2:
            return f32(total - thread)
        case 3:
            return float(np.float32(total) / np.float32(3))
        case 4:
            return float(np.sqrt(np.abs(np.float32(total))))
        case 6:
            return fma(total, total, 7.0)
    return 3.0


def mixture(values: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel leaves in `values` and `words`."""
    index = np.arange(COUNT)
    inputs = np.where(index < count, values, 0).astype(np.float32).reshape(GRID, BLOCK)
    sums = [accumulated(inputs[i // BLOCK], weights, i % BLOCK, i) for i in range(COUNT)]
    words = [0] * (COUNT + 2)
    for first in range(0, COUNT, 32):
        lanes = range(first, first + 32)
        ballot = sum(1 << i - first for i in lanes if sums[i] > 2)
        word = [((i % BLOCK ^ 5) * 3 + ballot + sum(lanes)) & WORD for i in lanes]
        for distance in (16, 8, 4, 2, 1):
            word = [(w + word[min(t + distance, 31) if t + distance < 32 else t]) & WORD for t, w in enumerate(word)]
        for i, w in zip(lanes, word, strict=True):
            if i % 2:
                w ^= w.bit_count() * 77
            else:
                w = int(f"{w:032b}"[::-1], 2) + 32 - w.bit_length() & WORD
            as_signed = w - (w >> 31 << 32)
            quotient = truncated(as_signed, i % 13 - 6 or 5)
            quotient += as_signed - truncated(as_signed, 17) * 17
            wide = w * 0x123456789 % (1 << 64) // (i + 1)
            stack = [(w * (n + 1) + n) & WORD for n in range(8)]
            for n in range(3):
                stack[w >> 3 * n & 7] ^= stack[w >> 5 * n + 2 & 7] + n & WORD
            x = Fraction(half_value(half_code(Fraction(sums[i]) / 64, "f16"), "f16")) if sums[i] else Fraction(0)
            low, high = (half_code(x * p + q, "f16") for p, q in ((Fraction(3, 2), Fraction(1, 4)), (i, 3)))
            brain = half_code(Fraction(sums[i]), "bf16") if sums[i] else int(np.signbit(sums[i])) << 15
            words[i] = w + quotient + (wide >> 7) + (w * 12345 >> 32) + permuted(w, quotient & WORD, 0x5140 + i % 4)
            words[i] = words[i] + stack[i & 7] + (high << 16 | low) + brain & WORD
            words[COUNT] += i & 3
            if i % 50 != 49:
                words[COUNT + 1] = max(words[COUNT + 1], w >> 8)
    return np.array(sums, np.float32), np.array(words, np.uint32)


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
def test_mixture(arch: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Every bit that the kernel writes, under several schedules."""
    source, target = Path(__file__).parent / "mixture.cu", tmp_path / "mixture.ptx"
    command = [find_toolchain().nvcc, "-ptx", f"-arch=sm_{arch}", "-lineinfo", source, "-o", target]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=find_toolchain().environment)
    values = (rng.standard_normal(COUNT) * 30).astype(np.float32)
    weights = rng.integers(-3, 9, 8, dtype=np.int32)
    want_values, want_words = mixture(values, weights, COUNT - 5)
    for seed in range(3):
        got_values, got_words = values.copy(), np.zeros(COUNT + 2, np.uint32)
        device = emulator.Device(arch, seed)
        for buffer in (got_values, weights, got_words):
            device.map_buffer(buffer.ctypes.data, buffer.nbytes, buffer is not weights, "buffer")
        pointers = (buffer.ctypes.data for buffer in (got_values, weights, got_words))
        parameters = struct.pack("<QQQi", *pointers, COUNT - 5)
        device.launch(emulator.load(target.read_text()), "mixture", (GRID,), (BLOCK,), (1,), 0, parameters)
        assert got_values.tobytes() == want_values.tobytes()
        assert got_words.tolist() == want_words.tolist()


def test_faults_name_the_cuda_line(tmp_path: Path) -> None:
    """With -lineinfo a fault says where in the CUDA source it was."""
    source, target = tmp_path / "wild.cu", tmp_path / "wild.ptx"
    source.write_text(
        'extern "C" __global__ void wild(float* out) {\n    out[threadIdx.x + 1000] =\n        1.0f;\n}\n'
    )
    command = [find_toolchain().nvcc, "-ptx", "-arch=sm_90a", "-lineinfo", source, "-o", target]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=find_toolchain().environment)
    out = np.zeros(32, np.float32)
    device = emulator.Device("90a")
    device.map_buffer(out.ctypes.data, out.nbytes, True, "out")
    with pytest.raises(emulator.MemoryFault) as caught:
        device.launch(
            emulator.load(target.read_text()), "wild", (1,), (32,), (1,), 0, struct.pack("<Q", out.ctypes.data)
        )
    assert caught.value.source == f"{source}:2"
