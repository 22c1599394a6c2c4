"""The shape of kernels.yaml: which keys exist, and of which type. What the values mean together: generator.expand.

Expressions are parsed while the models are built, so a model holds their list form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from generator.expression import is_name, parse
from loader.errors import ExpressionError

DType = Literal["e2m1x2", "ue4m3", "ue8m0", "e4m3", "u8", "i32", "i64", "f32", "f16", "bf16"]
ScalarDType = Literal["i32", "i64", "u32", "f32"]
ElementType = Literal["u8", "u16", "u32", "f32", "tf32", "bf16", "f16", "u4_align16"]


def _expression(value: Any) -> Any:
    try:
        return parse(value)
    except ExpressionError as error:
        raise ValueError(str(error)) from None


def _name(value: Any) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise ValueError(f"expected a name (letters, digits, underscores; not an operator), got {value!r}")
    return value


def _axis_value(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"expected an integer or a string (0 or 1 for a switch), got {value!r}")
    return value


Expr = Annotated[Any, BeforeValidator(_expression)]
Name = Annotated[str, BeforeValidator(_name)]
AxisValue = Annotated[Any, BeforeValidator(_axis_value)]


def _axis_entry_kind(value: Any) -> str:
    return "<several>" if isinstance(value, dict) else "<one>"


# One entry of an axis: a value, or several values that go together (a tile's extents and its stages).
AxisEntry = Annotated[
    Annotated[dict[Name, AxisValue], Tag("<several>")] | Annotated[AxisValue, Tag("<one>")],
    Discriminator(_axis_entry_kind),
]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Argument(Model):
    name: Name
    direction: Literal["in", "out", "inout"]
    dtypes: Annotated[list[DType], Field(min_length=1)]
    shape: Annotated[list[Expr], Field(min_length=1)]
    alignment: Annotated[int, Field(gt=0)]
    doc: str
    optional: bool = False


class Scalar(Model):
    name: Name
    dtype: ScalarDType
    doc: str
    default: int | float | str | None = None
    choices: Annotated[list[Name], Field(min_length=2)] | None = None


class Pointer(Model):
    pointer: Name
    argument: Name | None = None


class ScalarParameter(Model):
    scalar: Name
    dtype: ScalarDType
    value: Expr


class TensorMap(Model):
    tensor_map: Name
    argument: Name
    element: ElementType | None = None  # that of the argument
    dims: list[Expr]
    strides: list[Expr]
    box: list[Expr]
    swizzle: Expr
    l2_promotion: Literal[0, 64, 128, 256] = 256


_PARAMETER_KINDS = ("pointer", "scalar", "tensor_map")


def _parameter_kind(value: Any) -> str | None:
    kinds = [kind for kind in _PARAMETER_KINDS if isinstance(value, Mapping) and kind in value]
    return f"<{kinds[0]}>" if len(kinds) == 1 else None


Parameter = Annotated[
    Annotated[Pointer, Tag("<pointer>")]
    | Annotated[ScalarParameter, Tag("<scalar>")]
    | Annotated[TensorMap, Tag("<tensor_map>")],
    Discriminator(
        _parameter_kind,
        custom_error_type="parameter_kind",
        custom_error_message=f"expected exactly one of the keys {', '.join(_PARAMETER_KINDS)}",
    ),
]

Triple = Annotated[list[Expr], Field(min_length=3, max_length=3)]


class Launch(Model):
    grid: Triple
    block: Triple
    cluster: Triple
    shared: Expr
    pdl: bool


class MeasuredRow(Model):
    arch: str
    device: str
    features: dict[Name, int | float]
    microseconds: Annotated[dict[str, float | int], Field(min_length=1)]


class Recording(Model):
    """A file that benchmarks/tune.py wrote; what else it says is for people."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    family: str
    rows: Annotated[list[MeasuredRow], Field(min_length=1)]


class Select(Model):
    match: dict[Name, Name] = {}
    features: dict[Name, Expr] = {}
    domain: dict[Name, Annotated[list[int | float], Field(min_length=1)]] = {}
    measured: list[str] = []


class Target(Model):
    template: str
    archs: Annotated[list[str], Field(min_length=1)]
    axes: Annotated[dict[Name, Annotated[list[AxisEntry], Field(min_length=1)]], Field(min_length=1)]
    exclude: list[dict[Name, AxisValue]] = []
    name: str
    constants: dict[Name, Expr] = {}
    parameters: list[Parameter] = []  # in place of the family's of the same name, or behind them
    launch: Launch
    cost: Expr | None = None
    requires: list[Expr] = []
    flags: list[str] = []
    local_memory: list[str] = []


class Values(Model):
    argument: Name
    minimum: Expr = 0
    maximum: Expr
    multiple: Expr = 1
    ascending: bool = False
    extents: Name | None = None
    within: Name | None = None


class Family(Model):
    summary: str
    overloads: Name | None = None
    kernels: Name | None = None
    arguments: Annotated[list[Argument], Field(min_length=1)]
    scalars: list[Scalar] = []
    constraints: list[str] = []
    values: list[Values] = []
    skip: Expr | None = None
    select: Select = Select()
    parameters: Annotated[list[Parameter], Field(min_length=1)] | None = None
    targets: Annotated[dict[Name, Target], Field(min_length=1)]


class Scratch(Model):
    name: Name
    dtype: Name
    shape: Annotated[list[Expr], Field(min_length=1)]


class Step(Model):
    kernel: Name
    arguments: dict[Name, Name] = {}
    scalars: dict[Name, Expr] = {}


class Composite(Model):
    summary: str
    arguments: Annotated[list[Argument], Field(min_length=1)]
    scalars: list[Scalar] = []
    constraints: list[str] = []
    skip: Expr | None = None
    split: Name
    workspace: list[Scratch] = []
    steps: Annotated[list[Step], Field(min_length=1)]


class Matrix(Model):
    version: Literal[1] = Field(alias="schema")
    families: Annotated[dict[Name, Family], Field(min_length=1)]
    composites: dict[Name, Composite] = {}


def location(parts: tuple[int | str, ...]) -> str:
    """``("tile", 2, "stages")`` as ``tile[2].stages``; the tags of unions, in angle brackets, are left out."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("<"):
            text += f".{part}" if text else part
    return text


def problems(error: ValidationError) -> list[str]:
    """Every finding of pydantic as ``entry.key: reason``."""
    found = []
    for item in error.errors(include_url=False, include_context=False):
        parts = tuple(part for part in item["loc"] if part != "[key]")
        reason = {
            "extra_forbidden": "unknown key",
            "missing": "missing key",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        if item["type"] not in ("extra_forbidden", "missing", "value_error", "parameter_kind", "json_invalid"):
            reason += f", got {item['input']!r}"
        found.append(f"{location(parts) or 'top level'}: {reason}")
    return found
