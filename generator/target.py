"""Checks a target of kernels.yaml, and expands it to one ``Variant`` a kernel and arch."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from generator import schema
from generator.declaration import declare
from generator.expression import fold, is_name
from generator.selection import Priced, unreachable
from generator.signature import DEVICE_NAMES, Signature
from loader import arch as archs
from loader.expression import Expression, to_text
from loader.manifest import (
    DTYPE_BYTES,
    SCALAR_FORMATS,
    SWIZZLES,
    TENSOR_MAP_ALIGNMENT,
    TENSOR_MAP_BYTES,
    TENSOR_MAP_ELEMENTS,
    layout,
)

# Limits of a tiled tensor map (CUDA driver API, cuTensorMapEncodeTiled).
MAX_RANK, MAX_BOX, BOX_GRANULE = 5, 256, 16
MAX_BLOCK, MAX_CLUSTER = 1024, 8


@dataclass(frozen=True)
class Variant:
    """One kernel for one arch: what its template is rendered with, and what the manifest says of it."""

    family: str
    variant: str
    tile: str
    arch: str
    template: str
    symbol: str
    flags: tuple[str, ...]
    may_use_local_memory: bool
    axes: dict[str, int | str]
    constants: dict[str, int | float]
    parameters: list[dict[str, Any]]
    parameter_bytes: int
    launch: dict[str, Any]
    choices: dict[str, dict[str, int]]
    cost: Expression | None
    requires: list[dict[str, Any]]
    declaration: str

    @property
    def label(self) -> str:
        """``grouped_fp4/m64n128k256_bf16@120a``."""
        return f"{self.family}/{self.variant}@{self.arch}"


@dataclass(frozen=True)
class _Point:
    """One combination of axis values; ``origin`` is where its unmatched values stand, ``axes.tile[2]``."""

    axes: dict[str, int | str]
    origin: str


class TargetExpander:
    """Checks and expands one target of a family."""

    def __init__(self, family: Signature, name: str, target: schema.Target) -> None:
        self.parent, self.target, self.problems = family, target, family.problems
        self.where = f"{family.where}.targets.{name}"
        self.matched = family.family.select.match
        self.keys = self._axis_keys()
        self.parameters = [*_named_parameters(family.where, family.family.parameters, target.parameters, self.where)]

    def expand(self) -> list[Variant]:
        if not (self._check_axes() & self._check_names()):
            return []
        points = self._points()
        known_archs = [arch for index, arch in enumerate(self.target.archs) if self._check_arch(index, arch)]
        before = len(self.problems)
        variants = [(point, variant) for point in points for variant in self._variants(point, known_archs)]
        self._check_tiles(variants)
        if len(self.problems) == before:
            self._check_reach(variants)
        return [variant for _, variant in variants]

    # Axes

    def _axis_keys(self) -> set[str]:
        keys: set[str] = set()
        for axis, entries in self.target.axes.items():
            keys |= set().union(*({axis} if not isinstance(entry, dict) else set(entry) for entry in entries))
        return keys

    def _check_axes(self) -> bool:
        add, before = self.problems.add, len(self.problems)
        taken: dict[str, str] = dict.fromkeys(self.parent.features, "a feature")
        taken |= dict.fromkeys(self.parent.problem_names | DEVICE_NAMES, "a dimension or a scalar")
        for axis, entries in self.target.axes.items():
            at = f"{self.where}.axes.{axis}"
            shapes = [frozenset(entry) if isinstance(entry, dict) else frozenset({axis}) for entry in entries]
            for index, entry in enumerate(entries):
                if shapes[index] != shapes[0]:
                    add(f"{at}[{index}]", f"expected the keys of the first entry, {', '.join(sorted(shapes[0]))}")
                if entry in entries[:index]:
                    add(f"{at}[{index}]", "duplicate entry")
            for key in sorted(shapes[0]):
                if key in taken:
                    add(f"{at}[0].{key}", f"duplicate name {key!r}: it is already {taken[key]}")
                taken[key] = f"a key of axis {axis!r}"
        for constant in self.target.constants:
            if constant in taken:
                add(f"{self.where}.constants.{constant}", f"duplicate name: it is already {taken[constant]}")
        for axis, argument in self.matched.items():
            values = self.target.axes.get(axis)
            if values is None:
                add(f"{self.where}.axes", f"select.match needs an axis {axis!r}")
            elif argument in self.parent.arguments:
                dtypes = self.parent.arguments[argument].dtypes
                for index, value in enumerate(values):
                    if value not in dtypes:
                        reason = f"{value!r} is no dtype of argument {argument!r}; its dtypes are {', '.join(dtypes)}"
                        add(f"{self.where}.axes.{axis}[{index}]", reason)
        return len(self.problems) == before

    def _check_arch(self, index: int, arch: str) -> bool:
        where = f"{self.where}.archs[{index}]"
        if arch not in archs.ARCHS:
            self.problems.add(where, f"unknown arch {arch!r}; known are {', '.join(archs.ARCHS)}")
            return False
        if arch in self.target.archs[:index]:
            self.problems.add(where, f"duplicate arch {arch!r}")
            return False
        return True

    def _points(self) -> list[_Point]:
        points, used = [], [False] * len(self.target.exclude)
        indexed = [list(enumerate(entries)) for entries in self.target.axes.values()]
        for choice in itertools.product(*indexed):
            values: dict[str, int | str] = {}
            for axis, (_, entry) in zip(self.target.axes, choice, strict=True):
                values |= entry if isinstance(entry, dict) else {axis: entry}
            hits = [rule.items() <= values.items() for rule in self.target.exclude]
            used = [before or now for before, now in zip(used, hits, strict=True)]
            origin = "/".join(f"{axis}[{index}]" for axis, (index, _) in zip(self.target.axes, choice, strict=True)
                              if axis not in self.matched)  # fmt: skip
            if not any(hits):
                points.append(_Point(values, f"{self.where}.axes.{origin}"))
        for index, hit in enumerate(used):
            if not hit:
                self.problems.add(f"{self.where}.exclude[{index}]", "excludes no combination of the axes")
        return points

    # Names in expressions

    def _check_names(self) -> bool:
        target, where, check = self.target, self.where, self.parent.check_names
        static = self.keys | self.parent.sizes
        fields = [field for _, field, _, _ in string.Formatter().parse(target.name) if field is not None]
        ok = all([self._check_name_field(field) for field in fields])
        for name, expression in target.constants.items():
            ok &= check(f"{where}.constants.{name}", expression, static)
            static = static | {name}
        runtime = static | self.parent.problem_names | DEVICE_NAMES
        for key, values in (("block", target.launch.block), ("cluster", target.launch.cluster)):
            for index, value in enumerate(values):
                ok &= check(f"{where}.launch.{key}[{index}]", value, static)
        ok &= check(f"{where}.launch.shared", target.launch.shared, static)
        for index, value in enumerate(target.launch.grid):
            ok &= check(f"{where}.launch.grid[{index}]", value, runtime)
        ok &= check(f"{where}.cost", target.cost, runtime | self.parent.features)
        for index, rule in enumerate(target.requires):
            ok &= check(f"{where}.requires[{index}]", rule, runtime)
        if not self.parameters:
            self.problems.add(where, "no parameters: neither the target nor its family lists them")
            return False
        return self._check_parameters(static, runtime) and ok

    def _check_name_field(self, field: str) -> bool:
        ok = is_name(field) and field in self.keys
        if not ok:
            self.problems.add(f"{self.where}.name", f"unknown axis {field!r}; known are {', '.join(sorted(self.keys))}")
        return ok

    def _check_parameters(self, static: set[str], runtime: set[str]) -> bool:
        ok, seen = True, set()
        for at, parameter in self.parameters:
            kind, name = _kind_and_name(parameter)
            if name in seen:
                self.problems.add(f"{at}.{kind}", f"duplicate name {name!r}")
                ok = False
            seen.add(name)
            argument = None if kind == "scalar" else parameter.argument or name
            if argument is not None and argument not in self.parent.arguments:
                key = "argument" if parameter.argument else kind
                self.problems.add(f"{at}.{key}", f"unknown argument {argument!r}; "
                                  f"known are {', '.join(self.parent.arguments)}")  # fmt: skip
                ok = False
            elif kind == "tensor_map" and argument not in self.parent.required:
                self.problems.add(f"{at}.argument", f"{argument!r} is optional, a tensor map needs its address")
            if kind == "scalar":
                ok &= self.parent.check_names(f"{at}.value", parameter.value, runtime)
            if kind == "tensor_map":
                ok &= self._check_tensor_map(at, parameter, static, runtime)
        return ok

    def _check_tensor_map(self, at: str, tensor_map: schema.TensorMap, static: set[str], runtime: set[str]) -> bool:
        ok, rank = True, len(tensor_map.dims)
        if not 1 <= rank <= MAX_RANK:
            self.problems.add(f"{at}.dims", f"a tensor map has 1 to {MAX_RANK} dimensions, got {rank}")
            ok = False
        for key, expected in (("strides", rank - 1), ("box", rank)):
            if len(getattr(tensor_map, key)) != expected:
                self.problems.add(f"{at}.{key}", f"expected {expected} entries for {rank} dimensions")
                ok = False
        for key, known in (("dims", runtime), ("strides", runtime), ("box", static)):
            for index, expression in enumerate(getattr(tensor_map, key)):
                ok &= self.parent.check_names(f"{at}.{key}[{index}]", expression, known)
        return self.parent.check_names(f"{at}.swizzle", tensor_map.swizzle, static) and ok

    # Variants

    def _variants(self, point: _Point, known_archs: list[str]) -> list[Variant]:
        target = self.target
        tile = target.name.format_map(point.axes)
        variant = "_".join([tile, *(str(point.axes[axis]) for axis in self.matched)])
        constants: dict[str, int | float] = {}
        values: dict[str, int | float] = {key: v for key, v in point.axes.items() if not isinstance(v, str)}
        values |= self._sizes(point)
        for name, expression in target.constants.items():
            constants[name] = values[name] = self._number(f"{self.where}.constants.{name}", expression, values, variant)
        where = f"{self.where}.launch"
        launch = {
            "grid": [self._fold(f"{where}.grid[{i}]", e, values, variant) for i, e in enumerate(target.launch.grid)],
            "block": [self._extent(f"{where}.block[{i}]", e, values, variant)
                      for i, e in enumerate(target.launch.block)],
            "cluster": [self._extent(f"{where}.cluster[{i}]", e, values, variant)
                        for i, e in enumerate(target.launch.cluster)],
            "shared": self._extent(f"{where}.shared", target.launch.shared, values, variant, least=0),
            "pdl": target.launch.pdl,
        }  # fmt: skip
        for key, limit in (("block", MAX_BLOCK), ("cluster", MAX_CLUSTER)):
            x, y, z = launch[key]
            if x * y * z > limit:
                self.problems.add(f"{where}.{key}", f"{x * y * z} is over the limit of {limit}", variant)
        dtypes = self._dtypes(point)
        parameters, parameter_bytes = self._pack_parameters(values, dtypes, variant)
        cost = None if target.cost is None else self._fold(f"{self.where}.cost", target.cost, values, variant)
        rules = [self._fold(f"{self.where}.requires[{i}]", e, values, variant) for i, e in enumerate(target.requires)]
        inputs = [name for name, argument in self.parent.arguments.items() if argument.direction == "in"]
        declaration = declare(parameters, dtypes, inputs)
        return [
            Variant(
                family=self.parent.name, variant=variant, tile=tile, arch=arch, template=target.template,
                symbol=re.sub(r"[^0-9A-Za-z_]", "_", f"{self.parent.family.kernels or self.parent.name}_{variant}"),
                flags=tuple(target.flags),
                may_use_local_memory=variant in target.local_memory, axes=point.axes, constants=constants,
                parameters=parameters, parameter_bytes=parameter_bytes, launch=launch, choices=self.parent.choices,
                cost=cost, requires=[{"text": to_text(rule), "expression": rule} for rule in rules],
                declaration=declaration,
            )
            for arch in known_archs
        ]  # fmt: skip

    def _sizes(self, point: _Point) -> dict[str, int]:
        """``sizeof_<argument>`` of every argument that is always there and whose dtype the variant fixes."""
        return {f"sizeof_{name}": DTYPE_BYTES[dtype] for name, dtype in self._dtypes(point).items()
                if not self.parent.arguments[name].optional}

    def _dtypes(self, point: _Point) -> dict[str, str]:
        """Of every argument whose dtype the variant fixes."""
        only = {name: argument.dtypes[0] for name, argument in self.parent.arguments.items()
                if len(argument.dtypes) == 1}
        return only | {argument: str(point.axes[axis]) for axis, argument in self.matched.items()
                       if argument in self.parent.arguments}

    def _fold(self, where: str, expression: Expression, values: Mapping[str, int | float], variant: str) -> Expression:
        with self.problems.at(where, variant):
            return fold(expression, values)
        return 0

    def _number(self, where: str, expression: Expression, values: Mapping[str, Any], variant: str) -> int | float:
        folded = self._fold(where, expression, values, variant)
        if isinstance(folded, (int, float)):
            return folded
        self.problems.add(where, f"{to_text(folded)} has no value at build time", variant)
        return 0

    def _extent(
        self, where: str, expression: Expression, values: Mapping[str, Any], variant: str, least: int = 1
    ) -> int:
        value = self._number(where, expression, values, variant)
        if not isinstance(value, int) or value < least:
            self.problems.add(where, f"expected an integer of at least {least}, got {value}", variant)
        return int(value)

    def _pack_parameters(
        self, values: Mapping[str, Any], dtypes: Mapping[str, str], variant: str
    ) -> tuple[list[dict[str, Any]], int]:
        """The parameter list in manifest form with C offsets, and the size of the buffer in bytes."""
        abi = [_size_and_alignment(parameter) for _, parameter in self.parameters]
        offsets, parameter_bytes = layout(abi)
        packed = []
        for index, (at, parameter) in enumerate(self.parameters):
            kind, name = _kind_and_name(parameter)
            entry: dict[str, Any] = {"kind": kind, "name": name, "offset": offsets[index], "size": abi[index][0]}
            if kind == "pointer":
                entry["argument"] = parameter.argument or name
            elif kind == "scalar":
                value = self._fold(f"{at}.value", parameter.value, values, variant)
                entry |= {"dtype": parameter.dtype, "value": value}
            else:
                element = parameter.element or dtypes.get(parameter.argument)
                entry |= self._tensor_map(at, parameter, element, values, variant)
            packed.append(entry)
        return packed, parameter_bytes

    def _tensor_map(
        self, at: str, tensor_map: schema.TensorMap, element: str | None, values: Mapping[str, Any], variant: str
    ) -> dict[str, Any]:
        if element not in TENSOR_MAP_ELEMENTS:
            dtype = element or "not the same in all calls"
            known = ", ".join(TENSOR_MAP_ELEMENTS)
            reason = f"expected one of {known}: the dtype of {tensor_map.argument!r} is {dtype}"
            self.problems.add(f"{at}.element", reason, variant)
            return {}

        def folded(key: str) -> list[Expression]:
            expressions = enumerate(getattr(tensor_map, key))
            return [self._fold(f"{at}.{key}[{index}]", entry, values, variant) for index, entry in expressions]

        box = [self._extent(f"{at}.box[{index}]", expression, values, variant)
               for index, expression in enumerate(tensor_map.box)]  # fmt: skip
        for index, extent in enumerate(box):
            if extent > MAX_BOX:
                self.problems.add(f"{at}.box[{index}]", f"{extent} is over the limit of {MAX_BOX} elements", variant)
        swizzle = self._number(f"{at}.swizzle", tensor_map.swizzle, values, variant)
        inner = box[0] * TENSOR_MAP_ELEMENTS[element]
        if swizzle not in SWIZZLES:
            self.problems.add(f"{at}.swizzle", f"{swizzle} is not one of {SWIZZLES}", variant)
        if inner % BOX_GRANULE:
            reason = f"the inner extent is {inner} bytes, not a multiple of {BOX_GRANULE}"
            self.problems.add(f"{at}.box[0]", reason, variant)
        if swizzle and inner > swizzle:
            reason = f"the inner extent is {inner} bytes, over the swizzle span of {swizzle}"
            self.problems.add(f"{at}.box[0]", reason, variant)
        return {"argument": tensor_map.argument, "element": element, "dims": folded("dims"),
                "strides": folded("strides"), "box": box, "swizzle": swizzle,
                "l2_promotion": tensor_map.l2_promotion}  # fmt: skip

    # Checks across variants

    def _check_tiles(self, variants: list[tuple[_Point, Variant]]) -> None:
        for point, variant in variants:
            limit = archs.SHARED_MEMORY_LIMIT[archs.ARCHS[variant.arch].major]
            if variant.launch["shared"] > limit:
                self.problems.add(point.origin, f"needs {variant.launch['shared']} bytes of shared memory, "
                                  f"sm_{variant.arch} has {limit}", variant.variant)  # fmt: skip
        built = {variant.variant for _, variant in variants}
        for index, name in enumerate(self.target.local_memory):
            if name not in built:
                self.problems.add(f"{self.where}.local_memory[{index}]", f"unknown variant {name!r}")

    def _check_reach(self, variants: list[tuple[_Point, Variant]]) -> None:
        """Every tile must win somewhere: in a measured row of its arch or, without any, by cost in the domain."""
        select = self.parent.family.select
        constraints = [item["expression"] for item in self.parent.manifest["constraints"]]
        origins = {variant.tile: point.origin for point, variant in variants}
        lost: dict[str, dict[str, str]] = {}
        # Ties go by the variant's name, which is the tile and, after an underscore, values that a group shares.
        mark = "_" if self.matched else ""
        for arch in dict.fromkeys(variant.arch for _, variant in variants):
            costs: dict[str, dict[str, Priced]] = {}
            for _, variant in variants:
                if variant.arch == arch:
                    matched = variant.variant.removeprefix(variant.tile)
                    costs.setdefault(matched, {})[variant.tile + mark] = Priced(
                        variant.cost, [rule["expression"] for rule in variant.requires])
            rows = [{tile + mark: time for tile, time in row.microseconds.items()}
                    for _, row in self.parent.measured if row.arch == arch]  # fmt: skip
            for group in costs.values():
                with self.problems.at(f"{self.where}.cost"):
                    for name in unreachable(group, select.features, select.domain, constraints, rows):
                        lost.setdefault(name.removesuffix(mark), {})[arch] = "in no measured row" if rows else (
                            "at no point of select.domain")
        for tile, reasons in lost.items():
            for reason in dict.fromkeys(reasons.values()):
                where = ", ".join(arch for arch in reasons if reasons[arch] == reason)
                self.problems.add(origins[tile], f"tile {tile} can never be chosen on {where}: it wins {reason}")


def _named_parameters(
    of_family: str, parameters: list[schema.Parameter] | None, own: list[schema.Parameter], of_target: str
) -> Iterator[tuple[str, schema.Parameter]]:
    """Where each stands, and it: those of a family, each replaced by the target's of the same name, then its others."""
    others = [(f"{of_target}.parameters[{index}]", parameter) for index, parameter in enumerate(own)]
    for index, parameter in enumerate(parameters or ()):
        at = f"{of_family}.parameters[{index}]", parameter
        replacing = next((each for each in others if _kind_and_name(each[1]) == _kind_and_name(parameter)), None)
        if replacing is not None:
            others.remove(replacing)
        yield replacing or at
    yield from others


def _kind_and_name(parameter: schema.Pointer | schema.ScalarParameter | schema.TensorMap) -> tuple[str, str]:
    kinds = {schema.Pointer: "pointer", schema.ScalarParameter: "scalar", schema.TensorMap: "tensor_map"}
    kind = kinds[type(parameter)]
    return kind, getattr(parameter, kind)


def _size_and_alignment(parameter: schema.Pointer | schema.ScalarParameter | schema.TensorMap) -> tuple[int, int]:
    """Bytes of a kernel parameter by the C ABI."""
    if isinstance(parameter, schema.TensorMap):
        return TENSOR_MAP_BYTES, TENSOR_MAP_ALIGNMENT
    size = SCALAR_FORMATS[parameter.dtype][1] if isinstance(parameter, schema.ScalarParameter) else 8
    return size, size
