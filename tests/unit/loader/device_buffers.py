"""Buffers that claim to lie on a CUDA device, for a driver that never touches them.

``Tensor`` speaks ``__dlpack__`` (versioned or legacy capsules), ``FastTensor`` the C exchange API, ``ArrayInterface``
the CUDA array interface. ``deleted`` counts capsules that were given back.
"""

import ctypes
import math
import struct
from ctypes import CFUNCTYPE, PYFUNCTYPE, c_char_p, c_int, c_void_p, py_object

CUDA, CPU = 2, 1
CODES = {"i32": (0, 32, 1), "i64": (0, 64, 1), "u8": (1, 8, 1), "i8": (0, 8, 1), "f32": (2, 32, 1), "f16": (2, 16, 1),
         "f64": (2, 64, 1), "bf16": (4, 16, 1), "e4m3": (10, 8, 1), "e5m2": (12, 8, 1), "ue8m0": (14, 8, 1),
         "fp4x2": (17, 4, 2), "fp4": (17, 4, 1), "bool": (6, 8, 1)}

_capsule_new = PYFUNCTYPE(py_object, c_void_p, c_void_p, c_void_p)(("PyCapsule_New", ctypes.pythonapi))
_capsule_pointer = PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_capsule_valid = PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_DESTRUCTOR = PYFUNCTYPE(None, c_void_p)
_DELETER = CFUNCTYPE(None, c_void_p)

_next_address = [0x7F00_0000_0000]


def allocate(size, alignment=256):
    """A range of addresses of its own."""
    address = -(-_next_address[0] // alignment) * alignment
    _next_address[0] = address + max(size, 1)
    return address


class _Described:
    """What all producers here have in common."""

    def __init__(self, dtype, shape, *, device=(CUDA, 0), strides="contiguous", pointer=None, offset=0,
                 read_only=False):
        self.code, self.shape, self.device = CODES[dtype], tuple(shape), device
        if strides == "contiguous":
            strides = [math.prod(self.shape[i + 1:]) for i in range(len(self.shape))]
        self.strides = strides
        size = math.prod(self.shape) * self.code[1] * self.code[2] // 8
        self.pointer = allocate(size) if pointer is None else pointer
        self.offset, self.read_only = offset, read_only
        rank = len(self.shape)
        self._shape = (ctypes.c_int64 * max(rank, 1))(*self.shape)
        self._strides = (ctypes.c_int64 * max(rank, 1))(*strides) if strides is not None else None

    def tensor(self):
        strides = ctypes.addressof(self._strides) if self._strides is not None else 0
        return struct.pack("<QiiiBBHQQQ", self.pointer, *self.device, len(self.shape), *self.code,
                           ctypes.addressof(self._shape), strides, self.offset)


class Tensor(_Described):
    """A producer of capsules; ``streams`` records the streams that it was asked to order itself before."""

    deleted = 0

    def __init__(self, *args, versioned=True, version=(1, 1), flags=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.versioned, self.version, self.flags, self.streams = versioned, version, flags, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        self.streams.append(stream)
        return _capsule(self, self.versioned and max_version is not None)


class OldTensor(Tensor):
    """A producer from before DLPack 1.0."""

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return _capsule(self, False)


_alive = {}


@_DELETER
def _delete(address):
    Tensor.deleted += 1
    _alive.pop(address)


@_DESTRUCTOR
def _destroy(capsule):
    for name in (b"dltensor", b"dltensor_versioned"):
        if _capsule_valid(capsule, name):
            _delete(_capsule_pointer(capsule, name))


_names = {True: ctypes.create_string_buffer(b"dltensor_versioned"), False: ctypes.create_string_buffer(b"dltensor")}


def _capsule(value, versioned):
    deleter = ctypes.cast(_delete, c_void_p).value
    if versioned:
        flags = value.flags | int(value.read_only)
        data = struct.pack("<IIQQQ", *value.version, 0, deleter, flags) + value.tensor()
    else:
        data = value.tensor() + struct.pack("<QQ", 0, deleter)
    memory = ctypes.create_string_buffer(data, len(data))
    _alive[ctypes.addressof(memory)] = (memory, value)
    return _capsule_new(ctypes.addressof(memory), ctypes.addressof(_names[versioned]),
                        ctypes.cast(_destroy, c_void_p).value)


# The C exchange API of FastTensor

_TO_TENSOR = PYFUNCTYPE(c_int, py_object, c_void_p)
_STREAM = PYFUNCTYPE(c_int, c_int, c_int, c_void_p)


@_TO_TENSOR
def _to_tensor(value, out):
    ctypes.memmove(out, value.tensor(), 48)
    return 0


@_STREAM
def _current_stream(device_type, device_id, out):
    c_void_p.from_address(out).value = FastTensor.current_stream or None
    return 0


def exchange_table(major=1, previous=0, tensor=_to_tensor, stream=_current_stream):
    """Bytes of a DLPackExchangeAPI, kept alive by the caller."""
    functions = [0, 0, 0, *(ctypes.cast(f, c_void_p).value if f else 0 for f in (tensor, stream))]
    return ctypes.create_string_buffer(struct.pack("<IIQ5Q", major, 3, previous, *functions))


_table = exchange_table()
_api_name = ctypes.create_string_buffer(b"dlpack_exchange_api")


def api_capsule(table):
    return _capsule_new(ctypes.addressof(table), ctypes.addressof(_api_name), None)


class FastTensor(_Described):
    """A producer with the C exchange API, as torch has it."""

    current_stream = 0
    __dlpack_c_exchange_api__ = api_capsule(_table)

    def __dlpack_device__(self):
        return self.device


class ArrayInterface:
    """A producer of ``__cuda_array_interface__`` only."""

    def __init__(self, typestr, shape, *, strides=None, pointer=None, read_only=False, **extra):
        self.pointer = allocate(math.prod(shape) * int(typestr[2:])) if pointer is None else pointer
        self.__cuda_array_interface__ = {"typestr": typestr, "shape": tuple(shape), "strides": strides,
                                         "data": (self.pointer, read_only), "version": 3, **extra}
