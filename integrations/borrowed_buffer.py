"""Memory that somebody else owns, as a DLPack producer: a pointer with a shape and a dtype of the manifest."""

from __future__ import annotations

import ctypes
from typing import Any

from . import loader

# A prototype of its own: that of ``ctypes.pythonapi`` is everybody's, and JAX changes it.
new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_CONTEXT_AND_DELETER = bytes(16)  # behind the DLTensor: none


class BorrowedBuffer:
    """Row-major memory at ``pointer``, ``shape`` in stored elements; ``device``: (type, ordinal) of DLPack.

    It owns nothing: for readers that are done before the owner is.
    """

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int]) -> None:
        self._device = device
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        code, bits, lanes = loader.dlpack.ELEMENT_OF[dtype]
        tensor = loader.dlpack.TENSOR.pack(
            pointer, *device, len(shape), code, bits, lanes, ctypes.addressof(self._shape), 0, 0
        )
        self._managed = ctypes.create_string_buffer(tensor + _CONTEXT_AND_DELETER)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        return new_capsule(ctypes.addressof(self._managed), b"dltensor", None)
