"""Rules of asynchronous copies at their edges: what cp.async waits for and skips, and what a tensor map may reach."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from ptx import launch, module
from test_core_async import SCHEDULES, WAIT, tensor_map_bytes

import emulator
from emulator.machine.memory import Region, Space
from emulator.units.tma import TensorMap

COPY = """mov.u32 %r50, buffer; mad.lo.u32 %r1, %tid, 16, %r50; ld.param.u64 %d0, [p0]; mad.wide.u32 %d0, %tid, 16, %d0;
    {copy} ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r1]; st.global.v4.u32 [%d0+512], {{%r4, %r5, %r6, %r7}};"""
ISSUE = "cp.async.cg.shared.global [%r1], [%d0], 16;"


def copied(copy: str, rng: np.random.Generator, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """What a copy by each thread brought, and its source."""
    data = rng.integers(1, 1 << 32, (2, 128), dtype=np.uint32)
    launch(module(COPY.format(copy=copy), shared=1024), [data], **options)
    return data[1], data[0]


@SCHEDULES
def test_wait_all_takes_what_is_in_no_group(seed: int, lazy: bool, rng: np.random.Generator) -> None:
    got, want = copied(ISSUE + "cp.async.wait_all;", rng, seed=seed, lazy=lazy)
    assert (got == want).all()


def test_wait_group_leaves_what_is_in_no_group(rng: np.random.Generator) -> None:
    """Under some schedule of a few."""
    with pytest.raises(emulator.UninitializedRead, match="in flight"):
        for seed in range(8):
            copied(ISSUE + "cp.async.wait_group 0;", rng, seed=seed)


@pytest.mark.parametrize(
    "operands, what", [("[%r1+4], [%d0]", "destination outside shared memory or not aligned"),
                       ("[%r1], [%d0+4]", "source of cp.async is not a multiple of 16")],
)  # fmt: skip
def test_alignment_of_copies(operands: str, what: str, rng: np.random.Generator) -> None:
    """Both addresses are multiples of the size."""
    with pytest.raises(emulator.MemoryFault, match=what):
        copied(f"cp.async.cg.shared.global {operands}, 16; cp.async.wait_all;", rng)


@SCHEDULES
@pytest.mark.parametrize("noinc", [True, False])
def test_arrivals_of_copies(noinc: bool, seed: int, lazy: bool, rng: np.random.Generator) -> None:
    """Each arrives once, and adds to the pending count itself unless .noinc."""
    form, own = (".noinc", "") if noinc else ("", "mbarrier.arrive.shared::cta.b64 _, [%r51];")
    copy = f"""add.u32 %r51, %r50, 512; setp.eq.u32 %p0, %tid, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%r51], 32; bar.sync 0;
        {ISSUE} cp.async.mbarrier.arrive{form}.shared.b64 [%r51]; {own} {WAIT.format(barrier="%r51", parity=0)}"""
    got, want = copied(copy, rng, seed=seed, lazy=lazy)
    assert (got == want).all()


def test_a_copy_of_no_bytes_reads_nothing(rng: np.random.Generator) -> None:
    """Its source may be any address; the destination becomes zeros."""
    got, _ = copied("mov.u64 %d1, 0; cp.async.cg.shared.global [%r1], [%d1], 16, 0; cp.async.wait_all;", rng)
    assert not got.any()


# Tensor maps


def tensor_in_memory(dims: tuple[int, ...], box: tuple[int, ...], writable: bool = True) -> tuple:
    """A map of u8 with rows of 128 bytes in memory of 8 rows, with the memory and a space."""
    memory = np.full(8 * 128 + 64, 0xEE, np.uint8)
    data = memory[-memory.ctypes.data % 64 :][: 8 * 128]
    space = Space()
    space.map(Region("weights", data.ctypes.data, data, writable))
    encoded = tensor_map_bytes(data.ctypes.data, "u8", dims, (128,), box, 0)
    return TensorMap.decode(encoded, 0), data.reshape(8, 128), space


@pytest.mark.parametrize("place", [(0, -1), (-16, 0)])
def test_a_store_begins_inside_the_tensor(place: tuple[int, int]) -> None:
    """In every dimension."""
    tensor, data, space = tensor_in_memory((128, 8), (32, 2))
    with pytest.raises(emulator.MemoryFault, match="a store to a box that begins before the tensor"):
        tensor.store(space, place, np.zeros(64, np.uint8), None)
    assert (data == 0xEE).all()


def test_loads_of_rows_before_the_tensor(rng: np.random.Generator) -> None:
    """A negative outer coordinate gives as many rows of zeros, then the first ones."""
    tensor, data, space = tensor_in_memory((128, 8), (32, 4))
    data[:] = rng.integers(1, 256, data.shape)
    got = tensor.load(space, (32, -3)).reshape(4, 32)
    assert not got[:3].any() and (got[3] == data[0, 32:64]).all()


def test_the_tail_of_a_store_takes_16_bytes(rng: np.random.Generator) -> None:
    """The inner dimension ends inside 16 bytes: those are written to their end, and nothing behind them."""
    tensor, data, space = tensor_in_memory((72, 8), (96, 2))
    tile = rng.integers(0, 256, (2, 96), dtype=np.uint8)
    tensor.store(space, (0, 3), tile.reshape(-1), None)
    assert (data[3:5, :80] == tile[:, :80]).all() and (data[3:5, 80:] == 0xEE).all()


def test_a_store_to_read_only_memory() -> None:
    """Of a tensor and of bytes."""
    tensor, data, space = tensor_in_memory((128, 8), (32, 2), writable=False)
    with pytest.raises(emulator.MemoryFault, match="write to weights, which is read-only"):
        tensor.store(space, (0, 0), np.zeros(64, np.uint8), None)
    device = emulator.Device("90a")
    device.map_buffer(data.ctypes.data, data.nbytes, False, "weights")
    body = """mov.u32 %r50, buffer; mad.lo.u32 %r1, %tid, 4, %r50; st.shared.b32 [%r1], 0;
        fence.proxy.async.shared::cta; bar.warp.sync -1; ld.param.u64 %d0, [p0];
        setp.ne.u32 %p0, %tid, 0; @%p0 bra END; cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r50], 128;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"""
    with pytest.raises(emulator.MemoryFault, match="write to weights, which is read-only"):
        device.launch(emulator.load(module(body, shared=128)), "kernel", (1,), (32,), (1,), 0,
                      struct.pack("<Q", data.ctypes.data))  # fmt: skip
    assert (data == 0xEE).all()


@pytest.mark.parametrize("stride, good", [((1 << 40) - 16, True), (1 << 40, False)])
def test_strides_have_40_bits(stride: int, good: bool) -> None:
    arguments = 1 << 20, "f32", (32, 8), (stride,), (32, 8), 0
    if good:
        tensor_map_bytes(*arguments)
    else:
        with pytest.raises(emulator.LaunchError, match=f"stride {stride}"):
            tensor_map_bytes(*arguments)
