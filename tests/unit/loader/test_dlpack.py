"""Reading buffers of real producers on the host, and the corners of the protocols."""

import ctypes
import gc

import numpy as np
import pytest
from device_buffers import (
    _STREAM,
    _TO_TENSOR,
    ArrayInterface,
    FastTensor,
    OldTensor,
    Tensor,
    _to_tensor,
    api_capsule,
    exchange_table,
)

import loader
from loader import dlpack


def test_torch():
    """Every dtype that torch exports, with FP4 as pairs, read as torch has it."""
    torch = pytest.importorskip("torch")
    for dtype, element in ((torch.float32, (2, 32, 1)), (torch.float16, (2, 16, 1)), (torch.bfloat16, (4, 16, 1)),
                           (torch.int32, (0, 32, 1)), (torch.int64, (0, 64, 1)), (torch.uint8, (1, 8, 1)),
                           (torch.float8_e4m3fn, (10, 8, 1)), (torch.float8_e8m0fnu, (14, 8, 1)),
                           (torch.float4_e2m1fn_x2, (17, 4, 2))):
        tensor = torch.empty((6, 4), dtype=torch.uint8).view(dtype) if dtype.itemsize == 1 else torch.empty(
            (6, 4), dtype=dtype)
        buffer = dlpack.read(tensor, "a")
        assert buffer == (tensor.data_ptr(), 1, 0, element, (6, 4), (4, 1), False), dtype
        assert buffer.element in dlpack.ELEMENTS
    view = torch.empty(6, 4)[2:, 1:]
    assert dlpack.read(view, "a")[:6] == (view.data_ptr(), 1, 0, (2, 32, 1), (4, 3), (4, 1))


def test_torch_uses_the_exchange_api():
    """torch 2.10 and later is read without `__dlpack__`."""
    torch = pytest.importorskip("torch", minversion="2.10")
    assert dlpack.exchange(torch.Tensor) is not None
    assert dlpack.exchange(torch.nn.Parameter) is not None


def test_jax():
    """JAX gives legacy capsules, and FP4 by value."""
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    host = jax.devices("cpu")[0]
    for dtype, element in (("float32", (2, 32, 1)), ("bfloat16", (4, 16, 1)), ("float8_e4m3fn", (10, 8, 1)),
                           ("float8_e8m0fnu", (14, 8, 1)), ("float4_e2m1fn", (17, 4, 1))):
        array = jax.device_put(jnp.zeros((4, 8), dtype), host)
        buffer = dlpack.read(array, "a")
        assert (buffer.element, buffer.shape, buffer.device_type) == (element, (4, 8), 1)
        assert buffer.element in dlpack.ELEMENTS


def test_numpy():
    """numpy gives its address, shape, strides and the read-only flag."""
    array = np.zeros((3, 5), np.int32)
    assert dlpack.read(array, "a") == (array.ctypes.data, 1, 0, (0, 32, 1), (3, 5), (5, 1), False)
    assert dlpack.read(array.T, "a").strides == (1, 5)
    array.flags.writeable = False
    assert dlpack.read(array, "a").read_only


def test_reading_keeps_nothing():
    """A producer is neither kept alive nor left with an unreturned capsule."""
    array = np.zeros(4, np.int32)
    before = __import__("sys").getrefcount(array)
    for _ in range(100):
        dlpack.read(array, "a")
    gc.collect()
    assert __import__("sys").getrefcount(array) == before
    deleted = Tensor.deleted
    dlpack.read(Tensor("i32", (4,)), "a")
    dlpack.read(OldTensor("i32", (4,)), "a")
    assert Tensor.deleted == deleted + 2


@pytest.mark.parametrize("kind", [FastTensor, Tensor, OldTensor])
def test_scalar_and_empty_tensors(kind):
    """Rank 0 and size 0 are read as they are; NULL strides are None."""
    assert dlpack.read(kind("i32", ()), "a").shape == ()
    assert dlpack.read(kind("i32", (0, 4)), "a").shape == (0, 4)
    assert dlpack.read(kind("i32", (3, 4), strides=None), "a").strides is None


def test_null_strides_are_contiguous(cuda, pack):
    """A producer from before DLPack 1.2 may leave out strides, also on the remembered path."""
    from sample_call import arguments

    call = arguments(out=FastTensor("bf16", (96, 64), strides=None))
    loader.launch("scale_rows", **call)
    loader.launch("scale_rows", **call)
    assert cuda.launches[0] == cuda.launches[1]


def test_exchange_api_of_another_major_version():
    """The table is followed back to major version 1, and a table without one is not used."""
    newer = exchange_table(major=2, previous=ctypes.addressof(ONE := exchange_table()))
    kind = type("Newer", (FastTensor,), {"__dlpack_c_exchange_api__": api_capsule(newer)})
    assert dlpack.read(kind("i32", (4,)), "a").shape == (4,) and ONE
    alone = exchange_table(major=2)
    kind = type("Alone", (Tensor,), {"__dlpack_c_exchange_api__": api_capsule(alone)})
    assert dlpack.exchange(kind) is None
    assert dlpack.read(kind("i32", (4,)), "a").shape == (4,)


