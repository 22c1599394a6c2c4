"""What the emulator refuses: each kernel holds one mistake, and the fault says which, and where."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import launch, module
from test_core_async import WAIT, launch_with_map, tensor_map_bytes

import emulator
from emulator import (
    BarrierFault,
    DeadlockFault,
    DivergenceFault,
    LaunchError,
    MemoryFault,
    PtxSyntaxError,
    TrapFault,
    UninitializedRead,
    UnsupportedInstruction,
)
from emulator.checks.races import RaceFault

BUFFER = np.zeros(64, np.uint32)
SETUP = "ld.param.u64 %d0, [p0]; mad.wide.u32 %d1, %tid, 4, %d0; mov.u32 %r50, buffer; mad.lo.u32 %r1, %tid, 4, %r50; "

FAULTS = {
    # memory
    "global-beyond": ("ld.global.u32 %r0, [%d1+160];", MemoryFault, "outside every buffer: nearest is buffer 0"),
    "global-before": ("st.global.u32 [%d1+-4], %r1;", MemoryFault, "offset -4"),
    "global-misaligned": ("ld.global.u32 %r0, [%d1+2];", MemoryFault, "is not aligned"),
    "global-null": ("mov.u64 %d2, 0; ld.global.u32 %r0, [%d2];", MemoryFault, "null pointer"),
    "generic-null": ("mov.u64 %d2, 0; st.u32 [%d2], %r1;", MemoryFault, "null pointer"),
    "vector-misaligned": ("ld.global.v4.u32 {%r0, %r2, %r3, %r4}, [%d1];", MemoryFault, "16 bytes"),
    "shared-beyond": ("st.shared.u32 [%r1+4000], %r1;", MemoryFault, "outside shared memory"),
    "shared-null": ("mov.u32 %r2, 0; ld.shared.u32 %r0, [%r2];", MemoryFault, "outside shared memory"),
    "shared-misaligned": ("st.shared.u32 [%r1+1], %r1;", MemoryFault, "is not aligned"),
    "shared-of-no-cta": ("mapa.shared::cluster.u32 %r2, %r1, 1; ld.shared::cluster.u32 %r0, [%r2];", MemoryFault,
                         "CTA rank 1 in a cluster of 1"),
    "local-beyond": (".local .b8 depot[16]; mov.u64 %d2, depot; st.local.u32 [%d2+16], %r1;", MemoryFault,
                     "outside local memory of 16 bytes"),
    "atomic-beyond": ("atom.global.add.u32 %r0, [%d1+160], 1;", MemoryFault, "outside every buffer"),
    "parameter-write": ("mov.b64 %d2, p0; cvta.param.u64 %d2, %d2; st.u64 [%d2], %d0;", MemoryFault,
                        "write to a parameter"),
    # uninitialised and in flight
    "shared-unwritten": ("ld.shared.u32 %r0, [%r1];", UninitializedRead, "that nothing has written"),
    "shared-partly-written": ("st.shared.u8 [%r1], %r1; ld.shared.u32 %r0, [%r1];", UninitializedRead,
                              "that nothing has written"),
    "copy-not-waited-for": ("cp.async.ca.shared.global [%r1], [%d1], 4; cp.async.commit_group;"
                            " ld.shared.u32 %r0, [%r1];",
                            UninitializedRead, "in flight"),
    "copy-group-not-waited-for": (
        "cp.async.ca.shared.global [%r1], [%d1], 4; cp.async.commit_group; cp.async.wait_group 1;"
        " ld.shared.u32 %r0, [%r1];",
        UninitializedRead, "in flight"),
    "bulk-source-unwritten": (
        "setp.ne.u32 %p0, %tid, 0; @%p0 bra END; cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r50], 64;"
        "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:",
        UninitializedRead, "nothing has written"),
    # lanes of a warp
    "lanes-read-unordered": ("st.shared.u32 [%r1], %r1; xor.b32 %r2, %r1, 4; ld.shared.u32 %r0, [%r2];",
                             RaceFault, "written, with no barrier of the warp between"),
    "lanes-write-unordered": (
        "st.shared.u32 [%r1], %r1; bar.warp.sync -1; xor.b32 %r2, %r1, 4; ld.shared.u32 %r0, [%r2];"
        "st.shared.u32 [%r1], %r0;", RaceFault, "read, with no barrier of the warp between"),
    # mbarriers
    "mbarrier-uninitialised": ("mbarrier.arrive.shared::cta.b64 _, [%r50];", BarrierFault, "has not been initialised"),
    "mbarrier-invalidated": (
        "setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r50], 1;"
        " @%p0 mbarrier.inval.shared::cta.b64 [%r50];"
        "bar.warp.sync -1; mbarrier.arrive.shared::cta.b64 _, [%r50];", BarrierFault, "has not been initialised"),
    "mbarrier-overrun": (
        "setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r50], 31; bar.sync 0;"
        "mbarrier.arrive.shared::cta.b64 _, [%r50];", BarrierFault, "overruns the phase"),
    "mbarrier-count": ("mbarrier.init.shared::cta.b64 [%r50], 0;", BarrierFault, "count of 0"),
    "mbarrier-misaligned": ("mbarrier.init.shared::cta.b64 [%r50+4], 1;", MemoryFault, "multiple of 8"),
    "mbarrier-never": (
        "setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r50], 2; bar.sync 0;"
        "@%p0 mbarrier.arrive.shared::cta.b64 _, [%r50];" + WAIT.format(barrier="%r50", parity=0),
        DeadlockFault, "pending arrivals 1 of 2"),
    "mbarrier-bytes-never": (
        "setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r50], 1; bar.sync 0;"
        "@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r50], 16;" + WAIT.format(barrier="%r50", parity=0),
        DeadlockFault, "pending bytes 16"),
    # barriers and divergence
    "barrier-half": ("setp.lt.u32 %p0, %tid, 16; @%p0 bra END; bar.sync 0; ADD: bra ADD;"
                     " END: bar.warp.sync 0xFFFF; bra END2;"
                     "END2: bar.sync 1, 32;", DivergenceFault, "elsewhere or waiting"),
    "barrier-count": ("bar.sync 0, 33;", BarrierFault, "33"),
    "barrier-number": ("bar.sync 16;", BarrierFault, "16"),
    "barrier-never": ("setp.lt.u32 %p0, %tid, 32; @%p0 exit; bar.sync 1, 64;", DeadlockFault, "expects 64 threads"),
    "aligned-divergence": (
        "setp.lt.u32 %p0, %tid, 16; @%p0 bra LOW; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%r50];"
        " LOW: bar.sync 0;",
        DivergenceFault, "elsewhere or waiting"),
    "guarded-aligned": (
        "setp.lt.u32 %p0, %tid, 16; @%p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%r50];",
        DivergenceFault, "some of its threads"),
    # others
    "trap": ("setp.eq.u32 %p0, %tid, 9; @%p0 trap;", TrapFault, "trap"),
    "call": ("{ .param .b64 param0; st.param.b64 [param0], %d0; call.uni (retval0), vprintf, (param0); }",
             UnsupportedInstruction, "calls of functions"),
    "assertion": ("{ .param .b64 param0; st.param.b64 [param0], %d0; call.uni __assertfail, (param0); }",
                  TrapFault, "an assertion of the kernel failed"),
    "ldmatrix-row": ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r2, %r3, %r4}, [%r1];", MemoryFault,
                     "not a multiple of 16"),
    "setmaxnreg": ("setmaxnreg.inc.sync.aligned.u32 250;", UnsupportedInstruction, "multiple of 8"),
    "illegal-mma": ("mma.sync.aligned.m16n8k17.row.col.f32.bf16.bf16.f32 {%r0,%r1,%r2,%r3},"
                    " {%r0,%r1,%r2,%r3}, {%r0,%r1},"
                    "{%r0,%r1,%r2,%r3};", UnsupportedInstruction, "m16n8k17"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    """The class, the message, and the place of the fault."""
    body, kind, what = FAULTS[name]
    with pytest.raises(kind) as caught:
        threads = 64 if name == "barrier-never" else 32
        launch(module(SETUP + body, shared=1024, target="sm_120a"), [BUFFER.copy()], threads, arch="120a")
    fault = caught.value
    assert type(fault) is kind and what in str(fault), str(fault)
    assert fault.kernel == "kernel" and "kernel kernel" in str(fault)
    if kind is not DeadlockFault:
        assert fault.line is not None and fault.text and f"PTX line {fault.line}: {fault.text}" in str(fault)
    else:
        assert "CTA (0, 0, 0) warps [" in str(fault) and "PTX line" in str(fault)


def test_lanes_with_a_barrier_between() -> None:
    """A barrier of the warp after each exchange, and words that each lane has for itself, are no race."""
    body = SETUP + """st.shared.u32 [%r1], %r1; ld.shared.u32 %r0, [%r1]; bar.warp.sync -1;
        xor.b32 %r2, %r1, 4; ld.shared.u32 %r3, [%r2]; bar.warp.sync -1; st.shared.u32 [%r1], %r3;
        ld.shared.u32 %r4, [%r1]; sub.u32 %r4, %r4, %r2; st.global.u32 [%d1], %r4;"""
    out = np.ones(32, np.uint32)
    launch(module(body, shared=1024), [out], 32)
    assert not out.any()


def test_fault_names_the_lane_and_the_address() -> None:
    """Lane 9 of warp 1 of CTA 2 is the first that reads beyond the buffer."""
    body = """ld.param.u64 %d0, [p0]; mov.u32 %r1, %ctaid.x; setp.ne.u32 %p0, %r1, 2; @%p0 bra END;
              mad.wide.u32 %d1, %tid, 4, %d0; ld.global.u32 %r0, [%d1]; END:"""
    buffer = np.zeros(41, np.uint32)
    with pytest.raises(MemoryFault) as caught:
        launch(module(body), [buffer], 64, 3)
    fault = caught.value
    assert (fault.cta, fault.warp, fault.lane) == ((2, 0, 0), 1, 9)
    assert fault.address == buffer.ctypes.data + 4 * 41
    for part in ("CTA (2, 0, 0)", "warp 1", "lane 9", f"address {fault.address:#x}"):
        assert part in str(fault)


def test_read_only_buffers() -> None:
    device = emulator.Device("90a")
    device.map_buffer(BUFFER.ctypes.data, BUFFER.nbytes, False, "weights")
    loaded = emulator.load(module("ld.param.u64 %d0, [p0]; st.global.u32 [%d0], %tid;"))
    with pytest.raises(MemoryFault, match="write to weights, which is read-only"):
        device.launch(loaded, "kernel", (1,), (32,), (1,), 0, BUFFER.ctypes.data.to_bytes(8, "little"))
    assert not BUFFER.any()


def test_checks_can_be_turned_off() -> None:
    """Without checks an unwritten word is poison, not a fault; bounds are checked still."""
    out = np.zeros(32, np.uint32)
    launch(module(SETUP + "ld.shared.u32 %r0, [%r1]; st.global.u32 [%d1], %r0;", shared=1024), [out], checks=False)
    assert (out == 0xFFFFFFFF).all()
    with pytest.raises(MemoryFault):
        launch(module(SETUP + "ld.shared.u32 %r0, [%r1+4000];", shared=1024), [out], checks=False)


LOAD = """
    setp.ne.u32 %p0, %tid, 0; mov.u32 %r50, buffer; add.u32 %r51, %r50, 2048; @%p0 bra READY;
    mbarrier.init.shared::cta.b64 [%r51], 1; mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r51], {expected};
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes 
        [%r50+{offset}], [%d0, {{0, 0}}], [%r51];
