"""NVFP4 in numpy: quantisation, the 128x4 scale layout, and a routed batch of tokens as arguments of grouped_fp4.

A value is E2M1 x UE4M3 scale (of 16 neighbours along k) x one float32 scale of the matrix. Packed bytes hold the even k
in the low nibble.
"""

from __future__ import annotations

import dataclasses

import numpy as np

GROUP = 16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # codes 0..7; code + 8 is the negative
UE4M3 = np.array([m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)])
UE4M3 = UE4M3[:127]  # code 0x7F is NaN; the largest value is 448


def nearest_code(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Code of the nearest entry of an ascending table, ties to the even code, large values to the last."""
    middles = (table[1:] + table[:-1]) / 2
    code = np.searchsorted(middles, values, side="left")
    tie = (code < len(middles)) & (values == middles[np.minimum(code, len(middles) - 1)])
    return code + (tie & (code % 2 == 1))


def quantize(matrix: np.ndarray, scale: np.float32 | None = None) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """[rows, K] as packed bytes [rows, K/2], scale bytes [rows, K/16] and the float32 scale of the whole matrix, if it
    is not given chosen so that the largest group scale is 448. Larger values than a given one admits saturate."""
    rows, k = matrix.shape
    groups = matrix.reshape(rows, k // GROUP, GROUP).astype(np.float64)
    if scale is None:
        scale = np.float32(np.abs(matrix).max(initial=0) / (6 * 448)) or np.float32(1)
    scale_codes = nearest_code(UE4M3, np.abs(groups).max(axis=-1) / 6 / scale)
    steps = UE4M3[scale_codes][..., None] * scale
    scaled = np.divide(groups, steps, out=np.zeros_like(groups), where=steps > 0)
    codes = (nearest_code(E2M1, np.abs(scaled)) + 8 * (scaled < 0)).reshape(rows, k)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed.astype(np.uint8), scale_codes.astype(np.uint8), scale


def dequantize(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Float64 [rows, K], without the scale of the matrix."""
    codes = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(packed.shape[0], 2 * packed.shape[1])
    values = np.where(codes < 8, E2M1[codes % 8], -E2M1[codes % 8])
    return values * np.repeat(UE4M3[scales], GROUP, axis=1)


def to_scale_layout(scales: np.ndarray) -> np.ndarray:
    """[rows, K/16] padded to rows % 128 == 0 and columns % 4 == 0, in the 128x4 block layout: blocks of 512 bytes, in
    which byte (row % 32) * 16 + (row % 128 // 32) * 4 + column % 4 is the scale of (row, column)."""
    rows, columns = -(-scales.shape[0] // 128) * 128, -(-scales.shape[1] // 4) * 4
    padded = np.zeros((rows, columns), np.uint8)
    padded[: scales.shape[0], : scales.shape[1]] = scales
    blocks = padded.reshape(rows // 128, 4, 32, columns // 4, 4)
    return np.ascontiguousarray(blocks.transpose(0, 3, 2, 1, 4)).reshape(rows, columns)


@dataclasses.dataclass(frozen=True)
class Routed:
    """Tokens sorted by expert. ``inputs`` are arguments of grouped_fp4, ``expected`` and ``bound`` are float64 [M, N]:
    the product of the quantised operands, and what fp32 accumulation may change of it."""

    inputs: dict[str, np.ndarray]
    expected: np.ndarray
    bound: np.ndarray
    quantisation_error: float  # relative, root of mean squares, against the product of the unquantised operands

    @property
    def shape(self) -> tuple[int, int]:
        return self.expected.shape


def route(rng: np.random.Generator, tokens: int, experts: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Token index of each row, rows sorted by expert, and the number of rows of each expert. Popularity is skewed."""
    logits = rng.gumbel(size=(tokens, experts)) - np.log1p(rng.permutation(experts))
    chosen = np.argsort(-logits, axis=1)[:, :top_k]
    order = np.argsort(chosen.ravel(), kind="stable")
    return order // top_k, np.bincount(chosen.ravel(), minlength=experts)


def routed_problem(seed: int, tokens: int, experts: int, top_k: int, n: int, k: int) -> Routed:
    """``tokens`` of ``k`` features, each sent to ``top_k`` of ``experts``, whose weights are [n, k]."""
    rng = np.random.default_rng(seed)
    rows, counts = route(rng, tokens, experts, top_k)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    activations = rng.standard_normal((tokens, k)).astype(np.float32)[rows]
    weights = rng.standard_normal((experts, n, k)).astype(np.float32) / np.float32(k**0.5)

    a, a_scales, a_global = quantize(activations)
    b, b_scales, b_globals = zip(*map(quantize, weights), strict=True)
    alpha = (a_global * np.array(b_globals)).astype(np.float32)
    a_blocks = [to_scale_layout(a_scales[begin:end]) for begin, end in zip(offsets, offsets[1:], strict=False)]
    padded = [len(block) for block in a_blocks]

    expected, bound, exact = (np.empty((len(rows), n)) for _ in range(3))
    for e in range(experts):
        mine = slice(offsets[e], offsets[e + 1])
        left, right = dequantize(a[mine], a_scales[mine]), dequantize(b[e], b_scales[e])
        expected[mine] = alpha[e] * (left @ right.T)
        bound[mine] = alpha[e] * (np.abs(left) @ np.abs(right).T) * (k + 32) * 2.0**-22
        exact[mine] = activations[mine].astype(np.float64) @ weights[e].T
    inputs = {
        "a": a,
        "b": np.stack(b),
        "a_scale": np.concatenate(a_blocks),
        "b_scale": np.stack([to_scale_layout(scales) for scales in b_scales]),
        "alpha": alpha,
        "expert_offsets": offsets.astype(np.int32),
        "scale_offsets": np.concatenate([[0], np.cumsum(padded)[:-1]]).astype(np.int32),
    }
    return Routed(inputs, expected, bound, float(np.linalg.norm(expected - exact) / np.linalg.norm(exact)))
