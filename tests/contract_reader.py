"""Definitions in the sources of a package, as text: what can be known of them without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]
Read = Callable[[str], str | None]  # the text of a file of the package, None where there is none


class Reader:
    """Finds names in modules. ``members`` has, by class, the members that are asked for; of other classes all are, and
    those of what they are made from as well."""

    def __init__(self, read: Read, members: dict[str, set[str]]) -> None:
        self.read = read
        self.members = members
        self.trees: dict[str, ast.Module | None] = {}
        self.definitions: dict[str, Record] = {}

    def define(self, module: str, name: str) -> str | None:
        """Where the name is defined; that is then among ``definitions``. None where it is not there."""
        found = self.locate(module, name)
        if found is None:
            return None
        place, node = f"{found[0]}.{_names(found[1])[0]}", found[1]
        if place not in self.definitions:
            self.definitions[place] = {}  # of a class that is its own base somewhere below
            self.definitions[place] = self.describe(found[0], node, self.members.get(f"{module}.{name}"))
        return place

    def locate(self, module: str, name: str) -> tuple[str, ast.stmt] | None:
        """The module in which the name is defined, followed through imports, and the statement."""
        for node in statements(self.tree(module)):
            if isinstance(node, ast.ImportFrom):
                origins = {alias.asname or alias.name: alias.name for alias in node.names}
                if name in origins:
                    return self.locate(self.absolute(module, node), origins[name])
            elif name in _names(node):
                return module, node
        return None

    def tree(self, module: str) -> ast.Module | None:
        if module not in self.trees:
            path = module.replace(".", "/")
            text = self.read(f"{path}.py") or self.read(f"{path}/__init__.py")
            self.trees[module] = ast.parse(text) if text is not None else None
        return self.trees[module]

    def absolute(self, module: str, node: ast.ImportFrom) -> str:
        """The module that an import of ``module`` names, which may be by its place beside that."""
        if not node.level:
            return node.module or ""
        is_package = self.read(f"{module.replace('.', '/')}.py") is None
        parts = module.split(".")
        above = parts[: len(parts) + is_package - node.level]
        return ".".join([*above, *([node.module] if node.module else [])])

    def describe(self, module: str, node: ast.stmt, members: set[str] | None) -> Record:
        if isinstance(node, ast.FunctionDef):
            return function(node)
        if not isinstance(node, ast.ClassDef):
            return _default(node)
        bases = [self.base(module, ast.unparse(base), members is None) for base in node.bases]
        methods: Record = {}
        fields: Record = {}
        for part in statements(node):
            if isinstance(part, ast.FunctionDef):
                methods.setdefault(part.name, function(part))
            else:
                fields |= {name: _default(part) for name in _names(part)}
        if members is not None:
            methods = {name: facts for name, facts in methods.items()
                       if name in members or "abstractmethod" in facts["kind"]}  # fmt: skip
            fields = {name: facts for name, facts in fields.items() if name in members}
        return {"bases": bases, "methods": methods, "fields": fields}

    def base(self, module: str, name: str, follow: bool) -> str:
        """Where a base is defined in the package, or its name."""
        head, _, last = name.rpartition(".")
        imports = [node for node in statements(self.tree(module)) if isinstance(node, ast.Import)]
        modules = {alias.asname or alias.name: alias.name for node in imports for alias in node.names}
        place = (modules.get(head, head), last) if head else (module, name)
        found = self.locate(*place)
        if found is None:
            return name
        return self.define(*place) if follow else f"{found[0]}.{_names(found[1])[0]}"


def statements(node: ast.AST | None) -> Iterator[ast.stmt]:
    """Of a module or a class, those under conditions among them."""
    for name in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, name, []):
            if isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
                yield from statements(child)
            else:
                yield child


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _default(node: ast.stmt) -> Record:
    value = getattr(node, "value", None)
    known = isinstance(value, ast.Constant) and isinstance(value.value, str | int | float | None)
    return {"default": value.value} if known else {}


def function(node: ast.FunctionDef) -> Record:
    found: Record = {
        "parameters": signature(node.args),
        "kind": sorted(ast.unparse(decorator) for decorator in node.decorator_list),
    }
    selves: dict[str, set[str]] = {"reads": set(), "sets": set()}
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
            selves["sets" if isinstance(part.ctx, ast.Store) else "reads"].add(part.attr)
    always = {id(part.value) for part in node.body if isinstance(part, ast.Expr)}
    registered: dict[str, list[str]] = {"registers": [], "registers_at_times": []}
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and ast.unparse(part.func).endswith(".register_parameter"):
            registered["registers" if id(part) in always else "registers_at_times"].append(_text(part.args[0]))
    found |= {name: sorted(attributes) for name, attributes in selves.items() if attributes}
    return found | {name: names for name, names in registered.items() if names}


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) else ast.unparse(node)


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
