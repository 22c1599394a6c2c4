"""Artifacts on devices: verified bytes, one CUlibrary a process, one function a kernel and device."""

from __future__ import annotations

import threading
from ctypes import c_void_p

from .driver import Device, Driver
from .errors import ParameterLayoutError
from .registry import Candidate

# Reentrant: a finaliser that runs in between may launch something itself.
_lock = threading.RLock()
_libraries: dict[tuple[Driver, str], c_void_p] = {}
_functions: dict[tuple[Driver, str, str, int], c_void_p] = {}


def _key(candidate: Candidate, device: Device) -> tuple[Driver, str, str, int]:
    artifact = candidate.artifact
    return device.driver, artifact.binary.sha256, artifact.symbol, device.ordinal


def function(candidate: Candidate, device: Device, stream: int) -> c_void_p:
    """The CUfunction of an artifact on a device, loaded at its first use there.

    The image is read, checked against its sha256 and against the parameters of the manifest before it is used.
    ``CaptureError`` if that is needed while ``stream`` is being captured.
    """
    found = _functions.get(_key(candidate, device))
    if found is not None:
        return found
    with _lock, device.current():
        return _functions.get(_key(candidate, device)) or _load(candidate, device, stream)


def _load(candidate: Candidate, device: Device, stream: int) -> c_void_p:
    artifact, driver = candidate.artifact, device.driver
    context = {"kernel": f"{artifact.family}/{artifact.variant}", "arch": artifact.arch, "device": device.ordinal,
               "file": artifact.binary.file}
    driver.refuse_capture(stream, artifact.family)
    library = _libraries.get((driver, artifact.binary.sha256))
    if library is None:
        library = driver.load_library(candidate.pack.read(artifact.binary), **context)
        _libraries[driver, artifact.binary.sha256] = library
    kernel = driver.kernel(library, artifact.symbol, **context)
    _check_parameters(candidate, driver.parameters(kernel))
    cluster = artifact.launch.cluster
    handle = driver.function(kernel, device, artifact.launch.shared, cluster[0] * cluster[1] * cluster[2], **context)
    _functions[_key(candidate, device)] = handle
    return handle


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
