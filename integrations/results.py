"""What the functional form of a torch op allocates: shapes from the manifest's expressions, of symbolic sizes as well.

``loader.outputs`` reads sizes as Python numbers, which under torch.compile would bind a graph to them. Here the same
expressions are evaluated on whatever the sizes are. Only what gives a shape is looked at: the launch checks the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from . import loader

expression = loader.expression

# Words of the manifest. FP4 is bytes, as torch does nothing with its own type.
TYPES = {
    "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i32": torch.int32, "i64": torch.int64,
    "u8": torch.uint8, "e2m1x2": torch.uint8, "e4m3": torch.float8_e4m3fn, "ue4m3": torch.float8_e4m3fn,
    "ue8m0": torch.float8_e8m0fnu,
}  # fmt: skip
_WORDS = {dtype: word for word, dtype in reversed(TYPES.items())} | {
    torch.uint8: "u8", torch.int8: "u8", torch.float4_e2m1fn_x2: "e2m1x2"}  # fmt: skip


class _Step(NamedTuple):
    """An entry of an input's shape that gives a dimension."""

    index: int
    axis: int
    entry: loader.expression.Expression
    dimension: str


class Results:
    """The buffers that a family writes, of calls that do not give them; those that may be left out are.

    inputs: in the order of the call, those that may be left out last. written: in the order of the arguments. sizes:
    dimensions that only these have, and words: the names of those that may have several dtypes; a call gives both.
    """

    def __init__(self, family: loader.manifest.Family) -> None:
        self.family = family
        self.inputs = in_order(argument for argument in family.arguments if argument.direction == "in")
        self.written = [argument for argument in family.arguments
                        if argument.direction != "in" and not argument.optional]  # fmt: skip
        self.words = [argument.name for argument in self.written if len(argument.dtypes) > 1]
        used = {name for argument in self.written for entry in argument.shape for name in expression.names(entry)}
        self._scalars = [scalar for scalar in family.scalars if scalar.name in used]
        self._steps = _steps(self.inputs, family.scalars)
        given = {step.dimension for step in self._steps} | {scalar.name for scalar in self._scalars}
        self.sizes = [name for name in family.dimensions if name in used - given]
        self._shapes = [tuple(map(expression.function, argument.shape)) for argument in self.written]

    def allocate(self, inputs: Sequence[torch.Tensor | None], given: Mapping[str, Any]) -> list[torch.Tensor]:
        """Buffers of any contents for a call with these inputs, scalars, sizes and words.

        Raises what ``loader.outputs`` raises of this call where its shapes do not follow.
        """
        try:
            values = self._values(inputs, given)
            shapes = [[_extent(entry, values) for entry in shape] for shape in self._shapes]
            types = [TYPES[_word(argument, given)] for argument in self.written]
        except (loader.LoaderError, LookupError):
            known = {argument.name: _spec(tensor)
                     for argument, tensor in zip(self.inputs, inputs, strict=False) if tensor is not None}  # fmt: skip
            loader.outputs(self.family.name, **known, **given)  # says what is wrong
            raise
        return [inputs[0].new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True)]

    def _values(self, inputs: Sequence[torch.Tensor | None], given: Mapping[str, Any]) -> dict[str, Any]:
        """Every dimension and scalar that a shape of ``written`` has."""
        values = {name: given[name] for name in self.sizes}
        for scalar in self._scalars:
            value = given.get(scalar.name, scalar.default)
            values[scalar.name] = loader.signature.choice(self.family.name, scalar, value) if scalar.choices else value
        for index, axis, entry, dimension in self._steps:
            values[dimension] = expression.solve(entry, dimension, inputs[index].shape[axis], values)
        return values


def of(family: loader.manifest.Family) -> Results | None:
    """None where a buffer is read as well as written: a call that allocates it could not say what it starts as."""
    return None if any(argument.direction == "inout" for argument in family.arguments) else Results(family)


def in_order(arguments: Iterable[loader.manifest.Argument]) -> list[loader.manifest.Argument]:
    """Those that may be left out last."""
    return sorted(arguments, key=lambda argument: argument.optional)


def _steps(inputs: Sequence[loader.manifest.Argument], scalars: Sequence[loader.manifest.Scalar]) -> list[_Step]:
    """How the inputs that every call has give dimensions, each by those before it."""
    places = [(index, axis, entry) for index, argument in enumerate(inputs) if not argument.optional
              for axis, entry in enumerate(argument.shape)]  # fmt: skip
    order, _ = expression.solving_order([entry for *_, entry in places], [scalar.name for scalar in scalars])
    return [_Step(*places[at], dimension) for at, dimension in order if dimension is not None]


def _spec(tensor: torch.Tensor) -> loader.BufferSpec:
    return loader.BufferSpec(tuple(tensor.shape), (_WORDS.get(tensor.dtype, str(tensor.dtype)),))


def _extent(entry: loader.expression.Function, values: Mapping[str, Any]) -> Any:
    extent = entry(values)
    if type(extent) is int and extent < 0:  # a symbolic one is compared with nothing that would bind the graph to it
        raise loader.ExpressionError(f"{extent} is no size")
    return extent


def _word(argument: loader.manifest.Argument, given: Mapping[str, Any]) -> str:
    """The dtype of a result."""
    if len(argument.dtypes) == 1:
        return argument.dtypes[0]
    word = given[argument.name]
    if word not in argument.dtypes:
        raise LookupError(word)
    return word
