"""Numbers of one launch: an artifact's expressions evaluated for a problem and checked against what hardware takes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from loader import expression
from loader.errors import LaunchLimitError
from loader.expression import Expression, Number
from loader.manifest import (
    SCALAR_FORMATS,
    TENSOR_MAP_BYTES,
    TENSOR_MAP_ELEMENTS,
    Artifact,
    PointerParameter,
    ScalarParameter,
    TensorMapParameter,
)

# Limits of a grid (CUDA programming guide, compute capabilities 9.0 to 12.x).
GRID_LIMITS = (2**31 - 1, 65535, 65535)


class TensorMap(NamedTuple):
    """A tensor map parameter with numbers for expressions; ``argument`` is an index."""

    name: str
    argument: int
    element: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    l2_promotion: int


class Geometry(NamedTuple):
    """One launch without its addresses.

    ``layout`` packs the whole parameter buffer from ``fields``, one a parameter; the fields at the indices of
    ``pointers`` (to argument indices) and ``maps`` are placeholders.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared: int
    pdl: bool
    layout: struct.Struct
    offsets: tuple[int, ...]
    fields: tuple[Number | bytes, ...]
    pointers: Mapping[int, int]
    maps: Mapping[int, TensorMap]


def _integers(entries: tuple[Expression, ...], values: Mapping[str, Number]) -> tuple[int, ...]:
    return tuple(expression.evaluate(entry, values) for entry in entries)


def _limit(kernel: str, what: str, got: object, allowed: str) -> LaunchLimitError:
    return LaunchLimitError(f"{kernel}: {what} is {got}, allowed is {allowed}", kernel=kernel, what=what, got=got,
                            limit=allowed)


def _check_grid(kernel: str, grid: tuple[int, ...], cluster: tuple[int, ...]) -> None:
    for axis, extent, limit, blocks in zip("xyz", grid, GRID_LIMITS, cluster, strict=True):
        if type(extent) is not int or not 1 <= extent <= limit:
            raise _limit(kernel, f"grid.{axis}", extent, f"1 .. {limit}")
        if extent % blocks:
            raise _limit(kernel, f"grid.{axis}", extent, f"a multiple of the cluster's {blocks}")


def _check_map(kernel: str, m: TensorMap) -> None:
    """The conditions of cuTensorMapEncodeTiled, whose own answer is only "invalid value"."""
    size = TENSOR_MAP_ELEMENTS[m.element]
    for i, extent in enumerate(m.dims):
        if not 1 <= extent <= 1 << 32:
            raise _limit(kernel, f"{m.name}.dims[{i}]", extent, "1 .. 2^32")
    for i, stride in enumerate(m.strides):
        if not 0 < stride < 1 << 40 or stride % 16:
            raise _limit(kernel, f"{m.name}.strides[{i}]", stride, "a multiple of 16 below 2^40")
    for i, extent in enumerate(m.box):
        if not 1 <= extent <= 256:
            raise _limit(kernel, f"{m.name}.box[{i}]", extent, "1 .. 256")
    if m.box[0] * size % 16 or (m.swizzle and m.box[0] * size > m.swizzle):
        span = f", at most {m.swizzle}" if m.swizzle else ""
        raise _limit(kernel, f"{m.name}: bytes of box[0]", m.box[0] * size, f"a multiple of 16{span}")


def evaluate(artifact: Artifact, arguments: Mapping[str, int], values: Mapping[str, Number]) -> Geometry:
    """The launch of an artifact for a problem.

    ``arguments`` are indices by name; ``values`` dimensions, scalars, element sizes and ``sm_count``.
    ``LaunchLimitError`` names what hardware cannot take.
    """
    kernel = f"{artifact.family}/{artifact.variant}"
    values = {**values, **artifact.axes}
    grid = _integers(artifact.launch.grid, values)
    _check_grid(kernel, grid, artifact.launch.cluster)

    codes, fields, pointers, maps = ["<"], [], {}, {}
    end = 0
    for index, parameter in enumerate(artifact.parameters):
        codes.append(f"{parameter.offset - end}x")
        end = parameter.offset + parameter.size
        if isinstance(parameter, PointerParameter):
            codes.append("Q")
            fields.append(0)
            pointers[index] = arguments[parameter.argument]
        elif isinstance(parameter, ScalarParameter):
            codes.append(SCALAR_FORMATS[parameter.dtype][0])
            fields.append(_scalar(kernel, parameter, values))
        else:
            codes.append(f"{TENSOR_MAP_BYTES}s")
            fields.append(bytes(TENSOR_MAP_BYTES))
            maps[index] = _map(kernel, parameter, arguments, values)
    launch = artifact.launch
    return Geometry(grid, launch.block, launch.cluster, launch.shared, launch.pdl, struct.Struct("".join(codes)),
                    tuple(parameter.offset for parameter in artifact.parameters), tuple(fields), pointers, maps)


def _scalar(kernel: str, parameter: ScalarParameter, values: Mapping[str, Number]) -> Number:
    value = expression.evaluate(parameter.value, values)
    try:
        struct.pack("<" + SCALAR_FORMATS[parameter.dtype][0], value)
    except (struct.error, OverflowError):
        raise _limit(kernel, parameter.name, value, f"what fits {parameter.dtype}") from None
    return value


def _map(kernel: str, parameter: TensorMapParameter, arguments: Mapping[str, int],
         values: Mapping[str, Number]) -> TensorMap:
    resolved = TensorMap(parameter.name, arguments[parameter.argument], parameter.element,
                         _integers(parameter.dims, values), _integers(parameter.strides, values),
                         _integers(parameter.box, values), parameter.swizzle, parameter.l2_promotion)
    _check_map(kernel, resolved)
    return resolved
