"""Everything of a launch that can be done before it, and the launch itself.

``Prepared`` is one problem on one device, addresses aside; it is shared by all launches of that problem. ``Slot`` is
memory that a launch reads: packed parameters and the launch configuration. A slot is used by one thread at a time.
``Plan`` is what users hold: a problem with its buffers.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Sequence
from ctypes import c_uint64, c_void_p
from typing import Any

from . import dlpack, driver, launchable, signature, values
from . import stream as streams
from .driver import Device, LaunchAttribute, LaunchConfig, TensorMapEncoder
from .errors import DeviceError, DtypeError, MissingArgumentError, ShapeError, UnknownArgumentError
from .geometry import Geometry
from .manifest import TENSOR_MAP_ALIGNMENT, Family
from .module import Function
from .observe import announced, watchers
from .select import Decision, Selection
from .signature import Problem
from .tracing import COMPILER, breaks_graph, leave_alone, untraced, watched

_modules = sys.modules

# Encoded tensor maps kept for each parameter of a problem, and slots kept for each plan.
MAX_ENCODED_MAPS = 64
MAX_PLAN_SLOTS = 64


class Prepared:
    """One problem on one CUDA device. Its kernel stays loaded while this is referred to."""

    part_of: str | None = None
    described: Any = None

    def __init__(self, family: Family, problem: Problem, selection: Selection, geometry: Geometry, device: Device,
                 function: Function) -> None:
        self.family, self.problem, self.selection, self.geometry = family, problem, selection, geometry
        artifact = selection.chosen.artifact
        self.device, self.function = device, function
        self.kernel = f"{artifact.family}/{artifact.variant}"
        self.variant, self.arch, self.grid = artifact.variant, artifact.arch, geometry.grid
        self.pointer_fields = tuple(geometry.pointers.items())
        self.map_fields = tuple(
            (index, m.argument, {}, TensorMapEncoder(device.driver, m.element, m.dims, m.strides, m.box, m.swizzle,
                                                     m.l2_promotion, kernel=self.kernel, tensor_map=m.name))
            for index, m in geometry.maps.items())
        self._attributes = _launch_attributes(geometry)
        self.idle: list[Slot] = []

    @property
    def steps(self) -> tuple[str, ...]:
        return (self.kernel,)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return self.selection.decisions

    def check(self, pointers: Sequence[int]) -> None:
        """What depends on addresses."""
        signature.check_addresses(self.family, pointers, self.problem.bytes)

    def check_values(self, pointers: Sequence[int | None], stream: int) -> None:
        """Of offsets, counts and indices, behind what is queued on ``stream``."""
        values.check(self.family, self.problem, pointers,
                     lambda address, size: self.device.read(address, size, stream, kernel=self.kernel))

    def config(self) -> LaunchConfig:
        g = self.geometry
        attributes = self._attributes
        return LaunchConfig((ctypes.c_uint32 * 3)(*g.grid), (ctypes.c_uint32 * 3)(*g.block), g.shared, 0, attributes,
                            len(attributes))

    def launch(self, pointers: tuple[int, ...], stream: int) -> None:
        """Launch with these addresses, which must have passed ``check`` unless a slot holds them already."""
        try:
            slot = self.idle.pop()
        except IndexError:
            slot = Slot(self)
        if slot.pointers != pointers:
            self.check(pointers)
            slot.bind(pointers)
        slot.launch(stream)
        self.idle.append(slot)

    def slot(self, pointers: tuple[int, ...]) -> Slot:
        slot = Slot(self)
        slot.bind(pointers)
        return slot


def _launch_attributes(geometry: Geometry) -> ctypes.Array:
    attributes = []
    if geometry.cluster != (1, 1, 1):
        attribute = LaunchAttribute(id=driver.LAUNCH_CLUSTER_DIMENSION)
        attribute.value[0:3] = geometry.cluster
        attributes.append(attribute)
    if geometry.pdl:
        attribute = LaunchAttribute(id=driver.LAUNCH_PROGRAMMATIC_SERIALIZATION)
        attribute.value[0] = 1
        attributes.append(attribute)
    return (LaunchAttribute * len(attributes))(*attributes)


class Slot:
    """Parameters and configuration of a launch, in memory of their own."""

    __slots__ = ("pointers", "_prepared", "_driver", "_function", "_fields", "_buffer", "_start", "_addresses",
                 "_config", "_config_address", "_parameters_address", "_stream")

    def __init__(self, prepared: Prepared) -> None:
        geometry = prepared.geometry
        self.pointers: tuple[int, ...] | None = None
        # Weakly, or a slot that is idle would keep its own Prepared, and so the module. Who launches a slot has it.
        self._prepared = weakref.proxy(prepared)
        self._driver, self._function = prepared.device.driver, prepared.function.handle
        self._fields = list(geometry.fields)
        self._buffer = ctypes.create_string_buffer(geometry.layout.size + TENSOR_MAP_ALIGNMENT)
        base = ctypes.addressof(self._buffer)
        self._start = -base % TENSOR_MAP_ALIGNMENT
        addresses = [base + self._start + offset for offset in geometry.offsets]
        self._addresses = (c_uint64 * max(len(addresses), 1))(*addresses)
        self._config = prepared.config()
        self._stream = 0
        # Ready-made ctypes objects: passing Python integers would convert them at every launch.
        self._config_address = c_void_p(ctypes.addressof(self._config))
        self._parameters_address = c_void_p(ctypes.addressof(self._addresses))

    def bind(self, pointers: tuple[int, ...]) -> None:
        """Pack the parameters for these addresses."""
        fields, prepared = self._fields, self._prepared
        for index, argument in prepared.pointer_fields:
            fields[index] = pointers[argument]
        for index, argument, encoded, encoder in prepared.map_fields:
            pointer = pointers[argument]
            tensor_map = encoded.get(pointer)
            if tensor_map is None:
                if len(encoded) >= MAX_ENCODED_MAPS:
                    encoded.clear()
                tensor_map = encoded[pointer] = encoder.encode(pointer, prepared.device)
            fields[index] = tensor_map
        self.pointers = None  # until they are packed
        prepared.geometry.layout.pack_into(self._buffer, self._start, *fields)
        self.pointers = pointers

    def launch(self, stream: int, told: bool = False) -> None:
        if watchers and not told:
            with announced(self._prepared, self.pointers, stream, self._parameters()):
                self.launch(stream, told=True)
            return
        if stream != self._stream:
            self._config.stream = self._stream = stream
        status = self._driver.launch_kernel(self._config_address, self._function, self._parameters_address, None)
        if status:
            self._launch_in_context(status)

    def _parameters(self) -> bytes:
        """As they are packed."""
        return self._buffer[self._start:self._start + self._prepared.geometry.layout.size]

    def _launch_in_context(self, status: int) -> None:
        """Launch again with the device's context current.

        A CUfunction belongs to one context, so a launch while another (or none) is current is refused by the driver
        rather than run elsewhere; asking for the current context before every launch would cost a tenth of it.
        """
        prepared = self._prepared
        if status in (driver.INVALID_CONTEXT, driver.INVALID_HANDLE):
            with prepared.device.current():
                status = self._driver.launch_kernel(self._config_address, self._function, self._parameters_address,
                                                    None)
        g = prepared.geometry
        self._driver.check(status, "cuLaunchKernelEx", kernel=prepared.kernel, device=prepared.device.ordinal,
                           grid=g.grid, block=g.block, cluster=g.cluster, shared=g.shared, stream=self._stream)


class Plan:
    """A checked and packed call. ``launch`` only launches; ``bind`` swaps buffers for others of equal signature.

    The plan keeps the objects that it was given alive, and its kernels loaded. Launches may come from several threads;
    a ``bind`` must not run beside them.
    """

    def __init__(self, family: Family, prepared: launchable.Launchable | None, buffers: Sequence[dlpack.Buffer],
                 values: Sequence[Any]) -> None:
        self._family, self._prepared = family, prepared
        self._buffers, self._values = list(buffers), list(values)
        self._slots: dict[int, launchable.Slot] = {}
        self._set_pointers()
        api = next((found for found in map(dlpack.exchange, map(type, self._values)) if found is not None), None)
        on_cuda = prepared is not None and prepared.device is not None
        self._current_stream = api.stream if on_cuda and api is not None else None
        self._ordinal = prepared.device.ordinal if on_cuda else None

    @property
    def kernel(self) -> str:
        """``family/variant``, or the name alone of a composite and where there is nothing to launch."""
        return self._prepared.kernel if self._prepared is not None else self._family.name

    @property
    def variant(self) -> str | None:
        return self._prepared.variant if self._prepared is not None else None

    @property
    def arch(self) -> str | None:
        return self._prepared.arch if self._prepared is not None else None

    @property
    def grid(self) -> tuple[int, int, int] | None:
        return self._prepared.grid if self._prepared is not None else None

    @property
    def steps(self) -> tuple[str, ...]:
        """``family/variant`` of every kernel that a launch runs, in order."""
        return self._prepared.steps if self._prepared is not None else ()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Every candidate with the reason for which it was taken or refused."""
        return self._prepared.decisions if self._prepared is not None else ()

    @breaks_graph
    def launch(self, stream: Any = None) -> None:
        """Launch on ``stream``; None is the producers' current stream, as in ``loader.launch``."""
        if COMPILER in _modules and watched():
            leave_alone(Plan.launch)(self, stream)
            return
        if stream is None and self._current_stream is not None and not driver.forked:
            stream = self._current_stream(self._ordinal)
        elif type(stream) is not int:
            stream = self._stream(stream)
        slot = self._slots.get(stream)
        if slot is None:
            slot = self._new_slot(streams.handle(stream))
            if slot is None:
                return
        slot.launch(stream)

    def check_values(self, stream: Any = None) -> None:
        """As ``loader.check``, of the buffers as they are now."""
        if self._prepared is not None:
            self._prepared.check_values(self._pointers, self._stream(stream))

    def _stream(self, stream: Any) -> int:
        if stream is not None:
            return streams.handle(stream)
        return streams.LEGACY_DEFAULT if self._ordinal is None else streams.current(self._values, self._ordinal)

    def _new_slot(self, stream: int) -> launchable.Slot | None:
        """A slot for a stream, so that launches on two streams never write to one configuration."""
        if self._prepared is None:
            return None
        if len(self._slots) >= MAX_PLAN_SLOTS:
            self._slots = {}
        slot = self._slots[stream] = self._prepared.slot(self._pointers)
        return slot

    def _set_pointers(self) -> None:
        self._pointers = tuple(buffer.pointer for buffer in self._buffers)

    @untraced
    def bind(self, /, **values: Any) -> Plan:
        """Use other buffers for some arguments; element type, shape, strides and device must be as before.

        Returns the plan itself.
        """
        names = [argument.name for argument in self._family.arguments]
        buffers, kept = list(self._buffers), list(self._values)
        for name, value in values.items():
            if name not in names:
                raise UnknownArgumentError(f"{self._family.name} has no buffer {name!r}; it has {', '.join(names)}",
                                           kernel=self._family.name, argument=name, expected=names, got=name)
            index = names.index(name)
            argument = self._family.arguments[index]
            buffer = signature.read(self._family.name, argument, value)
            _same_signature(self._family, name, self._buffers[index], buffer)
            signature.check_buffer(self._family.name, argument, buffer)
            buffers[index], kept[index] = buffer, value
        pointers = [buffer.pointer for buffer in buffers]
        if self._prepared is not None:
            self._prepared.check(pointers)
        self._buffers, self._values, self._slots = buffers, kept, {}
        self._set_pointers()
        return self

    def __repr__(self) -> str:
        return f"<Plan {self.kernel} sm_{self.arch} grid {self.grid}>" if self._prepared else f"<Plan {self.kernel}>"


def _same_signature(family: Family, name: str, old: dlpack.Buffer, new: dlpack.Buffer) -> None:
    if (old is dlpack.ABSENT) != (new is dlpack.ABSENT):
        how, what = ("without", "a buffer") if old is dlpack.ABSENT else ("with", "None")
        raise MissingArgumentError(f"{family.name}: {name} was planned {how} a buffer, got {what}; make a new plan",
                                   kernel=family.name, argument=name, expected=f"{how} a buffer", got=what)
    for error, what, expected, got in (
        (DeviceError, "device", dlpack.device_name(*old[1:3]), dlpack.device_name(*new[1:3])),
        (DtypeError, "element type", dlpack.describe(old.element), dlpack.describe(new.element)),
        (ShapeError, "shape", old.shape, new.shape),
    ):
        if expected != got:
            raise error(f"{family.name}: {name} was planned with {what} {expected}, got {got}; make a new plan",
                        kernel=family.name, argument=name, expected=expected, got=got)
