"""What the integers of a call may be: offsets, counts and indices, by the rules of their family.

Every launch on host buffers checks them, where looking costs nothing. From a device they have to be copied first, so
there only ``loader.check`` does.
"""

from __future__ import annotations

import ctypes
import math
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


def named(rule: Values) -> set[str]:
    """The arguments that a rule is about."""
    return set(filter(None, (rule.argument, rule.extents, rule.within)))


def check(family: Family, problem: Problem, pointers: Sequence[int | None], read: Read = read_host) -> None:
    """``ValuesError`` names the first entry that breaks a rule. None in the place of an address: rules about that
    argument are not looked at."""
    names = [argument.name for argument in family.arguments]
    hidden = {name for name, pointer in zip(names, pointers, strict=True) if pointer is None}
    known: dict[str, Sequence[int]] = {}
    for rule in family.values:
        if named(rule) & hidden:
            continue
        for name in named(rule):
            if name not in known:
                index = names.index(name)
                data = read(pointers[index], problem.bytes[index]) if problem.bytes[index] else b""
                known[name] = memoryview(data).cast(_FORMATS[problem.dtypes[name]])
        _check_rule(family.name, rule, problem, known)


def _check_rule(kernel: str, rule: Values, problem: Problem, known: dict[str, Sequence[int]]) -> None:
    low, high, multiple = bounds(kernel, rule, problem)
    entries = known[rule.argument]
    if rule.extents is not None:
        if len(known[rule.extents]) != len(entries) + 1:
            raise _unusable(kernel, rule, f"{len(entries)} entries and {len(known[rule.extents])} extents")
        _check_extents(kernel, rule.argument, entries, known[rule.extents], (low, high, multiple))
        return
    which = range(len(entries))
    if rule.within is not None:
        begin, end = (known[rule.within][0], known[rule.within][-1]) if len(known[rule.within]) else (0, 0)
        if not 0 <= begin <= end <= len(entries):
            raise _wrong(kernel, rule.within, 0, begin, f"the first of entries {begin} to {end} of {len(entries)}")
        which = range(begin, end)
    for index in which:
        value = entries[index]
        if not low <= value <= high or value % multiple:
            raise _wrong(kernel, rule.argument, index, value, f"{_multiple(multiple)}{low} to {high}")
        if rule.ascending and index and value < entries[index - 1]:
            raise _wrong(kernel, rule.argument, index, value, f"at least {entries[index - 1]}, the entry before it")


def bounds(kernel: str, rule: Values, problem: Problem) -> tuple[int, int, int]:
    """Minimum, maximum and multiple of a rule, which are what a manifest says."""
    found = [expression.evaluate(bound, problem.values) for bound in (rule.minimum, rule.maximum, rule.multiple)]
    if not all(map(math.isfinite, found)) or found[2] < 1:
        raise _unusable(kernel, rule, f"minimum, maximum and multiple {found}")
    low, high, multiple = map(int, found)
    return low, high, multiple


def _unusable(kernel: str, rule: Values, got: str) -> ValuesError:
    return ValuesError(f"{kernel}: the rule about {rule.argument} cannot be followed: {got}", kernel=kernel,
                       argument=rule.argument, expected="a rule that fits the call", got=got)


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
