"""The headers of a checkpoint's files beside its configuration: both must say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from . import model_formats
from .expert_formats import FORMATS
from .model_fields import ModelError
from .model_formats import Format
from .model_layers import Experts, Linear
from .safetensors_file import SafetensorsFile, Tensor

Stored = tuple[tuple[str, ...], tuple[str, ...], int]  # names behind the module's, dtypes, and values in an item


def _stored(name: str, *suffixes: str) -> Stored:
    return suffixes, FORMATS[name].values, FORMATS[name].pack


_FP8 = (model_formats.FP8, model_formats.FP8_UE8M0, model_formats.FP8_ROWS, model_formats.FP8_TENSOR)
STORED = {
    model_formats.BF16: ((".weight",), ("BF16", "F16", "F32"), 1),
    model_formats.NVFP4: _stored("NVFP4", ".weight", ".weight_packed"),
    model_formats.MXFP4: _stored("MXFP4", ".weight", ".weight_packed"),
    model_formats.MXFP8: _stored("MXFP8", ".weight"),
    **dict.fromkeys(_FP8, _stored("FP8", ".weight")),
}


class Headers:
    """The tensors of all files of a folder, none where no weights are there."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.tensors |= SafetensorsFile(path).tensors

    def check(self, matrix: Linear | Experts, format: Format, layers: Sequence[int]) -> None:
        """``ModelError`` where a file has a matrix of another type or shape."""
        for template, dtypes, shape in _expected(matrix, format) if self.tensors else ():
            for name in (template.format(layer) for layer in layers):
                tensor = self.tensors.get(name)
                if tensor is not None and (tensor.dtype not in dtypes or tensor.shape != shape):
                    raise ModelError(
                        f"{name}: expected {' or '.join(dtypes)} {list(shape)} by the configuration ({format.name}), "
                        f"got {tensor.dtype} {list(tensor.shape)}"
                    )


def _expected(
    matrix: Linear | Experts, format: Format
) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:  # fmt: skip
    """Name, ``{}`` for the layer, dtypes and shape of each matrix that may be there, of experts those of the first."""
    if isinstance(matrix, Experts) and matrix.stacked:  # as gpt-oss has MXFP4
        count, hidden, size = matrix.count, matrix.hidden, matrix.intermediate
        yield f"{matrix.modules[0]}_blocks", ("U8",), (count, 2 * size, hidden // 32, 16)
        yield f"{matrix.modules[1]}_blocks", ("U8",), (count, hidden, size // 32, 16)
    elif format in STORED:
        suffixes, dtypes, values = STORED[format]
        for module, n, k in _matrices(matrix):
            yield from ((f"{module}{suffix}", dtypes, (n, k // values)) for suffix in suffixes)


def _matrices(matrix: Linear | Experts) -> Iterator[tuple[str, int, int]]:
    """Module, N and K."""
    if isinstance(matrix, Linear):
        yield from ((module, matrix.n, matrix.k) for module in matrix.modules)
        return
    *first, down = matrix.modules
    yield from ((module, matrix.intermediate, matrix.hidden) for module in first)
    yield down, matrix.hidden, matrix.intermediate
