"""What threads say to each other: shuffles, votes, matches, redux, elect, barriers, mbarrier, clusters, atomics."""

from __future__ import annotations

import numpy as np

from hopper.case import Case, Row, Writer, module, random_words


def warps(name: str, partial: bool) -> Case:
    """Warp-wide instructions by all lanes, or by the lanes of a mask while the others are elsewhere."""
    writer = Writer(name, 128)
    few = random_words(name, 128) % 5
    writer.load("%a", "u32", random_words(name + "a", 128))
    writer.load("%b", "u32", few)
    writer.load("%c", "u32", random_words(name + "c", 128) % 48)
    writer.load("%d", "u64", (few.astype(np.uint64) << np.uint64(33)) | np.uint64(7))
    mask = 0x0F7E3C1D if partial else 0xFFFFFFFF
    if partial:
        writer.lines.append(
            f".reg .b32 %m; mov.u32 %m, {mask:#x}; shr.u32 %m, %m, %lane; and.b32 %m, %m, 1; setp.eq.u32 %p0, %m, 0;"
        )
        writer.lines.append("@%p0 bra AWAY;")
    take = lambda text: f".reg .pred %q; {text}; selp.b32 %y, 0x80000000, 0, %q; xor.b32 %z, %z, %y"  # noqa: E731
    flag = lambda text: f".reg .pred %q, %s; setp.gt.u32 %s, %b, 1; {text}; selp.b32 %z, 1, 0, %q"  # noqa: E731
    for mode, clamps in (
        ("up", (0x0000, 0x1800, 0x1000)),
        ("down", (0x1F, 0x181F, 0x100F)),
        ("bfly", (0x1F, 0x1C1F, 0x1007)),
        ("idx", (0x1F, 0x181F, 0x1C07)),
    ):
        for clamp in clamps:
            if partial and mode == "idx":  # every source is a lane of the mask
                writer.run(f"and.b32 %y, %c, 2; shfl.sync.idx.b32 %z, %a, %y, {clamp & 0x1F:#x}, {mask:#x}")
            elif not partial:
                for source in (3, "%c"):
                    writer.run(take(f"shfl.sync.{mode}.b32 %z|%q, %a, {source}, {clamp:#x}, {mask:#x}"))
    for mode in ("all", "any", "uni"):
        writer.run(flag(f"vote.sync.{mode}.pred %q, %s, {mask:#x}"))
    writer.run(f".reg .pred %s; setp.gt.u32 %s, %b, 1; vote.sync.ballot.b32 %z, %s, {mask:#x}")
    writer.run(f".reg .pred %s; setp.gt.u32 %s, %b, 1; vote.sync.ballot.b32 %z, !%s, {mask:#x}")
    writer.run(f"match.any.sync.b32 %z, %b, {mask:#x}")
    writer.run(f"match.any.sync.b64 %z, %d, {mask:#x}")
    writer.run(take(f"shr.u32 %y, %gid, 6; match.all.sync.b32 %z|%q, %y, {mask:#x}"))
    writer.run(take(f"match.all.sync.b32 %z|%q, %b, {mask:#x}"))
    for operation in ("add", "min", "max"):
        for kind in ("u32", "s32"):
            writer.run(f"redux.sync.{operation}.{kind} %z, %a, {mask:#x}")
    for operation in ("and", "or", "xor"):
        writer.run(f"redux.sync.{operation}.b32 %z, %a, {mask:#x}")
    writer.run(take(f"elect.sync %z|%q, {mask:#x}"))
    if partial:
        writer.lines.append("AWAY: bar.warp.sync -1;")
    return writer.case(128)


