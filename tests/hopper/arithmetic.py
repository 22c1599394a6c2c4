"""Integer, float and conversion instructions over corner values. One row an instruction."""

from __future__ import annotations

import itertools
import re

import numpy as np

from hopper.case import Case, Writer, random_words

COUNT = 512
INTEGERS = (
    0, 1, 2, 3, 7, 15, 16, 31, 32, 33, 63, 64, 100, 255, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0x80000001,
    0xFFFFFFFE, 0xFFFFFFFF,
)  # fmt: skip
LONG = tuple(v | (v >> 31) * 0xFFFFFFFF00000000 for v in INTEGERS[:-3]) + (
    1 << 32, 0x7FFF << 48, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
FLOATS = (
    0, 1 << 31, 1, 0x80000001, 0x7FFFFF, 0x800000, 0x80800000, 0x3F800000, 0xBF800000, 0x3F800001, 0x3F7FFFFF,
    0x40490FDB, 0x3F000000, 0xC0200000, 0x4B800001, 0x4F000000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000,
    0x7FC00000, 0x7F800001,
)  # fmt: skip
DOUBLES = (
    0, 1 << 63, 1, 0xF << 48, 1 << 52, 0x3FF << 52, 0xBFF << 52, (0x3FF << 52) + 1, (0x3FF << 52) - 1, 0x3FE << 52,
    0x400921FB54442D18, 0x41E << 52, 0x7FEFFFFFFFFFFFFF, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0x36A0000000000001,
    0x47EFFFFFF0000000, 0xB80FFFFFF0000001, 0x4330000000000001,
)  # fmt: skip
HALVES = (
    0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x3C00, 0xBC00, 0x3C01, 0x3BFF, 0x3800, 0x4248, 0x7BFF, 0xFBFF, 0x7C00,
    0xFC00, 0x7E00, 0x7C01, 0x0080, 0x3F80, 0x7F7F, 0x7F80,
)  # fmt: skip


def corners(name: str, values: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    """Three operands [COUNT]: every pair of corners, then random values; the third is a corner or random by turns."""
    pairs = np.array(list(itertools.product(values, values)), dtype)[:COUNT]
    rest = random_words(name, 3 * COUNT, dtype).reshape(3, COUNT)
    a, b, c = rest.copy()
    a[: len(pairs)], b[: len(pairs)] = pairs.T
    c[::2] = np.array(values, dtype)[np.arange(COUNT // 2) * 7 % len(values)]
    return [a, b, c]


# Instructions that the emulated device refuses: a kernel each, so that the record already has them.
REFUSED = re.compile(
    r"dp2a|xorsign|cvt\.r[zmp]\.f64\.[su]64|\.r[zmp]\.f64 %z|cvt\.pack\.sat\.[su]8|(add|mul)\.ftz(\.sat)?\.f16|"
    r"fma\.rn\.(ftz|sat)[.relu]*\.f16|cvt\.rz\.f16\.s16"
)


def table(name: str, kind: str, values: tuple[int, ...], rows: list[tuple]) -> list[Case]:
    """A kernel that runs `rows` of (instruction, kind of the result[, ulps, dtype]) on corners in %a, %b, %c."""
    operands = corners(name, values, kind.replace("u", "uint"))

    def case(name: str, rows: list[tuple], refused: bool) -> Case:
        writer = Writer(name, COUNT)
        for register, array in zip(("%a", "%b", "%c"), operands, strict=True):
            writer.load(register, kind, array)
        for row in rows:
            writer.run(*row)
        return writer.case(refused=refused)

    single = [row for row in rows if REFUSED.search(row[0])]
    return [
        case(name, [row for row in rows if row not in single], False),
        *(case(f"{name}_{row[0].split()[0]}", [row], True) for row in single),
    ]


def pred(text: str) -> str:
    """An instruction that sets %q, its result as 0 or 1."""
    return f".reg .pred %q; {text}; selp.b32 %z, 1, 0, %q"


def integer_32() -> list[Case]:
    plain = [
        f"{o} %z, %a, %b"
        for o in (
            "add.u32 sub.s32 mul.lo.u32 mul.hi.u32 mul.hi.s32 mul24.lo.u32 mul24.lo.s32 mul24.hi.u32 min.s32 "
            "max.s32 min.u32 max.u32 shl.b32 shr.u32 shr.s32 and.b32 or.b32 xor.b32 add.sat.s32 sub.sat.s32 "
            "bmsk.clamp.b32 bmsk.wrap.b32 szext.clamp.s32 szext.wrap.u32 min.relu.s32 max.relu.s32"
        ).split()
    ]
    plain += [
        f"{o} %z, %a"
        for o in (
            "abs.s32 neg.s32 not.b32 cnot.b32 popc.b32 clz.b32 brev.b32 bfind.u32 bfind.s32 "
            "bfind.shiftamt.u32 bfind.shiftamt.s32"
        ).split()
    ]
    plain += [
        f"{o} %z, %a, %b, %c"
        for o in (
            "mad.lo.u32 mad.hi.u32 mad.hi.s32 mad.hi.sat.s32 mad24.lo.s32 sad.u32 sad.s32 "
            "dp4a.u32.u32 dp4a.s32.s32 dp4a.u32.s32 dp2a.lo.s32.s32 dp2a.hi.u32.u32 dp2a.lo.u32.s32 "
            "shf.l.wrap.b32 shf.l.clamp.b32 shf.r.wrap.b32 shf.r.clamp.b32 prmt.b32 prmt.b32.f4e prmt.b32.b4e "
            "prmt.b32.rc8 prmt.b32.ecl prmt.b32.ecr prmt.b32.rc16"
        ).split()
    ]
    plain += [f"lop3.b32 %z, %a, %b, %c, {mask:#x}" for mask in (0x00, 0x1B, 0x96, 0xE8, 0xCA, 0x6A, 0xFE, 0xFF)]
    plain += [f"{o} %z, %a, %b, %c" for o in ("bfe.u32", "bfe.s32")]
    plain += [
        "bfi.b32 %z, %a, %c, %b, 7",
        "and.b32 %y, %b, 63; bfi.b32 %z, %a, %c, %b, %y",
        "slct.b32.s32 %z, %a, %b, %c",
        "slct.b32.f32 %z, %a, %b, %c",
        "and.b32 %y, %b, 0xff; bfe.u32 %z, %a, %y, 8",
        "and.b32 %y, %b, 0xff; bfe.s32 %z, %a, 5, %y",
        "add.cc.u32 %y, %a, %b; addc.u32 %z, %c, 5",
        "sub.cc.u32 %y, %a, %b; subc.u32 %z, %c, 5",
        "add.cc.u32 %y, %a, %b; madc.hi.u32 %z, %a, %c, %b",
        "max.s32 %y, %b, 1; div.s32 %z, %a, %y",
        "max.s32 %y, %b, 1; rem.s32 %z, %a, %y",
        "or.b32 %y, %b, 1; div.s32 %z, %c, %y",
        "or.b32 %y, %b, 1; rem.s32 %z, %c, %y",
        "or.b32 %y, %b, 1; div.u32 %z, %a, %y",
        "or.b32 %y, %b, 1; rem.u32 %z, %a, %y",
        "add.s16x2 %z, %a, %b",
        "add.u16x2 %z, %a, %b",
        "min.s16x2 %z, %a, %b",
        "max.u16x2 %z, %a, %b",
        "max.relu.s16x2 %z, %a, %b",
    ]
    rows = [(text, "u32") for text in plain]
    rows += [
        (pred(f"setp.{test} %q, %a, %b"), "u32")
        for test in ("eq.s32", "lt.s32", "ge.s32", "lo.u32", "hs.u32", "hi.u32", "ls.u32", "lt.u32")
    ]
    rows += [
        (pred("setp.lt.s32 %q, %c, 0; setp.gt.and.u32 %q, %a, %b, %q"), "u32"),
        ("set.lt.u32.s32 %z, %a, %b", "u32"),
    ]
    rows += [(f"{o} %z, %a, %b", "u64") for o in ("mul.wide.u32", "mul.wide.s32")]
    rows += [("cvt.u64.u32 %y, %c; mad.wide.s32 %z, %a, %b, %y", "u64")]
    return table("integer_32", "u32", INTEGERS, rows)


def integer_64() -> list[Case]:
    texts = [
        f"{o} %z, %a, %b"
        for o in (
            "add.u64 sub.s64 mul.lo.u64 mul.hi.u64 mul.hi.s64 min.s64 max.s64 min.u64 max.u64 and.b64 xor.b64"
        ).split()
    ]
    texts += [f"{o} %z, %a" for o in ("abs.s64", "neg.s64", "not.b64", "brev.b64", "cnot.b64")]
    texts += [f".reg .b32 %s; cvt.u32.u64 %s, %b; {o} %z, %a, %s" for o in ("shl.b64", "shr.u64", "shr.s64")]
    texts += [
        f".reg .b32 %s, %t; cvt.u32.u64 %s, %b; and.b32 %s, %s, 255; cvt.u32.u64 %t, %c; and.b32 %t, %t, 255; "
        f"{o} %z, %a, %s, %t"
        for o in ("bfe.u64", "bfe.s64")
    ]
    texts += [
        "mad.lo.s64 %z, %a, %b, %c",
        "mad.hi.u64 %z, %a, %b, %c",
        "add.cc.u64 %y, %a, %b; addc.u64 %z, %c, 0",
        "or.b64 %y, %b, 1; div.u64 %z, %a, %y",
        "or.b64 %y, %b, 1; rem.u64 %z, %a, %y",
        "max.s64 %y, %b, 1; div.s64 %z, %a, %y",
        "max.s64 %y, %b, 1; rem.s64 %z, %a, %y",
    ]
    rows = [(text, "u64") for text in texts]
    rows += [(f"{o} %z, %a", "u32") for o in ("popc.b64", "clz.b64", "bfind.u64", "bfind.s64")]
    rows += [(pred(f"setp.{o} %q, %a, %b"), "u32") for o in ("lt.s64", "ge.u64", "ne.s64")]
    rows += [
        (f"cvt.{d}.{s} %z, %a", "u64")
        for d, s in (("rn.f64", "s64"), ("rn.f64", "u64"), ("rz.f64", "s64"), ("rm.f64", "s64"), ("rp.f64", "u64"))
    ]
    rows += [
        (f"cvt.{d}.{s} %z, %a", "u32")
        for d, s in (
            ("rn.f32", "s64"),
            ("rn.f32", "u64"),
            ("rz.f32", "u64"),
            ("rm.f32", "s64"),
            ("rp.f32", "s64"),
            ("u32", "u64"),
            ("sat.s32", "s64"),
            ("sat.u32", "s64"),
            ("sat.u32", "u64"),
            ("sat.s8", "s64"),
        )
    ]
    return table("integer_64", "u64", LONG, rows)


def float_32() -> list[Case]:
    texts = [
        f"{o} %z, %a, %b"
        for o in (
            *(f"{o}.{r}.f32" for o in ("add", "sub", "mul", "div") for r in ("rn", "rz", "rm", "rp")),
            *(
                "add.ftz.f32 mul.ftz.f32 add.sat.f32 mul.sat.f32 add.rz.ftz.sat.f32 div.rn.ftz.f32 "
                "min.f32 max.f32 min.ftz.f32 max.ftz.f32 min.NaN.f32 max.NaN.f32 min.xorsign.abs.f32 "
                "max.xorsign.abs.f32 max.NaN.xorsign.abs.f32 copysign.f32"
            ).split(),
        )
    ]
    texts += [
        f"{o} %z, %a, %b, %c"
        for o in (
            "fma.rn.f32 fma.rz.f32 fma.rm.f32 fma.rp.f32 fma.rn.ftz.f32 fma.rn.sat.f32 fma.rn.ftz.sat.f32"
        ).split()
    ]
    texts += [
        f"{o} %z, %a"
        for o in (
            "abs.f32 neg.f32 abs.ftz.f32 neg.ftz.f32 sqrt.rn.f32 sqrt.rz.f32 sqrt.rm.f32 sqrt.rp.f32 "
            "sqrt.rn.ftz.f32 rcp.rn.f32 rcp.rz.f32 rcp.rm.f32 rcp.rp.f32 rcp.rn.ftz.f32"
        ).split()
    ]
    rows = [(text, "u32") for text in texts]
    rows += [
        (pred(f"setp.{o}.f32 %q, %a, %b"), "u32")
        for o in ("eq ne lt le gt ge equ neu ltu leu gtu geu num nan lt.ftz eq.ftz").split()
    ]
    rows += [
        (pred(f"testp.{o}.f32 %q, %a"), "u32")
        for o in ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    ]
    rows += [
        (f"cvt.{d}.f32 %z, %a", "u32")
        for d in (
            *(f"{r}.{t}" for r in ("rni", "rzi", "rmi", "rpi") for t in ("s32", "u32", "f32")),
            *(
                "rni.s8 rzi.u8 rni.s16 rpi.u16 rni.sat.f32 rzi.ftz.s32 rzi.sat.s8 sat.f32 ftz.f32 "
                "rna.tf32 rn.tf32 rz.tf32 rn.relu.tf32 rz.relu.tf32"
            ).split(),
        )
    ]
    rows += [(f"cvt.{d}.f32 %z, %a", "u64") for d in ("f64", "rzi.s64", "rni.u64", "rmi.s64", "rpi.u64", "ftz.f64")]
    rows += [
        (f"cvt.{d}.f32 %z, %a", "u16")
        for d in (
            "rn.f16 rz.f16 rn.ftz.f16 rn.sat.f16 rn.relu.f16 rz.relu.f16 rn.bf16 rz.bf16 rn.relu.bf16 rz.relu.bf16"
        ).split()
    ]
    rows += [
        (f"cvt.{d}.f32 %z, %a, %b", "u32")
        for d in ("rn.f16x2", "rz.f16x2", "rn.relu.f16x2", "rn.bf16x2", "rz.bf16x2", "rz.relu.bf16x2")
    ]
    rows += [
        (f"cvt.rn.satfinite.{d}.f32 %z, %a, %b", "u16") for d in ("e4m3x2", "e5m2x2", "relu.e4m3x2", "relu.e5m2x2")
    ]
    rows += [(f"cvt.{r}.f32.{s} %z, %a", "u32") for r in ("rn", "rz", "rm", "rp") for s in ("s32", "u32")]
    return table("float_32", "u32", FLOATS, rows)


def float_approximate() -> list[Case]:
    """Approximations: the ISA bounds their error and leaves the bits open. 2 ulp of the GPU's result."""
    rows = [
        (f"{o} %z, %a", "u32", 2, "float32")
        for o in (
            "rcp.approx.f32 rcp.approx.ftz.f32 sqrt.approx.f32 sqrt.approx.ftz.f32 rsqrt.approx.f32 "
            "rsqrt.approx.ftz.f32 ex2.approx.f32 ex2.approx.ftz.f32"
        ).split()
    ]
    rows += [(f"{o} %z, %a", "u32", 1 << 13, "float32") for o in ("tanh.approx.f32",)]
    # Absolute error bounds near zeros of the function: the operand is brought into [1.5, 3).
    near = "and.b32 %y, %a, 0x7fffff; or.b32 %y, %y, 0x3fc00000; "
    rows += [(near + f"{o} %z, %y", "u32", 16, "float32") for o in ("lg2.approx.f32", "lg2.approx.ftz.f32")]
    rows += [(f"{o} %z, %a, %b", "u32", 2, "float32") for o in ("div.full.f32", "div.approx.f32")]
    return table("float_approximate", "u32", FLOATS, rows)


def float_64() -> list[Case]:
    texts = [f"{o}.{r}.f64 %z, %a, %b" for o in ("add", "sub", "mul", "div") for r in ("rn", "rz", "rm", "rp")]
    texts += [f"{o}.f64 %z, %a, %b" for o in ("min", "max", "copysign")]
    texts += [
        f"{o}.f64 %z, %a"
        for o in ("abs", "neg", "sqrt.rn", "sqrt.rz", "sqrt.rm", "sqrt.rp", "rcp.rn", "rcp.rz", "rcp.rm")
    ]
    texts += [f"fma.{r}.f64 %z, %a, %b, %c" for r in ("rn", "rz", "rm", "rp")]
    rows = [(text, "u64") for text in texts]
    rows += [(pred(f"setp.{o}.f64 %q, %a, %b"), "u32") for o in ("lt", "geu", "equ", "nan", "num")]
    rows += [
        (f"cvt.{d}.f64 %z, %a", "u32")
        for d in ("rn.f32 rz.f32 rm.f32 rp.f32 rn.ftz.f32 rn.sat.f32 rzi.s32 rni.u32 rmi.s32 rpi.s32 rzi.s8").split()
    ]
    rows += [(f"cvt.{d}.f64 %z, %a", "u64") for d in ("rni.s64", "rzi.u64", "rni.f64", "rzi.f64", "rmi.f64", "rpi.f64")]
    rows += [("cvt.rn.f16.f64 %z, %a", "u16")]
    return table("float_64", "u64", DOUBLES, rows)


def half() -> list[Case]:
    """f16 and bf16, one and two at once. Corners are those of f16, of which some are corners of bf16."""
    rows = []
    for t in ("f16", "bf16"):
        rows += [
            (f"{o}.{t} %z, %a, %b", "u16")
            for o in ("add.rn sub.rn mul.rn min max min.NaN max.NaN min.xorsign.abs max.xorsign.abs").split()
        ]
        rows += [(f"fma.rn{m}.{t} %z, %a, %b, %c", "u16") for m in ("", ".relu")]
        rows += [(f"{o}.{t} %z, %a", "u16") for o in ("abs", "neg")]
        rows += [(pred(f"setp.{o}.{t} %q, %a, %b"), "u32") for o in ("lt", "eq", "gtu", "nan", "num")]
    rows += [(f"{o}.f16 %z, %a, %b", "u16") for o in ("add.ftz", "add.sat", "mul.ftz.sat", "min.ftz", "max.ftz")]
    rows += [(f"fma.rn{m}.f16 %z, %a, %b, %c", "u16") for m in (".ftz", ".sat", ".ftz.relu")]
    two = "mov.b32 %y, {%a, %c}; .reg .b32 %v, %w; mov.b32 %v, {%b, %a}; mov.b32 %w, {%c, %b}; "
    for t in ("f16x2", "bf16x2"):
        rows += [(two + f"{o}.{t} %z, %y, %v", "u32") for o in ("add.rn", "sub.rn", "mul.rn", "min", "max.NaN")]
        rows += [(two + f"fma.rn{m}.{t} %z, %y, %v, %w", "u32") for m in ("", ".relu")]
        rows += [
            (
                two + f".reg .pred %q, %s; .reg .b32 %x, %u; setp.lt.{t} %q|%s, %y, %v; selp.b32 %x, 1, 0, %q; "
                f"selp.b32 %u, 2, 0, %s;"
                " or.b32 %z, %x, %u",
                "u32",
            )
        ]
    rows += [
        (f"cvt.{d} %z, %a", "u16")
        for d in (
            "rni.f16.f16 rzi.f16.f16 rmi.f16.f16 rpi.f16.f16 rn.f16.s16 rn.f16.u16 rz.f16.s16 rn.bf16.f16 "
            "rn.f16.bf16 sat.f16.f16 rn.bf16.s16 rn.bf16.u16 rni.bf16.bf16"
        ).split()
    ]
    return table("half", "u16", HALVES, rows)


def integer_16() -> list[Case]:
    rows = [
        (f"{o} %z, %a, %b", "u16")
        for o in ("add.u16 sub.s16 mul.lo.u16 mul.hi.u16 mul.hi.s16 min.s16 max.u16 and.b16 xor.b16").split()
    ]
    rows += [(f"{o} %z, %a", "u16") for o in ("abs.s16", "neg.s16", "not.b16", "cnot.b16")]
    rows += [(f".reg .b32 %s; cvt.u32.u16 %s, %b; {o} %z, %a, %s", "u16") for o in ("shl.b16", "shr.u16", "shr.s16")]
    rows += [
        ("mad.lo.s16 %z, %a, %b, %c", "u16"),
        ("mul.wide.s16 %z, %a, %b", "u32"),
        ("mul.wide.u16 %z, %a, %b", "u32"),
    ]
    rows += [("or.b16 %y, %b, 1; div.u16 %z, %a, %y", "u16"), ("or.b16 %y, %b, 1; rem.s16 %z, %c, %y", "u16")]
    rows += [
        (f"cvt.{d} %z, %a", "u32")
        for d in ("s32.s16 u32.u16 s32.s8 u32.u8 sat.u8.s16 sat.s8.u16 rn.f32.s16 rn.f32.u8 rn.f32.s8").split()
    ]
    return table("integer_16", "u16", INTEGERS[:17], rows)


def saturating_packs() -> list[Case]:
    rows = [(f"cvt.pack.sat.{t}.s32.b32 %z, %a, %b, %c", "u32") for t in ("s8", "u8")]
    rows += [(f"cvt.pack.sat.{t}.s32 %z, %a, %b", "u32") for t in ("s16", "u16")]
    rows += [
        (f"cvt.sat.{d}.{s} %z, %a", "u32")
        for d in ("s8", "u8", "s16", "u16", "s32", "u32")
        for s in ("s32", "u32")
        if d != s
    ]
    rows += [("cvt.s16.s32 %z, %a", "u32"), ("cvt.u8.u32 %z, %a", "u32"), ("cvt.s8.s32 %z, %a", "u32")]
    return table("saturating_packs", "u32", INTEGERS, rows)


def _all_halves(name: str) -> Writer:
    """%a is every 16-bit value; %b a random one."""
    writer = Writer(name, 1 << 16)
    writer.load("%a", "u16", np.arange(1 << 16, dtype=np.uint16))
    writer.load("%b", "u16", random_words(name, 1 << 16, "uint16"))
    return writer


def convert_halves() -> Case:
    """Conversions of all 65,536 values of 16 bits."""
    writer = _all_halves("convert_halves")
    for d in (
        "f32.f16",
        "ftz.f32.f16",
        "f32.bf16",
        *(f"{r}.{t}.f16" for r in ("rni", "rzi", "rmi", "rpi") for t in ("s32", "u32")),
        "rni.s8.f16",
        "rzi.u8.f16",
        "rzi.s16.f16",
    ):
        writer.run(f"cvt.{d} %z, %a", "u32")
    for d in ("rni.s32.bf16", "rzi.u32.bf16"):
        writer.run(f"cvt.{d} %z, %a", "u32")
    for d in ("f64.f16", "rzi.s64.f16"):
        writer.run(f"cvt.{d} %z, %a", "u64")
    for d in (
        "rn.bf16.f16 rz.bf16.f16 rn.f16.bf16 rz.f16.bf16 rn.f16.u16 rn.f16.s16 rn.bf16.u16 rn.bf16.s16 "
        "rni.f16.f16 rpi.f16.f16"
    ).split():
        writer.run(f"cvt.{d} %z, %a", "u16")
    for d in ("e4m3x2", "e5m2x2"):
        for relu in ("", "relu."):
            writer.run(f".reg .b32 %v; mov.b32 %v, {{%a, %b}}; cvt.rn.satfinite.{relu}{d}.f16x2 %z, %v", "u16")
            writer.run(f"cvt.rn.{relu}f16x2.{d} %z, %a", "u32")
    return writer.case(digest=True)


def convert_floats() -> Case:
    """Conversions of 65,536 floats: every upper half, with lower halves at and beside the middle of two results."""
    name = "convert_floats"
    writer = Writer(name, 1 << 16)
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x2000, 0x3000, 0x0FFF, 0x1001, 0xF000], np.uint32)
    low = low[random_words(name, 1 << 16) % len(low)]
    values = np.arange(1 << 16, dtype=np.uint32) << 16 | low
    writer.load("%a", "u32", values)
    writer.load("%b", "u32", random_words(name + "b", 1 << 16))
    for d in ("rna.tf32", "rn.tf32", "rz.tf32", "rn.relu.tf32", "rni.s32", "rmi.u32", "rni.f32", "rmi.f32", "rpi.f32"):
        writer.run(f"cvt.{d}.f32 %z, %a", "u32")
    for d in ("rn.f16", "rz.f16", "rn.relu.f16", "rn.bf16", "rz.bf16", "rn.relu.bf16"):
        writer.run(f"cvt.{d}.f32 %z, %a", "u16")
    for d in ("e4m3x2", "e5m2x2", "relu.e4m3x2", "relu.e5m2x2"):
        writer.run(f"cvt.rn.satfinite.{d}.f32 %z, %a, %b", "u16")
    for d in ("rn.f16x2", "rz.f16x2", "rn.bf16x2", "rz.bf16x2"):
        writer.run(f"cvt.{d}.f32 %z, %b, %a", "u32")
    return writer.case(digest=True)


def cases() -> list[Case]:
    return [
        *integer_16(),
        *integer_32(),
        *integer_64(),
        *float_32(),
        *float_64(),
        *float_approximate(),
        *half(),
        *saturating_packs(),
        convert_halves(),
        convert_floats(),
    ]
