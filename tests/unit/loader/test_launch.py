"""What reaches the driver: geometry, attributes, parameter bytes, stream and device."""

import gc
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest
from device_buffers import ArrayInterface, FastTensor, OldTensor, Tensor
from fake_cuda import tensor_map
from sample_call import arguments

import loader
from loader import call as calls
from loader import driver
from loader.plan import Prepared


def expected_parameters(call, m=96, k=64, block=16):
    tensors = [call["a"].pointer, call["scale"].pointer, call["offsets"].pointer, call["out"].pointer]
    return tensor_map(tensors[0], 0, (k // 2, m), (k // 2,), (16, block), 1, 2) + struct.pack(
        "<QQQifqi", *tensors[1:], m, call["alpha"], k, call["top"])


@pytest.mark.parametrize("kind", [FastTensor, Tensor, OldTensor])
def test_parameter_bytes(cuda, pack, kind):
    """The driver receives exactly the bytes that the manifest describes, whatever the producer's protocol."""
    call = arguments(kind)
    loader.launch("scale_rows", variant="m16_bf16", **call)
    launch, = cuda.launches
    assert launch.parameters == expected_parameters(call)
    assert (launch.symbol, launch.grid, launch.block, launch.shared) == ("scale_rows_m16_bf16", (6, 1, 1),
                                                                        (128, 1, 1), 65536)
    assert launch.attributes == {6: struct.pack("<4I", 1, 0, 0, 0)}  # programmatic serialization, no cluster


def test_second_launch_reads_addresses_and_shapes_anew(cuda, pack):
    """A tensor that changed its address or shape between two calls is launched as it is now."""
    call = arguments()
    loader.launch("scale_rows", variant="m16_bf16", **call)
    loader.launch("scale_rows", variant="m16_bf16", **call)
    call["out"].pointer += 4096
    loader.launch("scale_rows", variant="m16_bf16", **call)
    assert cuda.launches[0] == cuda.launches[1]
    assert cuda.launches[2].parameters == expected_parameters(call)
    call["out"]._shape[0] = 95
    with pytest.raises(loader.ShapeError):
        loader.launch("scale_rows", variant="m16_bf16", **call)
    assert len(cuda.launches) == 3


def test_second_launch_checks_alignment_and_overlap_anew(cuda, pack):
    """What depends on addresses is checked at every call."""
    call = arguments()
    loader.launch("scale_rows", **call)
    call["out"].pointer += 8
    with pytest.raises(loader.AlignmentError, match="out must start at a multiple of 16"):
        loader.launch("scale_rows", **call)
    call["out"].pointer = call["a"].pointer
    with pytest.raises(loader.OverlapError, match="out is written and shares memory with a"):
        loader.launch("scale_rows", **call)
    assert len(cuda.launches) == 1


def test_byte_offset_is_added(cuda, pack):
    """A tensor's address is its data pointer plus its byte offset."""
    call = arguments()
    call["out"].offset = 64
    for _ in range(2):
        loader.launch("scale_rows", variant="m16_bf16", **call)
        address, = struct.unpack_from("<Q", cuda.launches[-1].parameters, 144)
        assert address == call["out"].pointer + 64


def test_scalars_are_told_apart_by_type(cuda, pack):
    """1 and True are equal keys, and still True is refused after 1 was accepted."""
    call = arguments(top=1)
    loader.launch("scale_rows", **call)
    with pytest.raises(loader.ScalarError):
        loader.launch("scale_rows", **{**call, "top": True})


@pytest.mark.parametrize("one", [1, np.int32(1), np.float16(1), np.float32(1), np.array(1.0), np.array(1), Fraction(1)])
def test_numbers_of_every_kind_are_scalars(cuda, pack, one):
    """At the first call of a problem and at later ones; what only looks as one is refused at both."""
    call = arguments(alpha=1.0)
    for _ in range(2):
        loader.launch("scale_rows", variant="m16_bf16", **{**call, "alpha": one})
        assert cuda.launches[-1].parameters == expected_parameters(call)
        for wrong in (True, np.True_, np.array(True), "1", b"1", np.array("1")):
            with pytest.raises(loader.ScalarError):
                loader.launch("scale_rows", variant="m16_bf16", **{**call, "alpha": wrong})


def test_scalars_are_read_at_every_call(cuda, pack):
    """An object that is an integer gives its value at each call; 0.0 and -0.0 are two values, 2 and 2.0 one."""
    class Count:
        value = 3

        def __index__(self):
            return self.value

    top, seen = Count(), []
    for top.value in (3, 5, 3):
        loader.launch("scale_rows", **arguments(top=top))
        seen.append(struct.unpack_from("<i", cuda.launches[-1].parameters, 168)[0])
    assert seen == [3, 5, 3]
    for alpha in (0.0, -0.0, 2, 2.0):
        loader.launch("scale_rows", **arguments(alpha=alpha))
    assert [launch.parameters[156:160] for launch in cuda.launches[3:]] == [
        struct.pack("<f", alpha) for alpha in (0.0, -0.0, 2.0, 2.0)]


def test_remembered_problems_are_bounded(cuda, pack, monkeypatch):
    """Past the limit a call starts over, whatever its tensors' layouts: no old problem stays alive."""
    limit = 8
    monkeypatch.setattr(calls, "MAX_PROBLEMS", limit)
    tensors = arguments()
    for top in range(1, 4 * limit):
        loader.launch("scale_rows", **{**tensors, "top": top})
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) is Prepared]
    assert len(alive) <= limit
    assert struct.unpack_from("<i", cuda.launches[-1].parameters, 168) == (4 * limit - 1,)


