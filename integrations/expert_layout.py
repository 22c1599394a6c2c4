"""Experts in the layout of the kernels: ``prepare`` makes it of a layer of a checkpoint, ``restore`` undoes that.

docs/weights.md has the layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import safetensors_file
from .expert_formats import WEIGHT_SHAPE, CheckpointError, narrowed
from .expert_layer import Layer, halves
from .expert_tensors import Checkpoint, Matrix

Arrays = dict[str, np.ndarray]
Layout = dict[str, tuple[str, tuple[int, ...]]]
ALIGNMENT = 64


def layout(layer: Layer, nan_scales: bool) -> Layout:
    """Name -> dtype and shape of the prepared arrays."""
    experts, kernels, arrays = len(layer.owned), layer.kernels, {}
    for name in layer.arrays:
        stack, n, k = layer.stored(name)
        scales = kernels.scales.shape(*layer.grid(n, k), n)
        width = kernels.width(k // layer.form.pack)
        arrays[name] = (layer.form.values[0], (experts, *kernels.stacked(stack, n, width)))
        arrays[f"{name}_scale"] = (kernels.scales.dtype, (experts, *kernels.stacked(stack, *scales)))
        if layer.biases:
            arrays[f"{name}_bias"] = ("F32", (experts, *kernels.stacked(stack, n)))
        if nan_scales:
            arrays[f"source_{name}_nan"] = ("U8", (experts, 2, -(-math.prod(layer.grid(n, k)) // 8)))
    return arrays | (_global_layout(layer) if layer.tool.weight_global else {})


def _global_layout(layer: Layer) -> Layout:
    """The numbers that NVFP4 has for a whole matrix."""
    experts, kinds = len(layer.owned), ["weight", "input"][: 1 + layer.input_scales]
    names = [f"{name}_{kind}_scale" for name in layer.arrays for kind in kinds]
    names += [] if layer.alone else ["w13_up_weight_scale"]
    arrays = dict.fromkeys(names, ("F32", (experts,)))
    return arrays | {f"source_{kind}_global": ("F32", (experts, len(layer.places))) for kind in kinds}


def prepare(
    checkpoint: Checkpoint | str | Path,
    layer_prefix: str,
    tp: int = 1,
    rank: int = 0,
    ep: int = 1,
    ep_rank: int = 0,
    target: str | None = None,
) -> Arrays:
    """The experts of a layer as arrays of the kernels, or one rank's part; 8-bit floats are uint8.

    Each begins at a multiple of 64 bytes. The arguments are those of ``Checkpoint.layer``. Raises CheckpointError.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    layer = checkpoint.layer(layer_prefix, tp, rank, ep, ep_rank, target)
    entries = layout(layer, checkpoint.has_nan_scales(layer))
    arrays = {name: _zeros(safetensors_file.NUMPY[dtype], shape) for name, (dtype, shape) in entries.items()}
    for expert in layer.owned:
        fill(layer, expert, checkpoint.matrices(layer, expert), arrays)
    return arrays


