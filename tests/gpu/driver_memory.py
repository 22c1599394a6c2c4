"""Memory of a GPU by the driver alone: for programs that no framework is to disturb."""

from __future__ import annotations

import ctypes

import numpy as np
from raw_buffer import CUDA, NUMPY_TYPES, RawBuffer


class Device:
    """Memory of device 0 through the driver library, in its primary context."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} failed with CUresult {status}")

    def upload(self, array: np.ndarray) -> RawBuffer:
        """A device copy of an array; uint16 stands for bf16."""
        array, pointer = np.ascontiguousarray(array), ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(array.nbytes))
        self._call("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        return RawBuffer(pointer.value, array.shape, NUMPY_TYPES[array.dtype.name], (CUDA, 0))

    def download(self, buffer: RawBuffer, array: np.ndarray) -> None:
        """Waits for the device, then copies back."""
        self._call("cuCtxSynchronize")
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(buffer.pointer), size)
