"""mbarriers, asynchronous copies, tensor maps, clusters and DSMEM of the emulator, eager and lazy, under several
schedules.
"""

from __future__ import annotations

import numpy as np
import pytest
from ptx import launch, module

import emulator
from emulator.machine.memory import Region, Space
from emulator.units.tma import TensorMap

SCHEDULES = pytest.mark.parametrize("seed, lazy", [(0, False), (1, True), (2, True), (3, True)])
WAIT = """
    {{ .reg .pred %done; WAIT: mbarrier.try_wait.parity.shared::cta.b64 %done, [{barrier}], {parity};
    @!%done bra WAIT; }}
"""


def tensor_map_bytes(*arguments: object) -> bytes:
    return emulator.Device("90a").encode_tensor_map(*arguments)


def launch_with_map(
    body: str, tensor: bytes, buffers: list[np.ndarray], shared: int, threads: int = 32, **options: object
) -> None:
    """Like `launch` with a tensor map as the last parameter, `map`."""
    text = module(body, len(buffers), shared=shared, target=options.pop("target", "sm_90a"))
    head, tail = text.split(") {", 1)
    text = f"{head}, .param .align 64 .b8 map[128]) {{{tail}"
    padding = bytes(-8 * len(buffers) % 64)
    launch(text, buffers, threads, extra=padding + tensor, **options)


DUMP = """
    ld.param.u64 %out, [p0]; mov.u32 %r60, %tid;
DUMPING:
    mad.wide.u32 %offset, %r60, 4, %out;
    mad.lo.u32 %r61, %r60, 4, %r50;
    ld.shared.u32 %r62, [%r61];
    st.global.u32 [%offset], %r62;
    add.u32 %r60, %r60, 32;
    setp.lt.u32 %p7, %r60, {words};
    @%p7 bra DUMPING;
"""

LOADS = [  # element, numpy type, dims, box, coordinates, swizzle
    ("u8", np.uint8, (256,), (128,), (64,), 0),
    ("u8", np.uint8, (64, 40), (64, 16), (0, 8), 64),
    ("u8", np.uint8, (256, 40), (128, 16), (128, 32), 128),
    ("u8", np.uint8, (128, 20), (128, 16), (-32, -3), 128),
    ("u16", np.uint16, (64, 9, 5), (16, 4, 2), (56, 7, 4), 32),
    ("bf16", np.uint16, (64, 9, 5), (64, 2, 3), (0, -1, 3), 128),
    ("f32", np.uint32, (16, 7, 3, 4), (8, 3, 2, 2), (12, 5, 2, -1), 0),
    ("u32", np.uint32, (8, 5, 4, 3, 2), (8, 2, 2, 2, 2), (4, 4, 3, 2, 1), 32),
]


@pytest.mark.parametrize("element, start", [("u8", 24), ("u8", -8), ("f16", 4), ("u32", 2)])
def test_a_box_starts_at_a_multiple_of_16_bytes(element: str, start: int) -> None:
    """ISA 5.5.3.1. An H200 answers such a copy with an illegal instruction, also where all of it is out of bounds."""
    tensor = TensorMap.decode(tensor_map_bytes(1 << 20, element, (256, 8), (1024,), (32, 4), 0), 0)
    for coordinates in ((start, 0), (start, 100)):
        with pytest.raises(emulator.MemoryFault, match="not aligned to 16 bytes"):
            tensor.load(Space(), coordinates)
        with pytest.raises(emulator.MemoryFault, match="not aligned to 16 bytes"):
            tensor.store(Space(), coordinates, np.zeros(128, np.uint8), None)


