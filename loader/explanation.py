"""Saying which artifact a problem would run, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import dlpack, driver, emulated, expression, signature
from .call import Call
from .errors import (
    ConstraintError,
    DeviceError,
    DtypeError,
    MissingArgumentError,
    ScalarError,
    UnknownArgumentError,
)
from .expression import Number
from .manifest import DTYPE_BYTES, Family
from .select import Decision, DeviceFacts
from .signature import Problem


class Explanation(NamedTuple):
    """``variant`` is None where nothing fits, or where nothing is launched: ``skipped`` is then the condition that
    holds. ``str()`` gives a table."""

    kernel: str
    device: str
    problem: Mapping[str, Number]
    variant: str | None
    arch: str | None
    decisions: tuple[Decision, ...]
    skipped: str | None = None

    def __str__(self) -> str:
        problem = ", ".join(f"{key} = {value}" for key, value in self.problem.items())
        rows = [("" if not d.accepted else "->", d.variant, f"sm_{d.arch}", d.reason) for d in self.decisions]
        what = table(rows) if self.skipped is None else f"nothing to compute and no launch: {self.skipped}"
        return f"{self.kernel} on {self.device}: {problem}\n{what}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


def signature_text(family: Family) -> str:
    """``name(argument: dtype [shape], ...)``, outputs marked."""
    parts = []
    for a in family.arguments:
        shape = ", ".join(map(expression.to_text, a.shape))
        parts.append(f"{a.name}: {'' if a.direction == 'in' else a.direction + ' '}{'|'.join(a.dtypes)} [{shape}]"
                     + (" = None" if a.optional else ""))
    parts.extend(f"{s.name}: {'|'.join(s.choices) or s.dtype}" + (f" = {s.default}" if s.default is not None else "")
                 for s in family.scalars)
    return f"{family.name}({', '.join(parts)})"


def explain(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Explanation:
    """Explain a call given by its buffers, or by dimensions, scalars and dtypes."""
    family = call.family
    problem, place = problem_of(call, args, kwargs)
    facts = _device_facts(call, place)
    shown = {name: problem.values[name] for name in (*family.dimensions, *(s.name for s in family.scalars))}
    if family.skip is not None and expression.evaluate(family.skip, problem.values):
        return Explanation(family.name, facts.name, shown, None, None, (), expression.to_text(family.skip))
    return Explanation(family.name, facts.name, shown, *call.decide(facts, problem))


def problem_of(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Problem, tuple[int, int] | None]:
    """The problem of a call given by its buffers, or by dimensions, scalars and dtypes; and where the buffers are."""
    family = call.family
    numbers = {*family.dimensions, *(scalar.name for scalar in family.scalars)}
    described = {name: value for name, value in kwargs.items() if value is not None}
    if not args and described and all(name in numbers or isinstance(value, str) for name, value in described.items()):
        return _problem_of_numbers(family, described), None
    values = signature.choose(family, signature.order(family, args, kwargs))
    buffers = [signature.read(family.name, argument, value)
               for argument, value in zip(family.arguments, values[:call.count], strict=True)]
    return call.checker.check(buffers, values[call.count:]), signature.device_of(family, buffers)


def _device_facts(call: Call, place: tuple[int, int] | None) -> DeviceFacts:
    asked = call.target
    if asked.kind == "emulated" or (place is not None and place[0] == dlpack.CPU):
        return emulated.facts(asked.arch or emulated.default_arch(call.family.name, call.kernels, call.registry))
    if place is not None and place[1] >= 0:
        if asked.ordinal is not None and asked.ordinal != place[1]:
            raise DeviceError(f"{call.family.name}: the buffers are on cuda:{place[1]}, cuda:{asked.ordinal} was asked "
                              "for", kernel=call.family.name, expected=asked.ordinal, got=place[1])
        return driver.get().device(place[1]).facts
    cuda = driver.get()
    return cuda.device(cuda.current_device() if asked.ordinal is None else asked.ordinal).facts


def _problem_of_numbers(family: Family, given: Mapping[str, Any]) -> Problem:
    values: dict[str, Number] = {}
    for scalar in family.scalars:
        value = given.get(scalar.name, scalar.default)
        if value is None:
            raise MissingArgumentError(f"{family.name}: missing {scalar.name}", kernel=family.name,
                                       argument=scalar.name, expected=scalar.dtype, got=None)
        read = signature.choice if scalar.choices else signature.scalar_value
        values[scalar.name] = read(family.name, scalar, value)
    present = [argument for argument in family.arguments if not argument.optional or argument.name in given]
    needed = {name for argument in present for entry in argument.shape for name in expression.names(entry)}
    for name in family.dimensions:
        size = given.get(name, None if name in needed else 0)
        if type(size) is not int or size < 0:
            kind = MissingArgumentError if name not in given else ScalarError
            raise kind(f"{family.name}: dimension {name} must be given as a number, got {size!r}", kernel=family.name,
                       argument=name, expected="a number that is not negative", got=size)
        values[name] = size
    dtypes = {}
    arguments = {argument.name: argument for argument in family.arguments}
    for name in given:
        if name not in values and name not in arguments:
            raise UnknownArgumentError(f"{family.name} has no argument or dimension {name!r}", kernel=family.name,
                                       argument=name, expected=[*values, *arguments], got=name)
    for name, argument in arguments.items():
        if argument not in present:
            values[f"sizeof_{name}"] = 0
            continue
        dtype = given.get(name, argument.dtypes[0])
        if dtype not in argument.dtypes:
            raise DtypeError(f"{family.name}: {name} takes {' or '.join(argument.dtypes)}, got {dtype!r}",
                             kernel=family.name, argument=name, expected=argument.dtypes, got=dtype)
        dtypes[name] = dtype
        values[f"sizeof_{name}"] = DTYPE_BYTES[dtype]
    for constraint in family.constraints:
        if not expression.evaluate(constraint.expression, values):
            raise ConstraintError(f"{family.name}: {constraint.text} does not hold", kernel=family.name,
                                  argument=None, constraint=constraint.text, values=dict(values),
                                  expected=constraint.text, got=None)
    return Problem(dtypes, values, ())

