"""The experts, dense MLPs and matrices of attention of quantised checkpoints, as tools write them.

A ``Checkpoint`` describes a layer once its headers hold every tensor that belongs there, and reads it by experts.
docs/weights.md has the formats.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .expert_checks import check_matrix, is_normal, not_normal
from .expert_formats import BELOW, TARGETS, WEIGHT_SHAPE, CheckpointError, OtherFormatError, widened
from .expert_headers import describe
from .expert_layer import Layer, halves
from .safetensors_file import SafetensorsFile, Tensor

INDEX = "model.safetensors.index.json"


class GlobalScales(NamedTuple):
    """Of a matrix in NVFP4: ``weight_scale`` and ``input_scale`` multiply what is dequantised, ``weight_global`` and
    ``input_global`` are the checkpoint's. Without a scale of the activations, the latter are None."""

    weight_global: np.float32
    weight_scale: np.float32
    input_global: np.float32 | None
    input_scale: np.float32 | None


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A quantised [N, K] as the checkpoint has it: values [N, K / pack], a scale for each block (a byte, in FP8
    fp32), fp32 bias [N] or None, and global scales or None."""

    values: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    global_scales: GlobalScales | None


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

    def layer(
        self, prefix: str, tp: int = 1, rank: int = 0, ep: int = 1, ep_rank: int = 0, target: str | None = None
    ) -> Layer:
        """The experts below ``prefix`` ("model.layers.3.mlp.experts"), every one checked by its headers, the dense MLP
        ("model.layers.0.mlp", "model.layers.3.mlp.shared_experts"), or a matrix of attention
        ("model.layers.0.self_attn.o_proj"), which is whole.

        Of these, the part of I of one of ``tp`` ranks, and the experts of one of ``ep``, all of which have a dense MLP
        whole; for the kernels of ``target``, or for the first ones in docs/weights.md that take the format. Raises
        CheckpointError.
        """
        if prefix not in self._below:
            known = ", ".join(self.prefixes) or "none"
            raise CheckpointError(f"{self.path}: no experts, MLP or matrix of attention at {prefix}; there are {known}")
        for one, many in ((rank, tp), (ep_rank, ep)):
            if not 0 <= one < many:
                raise CheckpointError(f"rank {one} of {many} ranks")
        if target is not None and target not in TARGETS:
            raise CheckpointError(f"no layout for {target}; there is one for {', '.join(TARGETS)}")
        layer = describe(self.entry, prefix, self._below[prefix], target)
        if layer.alone and tp > 1:
            raise OtherFormatError(f"{prefix}: ranks of tensor parallelism share out heads, which is not done here")
        step = layer.form.step
        if tp > -(-layer.intermediate // step):
            raise CheckpointError(f"{prefix}: {layer.intermediate} values cannot be split over {tp} ranks by {step}")
        if not layer.routed:
            ep, ep_rank = 1, 0
        if ep > layer.experts:
            raise CheckpointError(f"{prefix}: {layer.experts} experts cannot be split over {ep} ranks")
        return dataclasses.replace(layer, tp=tp, rank=rank, ep=ep, ep_rank=ep_rank)

    def part(self, layer: Layer, expert: int, projection: str, suffix: str) -> np.ndarray:
        """An expert's values [N, K / pack], their scales or the bias [N], of all ranks, in the checkpoint's types."""
        tensor = self.read(layer.name(expert, projection, suffix))
        tensor = tensor[expert] if layer.stacked else tensor
        if layer.tool.chunk and suffix == layer.tool.values:
            return tensor.reshape(len(tensor), -1)
        return tensor.T if layer.transposed else tensor

    def matrices(self, layer: Layer, expert: int) -> list[Matrix]:
        """Gate, up and down of an expert, with scales that are numbers the kernels can take."""
        tool, found = layer.tool, []
        for projection in layer.projections:
            values, scale = (self.part(layer, expert, projection, suffix) for suffix in (tool.values, tool.scale))
            if layer.form.has_numbers:
                scale = widened(scale, layer.types[1])
            check_matrix(layer, layer.name(expert, projection, tool.scale), values, scale)
            if layer.weight_shape:
                self._check_weight_shape(layer, expert, projection)
            parts = [layer.split(projection, array) for array in (values, scale)]
            count = halves(projection)
            biases, scales = [None] * count, [None] * count
            if layer.biases:
                biases = layer.split(projection, self._bias(layer, expert, projection))
            if tool.weight_global:
                scales = self._global_scales(layer, expert, projection, parts[0])
            found += [Matrix(*matrix) for matrix in zip(*parts, biases, scales, strict=True)]
        return found

    def _bias(self, layer: Layer, expert: int, projection: str) -> np.ndarray:
        bias = widened(self.part(layer, expert, projection, layer.tool.bias), layer.types[2])
        if not np.isfinite(bias).all():
            raise CheckpointError(f"{layer.name(expert, projection, layer.tool.bias)} has numbers that are not finite")
        return bias

    def _global_scales(
        self, layer: Layer, expert: int, projection: str, packed: list[np.ndarray]
    ) -> list[GlobalScales]:
        """Those of the halves of a projection."""
        tool, found = layer.tool, []
        weights = self._numbers(layer, expert, projection, tool.weight_global)
        inputs = self._numbers(layer, expert, projection, tool.input_global) if layer.input_scales else None
        for half, values in enumerate(packed):
            weight = weights[half]
            # A matrix of zeros has no largest value, and its global scale may be 0, infinite or NaN.
            if is_normal(weight):
                weight_scale = tool.decode(weight)
            elif not (values & 0x77).any():
                weight_scale = np.float32(0)
            else:
                raise not_normal(layer.name(expert, projection, tool.weight_global), weight)
            if inputs is not None and not is_normal(inputs[half]):
                raise not_normal(layer.name(expert, projection, tool.input_global), inputs[half])
            scales = (None, None) if inputs is None else (inputs[half], tool.decode(inputs[half]))
            found.append(GlobalScales(weight, weight_scale, *scales))
        return found

    def has_nan_scales(self, layer: Layer) -> bool:
        """Whether blocks of zeros have NaN for a scale, as they may in NVFP4; every number is checked on the way."""
        if not layer.tool.weight_global:
            return False
        largest = [matrix.scale.max() for expert in layer.owned for matrix in self.matrices(layer, expert)]
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


def _by_number(prefix: str) -> list[tuple[int, str]]:
    return [(int(part), "") if re.fullmatch(r"\d{1,9}", part) else (-1, part) for part in prefix.split(".")]
