"""What the integers of a call may be: offsets, counts and indices, by the rules of their family.

Every launch on host buffers checks them, where looking costs nothing. From a device they have to be copied first, so
there only ``loader.check`` does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from . import expression
from .errors import ValuesError
from .expression import round_up
from .manifest import Family, Values
from .signature import Problem

_FORMATS = {"i32": "i", "i64": "q"}

# Address and size in bytes to what lies there.
Read = Callable[[int, int], bytes]


def read_host(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


def check(family: Family, problem: Problem, pointers: Sequence[int], read: Read = read_host) -> None:
    """``ValuesError`` names the first entry that breaks a rule."""
    names = [argument.name for argument in family.arguments]
    known: dict[str, Sequence[int]] = {}
    for rule in family.values:
        for name in filter(None, (rule.argument, rule.extents, rule.within)):
            if name not in known:
                index = names.index(name)
                data = read(pointers[index], problem.bytes[index]) if problem.bytes[index] else b""
                known[name] = memoryview(data).cast(_FORMATS[problem.dtypes[name]])
        _check_rule(family.name, rule, problem, known)


def _check_rule(kernel: str, rule: Values, problem: Problem, known: dict[str, Sequence[int]]) -> None:
    low, high, multiple = (int(expression.evaluate(bound, problem.values))
                           for bound in (rule.minimum, rule.maximum, rule.multiple))
    entries = known[rule.argument]
    if rule.extents is not None:
        _check_extents(kernel, rule.argument, entries, known[rule.extents], (low, high, multiple))
        return
    which = range(len(entries))
    if rule.within is not None:
        which = range(known[rule.within][0], known[rule.within][-1])
    for index in which:
        value = entries[index]
        if not low <= value <= high or value % multiple:
            raise _wrong(kernel, rule.argument, index, value, f"{_multiple(multiple)}{low} to {high}")
        if rule.ascending and index and value < entries[index - 1]:
            raise _wrong(kernel, rule.argument, index, value, f"at least {entries[index - 1]}, the entry before it")


def _check_extents(kernel: str, name: str, firsts: Sequence[int], offsets: Sequence[int],
                   bounds: tuple[int, int, int]) -> None:
    """Experts without rows may begin anywhere."""
    low, high, multiple = bounds
    taken = []
    for expert, first in enumerate(firsts):
        rows = round_up(offsets[expert + 1] - offsets[expert], multiple)
        if not rows:
            continue
        if not low <= first <= high - rows or first % multiple:
            raise _wrong(kernel, name, expert, first,
                         f"{_multiple(multiple)}{low} to {high - rows}, with {rows} rows up to {high}")
        taken.append((first, first + rows, expert))
    taken.sort()
    for (_, end, other), (first, _, expert) in zip(taken, taken[1:]):  # noqa: B905 (neighbours)
        if first < end:
            raise _wrong(kernel, name, expert, first, f"at least {end}, where the rows of entry {other} end")


def _multiple(multiple: int) -> str:
    return f"a multiple of {multiple} in " if multiple > 1 else ""


def _wrong(kernel: str, name: str, index: int, value: int, expected: str) -> ValuesError:
    return ValuesError(f"{kernel}: entry {index} of {name} is {value}, expected {expected}", kernel=kernel,
                       argument=name, expected=expected, got=value)
