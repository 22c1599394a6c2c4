"""A DLPack producer over raw memory, host or device: types that numpy lacks, and launches without any framework."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

# DLPack 1.0: (type code, bits). Packed FP4 and scales go as plain bytes.
TYPES = {"u8": (1, 8), "i32": (0, 32), "f32": (2, 32), "f16": (2, 16), "bf16": (4, 16)}
CPU, CUDA = 1, 2
NUMPY_TYPES = {"uint8": "u8", "int32": "i32", "float32": "f32", "float16": "f16", "uint16": "bf16"}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class RawBuffer:
    """Row-major memory at ``pointer``. It must outlive whatever reads it: the capsules own nothing."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int], owner: Any = None):
        self.pointer, self.shape, self.dtype, self.device, self.owner = pointer, shape, dtype, device, owner
        code, bits = TYPES[dtype]
        self.nbytes = math.prod(shape) * bits // 8
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        tensor = _Tensor(pointer, *device, len(shape), code, bits, 1, self._shape, None, 0)
        self._managed = _ManagedTensor(tensor, None, None)

    @classmethod
    def of(cls, array: np.ndarray) -> RawBuffer:
        """The memory of a contiguous array; uint16 stands for bf16."""
        if not array.flags.c_contiguous:
            raise ValueError("the array is not contiguous")
        return cls(array.ctypes.data, array.shape, NUMPY_TYPES[array.dtype.name], (CPU, 0), owner=array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        return _new_capsule(ctypes.addressof(self._managed), b"dltensor", None)
