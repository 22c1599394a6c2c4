"""What plug-ins rely on in packages of others, read from their files without importing them.

A record, ``tests/data/contract_<package>.json``, has a version and of each name a fact: of a function its parameters
with their defaults, of a method that sets up an object also which attributes it sets or which parameters of a layer it
registers always, of a class its bases and abstract methods, of a field or a name its default.

    python tests/contracts.py check PLACE ...      # wheels, or folders of unpacked ones: what has moved
    python tests/contracts.py record PLACE ...     # the names of the record, as they are there now
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
Fact = dict[str, Any]
Read = Callable[[str], str | None]  # the text of a file, None where there is none


def record_of(package: str) -> dict[str, Any]:
    return json.loads((DATA / f"contract_{package}.json").read_text())


def opened(place: Path) -> tuple[str, str, Read]:
    """Package, version and files of a wheel, or of a folder of one that was unpacked."""
    if place.is_dir():
        names, text = [path.name for path in place.iterdir()], None
    else:
        archive = zipfile.ZipFile(place)
        text = {name: archive for name in archive.namelist()}
        names = [name.partition("/")[0] for name in text]

    def read(name: str) -> str | None:
        if text is not None:
            return text[name].read(name).decode() if name in text else None
        return (place / name).read_text() if (place / name).is_file() else None

    found = {match.groups() for name in names if (match := re.fullmatch(r"(\w+)-([^-]+)\.dist-info", name))}
    if len(found) != 1:
        raise FileNotFoundError(f"{place} is no wheel and no folder of one")
    ((package, version),) = found
    return package, version, read


def fact(read: Read, name: str) -> Fact | None:
    """Of ``module:qualified.name``; None where it is not there."""
    module, _, path = name.partition(":")
    file = module.replace(".", "/")
    text = read(f"{file}.py") or read(f"{file}/__init__.py")
    node: ast.AST | None = None if text is None else ast.parse(text)
    for part in path.split("."):
        node = next((child for child in _body(node) if _name(child) == part), None)
    return None if node is None else _described(node)


def differences(record: dict[str, Any], read: Read) -> list[str]:
    """A line for each name that is not as it was recorded."""
    lines = []
    for name, was in record["facts"].items():
        found = fact(read, name)
        if found is None:
            lines.append(f"{name} is not there")
        else:
            lines += [f"{name}: {key} was {was.get(key)}, is {found.get(key)}" for key in sorted({*was, *found})
                      if was.get(key) != found.get(key)]  # fmt: skip
    return lines


def _body(node: ast.AST | None) -> Iterator[ast.AST]:
    """Statements right in a module or a class, those under a condition among them."""
    for child in getattr(node, "body", []) if not isinstance(node, ast.FunctionDef) else []:
        yield child
        if isinstance(child, ast.If | ast.Try):
            yield from _body(child)


def _name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return ast.unparse(node.targets[0])
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return getattr(node, "name", None)


def _described(node: ast.AST) -> Fact:
    if isinstance(node, ast.FunctionDef):
        return _function(node)
    if isinstance(node, ast.ClassDef):
        methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
        abstract = sorted(method.name for method in methods if "abstractmethod" in _decorators(method))
        return {"bases": [ast.unparse(base) for base in node.bases], "abstract": abstract}
    value = getattr(node, "value", None)
    return {"default": ast.unparse(value)} if isinstance(value, ast.Constant) else {}


def _function(node: ast.FunctionDef) -> Fact:
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    found: Fact = {"parameters": ast.unparse(node.args)}
    if marks := [mark for mark in _decorators(node) if mark in ("property", "classmethod", "staticmethod")]:
        found["is"] = marks
    if node.name == "__init__":
        assignments = [part for part in ast.walk(node) if isinstance(part, ast.Assign | ast.AnnAssign)]
        targets = [target for part in assignments for target in getattr(part, "targets", None) or [part.target]]
        found["sets"] = sorted(
            {
                target.attr
                for target in targets
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
            }
        )
    calls = [part.value for part in node.body if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call)]
    registered = [call.args[0].value for call in calls if ast.unparse(call.func).endswith(".register_parameter")]
    return found | ({"registers": registered} if registered else {})


def _decorators(node: ast.FunctionDef) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def main(arguments: list[str]) -> int:
    """Of a command; 1 where something has moved."""
    command, *places = arguments
    moved = False
    for place in map(Path, places):
        package, version, read = opened(place)
        record = record_of(package)
        if command == "record":
            facts = {name: fact(read, name) for name in record["facts"]}
            text = json.dumps({"package": package, "version": version, "facts": facts}, indent=1)
            (DATA / f"contract_{package}.json").write_text(text + "\n")
        lines = differences(record_of(package), read)
        moved |= bool(lines)
        print(f"{package} {version}: {len(record['facts'])} names, {len(lines)} moved", *lines, sep="\n  ")
    return int(moved)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
