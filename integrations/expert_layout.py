"""Experts in the layout of the kernels: ``prepare`` makes it of a layer of a checkpoint, ``restore`` undoes that.

docs/weights.md has the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import safetensors_file
from .expert_tensors import GROUP, SOURCES, WEIGHT_SHAPE, Checkpoint, Layer, Matrix, halves, round_up

Arrays = dict[str, np.ndarray]
Layout = dict[str, tuple[str, tuple[int, ...]]]


def layout(layer: Layer, nan_scales: bool) -> Layout:
    """Name -> dtype and shape of the prepared arrays."""
    experts, (hidden, intermediate) = layer.experts, layer.padded
    arrays = {}
    for name, n, k in (("w13", 2 * intermediate, hidden), ("w2", hidden, intermediate)):
        arrays[name] = ("U8", (experts, n, k // 2))
        arrays[f"{name}_scale"] = ("F8_E4M3", (experts, *_block_shape(n, k // GROUP)))
        arrays[f"{name}_weight_scale"] = ("F32", (experts,))
        if layer.input_scales:
            arrays[f"{name}_input_scale"] = ("F32", (experts,))
        if nan_scales:
            arrays[f"source_{name}_nan"] = ("U8", (experts, 2, -(-n * (k // GROUP) // 8)))
    arrays["w13_up_weight_scale"] = ("F32", (experts,))
    arrays["source_weight_global"] = ("F32", (experts, 3))
    if layer.input_scales:
        arrays["source_input_global"] = ("F32", (experts, 3))
    return arrays


def prepare(checkpoint: Checkpoint | str | Path, layer_prefix: str, tp: int = 1, rank: int = 0) -> Arrays:
    """The experts of a layer as arrays of the kernels, or one rank's part; 8-bit floats are uint8.

    Raises CheckpointError.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    layer = checkpoint.layer(layer_prefix, tp, rank)
    entries = layout(layer, checkpoint.has_nan_scales(layer))
    arrays = {name: np.zeros(shape, safetensors_file.NUMPY[dtype]) for name, (dtype, shape) in entries.items()}
    for expert in range(layer.experts):
        fill(layer, expert, checkpoint.matrices(layer, expert), arrays)
    return arrays


