"""tcgen05 against loops over rows, columns, lanes and bytes (PTX ISA 9.7.16; layouts of the figures: CUTLASS frag
traits).
"""

import numpy as np
import pytest
from matrix_layouts import build, strides

from emulator.checks.faults import IllegalInstruction
from emulator.numbers import formats
from emulator.units import tcgen05, tcgen05_mma, tcgen05_moves

SHARED = 160 * 1024
TYPE_CODE = {"e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5}
SWIZZLE_CODE = {"none": 0, "128B_atom_32B": 1, "128B": 2, "64B": 4, "32B": 6}


def shared_descriptor(start, leading, stride, mode):
    """Table 40."""
    word = start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1 << 46
    return word | SWIZZLE_CODE[mode] << 61


def plain_idesc(m, n, a, b, d=1, negate=(0, 0), transpose=(0, 0)):
    """Table 42."""
    return (
        d << 4
        | a << 7
        | b << 10
        | negate[0] << 13
        | negate[1] << 14
        | transpose[0] << 15
        | transpose[1] << 16
        | (n >> 3 << 17 | m >> 4 << 24)
    )


def scaled_idesc(m, n, a, b, ue8m0, sfa=0, sfb=0, negate=(0, 0)):
    """Tables 43 and 44."""
    return (
        sfb << 4
        | a << 7
        | b << 10
        | negate[0] << 13
        | negate[1] << 14
        | n >> 3 << 17
        | ue8m0 << 23
        | (m >> 7 << 27 | sfa << 29)
    )


def d_location(m, n, group, row, column):
    """CTA, lane and column (relative to D's address) of element (row, column) of D."""
    if group == 2 and m == 256:  # layout A
        return row // 128, row % 128, column
    if group == 2:  # layout B
        return row // 64, row % 64 + 64 * (column // (n // 2)), column % (n // 2)
    if m == 128:  # layout D
        return 0, row, column
    return 0, row % 16 + 32 * (row // 16), column  # layout F


class Problem:
    """Random operands in the memory of one CTA or two, and the float64 product that D should be."""

    def __init__(self, kind, a, b, m, n, group, modes=("128B", "128B"), majors=("K", "K"), seed=0, limit=4.0):
        self.kind, self.m, self.n, self.group = kind, m, n, group
        self.rng = np.random.default_rng(seed)
        self.k = {"f16": 16, "tf32": 8}.get(kind, 64 if kind.startswith("mxf4") else 32)
        self.shared = [self.rng.integers(0, 256, SHARED, dtype=np.uint8) for _ in range(group)]
        self.tmem = [self.rng.integers(0, 1 << 32, (128, 512), dtype=np.uint32) for _ in range(group)]
        self.a, self.a_codes = self.matrix(a, m, limit)
        self.b, self.b_codes = self.matrix(b, n, limit)
        self.a_desc = self.place(self.a_codes, a, m // group, modes[0], majors[0], 16 * 1024 + 32 * (majors[0] == "K"))
        self.b_desc = self.place(self.b_codes, b, n // group, modes[1], majors[1], 96 * 1024)

    def matrix(self, name, rows, limit):
        if name == "tf32":
            codes = self.rng.standard_normal((rows, self.k)).astype(np.float32).view(np.uint32)
            return (codes & 0xFFFFE000).view(np.float32).astype(np.float64), codes
        values = formats.table(name)
        finite = np.flatnonzero(np.abs(values) <= limit)
        codes = self.rng.choice(finite, (rows, self.k))
        return values[codes], codes

    def place(self, codes, name, rows, mode, major, start):
        """Puts `rows` rows of codes into each CTA's shared memory at `start` and returns the descriptor."""
        if mode in ("none", "32B"):
            start = start // 1024 * 1024
        width = {"f16": 16, "bf16": 16, "tf32": 32}.get(name, 8)
        if self.kind.startswith("mxf4"):
            codes = codes[:, 0::2] | codes[:, 1::2] << 4
        elif name in ("e2m1", "e2m3", "e3m2"):
            codes = self.padded(codes, 4 if name == "e2m1" else 6)
        leading, stride = strides(major, mode, rows, 32, width)
        for cta in range(self.group):
            build(self.shared[cta], start, major, mode, codes[rows * cta : rows * cta + rows], width, leading, stride)
        return shared_descriptor(start, leading, stride, mode)

    def padded(self, codes, bits):
        """16 elements packed from the low bits of the first byte, then random padding to 16 bytes (9.7.16.10.4.4)."""
        out = self.rng.integers(0, 256, codes.shape)
        for row in range(codes.shape[0]):
            for chunk in range(codes.shape[1] // 16):
                packed = sum(int(c) << bits * e for e, c in enumerate(codes[row, 16 * chunk : 16 * chunk + 16]))
                data = packed.to_bytes(2 * bits, "little")
                out[row, 16 * chunk : 16 * chunk + 2 * bits] = list(data)
        return out

    def put_scales(self, side, scale, vectors, first, column):
        """Distinct factors for every row and chunk of k; the other bytes of the words hold other factors."""
        total = self.m if side == "A" else self.n
        low, high = (120, 135) if scale == "ue8m0" else (1, 126)
        codes = self.rng.integers(low, high, (total, vectors))
        halves = 2 if self.group == 2 and self.m == 128 and side == "B" else 1
        for cta in range(self.group):
            rows = range(total // self.group * cta, total // self.group * (cta + 1)) if side == "A" else range(total)
            for index, row in enumerate(rows):
                part, within = divmod(index, len(rows) // halves)
                for copy in range(4):
                    if halves == 2 and copy // 2 != part:
                        continue
                    word = self.tmem[cta][32 * copy + within % 32 : 32 * copy + within % 32 + 1, column + within // 32]
                    data = word.view(np.uint8)
                    data[first : first + vectors] = codes[row]
        return formats.scale_table(scale)[codes]

    def expected(self, a_scales=None, b_scales=None):
        a, b = self.a, self.b
        if a_scales is not None:
            a = a * np.repeat(a_scales, self.k // a_scales.shape[1], axis=1)
            b = b * np.repeat(b_scales, self.k // b_scales.shape[1], axis=1)
        total = np.zeros((self.m, self.n))
        for k in range(self.k):
            total += np.outer(a[:, k], b[:, k])
        return total

    def set_d(self, values, base=0, column=0):
        """Puts f32 values into D's cells."""
        for row in range(self.m):
            for c in range(self.n):
                cta, lane, at = d_location(self.m, self.n, self.group, row, c)
                self.tmem[cta][base + lane, column + at] = np.float32(values[row, c]).view(np.uint32)

    def check_d(self, want, before, base=0, column=0, half=False):
        """D holds `want` rounded once; no other cell of tensor memory changed."""
        expect = [t.copy() for t in before]
        with np.errstate(over="ignore"):
            bits = want.astype(np.float16).view(np.uint16) if half else want.astype(np.float32).view(np.uint32)
        for row in range(self.m):
            for c in range(self.n):
                cta, lane, at = d_location(self.m, self.n, self.group, row, c)
                expect[cta][base + lane, column + at] = bits[row, c]
        for cta in range(self.group):
            assert np.array_equal(self.tmem[cta], expect[cta])


SHAPES = [(128, 24, 1), (256, 32, 2), (128, 48, 2)]


@pytest.mark.parametrize("m, n, group", [*SHAPES, (64, 16, 1)])
@pytest.mark.parametrize("mode", ["none", "32B", "64B", "128B"])
@pytest.mark.parametrize("kind, name", [("f16", "bf16"), ("f16", "f16"), ("tf32", "tf32"), ("f8f6f4", "e4m3")])
def test_unscaled_k_major(kind, name, mode, m, n, group):
    """D = A B in every D layout and K-major swizzling mode; A starts inside a swizzled row."""
    p = Problem(kind, name, name, m, n, group, (mode, mode))
    before = [t.copy() for t in p.tmem]
    code = {"bf16": 1, "f16": 0, "tf32": 2, "e4m3": 0}[name]
    base = 16 if m == 64 else 0
    modifiers = (f"cta_group::{group}", f"kind::{kind}")
    idesc = plain_idesc(m, n, code, code)
    tcgen05_mma.mma(modifiers, p.tmem, p.shared, base << 16 | 8, p.a_desc, p.b_desc, idesc, False)
    p.check_d(p.expected(), before, base, 8)


@pytest.mark.parametrize("group, m, n", [(1, 128, 64), (2, 256, 64)])
@pytest.mark.parametrize(
    "kind, name, mode",
    [(k, t, s) for k, t in (("f16", "bf16"), ("f8f6f4", "e5m2")) for s in ("none", "32B", "64B", "128B")]
    + [("tf32", "tf32", "128B_atom_32B")],
)
def test_unscaled_mn_major(kind, name, mode, group, m, n):
    """Transposed A and B."""
    p = Problem(kind, name, name, m, n, group, (mode, mode), ("MN", "MN"))
    before = [t.copy() for t in p.tmem]
    code = {"bf16": 1, "tf32": 2, "e5m2": 1}[name]
    idesc = plain_idesc(m, n, code, code, transpose=(1, 1))
    tcgen05_mma.mma((f"cta_group::{group}", f"kind::{kind}"), p.tmem, p.shared, 0, p.a_desc, p.b_desc, idesc, False)
    p.check_d(p.expected(), before)


@pytest.mark.parametrize("a", TYPE_CODE)
@pytest.mark.parametrize("b", ["e4m3", "e2m3", "e2m1"])
def test_f8f6f4_types(a, b):
    """Every A type; 4- and 6-bit elements padded to 16 bytes a 16 elements; A negated."""
    p = Problem("f8f6f4", a, b, 64, 8, 1)
    before = [t.copy() for t in p.tmem]
    idesc = plain_idesc(64, 8, TYPE_CODE[a], TYPE_CODE[b], negate=(1, 0))
    tcgen05_mma.mma(("cta_group::1", "kind::f8f6f4"), p.tmem, p.shared, 0, p.a_desc, p.b_desc, idesc, False)
    p.check_d(0.0 - p.expected(), before)


def test_accumulate_scale_and_disabled_lanes():
    """D = A B + D / 4 with lanes 3 and 70 kept."""
    p = Problem("f16", "bf16", "bf16", 128, 16, 1)
    old = p.rng.standard_normal((128, 16)).astype(np.float32).astype(np.float64)
    p.set_d(old, column=4)
    before = [t.copy() for t in p.tmem]
    mask = [1 << 3, 0, 1 << 6, 0]
    tcgen05_mma.mma(("cta_group::1", "kind::f16", "collector::a::discard"), p.tmem, p.shared, 4, p.a_desc, p.b_desc,
                plain_idesc(128, 16, 1, 1), True, disable_output_lane=mask, scale_input_d=2)  # fmt: skip
    want = p.expected() + old / 4
    want[[3, 70]] = old[[3, 70]]
    p.check_d(want, before, column=4)


def test_half_precision_d():
    """A 16-bit D is one element a column, in the low half; the accumulator is read from there."""
    p = Problem("f16", "f16", "f16", 128, 8, 1)
    old = p.rng.standard_normal((128, 8)).astype(np.float16)
    p.tmem[0][:, :8] = old.view(np.uint16).astype(np.uint32) | 0xABCD0000
    before = [t.copy() for t in p.tmem]
    idesc = plain_idesc(128, 8, 0, 0, d=0)
    tcgen05_mma.mma(("cta_group::1", "kind::f16"), p.tmem, p.shared, 0, p.a_desc, p.b_desc, idesc, True)
    p.check_d(p.expected() + old.astype(np.float64), before, half=True)


@pytest.mark.parametrize("m, n, group", [*SHAPES, (64, 16, 1)])
@pytest.mark.parametrize("kind, name", [("f16", "bf16"), ("tf32", "tf32"), ("f8f6f4", "e4m3"), ("f8f6f4", "e2m1")])
def test_a_from_tensor_memory(kind, name, m, n, group):
    """A's row lies in the lanes of the same row of D (in both halves of a split D), elements packed along 8 columns."""
    p = Problem(kind, name, "e4m3" if kind == "f8f6f4" else name, m, n, group)
    bits = {"f16": 16, "tf32": 32}.get(kind, 8)
    codes = p.a_codes << 2 if name == "e2m1" else p.a_codes
    per = 32 // bits
    for row in range(m):
        for k in range(p.k):
            for half in range(2 if group == 2 and m == 128 else 1):
                cta, lane, _ = d_location(m, n, group, row, half * n // 2)
                cell = p.tmem[cta][lane : lane + 1, 100 + k // per]
                field = ((1 << bits) - 1) << bits * (k % per)
                cell[:] = int(cell[0]) & ~field & 0xFFFFFFFF | int(codes[row, k]) << bits * (k % per)
    before = [t.copy() for t in p.tmem]
    code = {"bf16": 1, "tf32": 2}.get(name, TYPE_CODE.get(name))
    idesc = plain_idesc(m, n, code, 0 if kind == "f8f6f4" else code)
    tcgen05_mma.mma((f"cta_group::{group}", f"kind::{kind}"), p.tmem, p.shared, 0, 100, p.b_desc, idesc, False,
                a_in_tmem=True)  # fmt: skip
    p.check_d(p.expected(), before)


SCALED = [
    ("mxf4nvf4", "block16", "e2m1", "e2m1", "ue4m3", 4, (0,)),
    ("mxf4nvf4", "scale_vec::4X", "e2m1", "e2m1", "ue8m0", 4, (0,)),
    ("mxf4nvf4", "scale_vec::2X", "e2m1", "e2m1", "ue8m0", 2, (0, 2)),
    ("mxf4", None, "e2m1", "e2m1", "ue8m0", 2, (0, 2)),
    ("mxf8f6f4", "block32", "e4m3", "e4m3", "ue8m0", 1, (0, 1, 2, 3)),
    ("mxf8f6f4", None, "e5m2", "e2m1", "ue8m0", 1, (1, 2)),
    ("mxf8f6f4", "scale_vec::1X", "e3m2", "e2m3", "ue8m0", 1, (3,)),
]


@pytest.mark.parametrize("m, n, group", [(128, 40, 1), (128, 136, 1), (256, 160, 2), (128, 96, 2)])
@pytest.mark.parametrize("kind, vector, a, b, scale, vectors, ids", SCALED)
def test_block_scaled(kind, vector, a, b, scale, vectors, ids, m, n, group):
    """Every block-scaled kind; distinct scale factors for each row, column and chunk, in the layout of tensor
    memory.
    """
    p = Problem(kind, a, b, m, n, group, ("64B", "128B"))
    for step, sfa in enumerate(ids):
        sfb = ids[-1 - step]
        a_scales = p.put_scales("A", scale, vectors, sfa, 300)
        b_scales = p.put_scales("B", scale, vectors, sfb, 320)
        before = [t.copy() for t in p.tmem]
        codes = (1, 1) if kind.startswith("mxf4") else (TYPE_CODE[a], TYPE_CODE[b])
        idesc = scaled_idesc(m, n, *codes, scale == "ue8m0", sfa, sfb, negate=(0, 1))
        modifiers = (f"cta_group::{group}", f"kind::{kind}", "block_scale", *([vector] if vector else []))
        tcgen05_mma.mma(
            modifiers, p.tmem, p.shared, 0, p.a_desc, p.b_desc, idesc, False, scale_a=300, scale_b=320 | sfb << 30
        )
        p.check_d(0.0 - p.expected(a_scales, b_scales), before)


@pytest.mark.parametrize("majors", [("MN", "K"), ("K", "MN"), ("MN", "MN")])
def test_block_scaled_mn_major(majors):
    """Bytes of either operand transposed."""
    p = Problem("mxf8f6f4", "e4m3", "e5m2", 128, 48, 1, majors=majors)
    a_scales, b_scales = (p.put_scales(side, "ue8m0", 1, 2, column) for side, column in (("A", 300), ("B", 320)))
    before = [t.copy() for t in p.tmem]
    idesc = scaled_idesc(128, 48, TYPE_CODE["e4m3"], TYPE_CODE["e5m2"], True, 2, 2)
    idesc |= (majors[0] == "MN") << 15 | (majors[1] == "MN") << 16
    modifiers = ("cta_group::1", "kind::mxf8f6f4", "block_scale")
    tcgen05_mma.mma(modifiers, p.tmem, p.shared, 0, p.a_desc, p.b_desc, idesc, False, scale_a=300, scale_b=320)
    p.check_d(p.expected(a_scales, b_scales), before)


def test_a_missing_copy_of_scale_factors_is_noticed():
    """Each 32-lane group uses its own copy: spoiling lanes 32..63 changes rows 32..63 and no others."""
    p = Problem("mxf4nvf4", "e2m1", "e2m1", 128, 32, 1)
    p.put_scales("A", "ue4m3", 4, 0, 300)
    p.put_scales("B", "ue4m3", 4, 0, 320)
    modifiers = ("cta_group::1", "kind::mxf4nvf4", "block_scale", "block16")
    arguments = (p.a_desc, p.b_desc, scaled_idesc(128, 32, 1, 1, 0), False)
    tcgen05_mma.mma(modifiers, p.tmem, p.shared, 0, *arguments, scale_a=300, scale_b=320)
    good = p.tmem[0][:, :32].copy()
    p.tmem[0][32:64, 320] = 0x7F7F7F7F
    tcgen05_mma.mma(modifiers, p.tmem, p.shared, 0, *arguments, scale_a=300, scale_b=320)
    changed = (p.tmem[0][:, :32] != good).any(axis=1)
    assert np.array_equal(np.flatnonzero(changed), np.arange(32, 64))


def test_footprint_is_what_the_result_depends_on():
    """Changing a byte or cell outside the footprint changes nothing; every cell written is in it."""
    p = Problem("mxf4nvf4", "e2m1", "e2m1", 128, 48, 1, ("64B", "none"))
    p.put_scales("A", "ue4m3", 4, 0, 300)
    p.put_scales("B", "ue4m3", 4, 0, 320)
    modifiers = ("cta_group::1", "kind::mxf4nvf4", "block_scale", "block16")
    operands = (8, p.a_desc, p.b_desc, scaled_idesc(128, 48, 1, 1, 0), True)
    foot = tcgen05_mma.mma_footprint(modifiers, *operands, scale_a=300, scale_b=320)
    assert np.array_equal(foot.writes[0], np.pad(np.ones((128, 48), bool), ((0, 0), (8, 512 - 56))))
    assert foot.reads[0][:, 300:304].all() and foot.reads[0][:, 320].all() and not foot.reads[0][16:32, 321].any()
    noisy_shared, noisy_tmem = ~p.shared[0], p.tmem[0] ^ 0x01010101
    noisy_shared[foot.shared[0]] = p.shared[0][foot.shared[0]]
    noisy_tmem[foot.reads[0]] = p.tmem[0][foot.reads[0]]
    for tmem, shared in ((p.tmem[0], p.shared[0]), (noisy_tmem, noisy_shared)):
        tcgen05_mma.mma(modifiers, [tmem], [shared], *operands, scale_a=300, scale_b=320)
    assert np.array_equal(p.tmem[0][:, 8:56], noisy_tmem[:, 8:56])
    assert len(np.unique(foot.shared[0])) == (128 + 48) * 32


@pytest.mark.parametrize(
    "modifiers, idesc, what",
    [
        (("cta_group::1", "kind::f16"), plain_idesc(96, 16, 1, 1), "M = 96"),
        (("cta_group::1", "kind::f16"), plain_idesc(128, 0, 1, 1), "N = 0"),
        (("cta_group::2", "kind::f16"), plain_idesc(256, 24, 1, 1), "N = 24"),
        (("cta_group::2", "kind::f16"), plain_idesc(64, 32, 1, 1), "M = 64"),
        (("cta_group::1", "kind::f16"), plain_idesc(128, 16, 0, 1), "differ"),
        (("cta_group::1", "kind::f16"), plain_idesc(128, 16, 1, 1, d=0), "f32 D"),
        (("cta_group::1", "kind::f16"), plain_idesc(128, 16, 1, 1) | 1 << 2, "sparse"),
        (("cta_group::1", "kind::f16"), plain_idesc(128, 16, 1, 1) | 1 << 23, "bits 23"),
        (("cta_group::1", "kind::tf32"), plain_idesc(128, 16, 2, 2, d=0), "type of D"),
        (("cta_group::1", "kind::f8f6f4"), plain_idesc(128, 16, 2, 0), "types A 2"),
        (("cta_group::1", "kind::f8f6f4"), plain_idesc(128, 8, 0, 0, transpose=(0, 1)), "steps of 16"),
        (("cta_group::1", "kind::f8f6f4"), plain_idesc(128, 16, 5, 0, transpose=(1, 0)), "cannot be transposed"),
        (("cta_group::1", "kind::mxf4", "block_scale"), scaled_idesc(128, 16, 1, 1, 0), "scale type"),
        (("cta_group::1", "kind::mxf4", "block_scale"), scaled_idesc(128, 16, 1, 1, 1, sfa=1), "SFA_ID"),
        (("cta_group::1", "kind::mxf4", "block_scale"), scaled_idesc(128, 16, 1, 1, 1) | 1 << 15, "transposed"),
        (("cta_group::1", "kind::mxf4", "block_scale"), scaled_idesc(128, 16, 1, 1, 1) | 1 << 31, "bits 31"),
        (("cta_group::1", "kind::mxf8f6f4", "block_scale"), scaled_idesc(0, 16, 0, 0, 1), "M = 0"),
    ],
)
def test_illegal_instruction_descriptors(modifiers, idesc, what):
    """Reserved bits, sizes and types outside tables 39 to 55."""
    with pytest.raises(IllegalInstruction, match=what):
        tcgen05.instruction(tcgen05.form(modifiers), idesc)


@pytest.mark.parametrize(
    "text",
    [
        "kind::f16",
        "cta_group::3.kind::f16",
        "cta_group::1.kind::i8",
        "cta_group::1.kind::f16.ws",
        "cta_group::1.kind::f16.ashift",
        "cta_group::1.kind::f16.collector::a::use",
        "cta_group::1.kind::f16.block_scale",
        "cta_group::1.kind::mxf4nvf4",
        "cta_group::1.kind::mxf4nvf4.block_scale",
        "cta_group::1.kind::mxf4.block_scale.block16",
        "cta_group::1.kind::mxf8f6f4.block_scale.scale_vec::2X",
    ],
)
def test_illegal_mma_modifiers(text):
    """Modifiers that are not in the syntax, or are not implemented, raise with the instruction's text."""
    with pytest.raises(IllegalInstruction, match="tcgen05.mma"):
        tcgen05.form(tuple(text.split(".")))


@pytest.mark.parametrize(
    "change, what",
    [
        ({"d": 1 << 16}, "lane 1"),
        ({"d": 500}, "columns 500"),
        ({"a": shared_descriptor(0, 16, 1024, "128B") & ~(1 << 46)}, "46..48"),
        ({"a": shared_descriptor(0, 16, 1024, "128B") | 3 << 61}, "swizzling"),
        ({"a": shared_descriptor(0, 16, 1024, "128B") | 1 << 49}, "base offset"),
        ({"a": shared_descriptor(0, 16, 1024, "128B") | 1 << 52}, "reserved"),
        ({"b": shared_descriptor(SHARED - 16, 16, 1024, "128B")}, "window"),
        ({"scale_a": 510}, "columns 510"),
        ({"scale_a": None}, "block_scale"),
    ],
)
def test_illegal_operands(change, what):
    """Addresses outside tensor or shared memory, and malformed descriptors."""
    a, b = shared_descriptor(0, 16, 1024, "128B"), shared_descriptor(32768, 16, 1024, "128B")
    operands = {"d": 0, "a": a, "b": b, "idesc": scaled_idesc(128, 64, 1, 1, 0), "accumulate": False}
    operands |= {"scale_a": 300, "scale_b": 320}
    tmem, shared = [np.zeros((128, 512), np.uint32)], [np.zeros(SHARED, np.uint8)]
    modifiers = ("cta_group::1", "kind::mxf4nvf4", "block_scale", "block16")
    tcgen05_mma.mma(modifiers, tmem, shared, **operands)
    with pytest.raises(IllegalInstruction, match=what):
        tcgen05_mma.mma(modifiers, tmem, shared, **(operands | change))


COPIES = {
    "128x256b": lambda row: [row],
    "128x128b": lambda row: [row],
    "4x256b": lambda row: [31 + 32 * row],
    "64x128b.warpx2::02_13": lambda row: [row, row + 64],
    "64x128b.warpx2::01_23": lambda row: [row % 32 + 64 * (row // 32), row % 32 + 64 * (row // 32) + 32],
    "32x128b.warpx4": lambda row: [row, row + 32, row + 64, row + 96],
}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("shape", COPIES)
@pytest.mark.parametrize("source, bits", [("", 8), (".b8x16.b4x16_p64", 4), (".b8x16.b6x16_p32", 6)])
def test_copy(shape, group, source, bits):
    """Rows of 16 or 32 bytes go to their lanes, 4 bytes a column; each CTA from its own shared memory; nothing else
    changes.
    """
    rng = np.random.default_rng(9)
    rows, size = int(shape.split("x")[0]), 32 if "256b" in shape else 16
    shared = [rng.integers(0, 256, 65536, dtype=np.uint8) for _ in range(group)]
    tmem = [rng.integers(0, 1 << 32, (128, 512), dtype=np.uint32) for _ in range(group)]
    expect = [t.copy() for t in tmem]
    base, leading, stride, column = 8192, 4096, 128, 12
    for cta in range(group):
        for row in range(rows):
            data = []
            for chunk in range(size // 16):
                start = base + row % 8 * 16 + row // 8 * stride + chunk * leading
                packed = int.from_bytes(shared[cta][start : start + 2 * bits].tobytes(), "little")
                data += [(packed >> bits * e & (1 << bits) - 1) << (2 if bits == 4 else 0) for e in range(16)]
            for lane in COPIES[shape](row):
                for i in range(size // 4):
                    expect[cta][lane, column + i] = int.from_bytes(bytes(data[4 * i : 4 * i + 4]), "little")
    address = column | (31 << 16 if shape == "4x256b" else 0)
    modifiers = (f"cta_group::{group}", *f"{shape}{source}".split("."))
    tcgen05_moves.copy(modifiers, tmem, shared, address, shared_descriptor(base, leading, stride, "none"))
    for cta in range(group):
        assert np.array_equal(tmem[cta], expect[cta])


def test_copied_scale_factors_scale_their_rows():
    """The 128x4 block of blackwell scale factors, copied with 32x128b.warpx4, gives row m its four factors."""
    p = Problem("mxf4nvf4", "e2m1", "e2m1", 128, 128, 1, ("64B", "64B"))
    scales = p.rng.integers(1, 126, (2, 128, 4))
    for side, start in ((0, 0), (1, 512)):
        for m in range(128):
            for s in range(4):
                p.shared[0][start + m % 32 * 16 + m // 32 * 4 + s] = scales[side, m, s]
        modifiers = ("cta_group::1", "32x128b", "warpx4")
        tcgen05_moves.copy(modifiers, p.tmem, p.shared, 256 + 4 * side, shared_descriptor(start, 0, 128, "none"))
    before = [t.copy() for t in p.tmem]
    tcgen05_mma.mma(
        ("cta_group::1", "kind::mxf4nvf4", "block_scale", "block16"), p.tmem, p.shared, 0, p.a_desc, p.b_desc,
        scaled_idesc(128, 128, 1, 1, 0), False, scale_a=256, scale_b=260,
    )  # fmt: skip
    values = formats.scale_table("ue4m3")[scales]
    p.check_d(p.expected(values[0], values[1]), before)


@pytest.mark.parametrize(
    "text",
    [
        "cta_group::1.32x128b",
        "cta_group::1.64x128b.warpx4",
        "32x128b.warpx4",
        "cta_group::1.128x256b.b8x16",
        "cta_group::1.16x64b",
    ],
)
def test_illegal_copies(text):
    """Shapes without their multicast, and unknown shapes."""
    with pytest.raises(IllegalInstruction, match="tcgen05.cp"):
        tcgen05_moves.copy_form(tuple(text.split(".")))


def location(shape, thread, register):
    """Lane and column of a register, read off CUTLASS's Copy_Traits of SM100_TMEM_LOAD."""
    quad, group = thread % 4, thread // 4
    match shape:
        case "32x32b":
            return thread, register
        case "16x64b":
            return group + 8 * (thread % 2), 2 * register + thread // 2 % 2
        case "16x128b":
            return group + 8 * (register % 2), quad + 4 * (register // 2)
        case "16x256b":
            return group + 8 * (register // 2 % 2), 2 * quad + register % 2 + 8 * (register // 4)
        case "16x32bx2":
            return thread % 16, register


@pytest.mark.parametrize("warp", [0, 2, 5])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape, most, each", [("32x32b", 128, 1), ("16x64b", 128, 1), ("16x128b", 64, 2),
                                               ("16x256b", 32, 4), ("16x32bx2", 128, 1)])  # fmt: skip
def test_load_and_store(shape, most, each, packed, warp):
    """Every shape with the smallest and largest count; a store puts back what the load took, and touches nothing
    else.
    """
    for count in (1, 2, most // 4 if packed else most // 2):
        registers = count * each
        pack, unpack = (".pack::16b", ".unpack::16b") if packed else ("", "")
        load = tcgen05_moves.transfer_form("ld", tuple(f"sync.aligned.{shape}.x{count}{pack}.b32".split(".")))
        store = tcgen05_moves.transfer_form("st", tuple(f"sync.aligned.{shape}.x{count}{unpack}.b32".split(".")))
        rng = np.random.default_rng(count)
        tmem = rng.integers(0, 1 << 32, (128, 512), dtype=np.uint32)
        split = 200 if shape == "16x32bx2" else None
        base = 32 * (warp % 4) + (16 if shape != "32x32b" else 0)
        address = base << 16 | 5
        got = tcgen05_moves.load(load, tmem, address, warp, split)
        assert got.shape == (32, registers)
        target = rng.integers(0, 1 << 32, (128, 512), dtype=np.uint32)
        expect = target.copy()
        for thread in range(32):
            for register in range(registers):
                lane, column = location(shape, thread, register)
                column = 5 + column * (2 if packed else 1) + (200 if split and thread >= 16 else 0)
                if packed:
                    low, high = int(tmem[base + lane, column]), int(tmem[base + lane, column + 1])
                    assert got[thread, register] == low & 0xFFFF | (high & 0xFFFF) << 16
                    expect[base + lane, column], expect[base + lane, column + 1] = low & 0xFFFF, high & 0xFFFF
                else:
                    assert got[thread, register] == tmem[base + lane, column]
                    expect[base + lane, column] = tmem[base + lane, column]
        tcgen05_moves.store(store, target, address, warp, got, split)
        assert np.array_equal(target, expect)


@pytest.mark.parametrize(
    "operation, text",
    [
        ("ld", "sync.aligned.16x256b.x64.b32"),
        ("ld", "sync.aligned.32x32b.x3.b32"),
        ("ld", "aligned.32x32b.x1.b32"),
        ("ld", "sync.aligned.32x32b.x1.unpack::16b.b32"),
        ("st", "sync.aligned.32x32b.x1.pack::16b.b32"),
        ("ld", "red.sync.aligned.32x32b.x2.min.f32"),
    ],
)
def test_illegal_transfers(operation, text):
    """Counts outside tables 47 and 48, and forms that are not implemented."""
    with pytest.raises(IllegalInstruction, match=f"tcgen05.{operation}"):
        tcgen05_moves.transfer_form(operation, tuple(text.split(".")))


@pytest.mark.parametrize("address, warp, split", [(0, 1, None), (16 << 16, 0, None), (511, 0, None), (0, 0, 8)])
def test_illegal_transfer_addresses(address, warp, split):
    """A warp reaches its own quarter of the lanes (9.7.16.8.1) and existing columns."""
    f = tcgen05_moves.transfer_form("ld", ("sync", "aligned", "32x32b", "x2", "b32"))
    with pytest.raises(IllegalInstruction, match="tcgen05.ld/st"):
        tcgen05_moves.cells(f, address, warp, split)


def test_shift():
    """31 lanes take over 8 columns of their neighbour; the last lane of the group and everything else stays."""
    tmem = np.random.default_rng(1).integers(0, 1 << 32, (128, 512), dtype=np.uint32)
    want = tmem.copy()
    for lane in range(32, 63):
        want[lane, 16:24] = tmem[lane + 1, 16:24]
    tcgen05_moves.shift([tmem], ("cta_group::1", "down"), 32 << 16 | 16)
    assert np.array_equal(tmem, want)
    with pytest.raises(IllegalInstruction, match="lane 5"):
        tcgen05_moves.shift([tmem], ("cta_group::1", "down"), 5 << 16)
