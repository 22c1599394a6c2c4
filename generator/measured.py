"""Reads the files of ``select.measured``: what benchmarks/tune.py recorded of a family, beside kernels.yaml."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pydantic import ValidationError

from generator import schema
from generator.problems import Problems


class Measured(NamedTuple):
    """A row, and where it stands."""

    where: str
    row: schema.MeasuredRow


def read(folder: Path, families: tuple[str, ...], files: list[str], problems: Problems) -> list[Measured]:
    """The rows of a family's files, given by their path from ``folder``; what is wrong goes to ``problems``.

    families: this one and those it builds on, whose times are its own.
    """
    found = []
    for index, file in enumerate(files):
        entry = f"families.{families[0]}.select.measured[{index}]"
        at = f"{entry}: {file}"
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            problems.add(entry, f"{file!r} is no path below the folder of this file")
            continue
        if file in files[:index]:
            problems.add(entry, f"duplicate file {file!r}")
        try:
            recording = schema.Recording.model_validate_json((folder / file).read_bytes())
        except OSError as error:
            problems.add(at, str(error.strerror))
            continue
        except ValidationError as error:
            for problem in schema.problems(error):
                problems.add(at, problem)
            continue
        if recording.family not in families:
            problems.add(at, f"family: these are times of {recording.family!r}")
        found += [Measured(f"{at}: rows[{number}]", row) for number, row in enumerate(recording.rows)]
    return found
