"""How the emulator issues tcgen05 and wgmma: CTA pairs, queues, commits and waits. Their arithmetic has tests of its
own.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from ptx import launch, module
from test_core_async import WAIT

import emulator

SCHEDULES = pytest.mark.parametrize("seed, lazy", [(0, False), (1, True), (2, True), (3, True)])
K_MAJOR = 128 >> 4 << 16 | 256 >> 4 << 32  # 8x16-byte core matrices: 128 bytes apart along k, 256 along rows


def to_bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def core_matrices(matrix: np.ndarray) -> np.ndarray:
    """bf16 [rows, 16] as shared memory holds it."""
    rows = len(matrix)
    return matrix.reshape(rows // 8, 8, 2, 8).transpose(0, 2, 1, 3).reshape(-1)


FILL = """
    mov.u32 %r1, %tid;
FILLING:
    mad.wide.u32 %d1, %r1, 4, %d0; ld.global.u32 %r2, [%d1]; mad.lo.u32 %r3, %r1, 4, %r50; st.shared.u32 [%r3], %r2;
    add.u32 %r1, %r1, 128; setp.lt.u32 %p0, %r1, {words}; @%p0 bra FILLING;
    fence.proxy.async.shared::cta;
"""


def pair_kernel(commit_wait: str, load_wait: str) -> str:
    """M = 256, N = 32, K = 16 twice over, by a pair of CTAs: rows 128 a CTA, half of the columns of B from each."""
    descriptor = 1 << 46 | K_MAJOR
    instruction = 1 << 4 | 1 << 7 | 1 << 10 | 32 >> 3 << 17 | 256 >> 4 << 24
    registers = ", ".join(f"%v{i}" for i in range(32))
    stores = "\n".join(f"st.global.b32 [%out+{4 * i}], %v{i};" for i in range(32))
    return f"""
        .reg .b32 %v<32>;
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 8192; add.u32 %r52, %r51, 8;
        mov.u32 %r40, %cluster_ctarank; shr.u32 %r41, %tid, 5;
        ld.param.u64 %d0, [p1]; mad.wide.u32 %d0, %r40, 4608, %d0;
        {FILL.format(words=1152)}
        setp.eq.u32 %p1, %tid, 0; @%p1 mbarrier.init.shared::cta.b64 [%r51], 1;
        setp.ne.u32 %p2, %r41, 0; @%p2 bra ALLOCATED;
        tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%r52], 32;
        tcgen05.relinquish_alloc_permit.cta_group::2.sync.aligned;
    ALLOCATED:
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        ld.shared.u32 %r42, [%r52];
        setp.ne.u32 %p3, %r40, 0; @%p3 bra ISSUED;
        @!%p1 bra ISSUED;
        and.b32 %r4, %r50, 0x3FFFF; shr.u32 %r4, %r4, 4; cvt.u64.u32 %d2, %r4; or.b64 %d2, %d2, {descriptor};
        add.u64 %d3, %d2, 256;                      // B lies 4096 bytes behind A
        mov.u32 %r5, {instruction}; setp.ne.u32 %p4, %r5, %r5; mov.u16 %h0, 3;
        tcgen05.mma.cta_group::2.kind::f16 [%r42], %d2, %d3, %r5, %p4;
        tcgen05.mma.cta_group::2.kind::f16 [%r42], %d2, %d3, %r5, 1;
        tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%r51], %h0;
    ISSUED:
        bar.warp.sync -1;
        {commit_wait}
        shl.b32 %r6, %r41, 21; add.u32 %r6, %r6, %r42;
        tcgen05.ld.sync.aligned.32x32b.x32.b32 {{{registers}}}, [%r6];
        {load_wait}
        mad.lo.u32 %r7, %r40, 128, %tid; ld.param.u64 %out, [p0]; mad.wide.u32 %out, %r7, 128, %out;
        {stores}
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        @%p2 bra END;
        tcgen05.dealloc.cta_group::2.sync.aligned.b32 %r42, 32;
    END:"""


COMMIT_WAIT = WAIT.format(barrier="%r51", parity=0)


def run_pair(commit_wait: str, load_wait: str, **schedule: object) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, (rows, 16)).astype(np.float32) for rows in (256, 32))
    shares = [np.concatenate([core_matrices(to_bf16(a[128 * c :][:128])), core_matrices(to_bf16(b[16 * c :][:16]))])
              for c in range(2)]  # fmt: skip
    operands, out = np.concatenate(shares), np.zeros((256, 32), np.float32)
    text = module(pair_kernel(commit_wait, load_wait), 2, "sm_100a", 16384)
    launch(text, [out, operands], 128, 2, 2, arch="100a", **schedule)
    return out, 2 * (a @ b.T)


@SCHEDULES
def test_pair_of_ctas(seed: int, lazy: bool) -> None:
    """One thread of the even CTA issues for both; the commit arrives in both; each reads its own half of the rows."""
    got, want = run_pair(COMMIT_WAIT, "tcgen05.wait::ld.sync.aligned;", seed=seed, lazy=lazy)
    assert (got == want).all()


def test_accumulator_in_flight() -> None:
    """Tensor memory that is read before the commit has been waited for is a fault, under some schedule of a few."""
    with pytest.raises(emulator.UninitializedRead, match="in flight|nothing has written"):
        for seed in range(8):
            run_pair("", "tcgen05.wait::ld.sync.aligned;", seed=seed)


@SCHEDULES
def test_registers_of_a_load(seed: int, lazy: bool) -> None:
    """What takes a register of a tcgen05.ld waits for it, without a tcgen05.wait::ld (ISA 9.7.16.6.4.5)."""
    got, want = run_pair(COMMIT_WAIT, "", seed=seed, lazy=lazy)
    assert (got == want).all()


ALLOCATE = """
    mov.u32 %r50, buffer; shr.u32 %r40, %tid, 5; setp.ne.u32 %p0, %r40, 0; shl.b32 %r41, %r40, 21;
    @%p0 bra HERE; tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r50], 32; HERE: bar.sync 0;
    ld.shared.b32 %r1, [%r50]; add.u32 %r2, %r1, %r41;
    tcgen05.st.sync.aligned.32x32b.x1.b32 [%r2], {%tid}; tcgen05.wait::st.sync.aligned;"""
FREE = """bar.sync 0; @%p0 bra FREED; tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r1, 32; FREED:
    ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 4, %out; st.global.b32 [%out], %r4;"""
LOAD = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r4}, "


def run_tensor(body: str, **options: object) -> np.ndarray:
    out = np.zeros(128, np.uint32)
    launch(module(ALLOCATE + body + FREE, 1, "sm_100a", 64), [out], 128, arch="100a", **options)
    return out


def test_tensor_memory_is_written_before_a_load_has_read_it() -> None:
    """Other orders than by a register need tcgen05.wait::ld (ISA 9.7.16.6.4.5)."""
    body = LOAD + "[%r2]; {wait} tcgen05.st.sync.aligned.32x32b.x1.b32 [%r2], {{%r4}}; tcgen05.wait::st.sync.aligned;"
    with pytest.raises(emulator.EmulatorFault, match="without a tcgen05.wait::ld .*check tcgen05-wait]"):
        run_tensor(body.replace("{%r4}, [", "{{%r4}}, [").format(wait=""))
    for wait, checks in (("", set(emulator.CHECKS) - {"tcgen05-wait"}), ("tcgen05.wait::ld.sync.aligned;", True)):
        out = run_tensor(body.replace("{%r4}, [", "{{%r4}}, [").format(wait=wait), checks=checks)
        assert out.tolist() == list(range(128))


def test_lanes_of_another_warp() -> None:
    """A lane of tensor memory can be accessed by one warp alone (ISA 9.7.16.8.1); without the check, by its own."""
    body = LOAD + "[%r1]; tcgen05.wait::ld.sync.aligned;"
    with pytest.raises(emulator.UnsupportedInstruction, match="reaches lanes .*check tcgen05-lanes]"):
        run_tensor(body)
    assert run_tensor(body, checks=set(emulator.CHECKS) - {"tcgen05-lanes"}).tolist() == list(range(128))


def test_warps_have_lanes_of_their_own() -> None:
    """Four warps store to and load from one column, 32 lanes each: nothing has to order one against another."""
    body = LOAD + "[%r2]; tcgen05.wait::ld.sync.aligned; tcgen05.fence::before_thread_sync;"
    assert run_tensor(body, checks=True).tolist() == list(range(128))


@SCHEDULES
def test_an_allocation_writes_for_its_warp(seed: int, lazy: bool) -> None:
    """One lane arrives after tcgen05.alloc; another warp that waits for it reads the address."""
    body = """
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 8; shr.u32 %r40, %tid, 5; setp.ne.u32 %p0, %r40, 0;
        setp.ne.u32 %p1, %lane, 0; setp.eq.u32 %p2, %tid, 0; @%p2 mbarrier.init.shared::cta.b64 [%r51], 1;
        bar.sync 0; @%p0 bra WAIT; tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r50], 64;
        @!%p1 mbarrier.arrive.shared::cta.b64 _, [%r51];
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r51], 0; @!%p3 bra WAIT;
        ld.shared.b32 %r1, [%r50]; bar.sync 0; @%p0 bra END;
        tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r1, 64; END:"""
    launch(module(body, 0, "sm_100a", 64), [], 64, arch="100a", seed=seed, lazy=lazy)


PAIR = """
    mov.u32 %r50, buffer; mov.u32 %r40, %cluster_ctarank; setp.ne.u32 %p0, %r40, 0;
    setp.eq.u32 %p1, %tid, 0; mov.u32 %r3, 0; @%p1 st.shared.b32 [%r50+8], %r3;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    {late} tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%r50], {columns};
    mapa.shared::cluster.u32 %r6, %r50, 1; @!%p0 ld.shared::cluster.b32 %r7, [%r6+8];
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    ld.shared.b32 %r1, [%r50]; tcgen05.dealloc.cta_group::2.sync.aligned.b32 %r1, 32;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    ld.param.u64 %out, [p0]; @!%p0 st.global.b32 [%out], %r7;"""


def run_alloc_pair(late: str, columns: str = "32", **options: object) -> int:
    out = np.zeros(1, np.uint32)
    launch(module(PAIR.format(late=late, columns=columns), 1, "sm_100a", 64), [out], 32, 2, 2, arch="100a", **options)
    return int(out[0])


@SCHEDULES
def test_an_allocation_of_a_pair_joins_both(seed: int, lazy: bool) -> None:
    """cta_group::2 is performed collectively (ISA, table 46): what the odd CTA did before it, the even one finds."""
    late = "@%p0 st.shared.b32 [%r50+8], 5;"
    checks = set(emulator.CHECKS) - {"warps"}  # it is no barrier
    assert run_alloc_pair(late, seed=seed, lazy=lazy, checks=checks) == 5


def test_allocations_of_a_pair_that_differ() -> None:
    """One CTA alone waits for ever; two that ask for different numbers of columns are a fault."""
    with pytest.raises(emulator.DeadlockFault, match="tcgen05.alloc.cta_group::2 of the other CTA"):
        run_alloc_pair("@!%p0 bra HERE; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; HERE:")
    with pytest.raises(emulator.BarrierFault, match="waits for the other CTA"):
        run_alloc_pair("selp.u32 %r5, 64, 32, %p0;", "%r5")


def wgmma_kernel(wait: str) -> str:
    """m64n8k16, twice into the same accumulator and once into another."""
    first, second = "{%a0, %a1, %a2, %a3}", "{%b0, %b1, %b2, %b3}"
    issue = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16"
    return f"""
        .reg .b32 %a<4>; .reg .b32 %b<4>;
        mov.u32 %r50, buffer; ld.param.u64 %d0, [p1];
        {FILL.format(words=576)}
        bar.sync 0;
        mov.b32 %a0, 0f3F800000; mov.b32 %a1, %a0; mov.b32 %a2, %a0; mov.b32 %a3, %a0;
        mov.b32 %b0, 0; mov.b32 %b1, 0; mov.b32 %b2, 0; mov.b32 %b3, 0;
        and.b32 %r4, %r50, 0x3FFFF; shr.u32 %r4, %r4, 4; cvt.u64.u32 %d2, %r4; or.b64 %d2, %d2, {K_MAJOR};
        add.u64 %d3, %d2, 128;
        wgmma.fence.sync.aligned;
        {issue} {first}, %d2, %d3, 1, 1, 1, 0, 0;
        {issue} {first}, %d2, %d3, 1, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;
        {issue} {second}, %d2, %d3, 0, -1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;
        {wait}
        ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 32, %out;
        st.global.v4.b32 [%out], {first}; st.global.v4.b32 [%out+16], {second};
        wgmma.wait_group.sync.aligned 0;"""


@SCHEDULES
def test_wgmma_groups(seed: int, lazy: bool) -> None:
    """Groups complete in order: after wait_group 1 the first accumulator is there and the second is poison still."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, (rows, 16)).astype(np.float32) for rows in (64, 8))
    operands = np.concatenate([core_matrices(to_bf16(a)), core_matrices(to_bf16(b))])
    want = a @ b.T
    for count in (0, 1):
        out = np.zeros((128, 2, 4), np.float32)
        text = module(wgmma_kernel(f"wgmma.wait_group.sync.aligned {count};"), 2, shared=4096)
        launch(text, [out, operands], 128, seed=seed, lazy=lazy)
        # register i of lane (g, l) of warp w: row 16 w + g + 8 (i >> 1), column 2 l + (i & 1)
        place = out.reshape(4, 8, 4, 2, 2, 2).transpose(3, 0, 4, 1, 2, 5).reshape(2, 64, 8)
        assert (place[0] == 1 + 2 * want).all()
        if count:
            assert np.isnan(place[1]).all()
        else:
            assert (place[1] == -want).all()


