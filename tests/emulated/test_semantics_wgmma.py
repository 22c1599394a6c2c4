"""wgmma.mma_async against loops over rows, columns and lanes (PTX ISA 9.7.15.5)."""

import numpy as np
import pytest
from matrix_layouts import build, strides

from emulator.checks.faults import IllegalInstruction
from emulator.numbers import formats
from emulator.units import wgmma

SWIZZLE_CODE = {"none": 0, "128B": 1, "64B": 2, "32B": 3}
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8}


def descriptor(start, leading, stride, mode):
    """9.7.15.5.1.2.2."""
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | SWIZZLE_CODE[mode] << 62


def matrix(rng, name, rows, k):
    """Random codes of whole numbers, whose sums nothing cuts; tf32 codes have low bits that must not count."""
    if name == "tf32":
        values = rng.integers(-8, 9, (rows, k)).astype(np.float32)
        return values.view(np.uint32) | rng.integers(0, 1 << 13, (rows, k), np.uint32), values.astype(np.float64)
    values = formats.table(name)
    codes = rng.choice(np.flatnonzero((np.abs(values) <= 8) & (values == np.rint(values))), (rows, k))
    return codes, values[codes]


def place(shared, start, codes, name, mode, major):
    leading, stride = strides(major, mode, len(codes), 32, BITS[name])
    build(shared, start, major, mode, codes, BITS[name], leading, stride)
    return descriptor(start, leading, stride, mode)


