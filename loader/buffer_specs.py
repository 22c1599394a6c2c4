"""What the buffers of a call must be, before they exist: shapes from the manifest's expressions.

A problem is given as far as it is known: buffers, specs of buffers, words for dtypes, dimensions as numbers. What is
known gives the other dimensions, these give the other shapes, and the whole is then checked as a launch checks it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import dlpack, expression, signature
from .call import Call
from .composite import WORKSPACE, CompositeCall
from .dlpack import Buffer
from .errors import DtypeError, ExpressionError, MissingArgumentError, ShapeError, UnknownArgumentError
from .expression import Number
from .manifest import DTYPE_BYTES, Argument, Family, Scalar
from .signature import Problem

# Addresses of buffers that do not exist: apart from each other, and above every real one.
_APART = 1 << 64


class BufferSpec(NamedTuple):
    """A buffer that a call takes: row major and contiguous.

    shape: in stored elements; ``e2m1x2`` counts bytes. dtypes: those that it may have, in the words of the manifest.
    alignment: of its first byte, in bytes.
    """

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    alignment: int = 1

    @property
    def dtype(self) -> str:
        """The only one; ``DtypeError`` where there are several."""
        if len(self.dtypes) != 1:
            raise DtypeError(f"a buffer may be {' or '.join(self.dtypes)}; the call that describes it says which by "
                             "its word, as in out='bf16'", argument=None, expected="one dtype", got=self.dtypes)
        return self.dtypes[0]

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
        return tuple(math.prod(self.shape[axis + 1:]) for axis in range(len(self.shape)))

    @property
    def nbytes(self) -> int:
        """``DtypeError`` where it may have several dtypes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class _Shapeless(NamedTuple):
    """In the place of a buffer whose shape is to be found; ``dtype`` where the call says it."""

    dtype: str | None


def buffers(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, BufferSpec]:
    """Every buffer of a call by its argument, but optional ones that it does not give; and a composite's workspace."""
    return solved(call, args, kwargs)[1]


def solved(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Problem, dict[str, BufferSpec]]:
    """The same with the problem, in which what may have several dtypes has the first one."""
    family = call.family
    dimensions = {name: value for name, value in kwargs.items() if name in family.dimensions}
    values = _in_order(family, args, {name: value for name, value in kwargs.items() if name not in dimensions})
    given, scalars = values[:call.count], values[call.count:]
    found = [_read(family, index, argument, value)
             for index, (argument, value) in enumerate(zip(family.arguments, given, strict=True))]
    signature.device_of(family, [dlpack.ABSENT if isinstance(value, (BufferSpec, _Shapeless)) else buffer
                                 for value, buffer in zip(given, found, strict=True)])
    known = _known(family, found, scalars, dimensions)
    _check_dimensions(family, found, known, dimensions)
    for index, (argument, value) in enumerate(zip(family.arguments, found, strict=True)):
        if isinstance(value, _Shapeless):
            dtype = value.dtype or argument.dtypes[0]
            found[index] = _imagined(family, index, argument, dtype, _shape(family, argument, known))
    problem = call.checker.check(found, scalars)
    undecided = {argument.name: argument.dtypes for argument, value in zip(family.arguments, given, strict=True)
                 if isinstance(value, _Shapeless) and value.dtype is None}
    specs = {argument.name: BufferSpec(_shape(family, argument, problem.values),
                                       undecided.get(argument.name) or (problem.dtypes[argument.name],),
                                       argument.alignment)
             for argument in family.arguments if argument.name in problem.dtypes}
    if isinstance(call, CompositeCall):
        shape = (call.workspace_bytes(problem.values),)
        specs[WORKSPACE.name] = BufferSpec(shape, WORKSPACE.dtypes, WORKSPACE.alignment)
    return problem, specs


def written(family: Family, specs: Mapping[str, BufferSpec]) -> dict[str, BufferSpec]:
    """Those of the buffers of a call that it writes."""
    read = {argument.name for argument in family.arguments if argument.direction == "in"}
    return {name: spec for name, spec in specs.items() if name not in read}


