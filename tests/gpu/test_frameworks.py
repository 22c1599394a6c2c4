"""The same memory handed over by torch, JAX, CuPy and cuda-python: the same bytes come back."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch")

from device_problem import DeviceProblem, Output, device_problem  # noqa: E402
from raw_buffer import CUDA, RawBuffer  # noqa: E402

import loader  # noqa: E402

COUNTS, N, K = [0, 1, 37, 130, 5, 64], 512, 1024


@pytest.fixture(autouse=True, scope="module")
def first_device() -> None:
    """Every test starts on device 0: where there are several, JAX's first use leaves the last one current."""
    if jax := sys.modules.get("jax"):
        jax.devices()
    torch.cuda.set_device(0)


@pytest.fixture(scope="module")
def problem(seed: int) -> DeviceProblem:
    return device_problem(seed, COUNTS, N, K)


@pytest.fixture(scope="module", params=["f16", "bf16"])
def reference(request: pytest.FixtureRequest, problem: DeviceProblem) -> Output:
    """What torch gives, checked against float64."""
    out = problem.output(request.param)
    loader.launch("grouped_fp4", **problem.inputs, out=out.array)
    torch.cuda.synchronize()
    problem.verify(out, "torch")
    return out


@pytest.fixture
def out(problem: DeviceProblem, reference: Output) -> Output:
    return problem.output(reference.out_type)


def assert_same_bytes(out: Output, reference: Output) -> None:
    torch.cuda.synchronize()
    assert torch.equal(out.bytes(), reference.bytes())


def test_torch_float4_and_float8(problem: DeviceProblem, reference: Output, out: Output) -> None:
    """torch's own types for packed FP4 and for the scales are the same buffers as bytes."""
    inputs = dict(problem.inputs)
    for name in ("a", "b"):
        inputs[name] = inputs[name].view(torch.float4_e2m1fn_x2)
    for name in ("a_scale", "b_scale"):
        inputs[name] = inputs[name].view(torch.float8_e4m3fn)
    loader.launch("grouped_fp4", **inputs, out=out.array)
    assert_same_bytes(out, reference)


def test_cupy(problem: DeviceProblem, reference: Output, out: Output) -> None:
    """CuPy arrays over the same memory."""
    cupy = pytest.importorskip("cupy")
    inputs = {name: cupy.from_dlpack(tensor) for name, tensor in problem.inputs.items()}
    loader.launch("grouped_fp4", **inputs, out=out.array, stream=torch.cuda.current_stream())
    assert_same_bytes(out, reference)


@pytest.mark.parametrize("reference", ["f16"], indirect=True)
def test_cupy_arrays_and_stream(problem: DeviceProblem, reference: Output) -> None:
    """CuPy's own arrays, output included, in order on a CuPy stream."""
    cupy = pytest.importorskip("cupy")
    torch.cuda.synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        inputs = {name: cupy.from_dlpack(tensor).copy() for name, tensor in problem.inputs.items()}
        result = cupy.full((problem.rows, N), float("nan"), dtype=cupy.float16)
        loader.launch("grouped_fp4", **inputs, out=result, stream=stream)
        copied = result.copy()
        stream.synchronize()
    assert torch.equal(torch.from_dlpack(copied).view(torch.uint8), reference.bytes())


def test_jax(problem: DeviceProblem, reference: Output, out: Output) -> None:
    """JAX arrays over the same memory, as bytes."""
    jax = pytest.importorskip("jax")
    inputs = {name: jax.numpy.from_dlpack(tensor) for name, tensor in problem.inputs.items()}
    jax.block_until_ready(list(inputs.values()))
    loader.launch("grouped_fp4", **inputs, out=out.array, stream=torch.cuda.current_stream())
    assert_same_bytes(out, reference)


