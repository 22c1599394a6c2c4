"""The CUDA driver through ctypes: the only file that calls it.

Opened at the first use, never at import. Every function has a typed prototype and every result is checked; the one
exception to the prototypes is ``launch_kernel``, which takes ready-made ctypes objects because converting Python
integers would cost a quarter of a launch. Struct layouts and constants: cuda.h 13.0.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_float,
    c_int,
    c_size_t,
    c_ubyte,
    c_uint,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from .errors import CaptureError, CudaError, DriverNotFoundError, DriverTooOldError, ForkError
from .select import DeviceFacts

LIBRARY_NAMES = ("nvcuda.dll",) if sys.platform == "win32" else (
    "libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1")

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 0, 1, 2, 3
INVALID_CONTEXT, INVALID_HANDLE = 201, 400
# CUDA_ERROR_STREAM_CAPTURE_*: what a driver answers to calls that a capture forbids
CAPTURE_ERRORS = range(900, 909)

ATTRIBUTE_SM_COUNT, ATTRIBUTE_MAJOR, ATTRIBUTE_MINOR, ATTRIBUTE_SHARED_OPTIN = 16, 75, 76, 97
FUNCTION_MAX_DYNAMIC_SHARED, FUNCTION_NON_PORTABLE_CLUSTER = 8, 14
POINTER_DEVICE_ORDINAL = 9
LAUNCH_CLUSTER_DIMENSION, LAUNCH_PROGRAMMATIC_SERIALIZATION = 4, 6

TENSOR_MAP_ELEMENTS = {"u8": 0, "u16": 1, "u32": 2, "f16": 6, "f32": 7, "bf16": 9, "tf32": 11, "u4_align16": 14}
TENSOR_MAP_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
TENSOR_MAP_L2_PROMOTIONS = {0: 0, 64: 1, 128: 2, 256: 3}


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: an identifier and a union of 64 bytes, here as words."""

    _fields_ = [("id", c_uint32), ("pad", c_uint32), ("value", c_uint32 * 16)]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [("grid", c_uint32 * 3), ("block", c_uint32 * 3), ("shared", c_uint32), ("stream", c_uint64),
                ("attributes", POINTER(LaunchAttribute)), ("attribute_count", c_uint32)]


_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuCtxGetDevice": (POINTER(c_int),),
    "cuCtxSynchronize": (),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuStreamIsCapturing": (c_uint64, POINTER(c_int)),
    "cuMemAllocAsync": (POINTER(c_uint64), c_size_t, c_uint64),
    "cuMemFreeAsync": (c_uint64, c_uint64),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_uint64),
    "cuStreamSynchronize": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_char_p, c_size_t, c_uint64),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_uint64),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_uint64),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuLibraryLoadData": (POINTER(c_void_p), c_char_p, c_void_p, c_void_p, c_uint, c_void_p, c_void_p, c_uint),
    "cuLibraryUnload": (c_void_p,),
    "cuLibraryGetKernel": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuKernelGetFunction": (POINTER(c_void_p), c_void_p),
    "cuKernelSetAttribute": (c_int, c_int, c_void_p, c_int),
    "cuKernelGetParamInfo": (c_void_p, c_size_t, POINTER(c_size_t), POINTER(c_size_t)),
    "cuTensorMapEncodeTiled": (c_void_p, c_int, c_uint32, c_uint64, POINTER(c_uint64), POINTER(c_uint64),
                               POINTER(c_uint32), POINTER(c_uint32), c_int, c_int, c_int, c_int),
    "cuLaunchKernelEx": (),
}


def open_library() -> Any:
    """The driver library; ``DriverNotFoundError`` names what was tried."""
    failures = []
    for name in LIBRARY_NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            failures.append(f"{name}: {error}")
    raise DriverNotFoundError(
        "no CUDA driver on this machine; host buffers run on the emulated device without one\n  "
        + "\n  ".join(failures), tried=LIBRARY_NAMES)


