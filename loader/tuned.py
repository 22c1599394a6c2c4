"""What a user has measured on a machine: a file of rows, each of which says which cubin runs a problem fastest there.

``LOADER_TUNED`` names the file, and nothing else does. It is about the machine and so about the whole process, where an
argument would be of one call; and there is no place where one is looked for, so that nobody's file decides unasked. It
is read where packs are read first, and anew after ``reload``. A row chooses among the kernels of the packs and can do
nothing else. ``tune`` writes it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import files
from .errors import ManifestError, TuningError
from .fields import Fields, decode, to_number, wrong

VARIABLE = "LOADER_TUNED"
SCHEMA = 1
MAX_BYTES = 8 << 20
MAX_NUMBER = 1e18  # of a feature, and of microseconds
_SHA256 = re.compile(r"[0-9a-f]{64}")


class TunedRow(NamedTuple):
    """The variant that was fastest for one problem on one device.

    cubin: sha256 (hex) of its binary, with which the row dies. features: those of the problem, by the names that its
    kernel gives them. spread: (longest - shortest) / median of its times. default: the variant that it beat. versions:
    of the loader, the driver and the pack, for people.
    """

    kernel: str
    variant: str
    cubin: str
    arch: str
    device: str
    features: Mapping[str, float]
    microseconds: float
    spread: float
    default: str
    default_microseconds: float
    versions: Mapping[str, str]


def from_environment() -> tuple[TunedRow, ...]:
    """The rows of the file that ``LOADER_TUNED`` names, none where it is not set; ``TuningError`` for a wrong file."""
    path = os.environ.get(VARIABLE)
    return read(path) if path else ()


def read(path: str) -> tuple[TunedRow, ...]:
    """All rows of a file; ``TuningError`` names the first thing in it that ``write`` does not write."""
    with reading(path):
        fields = Fields(document(path), "the file")
        fields.choice("schema", (SCHEMA,))
        rows = tuple(map(_row, fields.objects("rows")))
        fields.done()
        return rows


def write(path: str, rows: Iterable[TunedRow]) -> None:
    """Replace the file in one step; ``TuningError`` where that cannot be done, or it would be too large to be read."""
    content = to_text(rows).encode()
    if len(content) > MAX_BYTES:
        raise TuningError(f"{path}: its rows are {len(content)} bytes, at most {MAX_BYTES} are read; begin a new file",
                          file=path, expected=MAX_BYTES, got=len(content))
    try:
        files.replace(path, content)
    except OSError as error:
        raise TuningError(f"{path} cannot be written: {error.strerror}", file=path, expected="a file",
                          got=error.strerror) from error


def to_text(rows: Iterable[TunedRow]) -> str:
    """A file of these rows."""
    return json.dumps({"schema": SCHEMA, "rows": [row._asdict() for row in rows]}, indent=1)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """What is wrong with a file becomes a ``TuningError`` that names it."""
    try:
        yield
    except ManifestError as error:
        raise TuningError(f"{path}: {error}", file=path, expected=error.facts.get("expected"),
                          got=error.facts.get("got")) from None


def document(path: str) -> Any:
    """The JSON value of a file, as yet unchecked."""
    try:
        data = files.read(path, MAX_BYTES)
    except (OSError, ValueError) as error:  # the latter of a name with a zero in it
        why = getattr(error, "strerror", None) or str(error)
        raise TuningError(f"{path} cannot be read: {why}", file=path, expected="a file", got=why) from error
    return decode(data, "the file", MAX_BYTES)


def number(value: Any, where: str) -> int | float:
    if not 0 <= to_number(value, where) <= MAX_NUMBER:
        raise wrong(where, f"a number in 0 .. {MAX_NUMBER:g}", value)
    return value


def _row(fields: Fields) -> TunedRow:
    numbers = {key: number(fields.take(key), f"{fields.where}.{key}")
               for key in ("microseconds", "spread", "default_microseconds")}
    features = {key: number(value, f"{fields.where}.features.{key}")
                for key, value in fields.mapping("features").items()}
    versions = fields.mapping("versions")
    row = TunedRow(
        **{key: fields.text(key) for key in ("kernel", "variant", "arch", "device", "default")},
        cubin=fields.text("cubin", _SHA256), features=features, **numbers,
        versions={key: Fields(versions, f"{fields.where}.versions").text(key) for key in versions})
    fields.done()
    return row
