"""Modules that stand in for vLLM's: classes of a record of ``contracts``, with what is inherited of them.

A constructor keeps what it is given, by the names of its parameters. Any other method, and any function, raises
NotImplementedError with its name: a test replaces what it goes through.
"""

from __future__ import annotations

import abc
import enum
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from contract_reader import Record

PACKAGE = "integrations"
OURS = [f"{PACKAGE}.vllm_{name}" for name in ("plugin", "experts", "moe", "mxfp4")]


@contextmanager
def installed(record: Record) -> Iterator[dict[str, types.ModuleType]]:
    """The plug-in's modules by their short names, imported anew over stand-ins; all are gone afterwards."""
    before = {name: module for name, module in sys.modules.items() if name in OURS or name.partition(".")[0] == "vllm"}
    for name in before:
        del sys.modules[name]
    made = modules(record)
    sys.modules.update(made)
    try:
        yield made | {name.rpartition("_")[2]: importlib.import_module(name) for name in OURS}
    finally:
        for name in [name for name in sys.modules if name in OURS or name.partition(".")[0] == "vllm"]:
            del sys.modules[name]
        sys.modules.update(before)


def modules(record: Record) -> dict[str, types.ModuleType]:
    """All that the record defines, where it is defined and where it is taken from."""
    builder = _Builder(record)
    for place, origin in record["names"].items():
        module, _, name = place.rpartition(".")
        setattr(builder.module(module), name, builder.definition(origin))
    builder.module("vllm.platforms").current_platform = types.SimpleNamespace()
    return builder.modules


class _Builder:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.modules: dict[str, types.ModuleType] = {}
        self.made: dict[str, Any] = {}

    def module(self, name: str) -> types.ModuleType:
        """With the packages that it is in."""
        if name not in self.modules:
            self.modules[name] = module = types.ModuleType(name)
            module.__path__ = []
            above, _, last = name.rpartition(".")
            if above:
                setattr(self.module(above), last, module)
        return self.modules[name]

    def definition(self, place: str) -> Any:
        if place not in self.made:
            facts = self.record["definitions"][place]
            name = place.rpartition(".")[2]
            if "bases" in facts:
                self.made[place] = self.class_of(name, facts)
            elif "parameters" in facts:
                self.made[place] = _unimplemented(place)
            else:
                self.made[place] = facts.get("default", name)
        return self.made[place]

    def class_of(self, name: str, facts: Record) -> type:
        fields = {field: fact.get("default") for field, fact in facts["fields"].items()}
        if "Enum" in facts["bases"]:
            return enum.Enum(name, {field: default or field for field, default in fields.items()})
        known = [self.definition(base) for base in facts["bases"] if base in self.record["definitions"]]
        methods = {method: _method(f"{name}.{method}", recorded) for method, recorded in facts["methods"].items()}
        return abc.ABCMeta(name, tuple(known), {**fields, **methods})


def _method(place: str, recorded: Record) -> Any:
    name, kind = place.rpartition(".")[2], recorded["kind"]
    function = _keeping(recorded) if name == "__init__" else _unimplemented(place)
    if "abstractmethod" in kind:
        function = abc.abstractmethod(function)
    for word, wrapper in (("property", property), ("staticmethod", staticmethod), ("classmethod", classmethod)):
        if word in kind:
            return wrapper(function)
    return function


def _keeping(recorded: Record) -> Callable[..., None]:
    """A constructor that sets attributes by the names of its parameters; what it may do without, and others that vLLM's
    sets, are None."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    words = [word.partition("=") for word in recorded["parameters"] if not word.startswith("*")]
    signature = inspect.Signature([
        inspect.Parameter(name, kind, default=None if equals else inspect.Parameter.empty) for name, equals, _ in words
    ])  # fmt: skip

    def __init__(*arguments: Any, **named: Any) -> None:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        given = dict(bound.arguments)
        vars(given.pop("self")).update(dict.fromkeys(recorded.get("sets", [])) | given)

    return __init__


def _unimplemented(place: str) -> Callable[..., Any]:
    def stands_in(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{place} of vLLM is not here")

    return stands_in
