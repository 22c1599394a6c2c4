"""Host buffers on the emulated device: the same calls, checks and errors, executed from an artifact's PTX.

Slow by nature, so a problem's size is capped. Needs numpy, through ``emulator``, and no CUDA driver.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from . import arch, listing, signature, values
from .errors import EmulatedFaultError, EmulationError, UnknownArchError
from .geometry import Geometry
from .manifest import Family
from .observe import announced
from .registry import Candidate, Registry
from .select import Decision, DeviceFacts, Selection
from .signature import Problem

ARCH_VARIABLE = "LOADER_EMULATED_ARCH"
LIMIT_VARIABLE = "LOADER_EMULATED_MAX_BYTES"
DEFAULT_LIMIT = 16 << 20
# Few, so that each CTA of a persistent kernel takes several tiles even on the small problems that are run here.
SM_COUNT = 4
KEPT_MODULES = 64

_modules: dict[str, Any] = {}
_warned = False


def facts(name: str) -> DeviceFacts:
    """The emulated device of an architecture."""
    target = arch.ARCHS[name]
    return DeviceFacts(f"emulated sm_{name}", (target.major, target.minor), SM_COUNT,
                       arch.SHARED_MEMORY_LIMIT[target.major])


def default_arch(name: str, kernels: Iterable[str], registry: Registry) -> str:
    """``LOADER_EMULATED_ARCH``, else the newest architecture for which the packs hold the kernels of a call."""
    named = os.environ.get(ARCH_VARIABLE)
    if named:
        try:
            return str(arch.parse(named))
        except ValueError as error:
            raise UnknownArchError(f"{ARCH_VARIABLE}: {error}", got=named, known=list(arch.ARCHS)) from None
    held = set.intersection(*({candidate.artifact.arch for candidate in registry.candidates(kernel)}
                              for kernel in kernels))
    if not held:
        raise EmulationError(f"{name}: the packs hold no artifact of it", kernel=name)
    return max(held, key=lambda name: arch.rank(arch.ARCHS[name]))


class EmulatedSlot:
    """Addresses of one launch; ``launch`` runs it to its end, in order, whatever the stream."""

    def __init__(self, prepared: EmulatedPrepared, pointers: Sequence[int]) -> None:
        self._prepared, self._pointers = prepared, tuple(pointers)

    def launch(self, stream: int) -> None:
        self._prepared.check_values(self._pointers, stream)
        self._prepared.run(self._pointers)


class EmulatedPrepared:
    """One problem on the emulated device, addresses aside; stands where ``plan.Prepared`` stands for CUDA."""

    device = None
    part_of: str | None = None
    described: Any = None

    def __init__(self, family: Family, problem: Problem, selection: Selection, geometry: Geometry,
                 arch_name: str) -> None:
        self.family, self.problem, self.selection, self.geometry = family, problem, selection, geometry
        self.artifact = selection.chosen.artifact
        self.kernel = f"{self.artifact.family}/{self.artifact.variant}"
        self.variant, self.arch, self.grid = self.artifact.variant, self.artifact.arch, geometry.grid
        self._candidate, self._arch = selection.chosen, arch_name

    @property
    def steps(self) -> tuple[str, ...]:
        return (self.kernel,)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return self.selection.decisions

    def check(self, pointers: Sequence[int]) -> None:
        signature.check_addresses(self.family, pointers, self.problem.bytes)

    def slot(self, pointers: Sequence[int]) -> EmulatedSlot:
        return EmulatedSlot(self, pointers)

    def check_values(self, pointers: Sequence[int | None], stream: int) -> None:
        values.check(self.family, self.problem, pointers)

    def launch(self, pointers: Sequence[int], stream: int) -> None:
        self.check(pointers)
        self.check_values(pointers, stream)
        self.run(pointers)

    def run(self, pointers: Sequence[int], device: Any = None) -> Any:
        """Runs the kernel, on ``device`` behind what ran there before, or on a new one; returns the device."""
        emulator = _emulator()
        _warn_once(self._arch)
        try:
            return self._run(emulator, pointers, device or emulator.Device(self._arch))
        except emulator.EmulatorError as error:
            raise EmulatedFaultError(f"{self.kernel} on the emulated sm_{self._arch}: {type(error).__name__}: {error}",
                                     kernel=self.family.name, variant=self.variant, text=str(error)) from error

    def _run(self, emulator: Any, pointers: Sequence[int], device: Any) -> Any:
        geometry = self.geometry
        ranges = _ranges(self.family, pointers, self.problem.bytes)
        for memory in ranges:
            device.map_buffer(*memory)
        fields = list(geometry.fields)
        for index, argument in geometry.pointers.items():
            fields[index] = pointers[argument]
        for index, m in geometry.maps.items():
            fields[index] = device.encode_tensor_map(pointers[m.argument], m.element, m.dims, m.strides, m.box,
                                                     m.swizzle)
        parameters = geometry.layout.pack(*fields)
        with announced(self, pointers, None, parameters):
            device.launch(_module(emulator, self._candidate), self.artifact.symbol, geometry.grid, geometry.block,
                          geometry.cluster, geometry.shared, parameters, self.artifact.launch.pdl)
        for memory in ranges:
            device.unmap_buffer(memory.pointer)
        return device


class _Range(NamedTuple):
    pointer: int
    size: int
    writable: bool
    name: str


def _ranges(family: Family, pointers: Sequence[int], sizes: Sequence[int]) -> list[_Range]:
    """The memory of a call's buffers, as the device maps it: inputs that share some are one range."""
    ranges: list[_Range] = []
    for argument, pointer, size in zip(family.arguments, pointers, sizes, strict=True):
        if not size:
            continue
        shared = [r for r in ranges if r.pointer < pointer + size and pointer < r.pointer + r.size]
        start = min([pointer, *(r.pointer for r in shared)])
        end = max([pointer + size, *(r.pointer + r.size for r in shared)])
        name = " and ".join([*(r.name for r in shared), argument.name])
        ranges = [r for r in ranges if r not in shared]
        ranges.append(_Range(start, end - start, argument.direction != "in", name))
    return ranges


