"""Operands to time a problem with: random bytes that its kernel can read, and rows that are routed at random."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, pairwise

from . import values
from .errors import TuningError
from .expression import round_up
from .manifest import DTYPE_BYTES, Family, Values
from .signature import Problem

# Random bytes before they begin anew: nobody computes another time for it, and Python makes few in a second.
PERIOD = 1 << 22
# Groups whose ends or labels are given begin at multiples of this; a manifest has no rule that says so.
LOT = 128
_FORMATS = {"i32": "i", "i64": "q"}


def _table(change: Callable[[int], int]) -> bytes:
    return bytes(map(change, range(256)))


_ANY = _table(lambda byte: byte)
_SCALE = (_table(lambda byte: 0x7C | byte & 3),)  # 2^-3 to 1 as UE8M0
# What a random byte becomes, for each byte of an element: numbers around one, no NaN and no infinity.
_BYTES: dict[str, tuple[bytes, ...]] = {
    "e2m1x2": (_ANY,),
    "u8": (_ANY,),
    "e4m3": (_table(lambda byte: byte ^ 1 if byte & 0x7F == 0x7F else byte),),
    "ue4m3": (_table(lambda byte: 0x30 | byte & 0xF),),
    "ue8m0": _SCALE,
    "i32": _SCALE,  # words of four scales
    "bf16": (_ANY, _table(lambda byte: 0x3F | byte & 0x80)),
    "f16": (_ANY, _table(lambda byte: 0x38 | byte & 0x83)),
    "f32": (_ANY, _ANY, _ANY, _table(lambda byte: 0x3F)),
}


def elements(draw: random.Random, dtype: str, size: int) -> Iterator[bytes]:
    """``size`` bytes of random elements, in pieces."""
    tables, data = _BYTES[dtype], bytearray(draw.randbytes(min(size, PERIOD)))
    for place, table in enumerate(tables):
        data[place::len(tables)] = data[place::len(tables)].translate(table)
    period = bytes(data)
    for begin in range(0, size, PERIOD):
        yield period[:size - begin]


def integers(draw: random.Random, family: Family, problem: Problem, features: Mapping[str, float]) -> dict[str, bytes]:
    """The offsets, counts and labels of a call by argument, of rows that pick their group at random.

    ``TuningError`` for integers of another kind: no manifest says what these may be.
    """
    sizes = dict(zip([argument.name for argument in family.arguments], problem.bytes, strict=True))
    made: dict[str, list[int]] = {}
    for rule in family.values:
        if rule.extents is None:
            count = sizes[rule.argument] // DTYPE_BYTES[problem.dtypes[rule.argument]]
            made[rule.argument] = _entries(draw, family, problem, rule, count, features)
    for rule in family.values:
        if rule.extents is not None:
            offsets = made[rule.extents]
            _, room, step = values.bounds(family.name, rule, problem)
            rows = _fitted([end - begin for begin, end in pairwise(offsets)], room, step)
            made[rule.extents] = list(accumulate(rows, initial=offsets[0]))
            made[rule.argument] = list(accumulate([round_up(each, step) for each in rows], initial=0))[:-1]
    for argument in family.arguments:
        # Integers that no rule is about are words of scales, or mean something that only their producer knows.
        name, dtype = argument.name, problem.dtypes.get(argument.name)
        if dtype in _FORMATS and argument.direction == "in" and name not in made and "scale" not in name:
            raise _unknown(family, name)
    return {name: array(_FORMATS[problem.dtypes[name]], entries).tobytes() for name, entries in made.items()}


def _entries(draw: random.Random, family: Family, problem: Problem, rule: Values, count: int,
             features: Mapping[str, float]) -> list[int]:
    """Of offsets, ends, labels or counts, whichever a rule tells."""
    low, high, multiple = values.bounds(family.name, rule, problem)
    shape = next(argument.shape for argument in family.arguments if argument.name == rule.argument)
    if rule.within is not None or len(shape) != 1:
        raise _unknown(family, rule.argument)
    if rule.ascending and type(shape[0]) is list:  # E + 1 of them: offsets
        rows = [multiple * each for each in _dealt(draw, (high - low) // multiple, count - 1)]
        return list(accumulate(rows, initial=low))
    if rule.ascending:
        return list(accumulate(_in_lots(draw, high, count)))
    if low < 0:
        return [group for group, rows in enumerate(_in_lots(draw, count, high + 1)) for _ in range(rows)]
    mean = min(features.get("rows_per_expert", high), high)
    return [min(rows, high) for rows in _dealt(draw, round(mean * count), count)]


def _dealt(draw: random.Random, rows: int, groups: int) -> list[int]:
    """How many rows each group gets, when each row picks one."""
    counts = Counter(draw.choices(range(groups), k=rows)) if groups > 0 else Counter()
    return [counts[group] for group in range(groups)]


def _in_lots(draw: random.Random, rows: int, groups: int) -> list[int]:
    """The same of whole lots; what is left over is the last group's, behind which nothing begins."""
    dealt = [LOT * lots for lots in _dealt(draw, rows // LOT, groups)]
    return [*dealt[:-1], dealt[-1] + rows % LOT] if dealt else []


def _fitted(rows: list[int], room: int, step: int) -> list[int]:
    """Fewer groups where there is no room for all, each rounded up: the smallest one's rows go to the largest."""
    held = sorted([group for group, count in enumerate(rows) if count], key=rows.__getitem__)
    needed = sum(round_up(count, step) for count in rows)
    for group in held[:-1]:
        if needed <= room:
            break
        largest = held[-1]
        needed -= round_up(rows[group], step) + round_up(rows[largest], step)
        rows[largest], rows[group] = rows[largest] + rows[group], 0
        needed += round_up(rows[largest], step)
    if needed > room:
        raise TuningError(f"no room for {sum(rows)} rows among {room}, rounded up to {step}", expected=needed, got=room)
    return rows


def _unknown(family: Family, argument: str) -> TuningError:
    return TuningError(f"{family.name}: no rule of the manifest says what the integers of {argument} may be, so it "
                       "cannot be timed", kernel=family.name, argument=argument, expected="a rule", got=None)
