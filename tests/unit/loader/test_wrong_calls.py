"""Wrong calls: each raises its own error with its facts, and nothing reaches the device."""

import numpy as np
import pytest
from device_buffers import ArrayInterface, FastTensor, OldTensor, Tensor
from sample_call import arguments

import loader

HOST = (1, 0)


def call(**replaced):
    return lambda: loader.launch("scale_rows", **arguments(**replaced))


def options(**given):
    return lambda: loader.launch("scale_rows", **arguments(), **given)


class Raises:
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **kwargs):
        raise BufferError("this type is not supported by dlpack")


class NoCapsule(Raises):
    def __dlpack__(self, **kwargs):
        return object()


class BadStream:
    def __cuda_stream__(self):
        raise RuntimeError("gone")


def tensor(dtype, shape, **kwargs):
    return FastTensor(dtype, shape, **kwargs)


# id -> (call, error class, argument, part of the message)
WRONG = {
    # names
    "unknown kernel": (lambda: loader.launch("scale_row", **arguments()), loader.UnknownKernelError, None,
                       "no kernel 'scale_row'; known are scale_rows; did you mean scale_rows?"),
    "kernel far from any": (lambda: loader.launch("zzz"), loader.UnknownKernelError, None, "known are scale_rows"),
    "kernel is no text": (lambda: loader.launch(3), loader.UnknownKernelError, None, "no kernel 3"),
    "kernel is a list": (lambda: loader.launch(["scale_rows"]), loader.UnknownKernelError, None, "no kernel ["),
    "variant is a list": (options(variant=["m16_bf16"]), loader.UnknownVariantError, None, "no variant ['m16_bf16']"),
    "device is a list": (options(device=[0]), loader.DeviceError, "device", "[0] is no device"),
    "packs is a number": (options(packs=5), loader.PackNotFoundError, None, "packs: 5 is no directory"),
    "packs holds a number": (options(packs=[5]), loader.PackNotFoundError, None, "packs: [5] is no directory"),
    "unknown variant": (options(variant="m16_bf17"), loader.UnknownVariantError, None, "did you mean m16_bf16"),
    "variant of another output": (options(variant="m16_f32"), loader.NoKernelError, None, "computes out as f32"),
    "missing argument": (call(scale=None), loader.MissingArgumentError, "scale", "missing scale"),
    "missing scalar": (call(top=None), loader.MissingArgumentError, "top", "missing top"),
    "missing several": (call(a=None, out=None), loader.MissingArgumentError, "a", "missing a, out"),
    "no arguments": (lambda: loader.launch("scale_rows"), loader.MissingArgumentError, "a",
                     "missing a, scale, offsets, out, top"),
    "unknown argument": (call(outs=1), loader.UnknownArgumentError, "outs", "did you mean out"),
    "argument of python": (call(dtype="x"), loader.UnknownArgumentError, "dtype", "it takes a, scale, offsets, out"),
    "too many positional": (lambda: loader.launch("scale_rows", *range(7)), loader.UnknownArgumentError, None,
                            "takes 6 arguments, got 7 positional"),
    "by position and name": (lambda: loader.launch("scale_rows", 1, **arguments()), loader.DuplicateArgumentError, "a",
                             "a is given by position and by name"),
    # objects that are no buffers
    "integer for a buffer": (call(a=140000), loader.BufferProtocolError, "a", "builtins.int gives no buffer"),
    "list for a buffer": (call(scale=[1, 2]), loader.BufferProtocolError, "scale", "builtins.list"),
    "bytes for a buffer": (call(out=b"123"), loader.BufferProtocolError, "out", "builtins.bytes"),
    "text for a buffer": (call(offsets="x"), loader.BufferProtocolError, "offsets", "builtins.str"),
    "producer raises": (call(a=Raises()), loader.BufferProtocolError, "a", "as a uint8 view"),
    "no capsule": (call(a=NoCapsule()), loader.BufferProtocolError, "a", "no unused DLPack capsule"),
    "next DLPack": (call(a=Tensor("fp4x2", (96, 32), version=(2, 0))), loader.BufferProtocolError, "a",
                    "DLPack 2.0, this loader reads 1.x"),
    "copied export": (call(a=Tensor("fp4x2", (96, 32), flags=2)), loader.BufferProtocolError, "a", "exported a copy"),
    "masked array": (call(a=ArrayInterface("|u1", (96, 32), mask=[1])), loader.BufferProtocolError, "a", "masked"),
    "big-endian array": (call(offsets=ArrayInterface(">i4", (4,))), loader.BufferProtocolError, "offsets",
                         "big-endian"),
    "malformed interface": (call(a=ArrayInterface("|u1", (96, 32), data=None)), loader.BufferProtocolError, "a",
                            "malformed"),
    "address 0": (call(out=tensor("bf16", (96, 64), pointer=0)), loader.BufferProtocolError, "out", "address 0"),
    "type without a name in numpy": (call(a=np.zeros((96, 32), dtype="V1")), loader.BufferProtocolError, "a", "numpy"),
    # dtypes
    "float for packed": (call(a=tensor("f32", (96, 32))), loader.DtypeError, "a", "expects e2m1x2, got float32"),
    "e5m2 for ue4m3": (call(scale=tensor("e5m2", (3, 4))), loader.DtypeError, "scale",
                       "expects ue4m3, got float8_e5m2"),
    "ue8m0 for ue4m3": (call(scale=tensor("ue8m0", (3, 4))), loader.DtypeError, "scale", "got float8_e8m0fnu"),
    "e4m3 for packed": (call(a=tensor("e4m3", (96, 32))), loader.DtypeError, "a", "got float8_e4m3fn"),
    "i64 offsets": (call(offsets=tensor("i64", (4,))), loader.DtypeError, "offsets", "expects i32, got int64"),
    "u8 offsets": (call(offsets=tensor("u8", (4,))), loader.DtypeError, "offsets", "expects i32, got uint8"),
    "f16 output": (call(out=tensor("f16", (96, 64))), loader.DtypeError, "out", "expects bf16 or f32, got float16"),
    "f64 output": (call(out=tensor("f64", (96, 64))), loader.DtypeError, "out", "got float64"),
    "bool output": (call(out=tensor("bool", (96, 64))), loader.DtypeError, "out", "got bool8"),
    "interface dtype": (call(offsets=ArrayInterface("<c8", (4,))), loader.DtypeError, "offsets", "expects i32"),
    # rank
    "rank 1": (call(a=tensor("fp4x2", (3072,))), loader.RankError, "a", "expects 2 dimensions [M, K / 2], got 1"),
    "rank 3": (call(a=tensor("fp4x2", (1, 96, 32))), loader.RankError, "a", "got 3: (1, 96, 32)"),
    "rank 0": (call(offsets=tensor("i32", ())), loader.RankError, "offsets", "expects 1 dimensions [E + 1], got 0"),
    # shapes
    "output rows": (call(out=tensor("bf16", (95, 64))), loader.ShapeError, "out",
                    "out dimension 0 (M) expects 96, got 95 (with"),
    "output columns": (call(out=tensor("bf16", (96, 128))), loader.ShapeError, "out", "dimension 1 (K) expects 64"),
    "scale rows": (call(scale=tensor("e4m3", (4, 4))), loader.ShapeError, "scale",
                   "dimension 0 (ceil_div(M, 32)) expects 3, got 4"),
    "scale columns": (call(scale=tensor("e4m3", (3, 5))), loader.ShapeError, "scale", "(K / 16) expects 4, got 5"),
    "a dimension that does not divide": (
        call(a=tensor("fp4x2", (96, 20))), loader.ShapeError, "scale",
        "scale dimension 1 (K / 16) has no size: 40 / 16 is not a whole number (with "),
    "what such a dimension requires": (call(a=tensor("fp4x2", (96, 20))), loader.ShapeError, "scale",
                                       "K = 40); it requires K % 32 == 0"),
    "no offsets": (call(offsets=tensor("i32", (0,))), loader.ShapeError, "offsets", "a size that gives E >= 0"),
    "odd logical FP4": (call(a=tensor("fp4", (96, 63))), loader.ShapeError, "a", "its last dimension is odd"),
    "logical FP4 as bytes": (call(a=tensor("u8", (96, 64))), loader.ShapeError, "scale", "expects 8, got 4"),
    # strides
    "transposed": (call(a=tensor("fp4x2", (96, 32), strides=[1, 96])), loader.StrideError, "a", "row major"),
    "gap between rows": (call(out=tensor("bf16", (96, 64), strides=[128, 1])), loader.StrideError, "out", "(128, 1)"),
    "every second element": (call(offsets=tensor("i32", (4,), strides=[2])), loader.StrideError, "offsets", "(2,)"),
    "broadcast": (call(scale=tensor("e4m3", (3, 4), strides=[0, 1])), loader.StrideError, "scale", "(0, 1)"),
    "negative stride": (call(offsets=tensor("i32", (4,), strides=[-1])), loader.StrideError, "offsets", "(-1,)"),
    "interface strides": (call(offsets=ArrayInterface("<i4", (4,), strides=(8,))), loader.StrideError, "offsets",
                          "(2,)"),
    # addresses
    "misaligned input": (call(a=tensor("fp4x2", (96, 32), pointer=0x7008)), loader.AlignmentError, "a",
                         "multiple of 16 bytes, got address 0x7008"),
    "misaligned by offset": (call(out=tensor("bf16", (96, 64), offset=2)), loader.AlignmentError, "out",
                             "multiple of 16"),
    "misaligned scale": (call(scale=tensor("e4m3", (3, 4), pointer=0x7001)), loader.AlignmentError, "scale",
                         "multiple of 4"),
    "output over input": (call(a=tensor("fp4x2", (96, 32), pointer=0x9000), out=tensor("bf16", (96, 64),
                                                                                      pointer=0x9100)),
                          loader.OverlapError, "out", "shares memory with a"),
    "read-only output": (call(out=Tensor("bf16", (96, 64), read_only=True)), loader.ReadOnlyError, "out",
                         "its buffer is read-only"),
    "read-only interface": (call(out=ArrayInterface("<f4", (96, 64), read_only=True)), loader.ReadOnlyError, "out",
                            "read-only"),
    "interface of host memory": (call(a=ArrayInterface("|u1", (96, 32), pointer=0x9000)), loader.CudaError, None,
                                 "[pointer 0x9000, argument a]"),
    # devices
    "host input": (call(a=tensor("fp4x2", (96, 32), device=HOST)), loader.HostBufferError, "a",
                   "a is a host buffer and scale is on the device"),
    "host output": (call(out=tensor("bf16", (96, 64), device=HOST)), loader.HostBufferError, "out",
                    "out is a host buffer and a is on the device"),
    "numpy among device buffers": (call(offsets=np.zeros(4, np.int32)), loader.HostBufferError, "offsets",
                                   "offsets is a host buffer"),
    "pinned host": (call(a=tensor("fp4x2", (96, 32), device=(3, 0))), loader.HostBufferError, "a", "pinned host"),
    "another GPU": (call(out=tensor("bf16", (96, 64), device=(2, 1))), loader.DeviceError, "out",
                    "out is on cuda:1, a on cuda:0"),
    "rocm": (call(a=tensor("fp4x2", (96, 32), device=(10, 0))), loader.DeviceError, "a", "a lies on rocm:0"),
    "device of no buffer": (options(device=1), loader.DeviceError, "a", "a is on cuda:0, cuda:1 was asked for"),
    "device by text": (options(device="cuda:1"), loader.DeviceError, "a", "cuda:1 was asked for"),
    "emulated for device buffers": (options(device="emulated"), loader.DeviceError, "a",
                                    "the emulated device was asked for"),
    "negative device": (options(device=-1), loader.DeviceError, "device", "-1 is no device"),
    "bool device": (options(device=True), loader.DeviceError, "device", "True is no device"),
    "nonsense device": (options(device="gpu"), loader.DeviceError, "device", "'gpu' is no device"),
    "device that is not there": (lambda: loader.launch("scale_rows", **arguments(device=(2, 7))), loader.CudaError,
                                 None, "cuDeviceGet failed"),
    "wrong arch": (options(device="emulated:86"), loader.UnknownArchError, None, "unknown arch '86'; known are 90a"),
    "host buffers for cuda": (lambda: loader.launch("scale_rows", device="cuda", **arguments(device=HOST)),
                              loader.HostBufferError, "a", "device cuda was asked for"),
    # scalars
    "bool scalar": (call(top=True), loader.ScalarError, "top", "expects a number of type i32, got a bool"),
    "float for an integer": (call(top=1.5), loader.ScalarError, "top", "got float"),
    "text scalar": (call(top="4"), loader.ScalarError, "top", "got str"),
    "scalar too large": (call(top=2**31), loader.ScalarError, "top", "does not fit i32"),
    "scalar too small": (call(top=-(2**31) - 1), loader.ScalarError, "top", "does not fit i32"),
    "float too large": (call(alpha=1e39), loader.ScalarError, "alpha", "does not fit f32"),
    "list scalar": (call(alpha=[1.0]), loader.ScalarError, "alpha", "got list"),
    "integer too large for a float": (call(alpha=10**400), loader.ScalarError, "alpha", "does not fit f32"),
    "text for a float": (call(alpha="1.5"), loader.ScalarError, "alpha",
                         "scale_rows: alpha expects a number of type f32, got str"),
    "bytes for a float": (call(alpha=b"1.5"), loader.ScalarError, "alpha", "got bytes"),
    "array of text": (call(alpha=np.array("1.5")), loader.ScalarError, "alpha", "got ndarray"),
    "bool for a float": (call(alpha=True), loader.ScalarError, "alpha", "expects a number of type f32, got a bool"),
    "numpy bool for a float": (call(alpha=np.True_), loader.ScalarError, "alpha", "of type f32, got a bool"),
    "numpy bool for an integer": (call(top=np.True_), loader.ScalarError, "top", "of type i32, got a bool"),
    "array of a bool": (call(alpha=np.array(True)), loader.ScalarError, "alpha", "of type f32, got a bool"),
    "numpy complex scalar": (call(alpha=np.complex64(1)), loader.ScalarError, "alpha", "got complex64"),
    "several numbers": (call(alpha=np.ones(2)), loader.ScalarError, "alpha", "got ndarray"),
    "complex scalar": (call(alpha=1j), loader.ScalarError, "alpha", "got complex"),
    # constraints
    "K not a multiple": (lambda: loader.launch("scale_rows", **arguments(k=48)), loader.ConstraintError, None,
                         "K % 32 == 0 does not hold (with K = 48)"),
    "top below 1": (call(top=0), loader.ConstraintError, None, "top >= 1 does not hold (with top = 0)"),
    # streams
    "stream is text": (options(stream="default"), loader.StreamError, "stream", "'default' is no CUDA stream"),
    "stream is negative": (options(stream=-1), loader.StreamError, "stream", "-1 is no CUDA stream"),
    "stream is a bool": (options(stream=True), loader.StreamError, "stream", "True is no CUDA stream"),
    "stream of 65 bits": (options(stream=1 << 64), loader.StreamError, "stream", "is no CUDA stream"),
    "array on another stream": (lambda: loader.launch("scale_rows", stream=0x5000, **arguments(
        a=ArrayInterface("|u1", (96, 32), stream=0x6000))), loader.StreamError, "a",
        "a: its __cuda_array_interface__ asks for order after stream 0x6000, the launch goes to 0x5000"),
    "array on stream 0": (call(a=ArrayInterface("|u1", (96, 32), stream=0)), loader.BufferProtocolError, "a",
                          "malformed"),
    "stream object fails": (options(stream=BadStream()), loader.StreamError, "stream", "__cuda_stream__ failed: gone"),
    "stream of another device": (options(stream=0x6000), loader.CudaError, None, "cuLaunchKernelEx failed"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_call(cuda, pack, what):
    """The error has its own class, names the argument, carries expected and got, and nothing was launched."""
    attempt, error, argument, text = WRONG[what]
    cuda.streams[0x6000] = 1
    with pytest.raises(loader.LoaderError) as caught:
        attempt()
    assert type(caught.value) is error
    assert text in str(caught.value)
    if argument is not None:
        assert caught.value.argument == argument
        assert hasattr(caught.value, "expected") and hasattr(caught.value, "got")
    assert not cuda.launches


@pytest.mark.parametrize("what", WRONG)
def test_wrong_call_after_a_right_one(cuda, pack, what):
    """The same error comes when the kernel is loaded and its problem remembered."""
    loader.launch("scale_rows", **arguments())
    attempt, error, _, text = WRONG[what]
    cuda.streams[0x6000] = 1
    with pytest.raises(error) as caught:
        attempt()
    assert text in str(caught.value)
    assert len(cuda.launches) == 1


def test_there_are_enough():
    """The number of wrong calls that the project promises."""
    assert len(WRONG) >= 60


def test_no_kernel_error_lists_every_candidate(cuda, pack):
    """The error names the device and gives each candidate's reason."""
    cuda.devices[0] = cuda.devices[0]._replace(name="Fake B300", capability=(10, 3))
    with pytest.raises(loader.NoKernelError) as caught:
        loader.launch("scale_rows", **arguments())
    error = caught.value
    assert str(error).startswith("no variant of scale_rows runs this on Fake B300 (compute capability 10.3); the packs "
                                 "hold sm_100a, sm_120a, sm_120f, sm_90a\n")
    assert len(error.decisions) == 16
    assert "m16_bf16 sm_100a: sm_100a runs on compute capability 10.0 only, the device has 10.3" in str(error)
    assert "m16_bf16 sm_90a: sm_90a runs on compute capability 9.x only, the device has 10.3" in str(error)


def test_shared_memory_limit(cuda, pack):
    """A candidate that needs more shared memory than the device gives is refused with both numbers."""
    cuda.devices[0] = cuda.devices[0]._replace(shared=49152)
    with pytest.raises(loader.NoKernelError, match="needs 66560 bytes of shared memory, the device gives 49152"):
        loader.launch("scale_rows", **arguments())


@pytest.mark.parametrize("kind", [Tensor, OldTensor])
def test_wrong_calls_by_capsule(cuda, pack, kind):
    """Producers of capsules get the same errors."""
    with pytest.raises(loader.ShapeError, match="out dimension 0"):
        loader.launch("scale_rows", **arguments(kind, out=kind("bf16", (95, 64))))
    assert not cuda.launches
