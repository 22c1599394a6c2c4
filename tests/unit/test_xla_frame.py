"""Handlers of XLA's FFI without XLA: frames made by hand, what is asked of the API, and the header that says so."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loader
from integrations import xla_frame
from integrations.xla_frame import CallFrame, FrameBuffer, Handler

ROOT = Path(__file__).resolve().parents[2]
STREAM, ORDINAL, FUNCTIONS = 0xABC0, 1, 18
_Function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Api(ctypes.Structure):
    _fields_ = [("head", xla_frame._Api), ("functions", _Function * FUNCTIONS)]


class Xla:
    """The API, which remembers errors, and frames that use it."""

    def __init__(self) -> None:
        self.errors: list[tuple[int, str]] = []
        functions = [_Function(lambda _: 0)] * FUNCTIONS
        functions[xla_frame._ERROR_CREATE] = _Function(self._error)
        functions[xla_frame._STREAM_GET] = _Function(self._stream)
        functions[xla_frame._DEVICE_ORDINAL_GET] = _Function(self._ordinal)
        self.api = Api()
        self.api.head.struct_size = ctypes.sizeof(Api)
        self.api.head.version.minor = 7
        self.api.functions = (_Function * FUNCTIONS)(*functions)
        self._alive: list[Any] = [functions]

    def _error(self, address: int) -> int:
        arguments = xla_frame._ErrorArguments.from_address(address)
        self.errors.append((arguments.code, arguments.message.decode()))
        return len(self.errors)

    def _stream(self, address: int) -> int:
        xla_frame._StreamArguments.from_address(address).stream = STREAM
        return 0

    def _ordinal(self, address: int) -> int:
        xla_frame._OrdinalArguments.from_address(address).ordinal = ORDINAL
        return 0

    def _kept(self, value: Any) -> Any:
        self._alive.append(value)
        return ctypes.pointer(value)

    def _buffers(self, buffers: list[FrameBuffer]) -> xla_frame._Buffers:
        items = []
        for pointer, shape in buffers:
            dims = (ctypes.c_int64 * len(shape))(*shape)
            items.append(self._kept(xla_frame._Buffer(ctypes.sizeof(xla_frame._Buffer), None, 6, pointer, len(shape),
                                                      dims)))  # fmt: skip
        array = (ctypes.POINTER(xla_frame._Buffer) * len(items))(*items)
        self._alive.append(array)
        return xla_frame._Buffers(ctypes.sizeof(xla_frame._Buffers), None, len(items), None, array)

    def frame(self, operands: list[FrameBuffer] = (), results: list[FrameBuffer] = (), stage: int = xla_frame.EXECUTE,
              **texts: str) -> xla_frame._CallFrame:  # fmt: skip
        count = len(texts)
        array = ctypes.POINTER(xla_frame._Span) * count
        spans = [array(*map(self._text, words)) for words in (texts, texts.values())]
        types = (ctypes.c_int * count)(*[xla_frame._STRING] * count)
        self._alive += [*spans, types]
        attributes = xla_frame._Attributes(ctypes.sizeof(xla_frame._Attributes), None, count, types, *spans)
        api = ctypes.cast(ctypes.pointer(self.api), ctypes.POINTER(xla_frame._Api))
        return xla_frame._CallFrame(ctypes.sizeof(xla_frame._CallFrame), None, api, None, stage,
                                    self._buffers(operands), self._buffers(results), attributes)  # fmt: skip

    def _text(self, text: str) -> Any:
        memory = ctypes.create_string_buffer(text.encode())
        self._alive.append(memory)
        return self._kept(xla_frame._Span(ctypes.addressof(memory), len(text.encode())))

    def ask_for_metadata(self, handler: Handler) -> xla_frame._Metadata:
        metadata = xla_frame._Metadata(ctypes.sizeof(xla_frame._Metadata))
        base = xla_frame._Extension(ctypes.sizeof(xla_frame._Extension), xla_frame._METADATA)
        extension = self._kept(xla_frame._MetadataExtension(base, ctypes.pointer(metadata)))
        frame = self.frame()
        frame.extension = ctypes.cast(extension, ctypes.POINTER(xla_frame._Extension))
        handler.function(ctypes.pointer(frame))
        return metadata


@pytest.fixture
def xla() -> Xla:
    return Xla()


def test_a_call_is_read_and_the_api_asked(xla: Xla) -> None:
    """Addresses, shapes, texts, stage, stream and device are those of the frame."""
    read: list[Any] = []

    def run(frame: CallFrame) -> None:
        read.extend([frame.operands(), frame.results(), frame.text("b"), frame.stage, frame.stream(), frame.ordinal()])

    operands, results = [FrameBuffer(64, (2, 3)), FrameBuffer(0, (0,))], [FrameBuffer(128, ())]
    frame = xla.frame(operands, results, a="x", b="two words")
    assert Handler(run, ValueError).function(ctypes.pointer(frame)) is None
    assert read == [operands, results, b"two words", xla_frame.EXECUTE, STREAM, ORDINAL] and not xla.errors


@pytest.mark.parametrize("error, code", [(ValueError("ä"), 3), (RuntimeError("ä"), 13), (KeyboardInterrupt("ä"), 13)])
def test_what_is_raised_is_an_error_of_xla(xla: Xla, error: BaseException, code: int) -> None:
    """With class and message; nothing that a handler raises counts as success."""

    def run(frame: CallFrame) -> None:
        raise error

    assert Handler(run, ValueError).function(ctypes.pointer(xla.frame())) == 1
    assert xla.errors == [(code, f"{type(error).__name__}: ä")]


def test_smaller_structs_are_refused(xla: Xla) -> None:
    """A frame, a buffer and an API of an older layout: the size that came, and the one that is needed."""
    handler = Handler(lambda frame: (frame.operands(), frame.ordinal()), ValueError)
    small_frame, small_buffer, frame = xla.frame(), xla.frame([FrameBuffer(64, (1,))]), xla.frame()
    small_frame.struct_size -= 1
    small_buffer.operands.items[0][0].struct_size = 40
    assert handler.function(ctypes.pointer(small_frame)) and handler.function(ctypes.pointer(small_buffer))
    xla.api.head.struct_size -= 8
    assert handler.function(ctypes.pointer(frame))
    size = ctypes.sizeof
    expected = [(size(xla_frame._CallFrame), "a call frame", size(xla_frame._CallFrame) - 1),
                (48, "a buffer of operands", 40), (size(Api), "API", size(Api) - 8)]  # fmt: skip
    for (_, text), (needed, what, got) in zip(xla.errors, expected, strict=True):
        assert text == f"FrameError: XLA's FFI: expected at least {needed} bytes of {what}, got {got}"


def test_the_version_is_xlas_own_or_the_headers(xla: Xla) -> None:
    """Any minor version of the major one is answered; another major one gets the header's, which XLA refuses."""
    handler = Handler(lambda frame: None, ValueError)
    for version, answer in (((0, 7), (0, 7)), ((0, 1), (0, 1)), ((2, 7), (xla_frame.MAJOR, xla_frame.MINOR))):
        xla.api.head.version.major, xla.api.head.version.minor = version
        metadata = xla.ask_for_metadata(handler)
        assert (metadata.api_version.major, metadata.api_version.minor) == answer
        assert metadata.traits == xla_frame.COMMAND_BUFFER_COMPATIBLE


