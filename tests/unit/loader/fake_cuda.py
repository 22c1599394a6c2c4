"""A CUDA driver in Python, reached through the same C calling convention: it keeps the rules that the loader relies on
(contexts, capture, alignment) and records every launch with the bytes of its parameters.

Its images are ``MAGIC``, a length, and JSON ``{"symbol": .., "parameters": [[offset, size], ..]}``.
"""

import ctypes
import json
import struct
import threading
from ctypes import CFUNCTYPE, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint32, c_uint64, c_void_p
from typing import NamedTuple

MAGIC = b"\x7fFAKE"
SUCCESS, INVALID_VALUE, OUT_OF_MEMORY = 0, 1, 2
INVALID_CONTEXT, NO_BINARY, INVALID_HANDLE, NOT_FOUND = 201, 209, 400, 500
CAPTURE_UNSUPPORTED, CAPTURE_IMPLICIT = 900, 906
NAMES = {1: (b"CUDA_ERROR_INVALID_VALUE", b"invalid argument"),
         2: (b"CUDA_ERROR_OUT_OF_MEMORY", b"out of memory"),
         201: (b"CUDA_ERROR_INVALID_CONTEXT", b"invalid device context"),
         209: (b"CUDA_ERROR_NO_BINARY_FOR_GPU", b"no kernel image is available for execution on the device"),
         400: (b"CUDA_ERROR_INVALID_HANDLE", b"invalid resource handle"),
         719: (b"CUDA_ERROR_LAUNCH_FAILED", b"unspecified launch failure")}


def image(symbol, parameters):
    """A binary that the fake driver can load."""
    text = json.dumps({"symbol": symbol, "parameters": parameters}).encode()
    return MAGIC + struct.pack("<I", len(text)) + text


class FakeDevice(NamedTuple):
    name: str = "Fake RTX"
    capability: tuple = (12, 0)
    sm_count: int = 170
    shared: int = 101_376


class Launch(NamedTuple):
    symbol: str
    device: int
    grid: tuple
    block: tuple
    shared: int
    stream: int
    attributes: dict
    parameters: bytes


class _Attribute(ctypes.Structure):
    _fields_ = [("id", c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_char * 64)]


class _Config(ctypes.Structure):
    _fields_ = [("gridDimX", c_uint), ("gridDimY", c_uint), ("gridDimZ", c_uint), ("blockDimX", c_uint),
                ("blockDimY", c_uint), ("blockDimZ", c_uint), ("sharedMemBytes", c_uint), ("hStream", c_void_p),
                ("attrs", ctypes.POINTER(_Attribute)), ("numAttrs", c_uint)]


def _put(kind, address, value):
    kind.from_address(address).value = value
    return SUCCESS


# name -> C types of the arguments, from cuda.h; addresses as integers
_SIGNATURES = {
    "cuInit": (c_uint,), "cuDriverGetVersion": (c_void_p,), "cuGetErrorName": (c_int, c_void_p),
    "cuGetErrorString": (c_int, c_void_p), "cuDeviceGetCount": (c_void_p,), "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_void_p, c_int, c_int), "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int), "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (c_void_p,), "cuCtxGetDevice": (c_void_p,), "cuCtxSynchronize": (),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64), "cuStreamIsCapturing": (c_uint64, c_void_p),
    "cuLibraryLoadData": (c_void_p, c_void_p, c_void_p, c_void_p, c_uint, c_void_p, c_void_p, c_uint),
    "cuLibraryUnload": (c_uint64,), "cuLibraryGetKernel": (c_void_p, c_uint64, c_void_p),
    "cuKernelGetFunction": (c_void_p, c_uint64),
    "cuKernelSetAttribute": (c_int, c_int, c_uint64, c_int),
    "cuKernelGetParamInfo": (c_uint64, c_size_t, c_void_p, c_void_p),
    "cuTensorMapEncodeTiled": (c_uint64, c_int, c_uint32, c_uint64, c_void_p, c_void_p, c_void_p, c_void_p, c_int,
                               c_int, c_int, c_int),
    "cuLaunchKernelEx": (c_void_p, c_void_p, c_void_p, c_void_p),
    "cuMemAllocAsync": (c_void_p, c_size_t, c_uint64), "cuMemFreeAsync": (c_uint64, c_uint64),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_uint64),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_uint64), "cuEventCreate": (c_void_p, c_uint),
    "cuEventDestroy_v2": (c_uint64,), "cuEventRecord": (c_uint64, c_uint64), "cuEventSynchronize": (c_uint64,),
    "cuEventElapsedTime": (c_void_p, c_uint64, c_uint64),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_uint64), "cuStreamSynchronize": (c_uint64,),
}


