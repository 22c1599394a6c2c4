"""A layer's experts, or its dense MLP, as a checkpoint has them, and which part of them is meant, without a byte of a
tensor."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .expert_formats import (
    ALONE,
    EXPERT_FIRST,
    FORMATS,
    FUSED,
    PROJECTION_FIRST,
    SOURCES,
    TARGETS,
    UNNUMBERED,
    WHOLE_NAME,
    CheckpointError,
    Format,
    Source,
    Target,
)
from .scale_layouts import round_up

FORMAT = "block-scaled-moe"
VERSION = "3"
NAMES = (EXPERT_FIRST, PROJECTION_FIRST, UNNUMBERED, WHOLE_NAME)
Units = tuple[int, int]  # rows and columns of values that one item of an array stands for


@dataclasses.dataclass(frozen=True)
class Layer:
    """The experts of one layer, and which part of them is meant: what ``restore`` must know beside the arrays.

    A dense MLP, or experts that every token has, are one expert; a matrix alone is one that has down only, whose rows
    and columns are H and I.
    """

    prefix: str
    source: str
    names: str  # with {prefix}, {expert}, {projection} and {suffix}
    projections: tuple[str, ...]
    experts: int
    weights: str = ""  # their format
    target: str = ""
    types: tuple[str, ...] = ("", "", "")  # dtypes of values, scales and biases, or nothing
    transposed: bool = False  # K is the last but one dimension
    hidden: int = 0
    intermediate: int = 0
    columns: tuple[int, int] = (0, 0)  # K of gate and of down as they are stored: H and I, or rounded up
    # Of global scales by suffix, as the first expert has it, and by name where it is another one. Without global scales
    # of the activation, their suffix is not there.
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    other_shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    weight_shape: str = ""  # dtype of tensors that repeat N and K, or nothing
    tp: int = 1
    rank: int = 0
    ep: int = 1
    ep_rank: int = 0

    @property
    def metadata(self) -> dict[str, str]:
        """The layer as the metadata of a prepared file: words as they are, the rest as JSON."""
        fields = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in dataclasses.asdict(self).items()
        }
        return {"format": FORMAT, "version": VERSION, **fields}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Layer:
        found = (metadata.get("format"), metadata.get("version"))
        if found != (FORMAT, VERSION):
            raise CheckpointError(f"metadata of format and version {found}, expected {(FORMAT, VERSION)}")
        values = {}
        for field in dataclasses.fields(cls):
            if field.name not in metadata:
                raise CheckpointError(f"metadata without {field.name}")
            text = metadata[field.name]
            try:
                values[field.name] = text if field.type == "str" else _with_tuples(json.loads(text))
            except (json.JSONDecodeError, RecursionError):
                raise CheckpointError(f"metadata with {field.name} {text!r}, which is not JSON") from None
            if not _FITS[field.type](values[field.name]):
                raise CheckpointError(f"metadata with {field.name} {text!r}, expected JSON of {field.type}")
        if values["source"] not in SOURCES or values["names"] not in NAMES:
            raise CheckpointError(f"metadata of source {values['source']!r} with names {values['names']!r}")
        if values["weights"] not in FORMATS or values["target"] not in FORMATS[values["weights"]].targets:
            raise CheckpointError(f"metadata of {values['weights']!r} for {values['target']!r}")
        for part, count in (("rank", "tp"), ("ep_rank", "ep")):
            if (of := values[count]) <= values[part]:
                raise CheckpointError(f"metadata with {part} {values[part]}, expected less than {count} {of}")
        return cls(**values)

    @property
    def tool(self) -> Source:
        return SOURCES[self.source]

    @property
    def form(self) -> Format:
        return FORMATS[self.weights]

    @property
    def kernels(self) -> Target:
        return TARGETS[self.target]

    @property
    def routed(self) -> bool:
        """Whether tokens choose among experts."""
        return self.prefix.endswith(".experts")

    @property
    def alone(self) -> bool:
        return self.projections == ALONE

    @property
    def arrays(self) -> tuple[str, ...]:
        """Of values: each has scales."""
        return ("w2",) if self.alone else ("w13", "w2")

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Of gate, up and down: array, and which matrix of it."""
        return (("w2", 0),) if self.alone else (("w13", 0), ("w13", 1), ("w2", 0))

    @property
    def stacked(self) -> bool:
        return self.names == UNNUMBERED and self.routed

    @property
    def input_scales(self) -> bool:
        return self.tool.input_global in self.shapes

    @property
    def biases(self) -> bool:
        return bool(self.types[2])

    @property
    def owned(self) -> range:
        """The experts of the rank of expert parallelism; the first ranks have one more where they do not divide."""
        share, more = divmod(self.experts, self.ep)
        begin = self.ep_rank * share + min(self.ep_rank, more)
        return range(begin, begin + share + (self.ep_rank < more))

    @property
    def share(self) -> tuple[int, int]:
        """The values of I that the rank has, from and to."""
        return self._share(self.rank)

    def _share(self, rank: int) -> tuple[int, int]:
        """Whole blocks, as evenly as they go: what the ranks add up to does not depend on where the cut is, as long as
        gate, up and down are cut alike."""
        step = self.form.step
        groups = -(-self.intermediate // step)
        return groups * rank // self.tp * step, groups * (rank + 1) // self.tp * step

    def stored(self, name: str) -> tuple[int, int, int]:
        """Of ``w13`` or ``w2`` of an expert as kernels take it: how many matrices, and N and K of each, padded. All
        ranks have the same."""
        kernels = self.kernels
        shares = map(self._share, range(self.tp))
        largest = round_up(max(min(end, self.intermediate) - begin for begin, end in shares), kernels.intermediate)
        if name == "w2":
            return 1, round_up(self.hidden, kernels.outputs), largest
        inputs = round_up(self.hidden, kernels.inputs)
        return (1, 2 * largest, inputs) if kernels.turn else (2, largest, inputs)

    def extent(self, name: str) -> tuple[int, int]:
        """N and K of gate or of up, or of down, that the rank has."""
        begin, end = self.share
        if name == "w2":
            return self.hidden, min(end, self.columns[1]) - begin
        return min(end, self.intermediate) - begin, self.columns[0]

    def cut(self, name: str, units: Units) -> tuple[slice, slice]:
        """Rows and columns of gate or of up, or of down, that the rank has."""
        begin, (count, k) = self.share[0], self.extent(name)
        if name == "w2":
            return slice(None), slice(begin // units[1], -(-(begin + k) // units[1]))
        return slice(begin // units[0], -(-(begin + count) // units[0])), slice(None)

    def grid(self, n: int, k: int) -> tuple[int, int]:
        """Rows and columns of the scales of a matrix."""
        rows, columns = self.form.block
        return -(-n // rows), -(-k // columns)

    def name(self, expert: int, projection: str, suffix: str) -> str:
        return self.names.format(prefix=self.prefix, expert=expert, projection=projection, suffix=suffix)

    def shape(self, name: str, suffix: str) -> tuple[int, ...]:
        return self.other_shapes.get(name, self.shapes[suffix])

    def owned_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the global scales of stacked experts, one for each, those that the rank has."""
        if not self.stacked or math.prod(shape) == 1:
            return shape
        return (len(self.owned), *shape[1:])

    def size(self, projection: str) -> tuple[int, int]:
        """N and K of an expert's matrix."""
        if projection == self.projections[-1]:
            return self.hidden, self.intermediate
        return self.intermediate * halves(projection), self.hidden

    def entries(self, projection: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of the values, of their scales and of the bias, by suffix."""
        (n, k), columns = self.size(projection), self.columns[projection == self.projections[-1]]
        tool, width = self.tool, columns // self.form.pack
        shapes = [(n, width), self.grid(n, k)]
        if self.transposed:
            shapes = [shape[::-1] for shape in shapes]
        if tool.chunk:
            shapes[0] = (n, width // tool.chunk, tool.chunk)
        shapes.append((n,))
        if self.stacked:
            shapes = [(self.experts, *shape) for shape in shapes]
        suffixes = (tool.values, tool.scale, tool.bias)
        return {
            suffix: (dtype, shape)
            for suffix, dtype, shape in zip(suffixes, self.types, shapes, strict=True)
            if dtype
        }

    def split(self, projection: str, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of gate and of up where a projection has both, or the rows."""
        count = halves(projection)
        return [rows[half::count] for half in range(count)] if self.tool.in_turn else np.split(rows, count)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """What ``split`` took apart."""
        if self.tool.in_turn:
            return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
        return np.concatenate(parts)


def halves(projection: str) -> int:
    """How many matrices of the kernels a projection holds."""
    return 2 if projection == FUSED else 1


def _counts(value: object) -> bool:
    return isinstance(value, tuple) and all(type(item) is int and item >= 0 for item in value)


# What a field of ``Layer`` may hold, by its annotation.
_FITS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: _counts((value,)),
    "bool": lambda value: isinstance(value, bool),
    "tuple[str, ...]": lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
    "tuple[int, int]": lambda value: _counts(value) and len(value) == 2,
    "dict[str, tuple[int, ...]]": lambda value: isinstance(value, dict) and all(map(_counts, value.values())),
}


def _with_tuples(value: object) -> object:
    """JSON with tuples for its lists."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