def a_registers(codes, name):
    """Figures 148, 150, 152: each warp holds its 16 rows as the A fragment of mma.sync of the same k."""
    per = 32 // BITS[name]
    registers = [np.zeros((4, 32), np.uint32) for _ in range(4)]
    for warp in range(4):
        for lane in range(32):
            for i in range(4):
                row = 16 * warp + lane // 4 + 8 * (i % 2)
                for e in range(per):
                    k = per * (lane % 4) + 4 * per * (i // 2) + e
                    registers[i][warp, lane] |= np.uint32(int(codes[row, k]) << BITS[name] * e)
    return registers


def d_registers(values, half):
    """Figures 149, 151, 153: element i of a lane is row g + 8 (i / 2 % 2), column 8 (i / 4) + 2 (lane % 4) + i % 2."""
    n = values.shape[1]
    out = np.zeros((n // 2, 4, 32), np.uint32)
    with np.errstate(over="ignore"):
        bits = values.astype(np.float16).view(np.uint16) if half else values.astype(np.float32).view(np.uint32)
    for warp in range(4):
        for lane in range(32):
            for i in range(n // 2):
                row, column = 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2
                out[i, warp, lane] = bits[row, column]
    if half:
        out = out[0::2] | out[1::2] << 16
    return list(out)


def product(a, b):
    """float64, one term after another."""
    total = np.zeros((a.shape[0], b.shape[0]))
    for k in range(a.shape[1]):
        total += np.outer(a[:, k], b[:, k])
    return total


def run(types, n, mode_a, mode_b, majors=("K", "K"), registers=False, scale_d=True, negate=(False, False), seed=0):
    """One instruction on random operands, compared in every bit."""
    d, a, b = types
    k = 256 // BITS[a]
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 256, 65536, dtype=np.uint8)
    a_codes, a_values = matrix(rng, a, 64, k)
    b_codes, b_values = matrix(rng, b, n, k)
    inside = 32 if majors[1] == "K" and mode_b in ("64B", "128B") else 0
    left = a_registers(a_codes, a) if registers else place(shared, 1024, a_codes, a, mode_a, majors[0])
    right = place(shared, 24576 + inside, b_codes, b, mode_b, majors[1])
    old = rng.integers(-64, 65, (64, n)).astype(np.float64)
    modifiers = ("sync", "aligned", f"m64n{n}k{k}", d, a, b)
    transpose = {"transpose_a": majors[0] == "MN", "transpose_b": majors[1] == "MN"}
    got = wgmma.execute(modifiers, d_registers(old, d == "f16"), left, right, shared, scale_d=scale_d,
                        negate_a=negate[0], negate_b=negate[1], **transpose)  # fmt: skip
    sign = -1 if negate[0] != negate[1] else 1
    want = sign * product(a_values, b_values) + (old if scale_d else 0.0)
    for register, expect in zip(got, d_registers(want, d == "f16"), strict=True):
        assert np.array_equal(register, expect)
    reads = wgmma.shared_addresses(modifiers, left, right, **transpose)
    assert len(np.unique(reads)) == (n + (0 if registers else 64)) * 32
    spoiled = ~shared
    spoiled[reads] = shared[reads]
    again = wgmma.execute(modifiers, d_registers(old, d == "f16"), left, right, spoiled, scale_d=scale_d,
                          negate_a=negate[0], negate_b=negate[1], **transpose)  # fmt: skip
    assert all(np.array_equal(x, y) for x, y in zip(got, again, strict=True))


TYPES = [
    ("f32", "f16", "f16"),
    ("f16", "f16", "f16"),
    ("f32", "bf16", "bf16"),
    ("f32", "tf32", "tf32"),
    ("f32", "e4m3", "e4m3"),
    ("f16", "e4m3", "e5m2"),
    ("f32", "e5m2", "e4m3"),
]


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("mode", SWIZZLE_CODE)
@pytest.mark.parametrize("types", TYPES)
def test_k_major(types, mode, registers):
    """Every type and swizzling mode, A from shared memory or registers."""
    run(types, 24, mode, mode, registers=registers)


@pytest.mark.parametrize("majors", [("K", "MN"), ("MN", "K"), ("MN", "MN")])
@pytest.mark.parametrize("mode", SWIZZLE_CODE)
def test_transposed_sixteen_bit(mode, majors):
    """imm-trans-a and imm-trans-b, each alone and together."""
    run(("f32", "bf16", "bf16"), 64, mode, mode, majors)


def test_transposed_b_with_a_in_registers():
    """A from registers leaves imm-trans-b."""
    run(("f32", "f16", "f16"), 128, "none", "128B", ("K", "MN"), registers=True)


@pytest.mark.parametrize("n", [8, 136, 256])
def test_sizes(n):
    """The smallest, an odd multiple of 8, and the largest n."""
    run(("f32", "bf16", "bf16"), n, "128B", "128B")


@pytest.mark.parametrize("negate", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("scale_d", [False, True])
def test_negation_and_scale_d(negate, scale_d):
    """imm-scale of -1 negates an operand; scale-d false ignores the accumulators."""
    run(("f32", "bf16", "bf16"), 16, "64B", "32B", scale_d=scale_d, negate=negate)


@pytest.mark.parametrize(
    "text",
    [
        "aligned.m64n8k16.f32.f16.f16",
        "sync.aligned.m64n12k16.f32.f16.f16",
        "sync.aligned.m64n264k16.f32.f16.f16",
        "sync.aligned.m64n8k8.f32.f16.f16",
        "sync.aligned.m64n8k16.f16.bf16.bf16",
        "sync.aligned.m64n8k16.f32.f16.bf16",
        "sync.aligned.m64n8k32.s32.s8.s8",
        "sync.aligned.m64n8k32.satfinite.s32.s8.s8",
        "sp.sync.aligned.m64n8k32.f32.f16.f16",
    ],
)
def test_illegal_forms(text):
    """Forms outside 9.7.15.5.2, or not implemented, raise with the instruction's text."""
    with pytest.raises(IllegalInstruction, match="wgmma"):
        wgmma.form(tuple(text.split(".")))


@pytest.mark.parametrize(
    "b, options, what",
    [
        (descriptor(0, 16, 1024, "128B") | 1 << 49, {}, "base offset"),
        (descriptor(0, 16, 1024, "128B") | 1 << 52, {}, "reserved"),
        (descriptor(0, 16, 1024, "128B") | 1 << 46, {}, "reserved"),
        (descriptor(4064, 16, 1024, "128B"), {}, "window"),
        (descriptor(0, 16, 1024, "128B"), {"transpose_b": True}, "transposed"),
        (descriptor(0, 16, 1024, "128B"), {"transpose_a": True}, "transposed"),
    ],
)
def test_illegal_descriptors(b, options, what):
    """Reserved bits, addresses beyond the window, and transposition of other than 16-bit elements."""
    word = [np.zeros((4, 32), np.uint32)] * 4
    with pytest.raises(IllegalInstruction, match=what):
        wgmma.execute(("sync", "aligned", "m64n8k32", "f32", "e4m3", "e4m3"), word, word, b, np.zeros(4096, np.uint8),
                      **options)  # fmt: skip


@pytest.mark.parametrize("count", [7, 9])
def test_accumulator_count(count):
    """The accumulator has N / 2 registers of 32 bits, not fewer and not more."""
    words = [np.zeros((4, 32), np.uint32)] * count
    with pytest.raises(IllegalInstruction, match=f"{count} accumulators, expected 8"):
        wgmma.execute(
            ("sync", "aligned", "m64n16k16", "f32", "f16", "f16"), words, words[:4], 0, np.zeros(4096, np.uint8)
        )
