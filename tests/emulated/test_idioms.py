"""PTX as other compilers and libraries write it: what is legal runs, what is not emulated is refused by its line."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import launch, module

import emulator
from emulator.checks.races import RaceFault

SCHEDULES = pytest.mark.parametrize("seed, lazy", [(0, False), (1, True), (2, True), (3, True)])
OUT = "ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 4, %out; st.global.b32 [%out], %r0;"
REFUSED = {
    "sparse f16": (
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%r1,%r2,%r3,%r4}, {%r5,%r5,%r5,%r5},"
        " {%r5,%r5,%r5,%r5}, {%r5,%r5,%r5,%r5}, %r5, 0x0;",
        "a modifier is unknown",
    ),
    "sparse block-scaled": (
        "mma.sp::ordered_metadata.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k128.row.col.f32.e2m1"
        ".e2m1.f32.ue4m3 {%r1,%r2,%r3,%r4}, {%r5,%r5,%r5,%r5}, {%r5,%r5,%r5,%r5}, {%r5,%r5,%r5,%r5}, %r5, 0x0, {%r5},"
        " {0,0}, {%r5}, {0,0};",
        "a modifier is unknown",
    ),
    "too few operands": ("add.u32 %r0, %r1;", "operands"),
    "too many operands": ("shfl.sync.idx.b32 %r0, %r1, 0, 31, -1, 7;", "operands"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_its_line(name: str) -> None:
    """An instruction that is not emulated, or has operands that it cannot have, is an error with its PTX line."""
    body, what = REFUSED[name]
    with pytest.raises(emulator.UnsupportedInstruction, match=what) as caught:
        launch(module(body, 0, "sm_120a"), [], arch="120a")
    assert caught.value.line is not None and f"PTX line {caught.value.line}: {caught.value.text}" in str(caught.value)


def test_no_space_after_the_opcode() -> None:
    """An opcode ends where a character follows that it cannot hold."""
    out = np.zeros(32, np.uint32)
    launch(module("mov.b64{%r1,%r2}, 0x700000005; add.u32%r0, %r1, %r2;" + OUT), [out])
    assert (out == 12).all()


def block_scaled(selectors: str) -> str:
    """An mxf8f6f4 product of ones, with scale factors of random powers of two, into {out}; %h0 to %h3 select."""
    return module(
        f"""ld.param.u64 %d0, [p1]; mad.wide.u32 %d0, %tid, 16, %d0; ld.global.v4.u32 {{%r10,%r11,%r12,%r13}}, [%d0];
        cvt.u16.u32 %h0, %r12; shr.u16 %h1, %h0, 4; and.b16 %h0, %h0, 15;
        cvt.u16.u32 %h2, %r13; shr.u16 %h3, %h2, 4; and.b16 %h2, %h2, 15;
        mov.b32 %r1, 0x38383838; mov.b32 %r2, 0;
        mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0
            {{%r4,%r5,%r6,%r7}}, {{%r1,%r1,%r1,%r1}}, {{%r1,%r1}}, {{%r2,%r2,%r2,%r2}}, {{%r10}}, {selectors};
        ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 16, %out; st.global.v4.u32 [%out], {{%r4,%r5,%r6,%r7}};""",
        2,
        "sm_120a",
    )


@pytest.mark.parametrize("uniform", [True, False])
def test_selectors_in_registers(uniform: bool, rng: np.random.Generator) -> None:
    """Byte and thread selectors of a block-scaled mma may be registers; each lane gets the product of its own."""
    scales = rng.integers(120, 135, (32, 8), dtype=np.uint8).view(np.uint32)
    choice = rng.integers(0, (4, 2, 4, 4), (1 if uniform else 32, 4))
    packed = choice[:, [0, 2]] + 16 * choice[:, [1, 3]]
    words = np.concatenate([scales, np.broadcast_to(packed, (32, 2))], 1).astype(np.uint32)
    out = np.zeros((32, 4), np.float32)
    launch(block_scaled("{%h0,%h1}, {%r11}, {%h2,%h3}"), [out, words], arch="120a")
    codes = scales.view(np.uint8).reshape(32, 2, 4).astype(float) - 127
    for lane, (byte_a, thread_a, byte_b, thread_b) in enumerate(np.broadcast_to(choice, (32, 4))):
        for i in range(4):
            column = 2 * (lane % 4) + i % 2
            a = codes[lane // 4 * 4 + 2 * thread_a + i // 2, 0, byte_a]
            b = codes[column * 4 + thread_b, 1, byte_b]
            assert out[lane, i] == 32 * 2.0 ** (a + b)


def test_selectors_that_do_not_exist() -> None:
    """Table 37: another thread than a quad has is undefined, in a register as in a constant."""
    words = np.zeros((32, 4), np.uint32)
    words[:, 2] = 2 << 4
    with pytest.raises(emulator.UnsupportedInstruction, match="thread-id-a 2 .allowed 0..1"):
        launch(block_scaled("{%h0,%h1}, {%r11}, {%h2,%h3}"), [np.zeros((32, 4), np.float32), words], arch="120a")


def names(check: str) -> set[str]:
    return set(emulator.CHECKS) - {check}


STORE_AND_EXIT = """
    mov.u32 %r50, buffer; mad.lo.u32 %r1, %tid, 4, %r50; add.u32 %r2, %tid, 7; st.shared.b32 [%r1], %r2;
    fence.proxy.async.shared::cta; bar.warp.sync -1;
    ld.param.u64 %out, [p0]; setp.ne.u32 %p0, %tid, 0; @%p0 bra END;
    cp.async.bulk.global.shared::cta.bulk_group [%out], [%r50], 128; cp.async.bulk.commit_group;
    {wait} END:"""


@SCHEDULES
def test_exit_with_a_bulk_store_outstanding(seed: int, lazy: bool) -> None:
    """Shared memory is owned by an executing CTA (ISA 5.1.7); without the check its bytes outlive it, as on an H100."""
    out = np.zeros(32, np.uint32)
    launch(module(STORE_AND_EXIT.format(wait=""), shared=128), [out], seed=seed, lazy=lazy, checks=names("exit"))
    assert out.tolist() == list(range(7, 39))


def test_exit_before_a_bulk_store_has_read() -> None:
    """Found in a lazy schedule of a few, and not after a wait for the reads; the fault names its check."""
    for seed in range(8):
        launch(module(STORE_AND_EXIT.format(wait="cp.async.bulk.wait_group.read 0;"), shared=128),
               [np.zeros(32, np.uint32)], seed=seed)  # fmt: skip
    with pytest.raises(emulator.MemoryFault, match="has exited without .*bulk_group.*, check exit]") as caught:
        for seed in range(8):
            launch(module(STORE_AND_EXIT.format(wait=""), shared=128), [np.zeros(32, np.uint32)], seed=seed)
    assert caught.value.check == "exit"


PEEK = """
    mov.u32 %r50, buffer; shr.u32 %r1, %tid, 5; setp.ne.u32 %p0, %lane, 0;
    setp.eq.u32 %p1, %tid, 0; @%p1 mbarrier.init.shared::cta.b64 [%r50], 1;
    @%p1 mbarrier.init.shared::cta.b64 [%r50+8], 1; st.shared.b32 [%r50+16], 0; bar.sync 0;
    setp.ne.u32 %p2, %r1, 0; mov.u32 %r0, 1; ld.param.u64 %out, [p0]; @%p2 bra OTHER;
    mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r50+8], 0;
    selp.u32 %r0, 1, 0, %p3;
    @!%p0 {signal}
AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r50+8], 0; @!%p3 bra AGAIN; bra END;
OTHER: {wait}
    @!%p0 mbarrier.arrive.shared::cta.b64 _, [%r50+8];
END: mad.wide.u32 %out, %tid, 4, %out; st.global.b32 [%out], %r0;"""
TRY = "mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r50], 0; @!%p3 bra OTHER;"
PEEKS = {  # how the peeking warp signals, and how the other waits for it
    "try_wait": ("mbarrier.arrive.shared::cta.b64 _, [%r50];", TRY),
    "test_wait": ("mbarrier.arrive.shared::cta.b64 _, [%r50];", TRY.replace("try_", "test_")),
    "memory": ("st.global.b32 [%out+512], 1;", "ld.global.b32 %r2, [%out+512]; setp.eq.u32 %p3, %r2, 0;"
               " @%p3 bra OTHER;"),
}  # fmt: skip


@SCHEDULES
@pytest.mark.parametrize("kind", PEEKS)
def test_peek_at_a_phase_that_the_peeking_warp_holds_up(kind: str, seed: int, lazy: bool) -> None:
    """try_wait returns false after a time limit (ISA 9.7.13.15.16): whoever asks only once goes on."""
    signal, wait = PEEKS[kind]
    out = np.full(129, 0, np.uint32)
    launch(module(PEEK.format(signal=signal, wait=wait), shared=32), [out], 64, seed=seed, lazy=lazy)
    assert not out[:32].any() and (out[32:64] == 1).all()


@pytest.mark.parametrize("lazy", [True, False])
def test_polling_for_ever(lazy: bool) -> None:
    """All threads ask again and again for what nobody will do: a deadlock, and what each waits for."""
    body = PEEK.format(signal="bra AGAIN;", wait=TRY)
    with pytest.raises(emulator.DeadlockFault, match="no thread can make progress") as caught:
        launch(module(body, shared=32), [np.zeros(128, np.uint32)], 64, lazy=lazy)
    assert str(caught.value).count("waits for parity 0 of mbarrier") == 2


def test_deadlock_of_a_part_of_a_warp() -> None:
    """Lanes that are at a barrier of the warp wait for the others, which wait for something else."""
    body = """mov.u32 %r50, buffer; setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r50], 1;
        bar.warp.sync -1; setp.lt.u32 %p1, %tid, 16; @%p1 bra TOGETHER;
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r50], 0; @!%p2 bra WAIT;
        TOGETHER: bar.warp.sync -1;"""
    with pytest.raises(emulator.DeadlockFault, match="waits for the other lanes of the warp") as caught:
        launch(module(body, shared=32), [np.zeros(1, np.uint32)])
    assert "None" not in str(caught.value)


# What all lanes of a warp have done once an instruction of the whole warp is over

IN_PLACE = """
    mov.u32 %r50, buffer; mad.lo.u32 %r1, %tid, 16, %r50; mul.lo.u32 %r2, %tid, 0x30001;
    st.shared.v4.b32 [%r1], {%r2,%r2,%r2,%r2}; bar.warp.sync -1;"""
ADD_ONE = """ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4,%r5,%r6,%r7}, [%r1];
    add.u32 %r4, %r4, 1; add.u32 %r5, %r5, 1; add.u32 %r6, %r6, 1; add.u32 %r7, %r7, 1;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r1], {%r4,%r5,%r6,%r7};"""
LAST = "bar.warp.sync -1; ld.shared.b32 %r0, [%r1+12];" + OUT


@SCHEDULES
def test_matrices_are_turned_in_place(seed: int, lazy: bool) -> None:
    """ldmatrix, then stmatrix to the same rows: no lane goes on from ldmatrix before all have read."""
    out = np.zeros(32, np.uint32)
    launch(module(IN_PLACE + ADD_ONE + LAST, shared=512), [out], seed=seed, lazy=lazy)
    assert (out == np.arange(32) * 0x30001 + 1).all()


@pytest.mark.parametrize(
    "change",
    [
        ADD_ONE + "st.shared.b32 [%r1], %r4;",  # stmatrix writes rows of other lanes
        ADD_ONE.replace("stmatrix", "ld.shared.b32 %r3, [%r1]; stmatrix"),  # of a single lane, and after ldmatrix
    ],
)
def test_what_is_not_over(change: str) -> None:
    """Writes of stmatrix, and loads of single lanes."""
    with pytest.raises(RaceFault, match="no barrier of the warp between .*check lanes]"):
        launch(module(IN_PLACE + change + LAST, shared=512), [np.zeros(32, np.uint32)])


ONE_ARRIVES = """
    mov.u32 %r50, buffer; add.u32 %r51, %r50, 128; mad.lo.u32 %r1, %lane, 4, %r50; shr.u32 %r2, %tid, 5;
    setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r51], 1; setp.ne.u32 %p1, %r2, 0;
    mov.u32 %r0, 0; mov.u32 %r5, 0; @!%p1 st.shared.b32 [%r1], %lane; bar.sync 0; @%p1 bra OTHER;
    ld.shared.b32 %r4, [%r1];
    {use}
    @%p0 mbarrier.arrive.shared::cta.b64 _, [%r51]; bra END;
