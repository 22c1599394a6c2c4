"""From a call to a launch: ``Call`` is one kernel name with its options, and remembers the problems it has seen.

The first call of a problem reads, checks, selects, loads and evaluates; later ones read every tensor's metadata anew,
find the problem by all of it, and launch. Nothing is assumed of a tensor that was seen before: shape, strides, dtype,
device and address are read at every call.
"""

from __future__ import annotations

import ctypes
import numbers
import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import arch, dlpack, driver, expression, geometry, module, select, signature
from . import stream as streams
from .dlpack import Buffer
from .errors import DeviceError, HostBufferError, NoKernelError, UnknownArchError
from .expression import Number
from .geometry import Geometry
from .launchable import Launchable
from .manifest import SCALAR_FORMATS, Family
from .plan import Plan, Prepared
from .registry import Registry
from .select import Decision, DeviceFacts, Selection
from .signature import Problem

# Problems and tensor layouts remembered by one Call before it starts over.
MAX_PROBLEMS = 4096
MAX_LAYOUTS = 16384

_SKIPPED = object()  # a problem for which there is nothing to compute


class Target(NamedTuple):
    """The ``device`` argument: ``kind`` is None (the buffers decide), "cuda" or "emulated"."""

    kind: str | None
    ordinal: int | None = None
    arch: str | None = None


def target(device: Any) -> Target:
    """None, an ordinal, "cuda", "cuda:1", "cpu", "emulated" or "emulated:120a" as a ``Target``."""
    if device is None:
        return Target(None)
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return Target("cuda", device)
    if isinstance(device, str):
        kind, _, detail = device.partition(":")
        if kind == "cuda" and (not detail or detail.isdecimal()):
            return Target("cuda", int(detail) if detail else None)
        if kind in ("emulated", "cpu"):
            return Target("emulated", None, known_arch(detail) if detail else None)
    raise DeviceError(f"device: {device!r} is no device; give an ordinal, 'cuda:<ordinal>' or 'emulated:<arch>'",
                      argument="device", expected="an ordinal, 'cuda:<ordinal>' or 'emulated:<arch>'", got=device)


def known_arch(text: str) -> str:
    try:
        return str(arch.parse(text))
    except ValueError as error:
        raise UnknownArchError(str(error), got=text, known=list(arch.ARCHS)) from None


def _no_tensor(value: None, address: int) -> int:
    """In the place of ``dlpack.Exchange.tensor`` for None: the DLTensor stays zeros, as no buffer's is."""
    return 0


class _Header:
    """Memory for the DLTensors of one call; ``bytes`` is a view of it."""

    __slots__ = ("memory", "addresses", "bytes")

    def __init__(self, count: int) -> None:
        self.memory = ctypes.create_string_buffer(dlpack.TENSOR.size * max(count, 1))
        base = ctypes.addressof(self.memory)
        self.addresses = tuple(base + dlpack.TENSOR.size * i for i in range(count))
        self.bytes = memoryview(self.memory).cast("B")


class _Layout(NamedTuple):
    """Where the tensors of a call keep their shapes and strides, and the problems that were found there."""

    views: tuple[ctypes.Array, ...]
    offsets: tuple[int, ...] | None
    problems: dict[Any, Any]


