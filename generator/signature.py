"""Checks what a family or composite of kernels.yaml says of its calls: arguments, scalars, constraints, selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from generator import schema
from generator.expression import parse
from generator.measured import Measured
from generator.problems import Problems
from loader.expression import Expression, names, solving_order
from loader.manifest import integer_inputs, is_reserved

DEVICE_NAMES = frozenset({"sm_count"})


class Signature:
    """What a family says of its calls, checked. ``where`` prefixes every finding; ``manifest`` is its manifest form."""

    def __init__(self, name: str, family: schema.Family, problems: Problems, section: str = "families",
                 measured: Sequence[Measured] = ()) -> None:  # fmt: skip
        self.name, self.family, self.problems, self.measured = name, family, problems, measured
        self.where = f"{section}.{name}"
        self.arguments = {argument.name: argument for argument in family.arguments}
        self.required = {argument.name for argument in family.arguments if not argument.optional}
        self.dimensions = self._dimensions()
        self.scalars = {scalar.name for scalar in family.scalars}
        self.choices = {scalar.name: {word: index for index, word in enumerate(scalar.choices)}
                        for scalar in family.scalars if scalar.choices is not None}
        self.sizes = {f"sizeof_{argument}" for argument in self.arguments}
        self.problem_names = self.dimensions | self.scalars | self.sizes
        self.features = set(family.select.features)
        self.manifest: dict[str, Any] = {}

    def check_names(self, where: str, expression: Expression | None, known: set[str]) -> bool:
        unknown = sorted(names(expression) - known) if expression is not None else []
        for name in unknown:
            self.problems.add(where, f"unknown name {name!r}; known are {', '.join(sorted(known)) or 'none'}")
        return not unknown

    def _dimensions(self, of: str | None = None) -> set[str]:
        """Those that the shapes give, or only those that an argument can be checked with: its own, and those of the
        arguments that every call gives."""
        arguments = [argument for argument in self.family.arguments
                     if of is None or argument.name == of or not argument.optional]
        entries = [entry for argument in arguments for entry in argument.shape]
        order, _ = solving_order(entries, [scalar.name for scalar in self.family.scalars])
        return {dimension for _, dimension in order if dimension is not None}

    def check_signature(self) -> None:
        """Everything but the targets; fills ``manifest``."""
        family, where, add = self.family, self.where, self.problems.add
        seen: set[str] = set()
        for kind, items in (("arguments", family.arguments), ("scalars", family.scalars)):
            for index, item in enumerate(items):
                if item.name in seen:
                    add(f"{where}.{kind}[{index}].name", f"duplicate name {item.name!r}")
                seen.add(item.name)
                self._check_reserved(f"{where}.{kind}[{index}].name", item.name)
        for index, scalar in enumerate(family.scalars):
            self._check_scalar(f"{where}.scalars[{index}]", scalar)
        for index, argument in enumerate(family.arguments):
            at = f"{where}.arguments[{index}]"
            if argument.alignment & (argument.alignment - 1):
                add(f"{at}.alignment", f"{argument.alignment} is not a power of two")
            if len(set(argument.dtypes)) != len(argument.dtypes):
                add(f"{at}.dtypes", "duplicate dtype")
            known = self._dimensions(argument.name) | self.scalars
            for axis, entry in enumerate(argument.shape):
                self.check_names(f"{at}.shape[{axis}]", entry, known)
                for name in sorted(names(entry)):
                    self._check_reserved(f"{at}.shape[{axis}]", name)
        constraints = []
        for index, text in enumerate(family.constraints):
            with self.problems.at(f"{where}.constraints[{index}]"):
                expression = parse(text)
                self.check_names(f"{where}.constraints[{index}]", expression, self.problem_names)
                constraints.append({"text": text, "expression": expression})
        self.check_names(f"{where}.skip", family.skip, self.problem_names)
        self._check_select()
        self.manifest = {
            "summary": family.summary,
            **({"overloads": family.overloads} if family.overloads else {}),
            "arguments": [argument.model_dump() for argument in family.arguments],
            "scalars": [scalar.model_dump(exclude_none=True) for scalar in family.scalars],
            "constraints": constraints,
            "skip": family.skip,
            "select": {**family.select.model_dump(include={"match", "features"}),
                       "measured": [measured.row.model_dump() for measured in self.measured]},
        }

    def check_values(self) -> None:
        inputs = integer_inputs(self.family.arguments)
        for index, rule in enumerate(self.family.values):
            at = f"{self.where}.values[{index}]"
            for key in ("argument", "extents", "within"):
                if (name := getattr(rule, key)) is not None and name not in inputs:
                    self.problems.add(f"{at}.{key}", f"{name!r} is no integer input that every call gives; these are "
                                      f"{', '.join(inputs) or 'none'}")  # fmt: skip
            for key in ("minimum", "maximum", "multiple"):
                self.check_names(f"{at}.{key}", getattr(rule, key), self.problem_names)
        self.manifest["values"] = [rule.model_dump(exclude_none=True) for rule in self.family.values]

    def _check_reserved(self, where: str, name: str) -> None:
        if is_reserved(name):
            self.problems.add(where, f"{name!r} is a keyword of the loader's calls or a value that it sets")

    def _check_scalar(self, where: str, scalar: schema.Scalar) -> None:
        if scalar.choices is None:
            if isinstance(scalar.default, str):
                self.problems.add(f"{where}.default", f"expected a number, got {scalar.default!r}")
            return
        if scalar.dtype != "i32":
            self.problems.add(f"{where}.dtype", f"choices are passed by their index, as i32, got {scalar.dtype}")
        if len(set(scalar.choices)) != len(scalar.choices):
            self.problems.add(f"{where}.choices", "duplicate choice")
        if scalar.default is not None and scalar.default not in scalar.choices:
            self.problems.add(f"{where}.default", f"expected one of {', '.join(scalar.choices)}, "
                              f"got {scalar.default!r}")  # fmt: skip

    def _check_select(self) -> None:
        select, where = self.family.select, f"{self.where}.select"
        for axis, argument in select.match.items():
            if argument not in self.required:
                what = "optional" if argument in self.arguments else "unknown"
                self.problems.add(f"{where}.match.{axis}", f"{what} argument {argument!r}")
        for name, expression in select.features.items():
            if name in self.scalars or name in DEVICE_NAMES or (name in self.dimensions and expression != name):
                self.problems.add(f"{where}.features.{name}", f"{name!r} already names something else")
            self.check_names(f"{where}.features.{name}", expression, self.problem_names | DEVICE_NAMES)
        for name in select.domain:
            if name not in self.problem_names | DEVICE_NAMES:
                self.problems.add(f"{where}.domain.{name}", f"unknown name {name!r}")
