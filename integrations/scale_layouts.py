"""How kernels read the scales of a matrix, and back: numpy alone. docs/weights.md has the layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WORD_ROWS = 128  # of a matrix that share a scale, before each has its own in a word
SMALLEST_POWER = 1 << 22  # 2^-127 as fp32 bits: the byte 0, and no normal number


class ScaleLayout(NamedTuple):
    """Scales [rows, columns] of a matrix of ``n`` rows, as a kernel has them and back.

    ``shape(rows, columns, n)``; ``store(scales, n)`` gives an array of that shape, ``load(stored, rows, columns)``
    undoes it.
    """

    dtype: str  # of a safetensors file
    shape: Callable[[int, int, int], tuple[int, ...]]
    store: Callable[[np.ndarray, int], np.ndarray]
    load: Callable[[np.ndarray, int, int], np.ndarray]


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def to_blocks(scales: np.ndarray) -> np.ndarray:
    """[rows, columns] bytes in the 128x4 block layout, padded with 0 to whole blocks: a block is 512 bytes, of which
    byte (row % 32) * 16 + (row % 128 // 32) * 4 + column % 4 belongs to (row, column)."""
    rows, columns = round_up(scales.shape[0], 128), round_up(scales.shape[1], 4)
    padded = np.zeros((rows, columns), np.uint8)
    padded[: scales.shape[0], : scales.shape[1]] = scales
    return padded.reshape(rows // 128, 4, 32, columns // 4, 4).transpose(0, 3, 2, 1, 4).reshape(rows, columns)


def from_blocks(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The first ``rows`` and ``columns`` of what ``to_blocks`` made."""
    row_blocks, column_blocks = blocks.shape[0] // 128, blocks.shape[1] // 4
    unfolded = blocks.reshape(row_blocks, column_blocks, 32, 4, 4).transpose(0, 3, 2, 1, 4)
    return unfolded.reshape(blocks.shape)[:rows, :columns]


def to_words(scales: np.ndarray, n: int) -> np.ndarray:
    """Powers of two, fp32 [rows, columns], as words of four UE8M0 for each of ``n`` rows: i32 [columns / 4, n].

    A scale that is no power of two loses its mantissa, so the caller looks first.
    """
    exponents = np.repeat((scales.view("<u4") >> 23).astype(np.uint8), WORD_ROWS, axis=0)[:n]
    padded = np.zeros((n, round_up(scales.shape[1], 4)), np.uint8)
    padded[:, : scales.shape[1]] = exponents
    return padded.view("<i4").T


def from_words(words: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The fp32 scales of which ``to_words`` made words."""
    exponents = np.ascontiguousarray(words.T).view(np.uint8)[::WORD_ROWS][:rows, :columns]
    return powers(exponents)


def powers(exponents: np.ndarray) -> np.ndarray:
    """fp32 of UE8M0, exactly; 255 becomes infinity."""
    bits = exponents.astype("<u4")
    return np.where(bits == 0, SMALLEST_POWER, bits << 23).astype("<u4").view("<f4")


def _block_layout(dtype: str) -> ScaleLayout:
    return ScaleLayout(
        dtype,
        shape=lambda rows, columns, n: (round_up(rows, 128), round_up(columns, 4)),
        store=lambda scales, n: to_blocks(scales),
        load=from_blocks,
    )


UE4M3_BLOCKS = _block_layout("F8_E4M3")
UE8M0_BLOCKS = _block_layout("U8")  # as not every reader of files has a type for UE8M0
SQUARES = ScaleLayout(
    "F32",
    shape=lambda rows, columns, n: (rows, columns),
    store=lambda scales, n: scales,
    load=lambda stored, rows, columns: stored[:rows, :columns],
)
ROWS = ScaleLayout(
    "F32",
    shape=lambda rows, columns, n: (n,),
    store=lambda scales, n: scales[:, 0],
    load=lambda stored, rows, columns: stored[:rows, None],
)
UE8M0_WORDS = ScaleLayout(
    "I32", shape=lambda rows, columns, n: (-(-columns // 4), n), store=to_words, load=from_words
)