def test_encoded_maps_are_few(cuda, pack):
    """A problem whose buffer moves at every call keeps few tensor maps."""
    call = arguments()
    for _ in range(200):
        call["a"].pointer += 0x1000_0000
        loader.launch("scale_rows", **call)
    (_, _, encoded, _), = loader.plan("scale_rows", **call)._prepared.map_fields
    assert len(encoded) <= 64


def test_default_scalar(cuda, pack):
    """A scalar with a default may be left out."""
    loader.launch("scale_rows", **arguments(alpha=None))
    assert struct.unpack_from("<f", cuda.launches[0].parameters, 156) == (1.0,)


@pytest.mark.parametrize("alpha", [2.5, None], ids=["given", "default"])
def test_names_are_checked_once(cuda, pack, monkeypatch, alpha):
    """Later calls by name are put in order without the checks of the first one, also where a default is left out."""
    call = arguments(alpha=alpha)
    loader.launch("scale_rows", **call)
    monkeypatch.setattr(calls.signature, "order", None)
    loader.launch("scale_rows", **call)
    assert cuda.launches[0] == cuda.launches[1]


def test_positional_arguments(cuda, pack):
    """Arguments by position are the same call."""
    call = arguments()
    loader.launch("scale_rows", *call.values())
    loader.launch("scale_rows", **call)
    assert cuda.launches[0] == cuda.launches[1]


@pytest.mark.parametrize("a", [
    FastTensor("fp4x2", (96, 32)), FastTensor("fp4", (96, 64)), FastTensor("u8", (96, 32)),
    FastTensor("i8", (96, 32)), ArrayInterface("|u1", (96, 32))], ids=["pairs", "logical", "uint8", "int8", "cai"])
def test_packed_fp4_views_are_one_buffer(cuda, pack, a):
    """Pairs (torch), logical values (JAX) and bytes give the same launch."""
    cuda.pointers[a.pointer] = 0
    call = arguments(a=a)
    loader.launch("scale_rows", variant="m16_bf16", **call)
    assert cuda.launches[0].parameters == expected_parameters(call)