def test_exchange_api_without_the_function():
    """A table that cannot borrow a tensor leaves `__dlpack__`; the older attribute may be an integer."""
    table = exchange_table(tensor=None)
    kind = type("Partial", (Tensor,), {"__dlpack_c_exchange_api__": api_capsule(table)})
    assert dlpack.exchange(kind) is None and dlpack.read(kind("i32", (4,)), "a").shape == (4,)
    table = exchange_table()
    kind = type("Older", (Tensor,), {"__c_dlpack_exchange_api__": ctypes.addressof(table)})
    assert dlpack.exchange(kind) is not None and dlpack.read(kind("i32", (4,)), "a").shape == (4,)


def test_exchange_function_that_fails_in_silence(cuda, pack):
    """A status other than 0 without an exception is an error, also once the problem is remembered."""
    from sample_call import arguments

    @_TO_TENSOR
    def sometimes(value, out):
        return -1 if value.fails else _to_tensor(value, out)

    @_STREAM
    def no_stream(device_type, device_id, out):
        return -1

    table = exchange_table(tensor=sometimes)
    kind = type("Fails", (FastTensor,), {"__dlpack_c_exchange_api__": api_capsule(table), "fails": False})
    call = arguments(out=kind("bf16", (96, 64)))
    loader.launch("scale_rows", **call)
    call["out"].fails = True
    for attempt in (lambda: loader.launch("scale_rows", **call), lambda: dlpack.read(call["out"], "out")):
        with pytest.raises(loader.BufferProtocolError, match="out: .* status -1"):
            attempt()
    table = exchange_table(stream=no_stream)
    kind = type("Streamless", (FastTensor,), {"__dlpack_c_exchange_api__": api_capsule(table)})
    plan = loader.plan("scale_rows", stream=0, **arguments(kind))
    for attempt in (plan.launch, lambda: loader.launch("scale_rows", **arguments(kind))):
        with pytest.raises(loader.StreamError, match="status -1"):
            attempt()
    assert len(cuda.launches) == 1


def test_array_interface(cuda):
    """Strides of the CUDA array interface are bytes; the device is the driver's to tell."""
    cuda.pointers[4096] = 1
    buffer = dlpack.read(ArrayInterface("<f4", (2, 3), strides=(12, 4), pointer=4096, read_only=True), "a")
    assert buffer == (4096, 2, 1, (2, 32, 1), (2, 3), (3, 1), True)


def test_array_interface_device(cuda, pack):
    """Where every producer leaves the device open, the driver says where the memory lies."""
    call = {"a": ArrayInterface("|u1", (96, 32)), "scale": ArrayInterface("|u1", (3, 4)),
            "offsets": ArrayInterface("<i4", (4,)), "out": ArrayInterface("<f4", (96, 64)), "top": 1}
    tensors = [call[name] for name in ("a", "scale", "offsets", "out")]
    for device in (1, 0):  # the same problem on another device is another problem
        cuda.pointers.update({tensor.pointer: device for tensor in tensors})
        loader.launch("scale_rows", **call)
        assert cuda.launches[-1].device == device
    with pytest.raises(loader.DeviceError, match="a is on cuda:0, cuda:1 was asked for"):
        loader.launch("scale_rows", device=1, **call)
    plan = loader.plan("scale_rows", **call)
    cuda.pointers[call["out"].pointer] = 1
    with pytest.raises(loader.DeviceError, match="out is on cuda:1, a on cuda:0"):
        loader.launch("scale_rows", **call)
    with pytest.raises(loader.DeviceError, match="planned with device cuda:0, got cuda:1"):
        plan.bind(out=call["out"])
    assert len(cuda.launches) == 2


def test_array_interface_stream(cuda, pack):
    """Work that a producer has on the launch's own stream needs no order; 1 and 0 are the legacy default stream."""
    from sample_call import arguments

    cuda.streams[0x5000] = 0
    for given, asked in ((0x5000, 0x5000), (0, 1), (None, 1), (0x5000, None)):
        loader.launch("scale_rows", stream=given, **arguments(a=ArrayInterface("|u1", (96, 32), stream=asked)))
    assert len(cuda.launches) == 4


def test_empty_array_interface(cuda, pack):
    """A buffer of no bytes may have address 0, which lies on no device."""
    from sample_call import arguments

    call = arguments(m=0, a=ArrayInterface("|u1", (0, 32), pointer=0))
    loader.launch("scale_rows", **call)
    loader.launch("scale_rows", **{**call, "a": ArrayInterface("|u1", (0, 32), pointer=0)})
    assert not cuda.launches
