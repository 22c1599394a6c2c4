"""Makes a ``Manifest`` from the bytes of ``manifest.json``.

``parse`` accepts exactly what docs/manifest.md allows. Whatever it returns has been checked: expressions are well
formed and name only known values, every dimension can be solved, parameters follow the C ABI without holes, file
names stay inside the pack. The rest of the loader relies on that and checks no manifest again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from . import arch, expression
from .errors import (
    DuplicateError,
    ExpressionError,
    ManifestError,
    PackPathError,
    SchemaError,
)
from .fields import Fields, decode, shown, to_expression, to_integer, to_number, unique, wrong
from .manifest import (
    DTYPE_BYTES,
    MANIFEST_NAME,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    SCALAR_FORMATS,
    SWIZZLES,
    TENSOR_MAP_ALIGNMENT,
    TENSOR_MAP_BYTES,
    TENSOR_MAP_ELEMENTS,
    Argument,
    Artifact,
    Composite,
    Constraint,
    Family,
    Launch,
    Manifest,
    MeasuredRow,
    Parameter,
    PointerParameter,
    Scalar,
    ScalarParameter,
    Scratch,
    Step,
    StoredFile,
    TensorMapParameter,
    Values,
    integer_inputs,
    is_reserved,
    layout,
    own_names,
)

# The schemas and parameter-passing rules that this loader reads, both ends included.
SCHEMAS = (1, 5)
ABIS = (1, 1)

DIRECTIONS = ("in", "out", "inout")
FORMATS = ("cubin", "fatbin")
L2_PROMOTIONS = (0, 64, 128, 256)

# Several times what a signature needs: the order in which shapes are solved takes the square of their number.
MAX_ARGUMENTS = 100
MAX_RANK = 8

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ANY = re.compile(r".*", re.DOTALL)  # a path has an error of its own
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,199}")  # of one part of a path


def _relative_path(value: str, where: str) -> str:
    if len(value) > 1000 or not all(map(_FILE_NAME.fullmatch, value.split("/"))):
        raise PackPathError(f"{where}: {shown(value)} is no relative path inside the pack", where=where, file=value)
    return value


def _stored_file(fields: Fields) -> StoredFile:
    return StoredFile(
        _relative_path(fields.text("file", _ANY), f"{fields.where}.file"),
        fields.text("sha256", _SHA256),
        fields.integer("size", 1, MAX_FILE_BYTES),
    )


# Families


def _argument(fields: Fields) -> Argument:
    name = fields.text("name", _IDENTIFIER)
    direction = fields.choice("direction", DIRECTIONS)
    dtypes = fields.items("dtypes")
    for dtype in dtypes:
        if type(dtype) is not str or dtype not in DTYPE_BYTES:
            raise wrong(f"{fields.where}.dtypes", "dtypes among " + ", ".join(DTYPE_BYTES), dtype)
    if not dtypes:
        raise wrong(f"{fields.where}.dtypes", "at least one dtype", dtypes)
    unique(dtypes, f"{fields.where}.dtypes")
    shape = fields.items("shape")
    if len(shape) > MAX_RANK:
        raise wrong(f"{fields.where}.shape", f"at most {MAX_RANK} dimensions", shape)
    for i, entry in enumerate(shape):
        try:
            expression.validate(entry)
        except ExpressionError as error:
            raise wrong(f"{fields.where}.shape[{i}]", f"an expression ({error})", entry) from None
        if not all(map(_IDENTIFIER.fullmatch, expression.names(entry))):
            raise wrong(f"{fields.where}.shape[{i}]", "names of dimensions", entry)
    alignment = fields.integer("alignment", 1, 4096)
    if alignment & (alignment - 1):
        raise wrong(f"{fields.where}.alignment", "a power of two", alignment)
    argument = Argument(name, direction, tuple(dtypes), tuple(shape), alignment, fields.text("doc"),
                        fields.flag("optional") if fields.has("optional") else False)
    fields.done()
    return argument


def _scalar(fields: Fields) -> Scalar:
    name = fields.text("name", _IDENTIFIER)
    dtype = fields.choice("dtype", SCALAR_FORMATS)
    default = fields.take("default") if fields.has("default") else None
    choices = tuple(fields.items("choices")) if fields.has("choices") else ()
    if choices and (dtype != "i32" or not all(type(word) is str for word in choices)):
        raise wrong(f"{fields.where}.choices", "words, for a scalar of dtype i32", list(choices))
    unique(choices, f"{fields.where}.choices")
    if default is not None and choices and default not in choices:
        raise wrong(f"{fields.where}.default", f"one of {', '.join(choices)}", default)
    if default is not None and not choices:
        try:
            struct.pack(f"<{SCALAR_FORMATS[dtype][0]}", to_number(default, f"{fields.where}.default"))
        except (struct.error, OverflowError):
            raise wrong(f"{fields.where}.default", f"a value of {dtype}", default) from None
    scalar = Scalar(name, dtype, fields.text("doc"), default, choices)
    fields.done()
    return scalar


def _numbers(values: Mapping[str, Any], where: str) -> dict[str, float]:
    for key, value in values.items():
        if to_number(value, f"{where}.{key}") < 0:
            raise wrong(f"{where}.{key}", "a number that is not negative", value)
    return dict(values)


def _measured(fields: Fields, features: Mapping[str, Any]) -> MeasuredRow:
    row = MeasuredRow(
        fields.choice("arch", arch.ARCHS),
        fields.text("device"),
        _numbers(fields.mapping("features"), f"{fields.where}.features"),
        _numbers(fields.mapping("microseconds"), f"{fields.where}.microseconds"),
    )
    fields.done()
    if row.features.keys() != features.keys():
        raise wrong(f"{fields.where}.features", "exactly " + ", ".join(features), sorted(row.features))
    return row


def _family(name: str, fields: Fields) -> Family:
    signature = _signature(name, fields)
    known = _problem_names(signature)
    overloads = fields.text("overloads") if fields.has("overloads") else None
    values = tuple(_values(rule, signature, known) for rule in fields.objects("values")) if fields.has("values") else ()
    select = fields.object("select")
    match = select.mapping("match")
    names = _required(signature)
    for axis, argument_name in match.items():
        if type(argument_name) is not str or argument_name not in names:
            raise wrong(f"{select.where}.match.{axis}", "the name of an argument that is not optional", argument_name)
    # A feature may also ask for the device it runs on.
    features = {key: to_expression(value, f"{select.where}.features.{key}", known | {"sm_count"})
                for key, value in select.mapping("features").items()}
    if not all(map(_IDENTIFIER.fullmatch, features)) or any(map(is_reserved, features)):
        raise wrong(f"{select.where}.features", "names of features", sorted(features))
    measured = tuple(_measured(row, features) for row in select.objects("measured"))
    select.done()
    fields.done()
    return signature._replace(match=dict(match), features=features, measured=measured, values=values,
                              overloads=overloads)


def _values(fields: Fields, signature: Family, known: frozenset[str]) -> Values:
    inputs = integer_inputs(signature.arguments)
    bounds = [fields.expression(key, known) for key in ("minimum", "maximum", "multiple")]
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
        order, unsolved = expression.solving_order([*required, *further], scalars)
        if unsolved:
            raise ManifestError(f"{where}: no shape gives the dimension {', '.join(sorted(unsolved))}", where=where,
                                expected="a shape that can be solved", got=sorted(unsolved))
        dimensions |= dict.fromkeys(dimension for _, dimension in order if dimension is not None)
    return tuple(dimensions)


def _constraints(fields: Fields, key: str, known: Collection[str]) -> tuple[Constraint, ...]:
    found = []
    for entry in fields.objects(key):
        found.append(Constraint(entry.text("text"), entry.expression("expression", known)))
        entry.done()
    return tuple(found)


def _signature(name: str, fields: Fields) -> Family:
    """What families and composites have in common; selection is left empty."""
    arguments = tuple(map(_argument, fields.objects("arguments")))
    scalars = tuple(map(_scalar, fields.objects("scalars")))
    if len(arguments) + len(scalars) > MAX_ARGUMENTS:
        raise wrong(f"{fields.where}.arguments", f"at most {MAX_ARGUMENTS} arguments and scalars",
                    len(arguments) + len(scalars))
    scalar_names = [scalar.name for scalar in scalars]
    unique([argument.name for argument in arguments] + scalar_names, f"{fields.where}.arguments")
    dimensions = _dimensions(arguments, scalar_names, fields.where)
    for used in (*(argument.name for argument in arguments), *scalar_names, *dimensions):
        if is_reserved(used):
            raise wrong(f"{fields.where}.arguments", "names that the loader leaves to a signature", used)
    family = Family(name, fields.text("summary"), arguments, scalars, (), None, {}, {}, (), dimensions)
    known = _problem_names(family)
    constraints = _constraints(fields, "constraints", known)
    skip = fields.take("skip")
    if skip is not None:
        skip = to_expression(skip, f"{fields.where}.skip", known)
    return family._replace(constraints=constraints, skip=skip)


# Composites


def _composite(name: str, fields: Fields, families: Mapping[str, Family]) -> Composite:
    signature = _signature(name, fields)
    known = frozenset([*signature.dimensions, *(scalar.name for scalar in signature.scalars)])
    split = fields.choice("split", signature.dimensions)
    for argument in signature.arguments:
        uses = [split in expression.names(entry) for entry in argument.shape]
        if any(uses) and (any(uses[1:]) or argument.shape[0] != split):
            raise wrong(f"{fields.where}.split", f"a dimension that {argument.name} has whole and first", split)
    workspace = tuple(_scratch(entry, signature, known) for entry in fields.objects("workspace"))
    buffers = [argument.name for argument in signature.arguments] + [scratch.name for scratch in workspace]
    unique(buffers, f"{fields.where}.workspace")
    optional = frozenset(argument.name for argument in signature.arguments if argument.optional)
    steps = tuple(_step(entry, frozenset(buffers), optional, known, families) for entry in fields.objects("steps"))
    fields.done()
    return Composite(signature, split, workspace, steps)


def _scratch(fields: Fields, signature: Family, known: frozenset[str]) -> Scratch:
    dtypes = [*DTYPE_BYTES, *_required(signature)]
    scratch = Scratch(fields.text("name", _IDENTIFIER), fields.choice("dtype", dtypes),
                      fields.expressions("shape", known))
    fields.done()
    return scratch


def _step(fields: Fields, buffers: frozenset[str], optional: frozenset[str], known: frozenset[str],
          families: Mapping[str, Family]) -> Step:
    family = families[fields.choice("kernel", families)]
    arguments, scalars = fields.mapping("arguments"), fields.mapping("scalars")
    for key, given, expected in (("arguments", arguments, family.arguments), ("scalars", scalars, family.scalars)):
        if set(given) != {entry.name for entry in expected}:
            raise wrong(f"{fields.where}.{key}", f"those of {family.name}", sorted(given))
    for argument in family.arguments:
        buffer, where = arguments[argument.name], f"{fields.where}.arguments.{argument.name}"
        if buffer is None and argument.optional:
            continue
        if type(buffer) is not str or buffer not in buffers:
            raise wrong(where, "an argument or a buffer of the workspace", buffer)
        if buffer in optional and not argument.optional:
            raise wrong(where, "a buffer that every call gives", buffer)
    step = Step(family.name, arguments, {scalar: to_expression(value, f"{fields.where}.scalars.{scalar}", known)
                                         for scalar, value in scalars.items()})
    fields.done()
    return step


# Artifacts


def _parameter(fields: Fields, family: Family, known: frozenset[str]) -> Parameter:
    kind = fields.choice("kind", ("pointer", "scalar", "tensor_map"))
    name, offset = fields.text("name", _IDENTIFIER), fields.integer("offset", 0, 1 << 16)
    size = fields.integer("size", 1, TENSOR_MAP_BYTES)
    if kind == "scalar":
        dtype = fields.choice("dtype", SCALAR_FORMATS)
        value = fields.expression("value", known)
        return ScalarParameter(name, offset, size, dtype, value)
    if kind == "pointer":
        argument = fields.choice("argument", [argument.name for argument in family.arguments])
        return PointerParameter(name, offset, size, argument)
    parameter = TensorMapParameter(
        name, offset, size,
        fields.choice("argument", _required(family)),
        fields.choice("element", TENSOR_MAP_ELEMENTS),
        fields.expressions("dims", known),
        fields.expressions("strides", known),
        fields.expressions("box", known),
        fields.choice("swizzle", SWIZZLES),
        fields.choice("l2_promotion", L2_PROMOTIONS),
    )
    rank = len(parameter.dims)
    if not 1 <= rank <= 5 or len(parameter.strides) != rank - 1 or len(parameter.box) != rank:
        raise wrong(fields.where, "1 to 5 dims, one stride fewer, as many box entries",
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


class _SameParameters:
    """The parameters read last: those of neighbouring artifacts are mostly equal, and comparing is cheaper."""

    raw: Any = None
    known: frozenset[str] = frozenset()
    checked: tuple[tuple[Parameter, ...], int] = ((), 0)

    def read(self, fields: Fields, family: Family, known: frozenset[str]) -> tuple[tuple[Parameter, ...], int]:
        raw = (family.name, fields.take("parameters"), fields.take("parameter_bytes"))
        if raw != self.raw or known != self.known:
            checked = _parameters(Fields({"parameters": raw[1], "parameter_bytes": raw[2]}, fields.where), family,
                                  known)
            self.raw, self.known, self.checked = raw, known, checked
        return self.checked


def _parameters(fields: Fields, family: Family, known: frozenset[str]) -> tuple[tuple[Parameter, ...], int]:
    parameters = []
    for entry in fields.objects("parameters"):
        parameters.append(_parameter(entry, family, known))
        entry.done()
    unique([parameter.name for parameter in parameters], f"{fields.where}.parameters")
    offsets, end = layout(map(_abi, parameters))
    for i, (parameter, offset) in enumerate(zip(parameters, offsets, strict=True)):
        if (parameter.offset, parameter.size) != (offset, _abi(parameter)[0]):
            raise wrong(f"{fields.where}.parameters[{i}]", f"offset {offset} and size {_abi(parameter)[0]} (C ABI)",
                         (parameter.offset, parameter.size))
    total = fields.integer("parameter_bytes", 0, 1 << 16)
    if total != end:
        raise wrong(f"{fields.where}.parameter_bytes", str(end), total)
    return tuple(parameters), total


def _triple(fields: Fields, key: str, low: int, high: int) -> tuple[int, int, int]:
    values = fields.items(key)
    if len(values) != 3:
        raise wrong(f"{fields.where}.{key}", "three integers", values)
    for value in values:
        to_integer(value, f"{fields.where}.{key}", low, high)
    return tuple(values)


def _launch(fields: Fields, known: frozenset[str]) -> Launch:
    grid = fields.expressions("grid", known)
    if len(grid) != 3:
        raise wrong(f"{fields.where}.grid", "three expressions", grid)
    block, cluster = _triple(fields, "block", 1, 1024), _triple(fields, "cluster", 1, 16)
    if block[0] * block[1] * block[2] > 1024:
        raise wrong(f"{fields.where}.block", "at most 1024 threads", block)
    shared, pdl = fields.integer("shared", 0, 1 << 20), fields.flag("pdl")
    fields.done()
    return Launch(grid, block, cluster, shared, pdl)


def _axes(fields: Fields, family: Family) -> dict[str, int | str]:
    axes = fields.mapping("axes")
    for axis, value in axes.items():
        if not _IDENTIFIER.fullmatch(axis):
            raise wrong(f"{fields.where}.axes", "names of axes", axis)
        if type(value) is int:
            to_integer(value, f"{fields.where}.axes.{axis}", -(1 << 31), 1 << 31)
        elif type(value) is not str or not value.isprintable():
            raise wrong(f"{fields.where}.axes.{axis}", "an integer or text", value)
    for axis in family.match:
        if axis not in axes:
            raise wrong(f"{fields.where}.axes", f"the matched axis {axis}", sorted(axes))
    return axes


def _artifact(fields: Fields, families: Mapping[str, Family], same: _SameParameters, schema: int) -> Artifact:
    family = families[fields.choice("family", families)]
    variant, architecture = fields.text("variant", _VARIANT), fields.choice("arch", arch.ARCHS)
    axes = _axes(fields, family)
    problem = _problem_names(family) | {"sm_count"}
    clash = problem.intersection(axes)
    if clash:
        raise wrong(f"{fields.where}.axes", "names that mean nothing else", sorted(clash))
    # Text is no number: Python would repeat it, or format it, to any length.
    known = problem.union(axis for axis, value in axes.items() if type(value) is int)
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
        None if cost is None else to_expression(cost, f"{fields.where}.cost", known.union(family.features)),
        _constraints(fields, "requires", known) if schema >= 5 else (),
    )
    fields.done()
    return artifact


def _check_artifacts(artifacts: Iterable[Artifact]) -> None:
    """No artifact twice, and every file with one digest and size."""
    unique((f"{a.family}/{a.variant}/{a.arch}" for a in artifacts), "artifacts")
    files: dict[str, StoredFile] = {}
    for artifact in artifacts:
        for stored in (artifact.binary, artifact.ptx):
            if files.setdefault(stored.file, stored) != stored:
                raise DuplicateError(f"artifacts: {stored.file!r} is given two digests or sizes",
                                     where="artifacts", file=stored.file)


# The document


def _in_range(fields: Fields, key: str, accepted: tuple[int, int]) -> int:
    value = fields.take(key)
    if type(value) is not int or not accepted[0] <= value <= accepted[1]:
        raise SchemaError(f"{MANIFEST_NAME}: {key} {shown(value)}, this loader reads {accepted[0]} to {accepted[1]}",
                          where=key, expected=accepted, got=value)
    return value


def _toolchain(value: dict[str, Any]) -> dict[str, Any]:
    """Words, and lists of words."""
    for key, said in value.items():
        for word in (key, *(said if type(said) is list else [said])):
            if type(word) is not str or not word.isprintable():
                raise wrong("manifest.toolchain", "words and lists of words", {key: said})
    return value


def parse(data: bytes) -> Manifest:
    """A manifest from the bytes of ``manifest.json``.

    Raises ``ManifestSyntaxError``, ``SchemaError``, ``PackPathError``, ``DuplicateError`` or ``ManifestError``; each
    names the entry by its path in the document.
    """
    fields = Fields(decode(data, MANIFEST_NAME, MAX_MANIFEST_BYTES), "manifest")
    schema, abi = _in_range(fields, "schema", SCHEMAS), _in_range(fields, "abi", ABIS)
    toolchain = _toolchain(fields.mapping("toolchain"))
    digest = fields.text("source_digest", _SHA256)
    families = {}
    for name, value in fields.mapping("families").items():
        if not _IDENTIFIER.fullmatch(name):
            raise wrong("manifest.families", "names of families", name)
        families[name] = _family(name, Fields(value, f"families.{name}"))
    for name, family in families.items():
        base = families.get(family.overloads) if family.overloads is not None else None
        if family.overloads is not None and (base is None or base.overloads is not None or not own_names(family, base)):
            raise wrong(f"families.{name}.overloads", "a family whose calls differ by the name of an argument",
                        family.overloads)
    composites = {}
    for name, value in (fields.mapping("composites") if schema >= 2 else {}).items():
        if not _IDENTIFIER.fullmatch(name) or name in families:
            raise wrong("manifest.composites", "names of composites, of no family", name)
        composites[name] = _composite(name, Fields(value, f"composites.{name}"), families)
    same = _SameParameters()
    artifacts = tuple(_artifact(Fields(value, f"artifacts[{i}]"), families, same, schema)
                      for i, value in enumerate(fields.items("artifacts")))
    fields.done()
    _check_artifacts(artifacts)
    return Manifest(schema, abi, toolchain, digest, families, composites, artifacts)
