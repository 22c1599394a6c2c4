"""mma.sync against the row and column formulas of PTX ISA 9.7.14.5, and block scaling against 9.7.14.3."""

import numpy as np
import pytest

from emulator.checks.faults import IllegalInstruction
from emulator.numbers import formats
from emulator.units import mma

WARPS = 2


def row_column_a(k, bits, i):
    """Row and column of element a_i of lane 0's quad position, as offsets (row, column, elements a word)."""
    per_word = 32 // bits
    word, within = i // per_word, i % per_word
    return 8 * (word % 2), 4 * per_word * (word // 2) + within, per_word


def fragments(plan, a, b, c):
    """Registers that hold the codes a [16, k], b [k, 8] and the accumulator bits c [16, 8], lane by lane."""
    na, nb, nc = plan.registers
    per_word = 32 // plan.bits
    ra, rb, rc = np.zeros((na, 32), np.uint32), np.zeros((nb, 32), np.uint32), np.zeros((nc, 32), np.uint32)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(na * per_word):
            row, column, _ = row_column_a(plan.k, plan.bits, i)
            code = int(a[group + row, thread * per_word + column])
            ra[i // per_word, lane] |= np.uint32(code << plan.bits * (i % per_word))
        for i in range(nb * per_word):
            k = thread * per_word + i % per_word + 4 * per_word * (i // per_word)
            rb[i // per_word, lane] |= np.uint32(int(b[k, group]) << plan.bits * (i % per_word))
        for i in range(4):
            value = int(c[group + 8 * (i >= 2), 2 * thread + (i & 1)])
            if nc == 4:
                rc[i, lane] = value
            else:
                rc[i // 2, lane] |= np.uint32(value << 16 * (i % 2))
    return ra, rb, rc


def accumulators(registers):
    """Accumulator bits [16, 8] of the registers of D."""
    d = np.zeros((16, 8), np.uint32)
    for lane in range(32):
        for i in range(4):
            word = (
                int(registers[i][lane])
                if len(registers) == 4
                else int(registers[i // 2][lane]) >> 16 * (i % 2) & 0xFFFF
            )
            d[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] = word
    return d


def codes(rng, name, bits, shape):
    """Random finite codes in their containers, and the values they stand for."""
    if name == "tf32":
        word = rng.standard_normal(shape).astype(np.float32).view(np.uint32)
        return word, (word & 0xFFFFE000).view(np.float32).astype(np.float64)
    values = formats.container_table(name) if bits == 8 else formats.table(name)
    finite = np.flatnonzero(np.isfinite(values) & (np.abs(values) < 1e4))
    code = rng.choice(finite, shape)
    return code.astype(np.uint32), values[code]


def check(modifiers, scale=None, seed=0):
    """Runs WARPS independent mma together and compares each with a matmul of the decoded matrices."""
    plan = mma.plan(tuple(modifiers.split(".")))
    rng = np.random.default_rng(seed)
    batch, wants, sums = [], [], []
    for _ in range(WARPS):
        a, va = codes(rng, plan.a, plan.bits, (16, plan.k))
        b, vb = codes(rng, plan.b, plan.bits, (plan.k, 8))
        if plan.accumulator == "f32":
            c = rng.standard_normal((16, 8)).astype(np.float32)
            bits, vc = c.view(np.uint32), c.astype(np.float64)
        else:
            c = rng.standard_normal((16, 8)).astype(np.float16)
            bits, vc = c.view(np.uint16).astype(np.uint32), c.astype(np.float64)
        entry = fragments(plan, a, b, bits)
        if scale:
            sa, sb, entry_scales = scale(plan, rng)
            va = va * np.repeat(sa, plan.k // plan.scale_vectors, axis=1)
            vb = vb * np.repeat(sb, plan.k // plan.scale_vectors, axis=0)
            entry += entry_scales
        total = np.zeros((16, 8))
        for k in range(plan.k):  # float64, one term after another
            total += va[:, k : k + 1] * vb[k : k + 1, :]
        batch.append(entry)
        with np.errstate(over="ignore"):
            wants.append((total + vc).astype(np.float32 if plan.accumulator == "f32" else np.float16))
        sums.append(total)
    stacked = [[np.stack([entry[o][r] for entry in batch]) for r in range(len(batch[0][o]))] for o in range(3)]
    extra = {}
    if scale:
        extra = dict(batch[0][5])
        extra["scale_a"] = np.stack([entry[3] for entry in batch])
        extra["scale_b"] = np.stack([entry[4] for entry in batch])
    d = mma.execute(tuple(modifiers.split(".")), *stacked, **extra)
    for w in range(WARPS):
        got = accumulators([register[w] for register in d])
        want = wants[w].view(np.uint32) if plan.accumulator == "f32" else wants[w].view(np.uint16).astype(np.uint32)
        assert np.array_equal(got, want), np.argwhere(got != want)[0]
        assert np.abs(sums[w]).max() > 0


UNSCALED = [
    *(f"m16n8k{k}.row.col.f32.{t}.{t}.f32" for k in (8, 16) for t in ("f16", "bf16")),
    *(f"m16n8k{k}.row.col.f16.f16.f16.f16" for k in (8, 16)),
    *(f"m16n8k{k}.row.col.f32.tf32.tf32.f32" for k in (4, 8)),
    *(f"m16n8k{k}.row.col.{d}.{a}.{b}.{d}"
      for k in (16, 32) for d in ("f32", "f16") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")),
    *(f"m16n8k32.row.col.kind::f8f6f4.f32.{a}.{b}.f32"
      for a in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1") for b in ("e4m3", "e2m3", "e2m1")),
    "m16n8k32.row.col.kind::f8f6f4.f16.e2m3.e2m1.f16",
]  # fmt: skip


@pytest.mark.parametrize("modifiers", UNSCALED)
def test_unscaled(modifiers):
    """Every legal shape and type without scale factors."""
    check(f"sync.aligned.{modifiers}")


def scales_for(byte_a, thread_a, byte_b, thread_b):
    """Distinct scale factors for every row, column and chunk of k; every byte that must be ignored differs too."""

    def make(plan, rng):
        limit = 254 if plan.scale == "ue8m0" else 126
        low = 120 if plan.scale == "ue8m0" else 1
        high = 135 if plan.scale == "ue8m0" else limit
        words = [rng.integers(low, high, (32, 4)).astype(np.uint8) for _ in range(2)]
        table = formats.table(plan.scale)
        v = plan.scale_vectors
        sa, sb = np.zeros((16, v)), np.zeros((v, 8))
        for lane in range(32):
            group, position = lane // 4, lane % 4
            if position // 2 == thread_a:
                for j in range(v):
                    sa[group + 8 * (position % 2), j] = table[words[0][lane, byte_a + j]]
            if position == thread_b:
                for j in range(v):
                    sb[j, group] = table[words[1][lane, byte_b + j]]
        selectors = [("scale_a_byte", byte_a), ("scale_a_thread", thread_a)]
        selectors += [("scale_b_byte", byte_b), ("scale_b_thread", thread_b)]
        registers = [w.view("<u4")[:, 0] for w in words]
        return sa, sb, (registers[0], registers[1], selectors)

    return make


SCALED = [
    ("m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3", (0,)),
    ("m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0", (0, 2)),
    ("m16n8k64.row.col.kind::mxf4.block_scale.f32.e2m1.e2m1.f32.ue8m0", (0, 2)),
    *((f"m16n8k32.row.col.kind::mxf8f6f4.block_scale.f32.{a}.{b}.f32.ue8m0", (0, 1, 2, 3))
      for a, b in [("e4m3", "e4m3"), ("e4m3", "e2m1"), ("e2m1", "e5m2"), ("e3m2", "e2m3")]),
]  # fmt: skip


@pytest.mark.parametrize("thread_a", [0, 1])
@pytest.mark.parametrize("thread_b", [0, 1, 2, 3])
@pytest.mark.parametrize("modifiers, selectors", SCALED)
def test_block_scaled(modifiers, selectors, thread_a, thread_b):
    """Every kind with every legal byte and thread selector; the other lanes and bytes hold other factors."""
    for i, byte_a in enumerate(selectors):
        byte_b = selectors[-1 - i]
        check(f"sync.aligned.{modifiers}", scales_for(byte_a, thread_a, byte_b, thread_b), seed=byte_a)


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("vector, scale, nan", [("4X", "ue4m3", 0x7F), ("2X", "ue8m0", 0xFF)])
def test_nan_scale_spoils_its_row_or_column_alone(vector, scale, nan, side):
    """One NaN scale factor: a row of D for A, a column for B, all other elements stay finite."""
    form = f"sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::{vector}.f32.e2m1.e2m1.f32.{scale}"
    one = 0x38 if scale == "ue4m3" else 0x7F
    good = np.full((1, 32), one * 0x01010101, np.uint32)
    bad = good.copy()
    bad[0, 4 * 3] = one * 0x01010100 | nan  # row 3 of A with thread pair 0, column 3 of B with thread 0
    word = [np.full((1, 32), 0x22222222, np.uint32)]
    zero = [np.zeros((1, 32), np.uint32)] * 4
    sa, sb = (bad, good) if side == "a" else (good, bad)
    d = mma.execute(tuple(form.split(".")), word * 4, word * 2, zero, scale_a=sa, scale_b=sb)
    got = accumulators([register[0] for register in d])
    spoiled = np.zeros((16, 8), bool)
    spoiled[(3, slice(None)) if side == "a" else (slice(None), 3)] = True
    assert np.array_equal(got == 0x7FFFFFFF, spoiled)
    assert np.all(got[~spoiled] == np.float32(64).view(np.uint32))


@pytest.mark.parametrize(
    "modifiers",
    [
        "aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "sync.aligned.m16n8k16.col.col.f32.f16.f16.f32",
        "sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
        "sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
        "sync.aligned.m16n8k16.row.col.f32.f16.f16.f16",
        "sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
        "sync.aligned.m16n8k32.row.col.f32.e2m1.e2m1.f32",
        "sync.aligned.m16n8k16.row.col.satfinite.f32.f16.f16.f32",
        "sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.f32.e4m3.e4m3.f32",
        "sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.f32.e2m1.e2m1.f32.ue4m3",
        "sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0",
        "sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue4m3",
        "sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0",
        "sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.f32.e2m1.e4m3.f32.ue8m0",
        "sync.aligned.m8n8k4.row.col.f64.f64.f64.f64",
        "sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
    ],
)
def test_illegal_modifiers(modifiers):
    """Anything outside 9.7.14.5.14, or not implemented, is an error with the instruction's text."""
    with pytest.raises(IllegalInstruction, match="mma"):
        mma.plan(tuple(modifiers.split(".")))


@pytest.mark.parametrize("name, value", [("a_byte", 1), ("b_byte", 3), ("a_thread", 2), ("b_thread", 4)])
def test_illegal_selectors(name, value):
    """Selectors outside table 37 are undefined behaviour, so an error."""
    modifiers = tuple("sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.f32.e2m1.e2m1.f32.ue8m0".split("."))
    word = [np.zeros((1, 32), np.uint32)] * 4
    with pytest.raises(IllegalInstruction, match="table 37"):
        mma.execute(modifiers, word, word[:2], word, scale_a=word[0], scale_b=word[0], **{f"scale_{name}": value})


def test_operand_count():
    """The number of registers is part of the form."""
    word = [np.zeros((1, 32), np.uint32)] * 4
    with pytest.raises(IllegalInstruction, match="registers"):
        mma.execute(tuple("sync.aligned.m16n8k8.row.col.f32.f16.f16.f32".split(".")), word, word[:1], word)
