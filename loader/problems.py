"""Files of problems to tune: shapes that somebody wrote, Definitions of ``LOADER_TRACE_DIR``, and what
``LOADER_UNMEASURED_DIR`` records of launches.

A file is JSON: a problem or a list of them. ``{"kernel": .., "problem": {..}}`` has numbers of dimensions and scalars,
and words of scalars and dtypes, as ``explain`` takes them; a list in the place of one stands for each of its values.
A Definition has no values of scalars, so these are as if they were not given.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import expression, files
from .definition import DTYPES
from .errors import LoaderError, TuningError
from .fields import Fields, wrong
from .manifest import Family
from .observe import Launch
from .registry import Registry
from .tuned import document, number, reading

MAX_PROBLEMS = 20_000
MAX_NAMES = 200  # of one: arguments and scalars are at most 100, and dimensions are fewer than those
# What decided a problem that nobody has measured.
UNMEASURED = ("far", "estimated")


class Shape(NamedTuple):
    """A problem as its file says it; ``where`` is its place."""

    kernel: str
    given: Mapping[str, int | float | str]
    where: str


def read(paths: Sequence[str], found: Registry) -> list[Shape]:
    """All problems of files, and of every ``*.json`` in directories. ``TuningError`` names what is wrong and where."""
    shapes: list[Shape] = []
    for path in itertools.chain.from_iterable(map(_files, paths)):
        with reading(path):
            value = document(path)
            for index, item in enumerate(value if type(value) is list else [value]):
                where = f"[{index}]" if type(value) is list else "the problem"
                for shape in _shapes(Fields(item, where), found):
                    if len(shapes) == MAX_PROBLEMS:
                        raise TuningError(f"{path}: over {MAX_PROBLEMS} problems", file=path, expected=MAX_PROBLEMS,
                                          got=None)
                    shapes.append(shape._replace(where=f"{path}: {where}"))
    return shapes


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    names = sorted(entry.path for entry in os.scandir(path) if entry.name.endswith(".json"))
    if not names:
        raise TuningError(f"{path} holds no *.json", file=path, expected="files of problems", got=None)
    return names


def _shapes(fields: Fields, found: Registry) -> Iterator[Shape]:
    if fields.has("op_type"):
        yield _of_definition(fields, found)
        return
    kernel, problem = fields.text("kernel"), fields.mapping("problem")
    fields.done()
    if len(problem) > MAX_NAMES:
        raise wrong(f"{fields.where}.problem", f"at most {MAX_NAMES} names", len(problem))
    choices = [[_value(each, f"{fields.where}.problem.{key}") for each in (value if type(value) is list else [value])]
               for key, value in problem.items()]
    for values in itertools.product(*choices):
        yield Shape(kernel, dict(zip(problem, values, strict=True)), fields.where)


def _value(value: Any, where: str) -> int | float | str:
    if type(value) is str and value.isprintable() and len(value) <= 100:
        return value
    if type(value) not in (int, float):
        raise wrong(where, "a number or a word", value)
    return number(value, where)


def _of_definition(fields: Fields, found: Registry) -> Shape:
    """Other keys than those that tell the problem are the schema's own."""
    name = fields.text("op_type")
    axes = fields.object("axes")
    tensors = {**fields.mapping("inputs"), **fields.mapping("outputs")}
    try:
        family = found.family(name)
    except LoaderError as error:
        raise wrong(f"{fields.where}.op_type", f"a kernel of the packs ({error})", name) from None
    given: dict[str, Any] = {axis: axes.object(axis).integer("value", 0, 1 << 62) for axis in family.dimensions
                             if axes.has(axis)}
    for argument in family.arguments:
        if argument.name in tensors:
            where = f"{fields.where}.{argument.name}"
            dtype = Fields(tensors[argument.name], where).text("dtype")
            fitting = [word for word in argument.dtypes if DTYPES[word] == dtype]
            if len(fitting) != 1:
                raise wrong(f"{where}.dtype", f"that of one of {', '.join(argument.dtypes)}", dtype)
            given[argument.name] = fitting[0]
    return Shape(name, given, fields.where)


def write(directory: str, launch: Launch, family: Family) -> None:
    """Write the problem of a launch, whole or not at all. Floats are left out, since no choice depends on them."""
    arguments = [argument for argument in family.arguments if argument.name in launch.buffers]
    used = set().union(*(expression.names(extent) for argument in arguments for extent in argument.shape))
    problem = {name: launch.problem[name] for name in family.dimensions if name in used}
    problem |= {scalar.name: launch.problem[scalar.name] for scalar in family.scalars if scalar.dtype != "f32"}
    problem |= {argument.name: launch.buffers[argument.name].dtype for argument in arguments}
    content = json.dumps({"kernel": launch.kernel, "problem": problem}, indent=1).encode()
    path = os.path.join(directory, f"{launch.kernel}_{hashlib.sha256(content).hexdigest()[:12]}.json")
    if not os.path.exists(path):
        files.replace(path, content)
