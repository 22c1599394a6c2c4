"""What a call of a family takes, as tables: arguments, scalars, constraints, and what integers of inputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loader.expression import to_text
from site_pages.markdown import bullets, code, codes, plain, table


def shape(shape: Sequence[Any]) -> str:
    return code(f"[{', '.join(map(to_text, shape))}]")


def arguments(family: Mapping[str, Any]) -> str:
    return table(["argument", "", "dtype", "shape", "aligned to", "meaning"], [
        [code(argument["name"]), argument["direction"] + (", optional" if argument["optional"] else ""),
         codes(argument["dtypes"]), shape(argument["shape"]), str(argument["alignment"]), plain(argument["doc"])]
        for argument in family["arguments"]])  # fmt: skip


def scalars(family: Mapping[str, Any]) -> str:
    return table(["scalar", "dtype", "values", "default", "meaning"], [
        [code(scalar["name"]), code(scalar["dtype"]), codes(scalar.get("choices", [])) or "numbers",
         code(scalar["default"]) if "default" in scalar else "none", plain(scalar["doc"])]
        for scalar in family["scalars"]])  # fmt: skip


def constraints(family: Mapping[str, Any]) -> str:
    skip = [] if family["skip"] is None else [f"where {code(to_text(family['skip']))}, nothing is launched"]
    return bullets([*(code(constraint["text"]) for constraint in family["constraints"]), *skip])


def values(family: Mapping[str, Any]) -> str:
    lines = []
    for rule in family["values"]:
        words = [f"from {code(to_text(rule['minimum']))} to {code(to_text(rule['maximum']))}"]
        words += [f"multiples of {code(to_text(rule['multiple']))}"] if rule["multiple"] != 1 else []
        words += ["none less than the one before"] if rule["ascending"] else []
        words += [f"where the rows of {code(rule['extents'])} begin"] if "extents" in rule else []
        words += [f"those within {code(rule['within'])}"] if "within" in rule else []
        lines.append(f"{code(rule['argument'])}: {', '.join(words)}")
    return bullets(lines)
