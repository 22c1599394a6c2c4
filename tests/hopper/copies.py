"""Asynchronous copies: cp.async, bulk copies, tensor maps with every swizzle and tails, multicast, reductions."""

from __future__ import annotations

import numpy as np

from hopper.case import Case, Row, TensorMap, module, random_bytes, random_words

ELEMENT_BYTES = {"u8": 1, "bf16": 2, "f16": 2, "u32": 4, "s32": 4, "f32": 4, "u64": 8, "s64": 8, "f64": 8}
THREADS = 128
# Bits of a random code that stay, and bits that are set: floats of both signs over few exponents, so that sums cancel.
_MODERATE = {
    "f16": (0x8FFF, 0x3000),
    "bf16": (0x81FF, 0x3E00),
    "f32": (0x81FFFFFF, 0x3E000000),
    "f64": (0x803FFFFFFFFFFFFF, 0x3FC0000000000000),
}
_TINY = {"f16": (0x87FF, 0), "bf16": (0x80FF, 0), "f32": (0x80FFFFFF, 0)}  # subnormals, and as many just above them

_WAIT = """WAIT_{0}:
mbarrier.try_wait.parity.shared::cta.b64 %p1, [%bar], {1};
@!%p1 bra WAIT_{0};"""


def _prologue(shared: int, parameters: int, maps: int) -> list[str]:
    return [
        f".shared .align 1024 .b8 buffer[{shared}]; .shared .align 8 .b8 barrier[16];",
        ".reg .b32 %base, %bar, %mine, %r<8>; .reg .b64 %dump, %map<3>; .reg .pred %first;",
        "mov.u32 %base, buffer; mov.u32 %bar, barrier; mad.lo.u32 %mine, %me, 4, %base; setp.eq.u32 %first, %me, 0;",
        *(f"ld.param.u64 %in{i}, [p{i}];" for i in range(parameters)),
        f"mov.u64 %out, %in{parameters - 1}; mad.wide.u32 %dump, %me, 4, %out;",
        *(f"mov.b64 %map{i}, m{i}; cvta.param.u64 %map{i}, %map{i};" for i in range(maps)),
        "@%first mbarrier.init.shared::cta.b64 [%bar], 1;",
        "fence.mbarrier_init.release.cluster; bar.sync 0;",
    ]


def _first(label: str, *lines: str) -> list[str]:
    """Lines that the first thread alone runs."""
    return [f"@!%first bra {label};", *lines, f"{label}:"]


def _words(text: str, size: int, start: int = 0) -> list[str]:
    """`text` for each word of `size` bytes: {0} is its offset for this thread; tails are guarded."""
    lines = []
    for offset in range(0, size, 4 * THREADS):
        guard = ""
        if size - offset < 4 * THREADS:
            lines.append(f"setp.lt.u32 %p2, %me, {(size - offset) // 4};")
            guard = "@%p2 "
        lines += [guard + part.strip() + ";" for part in text.format(offset, offset + start).split(";")]
    return lines