def test_xla_refuses_a_handler_of_another_major_version() -> None:
    """Before any call, with both versions in the message."""
    pytest.importorskip("jax")
    program = (
        "import jax; from integrations import xla_frame; xla_frame.MAJOR = 5\n"
        "capsule = xla_frame.Handler(lambda frame: None, ValueError).capsule\n"
        "jax.devices(); jax.ffi.register_ffi_target('of_another', {'execute': capsule}, platform='cpu')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "handler registration for of_another" in done.stderr and "API version (5.3) is incompatible" in done.stderr


def test_the_header_has_these_functions_at_these_places() -> None:
    """The header that jaxlib ships says the major version, the order of the API's functions, and codes."""
    pytest.importorskip("jaxlib")
    header = Path(find_spec("jaxlib").origin).parent / "include" / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text()
    functions = re.findall(r"_XLA_FFI_API_STRUCT_FIELD\(XLA_FFI_(\w+)\);", text)
    places = {"Error_Create": xla_frame._ERROR_CREATE, "Stream_Get": xla_frame._STREAM_GET,
              "DeviceOrdinal_Get": xla_frame._DEVICE_ORDINAL_GET}  # fmt: skip
    assert {name: functions.index(name) for name in places} == places
    for name, value in (
        ("define XLA_FFI_API_MAJOR ", xla_frame.MAJOR), ("Extension_Metadata = ", xla_frame._METADATA),
        ("AttrType_STRING = ", xla_frame._STRING), ("ExecutionStage_INSTANTIATE = ", xla_frame.INSTANTIATE),
        ("ExecutionStage_EXECUTE = ", xla_frame.EXECUTE), ("Code_INVALID_ARGUMENT = ", xla_frame.INVALID_ARGUMENT),
        ("Code_INTERNAL = ", xla_frame.INTERNAL), ("COMMAND_BUFFER_COMPATIBLE = 1u << ", 0),
    ):  # fmt: skip
        assert re.search(rf"{name}(\d+)", text)[1] == str(value), name


def test_on_cuda_a_call_goes_to_its_stream_and_device(xla: Xla, monkeypatch: pytest.MonkeyPatch) -> None:
    """By DLPack; a result takes the place of the operand that it starts as, and a workspace starts at its alignment."""
    pytest.importorskip("jax")
    from integrations import jax as kernels

    launches: list[Any] = []

    def launch(name: str, /, stream: Any, word: str, **buffers: Any) -> None:
        read = {key: loader.dlpack.read(buffer, key)[:5] for key, buffer in buffers.items()}
        launches.append((name, read, stream, word))

    monkeypatch.setattr(loader, "launch", launch)
    text = json.dumps({"kernel": "k", "operands": ["a", "out"], "results": ["out", "workspace"],
                       "dtypes": {"a": "e2m1x2", "out": "bf16", "workspace": "u8"},
                       "scalars": {"word": "x"}})  # fmt: skip
    operands = [FrameBuffer(64, (2, 3)), FrameBuffer(4096, (5,))]
    results = [FrameBuffer(8192, (5,)), FrameBuffer(256 * 40 + 64, (1256,))]
    frame = xla.frame(operands, results, launch=text)
    assert Handler(kernels._on_cuda, ValueError).function(ctypes.pointer(frame)) is None, xla.errors
    cuda, element_of = loader.dlpack.CUDA, loader.dlpack.ELEMENT_OF
    read = {"a": (64, cuda, 1, element_of["e2m1x2"], (2, 3)), "out": (8192, cuda, 1, element_of["bf16"], (5,)),
            "workspace": (256 * 41, cuda, 1, element_of["u8"], (1000,))}  # fmt: skip
    assert launches == [("k", read, STREAM, "x")]


def test_on_cuda_kernels_are_loaded_with_the_program(xla: Xla, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the stage before any launch, on every device of the process, so that none is loaded during a capture."""
    jax = pytest.importorskip("jax")
    from types import SimpleNamespace

    from integrations import jax as kernels

    loaded: list[Any] = []
    devices = [SimpleNamespace(local_hardware_id=0), SimpleNamespace(local_hardware_id=1)]
    monkeypatch.setattr(jax, "local_devices", lambda backend: devices)
    monkeypatch.setattr(loader, "preload", lambda *names, device: loaded.append((names, device)))
    text = json.dumps({"kernel": "k", "operands": [], "results": [], "dtypes": {}, "scalars": {}})
    frame = xla.frame(stage=xla_frame.INSTANTIATE, launch=text)
    assert Handler(kernels._on_cuda, ValueError).function(ctypes.pointer(frame)) is None, xla.errors
    assert loaded == [(("k",), [0, 1])]


def test_xla_calls_a_handler_at_its_stages() -> None:
    """XLA's own frames: once as a program is made, with texts alone, then at every call with buffers and a device."""
    jax = pytest.importorskip("jax")
    calls: list[Any] = []

    def run(frame: CallFrame) -> None:
        buffers = frame.operands() + frame.results()
        calls.append((frame.stage, frame.text("word"), [buffer.shape for buffer in buffers]))
        if frame.stage == xla_frame.EXECUTE:
            assert frame.ordinal() == 0
            ctypes.memmove(buffers[1].pointer, buffers[0].pointer, 24)

    handler = Handler(run, ValueError)
    stages = dict.fromkeys(("instantiate", "execute"), handler.capsule)
    jax.ffi.register_ffi_target("block_scaled_copy", stages, platform="cpu")
    like = jax.ShapeDtypeStruct((2, 3), "int32")
    copy = jax.jit(lambda x: jax.ffi.ffi_call("block_scaled_copy", like)(x, word="any"))
    for first in (0, 7):
        array = np.arange(first, first + 6, dtype=np.int32).reshape(2, 3)
        assert np.array_equal(copy(array), array)
    executed = (xla_frame.EXECUTE, b"any", [(2, 3), (2, 3)])
    assert calls == [(xla_frame.INSTANTIATE, b"any", []), executed, executed]