def barriers() -> Case:
    """bar.red, bar.arrive and barrier with counts and ids; what a barrier orders is seen in shared memory."""
    writer = Writer("barriers", 256)
    writer.load("%a", "u32", random_words("barriers", 256) % 3)
    writer.lines.append(
        ".shared .align 16 .b8 buffer[1024]; .reg .b32 %base, %mine; mov.u32 %base, buffer; "
        "mad.lo.u32 %mine, %me, 4, %base;"
    )
    flag = ".reg .pred %s, %q; setp.gt.u32 %s, %a, {}; "
    writer.run(flag.format(0) + "barrier.cta.red.popc.aligned.u32 %z, 1, %s")
    writer.run(flag.format(0) + "barrier.cta.red.and.aligned.pred %q, 1, %s; selp.b32 %z, 1, 0, %q")
    writer.run(flag.format(1) + "bar.red.or.pred %q, 2, 256, !%s; selp.b32 %z, 1, 0, %q")
    writer.run(
        "st.shared.u32 [%mine], %a; bar.sync 0; xor.b32 %y, %me, 77; mad.lo.u32 %y, %y, 4, %base; "
        "ld.shared.u32 %z, [%y]; bar.sync 0"
    )
    # The upper half produces, the lower half reads it: arrive by 128 threads, sync by 128.
    writer.run(
        ".reg .pred %s; setp.ge.u32 %s, %me, 128; mov.b32 %z, 0; @!%s bra LOWER; mad.lo.u32 %y, %a, 7, %me; "
        "st.shared.u32 [%mine], %y;"
        " barrier.cta.arrive.aligned 3, 256; bra DONE; LOWER: barrier.cta.sync.aligned 3, 256; "
        "ld.shared.u32 %z, [%mine + 512]; DONE: bar.sync 0"
    )
    writer.run(
        ".reg .pred %s; setp.lt.u32 %s, %me, 64; mov.b32 %z, 5; @!%s bra PAST; "
        "barrier.cta.red.popc.aligned.u32 %z, 4, 64, %s; PAST: bar.sync 0"
    )
    return writer.case(256)


def mbarriers() -> Case:
    """One thread asks a barrier after each change of it: phases, parity, expect_tx, complete_tx, drop, noComplete."""
    asks = "0 1".split()
    steps = [
        "mbarrier.init.shared::cta.b64 [%bar], 3",
        "mbarrier.arrive.shared::cta.b64 %s, [%bar]",
        "mbarrier.arrive.shared::cta.b64 %u, [%bar], 1",
        "mbarrier.arrive.shared::cta.b64 %u, [%bar]",
        "mbarrier.arrive.expect_tx.shared::cta.b64 %u, [%bar], 48",
        "mbarrier.arrive.shared::cta.b64 %u, [%bar], 2",
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%bar], 16",
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%bar], 32",
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%bar], 8",
        "mbarrier.arrive_drop.shared::cta.b64 %s, [%bar]",
        "mbarrier.arrive.noComplete.shared::cta.b64 %u, [%bar], 1",
        "mbarrier.arrive.shared::cta.b64 %u, [%bar]",
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%bar], 8",
        "mbarrier.arrive.shared::cta.b64 %u, [%bar], 2",
        "mbarrier.arrive_drop.expect_tx.shared::cta.b64 %u, [%bar], 0",
        "mbarrier.arrive.shared::cta.b64 %u, [%bar]",
    ]
    lines = [
        ".shared .align 8 .b8 barrier[8]; .reg .b32 %bar, %r<4>; .reg .b64 %s, %u; mov.u32 %bar, barrier; "
        "ld.param.u64 %out, [p0]; mov.b64 %s, 0;"
    ]
    rows, at = [], 0
    for step, text in enumerate(steps):
        lines.append(text + ";")
        for ask in asks:
            lines.append(
                f"mbarrier.test_wait.parity.shared::cta.b64 %p1, [%bar], {ask}; selp.b32 %r0, 1, 0, %p1; "
                f"st.global.u32 [%out + {at}], %r0;"
            )
            at += 4
        if step == 1:
            lines.append("mbarrier.pending_count.b64 %r0, %s;")
        elif step == 9:
            lines.append("mbarrier.test_wait.shared::cta.b64 %p1, [%bar], %s; selp.b32 %r0, 3, 2, %p1;")
        elif "%u," in text:
            lines.append("mbarrier.pending_count.b64 %r0, %u;")
        else:
            lines.append("mov.u32 %r0, 99;")
        lines += [f"st.global.u32 [%out + {at}], %r0;"]
        at += 4
        rows.append(Row(text, at - 12, 3))
    return Case("mbarriers", module("\n".join(lines), 1), (), np.zeros(at, np.uint8), tuple(rows), block=1)