@pytest.mark.parametrize("dtype", ["e4m3", "u8", "i8"])
def test_fp8_scales_may_be_bytes(cuda, pack, dtype):
    """UE4M3 scales come as float8_e4m3fn or as bytes."""
    loader.launch("scale_rows", **arguments(scale=FastTensor(dtype, (3, 4))))
    assert len(cuda.launches) == 1


def test_output_dtype_selects_the_variant(cuda, pack):
    """The matched axis follows the dtype of the argument."""
    loader.launch("scale_rows", **arguments(output="f32"))
    assert cuda.launches[0].symbol == "scale_rows_m64_f32"


def test_nothing_to_compute_launches_nothing(cuda, pack):
    """Where `skip` holds the call returns at once, also the second time."""
    call = arguments(m=0)
    for _ in range(2):
        loader.launch("scale_rows", **call)
    loader.plan("scale_rows", **call).launch()
    assert not cuda.launches


def test_streams(cuda, pack):
    """A stream is a handle, or an object of cuda.core, torch or CuPy; else the producer's current stream."""
    class CudaCore:
        def __cuda_stream__(self):
            return (0, 0x5000)

    class Torch:
        cuda_stream = 0x5000

    class CuPy:
        ptr = 0x5000

    cuda.streams[0x5000] = 0
    call = arguments()
    for stream in (0x5000, CudaCore(), Torch(), CuPy()):
        loader.launch("scale_rows", stream=stream, **call)
        loader.plan("scale_rows", **call).launch(stream)
    assert {launch.stream for launch in cuda.launches} == {0x5000}
    loader.launch("scale_rows", **call)
    assert cuda.launches[-1].stream == 0
    FastTensor.current_stream = 0x5000
    try:
        loader.launch("scale_rows", **call)
        loader.plan("scale_rows", **call).launch()
    finally:
        FastTensor.current_stream = 0
    assert [launch.stream for launch in cuda.launches[-2:]] == [0x5000, 0x5000]


def test_capsule_producers_order_themselves_before_the_stream(cuda, pack):
    """`__dlpack__` gets the launch's stream; the legacy default stream is 1 there."""
    cuda.streams[0x5000] = 0
    call = arguments(Tensor)
    loader.launch("scale_rows", stream=0x5000, **call)
    loader.launch("scale_rows", **call)
    assert call["a"].streams == [0x5000, 1]


def test_capsules_are_given_back(cuda, pack):
    """Every capsule's deleter runs once."""
    before = Tensor.deleted
    loader.launch("scale_rows", **arguments(Tensor))
    loader.launch("scale_rows", **arguments(OldTensor))
    assert Tensor.deleted - before == 8


def test_context_is_made_current_and_restored(cuda, pack):
    """A launch to a device whose context is not current happens there, and the caller's context stays."""
    cuda.stack.append(0)
    loader.launch("scale_rows", **arguments(device=(2, 1)))
    loader.launch("scale_rows", **arguments(device=(2, 0)))
    assert [launch.device for launch in cuda.launches] == [1, 0]
    assert cuda.stack == [0]


def test_thread_without_context(cuda, pack):
    """A fresh thread has no current context and may launch."""
    call = arguments()
    loader.launch("scale_rows", **call)
    thread = threading.Thread(target=loader.launch, args=("scale_rows",), kwargs=call)
    thread.start()
    thread.join()
    assert len(cuda.launches) == 2


def test_devices_choose_their_own_artifact(cuda, pack):
    """On sm_90 the sm_90a artifact runs; `120a` is preferred to `120f` on 12.0."""
    loader.launch("scale_rows", **arguments(device=(2, 2)))
    assert cuda.launches[0].device == 2
    assert loader.plan("scale_rows", **arguments(device=(2, 2))).arch == "90a"
    assert loader.plan("scale_rows", **arguments()).arch == "120a"
    cuda.devices[1] = cuda.devices[1]._replace(capability=(12, 1))
    assert loader.plan("scale_rows", **arguments(device=(2, 1))).arch == "120f"