def test_fragments_belong_to_wgmma_until_it_is_waited_for() -> None:
    """A register of A that is written before the wait is a fault, behind it none (ISA 9.7.15.7.3)."""
    wait = "wgmma.wait_group.sync.aligned {};"
    body = """
        .reg .b32 %a<4>; .reg .b32 %f<4>;
        mov.u32 %r50, buffer; and.b32 %r4, %r50, 0x3FFFF; shr.u32 %r4, %r4, 4; cvt.u64.u32 %d2, %r4;
        mad.lo.u32 %r5, %tid, 4, %r50; st.shared.u32 [%r5], 0; st.shared.u32 [%r5+512], 0;
        fence.proxy.async.shared::cta; bar.sync 0;
        mov.b32 %f0, 0; mov.b32 %f1, 0; mov.b32 %f2, 0; mov.b32 %f3, 0;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {{%a0, %a1, %a2, %a3}}, {{%f0, %f1, %f2, %f3}}, %d2, 0, 1, 1;
        wgmma.commit_group.sync.aligned;
        {before} mov.b32 %f2, 1; {behind}"""
    orders = {before: body.format(before=before, behind=behind) for before, behind in (
        ("", wait.format(0)), (wait.format(1), wait.format(0)), (wait.format(0), ""))}  # fmt: skip
    for before, text in orders.items():
        done = before == wait.format(0)
        with contextlib.nullcontext() if done else pytest.raises(emulator.EmulatorFault, match="in flight reads"):
            launch(module(text, 0, shared=1024), [], 128)


