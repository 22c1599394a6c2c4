"""ldmatrix, stmatrix, mma.sync and wgmma on raw registers and raw shared memory.

What lies where is never computed here: registers and shared memory are filled with elements, and the record says what
the GPU makes of them. Every sum has to agree in every bit: those of small integers ("whole" data), which are exact;
those of floats in [1, 2) ("rough") and of a dozen powers of two ("wide"), which the GPU cuts; those of both signs, in
accumulators too ("signed"), which cancel; and those of every code, infinities and NaN among them ("any").
"""

from __future__ import annotations

import numpy as np

from hopper.case import Case, Row, module, random_bytes, random_words

# e4m3 and e5m2 codes of -4 .. 4.
_E4M3 = [0xC8, 0xC4, 0xC0, 0xB8, 0x00, 0x38, 0x40, 0x44, 0x48]
_E5M2 = [0xC4, 0xC2, 0xC0, 0xBC, 0x00, 0x3C, 0x40, 0x42, 0x44]
_WIDTH = {
    "f16": "uint16",
    "bf16": "uint16",
    "tf32": "uint32",
    "f32": "uint32",
    "e4m3": "uint8",
    "e5m2": "uint8",
    "f64": "uint64",
}


# First code and number of codes of "wide" data: positive, over a dozen powers of two.
_WIDE = {
    "f16": (0x2000, 0x3000),
    "bf16": (0x3C00, 0x600),
    "tf32": (0x3C000000, 0x6000000),
    "e4m3": (0x08, 0x68),
    "e5m2": (0x20, 0x40),
}

# Bits of a random code that stay, and bits that are set, in "signed" data: below 2, over the exponents that fit into
# four bits, with the subnormals of the narrow types.
_SIGNED = {
    "f16": (0xBFFF, 0),
    "bf16": (0x87FF, 0x3800),
    "tf32": (0x87FFFFFF, 0x38000000),
    "f32": (0x87FFFFFF, 0x38000000),
    "e4m3": (0xBF, 0),
    "e5m2": (0xBF, 0),
}


def elements(name: str, kind: str, words: int, data: str) -> np.ndarray:
    """uint32 [words] of elements of a type, in one of the kinds of data above."""
    count = words * 4 // np.dtype(_WIDTH[kind]).itemsize
    raw = random_words(name, count)
    if data == "wide":
        first, codes = _WIDE[kind]
        return (first + raw % codes).astype(_WIDTH[kind]).view(np.uint32)
    if data == "signed":
        kept, fixed = _SIGNED[kind]
        return (raw & np.uint32(kept) | np.uint32(fixed)).astype(_WIDTH[kind]).view(np.uint32)
    if data == "any":
        return raw.astype(_WIDTH[kind]).view(np.uint32)
    if data == "whole":
        digits = raw % 9
        if kind in ("e4m3", "e5m2"):
            return np.array(_E4M3 if kind == "e4m3" else _E5M2, np.uint8)[digits].view(np.uint32)
        values = digits.astype(np.int64) - 4
        if kind == "f64":
            return values.astype(np.float64).view(np.uint32)
        if kind == "f16":
            return values.astype(np.float16).view(np.uint32)
        bits = values.astype(np.float32).view(np.uint32)
        return (bits >> 16).astype(np.uint16).view(np.uint32) if kind == "bf16" else bits
    match kind:
        case "f16":
            return (0x3C00 | raw & 0x3FF).astype(np.uint16).view(np.uint32)
        case "bf16":
            return (0x3F80 | raw & 0x7F).astype(np.uint16).view(np.uint32)
        case "e4m3":
            return (0x38 | raw & 7).astype(np.uint8).view(np.uint32)
        case "e5m2":
            return (0x3C | raw & 3).astype(np.uint8).view(np.uint32)
    return 0x3F800000 | raw & 0x7FFFFF


