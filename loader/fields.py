"""Reads JSON whose every key and type is expected: a finding names its place in the document."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

from . import expression
from .errors import DuplicateError, ExpressionError, ManifestError, ManifestSyntaxError
from .expression import Expression


class Fields:
    """One JSON object being read: each key is taken once with its type, and ``done`` refuses what is left."""

    __slots__ = ("where", "_values", "_taken")

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise wrong(where, "an object", value)
        self.where, self._values, self._taken = where, value, 0

    def take(self, key: str) -> Any:
        if key not in self._values:
            raise ManifestError(f"{self.where}: key {key!r} is missing", where=self.where, expected=key, got=None)
        self._taken += 1
        return self._values[key]

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self.take(key)
        # What is printed somewhere holds nothing that moves a cursor, nor half a character.
        if type(value) is not str or not (pattern.fullmatch(value) if pattern else value.isprintable()):
            kind = "printable text" if pattern is None else f"text that matches {pattern.pattern}"
            raise wrong(f"{self.where}.{key}", kind, value)
        return value

    def choice(self, key: str, choices: Iterable[Any]) -> Any:
        value = self.take(key)
        if type(value) not in (str, int) or value not in choices:
            raise wrong(f"{self.where}.{key}", "one of " + ", ".join(map(str, choices)), value)
        return value

    def integer(self, key: str, low: int = 0, high: int = 1 << 31) -> int:
        return to_integer(self.take(key), f"{self.where}.{key}", low, high)

    def items(self, key: str) -> list[Any]:
        value = self.take(key)
        if type(value) is not list:
            raise wrong(f"{self.where}.{key}", "a list", value)
        return value

    def objects(self, key: str) -> list[Fields]:
        return [Fields(value, f"{self.where}.{key}[{i}]") for i, value in enumerate(self.items(key))]

    def object(self, key: str) -> Fields:
        return Fields(self.take(key), f"{self.where}.{key}")

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.take(key)
        if type(value) is not dict:
            raise wrong(f"{self.where}.{key}", "an object", value)
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if type(value) is not bool:
            raise wrong(f"{self.where}.{key}", "true or false", value)
        return value

    def expression(self, key: str, known: frozenset[str]) -> Expression:
        return to_expression(self.take(key), f"{self.where}.{key}", known)

    def expressions(self, key: str, known: frozenset[str]) -> tuple[Expression, ...]:
        return tuple(to_expression(value, f"{self.where}.{key}[{i}]", known) for i, value in enumerate(self.items(key)))

    def done(self) -> None:
        if self._taken != len(self._values):
            names = sorted(self._values)
            raise ManifestError(f"{self.where}: unknown key among {shown(names)}", where=self.where, got=names,
                                expected=None)


_SHOWN = reprlib.Repr()  # of lists in lists only what is shown, however deep they are
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = _SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = 80


def shown(value: Any, length: int = 80) -> str:
    """A value for a message: short, and without control characters."""
    text = _SHOWN.repr(value)
    return text if len(text) <= length else text[:length - 3] + "..."


def wrong(where: str, expected: str, got: Any) -> ManifestError:
    """The error of a value; what it shows of it is short."""
    return ManifestError(f"{where}: expected {expected}, got {shown(got)}", where=where, expected=expected, got=got)


def to_integer(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise wrong(where, f"an integer in {low} .. {high}", value)
    return value


def to_number(value: Any, where: str) -> int | float:
    if type(value) not in (int, float) or not abs(value) < math.inf:  # 1e999 is a number of JSON
        raise wrong(where, "a number", value)
    return value


_NAMES: dict[str, frozenset[str]] = {}  # of expressions that were well formed, by their text


def _names(value: Any) -> frozenset[str]:
    """The names of an expression; ``ExpressionError`` where it is not well formed. Of twelve thousand lists of a
    pack five hundred differ, and looking one up is cheaper than walking over it."""
    try:
        text = repr(value)
    except RecursionError:
        expression.validate(value)  # says how deep it may be
        raise
    if text not in _NAMES:
        expression.validate(value)
        if len(_NAMES) == 4096:
            _NAMES.clear()
        _NAMES[text] = frozenset(expression.names(value))
    return _NAMES[text]


def to_expression(value: Any, where: str, known: frozenset[str]) -> Expression:
    """One that is well formed and uses known names."""
    if type(value) is str and value in known:
        return value
    try:
        unknown = _names(value) - known
    except ExpressionError as error:
        raise ManifestError(f"{where}: {error}", where=where, expected="an expression", got=value) from None
    if unknown:
        raise ManifestError(f"{where}: {expression.to_text(value)} uses unknown {', '.join(sorted(unknown))}",
                            where=where, expected=sorted(known), got=sorted(unknown))
    return value


def unique(names: Iterable[str], where: str) -> None:
    """Refuses a name that appears twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateError(f"{where}: {shown(name)} appears twice", where=where, got=name)
        seen.add(name)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"a key appears twice among {shown([key for key, _ in pairs])}")
    return value


# Of the marks that stand between values. A value of three bytes may take a hundred of memory, so bytes alone bound it
# badly; what a pack says of a thousand artifacts has half a million marks.
MAX_MARKS = 2_000_000


def decode(data: bytes, file: str, limit: int) -> Any:
    """The value of a document, of at most ``limit`` bytes and ``MAX_MARKS`` marks."""
    if len(data) > limit:
        raise ManifestSyntaxError(f"{file}: {len(data)} bytes, at most {limit} are read", expected=limit, got=len(data))
    marks = len(data) - len(data.translate(None, b",:[{"))
    if marks > MAX_MARKS:
        raise ManifestSyntaxError(f"{file}: {marks} values and keys, at most {MAX_MARKS} are read", expected=MAX_MARKS,
                                  got=marks)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestSyntaxError(f"{file} is no JSON document: {error}") from None


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """While a document is read it becomes half a million objects, none of them garbage: looking for some takes a third
    of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
