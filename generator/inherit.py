"""Families of kernels.yaml that build on another and say only what differs: merged before anything is checked.

A mapping is merged key by key; a key whose value is null is left out. Entries of a list that have a name (arguments,
scalars, parameters, values) are merged with the entry of the same name, in its place; new ones follow. Any other value
replaces that of the family before. ``without`` names arguments, scalars and parameters that are left out. Parameters of
a target are merged in the same way with those of its family.
"""

from __future__ import annotations

from typing import Any

from generator.errors import MatrixError

# What an entry of a list is called by.
_NAMES = ("name", "tensor_map", "pointer", "scalar", "argument")


def resolve(data: Any, file: str) -> dict[str, tuple[str, ...]]:
    """Replace every family of ``data`` that extends another by the merged one; what is of another shape is left to the
    schema. Returns the families that each builds on, the nearest first."""
    families = data.get("families") if isinstance(data, dict) else None
    if not isinstance(families, dict):
        return {}
    ancestors: dict[str, tuple[str, ...]] = {}
    for name, family in families.items():
        if not isinstance(family, dict) or "extends" not in family:
            ancestors[name] = ()
            continue
        base, without = family["extends"], family.get("without", [])
        if base not in list(ancestors) or not isinstance(families[base], dict):
            raise MatrixError([f"{file}: families.{name}.extends: {base!r} is no family above this one"])
        known = _names(families[base])
        if not isinstance(without, list) or any(entry not in known for entry in without):
            raise MatrixError([f"{file}: families.{name}.without: expected names that {base} has, got {without!r}"])
        ancestors[name] = (base, *ancestors[base])
        own = {key: value for key, value in family.items() if key not in ("extends", "without")}
        families[name] = _merged(_without(families[base], without), own)
    for family in families.values():
        _complete_parameters(family)
    return ancestors


def _complete_parameters(family: Any) -> None:
    """Those of a target say what differs from the family's of the same name. Families may share a target: it stays."""
    targets = family.get("targets") if isinstance(family, dict) else None
    if not isinstance(targets, dict) or not isinstance(family.get("parameters"), list):
        return
    named = {_name(entry): entry for entry in family["parameters"]}
    family["targets"] = {name: _completed(target, named) for name, target in targets.items()}


def _completed(target: Any, named: dict[Any, Any]) -> Any:
    own = target.get("parameters") if isinstance(target, dict) else None
    if not isinstance(own, list):
        return target
    return {**target, "parameters": [_merged(named.get(_name(entry), {}), entry) for entry in own]}


def _merged(base: Any, own: Any) -> Any:
    if isinstance(base, dict) and isinstance(own, dict):
        merged = {key: _merged(value, own[key]) if key in own else value for key, value in base.items()}
        merged |= {key: value for key, value in own.items() if key not in base}
        return {key: value for key, value in merged.items() if value is not None}
    if isinstance(base, list) and isinstance(own, list) and own and all(map(_name, [*base, *own])):
        named = {_name(entry): entry for entry in own}
        places = [_merged(entry, named[_name(entry)]) if _name(entry) in named else entry for entry in base]
        return places + [entry for entry in own if _name(entry) not in set(map(_name, base))]
    return own


def _name(entry: Any) -> Any:
    return next((entry[key] for key in _NAMES if key in entry), None) if isinstance(entry, dict) else None


def _names(value: Any) -> list[Any]:
    """Of the entries of all lists."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [_name(entry) for entry in value if _name(entry) is not None] if isinstance(value, list) else []
    return own + [name for entry in inner for name in _names(entry)]


def _without(family: dict[str, Any], names: list[Any]) -> dict[str, Any]:
    """Lists less the entries of these names, also those of targets."""
    def less(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: less(inner) for key, inner in value.items()}
        return [entry for entry in value if _name(entry) not in names] if isinstance(value, list) else value

    return less(family)