def test_library_is_loaded_once_and_shared_memory_allowed_per_device(cuda, pack):
    """One CUlibrary a process; the attribute is set for each device."""
    for device in ((2, 0), (2, 1), (2, 0)):
        loader.launch("scale_rows", variant="m16_bf16", **arguments(device=device))
    assert cuda.calls.count("cuLibraryLoadData") == 1
    assert cuda.attributes == [(8, 65536, 0), (8, 65536, 1)]


def test_plan_only_launches(cuda, pack):
    """`plan.launch()` is one driver call."""
    plan = loader.plan("scale_rows", **arguments())
    cuda.stack.append(0)
    plan.launch(0)
    cuda.calls.clear()
    plan.launch(0)
    assert cuda.calls == ["cuLaunchKernelEx"]
    assert cuda.launches[0] == cuda.launches[1]


def test_plan_bind_swaps_buffers(cuda, pack):
    """A bound buffer replaces the planned one; anything but its address must be as before."""
    call = arguments()
    plan = loader.plan("scale_rows", variant="m16_bf16", **call)
    plan.launch()
    call["out"] = FastTensor("bf16", (96, 64))
    plan.bind(out=call["out"]).launch()
    assert cuda.launches[1].parameters == expected_parameters(call)
    for value, error in ((FastTensor("f32", (96, 64)), loader.DtypeError),
                         (FastTensor("bf16", (95, 64)), loader.ShapeError),
                         (FastTensor("bf16", (96, 64), device=(2, 1)), loader.DeviceError),
                         (FastTensor("bf16", (96, 64), pointer=0x1008), loader.AlignmentError),
                         (FastTensor("bf16", (96, 64), strides=[1, 96]), loader.StrideError),
                         (Tensor("bf16", (96, 64), read_only=True), loader.ReadOnlyError)):
        with pytest.raises(error):
            plan.bind(out=value)
    with pytest.raises(loader.UnknownArgumentError):
        plan.bind(outs=call["out"])
    plan.launch()
    assert cuda.launches[2] == cuda.launches[1]


@pytest.mark.parametrize("stream", [1 << 64, -1, True, "default"])
def test_wrong_stream_of_a_plan(cuda, pack, stream):
    """A plan takes no stream that `launch` refuses, before its first launch and after."""
    plan = loader.plan("scale_rows", **arguments())
    for launches in range(2):
        with pytest.raises(loader.StreamError, match="is no CUDA stream"):
            plan.launch(stream)
        assert len(cuda.launches) == launches
        plan.launch(1)


def test_plan_with_two_streams_does_not_mix_them(cuda, pack):
    """Launches of one plan on two streams keep their own configuration."""
    cuda.streams.update({0x5000: 0, 0x6000: 0})
    plan = loader.plan("scale_rows", **arguments())
    for stream in (0x5000, 0x6000, 0x5000):
        plan.launch(stream)
    assert [launch.stream for launch in cuda.launches] == [0x5000, 0x6000, 0x5000]


