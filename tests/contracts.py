"""What plug-ins rely on in packages of others, read from their files without importing them.

A record, ``tests/data/contracts/<package>-<version>.json``, has of each name where it is defined, and of each
definition what it is: of a class its bases, methods and fields; of a function or a method its parameters with their
defaults, its decorators, which attributes of ``self`` it reads and sets, and which parameters of a layer it registers,
always or at times; of a field or another name its default.

    python tests/contracts.py check PLACE ...      # wheels, or folders of unpacked ones: what moved since the record
    python tests/contracts.py record PLACE ...     # writes the record of each one's version

``CONTRACTS=PLACE:PLACE`` has the tests hold plug-ins to these, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import zipfile
from pathlib import Path

from contract_names import ENGINES, relied_on
from contract_reader import Read, Reader, Record

DATA = Path(__file__).parent / "data"
RECORDS = DATA / "contracts"
STAND_IN = DATA / "sglang_stand_in"  # a folder with what SGLang's wheel has of the names that are relied on
# Who calls a method sees these of its decorators; those of its attributes that others rely on a constructor sets.
KINDS = ("abstractmethod", "classmethod", "property", "staticmethod")
SEEN = ("bases", "parameters", "registers", "registers_at_times", "default")


def recorded(package: str) -> list[Record]:
    """All versions that there is a record of, the newest last."""
    found = [json.loads(path.read_text()) for path in RECORDS.glob(f"{package}-*.json")]
    return sorted(found, key=lambda record: [int(number) for number in re.findall(r"\d+", record["version"])])


def nearest(package: str, version: str) -> Record:
    """The record of a version, or the newest one."""
    records = recorded(package)
    return next((record for record in records if record["version"] == version), records[-1])


def named() -> list[Path]:
    """Wheels and folders that ``CONTRACTS`` names, joined as ``PATH`` is."""
    return [Path(place) for place in os.environ.get("CONTRACTS", "").split(os.pathsep) if place]


def opened(place: Path) -> tuple[str, str, Read]:
    """Package, version and files of a wheel, or of a folder of one that was unpacked.

    Raises FileNotFoundError where it is neither, of a package that has a plug-in here.
    """
    if place.is_dir():
        names, files, archive = [path.name for path in place.iterdir()], None, None
    else:
        archive = zipfile.ZipFile(place)
        files = frozenset(archive.namelist())
        names = [name.partition("/")[0] for name in files]

    def read(name: str) -> str | None:
        if archive is not None:
            return archive.read(name).decode() if name in files else None
        return (place / name).read_text() if (place / name).is_file() else None

    found = {match.groups() for name in names if (match := re.fullmatch(r"(\w+)-([^-]+)\.dist-info", name))}
    if len(found) != 1 or next(iter(found))[0] not in ENGINES:
        raise FileNotFoundError(f"{place} is no wheel and no folder of one of {', '.join(ENGINES)}")
    return (*found.pop(), read)


def record_of(package: str, version: str, read: Read) -> Record:
    """What is there now of all that the plug-in relies on."""
    names = relied_on(package)
    reader = Reader(read, {".".join(name): members for name, members in names.items() if members})
    places = {".".join(name): reader.define(*name) for name in names}
    return {
        "package": package,
        "version": version,
        "names": {name: place for name, place in places.items() if place is not None},
        "definitions": dict(sorted(reader.definitions.items())),
    }


def missing(record: Record) -> list[str]:
    """Names that the plug-in relies on and the record has not."""
    there, gone = facts(record), []
    for (module, name), members in relied_on(record["package"]).items():
        place = record["names"].get(f"{module}.{name}")
        if place is None:
            gone.append(f"{module}.{name}")
        else:
            gone += sorted({f"{place}.{member}" for member in members} - there.keys())
    return [f"{name} is not there" for name in gone]


def differences(was: Record, now: Record) -> list[str]:
    """A line for each name that is not as it was recorded, and for each that is left to us now."""
    before, after = facts(was), facts(now)
    lines = [f"{name} is at {now['names'][name]}, was at {place}" for name, place in was["names"].items()
             if now["names"].get(name, place) != place]  # fmt: skip
    for name, fact in before.items():
        if name not in after:
            lines.append(f"{name} is not there")
            continue
        found = after[name]
        lines += [f"{name}: {key} was {fact.get(key)}, is {found.get(key)}"
                  for key in sorted({*fact, *found}) if fact.get(key) != found.get(key)]  # fmt: skip
    added = [name for name, fact in after.items() if name not in before and "abstractmethod" in fact.get("kind", [])]
    return [*lines, *(f"{name} is abstract, and was not there" for name in added)]


def facts(record: Record) -> dict[str, Record]:
    """By name, members of classes among them, what others see of it: not what goes on inside of a function."""
    found = {}
    for place, definition in record["definitions"].items():
        members = {**definition.get("methods", {}), **definition.get("fields", {})}
        for name, fact in {place: definition, **{f"{place}.{name}": fact for name, fact in members.items()}}.items():
            found[name] = {key: fact[key] for key in SEEN if key in fact}
            if kind := [word for word in fact.get("kind", []) if word in KINDS]:
                found[name]["kind"] = kind
            if name.endswith(".__init__"):
                found[name]["sets"] = fact.get("sets", [])
    return found


def written(value: object, depth: int = 4, indent: str = "") -> str:
    """As JSON, a line for each member of a class: a change of one is a line of a diff."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value)
    lines = [f"{indent} {json.dumps(name)}: {written(each, depth - 1, f'{indent} ')}" for name, each in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def main(arguments: list[str]) -> int:
    """Of a command; 1 where something has moved, or is not there to be recorded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["check", "record"])
    parser.add_argument("places", nargs="+", type=Path, metavar="PLACE")
    given = parser.parse_args(arguments)
    status = 0
    for place in given.places:
        package, version, read = opened(place)
        now = record_of(package, version, read)
        lines = missing(now)
        if given.command == "check":
            was = nearest(package, version)
            lines = [*dict.fromkeys(lines + differences(was, now))]
            said = f"since {was['version']}, of which {len(facts(was))} names are recorded, {len(lines)} moved"
        elif lines:
            said = "not recorded"
        else:
            (RECORDS / f"{package}-{version}.json").write_text(written(now) + "\n")
            said = f"{len(facts(now))} names recorded"
        print(f"{package} {version}: {said}", *lines, sep="\n  ")
        status |= bool(lines)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
