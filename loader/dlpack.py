"""Buffers of any framework: reading DLPack and the CUDA array interface without copying and without owning.

In order of preference: the C exchange API of the producer's type (DLPack 1.2 and later), ``__dlpack__``, and
``__cuda_array_interface__``. A capsule is only looked at: it keeps its name, so its own destructor gives the tensor
back to the producer. Struct layouts and codes: dlpack.h 1.3, on 64-bit platforms.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, NamedTuple

from . import driver
from .errors import BufferProtocolError, StreamError

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
DEVICE_NAMES = {1: "cpu", 2: "cuda", 3: "cuda_host (pinned)", 10: "rocm", 13: "cuda_managed", 14: "oneapi"}

INT, UINT, FLOAT, BFLOAT = 0, 1, 2, 4
FLOAT8_E4M3FN, FLOAT8_E8M0FNU, FLOAT4_E2M1FN = 10, 14, 17
# Why a tensor may have no address.
NO_MEMORY = ("a tensor has no memory while torch traces; torch.ops.block_scaled.<kernel> of integrations.ops can be "
             "traced")

_CODE_NAMES = {0: "int", 1: "uint", 2: "float", 3: "handle", 4: "bfloat", 5: "complex", 6: "bool", 10: "float8_e4m3fn",
               12: "float8_e5m2", 14: "float8_e8m0fnu", 17: "float4_e2m1fn"}

# (code, bits, lanes) -> dtype of the manifest, where the producer says exactly one
ELEMENTS: dict[tuple[int, int, int], str] = {
    (INT, 32, 1): "i32", (INT, 64, 1): "i64", (FLOAT, 32, 1): "f32", (FLOAT, 16, 1): "f16", (BFLOAT, 16, 1): "bf16",
    (FLOAT8_E4M3FN, 8, 1): "e4m3", (FLOAT8_E8M0FNU, 8, 1): "ue8m0",
    (FLOAT4_E2M1FN, 4, 2): "e2m1x2", (FLOAT4_E2M1FN, 4, 1): "e2m1x2",
    (UINT, 8, 1): "u8", (INT, 8, 1): "u8",
}
# dtype of the manifest -> an element type that is read as it
ELEMENT_OF = {dtype: element for element, dtype in reversed(ELEMENTS.items())} | {"ue4m3": (FLOAT8_E4M3FN, 8, 1)}

FLOATS = frozenset({"f32", "f16", "bf16"})

READ_ONLY, IS_COPIED = 1, 2

# DLTensor: data, device type, device id, ndim, dtype code, bits, lanes, shape, strides, byte_offset
TENSOR = struct.Struct("<QiiiBBHQQQ")
_VERSION = struct.Struct("<II")
_FLAGS_OFFSET, _VERSIONED_TENSOR_OFFSET = 24, 32
_API_PREVIOUS_OFFSET, _API_TENSOR_OFFSET, _API_STREAM_OFFSET = 8, 40, 48


class Buffer(NamedTuple):
    """One buffer as its producer describes it; ``strides`` in elements, None if row major and contiguous.

    ``device_id`` is -1 for a CUDA array of no bytes at address 0, which lies nowhere.
    """

    pointer: int
    device_type: int
    device_id: int
    element: tuple[int, int, int]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    read_only: bool


# In the place of the buffer of an optional argument that is left out.
ABSENT = Buffer(0, 0, 0, (0, 0, 0), (), None, False)


class Exchange(NamedTuple):
    """Two functions of a type's C exchange API.

    ``tensor(object, address)`` writes a DLTensor that borrows from the object; ``stream(ordinal)`` is the handle of the
    producer's current stream on a CUDA device. ``tensor`` returns 0 where it succeeded.
    """

    tensor: Any
    stream: Any


# The GIL stays held and a Python exception set by the producer is raised.
_TENSOR_FROM_PYTHON = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
_CURRENT_STREAM = ctypes.PYFUNCTYPE(ctypes.c_int)  # untyped: its arguments are ready-made ctypes objects
_capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))


class _CurrentStream:
    """Calls a producer's ``current_work_stream`` without making a ctypes object a call."""

    __slots__ = ("_read", "_cells", "_ordinals")

    def __init__(self, function: int) -> None:
        self._read = _CURRENT_STREAM(function)
        self._cells: list[tuple[ctypes.c_uint64, ctypes.c_void_p]] = []  # a thread takes one and puts it back
        self._ordinals: dict[int, ctypes.c_int] = {}

    def __call__(self, ordinal: int) -> int:
        try:
            cell = self._cells.pop()
        except IndexError:
            storage = ctypes.c_uint64()
            cell = storage, ctypes.c_void_p(ctypes.addressof(storage))
        device = self._ordinals.get(ordinal)
        if device is None:
            device = self._ordinals[ordinal] = ctypes.c_int(ordinal)
        status = self._read(_CUDA_DEVICE, device, cell[1])
        if status:
            raise StreamError(f"stream: the producer does not tell its current one on cuda:{ordinal}, status {status}",
                              argument="stream", expected="a CUDA stream", got=status)
        handle = cell[0].value
        self._cells.append(cell)
        return handle


