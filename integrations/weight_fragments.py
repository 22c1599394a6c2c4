"""NVFP4 weights in fragment order, as kernels for 16-bit tokens on Hopper take them, and back.

docs/weights.md has the order. Of numpy arrays, and of torch tensors where these lie: neither has to be there for the
other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = TypeVar("Array", np.ndarray, torch.Tensor)

STAGE_K = 128  # 64 bytes of a row: of each of four lanes four words
_WORD = 0xFFFFFFFF
_PLACES = 0x81C081C0  # of two weights in a register: bits 15 and 8..6 of either half

# A word of eight weights from its four registers: (register, bits of it, by how much they are turned left to their
# place). A register is more than one place of the word, so each step mends what the ones before it left.
_STEPS = (
    (0, _PLACES, 0),
    (1, _PLACES, 4),
    (2, 0x00400040, 28),
    (2, 0x80808080, 6),
    (3, 0x80C080C0, 26),
    (3, 0x01000100, 6),
    (2, 0x01000100, 28),
)


def to_fragments(packed: Array) -> Array:
    """E2M1 weights, u8 [.., K / 2] with the even k in the low nibble, in fragment order: u8 [.., round_up(K, 128) / 2].

    Weights behind K are zeros. Meanwhile it takes about 20 bytes a byte of weights: give it an expert at a time. Raises
    ValueError where the array has another dtype.
    """
    _check_dtype(packed)
    *lead, size = packed.shape
    stages = -(-2 * size // STAGE_K)
    padded = _zeros(packed, (*lead, stages * STAGE_K // 2))
    padded[..., :size] = packed
    pairs = padded.reshape(*lead, stages, 4, 4, 4)  # of a stage: words, their registers, lanes
    registers = [_placed(pairs[..., index, :]) for index in range(4)]
    words = registers[0] & 0
    for index, bits, left in _STEPS:
        words = words ^ _turned((_register(words, index) ^ registers[index]) & bits, left)
    fragments = _zeros(packed, (*lead, stages, 4, 4, 4))  # lanes, words, bytes
    for byte in range(4):
        fragments[..., byte] = (words >> 8 * byte & 255).swapaxes(-1, -2)
    return fragments.reshape(*lead, stages * STAGE_K // 2)


def from_fragments(fragments: Array, k: int) -> Array:
    """The packed weights, u8 [.., k / 2], of which ``to_fragments`` made these.

    Raises ValueError where the array has another dtype or not as many bytes a row as k asks for, or k is odd.
    """
    _check_dtype(fragments)
    *lead, size = fragments.shape
    stages = -(-k // STAGE_K)
    if size != stages * STAGE_K // 2 or k % 2:
        raise ValueError(f"expected rows of {stages * STAGE_K // 2} bytes for k = {k}, an even number, got {size}")
    stored = fragments.reshape(*lead, stages, 4, 4, 4)
    words = sum(_wide(stored[..., byte]) << 8 * byte for byte in range(4)).swapaxes(-1, -2)
    packed = _zeros(fragments, (*lead, stages, 4, 4, 4))
    for index in range(4):
        register = _register(words, index)
        codes = [register >> shift + 12 & 8 | register >> shift + 6 & 7 for shift in (0, 16)]
        packed[..., index, :] = codes[0] | codes[1] << 4
    return packed.reshape(*lead, stages * STAGE_K // 2)[..., : k // 2]


def _placed(pairs: Array) -> Array:
    """Registers of two weights each, as 64-bit integers."""
    codes = _wide(pairs)
    low, high = ((code & 8) << 12 | (code & 7) << 6 for code in (codes & 15, codes >> 4))
    return low | high << 16


def _register(words: Array, index: int) -> Array:
    """What a kernel makes of words for one of their four registers."""
    if index < 2:
        return _turned(words, 28 * index) & _PLACES
    return (words << 2 * index ^ _turned(words, 26)) & _PLACES


def _turned(words: Array, left: int) -> Array:
    return (words << left | words >> 32 - left) & _WORD


def _wide(values: Array) -> Array:
    return values.long() if hasattr(values, "long") else values.astype("int64")


def _zeros(like: Array, shape: tuple[int, ...]) -> Array:
    if hasattr(like, "new_zeros"):
        return like.new_zeros(shape)
    from numpy import uint8, zeros

    return zeros(shape, uint8)


def _check_dtype(weights: Array) -> None:
    if str(weights.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"expected weights as uint8, got {weights.dtype}")