OTHER: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r51], 0; @!%p2 bra OTHER;
    st.shared.b32 [%r1], 7;
END: """
USE = """mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r0,%r6,%r7,%r8}, {%r4,%r4,%r4,%r4}, {%r4,%r4},
    {%r5,%r5,%r5,%r5};"""


@SCHEDULES
def test_operands_of_mma_have_been_read(seed: int, lazy: bool) -> None:
    """Lane 0 arrives after an mma.sync with what all lanes have loaded; who waits for it may write there."""
    launch(module(ONE_ARRIVES.format(use=USE) + OUT, shared=256), [np.zeros(64, np.uint32)], 64, seed=seed, lazy=lazy)


def test_loads_of_other_lanes_are_not_covered_by_an_arrival() -> None:
    """Without the mma, or a load after it."""
    for use in ("mov.u32 %r0, %r4;", USE + "ld.shared.b32 %r3, [%r1];"):
        with pytest.raises(RaceFault, match="has read, unordered .*check warps]"):
            launch(module(ONE_ARRIVES.format(use=use) + OUT, shared=256), [np.zeros(64, np.uint32)], 64)


def test_checks_have_names() -> None:
    """Each can be left out by itself; a name that is none is refused."""
    out = np.zeros(64, np.uint32)
    body = module(ONE_ARRIVES.format(use="mov.u32 %r0, %r4;") + OUT, shared=256)
    with pytest.raises(RaceFault, match="check warps]"):
        launch(body, [out], 64, checks=names("lanes"))
    launch(body, [out], 64, checks=names("warps"))
    lanes = module(IN_PLACE + ADD_ONE + "st.shared.b32 [%r1], %r4;" + LAST, shared=512)
    with pytest.raises(RaceFault, match="check lanes]"):
        launch(lanes, [out], checks=names("warps"))
    launch(lanes, [out], checks=names("lanes"))
    store = STORE_AND_EXIT.format(wait="cp.async.bulk.wait_group 0;")
    bare = module(store.replace("fence.proxy.async.shared::cta;", ""), shared=128)
    with pytest.raises(RaceFault, match="check proxy-fence]"):
        launch(bare, [out], checks=names("unwritten"))
    launch(bare, [out], checks=names("proxy-fence"))
    unwritten = module("mov.u32 %r50, buffer; ld.shared.b32 %r0, [%r50];" + OUT, shared=128)
    with pytest.raises(emulator.UninitializedRead, match="check unwritten]"):
        launch(unwritten, [out])
    launch(unwritten, [out], checks=names("unwritten"))
    with pytest.raises(emulator.LaunchError, match="checks fences: expected some of unwritten, warps, lanes"):
        emulator.Device("90a", checks={"fences", "warps"})


def test_long_names_are_cut() -> None:
    """A fault shows 80 characters of a kernel's name; the attribute has all."""
    name = "_Z" + "many_template_arguments" * 20
    with pytest.raises(emulator.MemoryFault) as caught:
        launch(module("mov.u64 %d0, 0; ld.global.b32 %r0, [%d0];", name=name), [np.zeros(32, np.uint32)])
    assert f"kernel {name[:77]}...," in str(caught.value) and caught.value.kernel == name
    with pytest.raises(emulator.LaunchError) as refused:
        launch(module("", name=name), [np.zeros(32, np.uint32)], 1025)
    assert name[:77] in str(refused.value) and name[:80] not in str(refused.value)