def test_operands_belong_to_wgmma_until_it_is_waited_for() -> None:
    """Shared memory that another warp writes, told so before the wait, is a fault, behind it none."""
    wait, tell = "wgmma.wait_group.sync.aligned 0;", "bar.arrive 1, 160;"
    body = """
        .reg .b32 %a<4>; .reg .b32 %f<4>;
        mov.u32 %r50, buffer; and.b32 %r4, %r50, 0x3FFFF; shr.u32 %r4, %r4, 4; cvt.u64.u32 %d2, %r4;
        mad.lo.u32 %r5, %tid, 4, %r50; st.shared.u32 [%r5], 0; fence.proxy.async.shared::cta; bar.sync 0;
        setp.lt.u32 %p0, %tid, 128; @%p0 bra MULTIPLY;
        bar.sync 1, 160; st.shared.u32 [%r5+-512], 0; ret;
        MULTIPLY: mov.b32 %f0, 0; mov.b32 %f1, 0; mov.b32 %f2, 0; mov.b32 %f3, 0;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%a0, %a1, %a2, %a3}, {%f0, %f1, %f2, %f3}, %d2, 0, 1, 1;
        wgmma.commit_group.sync.aligned;"""
    for order, done in ((tell + wait, False), (wait + tell, True)):
        with contextlib.nullcontext() if done else pytest.raises(emulator.EmulatorFault, match="unordered"):
            launch(module(body + order, 0, shared=1024), [], 160)