def cluster() -> Case:
    """Two CTAs: remote arrive by mapa, stores and atomics in the other's shared memory, st.async, special registers."""
    lines = """
    .shared .align 16 .b8 buffer[1024]; .shared .align 8 .b8 barrier[16];
    .reg .b32 %base, %bar, %mine, %peer, %far, %farbar, %r<8>; .reg .pred %first; .reg .b64 %generic, %wide;
    mov.u32 %base, buffer; mov.u32 %bar, barrier; setp.eq.u32 %first, %me, 0; mad.lo.u32 %mine, %me, 4, %base;
    @%first mbarrier.init.shared::cta.b64 [%bar], 64;
    @%first mbarrier.init.shared::cta.b64 [%bar + 8], 1;
    fence.mbarrier_init.release.cluster;
    st.shared.u32 [%mine + 256], %me; st.shared.u32 [%mine + 512], %me;
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    mov.u32 %r0, %cluster_ctarank; xor.b32 %peer, %r0, 1;
    mapa.shared::cluster.u32 %far, %mine, %peer; mapa.shared::cluster.u32 %farbar, %bar, %peer;
    mad.lo.u32 %r1, %r0, 1000, %me;
    st.shared::cluster.u32 [%far], %r1;
    atom.shared::cluster.add.u32 %r2, [%far + 256], 100;
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%farbar];
    @%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar + 8], 256;
    add.u32 %r3, %r1, 7; add.u32 %r7, %farbar, 8;
    st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%far + 512], %r3, [%r7];
    ONE: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%bar], 0; @!%p1 bra ONE;
    TWO: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%bar + 8], 0; @!%p1 bra TWO;
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    ld.param.u64 %out, [p0]; mad.lo.u32 %r4, %r0, 64, %me; mad.wide.u32 %out, %r4, 4, %out;
    ld.shared.u32 %r5, [%mine]; st.global.u32 [%out], %r5;
    ld.shared.u32 %r5, [%mine + 256]; st.global.u32 [%out + 512], %r5;
    ld.shared.u32 %r5, [%mine + 512]; st.global.u32 [%out + 1024], %r5;
    st.global.u32 [%out + 1536], %r2;
    cvt.u64.u32 %wide, %mine; cvta.shared.u64 %generic, %wide; mapa.u64 %generic, %generic, %peer;
    getctarank.u64 %r5, %generic; st.global.u32 [%out + 2048], %r5;
    mov.u32 %r5, %cluster_nctarank; mov.u32 %r6, %clusterid.x; mad.lo.u32 %r5, %r5, 16, %r6;
    mov.u32 %r6, %cluster_ctaid.x; mad.lo.u32 %r5, %r5, 16, %r6;
    mov.u32 %r6, %nclusterid.x; mad.lo.u32 %r5, %r5, 16, %r6; st.global.u32 [%out + 2560], %r5;
    ld.shared::cluster.u32 %r5, [%far]; st.global.u32 [%out + 3072], %r5;
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    """
    names = (
        "st.shared::cluster",
        "atom.shared::cluster",
        "st.async",
        "atom returns",
        "mapa and getctarank",
        "special registers",
        "ld.shared::cluster",
    )
    rows = tuple(Row(n, 512 * i, 128) for i, n in enumerate(names))
    return Case("cluster", module(lines, 1), (), np.zeros(512 * len(names), np.uint8), rows, 2, 64, 2)