class Call:
    """One kernel name of a registry, with its ``device`` and ``variant``."""

    def __init__(self, name: str, device: Any, variant: str | None, found: Registry) -> None:
        self.registry = found
        self.family = self.signature(name)
        self.target, self.variant = target(device), variant
        self.kernels: tuple[str, ...] = (name,)  # all that must run on one architecture
        self.names = ([argument.name for argument in self.family.arguments]
                      + [scalar.name for scalar in self.family.scalars])
        self.count = len(self.family.arguments)
        self._arguments = {argument.name: i for i, argument in enumerate(self.family.arguments)}
        self._words = [(index, {word: number for number, word in enumerate(scalar.choices)})
                       for index, scalar in enumerate(self.family.scalars, self.count) if scalar.choices]
        self._defaults = signature.defaults_of(self.family)
        self._by_name = operator.itemgetter(*self.names) if len(self.names) > 1 else None
        # One DLTensor as five fields: data, the 16 bytes of device, rank and type, shape, strides, byte offset.
        self._unpack = struct.Struct("<" + "Q16sQQQ" * self.count).unpack_from
        # Floats as doubles: what is checked is the number that was given, before it is rounded.
        self._scalars = struct.Struct("<" + "".join("d" if scalar.dtype == "f32" else SCALAR_FORMATS[scalar.dtype][0]
                                                    for scalar in self.family.scalars))
        self._number_types = {int, float}  # every value of these is a number
        self._headers: list[_Header] = []
        self._tensor_of: dict[type, Any] = {}
        self._no_tensors = b""  # zeros for a header, where an argument may be left out
        if any(argument.optional for argument in self.family.arguments):
            self._tensor_of[type(None)] = _no_tensor
            self._no_tensors = bytes(dlpack.TENSOR.size * self.count)
        # Where torch may leave a negation for later: in the imaginary part of a conjugate.
        self._floats = [index for index, argument in enumerate(self.family.arguments)
                        if not dlpack.FLOATS.isdisjoint(argument.dtypes)]
        self._is_negative: dict[type, Any] = {}
        self._layouts: dict[Any, _Layout] = {}
        self._problems: dict[Any, Any] = {}
        self.checker = signature.Checker(self.family)
        self._choices: dict[Any, select.Choice] = {}
        self._evaluators: dict[tuple[str, str], geometry.Evaluator] = {}
        self._remembered = 0  # problems in all of _layouts

    def signature(self, name: str) -> Family:
        """What the call takes."""
        return self.registry.family(name)

    # Later calls of a problem

    def launch(self, args: Sequence[Any], kwargs: Mapping[str, Any], stream: Any) -> None:
        values = self._in_order(args, kwargs)
        found = self._locate(values)
        prepared = found and found[0].get(found[1])
        if prepared is None:
            self._launch_new(values, stream)
            return
        if prepared is _SKIPPED:
            return
        if type(stream) is not int or stream >> 64:  # neither negative nor of more than 64 bits
            ordinal = prepared.device.ordinal
            stream = streams.handle(stream) if stream is not None else streams.current(values, ordinal)
        prepared.launch(found[2], stream)

    def _in_order(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """Values of a call as ``signature.order`` and ``signature.choose`` give them; all by name is the fast way."""
        if self._by_name is not None and not args:
            given = {**self._defaults, **kwargs} if self._defaults else kwargs
            if len(given) == len(self.names):
                try:
                    values = list(self._by_name(given))
                    for index, words in self._words:
                        values[index] = words[values[index]]
                    return values
                except (KeyError, TypeError):
                    pass  # the slow way says which name or word is wrong
        return signature.choose(self.family, signature.order(self.family, args, kwargs))

    def _locate(self, values: Sequence[Any]) -> tuple[dict[Any, Any], Any, tuple[int, ...]] | None:
        """Where the problem of these values is remembered, under which key, and their addresses.

        None if a value's type is new here or gives no tensor; the slow path then says which and why.
        """
        try:
            header = self._headers.pop()
        except IndexError:
            header = _Header(self.count)
        tensor_of = self._tensor_of
        if self._no_tensors:
            header.bytes[:] = self._no_tensors
        try:
            for value, address in zip(values, header.addresses):  # noqa: B905 (scalars follow the buffers)
                if tensor_of[type(value)](value, address):
                    raise BufferError
            if is_negative := self._is_negative:
                for index in self._floats:
                    value = values[index]
                    if type(value) in is_negative and is_negative[type(value)](value):
                        raise BufferError
            scalars = self._pack_scalars(values[self.count:]) if len(values) > self.count else b""
        except Exception:
            self._headers.append(header)
            return None
        fields = self._unpack(header.memory)
        self._headers.append(header)
        key = (fields[1::5], fields[2::5], fields[3::5], fields[4::5])
        layout = self._layouts.get(key) or self._new_layout(key)
        contents = b"".join([view.raw for view in layout.views]) + scalars
        pointers = fields[0::5]
        if layout.offsets is not None:
            pointers = tuple(map(operator.add, pointers, layout.offsets))
        return layout.problems, contents, pointers

    def _pack_scalars(self, scalars: Sequence[Any]) -> bytes:
        """The values of the scalars, read from their objects now; raises for what ``scalar_value`` refuses."""
        if not self._number_types.issuperset(map(type, scalars)):
            scalars = self._numbers(scalars)
        return self._scalars.pack(*scalars)

    def _numbers(self, scalars: Sequence[Any]) -> list[Number]:
        """Checked Python numbers in the place of scalars; remembers the types that hold nothing else."""
        checked = [signature.scalar_value(self.family.name, scalar, value)
                   for scalar, value in zip(self.family.scalars, scalars, strict=True)]
        self._number_types.update(type(value) for value in scalars if isinstance(value, numbers.Real))
        return checked

    def _new_layout(self, key: tuple[tuple[Any, ...], ...]) -> _Layout:
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        views: list[ctypes.Array] = []
        for meta, shape, strides in zip(*key[:3], strict=True):
            size = 8 * int.from_bytes(meta[8:12], "little")
            if not size:
                continue
            # One read where both lie close together; the bytes between are the producer's own.
            together = strides - shape + size if size <= strides - shape <= 128 else size
            views.append((ctypes.c_char * together).from_address(shape))
            if strides and together == size:
                views.append((ctypes.c_char * size).from_address(strides))
        layout = self._layouts[key] = _Layout(tuple(views), key[3] if any(key[3]) else None, {})
        return layout

    # The first call of a problem

    def _launch_new(self, values: Sequence[Any], stream: Any) -> None:
        handle = self.stream(values, stream)
        values = self._with_numbers(values)
        prepared, buffers = self.prepare(values, handle)
        if prepared is not None:
            prepared.launch(tuple(buffer.pointer for buffer in buffers), handle)
        if prepared is None or prepared.device is not None:  # the emulated device has the time to look twice
            self._remember(values, prepared)

    def _remember(self, values: Sequence[Any], prepared: Launchable | None) -> None:
        """Let ``_locate`` find this problem, if every buffer's type has the exchange API."""
        apis = {kind: dlpack.exchange(kind) for kind in map(type, values[:self.count]) if kind is not type(None)}
        if None in apis.values() or not self.count:
            return
        self._tensor_of.update({kind: api.tensor for kind, api in apis.items()})
        self._is_negative.update({kind: kind.is_neg for kind in apis if hasattr(kind, "is_neg")})
        if self._remembered >= MAX_PROBLEMS:
            self._start_over()
        found = self._locate(values)
        if found is not None:
            found[0][found[1]] = _SKIPPED if prepared is None else prepared
            self._remembered += 1

    def _with_numbers(self, values: Sequence[Any]) -> list[Any]:
        """The values with checked Python numbers for scalars, so that each object is asked once."""
        return [*values[:self.count], *self._numbers(values[self.count:])]

    def _start_over(self) -> None:
        self._problems.clear()
        self._layouts.clear()
        self._remembered = 0

    def stream(self, values: Sequence[Any], stream: Any) -> int:
        """Handle of the stream that was given, or of the producers' current one."""
        if stream is not None:
            return streams.handle(stream)
        buffers = values[:self.count]
        ordinal = next((place for place in map(dlpack.cuda_ordinal, buffers) if place is not None), None)
        return streams.LEGACY_DEFAULT if ordinal is None else streams.current(buffers, ordinal)

    def prepare(self, values: Sequence[Any], stream: int) -> tuple[Launchable | None, list[Buffer]]:
        """The problem of values ``_with_numbers``, and their buffers; None where there is nothing to compute."""
        buffers = [signature.read(self.family.name, argument, value, stream)
                   for argument, value in zip(self.family.arguments, values[:self.count], strict=True)]
        scalars = values[self.count:]
        key = (tuple(buffer[1:] for buffer in buffers), self._pack_scalars(scalars))
        prepared = self._problems.get(key)
        if prepared is None:
            prepared = self._new_problem(buffers, scalars, stream)
            if len(self._problems) >= MAX_PROBLEMS:
                self._start_over()
            self._problems[key] = prepared
        return (None if prepared is _SKIPPED else prepared), buffers

    def _new_problem(self, buffers: Sequence[Buffer], scalars: Sequence[Any], stream: int) -> Any:
        place = signature.device_of(self.family, buffers)
        problem = self.checker.check(buffers, scalars)
        self._check_target(place)
        if self.family.skip is not None and expression.evaluate(self.family.skip, problem.values):
            return _SKIPPED
        return self.resolve(problem, place, stream)

    def resolve(self, problem: Problem, place: tuple[int, int], stream: int) -> Launchable:
        """A checked problem on a device, ready to be launched: (type, ordinal) of ``dlpack``."""
        if place[0] == dlpack.CPU:
            from . import emulated  # host buffers only

            emulated.check_size(self.family, problem)
            name = self.target.arch or emulated.default_arch(self.family.name, self.kernels, self.registry)
            facts = emulated.facts(name)
            selection = self.select(facts, problem)
            return emulated.EmulatedPrepared(self.family, problem, selection,
                                             self.geometry(selection, problem, facts), name)
        device = driver.get().device(place[1] if place[1] >= 0 else self.target.ordinal or 0)
        selection = self.select(device.facts, problem)
        resolved = self.geometry(selection, problem, device.facts)
        function = module.function(selection.chosen, device, stream)
        return Prepared(self.family, problem, selection, resolved, device, function)

    def _check_target(self, place: tuple[int, int]) -> None:
        kind, ordinal, _ = self.target
        first = self.family.arguments[0].name if self.count else None
        got = dlpack.device_name(*place)
        facts = {"kernel": self.family.name, "argument": first, "got": got}
        elsewhere = ordinal is not None and place[1] not in (ordinal, -1)
        if kind == "cuda" and place[0] == dlpack.CPU:
            raise HostBufferError(f"{self.family.name}: {first} is a host buffer, device cuda was asked for",
                                  expected="a CUDA device buffer", **facts)
        if elsewhere or (kind == "emulated" and place[0] == dlpack.CUDA):
            asked = f"cuda:{ordinal}" if kind == "cuda" else "the emulated device"
            raise DeviceError(f"{self.family.name}: {first} is on {got}, {asked} was asked for", expected=asked,
                              **facts)

    def select(self, facts: DeviceFacts, problem: Problem) -> Selection:
        key = (facts, *problem.dtypes.values())
        choice = self._choices.get(key)
        if choice is None:
            choice = self._choices[key] = select.Choice(self.registry, self.family, facts, problem.dtypes, self.variant)
        return choice.select(problem.values)

    def decide(self, facts: DeviceFacts, problem: Problem) -> tuple[str | None, str | None, tuple[Decision, ...]]:
        """What would run: variant and arch, None where nothing fits, and the decisions."""
        try:
            selection = self.select(facts, problem)
        except NoKernelError as error:
            return None, None, error.decisions
        artifact = selection.chosen.artifact
        return artifact.variant, artifact.arch, selection.decisions

    def geometry(self, selection: Selection, problem: Problem, facts: DeviceFacts) -> Geometry:
        values = {**problem.values, "sm_count": facts.sm_count}
        artifact = selection.chosen.artifact
        key = artifact.variant, artifact.arch
        evaluator = self._evaluators.get(key)
        if evaluator is None:
            evaluator = self._evaluators[key] = geometry.Evaluator(artifact, self._arguments)
        return evaluator.evaluate(values)

    def plan(self, args: Sequence[Any], kwargs: Mapping[str, Any], stream: Any) -> Plan:
        values = self._with_numbers(self._in_order(args, kwargs))
        prepared, buffers = self.prepare(values, self.stream(values, stream))
        if prepared is not None:
            prepared.check([buffer.pointer for buffer in buffers])
        return Plan(self.family, prepared, buffers, values[:self.count])
