"""The call frame of XLA's typed FFI, read with ctypes: a Python function as a handler that XLA calls.

Structs are those of xla/ffi/api/c_api.h, API 0.3, on 64-bit platforms. A minor version of that API only adds to them,
so any of major version 0 is read; every struct that is read says its size, and one that is too small is refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from .borrowed_buffer import new_capsule

MAJOR, MINOR = 0, 3  # of the header
INSTANTIATE, EXECUTE = 0, 3  # stages
COMMAND_BUFFER_COMPATIBLE = 1  # a trait: a call may be captured once and replayed
INVALID_ARGUMENT, INTERNAL = 3, 13  # codes of errors

_METADATA = 1  # type of an extension
_STRING = 4  # type of an attribute
# Places of functions in the API.
_ERROR_CREATE, _STREAM_GET, _DEVICE_ORDINAL_GET = 0, 4, 17

_kept: list[Any] = []  # XLA holds addresses of handlers as long as the process lives


class FrameError(RuntimeError):
    """What XLA hands over is not what is read here."""


class FrameBuffer(NamedTuple):
    """An operand or a result of a call: its address, and its shape in elements."""

    pointer: int
    shape: tuple[int, ...]


class _Extension(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p)]


class _Version(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("major", ctypes.c_int),
                ("minor", ctypes.c_int)]  # fmt: skip


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("api_version", _Version), ("traits", ctypes.c_uint32)]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [("base", _Extension), ("metadata", ctypes.POINTER(_Metadata))]


class _Api(ctypes.Structure):
    """Pointers to functions follow."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("version", _Version),
                ("internal", ctypes.c_void_p)]  # fmt: skip


class _Buffer(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("dtype", ctypes.c_int),
                ("data", ctypes.c_void_p), ("rank", ctypes.c_int64),
                ("dims", ctypes.POINTER(ctypes.c_int64))]  # fmt: skip