class Device:
    """A CUDA device: its facts and its primary context, retained for the life of the process."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver, self.ordinal = driver, ordinal
        handle = c_int()
        driver.call("cuDeviceGet", byref(handle), ordinal, device=ordinal)
        self.handle = handle.value
        name = ctypes.create_string_buffer(256)
        driver.call("cuDeviceGetName", name, len(name), self.handle, device=ordinal)
        self.facts = DeviceFacts(name.value.decode(),
                                 (self._attribute(ATTRIBUTE_MAJOR), self._attribute(ATTRIBUTE_MINOR)),
                                 self._attribute(ATTRIBUTE_SM_COUNT), self._attribute(ATTRIBUTE_SHARED_OPTIN))
        self._context: c_void_p | None = None

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self.driver.call("cuDeviceGetAttribute", byref(value), attribute, self.handle, device=self.ordinal)
        return value.value

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current, and the caller's again afterwards."""
        if self._context is None:
            context = c_void_p()
            self.driver.call("cuDevicePrimaryCtxRetain", byref(context), self.handle, device=self.ordinal)
            self._context = context
        self.driver.call("cuCtxPushCurrent_v2", self._context, device=self.ordinal)
        try:
            yield
        finally:
            self.driver.call("cuCtxPopCurrent_v2", byref(c_void_p()), device=self.ordinal)

    def synchronize(self) -> None:
        """Wait for all that is queued on the device; ``CaptureError`` where a capture forbids that."""
        with self.current():
            status = self.driver._functions["cuCtxSynchronize"]()
        if status in CAPTURE_ERRORS:
            raise CaptureError(f"cuda:{self.ordinal} cannot be waited for while a stream is being captured",
                               device=self.ordinal)
        self.driver.check(status, "cuCtxSynchronize", device=self.ordinal)

    @contextmanager
    def scratch(self, size: int, stream: int, **context: Any) -> Iterator[int]:
        """Address of ``size`` bytes in the order of ``stream``: for what is queued there until the end of the block.

        From the device's memory pool: nothing waits, and under capture both ends become nodes of the graph.
        """
        address = c_uint64()
        with self.current():
            self.driver.call("cuMemAllocAsync", byref(address), size, stream, bytes=size, **context)
            try:
                yield address.value
            finally:
                self.driver.call("cuMemFreeAsync", address.value, stream, **context)

    def read(self, address: int, size: int, stream: int, **context: Any) -> bytes:
        """What lies in device memory once all that is queued on ``stream`` is done."""
        memory = ctypes.create_string_buffer(size)
        with self.current():
            self.driver.call("cuMemcpyDtoHAsync_v2", memory, address, size, stream, bytes=size, **context)
            self.driver.call("cuStreamSynchronize", stream, **context)
        return memory.raw

    def write(self, address: int, data: bytes, stream: int) -> None:
        """Put bytes into device memory, behind what is queued on ``stream``."""
        with self.current():
            self.driver.call("cuMemcpyHtoDAsync_v2", address, data, len(data), stream, bytes=len(data))

    def clear(self, address: int, size: int, stream: int) -> None:
        """Zeros in device memory, behind what is queued on ``stream``."""
        with self.current():
            self.driver.call("cuMemsetD8Async", address, 0, size, stream, bytes=size)

    @contextmanager
    def events(self, count: int) -> Iterator[list[c_void_p]]:
        """Points in time, to be recorded until the end of the block."""
        events: list[c_void_p] = []
        with self.current():
            try:
                for _ in range(count):
                    event = c_void_p()
                    self.driver.call("cuEventCreate", byref(event), 0)
                    events.append(event)
                yield events
            finally:
                for event in events:
                    self.driver.call("cuEventDestroy_v2", event)

    def record(self, event: c_void_p, stream: int) -> None:
        """The event is when all that is queued on ``stream`` is done."""
        self.driver.call("cuEventRecord", event, stream)

    def microseconds(self, begin: c_void_p, end: c_void_p) -> float:
        """Between two recorded events; waits for the later one."""
        milliseconds = c_float()
        self.driver.call("cuEventSynchronize", end)
        self.driver.call("cuEventElapsedTime", byref(milliseconds), begin, end)
        return milliseconds.value * 1000