def _zeros(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Aligned as kernels want it also of what lies on the host."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + size].view(dtype).reshape(shape)


def fill(layer: Layer, expert: int, matrices: Sequence[Matrix], arrays: Mapping[str, np.ndarray]) -> None:
    """Write gate, up and down of one expert into zeroed ``arrays`` of the layer's layout."""
    slot, scales = expert - layer.owned.start, _empty_scales(layer, matrices)
    for (name, half), matrix in zip(layer.places, matrices, strict=True):
        stack, n, _ = layer.stored(name)
        values = layer.kernels.store(matrix.values[layer.cut(name, (1, layer.form.pack))])
        scale = matrix.scale[layer.cut(name, layer.form.block)]
        for array, part in ((arrays[name][slot].reshape(stack, n, -1), values), (scales[name], scale)):
            array[(*_rows(layer, name, half, len(part)), slice(part.shape[1]))] = part
        if layer.biases and not (name == "w2" and layer.rank):  # what ranks add up to has it once
            bias = matrix.bias[layer.cut(name, (1, 1))[0]]
            arrays[f"{name}_bias"][slot].reshape(stack, n)[_rows(layer, name, half, len(bias))] = bias

    for name, linear in scales.items():
        if f"source_{name}_nan" in arrays:
            kinds = np.stack([linear == 0x7F, linear == 0xFF])
            arrays[f"source_{name}_nan"][slot] = np.packbits(kinds.reshape(2, -1), axis=1)
            linear = np.where(linear & 0x7F == 0x7F, 0, linear)
        n, stored = layer.stored(name)[1], arrays[f"{name}_scale"][slot]
        stored[...] = np.stack([layer.kernels.scales.store(matrix, n) for matrix in linear]).reshape(stored.shape)
    if layer.tool.weight_global:
        _fill_numbers(layer, slot, matrices, arrays)


def _empty_scales(layer: Layer, matrices: Sequence[Matrix]) -> Arrays:
    """[matrices, rows, columns] for each array, before its layout."""
    sizes, dtype = {name: layer.stored(name) for name in layer.arrays}, matrices[0].scale.dtype
    return {name: np.zeros((stack, *layer.grid(n, k)), dtype) for name, (stack, n, k) in sizes.items()}


def _rows(layer: Layer, name: str, half: int, count: int) -> tuple[int, np.ndarray]:
    """Of arrays [matrices, rows, ...]: which matrix has gate, up or down, and where its first ``count`` rows are."""
    rows, turn = np.arange(count), layer.kernels.turn
    return (0, rows + (rows // turn + half) * turn) if name == "w13" and turn else (half, rows)


def _fill_numbers(layer: Layer, slot: int, matrices: Sequence[Matrix], arrays: Mapping[str, np.ndarray]) -> None:
    scales = [matrix.global_scales for matrix in matrices]
    arrays["source_weight_global"][slot] = [each.weight_global for each in scales]
    arrays["w2_weight_scale"][slot] = scales[-1].weight_scale
    if layer.input_scales:
        arrays["source_input_global"][slot] = [each.input_global for each in scales]
        arrays["w2_input_scale"][slot] = scales[-1].input_scale
    if layer.alone:
        return
    gate, up, _ = scales
    arrays["w13_weight_scale"][slot] = gate.weight_scale
    arrays["w13_up_weight_scale"][slot] = up.weight_scale
    if layer.input_scales:
        # Both see the same activation, quantised once: with the scale that saturates for neither.
        arrays["w13_input_scale"][slot] = max(gate.input_scale, up.input_scale)


def restore(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Arrays:
    """The checkpoint's tensors of a layer, by their names: what ``prepare`` read, in every byte.

    ``metadata`` is that of the prepared file, or ``checkpoint.layer(prefix).metadata``. Of a rank's part, the rows of
    gate and up and the columns of down that it has, of its own experts. Raises CheckpointError where the metadata is
    not of such a file, or an array is missing or has another shape than it says.
    """
    layer = Layer.from_metadata(metadata)
    for name, (_, shape) in layout(layer, nan_scales=f"source_{layer.arrays[0]}_nan" in arrays).items():
        found = arrays[name].shape if name in arrays else "no array"
        if found != shape:
            raise CheckpointError(f"{name} has shape {found}, the metadata asks for {shape}")
    parts: dict[str, list[np.ndarray]] = {}
    for expert in layer.owned:
        for projection, suffix, array in restore_expert(arrays, layer, expert):
            parts.setdefault(layer.name(expert, projection, suffix), []).append(array)
    tensors = {name: np.stack(found) if layer.stacked else found[0] for name, found in parts.items()}
    return tensors | dict(restore_numbers(arrays, layer))


def restore_expert(
    arrays: Mapping[str, np.ndarray], layer: Layer, expert: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Projection, suffix and an expert's tensor: values, scales and bias in turn, in the checkpoint's types."""
    tool, slot, found = layer.tool, expert - layer.owned.start, []
    for name, half in layer.places:
        stack, n, _ = layer.stored(name)
        count, k = layer.extent(name)
        rows, columns = layer.grid(count, k)
        values = arrays[name][slot].reshape(stack, n, -1)[_rows(layer, name, half, count)]
        scale = _restored_scales(arrays, layer, name, slot)[_rows(layer, name, half, rows)]
        kinds = {tool.values: layer.kernels.load(values, k // layer.form.pack), tool.scale: scale[:, :columns]}
        if layer.biases and not (name == "w2" and layer.rank):
            kinds[tool.bias] = arrays[f"{name}_bias"][slot].reshape(stack, n)[_rows(layer, name, half, count)]
        found.append(kinds)
    for projection in layer.projections:
        taken = [found.pop(0) for _ in range(halves(projection))]
        for suffix in taken[0]:
            yield projection, suffix, _as_read(layer, suffix, layer.join([kinds[suffix] for kinds in taken]))


def _as_read(layer: Layer, suffix: str, array: np.ndarray) -> np.ndarray:
    """Values, scales or a bias in type and shape of the checkpoint's."""
    tool = layer.tool
    if array.dtype == np.float32:
        array = narrowed(array, layer.types[2 if suffix == tool.bias else 1])
    if tool.chunk and suffix == tool.values:
        array = array.reshape(len(array), -1, tool.chunk)
    return np.ascontiguousarray(array.T if layer.transposed else array)


def rank_part(checkpoint: Checkpoint, layer: Layer, expert: int, projection: str, suffix: str) -> np.ndarray:
    """What ``restore_expert`` has to give: the rank's part of the checkpoint's own bytes."""
    tool, tensor = layer.tool, checkpoint.part(layer, expert, projection, suffix)
    units = {tool.values: (1, layer.form.pack), tool.scale: layer.form.block}.get(suffix, (1, 1))
    rows, columns = layer.cut("w2" if projection == layer.projections[-1] else "w13", units)
    parts = [half[rows] for half in layer.split(projection, tensor)]
    if tensor.ndim > 1:
        parts = [part[:, columns] for part in parts]
    return _as_read(layer, suffix, layer.join(parts))


def restore_numbers(arrays: Mapping[str, np.ndarray], layer: Layer) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of all that is neither values nor their scales nor biases."""
    kinds = {layer.tool.weight_global: "source_weight_global", layer.tool.input_global: "source_input_global"}
    experts = layer.owned[:1] if layer.stacked else layer.owned
    for suffix in layer.shapes:
        column = 0
        for projection in layer.projections:
            values = arrays[kinds[suffix]][:, column : column + halves(projection)]
            column += halves(projection)
            for expert in experts:
                name = layer.name(expert, projection, suffix)
                slot = slice(None) if layer.stacked else slice(expert - experts.start, expert - experts.start + 1)
                yield name, _shaped(values[slot], layer.owned_shape(layer.shape(name, suffix)))
    if layer.weight_shape:
        for expert in experts:
            for projection in layer.projections:
                size = np.array(layer.size(projection), safetensors_file.NUMPY[layer.weight_shape])
                yield layer.name(expert, projection, WEIGHT_SHAPE), size


def owned_numbers(checkpoint: Checkpoint, layer: Layer, name: str) -> np.ndarray:
    """What ``restore_numbers`` has to give: of numbers for each expert, the rank's."""
    numbers = checkpoint.read(name)
    own = layer.owned_shape(numbers.shape)
    return numbers if own == numbers.shape else numbers[layer.owned.start : layer.owned.stop]


def _restored_scales(arrays: Mapping[str, np.ndarray], layer: Layer, name: str, slot: int) -> np.ndarray:
    """[matrices, rows, columns] of an expert, with the NaNs of the checkpoint."""
    stack, n, k = layer.stored(name)
    grid, scales = layer.grid(n, k), layer.kernels.scales
    stored = arrays[f"{name}_scale"][slot].reshape(stack, *scales.shape(*grid, n))
    linear = np.stack([scales.load(matrix, *grid) for matrix in stored])
    if f"source_{name}_nan" not in arrays:
        return linear
    bits = np.unpackbits(arrays[f"source_{name}_nan"][slot], axis=1, count=linear.size)
    positive, negative = bits.reshape(2, *linear.shape)
    return linear + positive * np.uint8(0x7F) + negative * np.uint8(0xFF)


def _shaped(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Global scales [experts, halves] in a shape that has one for all, for each expert, or for each half."""
    count = int(np.prod(shape))
    if count == values.size:
        return values.reshape(shape).copy()
    return (values[:, 0] if count == len(values) else values[0, :1]).reshape(shape).copy()
