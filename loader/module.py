"""Artifacts on devices: verified bytes, one CUlibrary a process, one function a kernel and device.

Whoever launches a function keeps its ``Library``, so ``unload`` frees what nobody can launch any more and leaves the
rest. A graph of CUDA keeps nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection
from ctypes import c_void_p
from typing import NamedTuple

from . import driver
from .driver import Device, Driver
from .errors import ParameterLayoutError
from .registry import Candidate

# Reentrant: a finaliser that runs in between may launch something itself.
_lock = threading.RLock()


class Library:
    """A loaded image: the artifact it was loaded for, and its functions by symbol and device."""

    def __init__(self, handle: c_void_p, candidate: Candidate) -> None:
        self.handle, self.candidate = handle, candidate
        self.functions: dict[tuple[str, int], c_void_p] = {}


class Function(NamedTuple):
    """A CUfunction, which is valid while its library is referred to."""

    handle: c_void_p
    library: Library


_libraries: dict[tuple[Driver, str], Library] = {}


def _find(candidate: Candidate, device: Device) -> Function | None:
    library = _libraries.get((device.driver, candidate.artifact.binary.sha256))
    handle = library and library.functions.get((candidate.artifact.symbol, device.ordinal))
    return Function(handle, library) if handle is not None else None


def function(candidate: Candidate, device: Device, stream: int) -> Function:
    """The function of an artifact on a device, loaded at its first use there.

    The image is read, checked against its sha256 and against the parameters of the manifest before it is used.
    ``CaptureError`` if that is needed while ``stream`` is being captured.
    """
    found = _find(candidate, device)
    if found is not None:
        return found
    with _lock, device.current():
        return _find(candidate, device) or _load(candidate, device, stream)


def _load(candidate: Candidate, device: Device, stream: int) -> Function:
    artifact, driver = candidate.artifact, device.driver
    context = {"kernel": f"{artifact.family}/{artifact.variant}", "arch": artifact.arch, "device": device.ordinal,
               "file": artifact.binary.file}
    driver.refuse_capture(stream, artifact.family)
    key = driver, artifact.binary.sha256
    library = _libraries.get(key)
    if library is None:
        handle = driver.load_library(candidate.pack.read(artifact.binary), **context)
        library = _libraries[key] = Library(handle, candidate)
    kernel = driver.kernel(library.handle, artifact.symbol, **context)
    _check_parameters(candidate, driver.parameters(kernel))
    cluster = artifact.launch.cluster
    handle = driver.function(kernel, device, artifact.launch.shared, cluster[0] * cluster[1] * cluster[2], **context)
    library.functions[artifact.symbol, device.ordinal] = handle
    return Function(handle, library)


def _check_parameters(candidate: Candidate, found: list[tuple[int, int]]) -> None:
    artifact = candidate.artifact
    expected = [(parameter.offset, parameter.size) for parameter in artifact.parameters]
    # The driver counts from the constant bank's start of parameters, which a 64-byte aligned first one does not touch.
    begin = found[0][0] if found else 0
    found = [(offset - begin, size) for offset, size in found]
    if found != expected:
        raise ParameterLayoutError(
            f"{artifact.binary.file}: {artifact.symbol} takes parameters at (offset, size) {found}, the manifest says "
            f"{expected}", kernel=artifact.symbol, expected=expected, got=found)


class Unloaded(NamedTuple):
    """Outcome of ``unload`` for one module, a file of a pack in the driver.

    kernel: ``family/variant`` for which it was loaded first. size: of the file, in bytes. held: it is still loaded,
    for a plan or a launch that has not returned yet can use it.
    """

    kernel: str
    pack: str
    file: str
    size: int
    held: bool


def unload(digests: Collection[str] | None) -> list[Unloaded]:
    """Free the modules of these sha256, None for all, and wait for the devices on which they have functions.

    Those to which somebody refers stay. ``CaptureError`` while a stream is being captured, and any other error of the
    wait, before anything was freed.
    """
    if not _libraries:
        return []
    cuda = driver.get()  # a forked child is refused before it waits for a lock that nobody there will release
    with _lock:
        keys = [key for key in _libraries if key[0] is cuda and (digests is None or key[1] in digests)]
        devices = sorted({ordinal for key in keys for _, ordinal in _libraries[key].functions})
        _wait(cuda, devices)  # a failure changes nothing
        taken = [_take(key) for key in keys]
        _wait(cuda, devices)  # for what was launched meanwhile
        for handle, outcome in taken:
            if not outcome.held:
                cuda.unload_library(handle, kernel=outcome.kernel, file=outcome.file)
    return [outcome for _, outcome in taken]


def _wait(cuda: Driver, devices: Collection[int]) -> None:
    for ordinal in devices:
        cuda.device(ordinal).synchronize()


def _take(key: tuple[Driver, str]) -> tuple[c_void_p, Unloaded]:
    """Take a library out of the table if nobody else refers to it: nobody can any more, then."""
    library = _libraries.pop(key)
    (pack, artifact), handle, others = library.candidate, library.handle, weakref.ref(library)
    del library
    held = others()
    if held is not None:
        _libraries[key] = held
    return handle, Unloaded(f"{artifact.family}/{artifact.variant}", pack.directory, artifact.binary.file,
                            artifact.binary.size, held is not None)
