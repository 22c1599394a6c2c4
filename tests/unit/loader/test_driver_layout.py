"""Constants, struct layouts and names of the driver module against cuda-python's own bindings."""

import ctypes

import pytest

from loader import driver

cuda = pytest.importorskip("cuda.bindings.driver")


def test_constants():
    """Every number that the loader passes to the driver or compares with its answers."""
    device, function = cuda.CUdevice_attribute, cuda.CUfunction_attribute
    launch, result = cuda.CUlaunchAttributeID, cuda.CUresult
    expected = {
        "ATTRIBUTE_SM_COUNT": device.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        "ATTRIBUTE_MAJOR": device.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        "ATTRIBUTE_MINOR": device.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        "ATTRIBUTE_SHARED_OPTIN": device.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        "FUNCTION_MAX_DYNAMIC_SHARED": function.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        "FUNCTION_NON_PORTABLE_CLUSTER": function.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED,
        "POINTER_DEVICE_ORDINAL": cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        "LAUNCH_CLUSTER_DIMENSION": launch.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        "LAUNCH_PROGRAMMATIC_SERIALIZATION": launch.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        "INVALID_VALUE": result.CUDA_ERROR_INVALID_VALUE, "NOT_INITIALIZED": result.CUDA_ERROR_NOT_INITIALIZED,
        "INVALID_CONTEXT": result.CUDA_ERROR_INVALID_CONTEXT, "INVALID_HANDLE": result.CUDA_ERROR_INVALID_HANDLE,
    }
    assert {name: getattr(driver, name) for name in expected} == {name: int(value) for name, value in expected.items()}
    capture = {int(value) for value in result if "STREAM_CAPTURE" in value.name}
    assert capture <= set(driver.CAPTURE_ERRORS)


def test_tensor_map_codes():
    """Element types, swizzles and L2 promotions of tensor maps."""
    kind, swizzle = cuda.CUtensorMapDataType, cuda.CUtensorMapSwizzle
    names = {"u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "f16": "FLOAT16", "f32": "FLOAT32", "bf16": "BFLOAT16",
             "tf32": "TFLOAT32", "u4_align16": "16U4_ALIGN16B"}
    assert driver.TENSOR_MAP_ELEMENTS == {
        name: int(getattr(kind, f"CU_TENSOR_MAP_DATA_TYPE_{theirs}")) for name, theirs in names.items()}
    assert driver.TENSOR_MAP_SWIZZLES == {
        size: int(getattr(swizzle, f"CU_TENSOR_MAP_SWIZZLE_{f'{size}B' if size else 'NONE'}"))
        for size in (0, 32, 64, 128)}
    promotion = cuda.CUtensorMapL2promotion
    assert driver.TENSOR_MAP_L2_PROMOTIONS == {
        size: int(getattr(promotion, f"CU_TENSOR_MAP_L2_PROMOTION_{f'L2_{size}B' if size else 'NONE'}"))
        for size in (0, 64, 128, 256)}


def test_launch_structs():
    """CUlaunchConfig and CUlaunchAttribute, byte for byte."""
    theirs = cuda.CUlaunchConfig()
    theirs.gridDimX, theirs.gridDimY, theirs.gridDimZ = 2, 3, 4
    theirs.blockDimX, theirs.blockDimY, theirs.blockDimZ = 5, 6, 7
    theirs.sharedMemBytes, theirs.hStream = 8, cuda.CUstream(0x123456789A)
    ours = driver.LaunchConfig((ctypes.c_uint32 * 3)(2, 3, 4), (ctypes.c_uint32 * 3)(5, 6, 7), 8, 0x123456789A)
    assert bytes(ours) == ctypes.string_at(int(theirs.getPtr()), ctypes.sizeof(ours))
    assert (driver.LaunchConfig.attributes.offset, driver.LaunchConfig.attribute_count.offset) == (40, 48)

    theirs = cuda.CUlaunchAttribute()
    theirs.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    theirs.value.clusterDim.x, theirs.value.clusterDim.y, theirs.value.clusterDim.z = 2, 3, 4
    ours = driver.LaunchAttribute(id=driver.LAUNCH_CLUSTER_DIMENSION)
    ours.value[0:3] = 2, 3, 4
    assert ctypes.sizeof(ours) == 72
    assert bytes(ours)[:20] == ctypes.string_at(int(theirs.getPtr()), 20)