def run_in_order(launches: Iterable[tuple[EmulatedPrepared, Sequence[int]]]) -> None:
    """Kernels with their addresses, each behind the other on one device, which so can tell whether it waits."""
    device = None
    for prepared, pointers in launches:
        prepared.check(pointers)
        device = prepared.run(pointers, device)


def check_size(family: Family, problem: Problem) -> None:
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
    if not text.isdecimal():
        raise EmulationError(f"{LIMIT_VARIABLE} must be a number of bytes, got {text!r}", kernel=family.name, got=text)
    total, limit = sum(problem.bytes), int(text)
    if total > limit:
        raise EmulationError(f"{family.name}: host buffers of {total} bytes would run on the emulated device, which "
                             f"takes {limit}; use device buffers, or set {LIMIT_VARIABLE} to wait for it",
                             kernel=family.name, got=total, limit=limit)


def _warn_once(name: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"host buffers run on the emulated sm_{name} device: exact, and slow", RuntimeWarning,
                      stacklevel=2)


def _emulator() -> Any:
    try:
        return import_module("..emulator" if "." in __package__ else "emulator", __package__)  # beside this package
    except ImportError as error:
        raise EmulationError(f"host buffers need the emulated device, which misses {error.name}; install "
                             "numpy (the extra `emulator`), or pass device buffers", missing=error.name) from error


def _module(emulator: Any, candidate: Candidate) -> Any:
    """The translated kernel, kept while it is among the latest: each takes megabytes."""
    key = candidate.artifact.ptx.sha256
    module = _modules.pop(key, None) or emulator.load(listing.ptx_text(candidate))
    _modules[key] = module
    if len(_modules) > KEPT_MODULES:
        del _modules[next(iter(_modules))]
    return module