READY:
    bar.warp.sync -1;
    {wait}
    mad.lo.u32 %r1, %tid, 4, %r50; {read}
"""
WAITED = WAIT.format(barrier="%r51", parity=0)


@pytest.mark.parametrize(
    "parts, kind, what",
    [
        (dict(expected=1024, offset=0, wait="", read="ld.shared.u32 %r0, [%r1];"), UninitializedRead, "in flight"),
        (dict(expected=1008, offset=0, wait=WAITED, read=""), DeadlockFault, "pending bytes -16"),
        (dict(expected=1024, offset=64, wait=WAITED, read=""), MemoryFault, "multiple of 128"),
        (dict(expected=1024, offset=3968, wait=WAITED, read=""), MemoryFault, "not inside shared memory"),
        (dict(expected=1024, offset=0, wait=WAIT.format(barrier="%r51", parity=1), read="ld.shared.u32 %r0, [%r1];"),
         UninitializedRead, "in flight"),
    ],
    ids=["not-waited-for", "bytes", "alignment", "bounds", "wrong-parity"],
)  # fmt: skip
def test_faults_of_tensor_loads(parts: dict, kind: type, what: str) -> None:
    """In lazy schedules the copy comes late enough for a reader that does not wait; one of a few seeds has it."""
    array = np.zeros((8, 32), np.uint32)
    tensor = tensor_map_bytes(array.ctypes.data, "u32", (32, 8), (128,), (32, 8), 0)
    with pytest.raises(kind, match=what):
        for seed in range(8):
            launch_with_map(LOAD.format(**parts), tensor, [array], 4096, seed=seed)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"pointer": 8}, "not a multiple of 16"),
        ({"strides": (72,)}, "stride 72 is not a multiple of 16"),
        ({"box": (16, 257)}, "box dimension is not in 1 to 256"),
        ({"box": (64, 8), "swizzle": 128}, "exceeds the swizzle"),
        ({"box": (2, 8)}, "inner box of 8 bytes"),
        ({"dims": (0, 8)}, "dimension is not in 1"),
        ({"element": "q8"}, "'q8'"),
        ({"strides": ()}, "0 strides for rank 2"),
    ],
)
def test_tensor_map_rules(change: dict, what: str) -> None:
    arguments = {"pointer": 1 << 20, "element": "f32", "dims": (32, 8), "strides": (128,), "box": (32, 8), "swizzle": 0}
    arguments |= change
    with pytest.raises(LaunchError, match=what):
        emulator.Device("90a").encode_tensor_map(*arguments.values())


@pytest.mark.parametrize(
    "geometry, what",
    [
        (((0, 1, 1), (32, 1, 1), (1, 1, 1), 0, 8), "grid"),
        (((3, 1, 1), (32, 1, 1), (2, 1, 1), 0, 8), "multiple of the cluster"),
        (((1, 1, 1), (1025, 1, 1), (1, 1, 1), 0, 8), "1025 threads"),
        (((1, 1, 1), (32, 1, 1), (1, 1, 1), 1 << 20, 8), "bytes of shared memory"),
        (((1, 1, 1), (32, 1, 1), (1, 1, 1), 0, 12), "takes 8 bytes of parameters"),
    ],
)
def test_launch_rules(geometry: tuple, what: str) -> None:
    *shape, size = geometry
    with pytest.raises(LaunchError, match=what):
        emulator.Device("90a").launch(emulator.load(module("")), "kernel", *shape, bytes(size))


@pytest.mark.parametrize(
    "target, arch, good",
    [("sm_90a", "90a", True), ("sm_90a", "100a", False), ("sm_100f", "103a", True), ("sm_100f", "120a", False),
     ("sm_120f", "121a", True), ("sm_90", "120a", True), ("sm_120a", "121a", False)],
)  # fmt: skip
def test_targets(target: str, arch: str, good: bool) -> None:
    """An a target runs on its architecture, an f target on its family, a plain one on anything newer."""
    loaded = emulator.load(module("", 0, target))
    device = emulator.Device(arch)
    if good:
        device.launch(loaded, "kernel", (1,), (32,), (1,), 0, b"")
    else:
        with pytest.raises(LaunchError, match="on a device of architecture"):
            device.launch(loaded, "kernel", (1,), (32,), (1,), 0, b"")


def test_unknown_kernel_and_architecture() -> None:
    with pytest.raises(LaunchError, match="no kernel 'other' in the module; it has kernel"):
        emulator.Device("90a").launch(emulator.load(module("", 0)), "other", (1,), (32,), (1,), 0, b"")
    with pytest.raises(LaunchError, match="'80'"):
        emulator.Device("80")


@pytest.mark.parametrize(
    "text, what",
    [
        (".version 9.0\n.target sm_90a\n.entry k() { mov.u32 %r0, 1 }", "PTX line 3: no ';'"),
        (".version 9.0\n.target sm_90a\nnonsense", "PTX line 3: expected a directive: 'nonsense'"),
        (".version 9.0\n.target sm_90a\n.visible .entry k() {\n.reg .q32 %r0;\n}", "PTX line 4: unknown register type"),
        (".version 9.0\n.target sm_90a\n.visible .entry k() {\nA: A: ret;\n}", "PTX line 4: label A is defined twice"),
    ],
)
def test_syntax_errors_name_the_line(text: str, what: str) -> None:
    with pytest.raises(PtxSyntaxError) as caught:
        emulator.load(text)
    assert what in str(caught.value)


def test_overlapping_buffers_are_refused() -> None:
    device = emulator.Device("90a")
    device.map_buffer(BUFFER.ctypes.data, BUFFER.nbytes, True, "one")
    with pytest.raises(MemoryFault, match="two overlaps one"):
        device.map_buffer(BUFFER.ctypes.data + 8, 16, True, "two")
    device.unmap_buffer(BUFFER.ctypes.data)
    device.map_buffer(BUFFER.ctypes.data + 8, 16, True, "two")
