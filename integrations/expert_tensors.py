"""The experts of NVFP4 checkpoints, as tools write them: how they name, shape and scale the tensors of a layer.

A ``Checkpoint`` describes a layer once its headers hold every tensor that belongs there, and reads it by experts.
docs/weights.md has the formats.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .safetensors_file import SafetensorsFile, Tensor

FORMAT = "block-scaled-moe"
VERSION = "2"
GROUP = 16  # values of one scale
FUSED = "gate_up_proj"
WEIGHT_SHAPE = ".weight_shape"
INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint that is not what its format says, or that the kernels cannot compute."""


class NotNVFP4Error(CheckpointError):
    """A layer whose experts are in another format, such as BF16."""


@dataclasses.dataclass(frozen=True)
class Source:
    """How a tool names the tensors of a quantised matrix, behind the projection. ``encode``: its global scales multiply
    what is quantised, 2688 / amax; otherwise they multiply what is dequantised, amax / 2688."""

    name: str
    packed: str
    scale: str
    weight_global: str
    input_global: str
    encode: bool

    def decode(self, scale: np.float32) -> np.float32:
        """The factor of dequantised values."""
        return np.float32(1) / scale if self.encode else scale


SOURCES = {
    source.name: source
    for source in (
        Source("modelopt", ".weight", ".weight_scale", ".weight_scale_2", ".input_scale", False),
        Source("modelopt parameters", "", "_weight_scale", "_weight_scale_2", "_input_scale", False),
        Source("modelopt short", "", "_scale", "_scale_2", "_input_scale", False),
        Source(
            "compressed-tensors", ".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale", True
        ),
        Source("compressed-tensors parameters", "_packed", "_scale", "_global_scale", "_input_global_scale", True),
    )
}
# Formats that are not read, by the end of a name that only they have.
FOREIGN = {
    "_blocks": "MXFP4 as gpt-oss has it, which is not supported",
    "pre_quant_scale": "AWQ, which multiplies the activations by pre_quant_scale; that is not supported",
}
PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), (FUSED, "down_proj"))  # gate, up, down
STACKED = "{prefix}.{projection}{suffix}"  # tensors of all experts
EXPERT_FIRST, PROJECTION_FIRST = "{prefix}.{expert}.{projection}{suffix}", "{prefix}.{projection}.{expert}{suffix}"
BELOW = re.compile(r"(?s)(?P<prefix>.+\.experts)\.(?P<rest>.+)")
NAME = re.compile(
    r"(?:(?P<before>0|[1-9]\d{0,8})\.)?(?P<projection>gate_up_proj|gate_proj|up_proj|down_proj|w[123])"
    r"(?:\.(?P<after>0|[1-9]\d{0,8}))?(?P<suffix>(?:[._][a-z_]\w*)?)"
)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A quantised [N, K] as the checkpoint has it: packed [N, K/2], scale [N, K/16], and global scales.

    ``weight_scale`` and ``input_scale`` are those that multiply what is dequantised, ``weight_global`` and
    ``input_global`` the checkpoint's. Without a scale of the activations, the latter are None.
    """

    packed: np.ndarray
    scale: np.ndarray
    weight_global: np.float32
    weight_scale: np.float32
    input_global: np.float32 | None
    input_scale: np.float32 | None


@dataclasses.dataclass(frozen=True)
class Layer:
    """The experts of one layer, and which part of them is meant: what ``restore`` must know beside the arrays."""

    prefix: str
    source: str
    names: str  # with {prefix}, {expert}, {projection} and {suffix}
    projections: tuple[str, ...]
    experts: int
    transposed: bool = False  # K is the last but one dimension
    hidden: int = 0
    intermediate: int = 0
    columns: tuple[int, int] = (0, 0)  # K of gate and of down as they are stored: H and I, or rounded up to 16
    # Of global scales by suffix, as the first expert has it, and by name where it is another one. Without global scales
    # of the activation, their suffix is not there.
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    other_shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    weight_shape: str = ""  # dtype of tensors that repeat N and K, or nothing
    tp: int = 1
    rank: int = 0

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
            except json.JSONDecodeError:
                raise CheckpointError(f"metadata with {field.name} {text!r}, which is not JSON") from None
        if values["source"] not in SOURCES or values["names"] not in (EXPERT_FIRST, PROJECTION_FIRST, STACKED):
            raise CheckpointError(f"metadata of source {values['source']!r} with names {values['names']!r}")
        return cls(**values)

    @property
    def stacked(self) -> bool:
        return self.names == STACKED

    @property
    def input_scales(self) -> bool:
        return SOURCES[self.source].input_global in self.shapes

    @property
    def share(self) -> tuple[int, int]:
        """The values of I that the rank has, from and to. Whole groups, as evenly as they go: what the ranks add up to
        does not depend on where the cut is, as long as gate, up and down are cut alike."""
        groups = -(-self.intermediate // GROUP)
        return groups * self.rank // self.tp * GROUP, groups * (self.rank + 1) // self.tp * GROUP

    @property
    def padded(self) -> tuple[int, int]:
        """H and the rank's part of I as the kernels take them; every rank has the same."""
        groups = -(-self.intermediate // GROUP)
        return round_up(self.hidden, 32), round_up(-(-groups // self.tp) * GROUP, 32)

    def name(self, expert: int, projection: str, suffix: str) -> str:
        return self.names.format(prefix=self.prefix, expert=expert, projection=projection, suffix=suffix)

    def shape(self, name: str, suffix: str) -> tuple[int, ...]:
        return self.other_shapes.get(name, self.shapes[suffix])

    def size(self, projection: str) -> tuple[int, int]:
        """N and K of an expert's matrix."""
        if projection == self.projections[-1]:
            return self.hidden, self.intermediate
        return self.intermediate * halves(projection), self.hidden

    def entries(self, projection: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of the packed values and of their scales, by suffix."""
        (n, k), columns = self.size(projection), self.columns[projection == self.projections[-1]]
        source, shapes = SOURCES[self.source], ((n, columns // 2), (n, -(-k // GROUP)))
        if self.transposed:
            shapes = tuple(shape[::-1] for shape in shapes)
        if self.stacked:
            shapes = tuple((self.experts, *shape) for shape in shapes)
        return {source.packed: ("U8", shapes[0]), source.scale: ("F8_E4M3", shapes[1])}


class Checkpoint:
    """Tensors by name over the files of a checkpoint: a safetensors file, or a folder with one or with an index."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file_of: dict[str, SafetensorsFile] = {}
        index = self.path / INDEX
        if self.path.is_dir() and index.exists():
            self._open_indexed(index)
        else:
            file = SafetensorsFile(self._only_file())
            self._file_of = dict.fromkeys(file.tensors, file)
        self._below: dict[str, list[str]] = {}
        for match in filter(None, map(BELOW.fullmatch, self._file_of)):
            self._below.setdefault(match["prefix"], []).append(match["rest"])
        self.prefixes = sorted(self._below, key=_by_number)

    @property
    def files(self) -> list[Path]:
        return sorted({file.path for file in self._file_of.values()})

    def _only_file(self) -> Path:
        if not self.path.is_dir():
            return self.path
        files = sorted(self.path.glob("*.safetensors"))
        if len(files) != 1:
            raise CheckpointError(f"{self.path}: {len(files)} safetensors files and no {INDEX}")
        return files[0]

    def _open_indexed(self, index: Path) -> None:
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{index}: no weight_map from tensors to files") from None
        files: dict[str, SafetensorsFile] = {}
        for name, file in names:
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{index}: {name} is in {file!r}, which is no file of this folder")
            if not (self.path / file).is_file():
                raise CheckpointError(f"{index}: {name} is in {file}, which is missing")
            if file not in files:
                files[file] = SafetensorsFile(self.path / file)
            if name not in files[file].tensors:
                raise CheckpointError(f"{index}: {name} is not in {file}")
            self._file_of[name] = files[file]

    def entry(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise CheckpointError(f"{self.path}: no tensor {name}")
        return self._file_of[name].tensors[name]

    def read(self, name: str) -> np.ndarray:
        return self._file_of[name].read(name)

    def layer(self, prefix: str, tp: int = 1, rank: int = 0) -> Layer:
        """The experts below ``prefix`` ("model.layers.3.mlp.experts"), every one checked by its headers; of these, the
        part of one of ``tp`` ranks."""
        if prefix not in self._below:
            known = ", ".join(self.prefixes) or "none"
            raise CheckpointError(f"{self.path}: no experts at {prefix}; experts are at: {known}")
        if not 0 <= rank < tp:
            raise CheckpointError(f"rank {rank} of {tp} ranks")
        layer = _describe(self, prefix, self._below[prefix])
        if tp > -(-layer.intermediate // GROUP):
            raise CheckpointError(f"{prefix}: {layer.intermediate} values cannot be split over {tp} ranks by {GROUP}")
        return dataclasses.replace(layer, tp=tp, rank=rank)

    def part(self, layer: Layer, expert: int, projection: str, suffix: str) -> np.ndarray:
        """An expert's packed values [N, K/2] or their scales [N, K/16], of all ranks."""
        tensor = self.read(layer.name(expert, projection, suffix))
        tensor = tensor[expert] if layer.stacked else tensor
        return tensor.T if layer.transposed else tensor

    def matrices(self, layer: Layer, expert: int) -> list[Matrix]:
        """Gate, up and down of an expert, with scales that are numbers the kernels can take."""
        source, found = SOURCES[layer.source], []
        for projection in layer.projections:
            packed, scale = (self.part(layer, expert, projection, suffix) for suffix in (source.packed, source.scale))
            _check_scales(layer.name(expert, projection, source.scale), packed, scale)
            if layer.weight_shape:
                self._check_weight_shape(layer, expert, projection)
            count = halves(projection)
            weights = self._numbers(layer, expert, projection, source.weight_global)
            inputs = self._numbers(layer, expert, projection, source.input_global) if layer.input_scales else None
            for half in range(count):
                rows = slice(half * len(packed) // count, (half + 1) * len(packed) // count)
                weight = weights[half]
                # A matrix of zeros has no largest value, and its global scale may be 0, infinite or NaN.
                if _is_normal(weight):
                    weight_scale = source.decode(weight)
                elif not (packed[rows] & 0x77).any():
                    weight_scale = np.float32(0)
                else:
                    raise _not_normal(layer.name(expert, projection, source.weight_global), weight)
                if inputs is not None and not _is_normal(inputs[half]):
                    raise _not_normal(layer.name(expert, projection, source.input_global), inputs[half])
                scales = (None, None) if inputs is None else (inputs[half], source.decode(inputs[half]))
                found.append(Matrix(packed[rows], scale[rows], weight, weight_scale, *scales))
        return found

    def has_nan_scales(self, layer: Layer) -> bool:
        """Whether blocks of zeros have NaN for a scale; every number of the layer is checked on the way."""
        largest = [matrix.scale.max() for expert in range(layer.experts) for matrix in self.matrices(layer, expert)]
        return max(largest) >= 0x7F

    def _numbers(self, layer: Layer, expert: int, projection: str, suffix: str) -> np.ndarray:
        """The global scales of an expert's projection, one for each half."""
        numbers, count = self.read(layer.name(expert, projection, suffix)).reshape(-1), halves(projection)
        if layer.stacked and numbers.size > 1:
            numbers = numbers.reshape(layer.experts, -1)[expert]
        return np.broadcast_to(numbers, count)

    def _check_weight_shape(self, layer: Layer, expert: int, projection: str) -> None:
        name, size = layer.name(expert, projection, WEIGHT_SHAPE), layer.size(projection)
        if (found := self.read(name).tolist()) != list(size):
            raise CheckpointError(f"{name} is {found}, expected {list(size)}")


def halves(projection: str) -> int:
    """How many matrices of the kernels a projection holds."""
    return 2 if projection == FUSED else 1


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _describe(checkpoint: Checkpoint, prefix: str, rests: list[str]) -> Layer:
    """The layer, once the headers hold every tensor of every expert with its type and shape, and no other tensor."""
    parsed = {rest: NAME.fullmatch(rest) for rest in rests}
    matches = [match for match in parsed.values() if match]
    source = _source(checkpoint, prefix, parsed)
    names = {
        EXPERT_FIRST if match["before"] else PROJECTION_FIRST if match["after"] else STACKED for match in matches
    }
    if len(names) != 1:
        raise CheckpointError(f"{prefix}: experts are named in {len(names)} ways: {', '.join(sorted(names))}")
    present = {match["projection"] for match in matches}
    projections = next((known for known in PROJECTIONS if present <= set(known) and known[-1] in present), None)
    if projections is None:
        raise CheckpointError(f"{prefix}: projections {', '.join(sorted(present))} are none of {PROJECTIONS}")

    numbers = [int(match["before"] or match["after"] or 0) for match in matches]
    layer = _measure(checkpoint, Layer(prefix, source.name, names.pop(), projections, experts=1 + max(numbers)))
    suffixes = {match["suffix"] for match in matches}
    shapes = {
        suffix: checkpoint.entry(layer.name(0, projections[0], suffix)).shape
        for suffix in (source.weight_global, source.input_global)
        if suffix in suffixes
    }
    weight_shape = ""
    if WEIGHT_SHAPE in suffixes and not layer.stacked:
        weight_shape = checkpoint.entry(layer.name(0, projections[0], WEIGHT_SHAPE)).dtype
    layer = dataclasses.replace(layer, shapes=shapes, weight_shape=weight_shape)
    return _check_entries(checkpoint, layer, {f"{prefix}.{rest}" for rest in rests})


def _source(checkpoint: Checkpoint, prefix: str, parsed: Mapping[str, re.Match | None]) -> Source:
    """The tool that wrote the experts, by the names of their global scales."""
    for rest in parsed:
        for ending, meaning in FOREIGN.items():
            if rest.endswith(ending):
                raise CheckpointError(f"{prefix}.{rest}: {meaning}")
    suffixes = {match["suffix"] for match in parsed.values() if match}
    sources = [source for source in SOURCES.values() if source.weight_global in suffixes]
    if len(sources) > 1:
        names = " and ".join(source.name for source in sources)
        raise CheckpointError(f"{prefix}: tensors of {names}: {', '.join(sorted(suffixes))}")
    if not sources:
        some = min(parsed)
        dtype = checkpoint.entry(f"{prefix}.{some}").dtype
        raise NotNVFP4Error(f"{prefix}: experts that are not NVFP4: {some} is {dtype}, and there are no global scales")
    return sources[0]


def _measure(checkpoint: Checkpoint, layer: Layer) -> Layer:
    """The layer with the sizes that its first expert's packed values have."""
    source, ends = SOURCES[layer.source], (layer.projections[0], layer.projections[-1])
    shapes = []
    for projection in ends:
        name = layer.name(0, projection, source.packed)
        entry = checkpoint.entry(name)
        if entry.dtype != "U8" or len(entry.shape) != 2 + layer.stacked or 0 in entry.shape:
            expected = "[E, N, K/2]" if layer.stacked else "[N, K/2]"
            raise CheckpointError(f"{name} is {entry.dtype} {list(entry.shape)}, not packed U8 {expected}")
        shapes.append(entry.shape)
    experts, (gate, down) = layer.experts, (shape[-2:] for shape in shapes)
    # No shapes fit both ways round: the rows of one matrix are the columns of the other, and columns are half.
    transposed = layer.stacked and gate[0] < down[1]
    if transposed:
        gate, down = gate[::-1], down[::-1]
    if layer.stacked:
        experts = shapes[0][0]
    intermediate, hidden = gate[0] // halves(ends[0]), down[0]
    columns = tuple(
        size if packed * 2 == size else round_up(size, GROUP)
        for size, packed in ((hidden, gate[1]), (intermediate, down[1]))
    )
    return dataclasses.replace(
        layer, transposed=transposed, experts=experts, hidden=hidden, intermediate=intermediate, columns=columns
    )


def _check_entries(checkpoint: Checkpoint, layer: Layer, present: set[str]) -> Layer:
    """The layer with the global scales whose shape is another one, if every tensor is there, and no other."""
    source, others, expected = SOURCES[layer.source], {}, set()
    for expert in range(1 if layer.stacked else layer.experts):
        if not any(layer.name(expert, projection, source.packed) in present for projection in layer.projections):
            raise CheckpointError(f"{layer.prefix}: expert {expert} of {layer.experts} is missing")
        for projection in layer.projections:
            tensors = layer.entries(projection)
            if layer.weight_shape:
                tensors[WEIGHT_SHAPE] = (layer.weight_shape, (2,))
            for suffix, (dtype, shape) in tensors.items():
                name = layer.name(expert, projection, suffix)
                entry = checkpoint.entry(name)
                if (entry.dtype, entry.shape) != (dtype, shape):
                    found = f"{entry.dtype} {list(entry.shape)}"
                    raise CheckpointError(f"{name} is {found}, expected {dtype} {list(shape)}")
                expected.add(name)
            for suffix, usual in layer.shapes.items():
                name = layer.name(expert, projection, suffix)
                shape = _check_number_entry(checkpoint, layer, projection, name)
                expected.add(name)
                if shape != usual:
                    others[name] = shape
    if unknown := sorted(present - expected):
        raise CheckpointError(f"{unknown[0]} and {len(unknown) - 1} more have no place in the layout of the kernels")
    return dataclasses.replace(layer, other_shapes=others)


def _check_number_entry(checkpoint: Checkpoint, layer: Layer, projection: str, name: str) -> tuple[int, ...]:
    """The shape of a global scale: one number, or in stacked tensors one for each expert or each half of it."""
    entry, experts = checkpoint.entry(name), layer.experts
    count, fits, what = math.prod(entry.shape), entry.shape in ((), (1,)), "one number"
    if layer.stacked:
        fits = count == 1 or entry.shape[0] == experts and count in (experts, experts * halves(projection))
        what = f"one number, or one for each of {experts} experts"
    if entry.dtype != "F32" or not fits:
        raise CheckpointError(f"{name} is {entry.dtype} {list(entry.shape)}, not F32 of {what}")
    return entry.shape


def _check_scales(name: str, packed: np.ndarray, scale: np.ndarray) -> None:
    """Scales are positive numbers, or NaN where all that they scale is 0: exporters divide 0 by 0 there."""
    if scale.max() < 0x7F:
        return
    nan = scale & 0x7F == 0x7F
    if (scale[~nan] > 0x7F).any():
        raise CheckpointError(f"{name} has a negative scale")
    magnitudes = np.zeros((*scale.shape, GROUP // 2), np.uint8)
    magnitudes.reshape(len(scale), -1)[:, : packed.shape[1]] = packed & 0x77
    if magnitudes[nan].any():
        raise CheckpointError(f"{name} has a NaN scale of values that are not 0")


def _is_normal(number: np.float32) -> bool:
    """Whether the number is positive, and neither it nor its reciprocal a subnormal number."""
    smallest = np.finfo(np.float32).tiny
    return bool(smallest <= number.item() <= 1 / smallest)


def _not_normal(name: str, number: np.float32) -> CheckpointError:
    return CheckpointError(f"{name} is {number.item()}, not a positive normal number")


def _with_tuples(value: object) -> object:
    """JSON with tuples for its lists."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _by_number(prefix: str) -> list[tuple[int, str]]:
    return [(int(part), "") if re.fullmatch(r"\d{1,9}", part) else (-1, part) for part in prefix.split(".")]
