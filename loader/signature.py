"""A call against its family: arguments in order, dtypes, shapes, dimensions, constraints.

Every check names the argument and says what was expected and what came. Nothing is converted or adjusted.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import dlpack, expression
from .dlpack import Buffer
from .errors import (
    AlignmentError,
    BufferProtocolError,
    ConstraintError,
    DeviceError,
    DtypeError,
    DuplicateArgumentError,
    ExpressionError,
    HostBufferError,
    MissingArgumentError,
    OverlapError,
    RankError,
    ReadOnlyError,
    ScalarError,
    ShapeError,
    StrideError,
    UnknownArgumentError,
)
from .expression import Expression, Function, Number
from .manifest import DTYPE_BYTES, SCALAR_FORMATS, Argument, Family, Scalar
from .registry import closest_names

# Packed FP4 and FP8 may come as plain bytes, from producers that cannot name these types.
_BYTE_DTYPES = ("e2m1x2", "ue4m3", "ue8m0", "e4m3", "u8")


class Problem(NamedTuple):
    """A checked call: what selection and packing need, addresses aside."""

    dtypes: Mapping[str, str]
    values: Mapping[str, Number]
    bytes: tuple[int, ...]


def defaults_of(family: Family) -> dict[str, Any]:
    """Name -> default, of what may be left out: None of an argument."""
    arguments = {argument.name: None for argument in family.arguments if argument.optional}
    return arguments | {scalar.name: scalar.default for scalar in family.scalars if scalar.default is not None}


def order(family: Family, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Values of the call in the order of the family's arguments, then its scalars (defaults filled in)."""
    names = [argument.name for argument in family.arguments] + [scalar.name for scalar in family.scalars]
    if len(args) > len(names):
        raise UnknownArgumentError(f"{family.name} takes {len(names)} arguments, got {len(args)} positional ones",
                                   kernel=family.name, argument=None, expected=len(names), got=len(args))
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            closest = closest_names(name, names)
            hint = f"; did you mean {' or '.join(closest)}?" if closest else ""
            raise UnknownArgumentError(f"{family.name} has no argument {name!r}; it takes {', '.join(names)}{hint}",
                                       kernel=family.name, argument=name, expected=names, got=name)
        if name in given:
            raise DuplicateArgumentError(f"{family.name}: {name} is given by position and by name",
                                         kernel=family.name, argument=name, expected="once", got="twice")
        given[name] = value
    defaults = defaults_of(family)
    missing = [name for name in names if name not in given and name not in defaults]
    if missing:
        raise MissingArgumentError(f"{family.name}: missing {', '.join(missing)}", kernel=family.name,
                                   argument=missing[0], expected=names, got=sorted(given))
    return [given[name] if name in given else defaults[name] for name in names]


def read(family: str, argument: Argument, value: Any, stream: int | None = None) -> Buffer:
    """The buffer given for an argument, as ``dlpack.read``; ``dlpack.ABSENT`` where an optional one is None."""
    if value is not None:
        return dlpack.read(value, argument.name, stream)
    if argument.optional:
        return dlpack.ABSENT
    raise MissingArgumentError(f"{family}: {argument.name} is None and may not be left out", kernel=family,
                               argument=argument.name, expected="a buffer", got=None)


def choose(family: Family, values: Sequence[Any]) -> list[Any]:
    """The values of a call with the index of each word that is one of a scalar's choices."""
    chosen, first = list(values), len(family.arguments)
    for index, scalar in enumerate(family.scalars, first):
        if scalar.choices:
            chosen[index] = choice(family.name, scalar, values[index])
    return chosen


def choice(family: str, scalar: Scalar, value: Any) -> int:
    """The index of a word among the choices of a scalar."""
    if isinstance(value, str) and value in scalar.choices:
        return scalar.choices.index(value)
    expected = " or ".join(map(repr, scalar.choices))
    raise ScalarError(f"{family}: {scalar.name} expects {expected}, got {value!r}", kernel=family,
                      argument=scalar.name, expected=scalar.choices, got=value)


