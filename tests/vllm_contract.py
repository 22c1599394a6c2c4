"""What the plug-in finds in vLLM, read from its files without importing them: signatures, bases, fields.

Which names these are, the plug-in's own imports say. A record has of each where it is defined; of a class its bases in
turn, of a method what it is asked with and which attributes of ``self`` it reads and sets.

    python tests/vllm_contract.py WHEEL_OR_FOLDER ...     # writes the record of each version, the newest last
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

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).parent / "data" / "vllm_contract.json"
PLUGIN = [ROOT / "integrations" / f"vllm_{name}.py" for name in ("plugin", "moe", "mxfp4", "experts")]
# What no import names: the group of the entry point, and what objects are that functions are given.
BESIDES = (
    ("vllm.plugins", "DEFAULT_PLUGINS_GROUP"),
    ("vllm.platforms.interface", "Platform"),
    ("vllm.platforms.interface", "DeviceCapability"),
)
Record = dict[str, Any]
Read = Callable[[str], str | None]  # the text of a file of vLLM, None where there is none


class Moved(AssertionError):
    """What the plug-in relies on is not there any more, or not as it was."""


def opened(place: Path) -> tuple[str, Read]:
    """The version of vLLM in a wheel or in a folder of one unpacked, and its files."""
    if place.is_dir():
        names = [path.name for path in place.iterdir()]

        def read(name: str) -> str | None:
            path = place / name
            return path.read_text() if path.is_file() else None
    else:
        archive = zipfile.ZipFile(place)
        files = frozenset(archive.namelist())
        names = [name.partition("/")[0] for name in files]

        def read(name: str) -> str | None:
            return archive.read(name).decode() if name in files else None

    versions = {found[1] for name in names if (found := re.fullmatch(r"vllm-([^-]+)\.dist-info", name))}
    if len(versions) != 1:
        raise FileNotFoundError(f"{place} is no wheel of vLLM, and no folder of one")
    return versions.pop(), read


def imported() -> Iterator[tuple[str, str]]:
    """Module and name of all that the plug-in takes from vLLM; of a module that it imports, what it uses of it."""
    for path in PLUGIN:
        tree = ast.parse(path.read_text())
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module.startswith("vllm."):
                continue
            for alias in node.names:
                used = {attribute.attr for attribute in attributes if ast.unparse(attribute.value) == alias.name}
                if alias.name.islower() and used and alias.name != "current_platform":
                    yield from ((f"{node.module}.{alias.name}", name) for name in sorted(used))
                elif alias.name != "current_platform":
                    yield node.module, alias.name
    yield from BESIDES


def record(place: Path) -> Record:
    """Of one version. Raises ``Moved`` for a name that is not there."""
    version, read = opened(place)
    reader = Reader(read)
    names = {f"{module}.{name}": reader.find(module, name) for module, name in sorted(set(imported()))}
    return {"version": version, "names": names, "definitions": reader.definitions}


class Reader:
    """Finds definitions in the files of one version."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self.trees: dict[str, ast.Module | None] = {}
        self.definitions: dict[str, Record] = {}

    def tree(self, module: str) -> ast.Module | None:
        if module not in self.trees:
            path = module.replace(".", "/")
            text = self.read(f"{path}.py") or self.read(f"{path}/__init__.py")
            self.trees[module] = ast.parse(text) if text is not None else None
        return self.trees[module]

    def find(self, module: str, name: str) -> str:
        """Where the name is defined, followed through imports; its definition is then among ``definitions``."""
        tree = self.tree(module)
        if tree is None:
            raise Moved(f"there is no module {module}, of which the plug-in takes {name}")
        for node in _statements(tree):
            if isinstance(node, ast.ImportFrom):
                origin = next((alias.name for alias in node.names if name == (alias.asname or alias.name)), None)
                if origin is not None:
                    return self.find(_absolute(self, module, node), origin)
            elif name in _defined(node):
                place = f"{module}.{name}"
                if place not in self.definitions:
                    self.definitions[place] = {}
                    self.definitions[place] = self.describe(module, node)
                return place
        raise Moved(f"{module} has no {name}")

    def describe(self, module: str, node: ast.stmt) -> Record:
        if isinstance(node, ast.FunctionDef):
            return {"function": signature(node.args)}
        if isinstance(node, ast.ClassDef):
            return self.describe_class(module, node)
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        return {"value": value.value} if isinstance(value, ast.Constant) else {}

    def describe_class(self, module: str, node: ast.ClassDef) -> Record:
        bases = [ast.unparse(base) for base in node.bases]
        methods = {part.name: method(part) for part in node.body if isinstance(part, ast.FunctionDef)}
        fields = {name: _literal(part) for part in node.body for name in _defined(part) if name not in methods}
        return {"bases": [self.base(module, base) for base in bases], "methods": methods, "fields": fields}

    def base(self, module: str, name: str) -> str:
        """Where a base is defined in vLLM, or its name."""
        head, _, rest = name.rpartition(".")
        for node in _statements(self.tree(module)):
            if isinstance(node, ast.Import) and head in [alias.asname or alias.name for alias in node.names]:
                origin = next(alias.name for alias in node.names if head == (alias.asname or alias.name))
                return self.find(origin, rest) if origin.startswith("vllm.") else name
            if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
                return self.find(module, name) if _absolute(self, module, node).startswith("vllm.") else name
        return self.find(module, name) if any(name in _defined(part) for part in self.tree(module).body) else name


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """At the top of a file, below conditions as well."""
    for node in tree.body:
        yield from [node] if not isinstance(node, ast.If) else [*node.body, *node.orelse]


