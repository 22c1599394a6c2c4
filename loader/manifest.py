"""The manifest of a pack: docs/manifest.md as types, which ``reader.parse`` makes from bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from . import expression
from .expression import Expression

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 24 << 20
MAX_FILE_BYTES = 64 << 20
MAX_PTX_BYTES = 8 << 20  # of the text, unpacked

# Bytes of one element as it is stored; `e2m1x2` is two E2M1 values in a byte.
DTYPE_BYTES: dict[str, int] = {
    "e2m1x2": 1, "ue4m3": 1, "ue8m0": 1, "e4m3": 1, "u8": 1, "i32": 4, "i64": 8, "f32": 4, "f16": 2, "bf16": 2,
}
# dtype of a scalar parameter -> (struct format, bytes)
SCALAR_FORMATS: dict[str, tuple[str, int]] = {"i32": ("i", 4), "i64": ("q", 8), "u32": ("I", 4), "f32": ("f", 4)}
# Bytes of one element in shared memory; `u4_align16` is packed in global memory, of which 16 elements become 16 bytes,
# and `tf32` is fp32 there, rounded on its way.
TENSOR_MAP_ELEMENTS: dict[str, int] = {
    "u8": 1, "u16": 2, "u32": 4, "f32": 4, "tf32": 4, "bf16": 2, "f16": 2, "u4_align16": 1,
}
TENSOR_MAP_BYTES = 128
TENSOR_MAP_ALIGNMENT = 64
SWIZZLES = (0, 32, 64, 128)

# Names that no argument, scalar or dimension can have: a call could not give them, for its own keywords have them ...
KEYWORDS = frozenset({"stream", "device", "variant", "packs", "trust", "workspace"})
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
    overloads: str | None = None  # a family that is called by the arguments of this one, too


def own_names(family: Family, base: Family) -> frozenset[str]:
    """Of required arguments that ``base`` does not take: a call with one of these is one of ``family``."""
    return frozenset(argument.name for argument in family.arguments if not argument.optional) - {
        argument.name for argument in base.arguments}


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
    requires: tuple[Constraint, ...] = ()


class Manifest(NamedTuple):
    schema: int
    abi: int
    toolchain: Mapping[str, Any]
    source_digest: str
    families: Mapping[str, Family]
    composites: Mapping[str, Composite]
    artifacts: tuple[Artifact, ...]


def integer_inputs(arguments: Iterable[Any]) -> list[str]:
    """The arguments that a rule of values may be about: integers that every call gives."""
    return [a.name for a in arguments if not a.optional and a.direction == "in" and {"i32", "i64"}.issuperset(a.dtypes)]


def layout(abi: Iterable[tuple[int, int]]) -> tuple[list[int], int]:
    """C ABI offsets of parameters of the given (size, alignment), and the size of the whole buffer."""
    offsets, end = [], 0
    for size, alignment in abi:
        offset = expression.round_up(end, alignment)
        offsets.append(offset)
        end = offset + size
    return offsets, end