class _Span(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Buffers(ctypes.Structure):
    """Operands or results. There is one type of either: a buffer."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("count", ctypes.c_int64),
                ("types", ctypes.POINTER(ctypes.c_int)),
                ("items", ctypes.POINTER(ctypes.POINTER(_Buffer)))]  # fmt: skip


class _Attributes(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("count", ctypes.c_int64),
                ("types", ctypes.POINTER(ctypes.c_int)), ("names", ctypes.POINTER(ctypes.POINTER(_Span))),
                ("items", ctypes.POINTER(ctypes.POINTER(_Span)))]  # fmt: skip


class _CallFrame(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.POINTER(_Extension)),
                ("api", ctypes.POINTER(_Api)), ("context", ctypes.c_void_p), ("stage", ctypes.c_int),
                ("operands", _Buffers), ("results", _Buffers), ("attributes", _Attributes)]  # fmt: skip


class _ErrorArguments(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("message", ctypes.c_char_p),
                ("code", ctypes.c_int)]  # fmt: skip


class _StreamArguments(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("context", ctypes.c_void_p),
                ("stream", ctypes.c_void_p)]  # fmt: skip


class _OrdinalArguments(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("context", ctypes.c_void_p),
                ("ordinal", ctypes.c_int32)]  # fmt: skip


_HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
_API_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class CallFrame:
    """One call of a handler; what it gives lives as long as the call. A ``FrameError`` says what cannot be read."""

    def __init__(self, frame: _CallFrame) -> None:
        self._frame = frame

    @property
    def stage(self) -> int:
        return self._frame.stage

    def operands(self) -> list[FrameBuffer]:
        return _buffers(self._frame.operands, "operands")

    def results(self) -> list[FrameBuffer]:
        return _buffers(self._frame.results, "results")

    def text(self, name: str) -> bytes:
        """An attribute of type string."""
        attributes = self._frame.attributes
        for i in range(attributes.count):
            if _bytes(attributes.names[i][0]) == name.encode() and attributes.types[i] == _STRING:
                return _bytes(attributes.items[i][0])
        raise FrameError(f"a call from XLA without the text {name!r}")

    def stream(self) -> int:
        """The CUDA stream on which the call is made, or that is captured."""
        return self._ask(_STREAM_GET, _StreamArguments(context=self._frame.context)).stream or 0

    def ordinal(self) -> int:
        """Of the device on which the call is made."""
        return self._ask(_DEVICE_ORDINAL_GET, _OrdinalArguments(context=self._frame.context)).ordinal

    def _ask(self, function: int, arguments: Any) -> Any:
        """``arguments`` with the answer of a function of the API."""
        arguments.struct_size = ctypes.sizeof(arguments)
        if _function(self._frame.api, function)(ctypes.byref(arguments)):
            raise FrameError(f"XLA refuses function {function} of its FFI")
        return arguments


def _function(api: Any, index: int) -> Callable[[Any], int | None]:
    offset = ctypes.sizeof(_Api) + ctypes.sizeof(ctypes.c_void_p) * index
    _check_size(api[0], offset + ctypes.sizeof(ctypes.c_void_p), "API")
    return _API_FUNCTION(ctypes.c_void_p.from_address(ctypes.addressof(api[0]) + offset).value)


def _check_size(struct: Any, needed: int, what: str) -> None:
    if struct.struct_size < needed:
        raise FrameError(f"XLA's FFI: expected at least {needed} bytes of {what}, got {struct.struct_size}")


def _buffers(buffers: _Buffers, what: str) -> list[FrameBuffer]:
    found = []
    for i in range(buffers.count):
        buffer = buffers.items[i][0]
        _check_size(buffer, ctypes.sizeof(_Buffer), f"a buffer of {what}")
        found.append(FrameBuffer(buffer.data or 0, tuple(buffer.dims[: buffer.rank])))
    return found


def _bytes(span: _Span) -> bytes:
    return ctypes.string_at(span.pointer, span.size)


class Handler:
    """``function(frame)`` as a handler. What it raises becomes XLA's error, with its class and message; of a class in
    ``invalid`` as INVALID_ARGUMENT.

    ``capsule`` is what ``jax.ffi.register_ffi_target`` takes.
    """

    def __init__(self, function: Callable[[CallFrame], None], invalid: type[Exception]) -> None:
        self._run, self._invalid = function, invalid
        self.function = _HANDLER(self._call)
        self.capsule = new_capsule(ctypes.cast(self.function, ctypes.c_void_p).value, None, None)
        _kept.append(self)

    def _call(self, pointer: Any) -> int | None:
        frame = pointer[0]
        try:
            _check_size(frame, ctypes.sizeof(_CallFrame), "a call frame")
            if frame.extension and frame.extension[0].type == _METADATA:
                self._describe(frame)
            else:
                self._run(CallFrame(frame))
        except BaseException as error:  # one that leaves the callback would be printed, and count as success
            code = INVALID_ARGUMENT if isinstance(error, self._invalid) else INTERNAL
            return _error(frame.api, f"{type(error).__name__}: {error}", code)
        return None

    def _describe(self, frame: _CallFrame) -> None:
        """Answer that the handler is of XLA's own minor version; where the major one is another, of the header's: then
        XLA refuses it with both in its message."""
        version = frame.api[0].version
        metadata = ctypes.cast(frame.extension, ctypes.POINTER(_MetadataExtension))[0].metadata[0]
        _check_size(metadata, ctypes.sizeof(_Metadata) - 4, "metadata")  # less what fills the struct up
        metadata.api_version.major = MAJOR
        metadata.api_version.minor = version.minor if version.major == MAJOR else MINOR
        metadata.traits = COMMAND_BUFFER_COMPATIBLE


def _error(api: Any, message: str, code: int) -> int | None:
    arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message.encode(), code)
    return _function(api, _ERROR_CREATE)(ctypes.byref(arguments))
