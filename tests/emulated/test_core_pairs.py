"""What the ISA asks of a CTA pair (9.7.16.5, 9.7.16.7.1, 9.7.9.25.5.2): each rule kept, and broken."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from ptx import launch, module
from test_core_async import WAIT, launch_with_map, tensor_map_bytes
from test_core_tensor import COMMIT_WAIT, PAIR, SCHEDULES, pair_kernel, run_pair

import emulator
from emulator.checks.races import RaceFault

LOADED = "tcgen05.wait::ld.sync.aligned;"
MASK = "mov.u16 %h0, 3;"
MEET = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


def run_changed(old: str, new: str, seed: int = 0) -> None:
    """The kernel of test_core_tensor's pair with one text changed."""
    text = pair_kernel(COMMIT_WAIT, LOADED)
    assert old in text
    buffers = [np.zeros((256, 32), np.float32), np.zeros(2 * 2304, np.uint16)]
    launch(module(text.replace(old, new), 2, "sm_100a", 16384), buffers, 128, 2, 2, arch="100a", seed=seed)


@pytest.mark.parametrize(
    ("mask", "fault", "what"),
    [
        (1, emulator.DeadlockFault, "mbarrier"),  # the odd CTA hears of nothing
        (2, emulator.DeadlockFault, "mbarrier"),  # nor does the even one
        (6, emulator.UnsupportedInstruction, "multicast to CTAs .1, 2. of a cluster of 2"),
    ],
)
def test_a_commit_arrives_where_its_mask_says(mask: int, fault: type[Exception], what: str) -> None:
    """Bit r is the CTA of rank r: the others wait for ever, and one that is not there is a fault."""
    with pytest.raises(fault, match=what):
        run_changed(MASK, f"mov.u16 %h0, {mask};")