def scalar_value(family: str, scalar: Scalar, value: Any) -> Number:
    """A scalar of the call as a Python number that fits its dtype. Arrays of one element count as what they hold."""
    facts = {"kernel": family, "argument": scalar.name, "expected": scalar.dtype, "got": value}
    held = value
    try:
        held = value.item() if hasattr(value, "item") else value
        if isinstance(held, bool) or not (hasattr(held, "__float__") or hasattr(held, "__index__")):
            raise TypeError  # truth values, text and bytes, all of which float() reads
        number = float(held) if scalar.dtype == "f32" else operator.index(held)
    except OverflowError:
        raise ScalarError(f"{family}: {scalar.name} is an integer that does not fit {scalar.dtype}", **facts) from None
    except (TypeError, ValueError):
        got = "a bool" if isinstance(held, bool) else type(value).__name__
        raise ScalarError(f"{family}: {scalar.name} expects a number of type {scalar.dtype}, got {got}",
                          **facts) from None
    try:
        struct.pack("<" + SCALAR_FORMATS[scalar.dtype][0], number)
    except (struct.error, OverflowError):
        raise ScalarError(f"{family}: {scalar.name} = {number} does not fit {scalar.dtype}", **facts) from None
    return number


def _dtype(family: str, argument: Argument, buffer: Buffer) -> str:
    known = dlpack.ELEMENTS.get(buffer.element)
    if known == "u8":
        fitting = [dtype for dtype in argument.dtypes if dtype in _BYTE_DTYPES]
    elif known == "e4m3":  # the same bits as UE4M3 scales, whose sign is never set
        fitting = [dtype for dtype in argument.dtypes if dtype in ("e4m3", "ue4m3")]
    else:
        fitting = [dtype for dtype in argument.dtypes if dtype == known]
    if len(fitting) == 1:
        return fitting[0]
    got = dlpack.describe(buffer.element)
    expected = " or ".join(argument.dtypes)
    if fitting:
        raise DtypeError(f"{family}: {argument.name} takes {expected}, and {got} could be {' or '.join(fitting)}",
                         kernel=family, argument=argument.name, expected=argument.dtypes, got=got)
    raise DtypeError(f"{family}: {argument.name} expects {expected}, got {got}", kernel=family,
                     argument=argument.name, expected=argument.dtypes, got=got)