def _absolute(reader: Reader, module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = reader.read(f"{module.replace('.', '/')}.py") is None
    parts = module.split(".")
    above = parts[: len(parts) + is_package - node.level]
    return ".".join([*above, *([node.module] if node.module else [])])


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _literal(node: ast.stmt) -> str | int | float | None:
    value = getattr(node, "value", None)
    return value.value if isinstance(value, ast.Constant) and not isinstance(value.value, bytes) else None


def signature(arguments: ast.arguments) -> list[str]:
    """Parameters as they are written, without their types: ``name``, ``name=default``, ``*``, ``/``, ``*rest``."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    words = [_parameter(*pair) for pair in zip(plain, defaults, strict=True)]
    if arguments.posonlyargs:
        words.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg or arguments.kwonlyargs:
        words.append(f"*{arguments.vararg.arg if arguments.vararg else ''}")
    words += [_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*words, *([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])]


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return argument.arg if default is None else f"{argument.arg}={ast.unparse(default)}"


def method(node: ast.FunctionDef) -> Record:
    selves: dict[str, set[str]] = {"reads": set(), "sets": set()}
    registered = []
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
            selves["sets" if isinstance(part.ctx, ast.Store) else "reads"].add(part.attr)
        if isinstance(part, ast.Call) and ast.unparse(part.func) == "layer.register_parameter":
            registered.append(ast.literal_eval(part.args[0]))
    found = {"parameters": signature(node.args), "kind": sorted(ast.unparse(each) for each in node.decorator_list)}
    found |= {name: sorted(attributes) for name, attributes in selves.items() if attributes}
    return found | ({"registers": registered} if registered else {})


def written(records: list[Record]) -> str:
    """As JSON, a line for each definition: a change of one is a line of a diff."""
    texts = []
    for entry in records:
        lines = [f"  {json.dumps(place)}: {json.dumps(facts)}" for place, facts in sorted(entry["definitions"].items())]
        head = f' "version": {json.dumps(entry["version"])},\n "names": {json.dumps(entry["names"])},\n'
        texts.append("{\n" + head + ' "definitions": {\n' + ",\n".join(lines) + "\n }\n}")
    return "[" + ",\n".join(texts) + "]\n"


if __name__ == "__main__":
    records = [record(Path(place)) for place in sys.argv[1:]]
    RECORD.write_text(written(records))
