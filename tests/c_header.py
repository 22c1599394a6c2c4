"""include/block_scaled.h as a library of this process, for calls on a stream of Python's."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path

from loader.manifest import DTYPE_BYTES

ROOT = Path(__file__).resolve().parent.parent
DTYPES = list(DTYPE_BYTES)  # in the order of bs_dtype
BUFFER, WORD = 0, 3  # of bs_kind


class Value(ctypes.Structure):
    """bs_value."""

    _fields_ = [("name", c_char_p), ("kind", c_int), ("dtype", c_int), ("rank", c_int), ("shape", c_int64 * 8),
                ("address", c_uint64), ("integer", c_int64), ("real", c_double), ("word", c_char_p)]


class Error(ctypes.Structure):
    """bs_error."""

    _fields_ = [("code", c_int), ("message", c_char * 1024)]


class Header:
    """A pack and a device of the library compiled in ``folder``."""

    def __init__(self, folder: Path, pack: str, ordinal: int = 0) -> None:
        path = folder / "block_scaled.so"
        subprocess.run(["gcc", "-std=c11", "-O1", "-shared", "-fPIC", "-DBLOCK_SCALED_IMPLEMENTATION", "-x", "c",
                        str(ROOT / "include" / "block_scaled.h"), "-o", str(path), "-ldl", "-lm"], check=True)
        self._library, self._error = ctypes.CDLL(str(path)), Error()
        self._library.bs_launch.argtypes = (c_void_p, c_void_p, c_char_p, POINTER(Value), c_int, c_void_p,
                                            POINTER(Error))
        self._pack, self._device = c_void_p(), c_void_p()
        self._check(self._library.bs_pack_open(pack.encode(), byref(self._pack), byref(self._error)))
        self._check(self._library.bs_device_open(ordinal, byref(self._device), byref(self._error)))

    def _check(self, code: int) -> None:
        assert code == 0, self._error.message.decode()

    def launch(self, kernel: str, buffers: Mapping[str, tuple[str, int, tuple[int, ...]]], stream: int,
               **words: str) -> None:  # fmt: skip
        """``buffers``: dtype, address and shape by argument; words: scalars that are choices."""
        given = [Value(name.encode(), BUFFER, DTYPES.index(dtype), len(shape), (c_int64 * 8)(*shape), address)
                 for name, (dtype, address, shape) in buffers.items()]  # fmt: skip
        given += [Value(name.encode(), WORD, word=word.encode()) for name, word in words.items()]
        values = (Value * len(given))(*given)
        self._check(self._library.bs_launch(self._pack, self._device, kernel.encode(), values, len(values), stream,
                                            byref(self._error)))

    def close(self) -> None:
        self._library.bs_device_close.argtypes = self._library.bs_pack_close.argtypes = (c_void_p,)
        self._library.bs_device_close(self._device)
        self._library.bs_pack_close(self._pack)
