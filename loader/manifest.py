"""The manifest of a pack: docs/manifest.md as types, and the one function that makes them from bytes.

``parse`` accepts exactly what that document allows. Whatever it returns has been checked: expressions are well formed
and name only known values, every dimension can be solved, parameters follow the C ABI without holes, file names stay
inside the pack. The rest of the loader relies on that and checks no manifest again.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from loader import arch, expression
from loader.errors import (
    DuplicateError,
    ExpressionError,
    ManifestError,
    ManifestSyntaxError,
    PackPathError,
    SchemaError,
)
from loader.expression import Expression

# The schemas and parameter-passing rules that this loader reads, both ends included.
SCHEMAS = (1, 3)
ABIS = (1, 1)

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 32 << 20
MAX_FILE_BYTES = 64 << 20

# Bytes of one element as it is stored; `e2m1x2` is two E2M1 values in a byte.
DTYPE_BYTES: dict[str, int] = {
    "e2m1x2": 1, "ue4m3": 1, "ue8m0": 1, "e4m3": 1, "u8": 1, "i32": 4, "i64": 8, "f32": 4, "f16": 2, "bf16": 2,
}
# dtype of a scalar parameter -> (struct format, bytes)
SCALAR_FORMATS: dict[str, tuple[str, int]] = {"i32": ("i", 4), "i64": ("q", 8), "u32": ("I", 4), "f32": ("f", 4)}
TENSOR_MAP_ELEMENTS: dict[str, int] = {"u8": 1, "u16": 2, "u32": 4, "f32": 4, "bf16": 2, "f16": 2}
TENSOR_MAP_BYTES = 128
TENSOR_MAP_ALIGNMENT = 64
SWIZZLES = (0, 32, 64, 128)
L2_PROMOTIONS = (0, 64, 128, 256)
DIRECTIONS = ("in", "out", "inout")
FORMATS = ("cubin", "fatbin")

# Names that no argument, scalar or dimension can have: a call could not give them, for its own keywords have them ...
KEYWORDS = frozenset({"stream", "device", "variant", "packs", "workspace"})
# ... or the loader gives these values itself, and ``sizeof_<argument>``.
OWN_VALUES = frozenset({"sm_count", "workspace_bytes"})


def is_reserved(name: str) -> bool:
    """Whether a signature may not use ``name``."""
    return name in KEYWORDS or name in OWN_VALUES or name.startswith("sizeof_")


class Argument(NamedTuple):
    """One buffer of the call. ``shape`` counts stored elements, so packed FP4 counts bytes.

    The kernel gets address 0 where a call leaves out one that is ``optional``.
    """

    name: str
    direction: str
    dtypes: tuple[str, ...]
    shape: tuple[Expression, ...]
    alignment: int
    doc: str
    optional: bool = False


class Scalar(NamedTuple):
    """One number of the call; ``default`` is None where it must be given.

    With ``choices`` the call gives one of these words, and the kernel gets its index.
    """

    name: str
    dtype: str
    doc: str
    default: int | float | str | None
    choices: tuple[str, ...]


class Constraint(NamedTuple):
    text: str
    expression: Expression


class MeasuredRow(NamedTuple):
    """Microseconds by tile at one point of feature space, measured on ``device``."""

    arch: str
    device: str
    features: Mapping[str, float]
    microseconds: Mapping[str, float]


class Values(NamedTuple):
    """What the integers of an argument are: each one a multiple of ``multiple`` from ``minimum`` to ``maximum``.

    ``ascending``: none is less than the one before. ``extents``: the argument whose neighbouring entries tell how many
    rows, rounded up to ``multiple``, begin at each entry; such rows lie apart and end at ``maximum``. ``within``: the
    argument whose first and last entry tell which entries count.
    """

    argument: str
    minimum: Expression
    maximum: Expression
    multiple: Expression
    ascending: bool
    extents: str | None
    within: str | None


class Family(NamedTuple):
    name: str
    summary: str
    arguments: tuple[Argument, ...]
    scalars: tuple[Scalar, ...]
    constraints: tuple[Constraint, ...]
    skip: Expression | None
    match: Mapping[str, str]
    features: Mapping[str, Expression]
    measured: tuple[MeasuredRow, ...]
    dimensions: tuple[str, ...]
    values: tuple[Values, ...] = ()


class Scratch(NamedTuple):
    """A buffer in the workspace of a composite; ``dtype`` may name an argument, whose dtype it then has."""

    name: str
    dtype: str
    shape: tuple[Expression, ...]


class Step(NamedTuple):
    """One kernel of a composite: a buffer for each of its arguments, None for an optional one that is left out, and a
    value for each of its scalars."""

    kernel: str
    arguments: Mapping[str, str | None]
    scalars: Mapping[str, Expression]


class Composite(NamedTuple):
    """A call that runs several kernels in order. ``signature`` is what a family would say of it; a call may be split
    along the dimension ``split``, the first one of every argument that has it."""

    signature: Family
    split: str
    workspace: tuple[Scratch, ...]
    steps: tuple[Step, ...]


class PointerParameter(NamedTuple):
    name: str
    offset: int
    size: int
    argument: str


class ScalarParameter(NamedTuple):
    name: str
    offset: int
    size: int
    dtype: str
    value: Expression


class TensorMapParameter(NamedTuple):
    """Arguments of ``cuTensorMapEncodeTiled``; innermost dimension first, strides in bytes."""

    name: str
    offset: int
    size: int
    argument: str
    element: str
    dims: tuple[Expression, ...]
    strides: tuple[Expression, ...]
    box: tuple[Expression, ...]
    swizzle: int
    l2_promotion: int


Parameter = PointerParameter | ScalarParameter | TensorMapParameter


class Launch(NamedTuple):
    grid: tuple[Expression, Expression, Expression]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared: int
    pdl: bool


class StoredFile(NamedTuple):
    """A file of the pack: relative POSIX path, sha256 (hex) and bytes."""

    file: str
    sha256: str
    size: int


class Artifact(NamedTuple):
    family: str
    variant: str
    arch: str
    tile: str
    axes: Mapping[str, int | str]
    symbol: str
    binary: StoredFile
    format: str
    ptx: StoredFile
    registers: int
    spill_bytes: int
    local_bytes: int
    static_shared: int
    parameters: tuple[Parameter, ...]
    parameter_bytes: int
    launch: Launch
    cost: Expression | None


class Manifest(NamedTuple):
    schema: int
    abi: int
    toolchain: Mapping[str, Any]
    source_digest: str
    families: Mapping[str, Family]
    composites: Mapping[str, Composite]
    artifacts: tuple[Artifact, ...]


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Fields:
    """One JSON object being read: each key is taken once with its type, and ``done`` refuses what is left."""

    __slots__ = ("where", "_values", "_taken")

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise _wrong(where, "an object", value)
        self.where, self._values, self._taken = where, value, 0

    def take(self, key: str) -> Any:
        if key not in self._values:
            raise ManifestError(f"{self.where}: key {key!r} is missing", where=self.where, expected=key, got=None)
        self._taken += 1
        return self._values[key]

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self.take(key)
        if type(value) is not str or (pattern is not None and not pattern.fullmatch(value)):
            kind = "text" if pattern is None else f"text that matches {pattern.pattern}"
            raise _wrong(f"{self.where}.{key}", kind, value)
        return value

    def choice(self, key: str, choices: Iterable[Any]) -> Any:
        value = self.take(key)
        if type(value) not in (str, int) or value not in choices:
            raise _wrong(f"{self.where}.{key}", "one of " + ", ".join(map(str, choices)), value)
        return value

    def integer(self, key: str, low: int = 0, high: int = 1 << 31) -> int:
        return _integer(self.take(key), f"{self.where}.{key}", low, high)

    def items(self, key: str) -> list[Any]:
        value = self.take(key)
        if type(value) is not list:
            raise _wrong(f"{self.where}.{key}", "a list", value)
        return value

    def objects(self, key: str) -> list[_Fields]:
        return [_Fields(value, f"{self.where}.{key}[{i}]") for i, value in enumerate(self.items(key))]

    def object(self, key: str) -> _Fields:
        return _Fields(self.take(key), f"{self.where}.{key}")

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.take(key)
        if type(value) is not dict:
            raise _wrong(f"{self.where}.{key}", "an object", value)
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if type(value) is not bool:
            raise _wrong(f"{self.where}.{key}", "true or false", value)
        return value

    def done(self) -> None:
        if self._taken != len(self._values):
            names = ", ".join(sorted(self._values))
            raise ManifestError(f"{self.where}: unknown key among {names}", where=self.where, got=names, expected=None)


_SHOWN = reprlib.Repr()  # of lists in lists only what is shown, however deep they are
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = _SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = 80


def _wrong(where: str, expected: str, got: Any) -> ManifestError:
    shown = _SHOWN.repr(got)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ManifestError(f"{where}: expected {expected}, got {shown}", where=where, expected=expected, got=got)


def _integer(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _wrong(where, f"an integer in {low} .. {high}", value)
    return value


def _number(value: Any, where: str) -> int | float:
    if type(value) not in (int, float) or not abs(value) < math.inf:  # 1e999 is a number of JSON
        raise _wrong(where, "a number", value)
    return value


def _expression(value: Any, where: str, known: frozenset[str]) -> Expression:
    if type(value) is str and value in known:
        return value
    try:
        expression.validate(value)
    except ExpressionError as error:
        raise ManifestError(f"{where}: {error}", where=where, expected="an expression", got=value) from None
    unknown = expression.names(value) - known
    if unknown:
        raise ManifestError(f"{where}: {expression.to_text(value)} uses unknown {', '.join(sorted(unknown))}",
                            where=where, expected=sorted(known), got=sorted(unknown))
    return value


def _unique(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateError(f"{where}: {name!r} appears twice", where=where, got=name)
        seen.add(name)


def _relative_path(value: str, where: str) -> str:
    parts = value.split("/")
    if not value or value.startswith("/") or "\\" in value or "\0" in value or ":" in value \
            or any(part in ("", ".", "..") for part in parts):
        raise PackPathError(f"{where}: {value!r} is no relative path inside the pack", where=where, file=value)
    return value


def _stored_file(fields: _Fields) -> StoredFile:
    return StoredFile(
        _relative_path(fields.text("file"), f"{fields.where}.file"),
        fields.text("sha256", _SHA256),
        fields.integer("size", 1, MAX_FILE_BYTES),
    )


# Families


def _argument(fields: _Fields) -> Argument:
    name = fields.text("name", _IDENTIFIER)
    direction = fields.choice("direction", DIRECTIONS)
    dtypes = fields.items("dtypes")
    for dtype in dtypes:
        if type(dtype) is not str or dtype not in DTYPE_BYTES:
            raise _wrong(f"{fields.where}.dtypes", "dtypes among " + ", ".join(DTYPE_BYTES), dtype)
    if not dtypes:
        raise _wrong(f"{fields.where}.dtypes", "at least one dtype", dtypes)
    _unique(dtypes, f"{fields.where}.dtypes")
    shape = fields.items("shape")
    for i, entry in enumerate(shape):
        try:
            expression.validate(entry)
        except ExpressionError as error:
            raise _wrong(f"{fields.where}.shape[{i}]", f"an expression ({error})", entry) from None
        if not all(map(_IDENTIFIER.fullmatch, expression.names(entry))):
            raise _wrong(f"{fields.where}.shape[{i}]", "names of dimensions", entry)
    alignment = fields.integer("alignment", 1, 4096)
    if alignment & (alignment - 1):
        raise _wrong(f"{fields.where}.alignment", "a power of two", alignment)
    argument = Argument(name, direction, tuple(dtypes), tuple(shape), alignment, fields.text("doc"),
                        fields.flag("optional") if fields.has("optional") else False)
    fields.done()
    return argument


def _scalar(fields: _Fields) -> Scalar:
    name = fields.text("name", _IDENTIFIER)
    dtype = fields.choice("dtype", SCALAR_FORMATS)
    default = fields.take("default") if fields.has("default") else None
    choices = tuple(fields.items("choices")) if fields.has("choices") else ()
    if choices and (dtype != "i32" or not all(type(word) is str for word in choices)):
        raise _wrong(f"{fields.where}.choices", "words, for a scalar of dtype i32", list(choices))
    _unique(choices, f"{fields.where}.choices")
    if default is not None and choices and default not in choices:
        raise _wrong(f"{fields.where}.default", f"one of {', '.join(choices)}", default)
    if default is not None and not choices:
        try:
            struct.pack(f"<{SCALAR_FORMATS[dtype][0]}", _number(default, f"{fields.where}.default"))
        except (struct.error, OverflowError):
            raise _wrong(f"{fields.where}.default", f"a value of {dtype}", default) from None
    scalar = Scalar(name, dtype, fields.text("doc"), default, choices)
    fields.done()
    return scalar


def _numbers(values: Mapping[str, Any], where: str) -> dict[str, float]:
    for key, value in values.items():
        if _number(value, f"{where}.{key}") < 0:
            raise _wrong(f"{where}.{key}", "a number that is not negative", value)
    return dict(values)


def _measured(fields: _Fields, features: Mapping[str, Any]) -> MeasuredRow:
    row = MeasuredRow(
        fields.choice("arch", arch.ARCHS),
        fields.text("device"),
        _numbers(fields.mapping("features"), f"{fields.where}.features"),
        _numbers(fields.mapping("microseconds"), f"{fields.where}.microseconds"),
    )
    fields.done()
    if row.features.keys() != features.keys():
        raise _wrong(f"{fields.where}.features", "exactly " + ", ".join(features), sorted(row.features))
    return row


def solve_order(shapes: Iterable[Expression], known: Iterable[str]) -> tuple[set[str], list[tuple[int, str]]]:
    """Which shape entry gives which dimension.

    Returns the dimensions that no entry gives, and ``(index of the entry, dimension)`` in the order of solving.
    """
    shapes, solved = list(shapes), set(known)
    unsolved = set().union(*map(expression.names, shapes)) - solved
    order: list[tuple[int, str]] = []
    progress = True
    while unsolved and progress:
        progress = False
        for index, entry in enumerate(shapes):
            missing = expression.names(entry) - solved
            if len(missing) == 1 and expression.solvable(entry, *missing):
                name = missing.pop()
                order.append((index, name))
                solved.add(name)
                unsolved.discard(name)
                progress = True
    return unsolved, order


def _family(name: str, fields: _Fields) -> Family:
    signature = _signature(name, fields)
    known = _problem_names(signature)
    values = tuple(_values(rule, signature, known) for rule in fields.objects("values")) if fields.has("values") else ()
    select = fields.object("select")
    match = select.mapping("match")
    names = _required(signature)
    for axis, argument_name in match.items():
        if type(argument_name) is not str or argument_name not in names:
            raise _wrong(f"{select.where}.match.{axis}", "the name of an argument that is not optional", argument_name)
    # A feature may also ask for the device it runs on.
    features = {key: _expression(value, f"{select.where}.features.{key}", known | {"sm_count"})
                for key, value in select.mapping("features").items()}
    if not all(map(_IDENTIFIER.fullmatch, features)) or any(map(is_reserved, features)):
        raise _wrong(f"{select.where}.features", "names of features", sorted(features))
    measured = tuple(_measured(row, features) for row in select.objects("measured"))
    select.done()
    fields.done()
    return signature._replace(match=dict(match), features=features, measured=measured, values=values)


def integer_inputs(arguments: Iterable[Any]) -> list[str]:
    """The arguments that a rule of values may be about: integers that every call gives."""
    return [a.name for a in arguments if not a.optional and a.direction == "in" and {"i32", "i64"}.issuperset(a.dtypes)]


def _values(fields: _Fields, signature: Family, known: frozenset[str]) -> Values:
    inputs = integer_inputs(signature.arguments)
    bounds = [_expression(fields.take(key), f"{fields.where}.{key}", known)
              for key in ("minimum", "maximum", "multiple")]
    others = [fields.choice(key, inputs) if fields.has(key) else None for key in ("extents", "within")]
    rule = Values(fields.choice("argument", inputs), *bounds, fields.flag("ascending"), *others)
    fields.done()
    return rule


def _problem_names(family: Family) -> frozenset[str]:
    """What expressions about a problem of the family may name."""
    return frozenset([*family.dimensions, *(scalar.name for scalar in family.scalars),
                      *(f"sizeof_{argument.name}" for argument in family.arguments)])


def _required(family: Family) -> list[str]:
    """The arguments that every call gives."""
    return [argument.name for argument in family.arguments if not argument.optional]


def _dimensions(arguments: Sequence[Argument], scalars: Iterable[str], where: str) -> tuple[str, ...]:
    """What the shapes give: those of the required arguments alone, and with each of the optional ones."""
    required = [entry for argument in arguments if not argument.optional for entry in argument.shape]
    dimensions: dict[str, None] = {}
    for further in [(), *(argument.shape for argument in arguments if argument.optional)]:
        unsolved, order = solve_order([*required, *further], scalars)
        if unsolved:
            raise ManifestError(f"{where}: no shape gives the dimension {', '.join(sorted(unsolved))}", where=where,
                                expected="a shape that can be solved", got=sorted(unsolved))
        dimensions |= dict.fromkeys(dimension for _, dimension in order)
    return tuple(dimensions)


def _signature(name: str, fields: _Fields) -> Family:
    """What families and composites have in common; selection is left empty."""
    arguments = tuple(map(_argument, fields.objects("arguments")))
    scalars = tuple(map(_scalar, fields.objects("scalars")))
    scalar_names = [scalar.name for scalar in scalars]
    _unique([argument.name for argument in arguments] + scalar_names, f"{fields.where}.arguments")
    dimensions = _dimensions(arguments, scalar_names, fields.where)
    for used in (*(argument.name for argument in arguments), *scalar_names, *dimensions):
        if is_reserved(used):
            raise _wrong(f"{fields.where}.arguments", "names that the loader leaves to a signature", used)
    family = Family(name, fields.text("summary"), arguments, scalars, (), None, {}, {}, (), dimensions)
    known = _problem_names(family)
    constraints = []
    for entry in fields.objects("constraints"):
        constraints.append(Constraint(entry.text("text"),
                                      _expression(entry.take("expression"), f"{entry.where}.expression", known)))
        entry.done()
    skip = fields.take("skip")
    if skip is not None:
        skip = _expression(skip, f"{fields.where}.skip", known)
    return family._replace(constraints=tuple(constraints), skip=skip)


# Composites


def _composite(name: str, fields: _Fields, families: Mapping[str, Family]) -> Composite:
    signature = _signature(name, fields)
    known = frozenset([*signature.dimensions, *(scalar.name for scalar in signature.scalars)])
    split = fields.choice("split", signature.dimensions)
    for argument in signature.arguments:
        uses = [split in expression.names(entry) for entry in argument.shape]
        if any(uses) and (any(uses[1:]) or argument.shape[0] != split):
            raise _wrong(f"{fields.where}.split", f"a dimension that {argument.name} has whole and first", split)
    workspace = tuple(_scratch(entry, signature, known) for entry in fields.objects("workspace"))
    buffers = [argument.name for argument in signature.arguments] + [scratch.name for scratch in workspace]
    _unique(buffers, f"{fields.where}.workspace")
    optional = frozenset(argument.name for argument in signature.arguments if argument.optional)
    steps = tuple(_step(entry, frozenset(buffers), optional, known, families) for entry in fields.objects("steps"))
    fields.done()
    return Composite(signature, split, workspace, steps)


def _scratch(fields: _Fields, signature: Family, known: frozenset[str]) -> Scratch:
    dtypes = [*DTYPE_BYTES, *_required(signature)]
    scratch = Scratch(fields.text("name", _IDENTIFIER), fields.choice("dtype", dtypes),
                      _expressions(fields, "shape", known))
    fields.done()
    return scratch


def _step(fields: _Fields, buffers: frozenset[str], optional: frozenset[str], known: frozenset[str],
          families: Mapping[str, Family]) -> Step:
    family = families[fields.choice("kernel", families)]
    arguments, scalars = fields.mapping("arguments"), fields.mapping("scalars")
    for key, given, expected in (("arguments", arguments, family.arguments), ("scalars", scalars, family.scalars)):
        if set(given) != {entry.name for entry in expected}:
            raise _wrong(f"{fields.where}.{key}", f"those of {family.name}", sorted(given))
    for argument in family.arguments:
        buffer, where = arguments[argument.name], f"{fields.where}.arguments.{argument.name}"
        if buffer is None and argument.optional:
            continue
        if type(buffer) is not str or buffer not in buffers:
            raise _wrong(where, "an argument or a buffer of the workspace", buffer)
        if buffer in optional and not argument.optional:
            raise _wrong(where, "a buffer that every call gives", buffer)
    step = Step(family.name, arguments, {scalar: _expression(value, f"{fields.where}.scalars.{scalar}", known)
                                         for scalar, value in scalars.items()})
    fields.done()
    return step


# Artifacts


def _expressions(fields: _Fields, key: str, known: frozenset[str]) -> tuple[Expression, ...]:
    return tuple(_expression(value, f"{fields.where}.{key}[{i}]", known) for i, value in enumerate(fields.items(key)))


def _parameter(fields: _Fields, family: Family, known: frozenset[str]) -> Parameter:
    kind = fields.choice("kind", ("pointer", "scalar", "tensor_map"))
    name, offset = fields.text("name", _IDENTIFIER), fields.integer("offset", 0, 1 << 16)
    size = fields.integer("size", 1, TENSOR_MAP_BYTES)
    if kind == "scalar":
        dtype = fields.choice("dtype", SCALAR_FORMATS)
        value = _expression(fields.take("value"), f"{fields.where}.value", known)
        return ScalarParameter(name, offset, size, dtype, value)
    if kind == "pointer":
        argument = fields.choice("argument", [argument.name for argument in family.arguments])
        return PointerParameter(name, offset, size, argument)
    parameter = TensorMapParameter(
        name, offset, size,
        fields.choice("argument", _required(family)),
        fields.choice("element", TENSOR_MAP_ELEMENTS),
        _expressions(fields, "dims", known),
        _expressions(fields, "strides", known),
        _expressions(fields, "box", known),
        fields.choice("swizzle", SWIZZLES),
        fields.choice("l2_promotion", L2_PROMOTIONS),
    )
    rank = len(parameter.dims)
    if not 1 <= rank <= 5 or len(parameter.strides) != rank - 1 or len(parameter.box) != rank:
        raise _wrong(fields.where, "1 to 5 dims, one stride fewer, as many box entries",
                     [rank, len(parameter.strides), len(parameter.box)])
    return parameter


def _abi(parameter: Parameter) -> tuple[int, int]:
    """Size and alignment of a kernel parameter, in bytes."""
    if isinstance(parameter, PointerParameter):
        return 8, 8
    if isinstance(parameter, ScalarParameter):
        size = SCALAR_FORMATS[parameter.dtype][1]
        return size, size
    return TENSOR_MAP_BYTES, TENSOR_MAP_ALIGNMENT


def layout(abi: Iterable[tuple[int, int]]) -> tuple[list[int], int]:
    """C ABI offsets of parameters of the given (size, alignment), and the size of the whole buffer."""
    offsets, end = [], 0
    for size, alignment in abi:
        offset = expression.round_up(end, alignment)
        offsets.append(offset)
        end = offset + size
    return offsets, end


class _SameParameters:
    """The parameters read last: those of neighbouring artifacts are mostly equal, and comparing is cheaper."""

    raw: Any = None
    known: frozenset[str] = frozenset()
    checked: tuple[tuple[Parameter, ...], int] = ((), 0)

    def read(self, fields: _Fields, family: Family, known: frozenset[str]) -> tuple[tuple[Parameter, ...], int]:
        raw = (family.name, fields.take("parameters"), fields.take("parameter_bytes"))
        if raw != self.raw or known != self.known:
            checked = _parameters(_Fields({"parameters": raw[1], "parameter_bytes": raw[2]}, fields.where), family,
                                  known)
            self.raw, self.known, self.checked = raw, known, checked
        return self.checked


def _parameters(fields: _Fields, family: Family, known: frozenset[str]) -> tuple[tuple[Parameter, ...], int]:
    parameters = []
    for entry in fields.objects("parameters"):
        parameters.append(_parameter(entry, family, known))
        entry.done()
    _unique([parameter.name for parameter in parameters], f"{fields.where}.parameters")
    offsets, end = layout(map(_abi, parameters))
    for i, (parameter, offset) in enumerate(zip(parameters, offsets, strict=True)):
        if (parameter.offset, parameter.size) != (offset, _abi(parameter)[0]):
            raise _wrong(f"{fields.where}.parameters[{i}]", f"offset {offset} and size {_abi(parameter)[0]} (C ABI)",
                         (parameter.offset, parameter.size))
    total = fields.integer("parameter_bytes", 0, 1 << 16)
    if total != end:
        raise _wrong(f"{fields.where}.parameter_bytes", str(end), total)
    return tuple(parameters), total


def _triple(fields: _Fields, key: str, low: int, high: int) -> tuple[int, int, int]:
    values = fields.items(key)
    if len(values) != 3:
        raise _wrong(f"{fields.where}.{key}", "three integers", values)
    for value in values:
        _integer(value, f"{fields.where}.{key}", low, high)
    return tuple(values)


def _launch(fields: _Fields, known: frozenset[str]) -> Launch:
    grid = _expressions(fields, "grid", known)
    if len(grid) != 3:
        raise _wrong(f"{fields.where}.grid", "three expressions", grid)
    block, cluster = _triple(fields, "block", 1, 1024), _triple(fields, "cluster", 1, 16)
    if block[0] * block[1] * block[2] > 1024:
        raise _wrong(f"{fields.where}.block", "at most 1024 threads", block)
    shared, pdl = fields.integer("shared", 0, 1 << 20), fields.flag("pdl")
    fields.done()
    return Launch(grid, block, cluster, shared, pdl)


def _axes(fields: _Fields, family: Family) -> dict[str, int | str]:
    axes = fields.mapping("axes")
    for axis, value in axes.items():
        if not _IDENTIFIER.fullmatch(axis) or type(value) not in (int, str):
            raise _wrong(f"{fields.where}.axes.{axis}", "an integer or text", value)
    for axis in family.match:
        if axis not in axes:
            raise _wrong(f"{fields.where}.axes", f"the matched axis {axis}", sorted(axes))
    return axes


def _artifact(fields: _Fields, families: Mapping[str, Family], same: _SameParameters) -> Artifact:
    family = families[fields.choice("family", families)]
    variant, architecture = fields.text("variant", _VARIANT), fields.choice("arch", arch.ARCHS)
    axes = _axes(fields, family)
    problem = _problem_names(family) | {"sm_count"}
    clash = problem.intersection(axes)
    if clash:
        raise _wrong(f"{fields.where}.axes", "names that mean nothing else", sorted(clash))
    known = problem.union(axes)
    ptx = fields.object("ptx")
    ptx_file = _stored_file(ptx)
    ptx.done()
    parameters, parameter_bytes = same.read(fields, family, known)
    cost = fields.take("cost")
    artifact = Artifact(
        family.name, variant, architecture,
        fields.text("tile", _VARIANT), axes,
        fields.text("symbol", _IDENTIFIER), _stored_file(fields), fields.choice("format", FORMATS), ptx_file,
        fields.integer("registers"), fields.integer("spill_bytes"), fields.integer("local_bytes"),
        fields.integer("static_shared"),
        parameters, parameter_bytes, _launch(fields.object("launch"), known),
        None if cost is None else _expression(cost, f"{fields.where}.cost", known.union(family.features)),
    )
    fields.done()
    return artifact


def _check_artifacts(artifacts: Iterable[Artifact]) -> None:
    """No artifact twice, and every file with one digest and size."""
    _unique((f"{a.family}/{a.variant}/{a.arch}" for a in artifacts), "artifacts")
    files: dict[str, StoredFile] = {}
    for artifact in artifacts:
        for stored in (artifact.binary, artifact.ptx):
            if files.setdefault(stored.file, stored) != stored:
                raise DuplicateError(f"artifacts: {stored.file!r} is given two digests or sizes",
                                     where="artifacts", file=stored.file)


# The document


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"a key appears twice among {', '.join(key for key, _ in pairs)}")
    return value


def _decode(data: bytes) -> Any:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestSyntaxError(f"{MANIFEST_NAME}: {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are read",
                                  expected=MAX_MANIFEST_BYTES, got=len(data))
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestSyntaxError(f"{MANIFEST_NAME} is no JSON document: {error}") from None


def _in_range(fields: _Fields, key: str, accepted: tuple[int, int]) -> int:
    value = fields.take(key)
    if type(value) is not int or not accepted[0] <= value <= accepted[1]:
        raise SchemaError(f"{MANIFEST_NAME}: {key} {value!r}, this loader reads {accepted[0]} to {accepted[1]}",
                          where=key, expected=accepted, got=value)
    return value


def parse(data: bytes) -> Manifest:
    """A manifest from the bytes of ``manifest.json``.

    Raises ``ManifestSyntaxError``, ``SchemaError``, ``PackPathError``, ``DuplicateError`` or ``ManifestError``; each
    names the entry by its path in the document.
    """
    fields = _Fields(_decode(data), "manifest")
    schema, abi = _in_range(fields, "schema", SCHEMAS), _in_range(fields, "abi", ABIS)
    toolchain = fields.mapping("toolchain")
    digest = fields.text("source_digest", _SHA256)
    families = {}
    for name, value in fields.mapping("families").items():
        if not _IDENTIFIER.fullmatch(name):
            raise _wrong("manifest.families", "names of families", name)
        families[name] = _family(name, _Fields(value, f"families.{name}"))
    composites = {}
    for name, value in (fields.mapping("composites") if schema >= 2 else {}).items():
        if not _IDENTIFIER.fullmatch(name) or name in families:
            raise _wrong("manifest.composites", "names of composites, of no family", name)
        composites[name] = _composite(name, _Fields(value, f"composites.{name}"), families)
    same = _SameParameters()
    artifacts = tuple(_artifact(_Fields(value, f"artifacts[{i}]"), families, same)
                      for i, value in enumerate(fields.items("artifacts")))
    fields.done()
    _check_artifacts(artifacts)
    return Manifest(schema, abi, toolchain, digest, families, composites, artifacts)


