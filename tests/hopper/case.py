"""A case: a PTX kernel, its launch, its arguments, and how far the emulated device may be from the GPU."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

BYTES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def random_bytes(name: str, count: int) -> np.ndarray:
    """uint8 [count] that depend on the name alone: the raw stream of PCG64 is the same in every numpy."""
    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(-(-count // 8))
    return np.asarray(words, np.uint64).view(np.uint8)[:count].copy()


def random_words(name: str, count: int, dtype: str = "uint32") -> np.ndarray:
    return random_bytes(name, count * np.dtype(dtype).itemsize).view(dtype)


@dataclass(frozen=True)
class TensorMap:
    """A tensor map of a buffer: dims and box in elements, innermost first; strides in bytes, of the outer ones."""

    buffer: int
    element: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0


@dataclass(frozen=True)
class Row:
    """A part of the output that one instruction wrote. It may be off by `ulps` units in the last place."""

    label: str
    offset: int
    count: int
    dtype: str = "uint32"
    ulps: int = 0


@dataclass(frozen=True)
class Case:
    """A launch of `entry` of `ptx` with the addresses of `inputs`, then of the output, then the tensor maps.

    Inputs may be written too; what counts is the output, which begins as `output` (uint8). A map's buffer is an index
    into inputs and the output after them. With `digest` the record holds a digest of each row and no bytes.
    `refused`: the emulated device has no such instruction, and says so. `without`: its checks that are stricter.
    """

    name: str
    ptx: str
    inputs: tuple[np.ndarray, ...]
    output: np.ndarray
    rows: tuple[Row, ...]
    grid: int = 1
    block: int = 32
    cluster: int = 1
    shared: int = 0
    maps: tuple[TensorMap, ...] = ()
    digest: bool = False
    refused: bool = False
    without: tuple[str, ...] = ()
    entry: str = "kernel"

    def fingerprint(self) -> str:
        """Of all that decides the result: the record is stale if it changes."""
        digest = hashlib.sha256(self.ptx.encode())
        digest.update(repr((self.grid, self.block, self.cluster, self.shared, self.maps)).encode())
        for array in (*self.inputs, self.output):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def parameters(self, addresses: Sequence[int], maps: Sequence[bytes]) -> list[bytes]:
        return [int(a).to_bytes(8, "little") for a in addresses] + list(maps)


def row_digest(data: np.ndarray) -> bytes:
    return hashlib.sha256(data.tobytes()).digest()[:16]


def module(body: str, parameters: int, maps: int = 0, declarations: str = "") -> str:
    """A kernel of 64-bit parameters p0, p1, ... and maps m0, m1, ... around `body`."""
    listed = [f".param .u64 p{i}" for i in range(parameters)]
    listed += [f".param .align 64 .b8 m{i}[128]" for i in range(maps)]
    return f""".version 8.7
.target sm_90a
.address_size 64
{declarations}
.visible .entry kernel({", ".join(listed)}) {{
.reg .b32 %me, %lane, %t<8>; .reg .b64 %out, %at, %in<8>; .reg .pred %p<8>;
mov.u32 %me, %tid.x;
mov.u32 %lane, %laneid;
{body}
ret;
}}
"""


@dataclass
class Writer:
    """Builds a kernel of many small blocks, each of which writes its own row of the output."""

    name: str
    threads: int
    inputs: list[np.ndarray] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    size: int = 0

    def load(self, register: str, kind: str, array: np.ndarray) -> None:
        """The element of this thread (of all CTAs) of a new input, in a register of its size."""
        index = len(self.inputs)
        self.inputs.append(np.ascontiguousarray(array))
        self.lines.append(
            f".reg .b{max(16, 8 * BYTES[kind])} {register}; ld.param.u64 %at, [p{index}];"
            f" mad.wide.u32 %at, %gid, {BYTES[kind]}, %at; ld.global.{kind} {register}, [%at];"
        )

    def run(self, instruction: str, kind: str = "u32", ulps: int = 0, dtype: str = "", label: str = "") -> None:
        """Instructions that set %z (and may use %y); one value a thread becomes a row."""
        size = BYTES[kind]
        width = max(16, 8 * size)
        self.lines.append(
            f"{{ .reg .b{width} %z, %y; {instruction}; add.u64 %at, %out, {self.size};"
            f" mad.wide.u32 %at, %gid, {size}, %at; st.global.{kind} [%at], %z; }}"
        )
        self.add_row(label or instruction, self.threads, dtype or kind.replace("u", "uint"), ulps)

    def add_row(self, label: str, count: int, dtype: str = "uint32", ulps: int = 0) -> int:
        """Room for a row; returns its offset."""
        offset = self.size
        self.rows.append(Row(label, offset, count, dtype, ulps))
        self.size += -(-count * np.dtype(dtype).itemsize // 16) * 16
        return offset

    def case(self, block: int = 0, **options: object) -> Case:
        block = block or min(self.threads, 512)
        prologue = (
            f".reg .b32 %gid; mov.u32 %gid, %ctaid.x; mad.lo.u32 %gid, %gid, {block}, %me;"
            f" ld.param.u64 %out, [p{len(self.inputs)}];"
        )
        text = module(
            "\n".join([prologue, *self.lines]), len(self.inputs) + 1, declarations=options.pop("declarations", "")
        )
        output = np.zeros(self.size, np.uint8)
        grid = options.pop("grid", max(1, self.threads // block))
        return Case(self.name, text, tuple(self.inputs), output, tuple(self.rows), grid, block, **options)