def _stored_shape(family: str, argument: Argument, buffer: Buffer) -> tuple[int, ...]:
    """Shape in stored elements; FP4 that counts single values is halved along its last dimension."""
    shape = buffer.shape
    if len(shape) != len(argument.shape):
        raise RankError(f"{family}: {argument.name} expects {len(argument.shape)} dimensions "
                        f"{_shape_text(argument)}, got {len(shape)}: {shape}", kernel=family, argument=argument.name,
                        expected=len(argument.shape), got=len(shape))
    if buffer.element == (dlpack.FLOAT4_E2M1FN, 4, 1) and shape:
        if shape[-1] % 2:
            raise ShapeError(f"{family}: {argument.name} packs two FP4 values in a byte, its last dimension is odd: "
                             f"{shape}", kernel=family, argument=argument.name, expected="an even last dimension",
                             got=shape)
        shape = (*shape[:-1], shape[-1] // 2)
    return shape


def _shape_text(argument: Argument) -> str:
    return "[" + ", ".join(map(expression.to_text, argument.shape)) + "]"


def _check_strides(family: str, argument: Argument, buffer: Buffer) -> None:
    if buffer.strides is None or 0 in buffer.shape:
        return
    step = 1
    for size, stride in zip(reversed(buffer.shape), reversed(buffer.strides), strict=True):
        if size != 1 and stride != step:
            raise StrideError(f"{family}: {argument.name} must be row major and contiguous, got strides "
                              f"{buffer.strides} for shape {buffer.shape}", kernel=family, argument=argument.name,
                              expected="row major", got=buffer.strides)
        step *= size


def check_buffer(family: str, argument: Argument, buffer: Buffer) -> None:
    """Contiguity and write access of one buffer."""
    _check_strides(family, argument, buffer)
    if argument.direction != "in" and buffer.read_only:
        raise ReadOnlyError(f"{family}: {argument.name} is written by the kernel and its buffer is read-only",
                            kernel=family, argument=argument.name, expected="a writable buffer", got="read-only")


def check_addresses(family: Family, pointers: Sequence[int], sizes: Sequence[int]) -> None:
    """Every buffer has an aligned address, and none that the kernel writes shares a byte with another.

    A buffer without bytes may have any address.
    """
    for argument, pointer, size in zip(family.arguments, pointers, sizes, strict=True):
        if size and not pointer:
            raise BufferProtocolError(f"{family.name}: {argument.name} has address 0; {dlpack.NO_MEMORY}",
                                      kernel=family.name, argument=argument.name, expected="an address", got=0)
        if size and pointer % argument.alignment:
            raise AlignmentError(f"{family.name}: {argument.name} must start at a multiple of {argument.alignment} "
                                 f"bytes, got address {pointer:#x}", kernel=family.name, argument=argument.name,
                                 expected=argument.alignment, got=pointer)
    for i, written in enumerate(family.arguments):
        if written.direction == "in" or not sizes[i]:
            continue
        for j, other in enumerate(family.arguments):
            if i != j and pointers[i] < pointers[j] + sizes[j] and pointers[j] < pointers[i] + sizes[i] and sizes[j]:
                raise OverlapError(f"{family.name}: {written.name} is written and shares memory with {other.name}",
                                   kernel=family.name, argument=written.name, expected="memory of its own",
                                   got=other.name)


def device_of(family: Family, buffers: Sequence[Buffer]) -> tuple[int, int]:
    """(device type, device id) that all buffers lie on: ``dlpack.CPU`` or ``dlpack.CUDA``.

    Managed memory counts as memory of its device; a mix of host and device is a ``HostBufferError``.
    """
    device: tuple[int, int] | None = None
    holder = ""
    for argument, buffer in zip(family.arguments, buffers, strict=True):
        if buffer is dlpack.ABSENT:
            continue
        place = (dlpack.CUDA if buffer.device_type == dlpack.CUDA_MANAGED else buffer.device_type, buffer.device_id)
        got = dlpack.device_name(buffer.device_type, buffer.device_id)
        facts = {"kernel": family.name, "argument": argument.name, "got": got}
        if place[0] == dlpack.CUDA_HOST:
            raise HostBufferError(f"{family.name}: {argument.name} is pinned host memory, a device buffer is needed",
                                  expected="a CUDA device buffer", **facts)
        if place[0] not in (dlpack.CPU, dlpack.CUDA):
            raise DeviceError(f"{family.name}: {argument.name} lies on {got}", expected="cuda or cpu", **facts)
        place = (dlpack.CPU, 0) if place[0] == dlpack.CPU else place
        if device is None:
            device, holder = place, argument.name
        if place[0] != device[0]:
            host, other = (argument.name, holder) if place[0] == dlpack.CPU else (holder, argument.name)
            raise HostBufferError(f"{family.name}: {host} is a host buffer and {other} is on the device",
                                  **{**facts, "argument": host, "expected": "a CUDA device buffer", "got": "cpu"})
        if place[1] != device[1] and -1 not in (place[1], device[1]):
            raise DeviceError(f"{family.name}: {argument.name} is on {got}, {holder} on cuda:{device[1]}",
                              expected=dlpack.device_name(*device), **facts)
        if device[1] == -1:
            device = place
    return device or (dlpack.CUDA, -1)


def _known(values: Mapping[str, Number]) -> str:
    return f" (with {', '.join(f'{name} = {value}' for name, value in values.items())})" if values else ""


def requirements(family: Family, dimensions: set[str]) -> str:
    """The constraints on these dimensions, as the end of a message."""
    rules = [rule.text for rule in family.constraints if dimensions & expression.names(rule.expression)]
    return f"; it requires {', '.join(rules)}" if rules else ""


def no_extent(family: Family, argument: Argument, axis: int, what: str, error: ExpressionError,
              values: Mapping[str, Number]) -> ShapeError:
    """Of a shape entry that cannot be computed, or solved, from the sizes of a call."""
    entry = argument.shape[axis]
    return ShapeError(f"{family.name}: {argument.name} dimension {axis} ({expression.to_text(entry)}) {what}: "
                      f"{error}{_known(values)}{requirements(family, expression.names(entry))}",
                      kernel=family.name, argument=argument.name, expected="whole dimensions", got=str(error))


class _Step(NamedTuple):
    """One shape entry: it gives the dimension ``solves``, or where that is None its value is compared."""

    index: int
    axis: int
    entry: Expression
    solves: str | None
    value: Function


def _steps(family: Family, present: Sequence[bool]) -> tuple[_Step, ...]:
    """The shape entries of the arguments that are there, in an order in which each needs only what those before it
    gave; a manifest has one."""
    entries = [(index, axis, entry) for index, argument in enumerate(family.arguments) if present[index]
               for axis, entry in enumerate(argument.shape)]
    order, _ = expression.solving_order([entry for *_, entry in entries], [scalar.name for scalar in family.scalars])
    return tuple(_Step(*entries[at], dimension, expression.function(entries[at][2])) for at, dimension in order)


class Checker:
    """Everything about a call of a family that does not depend on the device."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._steps: dict[tuple[bool, ...], tuple[_Step, ...]] = {}  # by which arguments are there
        self._constraints = [(constraint, expression.function(constraint.expression))
                             for constraint in family.constraints]

    def check(self, buffers: Sequence[Buffer], scalars: Sequence[Any]) -> Problem:
        """The problem of a call. Raises an ``ArgumentError``."""
        family = self.family
        present = tuple([buffer is not dlpack.ABSENT for buffer in buffers])
        dtypes: dict[str, str] = {}
        shapes: list[tuple[int, ...]] = []
        for argument, buffer in zip(family.arguments, buffers, strict=True):
            if buffer is dlpack.ABSENT:
                shapes.append(())
                continue
            dtypes[argument.name] = _dtype(family.name, argument, buffer)
            shapes.append(_stored_shape(family.name, argument, buffer))
            check_buffer(family.name, argument, buffer)
        values: dict[str, Number] = {scalar.name: scalar_value(family.name, scalar, value)
                                     for scalar, value in zip(family.scalars, scalars, strict=True)}
        self._solve(shapes, present, values)
        sizes = []
        for argument, shape, there in zip(family.arguments, shapes, present, strict=True):
            size = values[f"sizeof_{argument.name}"] = DTYPE_BYTES[dtypes[argument.name]] if there else 0
            sizes.append(size * math.prod(shape))
        for constraint, holds in self._constraints:
            if not holds(values):
                used = {name: values[name] for name in sorted(expression.names(constraint.expression))}
                raise ConstraintError(f"{family.name}: {constraint.text} does not hold{_known(used)}",
                                      kernel=family.name, argument=None, constraint=constraint.text, values=used,
                                      expected=constraint.text, got=used)
        check_addresses(family, [buffer.pointer for buffer in buffers], sizes)
        return Problem(dtypes, values, tuple(sizes))

    def _solve(self, shapes: Sequence[tuple[int, ...]], present: tuple[bool, ...], values: dict[str, Number]) -> None:
        """Add every dimension to ``values``: each from the first shape entry that gives it, the others checked; 0 where
        the arguments that would give it are left out."""
        steps = self._steps.get(present)
        if steps is None:
            steps = self._steps[present] = _steps(self.family, present)
        for index, axis, entry, name, value in steps:
            size = shapes[index][axis]
            try:
                if name is None:
                    expected = value(values)
                else:
                    solved = values[name] = expression.solve(entry, name, size, values)
                    expected = size if solved >= 0 else f"a size that gives {name} >= 0"
            except ExpressionError as error:
                what = "has no size" if name is None else f"cannot be {size}"
                raise no_extent(self.family, self.family.arguments[index], axis, what, error, values) from None
            if expected != size:
                family, argument = self.family.name, self.family.arguments[index].name
                raise ShapeError(
                    f"{family}: {argument} dimension {axis} ({expression.to_text(entry)}) expects {expected}, "
                    f"got {size}" + _known(values), kernel=family, argument=argument, expected=expected, got=size)
        for name in self.family.dimensions:
            values.setdefault(name, 0)
