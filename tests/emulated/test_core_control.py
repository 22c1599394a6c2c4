"""Control flow, warps and barriers of the emulator, under several schedules."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import launch, module

import emulator

SEEDS = pytest.mark.parametrize("seed", range(4))
STORE = """
    ld.param.u64 %out, [p0];
    mad.wide.u32 %out, %tid, 4, %out;
    st.global.u32 [%out], %r0;
"""


def run(body: str, threads: int = 64, **options: object) -> np.ndarray:
    """What %r0 of each thread is after `body`."""
    out = np.full(threads, 0xABABABAB, np.uint32)
    launch(module(body + STORE, shared=options.pop("buffer", 0)), [out], threads, **options)
    return out


@SEEDS
def test_loop_with_a_break(seed: int) -> None:
    """Lanes leave a loop at different times and meet behind it: t = 1 + 2 + ... until it exceeds the lane."""
    body = """
        mov.u32 %r0, 0; mov.u32 %r1, 0;
    LOOP:
        add.u32 %r1, %r1, 1;
        add.u32 %r0, %r0, %r1;
        setp.gt.u32 %p0, %r0, %tid;
        @%p0 bra DONE;
        setp.lt.u32 %p1, %r1, 9;
        @%p1 bra LOOP;
    DONE:
        bar.warp.sync -1;
        vote.sync.ballot.b32 %r2, %p0, -1;
        mad.lo.u32 %r0, %r2, 1000, %r0;"""
    got = run(body, 96, seed=seed)
    totals, exceeded = [], []
    for t in range(96):
        n = next((n for n in range(1, 10) if n * (n + 1) // 2 > t), 9)
        totals.append(n * (n + 1) // 2)
        exceeded.append(totals[-1] > t)
    for t in range(96):
        ballot = sum(1 << lane for lane in range(32) if exceeded[t // 32 * 32 + lane])
        assert got[t] == (ballot * 1000 + totals[t]) % (1 << 32)


@SEEDS
def test_branch_table_and_early_exit(seed: int) -> None:
    """brx.idx sends every lane its way; the lanes that exit are not missed by bar.sync."""
    body = """
        setp.gt.u32 %p0, %tid, 120;
        @%p0 exit;
        rem.u32 %r1, %tid, 3;
    TABLE: .branchtargets A, B, C;
        brx.idx %r1, TABLE;
    A:  mov.u32 %r0, 100; bra JOIN;
    B:  mov.u32 %r0, 200; bra JOIN;
    C:  mov.u32 %r0, 300;
    JOIN:
        bar.sync 0;
        activemask.b32 %r2;
        popc.b32 %r2, %r2;
        add.u32 %r0, %r0, %r2;"""
    got = run(body, 128, seed=seed)
    for t in range(128):
        assert got[t] == (0xABABABAB if t > 120 else 100 * (t % 3 + 1) + (32 if t < 96 else 25))


@SEEDS
def test_threads_of_a_warp_wait_for_each_other(seed: int) -> None:
    """A sync instruction behind a branch waits for the lanes that took the other way, wherever their code lies."""
    body = """
        setp.lt.u32 %p0, %lane, 7;
        @%p0 bra AWAY;
        mov.u32 %r1, 1;
    BACK:
        redux.sync.add.u32 %r0, %r1, -1;
        bra END;
    AWAY:
        mov.u32 %r1, 10;
        bra BACK;
    END:"""
    assert (run(body, 64, seed=seed) == 7 * 10 + 25).all()


def test_shuffles() -> None:
    """idx, up, down and bfly with clamps and segments, as the pseudocode of PTX ISA 9.7.9.6."""
    rng = np.random.default_rng(3)
    for mode in ("idx", "up", "down", "bfly"):
        for b, c in ((3, 0x1F), (5, 0x1807), (1, 0x1C03), (0, 0), (7, 0x181F), (31, 0x1F)):
            values = rng.integers(0, 1 << 32, 32, dtype=np.uint32)
            c_used = c & 0x1F00 if mode == "up" else c  # up clamps at the low end
            body = f"""
                ld.param.u64 %in0, [p1]; mad.wide.u32 %in0, %lane, 4, %in0; ld.global.u32 %r1, [%in0];
                shfl.sync.{mode}.b32 %r0|%p0, %r1, {b}, {c_used}, -1;
                selp.u32 %r3, 1, 0, %p0;
                ld.param.u64 %in1, [p2]; mad.wide.u32 %in1, %lane, 4, %in1; st.global.u32 [%in1], %r3;"""
            out, valid = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
            launch(module(body + STORE, 3), [out, values, valid])
            segment, clamp = c_used >> 8 & 31, c_used & 31
            for lane in range(32):
                top = lane & segment | clamp & ~segment & 31
                bottom = lane & segment
                j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": bottom | b & ~segment & 31}[mode]
                good = j >= top if mode == "up" else j <= top
                j = j if good else lane
                assert out[lane] == values[j] and valid[lane] == good, (mode, b, hex(c_used), lane)


def test_votes_matches_and_reductions() -> None:
    """vote.all/any/uni/ballot, match.any/all, redux and elect over a part of the warp."""
    body = """
        and.b32 %r1, %lane, 3;
        setp.eq.u32 %p0, %r1, 1;
        setp.lt.u32 %p1, %lane, 16;
        mov.u32 %r0, 0;
        @!%p1 bra OTHERS;
        vote.sync.any.pred %p2, %p0, 0xFFFF;
        vote.sync.all.pred %p3, %p0, 0xFFFF;
        vote.sync.uni.pred %p4, %p1, 0xFFFF;
        match.any.sync.b32 %r2, %r1, 0xFFFF;
        match.all.sync.b32 %r3|%p5, %r1, 0xFFFF;
        redux.sync.max.s32 %r4, %r1, 0xFFFF;
        redux.sync.xor.b32 %r5, %lane, 0xFFFF;
        elect.sync %r6|%p6, 0xFFF0;
        selp.u32 %r7, 1, 0, %p2; selp.u32 %r8, 2, 0, %p3; selp.u32 %r9, 4, 0, %p4; selp.u32 %r10, 8, 0, %p5;
        selp.u32 %r11, 16, 0, %p6;
        add.u32 %r0, %r7, %r8; add.u32 %r0, %r0, %r9; add.u32 %r0, %r0, %r10; add.u32 %r0, %r0, %r11;
        shl.b32 %r2, %r2, 8; or.b32 %r0, %r0, %r2;
        shl.b32 %r4, %r4, 5; or.b32 %r0, %r0, %r4;
        setp.ne.u32 %p7, %r5, 0; @%p7 trap;
        setp.ne.u32 %p7, %r6, 4; @%p7 trap;
        setp.ne.u32 %p7, %r3, 0; @%p7 trap;
    OTHERS:"""
    got = run(body, 32)
    for lane in range(16):
        group = sum(1 << other for other in range(16) if other & 3 == lane & 3)
        assert got[lane] == 1 + 4 + (16 if lane == 4 else 0) + (3 << 5) + (group << 8)
    assert (got[16:] == 0).all()


@SEEDS
def test_block_barrier_orders_shared_memory(seed: int) -> None:
    """Every thread reads what a thread of another warp wrote before bar.sync; 3 rounds."""
    body = """
        mov.u32 %r1, buffer; mad.lo.u32 %r2, %tid, 4, %r1; mov.u32 %r0, %tid; mov.u32 %r5, 0;
        add.u32 %r3, %tid, 37; rem.u32 %r3, %r3, 160; mad.lo.u32 %r4, %r3, 4, %r1;
    ROUND:
        st.shared.u32 [%r2], %r0;
        bar.sync 0;
        ld.shared.u32 %r0, [%r4];
        barrier.sync 0;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 3;
        @%p0 bra ROUND;"""
    got = run(body, 160, seed=seed, buffer=1024)
    assert got.tolist() == [(t + 3 * 37) % 160 for t in range(160)]


@SEEDS
def test_named_barriers_pass_a_baton(seed: int) -> None:
    """Producers bar.arrive, consumers bar.sync on the same barrier and count; then the other way round."""
    body = """
        mov.u32 %r1, buffer; mov.u32 %r0, 0;
        and.b32 %r2, %tid, 63; mad.lo.u32 %r3, %r2, 4, %r1;
        mov.u32 %r5, 0;
        setp.lt.u32 %p0, %tid, 64;
        @%p0 bra PRODUCE;
    CONSUME:
        bar.sync 1, 128;
        ld.shared.u32 %r4, [%r3];
        add.u32 %r0, %r0, %r4;
        bar.arrive 2, 128;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p1, %r5, 4;
        @%p1 bra CONSUME;
        bra DONE;
    PRODUCE:
        mad.lo.u32 %r4, %r5, 1000, %r2;
        st.shared.u32 [%r3], %r4;
        bar.arrive 1, 128;
        bar.sync 2, 128;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p1, %r5, 4;
        @%p1 bra PRODUCE;
    DONE:"""
    got = run(body, 128, seed=seed, buffer=256)
    assert got.tolist() == [0] * 64 + [4 * t + 6000 for t in range(64)]


@SEEDS
def test_barrier_reductions(seed: int) -> None:
    body = """
        setp.lt.u32 %p0, %tid, 70;
        barrier.red.popc.u32 %r0, 0, %p0;
        barrier.red.and.pred %p1, 0, %p0;
        barrier.red.or.pred %p2, 3, 96, !%p0;
        @%p1 add.u32 %r0, %r0, 1000;
        @%p2 add.u32 %r0, %r0, 2000;"""
    assert (run(body, 96, seed=seed) == 2070).all()


@SEEDS
def test_spinning_on_memory_does_not_starve(seed: int) -> None:
    """Warp 0 spins, at the lowest address of the code, until warp 3 of the other CTA has written a flag."""
    body = """
        ld.param.u64 %d0, [p1];
        mov.u32 %r1, %ctaid.x;
        setp.eq.u32 %p0, %r1, 1;
        @%p0 bra WRITER;
    SPIN:
        ld.acquire.gpu.global.u32 %r0, [%d0];
        setp.eq.u32 %p1, %r0, 0;
        @%p1 bra SPIN;
        bra DONE;
    WRITER:
        mov.u32 %r0, 5;
        setp.ne.u32 %p2, %tid, 100;
        @%p2 bra DONE;
        st.release.gpu.global.u32 [%d0], 77;
    DONE:
        mad.lo.u32 %tid, %r1, 128, %tid;"""
    out, flag = np.zeros(256, np.uint32), np.zeros(1, np.uint32)
    launch(module(body + STORE, 2), [out, flag], 128, 2, seed=seed)
    assert (out[:128] == 77).all() and (out[128:] == 5).all()


@SEEDS
def test_more_blocks_than_are_resident_at_once(seed: int) -> None:
    """40 CTAs wait for a counter that all of them raise: they all get to run."""
    body = """
        ld.param.u64 %d0, [p1];
        atom.add.global.u32 %r1, [%d0], 1;
    SPIN:
        ld.volatile.global.u32 %r0, [%d0];
        setp.lt.u32 %p1, %r0, 1280;
        @%p1 bra SPIN;
        mov.u32 %r2, %ctaid.x; mad.lo.u32 %tid, %r2, 32, %tid;"""
    out, counter = np.zeros(1280, np.uint32), np.zeros(1, np.uint32)
    launch(module(body + STORE, 2), [out, counter], 32, 40, seed=seed)
    assert (out == 1280).all()


ATOMICS = {
    "add.u32": (np.uint32, lambda old, b: old + b),
    "max.s32": (np.int32, np.maximum),
    "min.u32": (np.uint32, np.minimum),
    "and.b32": (np.uint32, lambda old, b: old & b),
    "xor.b32": (np.uint32, lambda old, b: old ^ b),
    "add.u64": (np.uint64, lambda old, b: old + b),
    "inc.u32": (np.uint32, lambda old, b: np.where(old >= b, np.uint32(0), old + np.uint32(1))),
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name: str, space: str, rng: np.random.Generator) -> None:
    """Results equal those of some order of the lanes: every old value is the fold of the operands before it."""
    kind, fold = ATOMICS[name]
    bits = 8 * np.dtype(kind).itemsize
    values = rng.integers(0, 1 << (bits - 1), 64).astype(kind)
    old, cells = np.zeros(64, kind), np.zeros(4, kind)
    register = "%d" if bits == 64 else "%r"
    body = f"""
        ld.param.u64 %in0, [p0]; ld.param.u64 %in1, [p1]; ld.param.u64 %in2, [p2];
        mad.wide.u32 %in0, %tid, {bits // 8}, %in0; mad.wide.u32 %in1, %tid, {bits // 8}, %in1;
        ld.global.b{bits} {register}8, [%in0];
        and.b32 %r1, %tid, 3; mul.lo.u32 %r2, %r1, {bits // 8};
        mov.u32 %r3, buffer; add.u32 %r3, %r3, %r2;
        cvt.u64.u32 %offset, %r2; add.u64 %in2, %in2, %offset;
        setp.lt.u32 %p0, %tid, 4;
        mov.b{bits} {register}10, 0;
        @%p0 st.shared.b{bits} [%r3], {register}10;
        bar.sync 0;
        atom.{space}.{name} {register}9, [{"%r3" if space == "shared" else "%in2"}], {register}8;
        st.global.b{bits} [%in1], {register}9;
        bar.sync 0;
        @%p0 ld.shared.b{bits} {register}11, [%r3];
        {"@%p0 st.global.b" + str(bits) + " [%in2], " + register + "11;" if space == "shared" else ""}
    """
    launch(module(body, 3, shared=64), [values, old, cells], 64)
    with np.errstate(over="ignore"):
        for cell in range(4):
            mine = list(range(cell, 64, 4))
            current, left = kind(0), set(mine)
            seen = {t: old[t] for t in mine}
            while left:  # follow the chain of old values
                turn = next((t for t in sorted(left) if seen[t] == current), None)
                assert turn is not None, "no thread saw this value"
                current = kind(fold(np.array([current]), values[turn : turn + 1])[0])
                left.remove(turn)
            assert cells[cell] == current


def test_compare_and_swap_and_halves() -> None:
    """cas builds an ordered list; red.add of f16x2 adds both halves."""
    body = """
        ld.param.u64 %d0, [p1]; ld.param.u64 %d1, [p2];
    TRY:
        ld.volatile.global.u32 %r1, [%d0];
        add.u32 %r2, %r1, 3;
        atom.cas.global.b32 %r3, [%d0], %r1, %r2;
        setp.ne.u32 %p0, %r3, %r1;
        @%p0 bra TRY;
        mov.u32 %r0, %r3;
        mov.b32 %r4, 0x3C004000;
        red.global.add.noftz.f16x2 [%d1], %r4;"""
    out, counter, sums = np.zeros(64, np.uint32), np.zeros(1, np.uint32), np.zeros(2, np.float16)
    launch(module(body + STORE, 3), [out, counter, sums], 64)
    assert sorted(out.tolist()) == [3 * i for i in range(64)] and counter[0] == 192
    assert sums.tolist() == [128.0, 64.0]


def test_vectors_local_memory_and_generic_addresses() -> None:
    """Wide loads and stores, sign extension, local arrays, and one load that reaches three state spaces."""
    body = """
        .local .align 16 .b8 depot[64];
        ld.param.u64 %d0, [p1]; mad.wide.u32 %d0, %tid, 16, %d0;
        ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d0];
        mov.u32 %r9, buffer; mad.lo.u32 %r10, %tid, 16, %r9;
        st.shared.v2.b64 [%r10], {%d0, %d0};
        st.shared.v4.b32 [%r10], {%r4, %r3, %r2, %r1};
        mov.u64 %d1, depot; st.local.v2.u32 [%d1+8], {%r1, %r2};
        ld.local.u32 %r5, [depot+12];
        ld.shared.s8 %r6, [%r10+4];
        cvt.u64.u32 %d2, %r10; cvta.shared.u64 %d2, %d2;
        cvta.local.u64 %d3, %d1; add.u64 %d3, %d3, 8;
        rem.u32 %r7, %tid, 3;
        setp.eq.u32 %p0, %r7, 0; selp.b64 %d4, %d0, %d2, %p0;
        setp.eq.u32 %p1, %r7, 2; selp.b64 %d4, %d3, %d4, %p1;
        isspacep.shared %p2, %d4;
        ld.u32 %r8, [%d4];
        add.u32 %r0, %r5, %r6; add.u32 %r0, %r0, %r8; @%p2 add.u32 %r0, %r0, 1;
        ld.shared.b128 %w0, [%r10]; mov.b128 {%d5, %d6}, %w0; cvt.u32.u64 %r11, %d6; sub.u32 %r11, %r11, %r2;
        add.u32 %r0, %r0, %r11;"""
    values = np.random.default_rng(1).integers(0, 1 << 32, (48, 4), dtype=np.uint32)
    out = np.zeros(48, np.uint32)
    launch(module(body + STORE, 2, shared=1024), [out, values], 48)
    for t, (a, b, c, d) in enumerate(values.tolist()):
        low = c & 255
        generic = (a, d + 1, a)[t % 3]
        assert out[t] == (b + (low - 256 if low > 127 else low) + generic) % (1 << 32), t


def test_partial_warps_and_special_registers() -> None:
    """A block of 2 x 5 x 3 threads in a grid of 2 x 2: indices, and a ballot over the lanes there are."""
    body = """
        mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z; mov.u32 %r3, %ntid.y; mov.u32 %r4, %nctaid.x; mov.u32 %r5, %ctaid.y;
        mov.u32 %r6, %ctaid.x; mov.u32 %r7, %lanemask_lt; mov.u32 %r8, %warpid;
        mad.lo.u32 %r9, %r2, %r3, %r1; mad.lo.u32 %r9, %r9, 2, %tid;
        mad.lo.u32 %r10, %r5, %r4, %r6; mad.lo.u32 %tid, %r10, 30, %r9;
        activemask.b32 %r11; popc.b32 %r0, %r11; popc.b32 %r7, %r7; mad.lo.u32 %r0, %r7, 100, %r0;"""
    out = np.zeros(120, np.uint32)
    device = emulator.Device("90a")
    device.map_buffer(out.ctypes.data, out.nbytes, True, "out")
    loaded = emulator.load(module(body + STORE))
    device.launch(loaded, "kernel", (2, 2), (2, 5, 3), (1,), 0, out.ctypes.data.to_bytes(8, "little"))
    assert out.tolist() == [30 + 100 * (i % 30) for i in range(120)]


def test_statistics_count_warp_instructions() -> None:
    """Two of three warps execute the body of the branch."""
    body = "setp.lt.u32 %p0, %tid, 32; @%p0 bra SKIP; mul.lo.u32 %r0, %tid, 3; SKIP:"
    out = np.zeros(96, np.uint32)
    counted = launch(module(body + STORE), [out], 96)
    assert counted.instructions["mul.lo.u32"] == 2 and counted.instructions["st.global.u32"] == 3
    assert counted.warp_instructions == sum(counted.instructions.values())
