"""Safetensors files as memory maps: tensors are views of the file that is read, and of the one that is filled in.

The safetensors package gives numpy no 8-bit floats, and it writes only tensors that all lie in memory at once. A layer
of experts is larger than the memory of many machines, so here both sides are maps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import reprlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

# Tensors of other types are listed, and their bytes counted, but not whether these fit their shape.
ITEM_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
NUMPY = {
    "U8": np.dtype("u1"), "I8": np.dtype("u1"), "F8_E4M3": np.dtype("u1"), "F8_E8M0": np.dtype("u1"),
    "BF16": np.dtype("<u2"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8"),
}  # fmt: skip
HEADER_LIMIT = 100 << 20  # bytes, as the format has it
MAX_RANK = 32  # of what every numpy can view
MAX_ITEMS = 1 << 59  # empty dimensions aside, as numpy counts them even where there is nothing


class SafetensorsError(ValueError):
    """A file that is not well-formed safetensors, or a tensor of a type that is not read here."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An entry of the header. ``begin`` and ``end`` are bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A file whose header was checked: ``tensors``, ``metadata``, and their bytes by ``read``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise SafetensorsError(f"{path}: a header of {length} bytes in a file of {size}")
            text = file.read(length)
        self.metadata, self.tensors = _parse(path, text, size)
        self._bytes: np.ndarray | None = None

    def read(self, name: str) -> np.ndarray:
        """A read-only view of the tensor; what has 8 bits as uint8, BF16 as uint16."""
        tensor = self.tensors[name]
        if tensor.dtype not in NUMPY:
            raise SafetensorsError(f"{self.path}: {name} is {tensor.dtype}; only {', '.join(NUMPY)} are read")
        if self._bytes is None:
            self._bytes = np.memmap(self.path, np.uint8, "r")
        return self._bytes[tensor.begin : tensor.end].view(NUMPY[tensor.dtype]).reshape(tensor.shape)


@contextlib.contextmanager
def create(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Iterator[dict[str, np.ndarray]]:
    """Name -> zeroed array of a new file of ``tensors`` (dtype, shape), to be filled in by the body.

    The file has a name of its own until the body has ended and its bytes are on the disk; then it replaces ``path``.
    Where the body raises, nothing is left.
    """
    # The largest items first, so that every tensor is aligned to its items.
    order = sorted(tensors, key=lambda name: (-NUMPY[tensors[name][0]].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        begin, end = end, end + math.prod(shape) * NUMPY[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)

    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "r+b") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(len(text).to_bytes(8, "little") + text)
            file.flush()
            # A full disk is an error here, and would be a signal at the first write to a map.
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
            mapped = np.memmap(file, np.uint8, "r+", offset=0)
            data = mapped[8 + len(text) :]
            yield {
                name: data[slice(*header[name]["data_offsets"])].view(NUMPY[tensors[name][0]]).reshape(tensors[name][1])
                for name in order
            }
            mapped.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _parse(path: Path, text: bytes, size: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a header; every byte behind it belongs to exactly one tensor."""

    def refuse(why: str) -> SafetensorsError:
        return SafetensorsError(f"{path}: {why}")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise refuse("a key is twice in the header")
        return dict(pairs)

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except SafetensorsError:
        raise
    except (ValueError, RecursionError) as error:
        raise refuse(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise refuse("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse("__metadata__ does not map words to words")
    start = 8 + len(text)
    tensors = {name: _entry(refuse, name, entry, start) for name, entry in header.items()}
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise refuse(f"{name} begins at byte {tensor.begin} and the tensor before it ends at {position}")
        position = tensor.end
    if position != size:
        raise refuse(f"the tensors end at byte {position} of {size}")
    return metadata, tensors


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


def _entry(refuse, name: str, entry: object, start: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse(f"{name} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise refuse(f"{name} is of a dtype {reprlib.repr(dtype)} that is no word")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > MAX_RANK or not all(map(_is_size, numbers)):
            raise refuse(f"{name} has {reprlib.repr(numbers)} where a list of sizes belongs")
    if math.prod(size or 1 for size in shape) > MAX_ITEMS:
        raise refuse(f"{name} has a shape {reprlib.repr(shape)} of more than any array")
    fits = len(offsets) == 2 and offsets[0] <= offsets[1]
    if fits and dtype in ITEM_BITS:
        fits = (offsets[1] - offsets[0]) * 8 == math.prod(shape) * ITEM_BITS[dtype]
    if not fits:
        raise refuse(f"{name}, {dtype} {shape}, does not fill bytes {offsets}")
    return Tensor(dtype, tuple(shape), start + offsets[0], start + offsets[1])