@SCHEDULES
@pytest.mark.parametrize("case", LOADS, ids=lambda c: f"{c[0]}-{len(c[2])}d-swizzle{c[5]}")
def test_tensor_loads(case: tuple, seed: int, lazy: bool, rng: np.random.Generator) -> None:
    """Tiles of 1 to 5 dimensions with overhangs on both sides; zeros outside; the 16-byte chunks swizzled."""
    element, kind, dims, box, coordinates, swizzle = case
    array = rng.integers(1, 256, (*reversed(dims), np.dtype(kind).itemsize), dtype=np.uint8).view(kind)[..., 0]
    strides = [array.strides[-2 - i] for i in range(len(dims) - 1)]
    rank, size = len(dims), int(np.prod(box)) * array.itemsize
    out = np.zeros(size // 4, np.uint32)
    tensor = tensor_map_bytes(array.ctypes.data, element, dims, strides, box, swizzle)
    body = f"""
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 32768;
        setp.ne.u32 %p0, %tid, 0;
        @%p0 bra LOADED;
        mbarrier.init.shared::cta.b64 [%r51], 1;
        fence.mbarrier_init.release.cluster;
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r51], {size};
        cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
            [%r50], [%d0, {{{", ".join(map(str, coordinates))}}}], [%r51];
    LOADED:
        bar.warp.sync -1;
        {WAIT.format(barrier="%r51", parity=-2)}
        {DUMP.format(words=size // 4)}"""
    launch_with_map(body, tensor, [out, array], 32768 + 64, seed=seed, lazy=lazy)
    tile = np.zeros(tuple(reversed(box)), kind)
    for index in np.ndindex(*tile.shape):
        place = tuple(i + c for i, c in zip(index, reversed(coordinates), strict=True))
        if all(0 <= p < n for p, n in zip(place, array.shape, strict=True)):
            tile[index] = array[place]
    want = np.zeros(size, np.uint8)
    linear = tile.tobytes()
    for chunk in range(size // 16):
        address = 16 * chunk  # the buffer lies at a multiple of 1024
        row = address >> 7
        target = address ^ {0: 0, 32: row & 1, 64: row & 3, 128: row & 7}[swizzle] << 4
        want[target : target + 16] = np.frombuffer(linear[address : address + 16], np.uint8)
    assert out.tobytes() == want.tobytes()


@SCHEDULES
@pytest.mark.parametrize("swizzle", [0, 128])
def test_tensor_store_drops_what_is_outside(swizzle: int, seed: int, lazy: bool) -> None:
    """A tile written at an edge: inside it lands where a load would read it, outside nothing is touched."""
    array = np.full((10, 128), 0xEE, np.uint8)
    around = np.zeros(array.nbytes + 512, np.uint8)
    inside = around[256 - around.ctypes.data % 16 :][: array.nbytes].reshape(array.shape)
    inside[:] = array
    tensor = tensor_map_bytes(inside.ctypes.data, "u8", (128, 10), (128,), (128, 8), swizzle)
    body = """
        mov.u32 %r50, buffer; mov.u32 %r1, %tid;
    FILL:
        mad.lo.u32 %r2, %r1, 4, %r50; mul.lo.u32 %r3, %r1, 0x01010101; st.shared.u32 [%r2], %r3;
        add.u32 %r1, %r1, 32; setp.lt.u32 %p0, %r1, 256; @%p0 bra FILL;
        fence.proxy.async.shared::cta;
        bar.sync 0;
        setp.ne.u32 %p1, %tid, 0; @%p1 bra DONE;
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
        cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d0, {0, 4}], [%r50];
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0;
        st.shared.u32 [%r50], 0;
        cp.async.bulk.wait_group 0;
    DONE:"""
    launch_with_map(body, tensor, [around], 1024, seed=seed, lazy=lazy)
    source = np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(8, 8, 16)
    for row in range(6):
        for chunk in range(8):
            want = source[row, chunk ^ row if swizzle else chunk]
            assert inside[4 + row, 16 * chunk : 16 * chunk + 16].tolist() == want.tolist()
    assert (inside[:4] == 0xEE).all() and around.sum(dtype=int) == inside.sum(dtype=int)


@SCHEDULES
def test_reducing_tensor_store(seed: int, lazy: bool) -> None:
    """cp.reduce adds the tile to what is there."""
    array = np.arange(64, dtype=np.float32).reshape(4, 16)
    before = array.copy()
    tensor = tensor_map_bytes(array.ctypes.data, "f32", (16, 4), (64,), (16, 2), 0)
    body = """
        mov.u32 %r50, buffer; mad.lo.u32 %r2, %tid, 4, %r50; cvt.rn.f32.u32 %r3, %tid; st.shared.f32 [%r2], %r3;
        fence.proxy.async.shared::cta; bar.sync 0;
        setp.ne.u32 %p1, %tid, 0; @%p1 bra DONE;
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
        cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%d0, {0, 1}], [%r50];
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    DONE:"""
    launch_with_map(body, tensor, [array], 1024, seed=seed, lazy=lazy)
    before[1:3] += np.arange(32, dtype=np.float32).reshape(2, 16)
    assert (array == before).all()


@pytest.mark.parametrize("element", ["u4_align8", "u4_align16", "u6_align16"])
def test_packed_elements(element: str, rng: np.random.Generator) -> None:
    """Align8 keeps 16 elements of 4 bits in 8 bytes, align16 spreads 16 over 16 bytes, whose end is padding.

    The barrier is told of the bytes that are copied, and padding is not (ISA 5.5.1.1.1, 9.7.9.25.5.2).
    """
    pitch = 96 if element == "u6_align16" else 64  # bytes of 128 elements
    memory = rng.integers(0, 256, 16 * pitch + 64, dtype=np.uint8)
    data = memory[-memory.ctypes.data % 64 :][: 16 * pitch].reshape(16, pitch)
    size = 4 * pitch if element == "u4_align8" else 4 * 128
    tensor = tensor_map_bytes(data.ctypes.data, element, (128, 16), (pitch,), (128, 4), 0)
    out = np.zeros(size // 4, np.uint32)
    body = f"""
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 2048;
        setp.ne.u32 %p0, %tid, 0; @%p0 bra LOADED;
        mbarrier.init.shared::cta.b64 [%r51], 1;
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r51], {4 * pitch};
        cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes
            [%r50], [%d0, {{0, 2}}], [%r51];
    LOADED: bar.warp.sync -1; {WAIT.format(barrier="%r51", parity=0)} {DUMP.format(words=size // 4)}"""
    launch_with_map(body, tensor, [out, memory], 2048 + 64, target="sm_100a", arch="100a")
    want = data[2:6]
    if element != "u4_align8":
        groups = want.reshape(-1, pitch // 8)  # 16 elements
        want = np.pad(groups, ((0, 0), (0, 16 - groups.shape[1])))
    assert out.tobytes() == want.tobytes()


@pytest.mark.parametrize("element", ["tf32", "tf32_ftz"])
def test_loads_round_to_tf32(element: str) -> None:
    """To nearest, ties to even; past the largest value to infinity, any NaN to one, subnormals as others: as an H200
    answered for each of these words, and for a million others."""
    pairs = {0x7F800000: 0x7F800000, 0xFF800000: 0xFF800000, 0x7F800001: 0x7FFFE000, 0xFFC01234: 0x7FFFE000,
             0x7F7FFFFF: 0x7F800000, 0x7F7FF000: 0x7F800000, 0x7F7FEFFF: 0x7F7FE000, 0x1001: 0x2000, 0x1000: 0,
             0x3000: 0x4000, 0xFFF: 0, 0x80001000: 0x80000000, 0x7FFFFF: 0x800000, 0x3F801000: 0x3F800000,
             0x3F803000: 0x3F804000, 0xBF801001: 0xBF802000}  # fmt: skip
    memory = np.array([*pairs, *[0] * 16], np.uint32)
    space = Space()
    space.map(Region("words", memory.ctypes.data, memory.view(np.uint8), False))
    tensor = TensorMap(memory.ctypes.data, element, (16,), (), (16,), element_strides=(1,))
    assert tensor.load(space, (0,)).view(np.uint32).tolist() == list(pairs.values())


@SCHEDULES
def test_pipeline_of_stages(seed: int, lazy: bool) -> None:
    """One warp loads 7 tiles through a ring of 3 stages with full and empty barriers, three warps add them up."""
    array = np.random.default_rng(4).integers(0, 1 << 20, (7 * 8, 32), dtype=np.uint32)
    out = np.zeros(96, np.uint32)
    tensor = tensor_map_bytes(array.ctypes.data, "u32", (32, 56), (128,), (32, 8), 128)
    body = f"""
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 3072;    // full barriers at +0, empty at +24
        setp.ne.u32 %p0, %tid, 0; @%p0 bra READY;
        mov.u32 %r1, 0;
    INIT:
        mad.lo.u32 %r2, %r1, 8, %r51;
        mbarrier.init.shared::cta.b64 [%r2], 1; mbarrier.init.shared::cta.b64 [%r2+24], 3;
        add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 3; @%p1 bra INIT;
        fence.mbarrier_init.release.cluster;
    READY:
        bar.sync 0;
        mov.u32 %r1, 0; mov.u32 %r2, 0; mov.u32 %r3, 0; mov.u32 %r9, 0;   // tile, stage, parity, sum
        shr.u32 %r4, %tid, 5; setp.eq.u32 %p2, %r4, 3; @%p2 bra PRODUCER;
    CONSUMER:
        mad.lo.u32 %r5, %r2, 8, %r51; mad.lo.u32 %r6, %r2, 1024, %r50;
        {WAIT.format(barrier="%r5", parity="%r3")}
        mov.u32 %r7, 0;
    ROWS:
        shr.u32 %r10, %lane, 2; xor.b32 %r10, %r10, %r7; shl.b32 %r10, %r10, 4;   // the chunk of this lane in row r7
        and.b32 %r11, %lane, 3; mad.lo.u32 %r10, %r11, 4, %r10; mad.lo.u32 %r10, %r7, 128, %r10;
        add.u32 %r10, %r10, %r6; ld.shared.u32 %r8, [%r10]; add.u32 %r9, %r9, %r8;
        add.u32 %r7, %r7, 1; setp.lt.u32 %p3, %r7, 8; @%p3 bra ROWS;
        bar.warp.sync -1;
        elect.sync _|%p4, -1;
        @%p4 mbarrier.arrive.shared::cta.b64 _, [%r5+24];
        add.u32 %r1, %r1, 1; add.u32 %r2, %r2, 1;
        setp.eq.u32 %p5, %r2, 3; @%p5 xor.b32 %r3, %r3, 1; @%p5 mov.u32 %r2, 0;
        setp.lt.u32 %p6, %r1, 7; @%p6 bra CONSUMER;
        ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 4, %out; st.global.u32 [%out], %r9;
        bra END;
    PRODUCER:
        elect.sync _|%p4, -1; @!%p4 bra END;
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
    LOAD:
        mad.lo.u32 %r5, %r2, 8, %r51; mad.lo.u32 %r6, %r2, 1024, %r50; add.u32 %r12, %r5, 24;
        xor.b32 %r13, %r3, 1;
        {WAIT.format(barrier="%r12", parity="%r13")}
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 1024;
        mul.lo.u32 %r14, %r1, 8;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r6], [%d0, {{0, %r14}}], [%r5];
        add.u32 %r1, %r1, 1; add.u32 %r2, %r2, 1;
        setp.eq.u32 %p5, %r2, 3; @%p5 xor.b32 %r3, %r3, 1; @%p5 mov.u32 %r2, 0;
        setp.lt.u32 %p6, %r1, 7; @%p6 bra LOAD;
    END:"""
    launch_with_map(body, tensor, [out, array], 4096, 128, seed=seed, lazy=lazy)
    assert out.tolist() == (array.sum(0, dtype=np.uint32).tolist()) * 3


@SCHEDULES
def test_multicast_and_remote_arrivals(seed: int, lazy: bool) -> None:
    """A cluster of 4: every CTA loads a quarter for all; each signals all of the others when it has read its copy."""
    array = np.random.default_rng(5).integers(0, 1 << 32, (8, 32), dtype=np.uint32)
    out = np.zeros((4, 256), np.uint32)
    tensor = tensor_map_bytes(array.ctypes.data, "u32", (32, 8), (128,), (32, 2), 0)
    body = f"""
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 2048; add.u32 %r52, %r51, 8;
        mov.u32 %r40, %cluster_ctarank;
        setp.ne.u32 %p0, %tid, 0; @%p0 bra READY;
        mbarrier.init.shared::cta.b64 [%r51], 1; mbarrier.init.shared::cta.b64 [%r52], 4;
        fence.mbarrier_init.release.cluster;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r51], 1024;
    READY:
        barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;
        @%p0 bra LOADED;
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
        mad.lo.u32 %r1, %r40, 256, %r50; mul.lo.u32 %r2, %r40, 2; mov.u16 %h0, 15;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
            [%r1], [%d0, {{0, %r2}}], [%r51], %h0;
    LOADED:
        bar.warp.sync -1;
        {WAIT.format(barrier="%r51", parity=0)}
        ld.param.u64 %out, [p0]; mad.wide.u32 %out, %r40, 1024, %out; mov.u32 %r60, %tid;
    DUMPING:
        mad.wide.u32 %offset, %r60, 4, %out; mad.lo.u32 %r61, %r60, 4, %r50;
        ld.shared.u32 %r62, [%r61]; st.global.u32 [%offset], %r62;
        add.u32 %r60, %r60, 32; setp.lt.u32 %p7, %r60, 256; @%p7 bra DUMPING;
        setp.gt.u32 %p1, %tid, 3; @%p1 bra SIGNALLED;
        mapa.shared::cluster.u32 %r3, %r52, %tid;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3];
    SIGNALLED:
        {WAIT.replace("WAIT", "AGAIN").format(barrier="%r52", parity=0)}"""
    launch_with_map(body, tensor, [out, array], 4096, 32, grid=4, cluster=4, seed=seed, lazy=lazy)
    assert all((out[rank].reshape(8, 32) == array).all() for rank in range(4))


@SCHEDULES
def test_distributed_shared_memory(seed: int, lazy: bool) -> None:
    """CTAs of a cluster read, write and count in each other's shared memory, with 32-bit and generic addresses."""
    body = """
        mov.u32 %r50, buffer; mov.u32 %r1, %cluster_ctarank; mov.u32 %r2, %cluster_nctarank;
        mad.lo.u32 %r3, %tid, 4, %r50; mad.lo.u32 %r4, %r1, 1000, %tid; st.shared.u32 [%r3], %r4;
        setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [%r50+512], 0;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        add.u32 %r5, %r1, 1; rem.u32 %r5, %r5, %r2;
        mapa.shared::cluster.u32 %r6, %r3, %r5; ld.shared::cluster.u32 %r0, [%r6];
        cvt.u64.u32 %d1, %r50; cvta.shared.u64 %d1, %d1; mapa.u64 %d1, %d1, 0;
        atom.add.u32 %r7, [%d1+512], 1;
        st.shared::cluster.u32 [%r6+128], %r1;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        ld.shared.u32 %r8, [%r3+128]; mad.lo.u32 %r0, %r8, 100000, %r0;
        mapa.shared::cluster.u32 %r9, %r50, 0; ld.shared::cluster.u32 %r10, [%r9+512];
        setp.ne.u32 %p1, %r10, 96; @%p1 trap;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        ld.param.u64 %out, [p0]; mad.lo.u32 %r11, %r1, 32, %tid; mad.wide.u32 %out, %r11, 4, %out;
        st.global.u32 [%out], %r0;"""
    out = np.zeros((3, 32), np.uint32)
    launch(module(body, shared=1024), [out], 32, 3, 3, seed=seed, lazy=lazy)
    for rank in range(3):
        want = (rank + 1) % 3 * 1000 + np.arange(32) + (rank - 1) % 3 * 100000
        assert (out[rank] == want).all()


@SCHEDULES
def test_copies_of_a_thread(seed: int, lazy: bool) -> None:
    """cp.async of 4 and 16 bytes with zero fill, groups waited for in order, and an mbarrier that they arrive on."""
    values = np.random.default_rng(6).integers(0, 1 << 32, (3, 32, 4), dtype=np.uint32)
    out = np.zeros((3, 32, 4), np.uint32)
    body = f"""
        mov.u32 %r50, buffer; mad.lo.u32 %r1, %tid, 16, %r50; add.u32 %r51, %r50, 4096;
        ld.param.u64 %d0, [p1]; mad.wide.u32 %d0, %tid, 16, %d0; ld.param.u64 %out, [p0];
        mad.wide.u32 %out, %tid, 16, %out;
        setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r51], 32; bar.sync 0;
        cp.async.cg.shared.global [%r1], [%d0], 16;
        cp.async.commit_group;
        and.b32 %r2, %tid, 15; cp.async.cg.shared.global.L2::128B [%r1+512], [%d0+512], 16, %r2;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r1+1024], [%d0+1024], 4; cp.async.ca.shared.global [%r1+1028], [%d0+1028], 8, 8;
        cp.async.ca.shared.global [%r1+1036], [%d0+1036], 4;
        cp.async.wait_group 1;
        ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r1]; st.global.v4.u32 [%out], {{%r4, %r5, %r6, %r7}};
        cp.async.mbarrier.arrive.noinc.shared.b64 [%r51];
        {WAIT.format(barrier="%r51", parity=0)}
        ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r1+512]; st.global.v4.u32 [%out+512], {{%r4, %r5, %r6, %r7}};
        ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r1+1024]; st.global.v4.u32 [%out+1024], {{%r4, %r5, %r6, %r7}};
        cp.async.wait_all;"""
    body = body.replace("[%r1+1028], [%d0+1028], 8, 8", "[%r1+1028], [%d0+1028], 4, 4").replace(
        "cp.async.ca.shared.global [%r1+1036]", "cp.async.ca.shared.global [%r1+1032], [%d0+1032], 4;\n"
        "        cp.async.ca.shared.global [%r1+1036]",
    )  # fmt: skip
    launch(module(body, 2, shared=8192), [out, values], 32, seed=seed, lazy=lazy)
    values = values.copy().view(np.uint8).reshape(3, 32, 16)
    for t in range(32):
        values[1, t, t & 15 :] = 0
    assert out.tobytes() == values.tobytes()


@SCHEDULES
def test_bulk_copies(seed: int, lazy: bool) -> None:
    """cp.async.bulk: global to shared, shared to the other CTA of the cluster, and back to global with an addition."""
    values = np.random.default_rng(7).integers(0, 1 << 30, (2, 64), dtype=np.uint32)
    out = np.full((2, 64), 5, np.uint32)
    body = f"""
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 1024; add.u32 %r52, %r50, 512; add.u32 %r53, %r51, 8;
        mov.u32 %r1, %cluster_ctarank; xor.b32 %r2, %r1, 1;
        ld.param.u64 %d0, [p1]; mad.wide.u32 %d0, %r1, 256, %d0; ld.param.u64 %d1, [p0];
        mad.wide.u32 %d1, %r1, 256, %d1;
        setp.ne.u32 %p0, %tid, 0; @%p0 bra READY;
        mbarrier.init.shared::cta.b64 [%r51], 1; mbarrier.init.shared::cta.b64 [%r53], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r51], 256;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r53], 256;
    READY:
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        @%p0 bra DONE;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r50], [%d0], 256, [%r51];
        {WAIT.format(barrier="%r51", parity=0)}
        mapa.shared::cluster.u32 %r3, %r52, %r2; mapa.shared::cluster.u32 %r4, %r53, %r2;
        cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r3], [%r50], 256, [%r4];
        {WAIT.replace("WAIT", "OTHER").format(barrier="%r53", parity=0)}
        cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%d1], [%r52], 256;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    DONE:
        bar.warp.sync -1;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"""
    launch(module(body, 2, shared=2048), [out, values], 32, 2, 2, seed=seed, lazy=lazy)
    assert (out == values[::-1] + 5).all()


@SCHEDULES
def test_mbarrier_tokens_drops_and_counts(seed: int, lazy: bool) -> None:
    """State tokens, arrive with a count, arrive_drop, pending_count, test_wait, expect_tx and complete_tx by
    software.
    """
    body = """
        mov.u32 %r51, buffer;
        setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared::cta.b64 [%r51], 70; bar.sync 0;
        setp.gt.u32 %p1, %tid, 31; @%p1 bra SECOND;
        mbarrier.arrive.shared::cta.b64 %d0, [%r51], 1;
        bra SPIN;
    SECOND:
        mbarrier.arrive_drop.shared::cta.b64 %d0, [%r51];
    SPIN:
        mbarrier.test_wait.shared::cta.b64 %p2, [%r51], %d0;
        setp.ne.u32 %p3, %tid, 5; @%p3 bra NOTYET;
        @%p2 bra NOTYET;
        setp.eq.u32 %p4, %r9, 1; @%p4 bra NOTYET;
        mov.u32 %r9, 1;
        mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r51], 48;
        mbarrier.arrive.shared::cta.b64 _, [%r51], 6;
        mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r51], 48;
    NOTYET:
        @!%p2 bra SPIN;
        bar.sync 0;
        mov.u32 %r0, 0;
        @%p1 bra END;
        mbarrier.arrive.shared::cta.b64 %d1, [%r51];        // 38 are expected now: 32 here and 6 by thread 0
        setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.arrive.shared::cta.b64 _, [%r51], 6;
        mbarrier.pending_count.b64 %r0, %d1;
    AGAIN:
        mbarrier.try_wait.shared::cta.b64 %p2, [%r51], %d1, 1000; @!%p2 bra AGAIN;
    END:
        ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 4, %out; st.global.u32 [%out], %r0;"""
    out = np.zeros(64, np.uint32)
    body = "mov.u32 %r9, 0;" + body
    launch(module(body, shared=64), [out], 64, seed=seed, lazy=lazy)
    assert ((out[:32] >= 1) & (out[:32] <= 38)).all() and not out[32:].any()


@SCHEDULES
def test_cluster_launch_control(seed: int, lazy: bool) -> None:
    """Every tile is computed once, whichever CTA gets it: 40 CTAs, some of which take over others before they start."""
    body = f"""
        mov.u32 %r50, buffer; add.u32 %r51, %r50, 16; mov.u32 %r1, %ctaid.x; mov.u32 %r3, 0; ld.param.u64 %d0, [p0];
        setp.ne.u32 %p0, %tid, 0; @!%p0 mbarrier.init.shared::cta.b64 [%r51], 1; bar.sync 0;
    TILE:
        mad.wide.u32 %d1, %r1, 4, %d0; @!%p0 red.global.add.u32 [%d1], 1;
        @%p0 bra ASKED;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r51], 16;
        clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.b128 [%r50], [%r51];
    ASKED:
        bar.warp.sync -1;
        {WAIT.format(barrier="%r51", parity="%r3")}
        xor.b32 %r3, %r3, 1;
        ld.shared.b128 %w0, [%r50];
        clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p1, %w0;
        @!%p1 bra END;
        clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {{%r1, %r4, %r5, _}}, %w0;
        setp.ne.u32 %p2, %r4, 0; @%p2 trap;
        bar.sync 0;
        bra TILE;
    END:"""
    out = np.zeros(40, np.uint32)
    launch(module(body, shared=64, target="sm_100a"), [out], 32, 40, seed=seed, lazy=lazy, arch="100a")
    assert (out == 1).all()


@SCHEDULES
def test_tensor_maps_made_on_the_device(seed: int, lazy: bool) -> None:
    """tensormap.replace builds a map in shared memory, cp_fenceproxy publishes it, a load uses it."""
    array = np.arange(64 * 16, dtype=np.uint16).reshape(16, 64)
    out, place = np.zeros(8 * 64 // 2, np.uint32), np.zeros(256, np.uint8)
    text = """
        mov.u32 %r50, buffer; add.u32 %r49, %r50, 1024; add.u32 %r51, %r50, 2048; mov.u32 %r1, %tid;
        mad.lo.u32 %r2, %tid, 4, %r49; st.shared.u32 [%r2], 0;
        bar.warp.sync -1;
        ld.param.u64 %d1, [p1]; ld.param.u64 %d2, [p2]; add.u64 %d2, %d2, 63; and.b64 %d2, %d2, -64;
        setp.ne.u32 %p0, %tid, 0; @%p0 bra BUILT;
        tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%r49], %d1;
        tensormap.replace.tile.rank.shared::cta.b1024.b32 [%r49], 1;
        tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%r49], 0, 64;
        tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%r49], 1, 8;
        tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%r49], 0, 64;
        tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%r49], 1, 16;
        tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%r49], 0, 128;
        tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%r49], 0, 1;
        tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%r49], 1, 1;
        tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%r49], 10;
        tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%r49], 0;
        tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%r49], 0;
        tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%r49], 0;
    BUILT:
        bar.warp.sync -1;
        tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%d2], [%r49], 128;
        fence.proxy.tensormap::generic.acquire.gpu [%d2], 128;
        @%p0 bra LOADED;
        mbarrier.init.shared::cta.b64 [%r51], 1; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r51], 1024;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r50], [%d2, {0, 5}], [%r51];
    LOADED:
        bar.warp.sync -1;""" + WAIT.format(barrier="%r51", parity=0) + DUMP.format(words=256)  # fmt: skip
    launch(module(text, 3, shared=4096), [out, array, place], 32, seed=seed, lazy=lazy)
    assert out.tobytes() == array[5:13].tobytes()