def test_jax_float4(problem: DeviceProblem, reference: Output, out: Output) -> None:
    """JAX's float4_e2m1fn has the logical shape [.., K]; its memory is the same bytes."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    inputs = {name: jax.numpy.from_dlpack(tensor) for name, tensor in problem.inputs.items()}
    for name in ("a", "b"):
        pairs = jax.lax.bitcast_convert_type(inputs[name], jnp.float4_e2m1fn)
        inputs[name] = pairs.reshape(*pairs.shape[:-2], K)
    for name in ("a_scale", "b_scale"):
        inputs[name] = jax.lax.bitcast_convert_type(inputs[name], jnp.float8_e4m3fn)
    jax.block_until_ready(list(inputs.values()))
    loader.launch("grouped_fp4", **inputs, out=out.array, stream=torch.cuda.current_stream())
    assert_same_bytes(out, reference)


def test_jax_output(problem: DeviceProblem, reference: Output) -> None:
    """A JAX array that nothing else refers to is written in place."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    inputs = {name: jax.numpy.from_dlpack(tensor) for name, tensor in problem.inputs.items()}
    dtype = {"f16": jnp.float16, "bf16": jnp.bfloat16}[reference.out_type]
    result = jnp.full((problem.rows, N), float("nan"), dtype)
    jax.block_until_ready([result, *inputs.values()])
    loader.launch("grouped_fp4", **inputs, out=result, stream=torch.cuda.current_stream())
    torch.cuda.synchronize()
    assert torch.equal(torch.from_dlpack(result).view(torch.uint8), reference.bytes())


class CudaArray:
    """Memory of cuda.bindings described by ``__cuda_array_interface__`` version 3."""

    def __init__(self, pointer: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (pointer, False),
            "shape": shape,
            "typestr": typestr,
            "strides": None,
            "version": 3,
        }


TYPESTR = {torch.uint8: "|u1", torch.int32: "<i4", torch.float32: "<f4", torch.float16: "<f2"}


@pytest.mark.parametrize("reference", ["f16"], indirect=True)
def test_cuda_array_interface(problem: DeviceProblem, reference: Output, out: Output) -> None:
    """Objects that offer nothing but the CUDA array interface, which has no bf16."""
    buffers = {
        name: CudaArray(tensor.data_ptr(), tuple(tensor.shape), TYPESTR[tensor.dtype])
        for name, tensor in (problem.inputs | {"out": out.array}).items()
    }
    loader.launch("grouped_fp4", **buffers, stream=torch.cuda.current_stream())
    assert_same_bytes(out, reference)


def test_cuda_bindings(problem: DeviceProblem, reference: Output) -> None:
    """Memory and stream of cuda.bindings, no framework's object in the call."""
    driver = pytest.importorskip("cuda.bindings.driver")

    def call(function: object, *arguments: object) -> object:
        status, *results = function(*arguments)
        assert status == driver.CUresult.CUDA_SUCCESS, f"{function.__name__}: {status}"
        return results[0] if results else None

    stream = call(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    torch.cuda.synchronize()
    allocations = []

    def allocate(tensor: torch.Tensor, dtype: str) -> RawBuffer:
        pointer = call(driver.cuMemAlloc, tensor.nbytes)
        allocations.append(pointer)
        call(driver.cuMemcpyDtoDAsync, pointer, tensor.data_ptr(), tensor.nbytes, stream)
        return RawBuffer(int(pointer), tuple(tensor.shape), dtype, (CUDA, 0))

    names = {torch.uint8: "u8", torch.int32: "i32", torch.float32: "f32"}
    buffers = {name: allocate(tensor, names[tensor.dtype]) for name, tensor in problem.inputs.items()}
    fresh = problem.output(reference.out_type)
    torch.cuda.synchronize()
    buffers["out"] = allocate(fresh.array, reference.out_type)
    loader.launch("grouped_fp4", **buffers, stream=int(stream))
    call(driver.cuMemcpyDtoDAsync, fresh.array.data_ptr(), buffers["out"].pointer, fresh.array.nbytes, stream)
    call(driver.cuStreamSynchronize, stream)
    for pointer in allocations:
        call(driver.cuMemFree, pointer)
    call(driver.cuStreamDestroy, stream)
    assert_same_bytes(fresh, reference)


def test_cuda_core_stream(problem: DeviceProblem, reference: Output, out: Output) -> None:
    """A cuda.core stream is taken through ``__cuda_stream__``."""
    core = pytest.importorskip("cuda.core")
    namespace = core if hasattr(core, "Device") else pytest.importorskip("cuda.core.experimental")
    torch.cuda.synchronize()
    device = namespace.Device(0)
    device.set_current()
    stream = device.create_stream()
    loader.launch("grouped_fp4", **problem.inputs, out=out.array, stream=stream)
    stream.sync()
    assert_same_bytes(out, reference)