def _numbers(name: str, element: str, size: int, tiny: bool = False) -> np.ndarray:
    """uint8 [size] of an element type: integers of all bits, finite floats."""
    width = ELEMENT_BYTES[element]
    words = random_words(name, -(-size // width), f"uint{8 * width}")
    kept, fixed = (_TINY if tiny else _MODERATE).get(element, (~words.dtype.type(0), 0))
    return (words & words.dtype.type(kept) | words.dtype.type(fixed)).view(np.uint8)[:size].copy()


def _pitches(element: str, dims: tuple) -> list[int]:
    """Bytes from one element to the next along each dimension but the first, then of the whole tensor."""
    pitches, pitch = [], ELEMENT_BYTES[element]
    for d in dims:
        pitch = -(-pitch * d // 16) * 16
        pitches.append(pitch)
    return pitches


def tensor_loads(name: str, element: str, dims: tuple, box: tuple, swizzle: int, places: list[tuple]) -> Case:
    """Boxes at coordinates, some of them outside; shared memory as it then is."""
    *pitches, _ = _pitches(element, dims)
    size = ELEMENT_BYTES[element]
    data = random_bytes(name, max((pitches or [size])[-1] * dims[-1], 16))
    data = np.concatenate([data, np.zeros(-len(data) % 16, np.uint8)])
    box_bytes = int(np.prod(box)) * size
    rank = len(dims)
    lines = _prologue(box_bytes, 2, 1)
    rows = []
    for i, place in enumerate(places):
        where = ", ".join(f"%r{d}" for d in range(rank))
        lines += [f"mov.b32 %r{d}, {c};" for d, c in enumerate(place)]
        lines += [
            *_first(
                f"LOADED_{i}",
                f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {box_bytes};",
                f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                f"[%base], [%map0, {{{where}}}], [%bar];",
            ),
            _WAIT.format(i, i & 1),
            *_words("ld.shared.u32 %r7, [%mine + {0}]; st.global.u32 [%dump + {1}], %r7", box_bytes, i * box_bytes),
            "bar.sync 0;",
        ]
        rows.append(Row(f"{element} {dims} box {box} swizzle {swizzle} at {place}", i * box_bytes, box_bytes // 4))
    spec = TensorMap(0, element, dims, tuple(pitches), box, swizzle)
    output = np.zeros(len(places) * box_bytes, np.uint8)
    text = module("\n".join(lines), 2, 1)
    return Case(name, text, (data,), output, tuple(rows), block=THREADS, maps=(spec,))


def tensor_stores(
    name: str, element: str, dims: tuple, box: tuple, swizzle: int, places: list[tuple], operations: tuple = ("",),
    tiny: bool = False,
) -> Case:  # fmt: skip
    """Boxes from shared memory to coordinates, one after another, stored or combined; the tensor as it then is.

    Each box has its own bytes of shared memory. `operations` go round over the places.
    """
    *pitches, size = _pitches(element, dims)
    box_bytes = int(np.prod(box)) * ELEMENT_BYTES[element]
    slot = -(-box_bytes // 1024) * 1024  # where a swizzle begins anew
    data = _numbers(name, element, slot * len(places), tiny)
    lines = _prologue(slot * len(places), 2, 1)
    lines += [
        "mad.wide.u32 %in0, %me, 4, %in0;",
        *_words("ld.global.u32 %r7, [%in0 + {0}]; st.shared.u32 [%mine + {0}], %r7", slot * len(places)),
        "fence.proxy.async.shared::cta; bar.sync 0; @!%first bra STORED;",
    ]
    for i, place in enumerate(places):
        operation = operations[i % len(operations)]
        where = ", ".join(f"%r{d}" for d in range(len(dims)))
        opcode = f"cp{'.reduce' if operation else ''}.async.bulk.tensor.{len(dims)}d.global.shared::cta"
        lines += [
            *(f"mov.b32 %r{d}, {c};" for d, c in enumerate(place)),
            f"add.u32 %r7, %base, {i * slot};",
            f"{opcode}{'.' if operation else ''}{operation}.tile.bulk_group [%map0, {{{where}}}], [%r7];",
            "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
        ]
    lines.append("STORED:")
    spec = TensorMap(1, element, dims, tuple(pitches), box, swizzle)
    output = _numbers(name + " before", element, size + 256, tiny)
    row = Row(f"{element} {dims} box {box} swizzle {swizzle} {operations} at {places}", 0, len(output) // 4)
    return Case(name, module("\n".join(lines), 2, 1), (data,), output, (row,), block=THREADS, maps=(spec,))


def bulk_stores() -> Case:
    """Bulk copies without a tensor map from shared to global memory: as they are, and combined with what is there."""
    name, size = "bulk_stores", 512
    forms = ["u32", "f32.add", "f64.add", "u32.add", "u32.inc", "u32.dec", "u64.min", "u64.max", "s64.min", "s64.max",
             "b64.and", "b64.or", "b64.xor"]  # fmt: skip
    forms += [f"{t}.{o}" for t in ("f16", "bf16") for o in ("add.noftz", "min", "max")]
    kinds = [form.partition(".")[0].replace("b64", "u64") for form in forms]
    data = np.concatenate([_numbers(f"{name} {form}", kind, size) for form, kind in zip(forms, kinds, strict=True)])
    output = [_numbers(f"{name} {form} before", kind, size) for form, kind in zip(forms, kinds, strict=True)]
    lines = _prologue(len(data), 2, 0)
    lines += [
        "mad.wide.u32 %in0, %me, 4, %in0;",
        *_words("ld.global.u32 %r7, [%in0 + {0}]; st.shared.u32 [%mine + {0}], %r7", len(data)),
        "fence.proxy.async.shared::cta; bar.sync 0; @!%first bra STORED;",
    ]
    for i, form in enumerate(forms):
        kind, _, operation = form.partition(".")
        opcode = f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.{kind}"
        opcode = opcode if operation else "cp.async.bulk.global.shared::cta.bulk_group"
        lines.append(f"{opcode} [%out + {i * size}], [%base + {i * size}], {size};")
    lines.append("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; STORED:")
    rows = tuple(Row(f"bulk {form}", i * size, size // 4) for i, form in enumerate(forms))
    return Case(name, module("\n".join(lines), 2), (data,), np.concatenate(output), rows, block=THREADS)


def multicast() -> Case:
    """Two CTAs load one half each into both, as rows of 64 bytes; each waits for both halves."""
    half, name = 32 * 64, "multicast"
    data = random_bytes(name, 8192)
    lines = _prologue(2 * half, 2, 1)
    lines += [
        "mov.u32 %r0, %cluster_ctarank;",
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
        f"@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {2 * half};",
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
        f"mad.lo.u32 %r1, %r0, {half}, %base; mad.lo.u32 %r2, %r0, 48, 0; mov.b32 %r3, 8; mov.b32 %r4, 3;",
        ".reg .b16 %mask; cvt.u16.u32 %mask, %r4;",
        *_first(
            "LOADED",
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
            " [%r1], [%map0, {%r3, %r2}], [%bar], %mask;",
        ),
        _WAIT.format(0, 0),
        f"mad.wide.u32 %dump, %r0, {2 * half}, %dump;",
        *_words("ld.shared.u32 %r7, [%mine + {0}]; st.global.u32 [%dump + {0}], %r7", 2 * half),
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
    ]
    spec = TensorMap(0, "f16", (60, 64), (128,), (32, 32), 64)
    rows = (Row("CTA 0", 0, half // 2), Row("CTA 1", 2 * half, half // 2))
    return Case(
        name, module("\n".join(lines), 2, 1), (data,), np.zeros(4 * half, np.uint8), rows, 2, THREADS, 2, maps=(spec,)
    )


def bulk() -> Case:
    """Bulk copies without a tensor map: in, out, to the other CTA of a cluster, and reductions."""
    name, size = "bulk", 1024
    data = random_bytes(name, 2 * size)
    sections = ["s32.add", "u32.min", "s32.max", "u32.max", "b32.and", "b32.or", "b32.xor", "u64.add"]
    output = random_bytes(name + " before", (2 + len(sections)) * 2 * size)
    lines = _prologue(2 * size, 2, 0)
    lines += [
        "mov.u32 %r0, %cluster_ctarank;",
        f"mad.wide.u32 %in0, %r0, {size}, %in0; mad.wide.u32 %out, %r0, {size * (2 + len(sections))}, %out;",
        f"mad.wide.u32 %dump, %r0, {size * (2 + len(sections))}, %dump;",
        f"@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {size};",
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
        f"xor.b32 %r1, %r0, 1; add.u32 %r2, %base, {size}; mapa.shared::cluster.u32 %r3, %r2, %r1; "
        f"mapa.shared::cluster.u32 %r4, %bar, %r1;",
        # The copy to the peer starts from what the first has brought.
        ".shared .align 8 .b8 second[8]; .reg .b32 %two; mov.u32 %two, second; "
        "@%first mbarrier.init.shared::cta.b64 [%two], 1;",
        "bar.sync 0;",
        f"@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%two], {size};",
        *_first(
            "LOADED",
            f"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%base], [%in0], {size}, [%two];",
        ),
        _WAIT.replace("%bar", "%two").format(1, 0),
        *_first(
            "SENT",
            f"cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r3], [%base], {size}, [%r4];",
        ),
        _WAIT.format(0, 0),
        *_words("ld.shared.u32 %r7, [%mine + {0}]; st.global.u32 [%dump + {0}], %r7", 2 * size),
        "fence.proxy.async; bar.sync 0;",
    ]
    lines.append("@!%first bra REDUCED;")
    for i, section in enumerate(sections):
        kind, operation = section.split(".")
        at = (2 + i) * size
        lines.append(
            f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.{kind} [%out + {at}], [%base], {size};"
        )
    lines += [
        "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; REDUCED:",
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
    ]
    labels = ["in", "from the peer", *sections]
    rows = tuple(
        Row(f"CTA {cta} {label}", (cta * len(labels) + i) * size, size // 4)
        for cta in (0, 1)
        for i, label in enumerate(labels)
    )
    return Case(name, module("\n".join(lines), 2), (data,), output, rows, 2, THREADS, 2)


def cp_async() -> Case:
    """cp.async of 4, 8 and 16 bytes, whole and with a source cut short, which fills with zeros."""
    name = "cp_async"
    data = random_bytes(name, 16 * 1024)
    forms = [
        ("ca", 4, ""),
        ("ca", 8, ""),
        ("ca", 16, ""),
        ("cg", 16, ""),
        ("ca", 4, "%r1"),
        ("ca", 8, "%r2"),
        ("ca", 16, "%r3"),
        ("cg", 16, "%r3"),
    ]
    stride = 16 * THREADS
    lines = _prologue(stride * len(forms), 2, 0)
    lines += [
        "rem.u32 %r1, %me, 5; rem.u32 %r2, %me, 9; rem.u32 %r3, %me, 17;",
        "mov.u32 %r4, 0;",
        *_words("st.shared.u32 [%mine + {0}], %r4", stride * len(forms)),
        "bar.sync 0;",
    ]
    for i, (cache, size, count) in enumerate(forms):
        lines.append(f"mad.wide.u32 %at, %me, {size}, %in0; mad.lo.u32 %r5, %me, {size}, %base;")
        extra = f", {count}" if count else ""
        lines.append(
            f"cp.async.{cache}.shared.global [%r5 + {i * stride}], [%at + {i * 64}], {size}{extra}; "
            f"cp.async.commit_group;"
        )
    lines += [
        "cp.async.wait_group 0; bar.sync 0;",
        *_words("ld.shared.u32 %r7, [%mine + {0}]; st.global.u32 [%dump + {0}], %r7", stride * len(forms)),
    ]
    rows = tuple(Row(f"cp.async.{c} {s} {n}", i * stride, stride // 4) for i, (c, s, n) in enumerate(forms))
    return Case(
        name, module("\n".join(lines), 2), (data,), np.zeros(stride * len(forms), np.uint8), rows, block=THREADS
    )


def cases() -> list[Case]:
    flat = [(0, 0), (24, 3), (-8, -2), (72, 60), (200, 0), (0, -40)]
    deep = [(0, 0, 0), (40, 5, 2), (-16, -1, -1), (8, 9, 3)]
    # A box starts at a multiple of 16 bytes: the GPU takes any other for an illegal instruction.
    flat_bytes = [(0, 0), (32, 3), (-16, -2), (80, 60), (208, 0), (0, -40)]
    deep_bytes = [(0, 0, 0), (48, 5, 2), (-16, -1, -1), (16, 9, 3)]
    return [
        tensor_loads("load_1d_u8", "u8", (1000,), (256,), 0, [(0,), (-16,), (32,), (912,), (2000,), (-304,)]),
        tensor_loads("load_2d_none", "f16", (100, 70), (40, 16), 0, flat),
        tensor_loads("load_2d_32", "u8", (100, 70), (32, 24), 32, flat_bytes),
        tensor_loads("load_2d_64", "bf16", (100, 70), (32, 24), 64, flat),
        tensor_loads("load_2d_128", "f16", (100, 70), (64, 24), 128, flat),
        tensor_loads("load_2d_128_f32", "f32", (100, 70), (32, 9), 128, flat),
        tensor_loads("load_3d_none", "u32", (50, 11, 5), (12, 4, 3), 0, deep),
        tensor_loads("load_3d_128", "u8", (50, 11, 5), (128, 4, 3), 128, deep_bytes),
        tensor_loads(
            "load_4d_64", "u32", (20, 5, 4, 3), (16, 3, 2, 2), 64, [(0, 0, 0, 0), (8, 3, 3, 2), (-4, -1, -1, -1)]
        ),
        tensor_loads(
            "load_5d_32",
            "f16",
            (20, 5, 4, 3, 3),
            (16, 3, 2, 2, 2),
            32,
            [(0, 0, 0, 0, 0), (8, 3, 3, 2, 2), (-8, -1, -1, -1, 1)],
        ),
        *_stores(),
        multicast(),
        bulk(),
        bulk_stores(),
        cp_async(),
    ]


def _stores() -> list[Case]:
    """Stores and reductions through tensor maps, up to boxes that end beyond the tensor."""
    flat = [(0, 0), (64, 3), (64, 30), (0, 26)]
    pairs = [(0, 0), (8, 8), (0, 16), (8, 24), (8, 34), (64, 0), (72, 8), (80, 16), (88, 24), (96, 34)]
    near = [(x // 2, y) for x, y in pairs]
    integer = ("add", "min", "max", "and", "or", "xor", "inc", "dec", "add", "add")
    ordered = ("add", "min", "max")
    cases = [
        tensor_stores("store_1d_u8", "u8", (1000,), (256,), 0, [(0,), (256,), (512,), (784,)]),
        tensor_stores("store_2d_none", "f16", (100, 38), (40, 16), 0, [(0, 0), (40, 16), (80, 17), (0, 30), (96, 34)]),
        tensor_stores("store_2d_32", "u8", (100, 38), (32, 24), 32, [(0, 0), (32, 3), (96, 0), (80, 30)]),
        tensor_stores("store_2d_64", "bf16", (100, 38), (32, 24), 64, flat),
        tensor_stores("store_2d_128", "f16", (100, 38), (64, 24), 128, flat),
        tensor_stores("store_2d_128_f32", "f32", (100, 38), (32, 9), 128, [(0, 0), (32, 9), (96, 18), (80, 34)]),
        tensor_stores("store_3d_none", "u32", (50, 11, 5), (12, 4, 3), 0, [(0, 0, 0), (40, 5, 2), (44, 9, 3)]),
        tensor_stores("store_3d_128", "u8", (50, 11, 5), (128, 4, 3), 128, [(0, 0, 0), (48, 5, 2), (16, 9, 3)]),
        tensor_stores("store_4d_64", "u32", (20, 5, 4, 3), (16, 3, 2, 2), 64, [(0, 0, 0, 0), (8, 3, 3, 2)]),
        tensor_stores("store_5d_32", "f16", (20, 5, 4, 3, 3), (16, 3, 2, 2, 2), 32, [(0, 0, 0, 0, 0), (8, 3, 3, 2, 2)]),
        tensor_stores("reduce_u32", "u32", (116, 38), (32, 8), 128, pairs, integer),
        tensor_stores("reduce_s32", "s32", (100, 38), (16, 8), 64, pairs, (*ordered, "and", "or", "xor")),
        tensor_stores("reduce_u64", "u64", (60, 38), (16, 8), 128, near, (*ordered, "and", "or", "xor")),
        tensor_stores("reduce_s64", "s64", (60, 38), (16, 8), 128, near, ("min", "max")),
        tensor_stores("reduce_f32", "f32", (100, 38), (16, 8), 64, pairs, ("add",)),
        tensor_stores("reduce_f16", "f16", (100, 38), (64, 8), 128, pairs, ordered),
        tensor_stores("reduce_bf16", "bf16", (100, 38), (64, 8), 0, pairs, ordered),
        tensor_stores(
            "reduce_3d_f32", "f32", (50, 11, 5), (12, 4, 3), 0, [(0, 0, 0), (40, 5, 2), (44, 9, 3)], ("add",)
        ),
    ]
    # Of these one cannot know beforehand whether a GPU executes them, so each is a kernel of its own.
    asked = [
        ("before_inner", [(-8, 0)]),
        ("before_outer", [(0, -2)]),
        ("before_both", [(-16, -3)]),
        ("beyond_inner", [(104, 0)]),
        ("beyond_outer", [(0, 38)]),
        ("before_all", [(-40, 0)]),
        ("unaligned", [(4, 0)]),
        ("before_unaligned", [(-4, 0)]),
    ]
    cases += [tensor_stores(f"store_{n}", "f16", (100, 38), (40, 16), 0, places) for n, places in asked]
    cases += [
        tensor_stores("reduce_before", "f32", (100, 38), (16, 8), 64, [(-4, -2)], ("add",)),
        tensor_stores("store_3d_before", "u32", (50, 11, 5), (12, 4, 3), 0, [(-4, -1, -1)]),
        tensor_stores("store_128_before", "f16", (100, 38), (64, 24), 128, [(-8, -2)]),
        tensor_loads("load_unaligned", "f16", (100, 38), (40, 16), 0, [(4, 0)]),
        tensor_loads("load_before_unaligned", "f16", (100, 38), (40, 16), 0, [(-4, 0)]),
        tensor_stores("reduce_f32_min", "f32", (100, 38), (16, 8), 64, [(0, 0)], ("min",)),
        tensor_stores("reduce_f32_max", "f32", (100, 38), (16, 8), 64, [(0, 0)], ("max",)),
        *(tensor_stores(f"reduce_{t}_tiny", t, (64, 16), (32, 16), 0, [(0, 0)], ("add",), True) for t in _TINY),
    ]
    return cases