def _in_order(family: Family, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Values of a call as ``signature.order`` gives them, words and what may be left out here as ``_Shapeless``.

    That is what the kernel writes; and inputs, where none is given as a buffer.
    """
    names = [argument.name for argument in family.arguments]
    numbers = {scalar.name for scalar in family.scalars}
    inputs = bool(args) or any(value is not None and not isinstance(value, str)
                               for name, value in kwargs.items() if name not in numbers)
    given = {*names[:len(args)], *kwargs}
    left_out = {argument.name: _Shapeless(None) for argument in family.arguments
                if argument.name not in given and not argument.optional and not (inputs and argument.direction == "in")}
    values = signature.choose(family, signature.order(family, args, {**kwargs, **left_out}))
    return [_Shapeless(value) if isinstance(value, str) and index < len(names) else value
            for index, value in enumerate(values)]


def _read(family: Family, index: int, argument: Argument, value: Any) -> Buffer | _Shapeless:
    if isinstance(value, _Shapeless):
        return value
    if not isinstance(value, BufferSpec):
        return signature.read(family.name, argument, value)
    dtype = value.dtypes[0] if len(value.dtypes) == 1 else " or ".join(value.dtypes)
    return _imagined(family, index, argument, dtype, value.shape)


def _imagined(family: Family, index: int, argument: Argument, dtype: str, shape: Sequence[int]) -> Buffer:
    """A buffer of nobody."""
    if dtype not in dlpack.ELEMENT_OF:
        raise DtypeError(f"{family.name}: {argument.name} takes {' or '.join(argument.dtypes)}, got {dtype!r}",
                         kernel=family.name, argument=argument.name, expected=argument.dtypes, got=dtype)
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        raise ShapeError(f"{family.name}: {argument.name} has a shape of whole numbers, got {shape!r}",
                         kernel=family.name, argument=argument.name, expected="whole numbers", got=shape) from None
    return Buffer((index + 1) * _APART, dlpack.CPU, 0, dlpack.ELEMENT_OF[dtype], sizes, None, False)


def _known(family: Family, found: Sequence[Buffer | _Shapeless], scalars: Sequence[Any],
           dimensions: Mapping[str, Any]) -> Mapping[str, Number]:
    """What follows from the buffers whose shapes are known, the scalars, and the dimensions that are given."""
    there = [(argument, value) for argument, value in zip(family.arguments, found, strict=True)
             if isinstance(value, Buffer) and value is not dlpack.ABSENT]
    numbers = tuple(Scalar(name, "i64", "", None, ()) for name in dimensions)
    part = family._replace(arguments=tuple(argument for argument, _ in there), scalars=(*family.scalars, *numbers),
                           constraints=(), dimensions=())
    return signature.Checker(part).check([value for _, value in there], [*scalars, *dimensions.values()]).values


def _check_dimensions(family: Family, found: Sequence[Buffer | _Shapeless], known: Mapping[str, Number],
                      dimensions: Mapping[str, Any]) -> None:
    """Every dimension of a shape that is to be found is known, and every one that was given is one of the call's."""
    arguments = [argument for argument, value in zip(family.arguments, found, strict=True)
                 if value is not dlpack.ABSENT]
    used = {name for argument in arguments for entry in argument.shape for name in expression.names(entry)}
    for name in dimensions:
        if name not in used:
            raise UnknownArgumentError(f"{family.name}: nothing that this call gives has the dimension {name}",
                                       kernel=family.name, argument=name, expected=sorted(used), got=name)
    for argument, value in zip(family.arguments, found, strict=True):
        if not isinstance(value, _Shapeless):
            continue
        for name in sorted(set().union(*map(expression.names, argument.shape)) - known.keys()):
            raise MissingArgumentError(
                f"{family.name}: dimension {name} of {argument.name} follows from nothing that was given; give it as a "
                f"number, {name}=...{signature.requirements(family, {name})}", kernel=family.name,
                argument=name, expected="a number", got=None)


def _shape(family: Family, argument: Argument, values: Mapping[str, Number]) -> tuple[int, ...]:
    shape = []
    for axis, entry in enumerate(argument.shape):
        try:
            shape.append(expression.evaluate(entry, values))
        except ExpressionError as error:
            raise signature.no_extent(family, argument, axis, "has no size", error, values) from None
    return tuple(shape)
