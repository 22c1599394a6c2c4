"""The slow and plain meaning of the kernels: scaled operands in float64, random problems, and how far one may be off.

Nothing here comes from the code under test. Formats: OCP MX 1.0 (E2M1), NVIDIA's UE4M3 (E4M3 without a sign; 0x7F is
NaN), the 128x4 scale layout of `tcgen05` and cuBLAS. `error_bound` and `check` use arithmetic operators only, so they
take numpy arrays and torch tensors alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

GROUP = 16  # elements along K that share one scale
NAN_SCALE = 0x7F
MAX_SCALE = 0x7E  # 448

# FP8 in the tensor core of sm_90 (emulator.numbers.accumulate): K of an instruction, and bits below the largest
# exponent that a summand keeps.
STEP, FRACTION = 32, 13

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _ue4m3_value(byte: int) -> float:
    exponent, mantissa = byte >> 3, byte & 7
    if byte == 0x7F:
        return float("nan")
    return mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


# Bit 7 is not part of the format: a byte above 0x7F is an index error.
UE4M3 = np.array([_ue4m3_value(byte) for byte in range(128)])
E4M3 = np.concatenate([UE4M3, -UE4M3])
UE8M0 = np.append(2.0 ** np.arange(-127.0, 128.0), np.nan)


def _lowest_bits(table: np.ndarray) -> np.ndarray:
    """Largest power of two that divides each value; infinity for 0, which every power divides."""
    fraction, exponent = np.frexp(np.abs(np.nan_to_num(table)))
    whole = (fraction * 16).astype(np.int64)
    return np.where(table == 0, np.inf, np.ldexp((whole & -whole).astype(np.float64), exponent - 4))


# The lowest bit of a product is the product of the lowest bits: odd times odd is odd.
E2M1_LOWEST_BIT, UE4M3_LOWEST_BIT = _lowest_bits(E2M1), _lowest_bits(UE4M3)


@dataclasses.dataclass(frozen=True)
class Formats:
    """Of the operands of a GEMM: values of the elements and of the scales by their codes, the last scale is NaN."""

    tokens: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    group: int  # elements along K that share a scale

    @property
    def nan_scale(self) -> int:
        return len(self.scales) - 1


NVFP4 = Formats(E2M1, E2M1, UE4M3, GROUP)
MXFP4 = Formats(E2M1, E2M1, UE8M0, 32)
MXFP8 = Formats(E4M3, E4M3, UE8M0, 32)
MXFP8_MXFP4 = Formats(E4M3, E2M1, UE8M0, 32)

# Significant bits, and half of the smallest subnormal step, of the types of an output.
PRECISION = {"bf16": 8, "f16": 11, "f32": 24}
HALF_SUBNORMAL_STEP = {"bf16": 2.0**-134, "f16": 2.0**-25, "f32": 2.0**-150}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def pack_e2m1(codes: np.ndarray) -> np.ndarray:
    """4-bit codes [.., K] to bytes [.., K/2]."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def scale_offset(row: Any, group: Any, groups: int) -> Any:
    """Byte offset of the scale of (row, group) in the 128x4 layout; ``groups`` is those of a row."""
    block = (row // 128) * ceil_div(groups, 4) + group // 4
    return block * 512 + (row % 32) * 16 + (row % 128 // 32) * 4 + group % 4


def to_scale_layout(scales: np.ndarray) -> np.ndarray:
    """Scale bytes [.., rows, groups], rows % 128 == 0 and groups % 4 == 0, to the 128x4 layout, same shape."""
    *_, rows, groups = scales.shape
    stored = np.empty((*scales.shape[:-2], rows * groups), np.uint8)
    row, group = np.indices((rows, groups))
    stored[..., scale_offset(row, group, groups)] = scales
    return stored.reshape(scales.shape)


def expand(stored: np.ndarray, groups: np.ndarray, elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Table entries of each element times that of its scale: the bytes of K elements and scale bytes [.., K / group] in
    plain order to float64 [.., K]. Of 16 elements two are in a byte, the even k in the low nibble."""
    if len(elements) == 16:
        stored = np.stack([stored & 0xF, stored >> 4], axis=-1).reshape(*stored.shape[:-1], 2 * stored.shape[-1])
    return elements[stored] * np.repeat(scales[groups], stored.shape[-1] // groups.shape[-1], axis=-1)


def dequantize(
    stored: np.ndarray, groups: np.ndarray, elements: np.ndarray = E2M1, scales: np.ndarray = UE4M3
) -> np.ndarray:
    """Values, float64 [.., K]."""
    return expand(stored, groups, elements, scales)


def quantum(
    stored: np.ndarray, groups: np.ndarray, elements: np.ndarray = E2M1, scales: np.ndarray = UE4M3
) -> np.ndarray:
    """Largest power of two that divides all values of a row, float64 [..]; infinity for a row of zeros."""
    return expand(stored, groups, _lowest_bits(elements), _lowest_bits(scales)).min(axis=-1, initial=np.inf)


@dataclasses.dataclass(frozen=True)
class GroupedProblem:
    """Arguments of a grouped GEMM, and what is needed to judge its result. Of NVFP4: K/2 bytes a row, K/16 scales."""

    a: np.ndarray  # u8 [M, K/2]
    b: np.ndarray  # u8 [E, N, K/2]
    a_scale: np.ndarray  # u8 [S, round_up(K/16, 4)], 128x4 layout
    b_scale: np.ndarray  # u8 [E, round_up(N, 128), round_up(K/16, 4)], 128x4 layout
    alpha: np.ndarray  # f32 [E]
    expert_offsets: np.ndarray  # i32 [E + 1]
    scale_offsets: np.ndarray  # i32 [E]
    a_groups: np.ndarray  # u8 [M, K/16], the scales of a in plain order
    b_groups: np.ndarray  # u8 [E, N, K/16]
    formats: Formats = NVFP4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """M, N, K, E."""
        return self.a.shape[0], self.b.shape[1], self.a_groups.shape[1] * self.formats.group, self.b.shape[0]

    def inputs(self) -> dict[str, np.ndarray]:
        """The input arguments of ``grouped_fp4`` by name."""
        names = ("a", "b", "a_scale", "b_scale", "alpha", "expert_offsets", "scale_offsets")
        return {name: getattr(self, name) for name in names}


def random_scales(rng: np.random.Generator, shape: tuple[int, ...], wide: bool, outliers: float) -> np.ndarray:
    """Scale bytes. ``wide``: all of 0..0x7E; else 1, 1.25, 1.5, 1.75, so that sums of products are exact in fp32.

    Of both, one in 16 is 0, and a fraction ``outliers`` is 0x7E.
    """
    scales = rng.integers(0, NAN_SCALE, shape) if wide else rng.choice([0x38, 0x3A, 0x3C, 0x3E], shape)
    chance = rng.random(shape)
    scales[chance < 1 / 16] = 0
    scales[chance > 1 - outliers] = MAX_SCALE
    return scales.astype(np.uint8)


def random_powers(rng: np.random.Generator, shape: tuple[int, ...], centre: np.ndarray, wide: bool) -> np.ndarray:
    """UE8M0 bytes [.., groups] around 2^centre [groups] if ``wide``, else 0.5, 1, 2 and 4."""
    noise = rng.integers(-3, 4, shape) if wide else rng.integers(-1, 3, shape)
    return np.clip(127 + noise + (centre if wide else 0), 0, 254).astype(np.uint8)


def random_elements(rng: np.random.Generator, shape: tuple[int, ...], elements: np.ndarray) -> np.ndarray:
    """The bytes of [.., K] elements, none of them NaN, at a multiple of 32 bytes."""
    shape = (*shape[:-1], shape[-1] // (2 if len(elements) == 16 else 1))
    raw = np.empty(int(np.prod(shape)) + 32, np.uint8)
    start = -raw.ctypes.data % 32
    found = raw[start : start + len(raw) - 32].reshape(shape)
    found[...] = (rng.integers(0, 256, shape, dtype=np.uint8) if len(elements) == 16 else
                  rng.choice(np.flatnonzero(~np.isnan(elements)), shape))  # fmt: skip
    return found


def random_alpha(rng: np.random.Generator, num_experts: int, k: int, wide: bool) -> np.ndarray:
    """Float32 [E] of either sign, small enough that no result leaves the range of f16: |alpha| * S < 65504 for the
    largest S = K * 36 * 448 * 1.75, or K * 36 * 448 * 448 if ``wide``."""
    largest = 2.0 ** -(np.ceil(np.log2(k)) + (7 if wide else 0))
    return (rng.uniform(0.5, 1, num_experts) * rng.choice([-1, 1], num_experts) * largest).astype(np.float32)


def grouped_problem(
    rng: np.random.Generator,
    counts: list[int],
    n: int,
    k: int,
    *,
    wide: bool = False,
    formats: Formats = NVFP4,
    padding: int | None = None,
    gaps: bool = False,
    unowned_rows: int = 0,
) -> GroupedProblem:
    """A random problem: ``counts`` rows of each expert, ``n`` columns, ``k`` deep, whole groups.

    wide: scales over the whole range of their format instead of a few for which fp32 sums are exact. UE8M0 has a larger
        one than fp32: there a group of k that is large in a is small in b.
    padding: the byte in every scale that belongs to no element (rows to 128, groups to 4); NaN by default.
    gaps: unused blocks of 128 scale rows between experts.
    unowned_rows: rows of a and out after the last expert's.
    """
    num_experts, groups, owned = len(counts), k // formats.group, sum(counts)
    padding = formats.nan_scale if padding is None else padding
    expert_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    if formats.scales is UE4M3:
        a_groups = random_scales(rng, (owned, groups), wide, outliers=1 / 256)
        b_groups = random_scales(rng, (num_experts, n, groups), wide, outliers=1 / 256 if wide else 0)
    else:
        centre = rng.permutation(np.linspace(-127, 127, groups).astype(int))
        a_groups = random_powers(rng, (owned, groups), centre, wide)
        b_groups = random_powers(rng, (num_experts, n, groups), -centre, wide)

    blocks = [ceil_div(count, 128) for count in counts]  # of 128 scale rows
    skipped = rng.integers(0, 2, num_experts) if gaps else np.zeros(num_experts, int)
    scale_offsets = 128 * (np.cumsum(skipped) + np.cumsum([0, *blocks[:-1]]))
    scale_rows = max(128, int(scale_offsets[-1]) + 128 * blocks[-1])  # a buffer of scales is never empty
    a_padded = np.full((scale_rows, round_up(groups, 4)), padding, np.uint8)
    experts = np.repeat(np.arange(num_experts), counts)
    a_padded[np.arange(owned) - expert_offsets[experts] + scale_offsets[experts], :groups] = a_groups
    b_padded = np.full((num_experts, round_up(n, 128), round_up(groups, 4)), padding, np.uint8)
    b_padded[:, :n, :groups] = b_groups

    return GroupedProblem(
        a=random_elements(rng, (owned + unowned_rows, k), formats.tokens),
        b=random_elements(rng, (num_experts, n, k), formats.weights),
        a_scale=to_scale_layout(a_padded),
        b_scale=to_scale_layout(b_padded),
        alpha=random_alpha(rng, num_experts, k, wide),
        expert_offsets=expert_offsets,
        scale_offsets=scale_offsets.astype(np.int32),
        a_groups=a_groups,
        b_groups=b_groups,
        formats=formats,
    )


@dataclasses.dataclass(frozen=True)
class Expected:
    """Per element of the owned rows of ``out``, float64 [rows, N]."""

    value: Any  # alpha * sum(a * b)
    magnitude: Any  # |alpha| * sum(|a| * |b|)
    exact: Any  # bool: every order of fp32 accumulation gives the same, exact sum
    cut: Any = 0.0  # |alpha| times what the tensor core of sm_90 may have cut from products in FP8


def grouped_reference(problem: GroupedProblem, halves: bool = False, on_hopper: bool = False) -> Expected:
    """Float64 result of ``grouped_fp4`` on the dequantised operands. Products of two short significands and their sums
    over K < 2^20 fit float64 whenever the fp32 sum is exact; otherwise its own error is 2^-29 of the bound's.

    halves: the kernel multiplies halves of 2^-14 times the operands, as that for sm_90a does. Below 1 those are
    subnormal, and the tensor core aligns them as if they had the exponent of 1: more is cut than their size tells.
    on_hopper: the kernel is one for sm_90a, where MX operands are multiplied in FP8.
    """
    n, formats = problem.shape[1], problem.formats
    owned = int(problem.expert_offsets[-1])
    value, magnitude = np.empty((owned, n)), np.empty((owned, n))
    exact, cut = np.empty((owned, n), bool), np.zeros((owned, n))
    for expert, (begin, end) in enumerate(zip(problem.expert_offsets, problem.expert_offsets[1:], strict=False)):
        rows = slice(begin, end)
        a_stored = problem.a[rows], problem.a_groups[rows], formats.tokens, formats.scales
        b_stored = problem.b[expert], problem.b_groups[expert], formats.weights, formats.scales
        a, b = dequantize(*a_stored), dequantize(*b_stored)
        alpha = float(problem.alpha[expert])
        aligned = (np.where(x != 0, np.maximum(np.abs(x), 1.0 if halves else 0.0), 0.0) for x in (a, b))
        sums = next(aligned) @ next(aligned).T
        value[rows], magnitude[rows] = alpha * (a @ b.T), abs(alpha) * sums
        exact[rows] = sums < 2.0**24 * np.outer(quantum(*a_stored), quantum(*b_stored))
        if on_hopper and formats.tokens is E4M3:  # of two E2M1 the sums of a step have 13 bits
            cut[rows] = abs(alpha) * cut_on_hopper(a, b, formats.group)
    return Expected(value, magnitude, exact, cut)


def cut_on_hopper(a: np.ndarray, b: np.ndarray, block: int) -> np.ndarray:
    """[M, N]: a step of 32 products cuts them and the sum so far off at 13 bits below the largest; sums begin anew
    every ``block`` of K, within which scales are the same."""
    bound = np.zeros((len(a), len(b)))
    for first in range(0, a.shape[1], block):
        total, largest, end = np.zeros_like(bound), np.zeros_like(bound), min(a.shape[1], first + block)
        for begin in range(first, end, STEP):
            products = a[:, None, begin : min(end, begin + STEP)] * b[None, :, begin : min(end, begin + STEP)]
            total = total + products.sum(-1)
            largest = np.maximum(largest, np.maximum(abs(products).max(-1), abs(total)))
        bound += (block // STEP) * (STEP + 1) * 2.0**-FRACTION * largest * 1.05  # sums so far have errors, too
    return bound


def accumulation_bound(expected: Expected, k: int) -> Any:
    """Largest |alpha * sum - value| that fp32 accumulation over ``k`` products can explain, per element.

    Operands: an element times its scale has at most 7 significant bits, so a product of two is exact in fp32.

    Accumulation. One tensor-core step adds t >= 16 products to the accumulator: all t + 1 addends are aligned to the
    largest and cut to at least 24 bits, then the sum is cut again. With S = sum |a b|, no addend or partial sum exceeds
    S, so each of the t + 2 cuts loses less than 2^-23 S, and ceil(K / t) steps lose less than (9/8 K + 18) 2^-23 S.
    Scaled or plain fp32 additions between steps are fewer than these and lose half as much each.
    Where all products are multiples of q and S < 2^24 q, nothing is cut in any order: the sum is exact. But in FP8 the
    tensor core of sm_90 cuts more.
    """
    return (1.125 * k + 18) * 2.0**-23 * expected.magnitude * ~expected.exact + expected.cut


def error_bound(expected: Expected, k: int, out: str) -> Any:
    """Largest |out - value| that rounding can explain, per element; ``out`` is bf16, f16 or f32.

    Accumulation: ``accumulation_bound``. Output: multiplication by alpha rounds once to fp32 (2^-24), the store rounds
    to ``out``: half a unit in the last place is at most 2^-precision of the value, or half a subnormal step.
    """
    accumulation = accumulation_bound(expected, k)
    scaled = abs(expected.value) * 2.0**-24 * (1 if out != "f32" else 0) + accumulation
    return scaled + (abs(expected.value) + scaled) * 2.0 ** -PRECISION[out] + HALF_SUBNORMAL_STEP[out]


def check(out: Any, expected: Expected, k: int, out_type: str, context: str = "") -> float:
    """Largest |out - value| / bound of float64 ``out`` [rows, N]; ``AssertionError`` names the first element out of
    bounds. NaN is out of bounds."""
    return check_within(out, expected.value, error_bound(expected, k, out_type), context)


def check_within(out: Any, value: Any, bound: Any, context: str = "") -> float:
    """Largest |out - value| / bound of arrays [rows, columns]; ``AssertionError`` as of ``check``."""
    difference = abs(out - value)
    bad = ~(difference <= bound)
    if bool(bad.any()):
        row, column = divmod(int((bad * 1).reshape(-1).argmax()), bad.shape[1])
        raise AssertionError(
            f"{context}: {int(bad.sum())} of {bad.shape[0]} x {bad.shape[1]} elements out of bounds; first out"
            f"[{row}, {column}] = {float(out[row, column])!r}, expected {float(value[row, column])!r} "
            f"+- {float(bound[row, column]):.3g}"
        )
    return float((difference / bound).max()) if difference.shape[0] else 0.0


# numpy has no bf16: its outputs are uint16 bits. u8: packed FP4 and scales.
STORAGE = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32, "i32": np.int32, "u8": np.uint8}


def as_float64(out: np.ndarray, out_type: str) -> np.ndarray:
    """Stored elements as float64; bf16 from its 16 bits."""
    if out_type == "bf16":
        return (out.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return out.astype(np.float64)


class GuardedOutput:
    """An output [rows, N] inside a larger buffer: every byte is poisoned first (a NaN in each type), and ``intact``
    tells whether the guard before and after it, and the rows that no expert owns, are as they were."""

    POISON = 0xFF
    GUARD_BYTES = 4096

    def __init__(self, rows: int, n: int, out_type: str) -> None:
        storage = np.dtype(STORAGE[out_type])
        size = rows * n * storage.itemsize
        raw = np.full(2 * self.GUARD_BYTES + size + 16, self.POISON, np.uint8)
        start = self.GUARD_BYTES + -(raw.ctypes.data + self.GUARD_BYTES) % 16
        self._before, self._after = raw[:start], raw[start + size :]
        self.out_type = out_type
        self.array = raw[start : start + size].view(storage).reshape(rows, n)

    def values(self, owned: int) -> np.ndarray:
        """The first ``owned`` rows as float64."""
        return as_float64(self.array[:owned], self.out_type)

    def intact(self, owned: int) -> bool:
        return all(
            (part.view(np.uint8) == self.POISON).all() for part in (self._before, self._after, self.array[owned:])
        )


def verify(problem: GroupedProblem, expected: Expected, out: GuardedOutput, context: str = "") -> float:
    """``check`` of the owned rows, and that nothing else was written. Returns the largest error over bound."""
    owned, k = int(problem.expert_offsets[-1]), problem.shape[2]
    ratio = check(out.values(owned), expected, k, out.out_type, context)
    if not out.intact(owned):
        raise AssertionError(f"{context}: wrote outside the rows of the experts")
    return ratio