def atomics() -> Case:
    """Each thread has a word of its own: what atom returns and leaves; then sums that all threads make in one word."""
    writer = Writer("atomics", 256)
    writer.load("%a", "u32", random_words("atomics a", 256))
    writer.load("%b", "u32", random_words("atomics b", 256))
    writer.load("%f", "u32", ((random_words("atomics f", 256) % 100).astype(np.float32) - 50).view(np.uint32))
    writer.load("%h", "u32", ((random_words("atomics h", 512) % 64).astype(np.float16)).view(np.uint32))
    writer.load(
        "%g",
        "u32",
        ((random_words("atomics g", 512) % 16).astype(np.float32).view(np.uint32) >> 16)
        .astype(np.uint16)
        .view(np.uint32),
    )
    writer.load("%l", "u64", random_words("atomics l", 256, "uint64"))
    writer.lines.append(
        ".shared .align 16 .b8 buffer[4096]; .reg .b32 %own, %base; mov.u32 %base, buffer; "
        "mad.lo.u32 %own, %me, 16, %base;"
    )
    writer.lines.append(
        ".reg .b64 %field; .reg .b64 %gown; ld.param.u64 %field, [p6]; mad.wide.u32 %gown, %me, 16, %field;"
    )
    writer.inputs.append(np.zeros(4096, np.uint8))
    begin = {"u32": "%b", "s32": "%b", "b32": "%b", "f32": "%f", "f16x2": "%h", "bf16x2": "%g"}
    for where, own in (("shared", "%own"), ("global", "%gown")):
        operations = [f"{o}.{t}" for o in ("add", "min", "max") for t in ("u32", "s32")] + ["inc.u32", "dec.u32"]
        operations += ["and.b32", "or.b32", "xor.b32", "exch.b32", "add.f32", "add.noftz.f16x2", "add.noftz.bf16x2"]
        for operation in operations:
            kind = operation.split(".")[-1]
            operand = {"f32": "%f", "f16x2": "%h", "bf16x2": "%g"}.get(kind, "%a")
            run = (
                f"st.{where}.u32 [{own}], {begin[kind]}; atom.{where}.{operation} %y, [{own}], {operand}; "
                f"ld.{where}.u32 %z, [{own}]"
            )
            writer.run(run)
            writer.run(run + "; mov.b32 %z, %y")
        for wanted in ("%b", "%a"):
            writer.run(
                f"st.{where}.u32 [{own}], %b; atom.{where}.cas.b32 %y, [{own}], {wanted}, 77; "
                f"ld.{where}.u32 %z, [{own}]; add.u32 %z, %z, %y"
            )
        for operation in ("add.u64", "max.s64", "min.u64", "exch.b64", "and.b64"):
            writer.run(
                f"st.{where}.u64 [{own}], %l; not.b64 %y, %l; shr.u64 %y, %y, 3; "
                f"atom.{where}.{operation} %y, [{own}], %y;"
                f" ld.{where}.u64 %z, [{own}]; xor.b64 %z, %z, %y",
                "u64",
            )
        one = {"shared": "%base", "global": "%field"}[where]
        for operation, operand in (
            ("add.u32", "%a"),
            ("add.f32", "%f"),
            ("max.s32", "%a"),
            ("xor.b32", "%a"),
            ("inc.u32", "100"),
            ("min.u32", "%a"),
        ):
            zero = f"bar.sync 0; mov.b32 %y, 0; st.{where}.u32 [{one}], %y; bar.sync 0; "
            writer.run(
                zero + f"red.{where}.{operation} [{one}], {operand}; bar.sync 0; ld.{where}.u32 %z, [{one}]; bar.sync 0"
            )
    for operation, kind, operand in (
        ("v2.f32.add", "f32", "{%f, %f}"),
        ("v4.f32.add", "f32", "{%f, %f, %f, %f}"),
        ("v2.f16x2.add.noftz", "f16x2", "{%h, %h}"),
        ("v4.bf16x2.add.noftz", "bf16x2", "{%g, %g, %g, %g}"),
    ):
        start = begin[kind]
        writer.run(
            f"st.global.v4.u32 [%gown], {{{start}, {start}, {start}, {start}}}; "
            f"red.global.{_vector(operation)} [%gown], {operand};"
            " ld.global.u32 %z, [%gown]; ld.global.u32 %y, [%gown + 12]; mad.lo.u32 %z, %y, 7, %z"
        )
    return writer.case(256)


def _vector(operation: str) -> str:
    """red puts the operation first, then the vector, then the type."""
    vector, kind, add, *rest = operation.split(".")
    return ".".join([add, *rest, vector, kind])


def memory() -> Case:
    """Loads and stores of every width and vector, with sign extension, in shared and local memory."""
    writer = Writer("memory", 128)
    writer.load("%l", "u64", random_words("memory", 128, "uint64"))
    writer.lines.append(
        ".shared .align 16 .b8 buffer[2048]; .local .align 16 .b8 stack[16]; .reg .b32 %own, %mine; "
        "mov.u32 %own, buffer;"
        " mad.lo.u32 %own, %me, 16, %own; mov.u32 %mine, stack;"
    )
    for where, own in (("shared", "%own"), ("local", "%mine")):
        put = f"mov.b64 {{%y, %z}}, %l; st.{where}.v4.u32 [{own}], {{%y, %z, %z, %y}}; "
        for load in ("u8", "s8", "u16", "s16", "b32"):
            writer.run(put + f"ld.{where}.{load} %z, [{own} + 4]")
        writer.run(
            put + f".reg .b16 %w<4>; ld.{where}.v4.u16 {{%w0, %w1, %w2, %w3}}, [{own} + 8]; mov.b32 %z, {{%w3, %w1}}"
        )
        writer.run(
            put + f".reg .b16 %w<4>; ld.{where}.v4.s8 {{%w0, %w1, %w2, %w3}}, [{own} + 4]; mov.b32 %z, {{%w3, %w1}}"
        )
        writer.run(put + f"st.{where}.u8 [{own} + 5], %z; ld.{where}.u32 %z, [{own} + 4]")
        writer.run(put + f"st.{where}.v2.u8 [{own} + 6], {{%z, %y}}; ld.{where}.u32 %z, [{own} + 4]")
        writer.run(
            put + f"st.{where}.v2.u16 [{own} + 8], {{%z, %y}}; ld.{where}.v2.u32 {{%y, %z}}, [{own} + 8]; "
            f"add.u32 %z, %z, %y"
        )
    return writer.case(128)


def cases() -> list[Case]:
    return [
        warps("warps_all", False),
        warps("warps_partial", True),
        barriers(),
        mbarriers(),
        cluster(),
        atomics(),
        memory(),
    ]