class Driver:
    """The initialised driver of this process."""

    def __init__(self, library: Any) -> None:
        self._functions = {name: _bind(library, name, types) for name, types in _PROTOTYPES.items()}
        self.launch_kernel = self._functions["cuLaunchKernelEx"]
        self.call("cuInit", 0)
        version, count = c_int(), c_int()
        self.call("cuDriverGetVersion", byref(version))
        self.call("cuDeviceGetCount", byref(count))
        self.version, self.device_count = version.value, count.value
        self._devices: dict[int, Device] = {}

    def call(self, function: str, /, *arguments: Any, **context: Any) -> None:
        """Call a driver function; ``CudaError`` names it, the error and the context unless it succeeds."""
        self.check(self._functions[function](*arguments), function, **context)

    def check(self, status: int, function: str, /, **context: Any) -> None:
        if status != SUCCESS:
            raise self._error(status, function, context)

    def _error(self, status: int, function: str, context: dict[str, Any]) -> CudaError:
        texts = []
        for ask in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            answered = self._functions[ask](status, byref(text)) == SUCCESS and text.value
            texts.append(text.value.decode() if answered else f"error {status}")
        facts = ", ".join(f"{key} {value}" for key, value in context.items())
        message = f"{function} failed: {texts[0]} ({status}): {texts[1]}" + (f" [{facts}]" if facts else "")
        if status == NOT_INITIALIZED:
            message += "; a process forked after its parent used CUDA cannot use it, start processes with spawn"
        return CudaError(message, **{**context, "call": function, "code": status, "name": texts[0], "text": texts[1]})

    def device(self, ordinal: int) -> Device:
        if ordinal not in self._devices:
            self._devices[ordinal] = Device(self, ordinal)
        return self._devices[ordinal]

    def current_device(self) -> int:
        """Ordinal of the device whose context is current on this thread; 0 where none is."""
        ordinal = c_int()
        status = self._functions["cuCtxGetDevice"](byref(ordinal))
        if status != INVALID_CONTEXT:
            self.check(status, "cuCtxGetDevice")
        return ordinal.value

    def pointer_device(self, pointer: int, /, **context: Any) -> int:
        """Ordinal of the device on which an allocation lies."""
        ordinal = c_int()
        self.call("cuPointerGetAttribute", ctypes.addressof(ordinal), POINTER_DEVICE_ORDINAL, pointer,
                  pointer=hex(pointer), **context)
        return ordinal.value

    def refuse_capture(self, stream: int, kernel: str) -> None:
        """``CaptureError`` while ``stream`` is being captured; needs a current context."""
        status = c_int()
        code = self._functions["cuStreamIsCapturing"](stream, byref(status))
        if code in CAPTURE_ERRORS or (code == SUCCESS and status.value):
            raise CaptureError(f"{kernel} is not loaded yet and the stream is being captured; call "
                               f"loader.preload({kernel!r}, ...) before the capture begins", kernel=kernel,
                               stream=stream)
        self.check(code, "cuStreamIsCapturing", kernel=kernel, stream=stream)

    def load_library(self, image: bytes, /, **context: Any) -> c_void_p:
        library = c_void_p()
        self.call("cuLibraryLoadData", byref(library), image, None, None, 0, None, None, 0, **context)
        return library

    def unload_library(self, library: c_void_p, /, **context: Any) -> None:
        """Free an image and its functions on every device; nothing may use them any more."""
        self.call("cuLibraryUnload", library, **context)

    def kernel(self, library: c_void_p, symbol: str, /, **context: Any) -> c_void_p:
        kernel = c_void_p()
        self.call("cuLibraryGetKernel", byref(kernel), library, symbol.encode(), symbol=symbol, **context)
        return kernel

    def parameters(self, kernel: c_void_p) -> list[tuple[int, int]]:
        """(offset, size) of each parameter of a kernel, as the driver read them from its image."""
        found: list[tuple[int, int]] = []
        offset, size = c_size_t(), c_size_t()
        while True:
            status = self._functions["cuKernelGetParamInfo"](kernel, len(found), byref(offset), byref(size))
            if status == INVALID_VALUE:  # one past the last parameter
                return found
            self.check(status, "cuKernelGetParamInfo", index=len(found))
            found.append((offset.value, size.value))

    def function(self, kernel: c_void_p, device: Device, shared: int, cluster: int, /,
                 **context: Any) -> c_void_p:
        """The kernel in the current context of ``device``, allowed ``shared`` bytes of dynamic shared memory."""
        if shared:
            self.call("cuKernelSetAttribute", FUNCTION_MAX_DYNAMIC_SHARED, shared, kernel, device.handle, **context)
        if cluster > 8:
            self.call("cuKernelSetAttribute", FUNCTION_NON_PORTABLE_CLUSTER, 1, kernel, device.handle, **context)
        function = c_void_p()
        self.call("cuKernelGetFunction", byref(function), kernel, **context)
        return function


