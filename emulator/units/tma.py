"""Tensor maps and the tiles they describe (PTX ISA 5.5).

A tensor map is 128 bytes, little endian, 64-byte aligned in memory:

    0   u64      global address
    8   4 bytes  "PTXM"
    12  u8       element, index in ELEMENTS
    13  u8       rank, 1 to 5
    14  u8       swizzle, index in SWIZZLES
    15  u8       interleave: 0
    16  u8       fill of elements out of bounds: 0 zeros, 1 NaN
    20  u32[5]   dimensions in elements, innermost first
    40  u64[4]   strides in bytes of dimensions 1 to 4
    72  u32[5]   box in elements
    92  u32[5]   element strides
    112          zeros

A tile lies in shared memory row by row, innermost dimension first, without gaps; the swizzle permutes the 16-byte
chunks of absolute shared addresses. Elements out of bounds read as the fill and are not written, but for those that
share 16 bytes with the last element inside of the innermost dimension: a Hopper GPU writes 16 bytes or none, and stops
a store that begins before the tensor in any dimension.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..checks.faults import LaunchError, MemoryFault, UnsupportedInstruction
from ..machine.memory import Region, Space
from ..numbers import floats, formats, swizzle

_LAYOUT = struct.Struct("<Q4s5B3x5I4Q5I5I16x")
MAGIC = b"PTXM"
ELEMENTS = (  # in the order of tensormap.replace
    "u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32_ftz", "f64", "bf16", "tf32", "tf32_ftz", "u4_align8",
    "u4_align16", "u6_align16",
)  # fmt: skip
SWIZZLES = ("none", "32B", "64B", "128B", "128B_atom_32B", "128B_atom_32B_flip_8B", "128B_atom_64B")
_BITS = {"u8": 8, "u16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64, "f16": 16, "f32": 32, "f64": 64, "bf16": 16,
         "f32_ftz": 32, "tf32": 32, "tf32_ftz": 32, "u4_align8": 4, "u4_align16": 4, "u6_align16": 6}  # fmt: skip
_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f32_ftz": 0x7FFFFFFF, "tf32": 0x7FFFFFFF}


@dataclass(frozen=True)
class TensorMap:
    """Dimensions innermost first; `strides` are those of dimensions 1 and up, in bytes."""

    address: int
    element: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: str = "none"
    element_strides: tuple[int, ...] = field(default=())
    fill_nan: bool = False

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def bits(self) -> int:
        return _BITS[self.element]

    @property
    def tile(self) -> tuple[int, ...]:
        """Elements of a tile along each dimension."""
        return tuple(-(-b // s) for b, s in zip(self.box, self.element_strides, strict=True))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the tile in shared memory."""
        if self.element.endswith("align16"):
            return self.tile[0]  # 16 elements take 16 bytes
        return self.tile[0] * self.bits // 8

    @property
    def tile_bytes(self) -> int:
        return self.row_bytes * int(np.prod(self.tile[1:], dtype=np.int64))

    @property
    def copied_bytes(self) -> int:
        """What a load adds to the transactions of its barrier: the padding of align16 is not copied (5.5.1.1.1)."""
        return int(np.prod(self.tile, dtype=np.int64)) * self.bits // 8

    def encode(self) -> bytes:
        self.check()
        pad = lambda values, fill, count=5: (*values, *[fill] * (count - len(values)))  # noqa: E731
        return _LAYOUT.pack(
            self.address, MAGIC, ELEMENTS.index(self.element), self.rank, SWIZZLES.index(self.swizzle), 0,
            int(self.fill_nan), *pad(self.dims, 1), *pad(self.strides, 0, 4), *pad(self.box, 1),
            *pad(self.element_strides, 1),
        )  # fmt: skip

    @staticmethod
    def decode(data: bytes, where: int) -> TensorMap:
        values = _LAYOUT.unpack(data)
        address, magic, element, rank, mode, interleave, fill = values[:7]
        if magic != MAGIC or not 1 <= rank <= 5 or element >= len(ELEMENTS) or mode >= len(SWIZZLES):
            raise MemoryFault("these 128 bytes are not a tensor map", address=where)
        if interleave:
            raise UnsupportedInstruction(f"tensor map with interleave {interleave}: only 0 is implemented")
        dims, strides, box, steps = values[7:12], values[12:16], values[16:21], values[21:26]
        found = TensorMap(
            address, ELEMENTS[element], dims[:rank], strides[: rank - 1], box[:rank], SWIZZLES[mode], steps[:rank],
            bool(fill),
        )  # fmt: skip
        try:
            found.check()
        except LaunchError as error:
            raise MemoryFault(str(error), address=where) from None
        return found

    def check(self) -> None:
        """The rules of cuTensorMapEncodeTiled; LaunchError names the one that is broken."""

        def require(good: bool, what: str) -> None:
            if not good:
                raise LaunchError(f"tensor map of {self.element} {self.dims}, box {self.box}: {what}")

        wide = self.element.endswith("align16")
        require(1 <= self.rank <= 5, "rank is not 1 to 5")
        require(len(self.strides) == self.rank - 1, f"{len(self.strides)} strides for rank {self.rank}")
        require(len(self.box) == self.rank, f"{len(self.box)} box dimensions for rank {self.rank}")
        require(len(self.element_strides) == self.rank, "element strides do not fit the rank")
        alignment = 32 if wide else 16
        require(self.address % alignment == 0, f"address {self.address:#x} is not a multiple of {alignment}")
        require(all(1 <= d <= 1 << 32 for d in self.dims), "a dimension is not in 1 to 2^32")
        for stride in self.strides:
            require(stride % alignment == 0 and stride < 1 << 40, f"stride {stride} is not a multiple of {alignment}")
        require(all(1 <= b <= 256 for b in self.box), "a box dimension is not in 1 to 256")
        require(all(1 <= s <= 8 for s in self.element_strides), "an element stride is not in 1 to 8")
        if self.element == "u4_align8":
            require(self.dims[0] % 2 == 0, "the inner dimension of packed FP4 is odd")
        if wide:
            require(self.dims[0] % 128 == 0 and self.box[0] == 128, "align16 needs dims[0] % 128 == 0 and box[0] 128")
            require(self.swizzle in ("none", "128B"), f"swizzle {self.swizzle} with align16")
        require(self.row_bytes % 16 == 0, f"an inner box of {self.row_bytes} bytes is not a multiple of 16")
        span = swizzle.mode(self.swizzle).span
        if self.swizzle != "none":
            require(self.row_bytes <= span, f"an inner box of {self.row_bytes} bytes exceeds the swizzle of {span}")

    def load(self, space: Space, coordinates: Sequence[int]) -> np.ndarray:
        """The tile at `coordinates` as bytes of shared memory, unswizzled: uint8 [tile_bytes]."""
        shape = tuple(reversed(self.tile))
        inner = self.tile[0] * self.bits // 8
        tile = np.zeros((*shape[:-1], inner), np.uint8)
        if self.fill_nan and self.element in _NAN:
            tile.view(f"u{self.bits // 8}")[...] = _NAN[self.element]
        source, window = self._window(space, coordinates, False)
        if source is not None:
            tile[window] = source if not self.element.startswith("tf32") else _rounded_to_tf32(source)
        if not self.element.endswith("align16"):
            return tile.reshape(-1)
        groups = tile.reshape(-1, 2 * self.bits)  # 16 elements
        wide = np.zeros((len(groups), 16), np.uint8)
        wide[:, : groups.shape[1]] = groups
        return wide.reshape(-1)

    def store(self, space: Space, coordinates: Sequence[int], data: np.ndarray, operation: str | None) -> None:
        """Writes a tile, or combines it with what is there."""
        if self.element.endswith("align16"):
            raise UnsupportedInstruction("stores through align16 tensor maps are not implemented")
        target, window = self._window(space, coordinates, True)
        if target is None:
            return
        tile = data.reshape(*reversed(self.tile[1:]), self.row_bytes)[window]
        if operation is None:
            target[...] = tile
        else:
            combine(self.element, operation, target, tile)

    def _window(
        self, space: Space, coordinates: Sequence[int], write: bool
    ) -> tuple[np.ndarray | None, tuple[slice, ...]]:
        """Global bytes of the part of a tile that is inside the tensor, and that part's place in the tile."""
        window, shape, steps = [], [], []
        pitches = (None, *self.strides)
        offset = 0
        if coordinates[0] * self.bits % 128:  # seen on an H200, too: such a copy is an illegal instruction
            raise MemoryFault(
                f"a box that starts at element {coordinates[0]} ({self.bits} bits) is not aligned to 16 bytes (5.5.3.1)"
            )
        if write and min(coordinates) < 0:  # seen on Hopper: an illegal instruction
            raise MemoryFault(f"a store to a box that begins before the tensor, at {tuple(coordinates)}")
        for d in range(self.rank):
            step, count = self.element_strides[d], self.tile[d]
            first = max(0, -(coordinates[d] // step)) if coordinates[d] < 0 else 0
            last = min(count, -(-(self.dims[d] - coordinates[d]) // step))
            if last <= first:
                return None, ()
            begin = coordinates[d] + first * step
            if d == 0:
                if step != 1 and self.bits < 8:
                    raise UnsupportedInstruction("element strides of packed elements are not implemented")
                if begin * self.bits % 8 or (last - first) * self.bits % 8:
                    raise MemoryFault(f"coordinate {coordinates[0]} splits a byte of packed elements")
                if write:
                    last = min(count, -(-last * self.bits // 128) * 128 // self.bits)
                offset += begin * self.bits // 8
                window.append(slice(first * self.bits // 8, last * self.bits // 8))
                shape.append((last - first) * self.bits // 8)
                if step != 1:
                    raise UnsupportedInstruction(f"element stride {step} of the inner dimension is not implemented")
                steps.append(1)
            else:
                offset += begin * pitches[d]
                window.append(slice(first, last))
                shape.append(last - first)
                steps.append(pitches[d] * step)
        size = 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
        region = space.find(self.address + offset, size)
        if write and not region.writable:
            raise MemoryFault(f"write to {region.name}, which is read-only", address=self.address + offset)
        data = region.data[self.address + offset - region.base :]
        view = np.lib.stride_tricks.as_strided(data, tuple(reversed(shape)), tuple(reversed(steps)), writeable=write)
        return view, tuple(reversed(window))


def _rounded_to_tf32(data: np.ndarray) -> np.ndarray:
    """fp32 as loads through tf32 maps change it, seen on an H200: as cvt.rn does, subnormals of tf32_ftz, too."""
    return formats.convert("tf32", "f32", (np.ascontiguousarray(data).view("<u4"),), "rn").view(np.uint8)


def swizzled_chunks(tensor: TensorMap, shared: int, size: int) -> np.ndarray:
    """Shared addresses of the 16-byte chunks of `size` bytes of tiles at `shared`."""
    linear = shared + 16 * np.arange(size // 16, dtype=np.int64)
    if tensor.swizzle == "none":
        return linear
    pattern = swizzle.mode(tensor.swizzle)
    if tensor.row_bytes != pattern.span or pattern.flip:
        raise UnsupportedInstruction(
            f"an inner box of {tensor.row_bytes} bytes with swizzle {tensor.swizzle} is not implemented"
        )
    return pattern.apply(linear)


REPLACEMENTS = {
    "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype",
    "interleave_layout", "swizzle_mode", "swizzle_atomicity", "fill_mode",
}  # fmt: skip
_REPLACED_SWIZZLE = {0: "none", 1: "32B", 2: "64B", 3: "128B"}
_REPLACED_ATOM = {1: "128B_atom_32B", 2: "128B_atom_32B_flip_8B", 3: "128B_atom_64B"}


def replace_field(data: np.ndarray, name: str, index: int, value: int) -> None:
    """tensormap.replace (9.7.9.28) on 128 bytes in place; `rank` counts from 0."""
    if name not in REPLACEMENTS:
        raise UnsupportedInstruction(f"tensormap.replace.{name} is not known")

    def put(offset: int, kind: str, number: int) -> None:
        struct.pack_into(f"<{kind}", memoryview(data), offset, number)

    data[8:12] = np.frombuffer(MAGIC, np.uint8)
    match name:
        case "global_address":
            put(0, "Q", value)
        case "rank":
            put(13, "B", value + 1)
        case "global_dim":
            put(20 + 4 * index, "I", value)
        case "global_stride":
            put(40 + 8 * index, "Q", value)
        case "box_dim":
            put(72 + 4 * index, "I", value)
        case "element_stride":
            put(92 + 4 * index, "I", value)
        case "elemtype":
            put(12, "B", value)
        case "interleave_layout":
            put(15, "B", value)
        case "swizzle_mode":
            if value not in _REPLACED_SWIZZLE and value != 4:
                raise UnsupportedInstruction(f"tensormap.replace.swizzle_mode of {value} is not known")
            put(14, "B", SWIZZLES.index(_REPLACED_SWIZZLE.get(value, "none")))
        case "swizzle_atomicity":
            if value in _REPLACED_ATOM:
                put(14, "B", SWIZZLES.index(_REPLACED_ATOM[value]))
        case "fill_mode":
            put(16, "B", value)


_TYPED = {
    "u8": "u1", "u16": "u2", "u32": "u4", "s32": "i4", "u64": "u8", "s64": "i8", "f16": "f2", "f32": "f4", "f64": "f8",
    "f32_ftz": "f4", "b32": "u4", "b64": "u8",
}  # fmt: skip
_REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, limit: np.where(old >= limit, 0, old + 1).astype(old.dtype),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - 1).astype(old.dtype),
}  # fmt: skip


def combine(element: str, operation: str, target: np.ndarray, data: np.ndarray) -> None:
    """Reduction of an asynchronous copy: `target` bytes become operation(target, data)."""
    old, new = np.ascontiguousarray(target), np.ascontiguousarray(data)
    if element == "bf16":
        x, y = old.view(np.uint16), new.view(np.uint16)
        if operation == "add":
            result = floats.half_binary("add", "bf16", x, y)
        else:
            result = floats.half_minmax(operation, "bf16", x, y, False, False)
    else:
        kind = _TYPED.get(element)
        if kind is None or operation not in _REDUCTIONS or (element in ("f32", "f64") and operation != "add"):
            raise UnsupportedInstruction(f"reduction .{operation} of {element} is not implemented")
        result = _REDUCTIONS[operation](old.view(kind), new.view(kind))
    target[...] = np.ascontiguousarray(result).view(np.uint8).reshape(target.shape)


def read_map(region: Region, address: int) -> TensorMap:
    if address % 64:
        raise MemoryFault("tensor map at an address that is not a multiple of 64", address=address)
    return TensorMap.decode(region.bytes_at(address, 128).tobytes(), address)