class FakeCuda:
    """State and functions; ``calls`` lists every function called, ``launches`` every launch that was accepted.

    ``libraries`` are the images that are loaded. ``pool`` lists (device, stream, address, bytes) of every allocation
    from a memory pool, ``freed`` what came back; none has more than ``largest`` bytes. ``clock`` says how many
    microseconds a launch takes, ``events`` when each one was recorded.
    """

    def __init__(self):
        self.devices = [FakeDevice(), FakeDevice(), FakeDevice("Fake H200", (9, 0), 132, 232_448)]
        self.calls, self.launches, self.attributes = [], [], []
        self.pool, self.freed, self.largest = [], [], 1 << 40
        self.libraries = set()
        self.memory = {}  # address -> bytes that were copied there, or that a copy to the host finds
        self.clock, self.now, self.events = lambda launch: 1.0, 0.0, {}
        self.capturing = set()
        self.streams = {}  # handle -> device
        self.pointers = {}  # address -> device; unnamed ones of `device_buffers.allocate` lie on device 0
        self.fail = {}  # function -> status to answer
        self.version = 13000
        self._handles, self._local, self._next = {}, threading.local(), 0x1000
        for name, types in _SIGNATURES.items():
            setattr(self, name, CFUNCTYPE(c_int, *types)(self._entry(name)))

    def _entry(self, name):
        method = getattr(self, f"_{name}")

        def entry(*arguments):
            self.calls.append(name)
            status = self.fail.get(name)
            return method(*arguments) if status is None else status

        return entry

    def _new(self, value):
        self._next += 0x10
        self._handles[self._next] = value
        return self._next

    @property
    def stack(self):
        """Contexts of this thread, as device ordinals; the last one is current."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        return self._local.stack

    def _cuInit(self, flags):
        return SUCCESS

    def _cuDriverGetVersion(self, out):
        return _put(c_int, out, self.version)

    def _text(self, status, out, index):
        if status not in NAMES:
            return INVALID_VALUE
        self._texts = getattr(self, "_texts", {})
        text = self._texts.setdefault((status, index), ctypes.create_string_buffer(NAMES[status][index]))
        return _put(c_void_p, out, ctypes.addressof(text))

    def _cuGetErrorName(self, status, out):
        return self._text(status, out, 0)

    def _cuGetErrorString(self, status, out):
        return self._text(status, out, 1)

    def _cuDeviceGetCount(self, out):
        return _put(c_int, out, len(self.devices))

    def _cuDeviceGet(self, out, ordinal):
        return _put(c_int, out, ordinal) if 0 <= ordinal < len(self.devices) else 101

    def _cuDeviceGetName(self, out, size, device):
        ctypes.memmove(out, self.devices[device].name.encode() + b"\0", len(self.devices[device].name) + 1)
        return SUCCESS

    def _cuDeviceGetAttribute(self, out, attribute, device):
        d = self.devices[device]
        return _put(c_int, out, {16: d.sm_count, 75: d.capability[0], 76: d.capability[1], 97: d.shared}[attribute])

    def _cuDevicePrimaryCtxRetain(self, out, device):
        return _put(c_void_p, out, 0xC000 + device)

    def _cuCtxPushCurrent_v2(self, context):
        self.stack.append(context - 0xC000)
        return SUCCESS

    def _cuCtxPopCurrent_v2(self, out):
        return _put(c_void_p, out, 0xC000 + self.stack.pop())

    def _cuCtxGetDevice(self, out):
        return _put(c_int, out, self.stack[-1]) if self.stack else INVALID_CONTEXT

    def _cuPointerGetAttribute(self, out, attribute, pointer):
        device = self.pointers.get(pointer, 0 if pointer >= 0x7F00_0000_0000 else None)
        return _put(c_int, out, device) if attribute == 9 and device is not None else INVALID_VALUE

    def _cuStreamIsCapturing(self, stream, out):
        if not self.stack:
            return INVALID_CONTEXT
        if stream == 0 and self.capturing:
            return CAPTURE_IMPLICIT
        return _put(c_int, out, int(stream in self.capturing))

    def _cuLibraryLoadData(self, out, code, *options):
        if ctypes.string_at(code, len(MAGIC)) != MAGIC:
            return NO_BINARY
        size, = struct.unpack("<I", ctypes.string_at(code + len(MAGIC), 4))
        library = self._new(json.loads(ctypes.string_at(code + len(MAGIC) + 4, size)))
        self.libraries.add(library)
        return _put(c_void_p, out, library)

    def _cuLibraryUnload(self, library):
        """Frees its kernels and functions with it: whoever launches one is told INVALID_HANDLE."""
        if library not in self.libraries:
            return INVALID_HANDLE
        self.libraries.remove(library)
        image = self._handles[library]
        for handle, value in list(self._handles.items()):
            if image is (value[0] if isinstance(value, tuple) else value):
                del self._handles[handle]
        return SUCCESS

    def _cuCtxSynchronize(self):
        if not self.stack:
            return INVALID_CONTEXT
        return CAPTURE_UNSUPPORTED if self.capturing else SUCCESS

    def _cuLibraryGetKernel(self, out, library, name):
        found = self._handles[library]
        if ctypes.string_at(name).decode() != found["symbol"]:
            return NOT_FOUND
        return _put(c_void_p, out, self._new(found))

    def _cuKernelGetFunction(self, out, kernel):
        if not self.stack:
            return INVALID_CONTEXT
        return _put(c_void_p, out, self._new((self._handles[kernel], self.stack[-1])))

    def _cuKernelSetAttribute(self, attribute, value, kernel, device):
        self.attributes.append((attribute, value, device))
        return SUCCESS

    def _cuKernelGetParamInfo(self, kernel, index, offset, size):
        parameters = self._handles[kernel]["parameters"]
        if index >= len(parameters):
            return INVALID_VALUE
        _put(c_size_t, offset, parameters[index][0])
        return _put(c_size_t, size, parameters[index][1])

    def _cuTensorMapEncodeTiled(self, out, element, rank, address, dims, strides, box, steps, interleave, swizzle,
                                l2, fill):
        if out % 64 or address % 16:
            return INVALID_VALUE
        words = [struct.unpack(f"<{n}{code}", ctypes.string_at(at, n * size)) for at, n, code, size in (
            (dims, rank, "Q", 8), (strides, rank - 1, "Q", 8), (box, rank, "I", 4), (steps, rank, "I", 4))]
        ctypes.memmove(out, tensor_map(address, element, *words[:3], swizzle, l2), 128)
        return SUCCESS if set(words[3]) == {1} and (interleave, fill) == (0, 0) else INVALID_VALUE

    def _cuMemAllocAsync(self, out, size, stream):
        if not self.stack:
            return INVALID_CONTEXT
        if size > self.largest:
            return OUT_OF_MEMORY
        address = 0x7F80_0000_0000 + 0x1000_0000 * len(self.pool)
        self.pool.append((self.stack[-1], stream, address, size))
        return _put(c_uint64, out, address)

    def _cuMemFreeAsync(self, address, stream):
        self.freed.append((address, stream))
        return SUCCESS

    def _cuMemcpyDtoHAsync_v2(self, host, address, size, stream):
        if not self.stack or address not in self.memory:
            return INVALID_CONTEXT if not self.stack else INVALID_VALUE
        ctypes.memmove(host, self.memory[address], size)
        return SUCCESS

    def _cuMemcpyHtoDAsync_v2(self, address, host, size, stream):
        if not self.stack:
            return INVALID_CONTEXT
        self.memory[address] = ctypes.string_at(host, size)
        return SUCCESS

    def _cuMemsetD8Async(self, address, value, size, stream):
        self.now += 100.0
        return SUCCESS if self.stack else INVALID_CONTEXT

    def _cuEventCreate(self, out, flags):
        event = self._new("event")
        self.events[event] = None
        return _put(c_void_p, out, event) if self.stack else INVALID_CONTEXT

    def _cuEventDestroy_v2(self, event):
        return SUCCESS if self.events.pop(event, self) is not self else INVALID_HANDLE

    def _cuEventRecord(self, event, stream):
        self.events[event] = self.now
        return SUCCESS

    def _cuEventSynchronize(self, event):
        return SUCCESS if self.events.get(event) is not None else INVALID_HANDLE

    def _cuEventElapsedTime(self, out, begin, end):
        return _put(c_float, out, (self.events[end] - self.events[begin]) / 1000)

    def _cuStreamSynchronize(self, stream):
        return SUCCESS

    def _cuLaunchKernelEx(self, config, function, parameters, extra):
        if function not in self._handles:
            return INVALID_HANDLE
        kernel, device = self._handles[function]
        c = _Config.from_address(config)
        stream = c.hStream or 0
        if stream <= 2:
            if not self.stack:
                return INVALID_CONTEXT
            if self.stack[-1] != device:
                return INVALID_HANDLE
        elif self.streams.get(stream) != device:
            return INVALID_HANDLE
        packed = bytearray()
        addresses = struct.unpack(f"<{len(kernel['parameters'])}Q",
                                  ctypes.string_at(parameters, 8 * len(kernel["parameters"])))
        for address, (offset, size) in zip(addresses, kernel["parameters"], strict=True):
            packed.extend(bytes(offset - len(packed)) + ctypes.string_at(address, size))
        attributes = {c.attrs[i].id: ctypes.string_at(ctypes.addressof(c.attrs[i]) + 8, 16)
                      for i in range(c.numAttrs)}
        self.launches.append(Launch(kernel["symbol"], device, (c.gridDimX, c.gridDimY, c.gridDimZ),
                                    (c.blockDimX, c.blockDimY, c.blockDimZ), c.sharedMemBytes, stream, attributes,
                                    bytes(packed)))
        self.now += self.clock(self.launches[-1])
        return SUCCESS


def tensor_map(address, element, dims, strides, box, swizzle, l2):
    """What the fake driver encodes: the arguments themselves, in 128 bytes."""
    words = [element, len(dims), swizzle, l2, address, *dims, *strides]
    return struct.pack(f"<{len(words)}Q{len(box)}I", *words, *box).ljust(128, b"\0")