def _bind(library: Any, name: str, types: tuple[Any, ...]) -> Callable[..., int]:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise DriverTooOldError(f"the CUDA driver has no {name}; 12.4 is the oldest that does everything used here",
                                function=name) from None
    function.restype = c_int
    if types:
        function.argtypes = types
    return function


class TensorMapEncoder:
    """``cuTensorMapEncodeTiled`` for one tensor map parameter, everything but the address fixed."""

    def __init__(self, driver: Driver, element: str, dims: tuple[int, ...], strides: tuple[int, ...],
                 box: tuple[int, ...], swizzle: int, l2_promotion: int, **context: Any) -> None:
        rank = len(dims)
        self._driver, self._context = driver, context
        self._before = (TENSOR_MAP_ELEMENTS[element], rank)
        self._after = ((c_uint64 * rank)(*dims), (c_uint64 * max(rank - 1, 1))(*strides), (c_uint32 * rank)(*box),
                       (c_uint32 * rank)(*[1] * rank), 0, TENSOR_MAP_SWIZZLES[swizzle],
                       TENSOR_MAP_L2_PROMOTIONS[l2_promotion], 0)
        self._context.update(dims=dims, strides=strides, box=box)

    def encode(self, pointer: int, device: Device) -> bytes:
        """The 128 bytes of the tensor map at an address of ``device``."""
        storage = (c_uint64 * 24)()  # 128 bytes and room to start at a multiple of 64
        address = ctypes.addressof(storage)
        skip = -address % 64
        encode = self._driver._functions["cuTensorMapEncodeTiled"]
        arguments = (address + skip, *self._before, pointer, *self._after)
        status = encode(*arguments)
        if status == INVALID_CONTEXT:  # a thread without a context, as a new one is
            with device.current():
                status = encode(*arguments)
        self._driver.check(status, "cuTensorMapEncodeTiled", address=hex(pointer), **self._context)
        return ctypes.string_at(address + skip, 128)


# One driver a process. The lock is for the cold path, and reentrant: a finaliser that runs in between may launch.
# `forked`: this is a child of a process that had a driver, or had begun to initialise one.

_lock = threading.RLock()
_driver: Driver | None = None
_initialising = False
forked = False


def get() -> Driver:
    """The driver of this process, initialised at the first call."""
    if forked:
        raise fork_error()
    return _driver if _driver is not None else _open()


def _open() -> Driver:
    global _driver, _initialising
    with _lock:
        if _driver is None:
            library = open_library()
            _initialising = True
            try:
                opened = Driver(library)
            finally:
                _initialising = False
            _driver = _driver or opened  # the first one, where a finaliser asked for it meanwhile
    return _driver


def _after_fork() -> None:
    global forked, _lock
    _lock = threading.RLock()  # another thread, which is not in this process, may have held it
    if _driver is not None:
        _driver.launch_kernel = _refuse_launch
    if _driver is not None or _initialising:
        forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _refuse_launch(*_: Any) -> int:
    raise fork_error()


def fork_error() -> ForkError:
    return ForkError(f"process {os.getpid()} was forked after CUDA was initialised, and CUDA does not survive a fork; "
                     "use multiprocessing's spawn or forkserver start method", pid=os.getpid())