def fill(layer: Layer, expert: int, matrices: Sequence[Matrix], arrays: Mapping[str, np.ndarray]) -> None:
    """Write gate, up and down of one expert into zeroed ``arrays`` of the layer's layout."""
    gate, up, down = matrices
    (begin, end), (hidden, intermediate) = layer.share, layer.padded
    count = min(end, layer.intermediate) - begin
    scales = {
        "w13": np.zeros((2 * intermediate, hidden // GROUP), np.uint8),
        "w2": np.zeros((hidden, intermediate // GROUP), np.uint8),
    }
    for parity, matrix in enumerate((gate, up)):
        rows = slice(parity, 2 * count, 2)
        arrays["w13"][expert, rows, : matrix.packed.shape[1]] = matrix.packed[begin : begin + count]
        scales["w13"][rows, : matrix.scale.shape[1]] = matrix.scale[begin : begin + count]
    packed, scale = down.packed[:, begin // 2 : end // 2], down.scale[:, begin // GROUP : end // GROUP]
    arrays["w2"][expert, : len(packed), : packed.shape[1]] = packed
    scales["w2"][: len(scale), : scale.shape[1]] = scale

    for name, linear in scales.items():
        if f"source_{name}_nan" in arrays:
            kinds = np.stack([linear == 0x7F, linear == 0xFF])
            arrays[f"source_{name}_nan"][expert] = np.packbits(kinds.reshape(2, -1), axis=1)
        arrays[f"{name}_scale"][expert] = to_blocks(np.where(linear & 0x7F == 0x7F, 0, linear))
    arrays["w13_weight_scale"][expert] = gate.weight_scale
    arrays["w13_up_weight_scale"][expert] = up.weight_scale
    arrays["w2_weight_scale"][expert] = down.weight_scale
    arrays["source_weight_global"][expert] = [matrix.weight_global for matrix in matrices]
    if layer.input_scales:
        # Both see the same activation, quantised once: with the scale that saturates for neither.
        arrays["w13_input_scale"][expert] = max(gate.input_scale, up.input_scale)
        arrays["w2_input_scale"][expert] = down.input_scale
        arrays["source_input_global"][expert] = [matrix.input_global for matrix in matrices]


def restore(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Arrays:
    """The checkpoint's tensors of a layer, by their names: what ``prepare`` read, in every byte.

    ``metadata`` is that of the prepared file, or ``checkpoint.layer(prefix).metadata``. Of a rank's part, the rows of
    gate and up and the columns of down that it has.
    """
    layer = Layer.from_metadata(metadata)
    parts: dict[str, list[np.ndarray]] = {}
    for expert in range(layer.experts):
        for projection, suffix, array in restore_expert(arrays, layer, expert):
            parts.setdefault(layer.name(expert, projection, suffix), []).append(array)
    tensors = {name: np.stack(found) if layer.stacked else found[0] for name, found in parts.items()}
    return tensors | dict(restore_numbers(arrays, layer))


def restore_expert(
    arrays: Mapping[str, np.ndarray], layer: Layer, expert: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Projection, suffix and an expert's tensor, packed values and scales in turn."""
    source, (begin, end) = SOURCES[layer.source], layer.share
    count = min(end, layer.intermediate) - begin
    columns = layer.columns[0], min(end, layer.columns[1]) - begin
    found = []
    for name, k, many in (("w13", columns[0], 2 * count), ("w2", columns[1], layer.hidden)):
        packed, groups = arrays[name][expert], -(-k // GROUP)
        scale = _restored_scales(arrays, name, expert)
        found.append((packed[:many, : k // 2], scale[:many, :groups]))
    pairs = [*(tuple(array[parity::2] for array in found[0]) for parity in range(2)), found[1]]
    for projection in layer.projections:
        taken = [pairs.pop(0) for _ in range(halves(projection))]
        for suffix, arrays_of in zip((source.packed, source.scale), zip(*taken, strict=True), strict=True):
            tensor = np.concatenate(arrays_of)
            yield projection, suffix, np.ascontiguousarray(tensor.T if layer.transposed else tensor)


def rank_part(checkpoint: Checkpoint, layer: Layer, expert: int, projection: str, suffix: str) -> np.ndarray:
    """What ``restore_expert`` has to give: the rank's part of the checkpoint's own bytes."""
    tensor, (begin, end) = checkpoint.part(layer, expert, projection, suffix), layer.share
    if projection == layer.projections[-1]:
        unit = 2 if suffix == SOURCES[layer.source].packed else GROUP
        tensor = tensor[:, begin // unit : end // unit]
    else:
        tensor = tensor.reshape(halves(projection), layer.intermediate, -1)[:, begin:end].reshape(-1, tensor.shape[1])
    return np.ascontiguousarray(tensor.T if layer.transposed else tensor)


def restore_numbers(arrays: Mapping[str, np.ndarray], layer: Layer) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of all that is not packed values and their scales."""
    source = SOURCES[layer.source]
    kinds = {source.weight_global: "source_weight_global", source.input_global: "source_input_global"}
    for suffix in layer.shapes:
        column = 0
        for projection in layer.projections:
            values = arrays[kinds[suffix]][:, column : column + halves(projection)]
            column += halves(projection)
            for expert in range(1 if layer.stacked else layer.experts):
                name = layer.name(expert, projection, suffix)
                yield name, _shaped(values if layer.stacked else values[expert : expert + 1], layer.shape(name, suffix))
    if layer.weight_shape:
        for expert in range(layer.experts):
            for projection in layer.projections:
                size = np.array(layer.size(projection), safetensors_file.NUMPY[layer.weight_shape])
                yield layer.name(expert, projection, WEIGHT_SHAPE), size


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


def _restored_scales(arrays: Mapping[str, np.ndarray], name: str, expert: int) -> np.ndarray:
    """The scales of a matrix, in rows, with the NaNs of the checkpoint."""
    n, k = arrays[name].shape[1], arrays[name].shape[2] * 2
    scale = from_blocks(arrays[f"{name}_scale"][expert], n, k // GROUP)
    if f"source_{name}_nan" not in arrays:
        return scale
    bits = np.unpackbits(arrays[f"source_{name}_nan"][expert], axis=1, count=scale.size)
    positive, negative = bits.reshape(2, *scale.shape)
    return scale + positive * np.uint8(0x7F) + negative * np.uint8(0xFF)


def _shaped(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Global scales [experts, halves] in a shape that has one for all, for each expert, or for each half."""
    count = int(np.prod(shape))
    if count == values.size:
        return values.reshape(shape).copy()
    return (values[:, 0] if count == len(values) else values[0, :1]).reshape(shape).copy()


def _block_shape(rows: int, columns: int) -> tuple[int, int]:
    return round_up(rows, 128), round_up(columns, 4)