MMA = [  # shape, accumulator, A, B, 32-bit registers of A, B, C
    ("m16n8k8", "f32", "f16", "f16", 2, 1, 4),
    ("m16n8k8", "f16", "f16", "f16", 2, 1, 2),
    ("m16n8k16", "f32", "f16", "f16", 4, 2, 4),
    ("m16n8k16", "f16", "f16", "f16", 4, 2, 2),
    ("m16n8k8", "f32", "bf16", "bf16", 2, 1, 4),
    ("m16n8k16", "f32", "bf16", "bf16", 4, 2, 4),
    ("m16n8k4", "f32", "tf32", "tf32", 2, 1, 4),
    ("m16n8k8", "f32", "tf32", "tf32", 4, 2, 4),
    ("m16n8k32", "f32", "e4m3", "e4m3", 4, 2, 4),
    ("m16n8k32", "f32", "e5m2", "e5m2", 4, 2, 4),
    ("m16n8k32", "f32", "e4m3", "e5m2", 4, 2, 4),
    ("m16n8k32", "f32", "e5m2", "e4m3", 4, 2, 4),
    ("m16n8k16", "f32", "e4m3", "e5m2", 2, 1, 4),
    ("m16n8k32", "f16", "e4m3", "e4m3", 4, 2, 2),
]


def _accumulators(data: str) -> str:
    """The kind of data of accumulators beside operands of a kind."""
    return data if data in ("signed", "any") else "whole"


def mma(name: str, data: str = "whole") -> Case:
    sizes, lines, rows, inputs, read, written = [], [], [], [], 0, 0
    for shape, acc, a, b, na, nb, nc in MMA:
        label = f"mma.sync.aligned.{shape}.row.col.{acc}.{a}.{b}.{acc}"
        for register, (operand, kind, count) in enumerate((("a", a, na), ("b", b, nb), ("c", acc, nc))):
            # The name of the stream tells "rough" data alone from the others.
            stream = f"{label} {operand} {data == 'rough'}"
            inputs.append(elements(stream, kind, count * 32, _accumulators(data) if operand == "c" else data))
            sizes.append(register)
        parts = [f"ld.global.u32 %r{i}, [%in0 + {read + 128 * i}];" for i in range(na + nb + nc)]
        read += 128 * (na + nb + nc)
        groups = [
            ", ".join(f"%r{i}" for i in group)
            for group in (range(na), range(na, na + nb), range(na + nb, na + nb + nc), range(20, 20 + nc))
        ]
        stores = [f"st.global.u32 [%out + {written + 128 * i}], %r{20 + i};" for i in range(nc)]
        lines += [*parts, f"{label} {{{groups[3]}}}, {{{groups[0]}}}, {{{groups[1]}}}, {{{groups[2]}}};", *stores]
        values, dtype = (64, "float16") if acc == "f16" else (32, "float32")
        rows.append(Row(label, written, nc * values, dtype))
        written += 128 * nc
    body = "\n".join(
        [
            ".reg .b32 %r<40>; ld.param.u64 %in0, [p0]; ld.param.u64 %out, [p1];",
            "mad.wide.u32 %in0, %me, 4, %in0; mad.wide.u32 %out, %me, 4, %out;",
            *lines,
        ]
    )
    return Case(name, module(body, 2), (np.concatenate(inputs),), np.zeros(written, np.uint8), tuple(rows))


def _refused_mma() -> list[Case]:
    """mma of f64, integers and bits, and movmatrix: a kernel each."""
    forms = [  # instruction, registers of D, A, B, C, their width, data
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", 2, 1, 1, 2, 64),
        ("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64", 4, 4, 2, 4, 64),
        ("mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64", 4, 8, 4, 4, 64),
        ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 4, 4, 2, 4, 32),
        ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.s8.s32", 4, 4, 2, 4, 32),
        ("mma.sync.aligned.m16n8k16.row.col.s32.s8.u8.s32", 4, 2, 1, 4, 32),
        ("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32", 2, 1, 1, 2, 32),
        ("mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32", 4, 4, 2, 4, 32),
        ("mma.sync.aligned.m16n8k32.row.col.s32.u4.s4.s32", 4, 2, 1, 4, 32),
        ("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc", 4, 4, 2, 4, 32),
        ("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.xor.popc", 4, 2, 1, 4, 32),
        ("movmatrix.sync.aligned.m8n8.trans.b16", 1, 1, 0, 0, 32),
    ]
    cases = []
    for text, *counts, width in forms:
        words = sum(counts[1:]) * 32 * width // 32
        data = elements(text, "f64", words, "whole") if width == 64 else random_words(text, words)
        groups, first = [], 0
        for count in (*counts[1:], counts[0]):
            groups.append(", ".join(f"%v{i}" for i in range(first, first + count)))
            first += count
        size = width // 8
        where = f"mad.wide.u32 %in0, %me, {size}, %in0; mad.wide.u32 %out, %me, {size}, %out;"
        lines = [f".reg .b{width} %v<32>; ld.param.u64 %in0, [p0]; ld.param.u64 %out, [p1]; {where}"]
        lines += [f"ld.global.u{width} %v{i}, [%in0 + {32 * size * i}];" for i in range(sum(counts[1:]))]
        if counts[2]:
            lines.append(f"{text} {{{groups[3]}}}, {{{groups[0]}}}, {{{groups[1]}}}, {{{groups[2]}}};")
        else:
            lines.append(f"{text} {groups[3]}, {groups[0]};")
        lines += [f"st.global.u{width} [%out + {32 * size * i}], %v{sum(counts[1:]) + i};" for i in range(counts[0])]
        output = np.zeros(32 * size * counts[0], np.uint8)
        row = Row(text, 0, 32 * counts[0], f"uint{width}")
        cases.append(Case(text, module("\n".join(lines), 2), (data,), output, (row,), refused=True))
    return cases