def test_many_threads(cuda, pack):
    """Eight threads on eight streams each launch with their own parameters and stream."""
    cuda.streams.update({0x5000 + i: 0 for i in range(8)})
    calls = [arguments(m=32 * (i + 1)) for i in range(8)]

    def work(i):
        for _ in range(50):
            loader.launch("scale_rows", stream=0x5000 + i, **calls[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cuda.launches) == 400
    seen = {(launch.stream - 0x5000, struct.unpack_from("<Qi", launch.parameters, 144)) for launch in cuda.launches}
    assert seen == {(i, (calls[i]["out"].pointer, 32 * (i + 1))) for i in range(8)}


def test_loading_during_capture_is_refused(cuda, pack):
    """During capture a first use says to preload, and a preloaded kernel launches."""
    cuda.streams[0x5000] = 0
    cuda.capturing.add(0x5000)
    with pytest.raises(loader.CaptureError, match=r"call loader.preload\('scale_rows', ...\) before the capture"):
        loader.launch("scale_rows", stream=0x5000, **arguments())
    assert "cuLibraryLoadData" not in cuda.calls
    cuda.capturing.clear()
    loaded = loader.preload("scale_rows", device=0)
    assert sorted({entry.variant for entry in loaded}) == ["m16_bf16", "m16_f32", "m64_bf16", "m64_f32"]
    cuda.capturing.add(0x5000)
    loader.launch("scale_rows", stream=0x5000, **arguments())
    assert len(cuda.launches) == 1


def test_driver_errors_name_call_and_context(cuda, pack):
    """A failing call is named with the driver's own words and the launch."""
    call = arguments()
    loader.launch("scale_rows", **call)
    cuda.fail["cuLaunchKernelEx"] = 719
    with pytest.raises(loader.CudaError, match=r"cuLaunchKernelEx failed: CUDA_ERROR_LAUNCH_FAILED \(719\): "
                       r"unspecified launch failure \[kernel scale_rows/m64_bf16, device 0, grid") as caught:
        loader.launch("scale_rows", **call)
    assert (caught.value.call, caught.value.code, caught.value.name) == ("cuLaunchKernelEx", 719,
                                                                         "CUDA_ERROR_LAUNCH_FAILED")


def test_parameters_are_compared_with_the_image(cuda, pack, monkeypatch):
    """A manifest that lies about the kernel's parameters is found before a launch."""
    monkeypatch.setattr(driver.Driver, "parameters", lambda self, kernel: [(0, 128), (128, 8)])
    with pytest.raises(loader.ParameterLayoutError, match="takes parameters at"):
        loader.launch("scale_rows", **arguments())
    assert not cuda.launches


def test_fork_is_refused(cuda, pack):
    """In a child of a process that used CUDA, plans and launches raise ForkError."""
    call = arguments()
    plan = loader.plan("scale_rows", **call)
    loader.launch("scale_rows", **call)
    driver._after_fork()
    for attempt in (plan.launch, lambda: loader.launch("scale_rows", **call),
                    lambda: loader.plan("scale_rows", **arguments(m=32))):
        with pytest.raises(loader.ForkError, match="spawn"):
            attempt()
    assert len(cuda.launches) == 1


def test_no_driver(pack, monkeypatch):
    """Without a driver the error lists what was tried."""
    monkeypatch.setattr(driver, "LIBRARY_NAMES", ("libcuda-that-is-not-there.so.1",))
    with pytest.raises(loader.DriverNotFoundError, match="libcuda-that-is-not-there"):
        loader.launch("scale_rows", **arguments())


def test_driver_too_old(cuda, pack):
    """A driver without a function that is needed is named as such."""
    del cuda.cuKernelGetParamInfo
    with pytest.raises(loader.DriverTooOldError, match="cuKernelGetParamInfo"):
        loader.launch("scale_rows", **arguments())


class Negatable(FastTensor):
    """A tensor whose sign may be left for later, as torch has it."""

    negative = False

    def is_neg(self):
        return self.negative


@pytest.mark.parametrize("name", ["a", "scale", "offsets", "out"])
def test_a_negation_that_waits_is_refused(cuda, pack, name):
    """At the first call of a problem whatever the argument is, and at later ones where it is a float."""
    call = arguments(kind=Negatable)
    call[name].negative = True
    with pytest.raises(loader.BufferProtocolError, match=f"^{name}: .*its negative bit is set"):
        loader.launch("scale_rows", **call)
    call[name].negative = False
    loader.launch("scale_rows", **call)
    call["out"].negative = True
    with pytest.raises(loader.BufferProtocolError, match="^out: .*its negative bit is set"):
        loader.launch("scale_rows", **call)
    assert len(cuda.launches) == 1
