"""Experts of NVFP4 checkpoints, in the layout of the kernels: from ModelOpt and compressed-tensors, and back.

``prepare`` reads the experts of one layer, ``restore`` gives every tensor of the checkpoint back, byte for byte, and
``python -m integrations.checkpoint convert IN OUT`` does it for whole checkpoints, one expert in memory at a time.
docs/weights.md has the layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from integrations import safetensors_file
from integrations.safetensors_file import SafetensorsError, SafetensorsFile, Tensor

FORMAT = "block-scaled-moe"
VERSION = "1"
GROUP = 16  # values of one scale
LARGEST_SCALE = 0x7E  # 448; above are NaN and the negative numbers

Arrays = dict[str, np.ndarray]
Layout = dict[str, tuple[str, tuple[int, ...]]]


class CheckpointError(ValueError):
    """A checkpoint that is not what its format says, or that the kernels cannot compute."""


@dataclasses.dataclass(frozen=True)
class Source:
    """How a tool names the tensors of a quantised matrix. ``encode``: its global scales multiply what is quantised,
    2688 / amax; otherwise they multiply what is dequantised, amax / 2688."""

    name: str
    packed: str
    weight_global: str
    input_global: str
    encode: bool
    scale: str = "weight_scale"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (self.packed, self.scale, self.weight_global, self.input_global)

    def decode(self, scale: np.float32) -> np.float32:
        """The factor of dequantised values."""
        return np.float32(1) / scale if self.encode else scale


SOURCES = {
    source.name: source
    for source in (
        Source("modelopt", "weight", "weight_scale_2", "input_scale", encode=False),
        Source("compressed-tensors", "weight_packed", "weight_global_scale", "input_global_scale", encode=True),
    )
}
PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))  # gate, up, down
EXPERT = re.compile(r"(?P<prefix>.+\.experts)\.(?P<expert>0|[1-9]\d*)\.(?P<projection>\w+)\.(?P<suffix>\w+)")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A quantised [N, K] as the checkpoint has it: packed [N, K/2], scale [N, K/16], and two float32 numbers."""

    packed: np.ndarray
    scale: np.ndarray
    weight_global: np.float32
    input_global: np.float32


