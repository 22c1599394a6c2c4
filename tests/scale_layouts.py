"""Layouts of scales, each byte as the kernels that transform them promise, and problems for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reference import ceil_div, round_up

NAN = 0xFF  # of UE8M0
# Bits of fp32 that have no UE8M0: infinities, NaN, -0, -1, -2^-126, 2^-127 and 2^-149, 1 + 2^-23, 1.5, 2^-126 + 2^-149.
NO_POWERS = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0x80000000, 0xBF800000, 0x80800000, 0x00400000, 1, 0x3F800001,
                      0x3FC00000, 0x00800001], np.uint32)  # fmt: skip


def code(value: np.float32) -> int:
    """UE8M0 of a scale: of 0 and of normal powers of two, else NaN."""
    if value == 0 and not np.signbit(value):
        return 0
    fraction, exponent = np.frexp(value)
    is_power = fraction == 0.5 and value >= 2.0**-126
    return int(exponent) - 1 + 127 if is_power else NAN


def words(codes: np.ndarray) -> np.ndarray:
    """uint32 [.., ceil(C / 4), M] of codes [.., C, M], four of C a word, the first in its lowest byte."""
    *lead, c, m = codes.shape
    padded = np.zeros((*lead, round_up(c, 4), m), np.uint32)
    padded[..., :c, :] = codes
    return sum(padded[..., i::4, :] << np.uint32(8 * i) for i in range(4))


def padded(mn_major: np.ndarray) -> np.ndarray:
    """[.., M up to a multiple of 4], zeros behind M."""
    m = mn_major.shape[-1]
    return np.pad(mn_major, [(0, 0)] * (mn_major.ndim - 1) + [(0, round_up(m, 4) - m)])


def scales(rng: np.random.Generator, *shape: int, others: float = 0.1) -> np.ndarray:
    """Powers of two over the whole range, 0 among them, and a share of ``others``, which have no UE8M0."""
    bits = rng.integers(0, 255, shape, dtype=np.uint32) << 23
    return np.where(rng.random(shape) < others, rng.choice(NO_POWERS, shape), bits).astype(np.uint32).view(np.float32)


@dataclass
class Case:
    """A call of a family, and the words that it has to write."""

    family: str
    inputs: dict[str, np.ndarray]
    expected: np.ndarray  # uint32
    scalars: dict[str, Any] = field(default_factory=dict)

    def output(self) -> np.ndarray:
        """Every byte is to be written."""
        dtype = np.float32 if self.family == "scales_mn_major" else np.int32
        return np.full(self.expected.shape, 0xA5A5A5A5, np.uint32).view(dtype)

    def verify(self, out: np.ndarray, context: str = "") -> None:
        wrong = np.argwhere(out.view(np.uint32) != self.expected)
        assert not len(wrong), f"{self.family} {context}: {len(wrong)} words, first at {wrong[0].tolist()}"


def mn_major(rng: np.random.Generator, batches: int, m: int, c: int) -> Case:
    """Any 32 bits, no two the same."""
    bits = rng.permutation(batches * m * c).astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(1)
    sf = bits.reshape(batches, m, c)
    return Case("scales_mn_major", {"sf": sf.view(np.float32)}, padded(sf.swapaxes(1, 2)))


def _codes(sf: np.ndarray) -> np.ndarray:
    return np.array([code(value) for value in sf.reshape(-1)], np.uint32).reshape(sf.shape)


def packed(rng: np.random.Generator, batches: int, m: int, c: int, row_block: int = 1) -> Case:
    """A scale for ``row_block`` rows."""
    sf = scales(rng, batches, ceil_div(m, row_block), c)
    of_rows = np.repeat(_codes(sf), row_block, 1)[:, :m]
    expected = padded(words(of_rows.swapaxes(1, 2)))
    return Case("scales_pack_ue8m0", {"sf": sf}, expected, {"M": m, "row_block": row_block})


def packed_along_k(
    rng: np.random.Generator, m: int, ks: Sequence[int] | None, scale_k: int = 128, given: int = 0, spare: int = 0
) -> Case:
    """K of each group, or one group of ``given`` scales; ``spare`` words behind the last one's."""
    sizes = [given] if ks is None else [ceil_div(k, scale_k) for k in ks]
    sf = scales(rng, sum(sizes), m)
    groups = np.split(_codes(sf), np.cumsum(sizes)[:-1])
    found = np.concatenate([*map(words, groups), np.zeros((spare, m), np.uint32)])
    inputs = {"sf": sf} if ks is None else {"sf": sf, "group_k": np.array(ks, np.int32)}
    return Case("scales_pack_ue8m0_along_k", inputs, padded(found), {"scale_k": scale_k})


# One of each that has all that is awkward: tails of tiles, of words and of 16 bytes, several batches and groups, empty
# ones, and scales shared by rows.
AWKWARD: dict[str, Callable[[np.random.Generator], Case]] = {
    "scales_mn_major": lambda rng: mn_major(rng, 2, 67, 37),
    "scales_pack_ue8m0": lambda rng: packed(rng, 2, 130, 39, row_block=128),
    "scales_pack_ue8m0_along_k": lambda rng: packed_along_k(rng, 131, [0, 640, 128, 0, 1100, 512, 0], spare=2),
}