_CUDA_DEVICE = ctypes.c_int(CUDA)
_exchanges: dict[type, Exchange | None] = {}


def _read_u64(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def exchange(kind: type) -> Exchange | None:
    """The C exchange API of a type, looked up once; None where it has none of major version 1."""
    if kind not in _exchanges:
        _exchanges[kind] = _find_exchange(kind)
    return _exchanges[kind]


def _find_exchange(kind: type) -> Exchange | None:
    found = getattr(kind, "__dlpack_c_exchange_api__", None)
    if found is None:
        found = getattr(kind, "__c_dlpack_exchange_api__", None)  # its name before DLPack 1.2
    if found is None:
        return None
    address = found if isinstance(found, int) else _capsule_pointer(found, b"dlpack_exchange_api")
    while address:
        major, _ = _VERSION.unpack(ctypes.string_at(address, _VERSION.size))
        if major == 1:
            tensor = _read_u64(address + _API_TENSOR_OFFSET)
            stream = _read_u64(address + _API_STREAM_OFFSET)
            return Exchange(_TENSOR_FROM_PYTHON(tensor), _CurrentStream(stream)) if tensor and stream else None
        address = _read_u64(address + _API_PREVIOUS_OFFSET)
    return None


def read(value: Any, argument: str, stream: int | None = None) -> Buffer:
    """The buffer behind an object.

    ``stream`` is the CUDA stream handle that will use the buffer, for producers that order themselves before it; None
    asks for no ordering. Raises ``BufferProtocolError``, and ``StreamError`` for a CUDA array that asks to be ordered
    after another stream.
    """
    kind = type(value)
    try:
        if hasattr(kind, "is_neg") and value.is_neg():  # torch's exports do not say so
            raise _unreadable(argument, kind, "its negative bit is set, so what lies in memory has the other sign; "
                              "pass tensor.resolve_neg()")
        api = exchange(kind)
        if api is not None:
            return _from_exchange(api, value)
        if hasattr(kind, "__dlpack__"):
            return _from_capsule(value, argument, stream)
        interface = getattr(value, "__cuda_array_interface__", None)
    except BufferProtocolError:
        raise
    except Exception as error:  # whatever a producer raises, said with the argument's name
        # torch appends the frames of its C++ to the first line.
        raise _unreadable(argument, kind, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    if interface is None:
        raise _unreadable(argument, kind, "it has neither __dlpack__ nor __cuda_array_interface__")
    return _from_array_interface(interface, argument, kind, stream)


def cuda_ordinal(value: Any) -> int | None:
    """Ordinal of the CUDA device that a DLPack producer names; None if it names none. ``read`` says what is wrong."""
    try:
        device_type, device_id = value.__dlpack_device__()
    except Exception:
        return None
    return int(device_id) if device_type in (CUDA, CUDA_MANAGED) else None


def _unreadable(argument: str, kind: type, why: str) -> BufferProtocolError:
    name = f"{kind.__module__}.{kind.__qualname__}"
    hint = ""
    if "BufferError" in why:
        hint = "; pass types that the producer cannot export (FP4, FP8) as a uint8 view"
    elif "data pointer" in why:
        hint = f"; {NO_MEMORY}"
    return BufferProtocolError(f"{argument}: {name} gives no buffer: {why}{hint}", argument=argument,
                               expected="a DLPack or CUDA array interface object", got=name)


def _from_tensor(address: int, read_only: bool) -> Buffer:
    fields = TENSOR.unpack(ctypes.string_at(address, TENSOR.size))
    data, device_type, device_id, rank, code, bits, lanes, shape, strides, offset = fields
    if not 0 <= rank <= 64:
        raise BufferError(f"a DLPack tensor of {rank} dimensions")
    sizes = f"<{rank}q"
    return Buffer(
        data + offset, device_type, device_id, (code, bits, lanes),
        struct.unpack(sizes, ctypes.string_at(shape, 8 * rank)) if rank else (),
        struct.unpack(sizes, ctypes.string_at(strides, 8 * rank)) if rank and strides else None,
        read_only,
    )


def _from_exchange(api: Exchange, value: Any) -> Buffer:
    tensor = ctypes.create_string_buffer(TENSOR.size)
    status = api.tensor(value, ctypes.addressof(tensor))
    if status:
        raise BufferError(f"its exchange function answered status {status}")
    return _from_tensor(ctypes.addressof(tensor), False)


def _capsule(value: Any, stream: int | None) -> Any:
    device_type = value.__dlpack_device__()[0] if hasattr(value, "__dlpack_device__") else None
    if stream is None or device_type not in (CUDA, CUDA_MANAGED):
        order = {}
    else:
        order = {"stream": stream or 1}  # 0 is not allowed, 1 is the legacy default stream
    try:
        return value.__dlpack__(max_version=(1, 3), **order)
    except TypeError:  # a producer older than DLPack 1.0
        return value.__dlpack__(**order)


def _from_capsule(value: Any, argument: str, stream: int | None) -> Buffer:
    capsule = _capsule(value, stream)
    if _capsule_is(capsule, b"dltensor_versioned"):
        address = _capsule_pointer(capsule, b"dltensor_versioned")
        major, minor = _VERSION.unpack(ctypes.string_at(address, _VERSION.size))
        if major != 1:
            raise _unreadable(argument, type(value), f"DLPack {major}.{minor}, this loader reads 1.x")
        flags = _read_u64(address + _FLAGS_OFFSET)
        if flags & IS_COPIED:
            raise _unreadable(argument, type(value), "the producer exported a copy")
        return _from_tensor(address + _VERSIONED_TENSOR_OFFSET, bool(flags & READ_ONLY))
    if _capsule_is(capsule, b"dltensor"):
        return _from_tensor(_capsule_pointer(capsule, b"dltensor"), False)
    raise _unreadable(argument, type(value), "__dlpack__ returned no unused DLPack capsule")


_KINDS = {"i": INT, "u": UINT, "f": FLOAT}


def _from_array_interface(interface: Any, argument: str, kind: type, stream: int | None) -> Buffer:
    try:
        typestr, shape, (pointer, read_only) = interface["typestr"], tuple(interface["shape"]), interface["data"]
        strides, mask, after = interface.get("strides"), interface.get("mask"), interface.get("stream")
        element, size = (_KINDS.get(typestr[1], -1), 8 * int(typestr[2:]), 1), int(typestr[2:])
        if strides is not None:
            if any(stride % size for stride in strides):
                raise ValueError(f"strides {strides} are no multiples of {size} bytes")
            strides = tuple(stride // size for stride in strides)
        if after is not None and (type(after) is not int or after < 1):
            raise ValueError(f"{after!r} is no stream")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _unreadable(argument, kind, f"its __cuda_array_interface__ is malformed: {error}") from None
    if mask is not None or typestr[0] == ">":
        raise _unreadable(argument, kind, "masked and big-endian arrays are not supported")
    if after is not None and stream is not None and after != (stream or 1):  # 0 and 1 are the legacy default stream
        raise StreamError(f"{argument}: its __cuda_array_interface__ asks for order after stream {after:#x}, the "
                          f"launch goes to {stream:#x}; launch on that stream, or synchronise and export none",
                          argument=argument, expected=stream, got=after)
    # The interface does not name the device.
    device = driver.get().pointer_device(pointer, argument=argument) if pointer else -1
    return Buffer(pointer or 0, CUDA, device, element, shape, strides, bool(read_only))


def describe(element: tuple[int, int, int]) -> str:
    """An element type as a person would say it."""
    code, bits, lanes = element
    name = _CODE_NAMES.get(code, f"DLPack type {code}")
    name = name if code >= FLOAT8_E4M3FN else f"{name}{bits}"
    return name if lanes == 1 else f"{name}_x{lanes}"


def device_name(device_type: int, device_id: int) -> str:
    return f"{DEVICE_NAMES.get(device_type, f'DLPack device {device_type}')}:{device_id}"