def test_wgmma_waits_for_the_whole_warpgroup() -> None:
    """Warps that come to wgmma at different times execute it together."""
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-8, 9, (rows, 16)).astype(np.float32) for rows in (64, 8))
    operands = np.concatenate([core_matrices(to_bf16(a)), core_matrices(to_bf16(b))])
    text = wgmma_kernel("wgmma.wait_group.sync.aligned 0;").replace(
        "wgmma.fence", "shr.u32 %r5, %tid, 5; mul.lo.u32 %r5, %r5, 40;\n"
        "SPIN: sub.u32 %r5, %r5, 1; setp.gt.s32 %p1, %r5, 0; @%p1 bra SPIN;\nwgmma.fence", 1)  # fmt: skip
    for seed in range(4):
        out = np.zeros((128, 2, 4), np.float32)
        launch(module(text, 2, shared=4096), [out, operands], 128, seed=seed)
        place = out.reshape(4, 8, 4, 2, 2, 2).transpose(3, 0, 4, 1, 2, 5).reshape(2, 64, 8)
        assert (place[1] == -(a @ b.T)).all()


def test_tensor_memory_allocation() -> None:
    """Columns that are not allocated, freed twice, or still held at the exit are faults; a full memory is waited
    for.
    """
    start = "mov.u32 %r50, buffer; "
    allocate = "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r50], {}; ld.shared.u32 %r1, [%r50];"
    free = "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r1, {};"
    cases = {
        "tcgen05.alloc of 48 columns": allocate.format(48),
        "columns 32 to 32 of tensor memory are not allocated": allocate.format(32)
        + "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r2}, [%r1+32]; tcgen05.wait::ld.sync.aligned;",
        "tcgen05.dealloc of 64 columns at 0": allocate.format(32) + free.format(64),
        "read of tensor memory that nothing has written": allocate.format(32)
        + "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r2}, [%r1]; tcgen05.wait::ld.sync.aligned;",
        "columns of tensor memory, allocated": allocate.format(512) + allocate.format(32),
    }
    for what, body in cases.items():
        with pytest.raises(emulator.EmulatorFault, match=what):
            launch(module(start + body, 0, "sm_100a", 64), [], 32, arch="100a")
    body = start + allocate.format(512) + free.format(512) + allocate.format(256) + free.format(256)
    launch(module(body, 0, "sm_100a", 64), [], 32, arch="100a")
