"""Numbers of one launch: an artifact's expressions evaluated for a problem and checked against what hardware takes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from . import expression
from .errors import LaunchLimitError
from .expression import Expression, Function, Number
from .manifest import (
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


def _limit(kernel: str, what: str, got: object, allowed: str) -> LaunchLimitError:
    return LaunchLimitError(f"{kernel}: {what} is {got}, allowed is {allowed}", kernel=kernel, what=what, got=got,
                            limit=allowed)


def _is_whole(extent: Number, low: int, high: int) -> bool:
    """Whether it is an integer from ``low`` to ``high``; an expression may also give a float."""
    return type(extent) is int and low <= extent <= high


def _check_grid(kernel: str, grid: tuple[int, ...], cluster: tuple[int, ...]) -> None:
    for axis, extent, limit, blocks in zip("xyz", grid, GRID_LIMITS, cluster, strict=True):
        if not _is_whole(extent, 1, limit):
            raise _limit(kernel, f"grid.{axis}", extent, f"1 .. {limit}")
        if extent % blocks:
            raise _limit(kernel, f"grid.{axis}", extent, f"a multiple of the cluster's {blocks}")


def _check_map(kernel: str, m: TensorMap) -> None:
    """The conditions of cuTensorMapEncodeTiled, whose own answer is only "invalid value"."""
    size, unpacks = TENSOR_MAP_ELEMENTS[m.element], m.element == "u4_align16"
    granule = 32 if unpacks else 16
    for i, extent in enumerate(m.dims):
        if not _is_whole(extent, 1, 1 << 32):
            raise _limit(kernel, f"{m.name}.dims[{i}]", extent, "1 .. 2^32")
    for i, stride in enumerate(m.strides):
        if not _is_whole(stride, 1, (1 << 40) - 1) or stride % granule:
            raise _limit(kernel, f"{m.name}.strides[{i}]", stride, f"a multiple of {granule} below 2^40")
    if unpacks and (m.dims[0] % 128 or m.box[0] != 128):
        raise _limit(kernel, f"{m.name}: dims[0] and box[0]", (m.dims[0], m.box[0]), "a multiple of 128, and 128")
    for i, extent in enumerate(m.box):
        if not _is_whole(extent, 1, 256):
            raise _limit(kernel, f"{m.name}.box[{i}]", extent, "1 .. 256")
    if m.box[0] * size % 16 or (m.swizzle and m.box[0] * size > m.swizzle):
        span = f", at most {m.swizzle}" if m.swizzle else ""
        raise _limit(kernel, f"{m.name}: bytes of box[0]", m.box[0] * size, f"a multiple of 16{span}")


class Evaluator:
    """The launches of an artifact; ``arguments`` are the family's argument indices by name."""

    def __init__(self, artifact: Artifact, arguments: Mapping[str, int]) -> None:
        self._kernel = f"{artifact.family}/{artifact.variant}"
        self._artifact, launch = artifact, artifact.launch
        self._grid = _functions(launch.grid)
        codes, self._fields, self._pointers = ["<"], [], {}
        self._scalars: list[tuple[int, ScalarParameter, Function]] = []
        self._maps: list[tuple[int, TensorMapParameter, int, tuple[tuple[Function, ...], ...]]] = []
        end = 0
        for index, parameter in enumerate(artifact.parameters):
            codes.append(f"{parameter.offset - end}x")
            end = parameter.offset + parameter.size
            if isinstance(parameter, PointerParameter):
                codes.append("Q")
                self._fields.append(0)
                self._pointers[index] = arguments[parameter.argument]
            elif isinstance(parameter, ScalarParameter):
                codes.append(SCALAR_FORMATS[parameter.dtype][0])
                self._fields.append(0)
                self._scalars.append((index, parameter, expression.function(parameter.value)))
            else:
                codes.append(f"{TENSOR_MAP_BYTES}s")
                self._fields.append(bytes(TENSOR_MAP_BYTES))
                self._maps.append((index, parameter, arguments[parameter.argument], tuple(
                    map(_functions, (parameter.dims, parameter.strides, parameter.box)))))
        self._layout = struct.Struct("".join(codes))
        self._offsets = tuple(parameter.offset for parameter in artifact.parameters)

    def evaluate(self, values: Mapping[str, Number]) -> Geometry:
        """The launch for a problem.

        ``values`` are dimensions, scalars, element sizes and ``sm_count``. ``LaunchLimitError`` names what hardware
        cannot take.
        """
        values = {**values, **self._artifact.axes}
        launch = self._artifact.launch
        grid = tuple([extent(values) for extent in self._grid])
        _check_grid(self._kernel, grid, launch.cluster)
        fields = self._fields.copy()
        for index, parameter, value in self._scalars:
            fields[index] = value(values)
            _check_scalar(self._kernel, parameter, fields[index])
        maps = {}
        for index, parameter, argument, shape in self._maps:
            dims, strides, box = [tuple([extent(values) for extent in extents]) for extents in shape]
            maps[index] = TensorMap(parameter.name, argument, parameter.element, dims, strides, box,
                                    parameter.swizzle, parameter.l2_promotion)
            _check_map(self._kernel, maps[index])
        return Geometry(grid, launch.block, launch.cluster, launch.shared, launch.pdl, self._layout, self._offsets,
                        tuple(fields), self._pointers, maps)


def _functions(entries: tuple[Expression, ...]) -> tuple[Function, ...]:
    return tuple(map(expression.function, entries))


def _check_scalar(kernel: str, parameter: ScalarParameter, value: Number) -> None:
    try:
        struct.pack("<" + SCALAR_FORMATS[parameter.dtype][0], value)
    except (struct.error, OverflowError):
        raise _limit(kernel, parameter.name, value, f"what fits {parameter.dtype}") from None
