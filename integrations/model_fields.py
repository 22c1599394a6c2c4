"""JSON that others wrote, an entry at a time: what is not what it must be is named, with what was expected."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path

LIMIT = 16 << 20  # bytes of a file


class ModelError(ValueError):
    """A configuration that is not what it must be, or one of a model that is not known here."""


class Fields:
    """A JSON object. ``where`` names it in errors: the file, and the keys that lead to it. null is not there."""

    def __init__(self, where: str, entries: Mapping[str, object]) -> None:
        self.where, self.entries = where, entries

    def __contains__(self, key: str) -> bool:
        return self.entries.get(key) is not None

    def size(self, key: str, default: int | None = None, least: int = 1, most: int = (1 << 31) - 1) -> int:
        expected = f"a whole number from {least} to {most}"
        value = self._value(key, default, expected)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, expected)
        return value

    def word(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default, "a word")
        if not isinstance(value, str):
            raise self.wrong(key, "a word")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """() where the key is not there."""
        value = self.entries.get(key) or []
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.wrong(key, "a list of words")
        return tuple(value)

    def sizes(self, key: str) -> tuple[int, ...]:
        """Whole numbers, at least 0; () where the key is not there."""
        value = self.entries.get(key) or []
        if not isinstance(value, list) or not all(type(entry) is int and 0 <= entry < 1 << 31 for entry in value):
            raise self.wrong(key, "a list of whole numbers")
        return tuple(value)

    def part(self, key: str) -> Fields:
        value = self._value(key, None, "an object")
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(f"{self.where}: {key}", value)

    def parts(self) -> list[Fields]:
        """Every entry, all of which are objects."""
        return [self.part(key) for key in self.entries]

    def wrong(self, key: str, expected: str) -> ModelError:
        came = reprlib.repr(self.entries[key]) if key in self.entries else "nothing"
        return ModelError(f"{self.where}: {key}: expected {expected}, got {came}")

    def _value(self, key: str, default: object, expected: str) -> object:
        value = self.entries.get(key)
        if value is None and default is None:
            raise self.wrong(key, expected)
        return default if value is None else value


def read(path: Path) -> Fields:
    """The object that a file holds."""
    with path.open("rb") as file:
        text = file.read(LIMIT + 1)
    if len(text) > LIMIT:
        raise ModelError(f"{path} has more than {LIMIT} bytes")
    try:
        entries = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: expected an object, got {reprlib.repr(entries)}")
    return Fields(str(path), entries)