class Checkpoint:
    """Tensors by name over the files of a checkpoint: a safetensors file, or a folder with one or with an index."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file_of: dict[str, SafetensorsFile] = {}
        index = self.path / "model.safetensors.index.json"
        if self.path.is_dir() and index.exists():
            self._open_indexed(index)
        else:
            file = SafetensorsFile(self._only_file())
            self._file_of = dict.fromkeys(file.tensors, file)
        found = [match for match in map(EXPERT.fullmatch, self._file_of) if match]
        self.prefixes = sorted({match["prefix"] for match in found}, key=_by_number)
        self._experts: dict[str, list[re.Match]] = {prefix: [] for prefix in self.prefixes}
        for match in found:
            self._experts[match["prefix"]].append(match)

    def _only_file(self) -> Path:
        if not self.path.is_dir():
            return self.path
        files = sorted(self.path.glob("*.safetensors"))
        if len(files) != 1:
            raise CheckpointError(f"{self.path}: {len(files)} safetensors files and no model.safetensors.index.json")
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

    def layer(self, prefix: str) -> Layer:
        """The experts below ``prefix`` ("model.layers.3.mlp.experts"), every one checked by its headers."""
        matches = self._experts.get(prefix)
        if not matches:
            known = ", ".join(self.prefixes) or "none"
            raise CheckpointError(f"{self.path}: no experts at {prefix}; experts are at: {known}")
        return _check(self, prefix, matches)


@dataclasses.dataclass(frozen=True)
class Layer:
    """The experts of one layer: E experts of ``hidden`` H and ``intermediate`` I values."""

    checkpoint: Checkpoint
    prefix: str
    source: Source
    projections: tuple[str, str, str]
    experts: int
    hidden: int
    intermediate: int
    weight_global_shape: tuple[int, ...]  # () or (1,), as the checkpoint has it
    input_global_shape: tuple[int, ...]

    @property
    def metadata(self) -> dict[str, str]:
        """What ``restore`` must know beside the arrays; also the metadata of a prepared file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source.name,
            "prefix": self.prefix,
            "projections": ",".join(self.projections),
            "weight_global_shape": json.dumps(self.weight_global_shape),
            "input_global_shape": json.dumps(self.input_global_shape),
        }

    @property
    def layout(self) -> Layout:
        """Name -> dtype and shape of the prepared arrays."""
        experts, hidden, intermediate = self.experts, self.hidden, self.intermediate
        return {
            "w13": ("U8", (experts, 2 * intermediate, hidden // 2)),
            "w13_scale": ("F8_E4M3", (experts, *_block_shape(2 * intermediate, hidden // GROUP))),
            "w13_weight_scale": ("F32", (experts,)),
            "w13_input_scale": ("F32", (experts,)),
            "w2": ("U8", (experts, hidden, intermediate // 2)),
            "w2_scale": ("F8_E4M3", (experts, *_block_shape(hidden, intermediate // GROUP))),
            "w2_weight_scale": ("F32", (experts,)),
            "w2_input_scale": ("F32", (experts,)),
            "source_weight_global": ("F32", (experts, 3)),
            "source_input_global": ("F32", (experts, 3)),
        }

    def name(self, expert: int, projection: str, suffix: str) -> str:
        return f"{self.prefix}.{expert}.{projection}.{suffix}"


def prepare(checkpoint: Checkpoint | str | Path, layer_prefix: str) -> Arrays:
    """The experts of a layer as arrays of the kernels; 8-bit floats are uint8. Raises CheckpointError."""
    layer = (checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)).layer(layer_prefix)
    arrays = {name: np.zeros(shape, safetensors_file.NUMPY[dtype]) for name, (dtype, shape) in layer.layout.items()}
    for expert in range(layer.experts):
        fill(layer, expert, arrays)
    return arrays


def fill(layer: Layer, expert: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one expert into zeroed ``arrays`` of the layer's layout."""
    source = layer.source
    gate, up, down = (_read(layer, expert, projection) for projection in layer.projections)
    if gate.weight_global != up.weight_global:
        names = [layer.name(expert, projection, source.weight_global) for projection in layer.projections[:2]]
        raise CheckpointError(
            f"{names[0]} is {gate.weight_global} and {names[1]} is {up.weight_global}: gate and up are one matrix of "
            "the kernels, with one global scale; quantise them with a common one"
        )
    arrays["w13"][expert, 0::2] = gate.packed
    arrays["w13"][expert, 1::2] = up.packed
    arrays["w13_scale"][expert] = to_blocks(np.stack([gate.scale, up.scale], axis=1).reshape(-1, gate.scale.shape[1]))
    arrays["w13_weight_scale"][expert] = source.decode(gate.weight_global)
    # Both see the same activation, quantised once: with the scale that saturates for neither.
    arrays["w13_input_scale"][expert] = max(source.decode(gate.input_global), source.decode(up.input_global))
    arrays["w2"][expert] = down.packed
    arrays["w2_scale"][expert] = to_blocks(down.scale)
    arrays["w2_weight_scale"][expert] = source.decode(down.weight_global)
    arrays["w2_input_scale"][expert] = source.decode(down.input_global)
    arrays["source_weight_global"][expert] = [matrix.weight_global for matrix in (gate, up, down)]
    arrays["source_input_global"][expert] = [matrix.input_global for matrix in (gate, up, down)]


def restore(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Arrays:
    """The checkpoint's tensors of a layer, by their names: what ``prepare`` read, in every byte.

    ``metadata`` is that of the prepared file, or ``checkpoint.layer(prefix).metadata``.
    """
    experts = range(len(arrays["w13"]))
    return {name: array for expert in experts for name, array in restore_expert(arrays, metadata, expert)}


def restore_expert(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], expert: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors of one expert, with their names."""
    found = (metadata.get("format"), metadata.get("version"))
    if found != (FORMAT, VERSION):
        raise CheckpointError(f"metadata of format and version {found}, expected {(FORMAT, VERSION)}")
    source = SOURCES[metadata["source"]]
    w13, w2 = arrays["w13"][expert], arrays["w2"][expert]
    w13_scale = from_blocks(arrays["w13_scale"][expert], len(w13), w13.shape[1] * 2 // GROUP)
    w2_scale = from_blocks(arrays["w2_scale"][expert], len(w2), w2.shape[1] * 2 // GROUP)
    matrices = ((w13[0::2], w13_scale[0::2]), (w13[1::2], w13_scale[1::2]), (w2, w2_scale))
    for index, projection in enumerate(metadata["projections"].split(",")):
        packed, scale = matrices[index]
        stem = f"{metadata['prefix']}.{expert}.{projection}"
        yield f"{stem}.{source.packed}", np.ascontiguousarray(packed)
        yield f"{stem}.{source.scale}", np.ascontiguousarray(scale)
        for suffix, kind in ((source.weight_global, "weight_global"), (source.input_global, "input_global")):
            shape = json.loads(metadata[f"{kind}_shape"])
            yield f"{stem}.{suffix}", arrays[f"source_{kind}"][expert, index].reshape(shape).copy()


def to_blocks(scales: np.ndarray) -> np.ndarray:
    """[rows, columns] bytes in the 128x4 block layout, padded with 0 to whole blocks: a block is 512 bytes, of which
    byte (row % 32) * 16 + (row % 128 // 32) * 4 + column % 4 belongs to (row, column)."""
    rows, columns = _block_shape(*scales.shape)
    padded = np.zeros((rows, columns), np.uint8)
    padded[: scales.shape[0], : scales.shape[1]] = scales
    return padded.reshape(rows // 128, 4, 32, columns // 4, 4).transpose(0, 3, 2, 1, 4).reshape(rows, columns)


def from_blocks(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The first ``rows`` and ``columns`` of what ``to_blocks`` made."""
    row_blocks, column_blocks = blocks.shape[0] // 128, blocks.shape[1] // 4
    unfolded = blocks.reshape(row_blocks, column_blocks, 32, 4, 4).transpose(0, 3, 2, 1, 4)
    return unfolded.reshape(blocks.shape)[:rows, :columns]


def convert(
    checkpoint: Checkpoint,
    prefix: str,
    path: Path,
    check: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> Layer:
    """Write the prepared layer to ``path``, whole or not at all, one expert in memory at a time.

    ``check`` restores each expert from the new file and compares every byte with the checkpoint. ``progress`` is called
    after each expert.
    """
    layer = checkpoint.layer(prefix)
    with safetensors_file.create(path, layer.layout, layer.metadata) as arrays:
        for expert in range(layer.experts):
            fill(layer, expert, arrays)
            if check:
                _compare(layer, expert, arrays)
            progress()
    return layer


def _compare(layer: Layer, expert: int, arrays: Mapping[str, np.ndarray]) -> None:
    for name, restored in restore_expert(arrays, layer.metadata, expert):
        original = layer.checkpoint.read(name)
        if restored.shape != original.shape or restored.tobytes() != original.tobytes():
            raise CheckpointError(f"{name} is not what it was after its preparation was undone")


def _check(checkpoint: Checkpoint, prefix: str, matches: list[re.Match]) -> Layer:
    """The layer, once the headers hold every tensor of every expert with its type and shape, and no other tensor."""
    suffixes = {match["suffix"] for match in matches}
    sources = [source for source in SOURCES.values() if suffixes & {source.packed, source.weight_global}]
    if len(sources) != 1:
        found = " and ".join(source.name for source in sources) or "neither ModelOpt nor compressed-tensors"
        raise CheckpointError(f"{prefix}: tensors of {found}: {', '.join(sorted(suffixes))}")
    names = {match["projection"] for match in matches}
    projections = next((known for known in PROJECTIONS if names & set(known)), None)
    if projections is None:
        raise CheckpointError(f"{prefix}: projections {', '.join(sorted(names))} are none of {PROJECTIONS}")

    source, gate, down = sources[0], f"{prefix}.0.{projections[0]}", f"{prefix}.0.{projections[2]}"
    packed = [checkpoint.entry(f"{stem}.{source.packed}") for stem in (gate, down)]
    for stem, entry in zip((gate, down), packed, strict=True):
        if entry.dtype != "U8" or len(entry.shape) != 2:
            found = f"{entry.dtype} {list(entry.shape)}"
            raise CheckpointError(f"{stem}.{source.packed} is {found}, not packed U8 [N, K/2]")
    layer = Layer(
        checkpoint,
        prefix,
        source,
        projections,
        experts=1 + max(int(match["expert"]) for match in matches),
        hidden=packed[0].shape[1] * 2,
        intermediate=packed[1].shape[1] * 2,
        weight_global_shape=checkpoint.entry(f"{gate}.{source.weight_global}").shape,
        input_global_shape=checkpoint.entry(f"{gate}.{source.input_global}").shape,
    )
    for size in (layer.hidden, layer.intermediate):
        if size % 32 or not size:
            raise CheckpointError(f"{prefix}: K = {size} is no multiple of 32")
    _check_entries(layer, {match.string for match in matches})
    return layer


def _check_entries(layer: Layer, present: set[str]) -> None:
    source = layer.source
    for kind, shape in (("weight", layer.weight_global_shape), ("input", layer.input_global_shape)):
        if shape not in ((), (1,)):
            raise CheckpointError(f"{layer.prefix}: {kind} global scales of shape {list(shape)}, not one number")
    w13, w2 = (layer.intermediate, layer.hidden), (layer.hidden, layer.intermediate)
    expected: Layout = {}
    for expert in range(layer.experts):
        if not any(layer.name(expert, projection, source.packed) in present for projection in layer.projections):
            raise CheckpointError(f"{layer.prefix}: expert {expert} of {layer.experts} is missing")
        for projection, (n, k) in zip(layer.projections, (w13, w13, w2), strict=True):
            expected |= {
                layer.name(expert, projection, source.packed): ("U8", (n, k // 2)),
                layer.name(expert, projection, source.scale): ("F8_E4M3", (n, k // GROUP)),
                layer.name(expert, projection, source.weight_global): ("F32", layer.weight_global_shape),
                layer.name(expert, projection, source.input_global): ("F32", layer.input_global_shape),
            }
    for name, (dtype, shape) in expected.items():
        entry = layer.checkpoint.entry(name)
        if (entry.dtype, entry.shape) != (dtype, shape):
            raise CheckpointError(f"{name} is {entry.dtype} {list(entry.shape)}, expected {dtype} {list(shape)}")
    if unknown := sorted(present - set(expected)):
        raise CheckpointError(f"{unknown[0]} and {len(unknown) - 1} more have no place in the layout of the kernels")


def _read(layer: Layer, expert: int, projection: str) -> Matrix:
    """A matrix whose scales are numbers that the kernels can take."""
    names = [layer.name(expert, projection, suffix) for suffix in layer.source.suffixes]
    packed, scale, weight_global, input_global = (layer.checkpoint.read(name) for name in names)
    if scale.max() > LARGEST_SCALE:
        raise CheckpointError(f"{names[1]} has a NaN or a negative scale")
    smallest = np.finfo(np.float32).tiny
    for name, number in ((names[2], weight_global), (names[3], input_global)):
        if not smallest <= number.item() <= 1 / smallest:  # so that the reciprocal is a normal number as well
            raise CheckpointError(f"{name} is {number.item()}, not a positive normal number")
    return Matrix(packed, scale, weight_global.reshape(())[()], input_global.reshape(())[()])


def _block_shape(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // 128) * 128, -(-columns // 4) * 4


def _by_number(prefix: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in prefix.split(".")]


def _layer_number(prefix: str) -> int | None:
    match = re.search(r"\blayers\.(\d+)\.", prefix)
    return int(match[1]) if match else None


def _layer_numbers(text: str) -> set[int]:
    """ "3,5-8" as {3, 5, 6, 7, 8}."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise argparse.ArgumentTypeError(f"{part!r} is neither a layer (3) nor a range of layers (5-8)")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def _convert_command(source: Path, target: Path, layers: set[int] | None, check: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    checkpoint = Checkpoint(source)
    prefixes = [prefix for prefix in checkpoint.prefixes if layers is None or _layer_number(prefix) in layers]
    missing = sorted((layers or set()) - {_layer_number(prefix) for prefix in prefixes})
    if missing or not prefixes:
        raise CheckpointError(f"{source}: no experts in " + (f"layers {missing}" if missing else "any layer"))
    # Every header is checked before the first byte is written.
    experts = sum(checkpoint.layer(prefix).experts for prefix in prefixes)
    target.mkdir(parents=True, exist_ok=True)

    console = Console()
    table = Table("layer", "source", "experts", "hidden", "intermediate", "MiB", "seconds", "round trip")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("experts", total=experts)
        for prefix in prefixes:
            progress.update(task, description=prefix)
            path, begin = target / f"{prefix}.safetensors", time.monotonic()
            layer = convert(checkpoint, prefix, path, check, lambda: progress.advance(task))
            table.add_row(
                prefix,
                layer.source.name,
                *(str(number) for number in (layer.experts, layer.hidden, layer.intermediate)),
                f"{path.stat().st_size / 2**20:.1f}",
                f"{time.monotonic() - begin:.1f}",
                "every byte" if check else "not checked",
            )
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 1 with the error on stderr."""
    parser = argparse.ArgumentParser(prog="python -m integrations.checkpoint", description=__doc__.partition("\n")[0])
    command = parser.add_subparsers(required=True).add_parser("convert", help="prepare the experts of a checkpoint")
    command.add_argument("source", metavar="IN", type=Path, help="a safetensors file, or a folder with them")
    command.add_argument("target", metavar="OUT", type=Path, help="a folder; gets one file for each layer")
    command.add_argument("--layers", type=_layer_numbers, metavar="3,5-8", help="all layers with experts if not given")
    command.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True, help="restore and compare every byte"
    )
    options = parser.parse_args(arguments)
    try:
        _convert_command(options.source, options.target, options.layers, options.check)
    except (CheckpointError, SafetensorsError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