def matrices() -> Case:
    """ldmatrix and stmatrix, all 8x8 forms, on rows in an order of its own for each lane; movmatrix."""
    size = 4096
    data = random_bytes("matrices", size)
    rows_of = (random_words("rows", 32) % (size // 16) * 16).astype(np.uint32)
    places = (np.random.PCG64(1).random_raw(256).argsort()[:32] * 16).astype(np.uint32)
    lines, rows, written = [], [], 0
    for count in (1, 2, 4):
        for trans in ("", ".trans"):
            label = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16"
            names = ", ".join(f"%r{i}" for i in range(count))
            lines.append(f"{label} {{{names}}}, [%row];")
            lines += [f"st.global.u32 [%out + {written + 128 * i}], %r{i};" for i in range(count)]
            rows.append(Row(label, written, 32 * count))
            written += 128 * count
    for count in (1, 2, 4):
        for trans in ("", ".trans"):
            label = f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16"
            names = ", ".join(f"%s{i}" for i in range(count))
            lines += [f"bar.sync 0; {label} [%place], {{{names}}}; bar.sync 0;"]
            for i in range(size // 512):
                lines.append(f"ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%mine + {512 * i}];")
                lines.append(f"st.global.v4.u32 [%dump + {written + 512 * i}], {{%r0, %r1, %r2, %r3}};")
            rows.append(Row(label, written, size // 4))
            written += size
    fill = [
        f"ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%in0 + {512 * i}]; "
        f"st.shared.v4.u32 [%mine + {512 * i}], {{%r0, %r1, %r2, %r3}};"
        for i in range(size // 512)
    ]
    body = "\n".join(
        [
            f".shared .align 128 .b8 buffer[{size}]; .reg .b32 %r<8>, %s<4>, %row, %place, %mine, %base; "
            f".reg .b64 %dump;",
            "mov.u32 %base, buffer; mad.lo.u32 %mine, %lane, 16, %base;",
            "ld.param.u64 %in0, [p0]; mad.wide.u32 %in0, %lane, 16, %in0;",
            "ld.param.u64 %in1, [p1]; mad.wide.u32 %in1, %lane, 4, %in1; ld.global.u32 %row, [%in1]; "
            "add.u32 %row, %row, %base;",
            "ld.param.u64 %in2, [p2]; mad.wide.u32 %in2, %lane, 4, %in2; ld.global.u32 %place, [%in2]; "
            "add.u32 %place, %place, %base;",
            "ld.param.u64 %out, [p3]; mad.wide.u32 %dump, %lane, 16, %out; mad.wide.u32 %out, %lane, 4, %out;",
            *fill,
            *(f"mad.lo.u32 %s{i}, %lane, 0x01030107, {0x11223344 * (i + 1) & 0xFFFFFFFF};" for i in range(4)),
            "bar.sync 0;",
            *lines,
        ]
    )
    return Case("matrices", module(body, 4), (data, rows_of, places), np.zeros(written, np.uint8), tuple(rows))


SWIZZLE_FIELD = {0: 0, 128: 1, 64: 2, 32: 3}
WGMMA_SHARED = 40960


def _descriptor(leading: int, stride: int, swizzle: int) -> int:
    return SWIZZLE_FIELD[swizzle] << 62 | stride >> 4 << 32 | leading >> 4 << 16


def wgmma(
    name: str,
    accumulator: str,
    a: str,
    b: str,
    forms: list[dict],
    kind: str = "whole",
) -> Case:
    """A fill of 40 KB of shared memory and one product a form.

    A form: n; a = register | (start, leading, stride, swizzle); b likewise; ta, tb: transposed; sa, sb: 1 or -1;
    d: 0 or 1, the accumulator is used. `kind`: of the data.
    """
    k = {"f16": 16, "bf16": 16, "tf32": 8}.get(a, 32)
    half = WGMMA_SHARED // 2
    data = np.concatenate([elements(f"{name} {i}", element, half // 4, kind) for i, element in enumerate((a, b))])
    registers = elements(f"{name} registers", a, 4 * 128, kind)
    start = elements(f"{name} accumulators", accumulator, 128 * 128, _accumulators(kind))
    lines, rows, written = [], [], 0
    for form in forms:
        n = form["n"]
        count = n // 2 if accumulator == "f32" else n // 4
        d = [f"%d{i}" for i in range(count)]
        transposes = a in ("f16", "bf16")
        lines += [f"ld.global.u32 {r}, [%in2 + {512 * i}];" for i, r in enumerate(d)]
        extra = f"{form.get('sa', 1)}, {form.get('sb', 1)}"
        first = form["a"]
        if first == "register":
            left = "{%a0, %a1, %a2, %a3}"
            extra += f", {form.get('tb', 0)}" if transposes else ""
        else:
            left = "%da"
            extra += f", {form.get('ta', 0)}, {form.get('tb', 0)}" if transposes else ""
            lines.append(f"add.u64 %da, %descriptor, {_descriptor(*first[1:]) + (first[0] >> 4):#x};")
        second = form["b"]
        lines.append(f"add.u64 %db, %descriptor, {_descriptor(*second[1:]) + (second[0] + half >> 4):#x};")
        operation = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{accumulator}.{a}.{b}"
        lines += [
            f"setp.ne.u32 %p0, {form.get('d', 1)}, 0;",
            "wgmma.fence.sync.aligned;",
            f"{operation} {{{', '.join(d)}}}, {left}, %db, %p0, {extra};",
            "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
            *(f"st.global.u32 [%out + {written + 512 * i}], {r};" for i, r in enumerate(d)),
        ]
        rows.append(
            Row(
                f"{operation} {form}",
                written,
                128 * count * (2 if accumulator == "f16" else 1),
                "float16" if accumulator == "f16" else "float32",
            )
        )
        written += 512 * count
    fill = [
        f"ld.global.v4.u32 {{%d0, %d1, %d2, %d3}}, [%in0 + {2048 * i}]; "
        f"st.shared.v4.u32 [%mine + {2048 * i}], {{%d0, %d1, %d2, %d3}};"
        for i in range(WGMMA_SHARED // 2048)
    ]
    body = "\n".join(
        [
            f".shared .align 1024 .b8 buffer[{WGMMA_SHARED}]; .reg .b32 %d<128>, %a<4>, %mine, %base; "
            f".reg .b64 %da, %db, %descriptor;",
            "mov.u32 %base, buffer; mad.lo.u32 %mine, %me, 16, %base; shr.u32 %base, %base, 4; "
            "cvt.u64.u32 %descriptor, %base;",
            "ld.param.u64 %in0, [p0]; mad.wide.u32 %in0, %me, 16, %in0;",
            *(f"ld.param.u64 %in{i}, [p{i}]; mad.wide.u32 %in{i}, %me, 4, %in{i};" for i in (1, 2)),
            "ld.param.u64 %out, [p3]; mad.wide.u32 %out, %me, 4, %out;",
            *fill,
            *(f"ld.global.u32 %a{i}, [%in1 + {512 * i}];" for i in range(4)),
            "fence.proxy.async.shared::cta; bar.sync 0;",
            *lines,
        ]
    )
    return Case(name, module(body, 4), (data, registers, start), np.zeros(written, np.uint8), tuple(rows), block=128)


# (leading, stride, swizzle) of operands that end inside 20 KB: rows in groups of 8, k or rows in runs of the swizzle.
K_MAJOR = [(128, 256, 0), (1024, 128, 0), (16, 256, 32), (16, 512, 64), (16, 1024, 128)]
MN_MAJOR = {  # rows -> layouts of 16-bit elements
    64: [(128, 256, 0), (1024, 128, 0), (512, 256, 32), (1024, 512, 64), (2048, 1024, 128)],
    8: [(128, 256, 0)],
}


def wgmma_cases() -> list[Case]:
    layouts = [{"n": 64, "a": (0, *x), "b": (0, *x)} for x in K_MAJOR]
    advanced = [
        {"n": 64, "a": (32, 16, 1024, 128), "b": (96, 16, 1024, 128)},
        {"n": 64, "a": (32, 16, 512, 64), "b": (0, 16, 512, 64)},
    ]
    major = [
        {"n": 64, "a": (0, *x), "b": (0, *x), "ta": ta, "tb": tb}
        for x in MN_MAJOR[64]
        for ta, tb in ((1, 0), (0, 1), (1, 1))
        if 20480 >= 2048 + 1024 * 7
    ]
    sizes = [{"n": n, "a": a, "b": (0, 128, 256, 0)} for n in (8, 128) for a in ("register", (0, 128, 256, 0))]
    sizes += [{"n": 24, "a": "register", "b": (0, 16, 256, 32)}, {"n": 256, "a": "register", "b": (0, 16, 512, 64)}]
    signs = [
        {"n": 8, "a": a, "b": (1024, 128, 256, 0), "sa": sa, "sb": sb, "d": d}
        for a in ("register", (0, 16, 1024, 128))
        for sa, sb, d in ((-1, 1, 1), (1, -1, 1), (-1, -1, 0), (1, 1, 0))
    ]
    registers = [
        {"n": 64, "a": "register", "b": (0, 2048, 1024, 128), "tb": 1},
        {"n": 16, "a": "register", "b": (0, 512, 256, 32), "tb": 1},
    ]
    few = [layouts[4], sizes[0], signs[0], {"n": 32, "a": "register", "b": (0, 16, 512, 64)}]
    cases = [
        wgmma("wgmma_f16", "f32", "f16", "f16", [*layouts, *advanced, *major, *sizes, *signs, *registers]),
        wgmma("wgmma_f16_f16", "f16", "f16", "f16", [*layouts[3:], *sizes[:2], *signs[:3], *registers]),
        wgmma("wgmma_bf16", "f32", "bf16", "bf16", [*layouts[2:], *major[-6:], *sizes[:3], *signs, *registers]),
        wgmma("wgmma_tf32", "f32", "tf32", "tf32", [*layouts, *advanced, *sizes, *signs]),
        wgmma("wgmma_e4m3", "f32", "e4m3", "e4m3", [*layouts, *advanced, *sizes, *signs]),
        wgmma("wgmma_e5m2_e4m3", "f32", "e5m2", "e4m3", few),
        wgmma("wgmma_e4m3_e5m2", "f32", "e4m3", "e5m2", few),
        wgmma("wgmma_e5m2", "f16", "e5m2", "e5m2", few),
    ]
    rough = [few[0], few[1], few[3]]
    for a in ("f16", "bf16", "tf32", "e4m3"):
        cases.append(wgmma(f"wgmma_{a}_rough", "f32", a, a, rough, "rough"))
        cases.append(wgmma(f"wgmma_{a}_wide", "f32", a, a, rough, "wide"))
    for a, b, accumulator in (
        ("f16", "f16", "f32"),
        ("f16", "f16", "f16"),
        ("bf16", "bf16", "f32"),
        ("tf32", "tf32", "f32"),
        ("e4m3", "e4m3", "f32"),
        ("e4m3", "e4m3", "f16"),
        ("e5m2", "e5m2", "f32"),
        ("e5m2", "e4m3", "f32"),
    ):
        for kind in ("signed", "any"):
            cases.append(wgmma(f"wgmma_{a}_{b}_{accumulator}_{kind}", accumulator, a, b, rough[1:], kind))
    return cases


def cases() -> list[Case]:
    return [
        matrices(),
        mma("mma_whole"),
        mma("mma_rough", "rough"),
        mma("mma_wide", "wide"),
        mma("mma_signed", "signed"),
        mma("mma_any", "any"),
        *_refused_mma(),
        *wgmma_cases(),
    ]