@pytest.mark.parametrize("arrives", [True, False])
def test_a_peer_that_never_arrives(arrives: bool) -> None:
    """The even CTA issues when the odd one has arrived on a barrier of its own, and else waits for ever."""
    text = pair_kernel(COMMIT_WAIT, LOADED)
    init, met, issue = "[%r51], 1;", f"ALLOCATED:\n        {MEET}", "and.b32 %r4, %r50, 0x3FFFF;"
    remote = "and.pred %p6, %p1, %p5; mapa.shared::cluster.u32 %r9, %r51, 0;"
    if arrives:
        remote += "@%p6 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r9+16];"
    waited = WAIT.format(barrier="%r51+16", parity=0).replace("WAIT", "PEER")
    waited = waited.replace(".parity", ".parity.acquire.cluster")
    for old, new in (
        (init, f"{init} @%p1 mbarrier.init.shared::cta.b64 [%r51+16], 1;"),
        (met, f"{met} setp.ne.u32 %p5, %r40, 0; {remote}"),
        (issue, f"{waited} {issue}"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    buffers = [np.zeros((256, 32), np.float32), np.zeros(2 * 2304, np.uint16)]
    with contextlib.nullcontext() if arrives else pytest.raises(emulator.DeadlockFault, match="mbarrier"):
        launch(module(text, 2, "sm_100a", 16384), buffers, 128, 2, 2, arch="100a")


def test_both_ctas_wait_for_the_accumulator() -> None:
    """The lanes of the odd one are written by the same products: no wait there is a fault, under some schedule."""
    with pytest.raises(emulator.UninitializedRead, match="in flight|nothing has written"):
        for seed in range(8):
            run_pair(f"@%p3 bra WAITED; {COMMIT_WAIT} WAITED:", LOADED, seed=seed)


def test_operands_of_the_odd_cta_are_fenced_and_ordered() -> None:
    """The asynchronous proxy reads shared memory of both CTAs: what the odd one wrote needs its fence, and an order."""
    with pytest.raises(RaceFault, match="CTA rank 1 wrote, without a proxy fence .*check proxy-fence]"):
        run_changed("fence.proxy.async.shared::cta;", "setp.eq.u32 %p6, %r40, 0; @%p6 fence.proxy.async.shared::cta;")
    with pytest.raises(RaceFault, match="asynchronous read by .* CTA rank 1 has written, unordered"):
        for seed in range(8):
            run_changed(f"ALLOCATED:\n        {MEET}", "ALLOCATED: bar.sync 0;", seed)


def test_no_products_with_a_peer_that_has_exited() -> None:
    """Its memory is nobody's (9.7.16.5): neither when they are issued, nor when they run."""
    with pytest.raises(emulator.MemoryFault, match="CTA .1, 0, 0., which has exited"):
        for seed in range(8):
            run_changed("setp.ne.u32 %p3, %r40, 0; @%p3 bra ISSUED;", """setp.ne.u32 %p3, %r40, 0;
                @!%p3 bra STAYS; @%p2 bra GONE; tcgen05.dealloc.cta_group::2.sync.aligned.b32 %r42, 32; GONE: ret;
                STAYS:""", seed)  # fmt: skip


def test_tensor_memory_of_a_pair_is_freed_by_both() -> None:
    """Not by one alone, nor while the other reads its half, nor while products into it are in flight."""
    end, load = f"{MEET}\n        @%p2 bra END;", "tcgen05.ld.sync.aligned.32x32b.x32"
    with pytest.raises(emulator.MemoryFault, match="exits with tensor memory allocated"):
        run_changed(end, f"{MEET} @%p2 bra END; @%p3 bra END;")
    with pytest.raises(emulator.MemoryFault, match="of which the peer has freed"):
        for seed in range(8):
            run_changed(end, "bar.sync 0; @%p2 bra END;", seed)
    text = pair_kernel("", LOADED)
    busy = text[: text.index("        shl.b32 %r6, %r41, 21;")] + text[text.index(f"        {end}") :]
    assert load not in busy
    with pytest.raises(emulator.MemoryFault, match="tcgen05.dealloc while an mma or copy to the columns is in flight"):
        for seed in range(8):
            launch(module(busy, 2, "sm_100a", 16384), [np.zeros(8192, np.float32), np.zeros(4608, np.uint16)],
                   128, 2, 2, arch="100a", seed=seed)  # fmt: skip


def test_one_group_in_a_kernel() -> None:
    """All tcgen05 instructions of a kernel have the same value of .cta_group (9.7.16.7.1)."""
    text = PAIR.format(late="", columns="32").replace("dealloc.cta_group::2", "dealloc.cta_group::1")
    with pytest.raises(emulator.UnsupportedInstruction, match="cta_group::1 after one with cta_group::2"):
        launch(module(text, 1, "sm_100a", 64), [np.zeros(1, np.uint32)], 32, 2, 2, arch="100a")


def load_halves(group: int, signalled: str, expected: int, ctas: int = 2, **schedule: object) -> np.ndarray:
    """Each CTA loads rows of its own and signals the barrier of the CTA `signalled`; rank 0 expects and waits."""
    array = np.arange(256, dtype=np.uint32)
    out = np.zeros((ctas, 32), np.uint32)
    tensor = tensor_map_bytes(array.ctypes.data, "u32", (32, 8), (128,), (32, 1), 0)
    body = f"""
        mov.u32 %r50, buffer; mov.u32 %r40, %cluster_ctarank; setp.eq.u32 %p1, %tid, 0; setp.eq.u32 %p2, %r40, 0;
        @%p1 mbarrier.init.shared::cta.b64 [%r50+1024], 1; @%p1 fence.mbarrier_init.release.cluster;
        {MEET}
        and.pred %p3, %p1, %p2; @%p3 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r50+1024], {expected};
        {MEET}
        {signalled} add.u32 %r5, %r50, 1024; mapa.shared::cluster.u32 %r6, %r5, %r41;
        mapa.shared::cluster.u32 %r7, %r50, %r40;
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
        @%p1 cp.async.bulk.tensor.2d.cta_group::{group}.shared::cluster.global.tile.mbarrier::complete_tx::bytes
            [%r7], [%d0, {{0, %r40}}], [%r6];
        @!%p2 bra WAITED; {WAIT.format(barrier="%r5", parity=0)} WAITED: {MEET}
        mad.lo.u32 %r9, %tid, 4, %r50; ld.shared.u32 %r10, [%r9];
        mad.lo.u32 %r11, %r40, 32, %tid; ld.param.u64 %out, [p0]; mad.wide.u32 %out, %r11, 4, %out;
        st.global.u32 [%out], %r10;"""
    launch_with_map(body, tensor, [out, array], 2048, target="sm_100a", arch="100a", grid=ctas, cluster=ctas,
                    **schedule)  # fmt: skip
    return out


@SCHEDULES
def test_loads_of_both_ctas_signal_the_leader(seed: int, lazy: bool) -> None:
    """With cta_group::2 the mbarrier may be the peer's: one expects the bytes of both, and who it tells reads them."""
    out = load_halves(2, "mov.u32 %r41, 0;", 256, seed=seed, lazy=lazy)
    assert (out == np.arange(64, dtype=np.uint32).reshape(2, 32)).all()


def test_loads_signal_no_cta_outside_of_the_pair() -> None:
    """With cta_group::1 that of the destination alone; with cta_group::2 none of another pair."""
    with pytest.raises(emulator.MemoryFault, match="cta_group::1 are in CTA ranks 0 and 1"):
        load_halves(1, "mov.u32 %r41, 0;", 256)
    with pytest.raises(emulator.MemoryFault, match="cta_group::2 are in CTA ranks 0 and [23]"):
        load_halves(2, "mov.u32 %r41, 0;", 512, ctas=4)


def test_bytes_of_one_half_alone() -> None:
    """A leader that expects its own half alone reads what is in flight, or has too many; one of more waits."""
    with pytest.raises(emulator.DeadlockFault):
        load_halves(2, "mov.u32 %r41, 0;", 384)
    with pytest.raises(emulator.EmulatorFault):
        for seed in range(8):
            load_halves(2, "mov.u32 %r41, 0;", 128, seed=seed)
