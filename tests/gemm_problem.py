"""GEMM problems in FP8, with fp32 or UE8M0 scales for 128 of K, FP8 by MXFP4, and bf16: float64 reference, bound, forms
of rows, and majors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import reference
from raw_buffer import RawBuffer

BLOCK = 128  # of K: a scale
ROW_ALIGNMENT = 128  # of the groups of rows by ends and by labels
MX_BLOCK = 32  # of K: a scale of MXFP4 and MXFP8
NAN = {"e4m3": 0x7F, "e2m1": 0xFF, "bf16": 0x7FC0}  # of E2M1, which has none, any elements
NAN_SCALE = 0xFF  # of UE8M0


@dataclass(frozen=True)
class Operand:
    """A type of elements, and of their scales, each for ``block`` of K."""

    elements: str  # e4m3, e2m1 (two a byte), bf16
    scales: str = ""  # f32, ue8m0
    block: int = 0

    def dequantized(self, elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """float64 [.., rows, K] of elements with scales [.., rows, blocks]."""
        values = reference.E2M1[unpacked(elements)] if self.elements == "e2m1" else reference.E4M3[elements]
        return values * np.repeat(scales.astype(np.float64), self.block, -1)[..., : values.shape[-1]]


_FP8, _PACKED = Operand("e4m3", "f32", BLOCK), Operand("e4m3", "ue8m0", BLOCK)
_MXFP4, _MXFP8 = Operand("e2m1", "ue8m0", MX_BLOCK), Operand("e4m3", "ue8m0", MX_BLOCK)
# Tokens and weights.
FORMATS = {
    "fp8": (_FP8, _FP8),
    "fp8_mxfp4": (_FP8, _MXFP4),
    "fp8_ue8m0": (_PACKED, _PACKED),
    "fp8_ue8m0_mxfp4": (_PACKED, _MXFP4),
    "mxfp4_fp8_ue8m0": (_MXFP4, _PACKED),
    "mxfp8_rows": (_MXFP8, _MXFP8),
    "mxfp8_rows_mxfp4": (_MXFP8, _MXFP4),
    "bf16": (Operand("bf16"), Operand("bf16")),
}
# K is a multiple: of a block of MX, or, of FP4 on Blackwell, of a row that TMA unpacks.
K_MULTIPLE = {"fp8_mxfp4": MX_BLOCK, "fp8_ue8m0_mxfp4": 128, "mxfp4_fp8_ue8m0": 128, "mxfp8_rows": MX_BLOCK,
              "mxfp8_rows_mxfp4": 128}  # fmt: skip


@dataclass
class GemmProblem:
    """Bits of a [M, K], b [E, N, K], of MXFP4 two elements a byte; rows a group. Of FP8 also a_scale [M, blocks], and
    b_scale for blocks of N or for each row, [E, N blocks or N, blocks]; of UE8M0 powers of two."""

    format: str  # of FORMATS
    a: np.ndarray
    b: np.ndarray
    a_scale: np.ndarray
    b_scale: np.ndarray
    counts: list[int]
    on_hopper: bool = False  # FP8 sums in sm_90's tensor core, which cuts them

    @property
    def groups(self) -> np.ndarray:
        """Of each row."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def operands(self) -> tuple[Operand, Operand]:
        return FORMATS[self.format]


def gemm_problem(
    rng: np.random.Generator, fmt: str, counts: list[int], n: int, k: int, weight_rows: int = BLOCK
) -> GemmProblem:
    """FP8: any bytes but NaN; every scale another one, of b for ``weight_rows`` rows, or powers of two for each row.
    bf16: exponents over a range of 2^8."""

    def elements(operand: Operand, *shape: int) -> np.ndarray:
        if operand.elements == "bf16":
            wide = rng.standard_normal(shape) * np.exp2(rng.integers(-8, 1, shape))
            return (wide.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        if operand.elements == "e2m1":
            packed = _aligned_bytes(*shape[:-1], k // 2)
            packed[:] = rng.integers(0, 256, packed.shape)
            return packed
        bytes_ = rng.integers(0, 256, shape, dtype=np.uint8)
        return np.where(bytes_ & 0x7F == NAN["e4m3"], np.uint8(0x38), bytes_)

    def scales(operand: Operand, *rows: int) -> np.ndarray:
        shape = *rows, reference.ceil_div(k, operand.block or BLOCK)
        if operand.elements == "e2m1":
            return _mx_scales(rng, shape)
        powers = rng.integers(-14, 15, shape) if operand.scales == "ue8m0" else rng.uniform(-14, -4, shape)
        return np.exp2(powers).astype(np.float32)

    (a, b), m, groups = FORMATS[fmt], sum(counts), len(counts)
    b_rows = n if b.scales == "ue8m0" else reference.ceil_div(n, weight_rows)
    problem = GemmProblem(
        fmt, elements(a, m, k), elements(b, groups, n, k), scales(a, m), scales(b, groups, b_rows), counts
    )
    if b.elements == "e2m1":  # what has small scales matters where all that is beside it is 0
        is_near = problem.b_scale > 2.0**-25
        is_zero = is_near & ~is_near.all(-1, keepdims=True) & (rng.random((groups, n, 1)) < 0.5)
        problem.b[np.repeat(is_zero, MX_BLOCK // 2, -1)] = 0
    return problem


def unpacked(elements: np.ndarray) -> np.ndarray:
    """Codes of E2M1, of which a byte has two."""
    return np.stack([elements & 15, elements >> 4], axis=-1).reshape(*elements.shape[:-1], -1)


def _mx_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Powers of two, neighbours along K close to each other; in a tenth of the rows, but for one stage, far. So small
    that results fit into half precision."""
    near = rng.integers(-16, -9, (*shape[:-1], 1)) + rng.integers(-7, 8, shape)
    far = np.where(rng.random(shape) < 0.5, near, rng.choice([-127, -126, -60, -42, -39, -36, -33, -30], shape))
    is_far = np.broadcast_to(rng.random((*shape[:-1], 1)) < 0.1, shape) & (np.arange(shape[-1]) // 4 != 1)
    return np.exp2(np.where(is_far, far, near)).astype(np.float32)


def weights(problem: GemmProblem) -> np.ndarray:
    """float64 [E, N, K]: those of FP8 without their scales, those of MXFP4 with them."""
    of_weights = problem.operands[1]
    is_mx = of_weights.elements == "e2m1"
    return of_weights.dequantized(problem.b, problem.b_scale) if is_mx else reference.E4M3[problem.b]


def expected(problem: GemmProblem) -> tuple[np.ndarray, np.ndarray]:
    """float64 [M, N]: the product, and how far fp32 sums of the tensor core's may be from it."""
    of_scales = {"f32": _expected_fp8, "ue8m0": _expected_ue8m0, "": _expected_bf16}
    return of_scales[problem.operands[0].scales](problem)


def expected_of_groups(problems: list[GemmProblem]) -> tuple[np.ndarray, np.ndarray]:
    """The same of problems one below the other."""
    value, bound = zip(*map(expected, problems), strict=True)
    return np.concatenate(value), np.concatenate(bound)


def _expected_bf16(problem: GemmProblem) -> tuple[np.ndarray, np.ndarray]:
    """A step of 16 products cuts them and the sum so far off at 25 bits below the largest, and the sum to fp32."""
    a, b = reference.as_float64(problem.a, "bf16"), reference.as_float64(problem.b, "bf16")
    groups = problem.groups
    if not len(a):
        return np.zeros((0, b.shape[1])), np.zeros((0, b.shape[1]))
    value = np.stack([b[e] @ row for row, e in zip(a, groups, strict=True)])
    magnitude = np.stack([abs(b[e]) @ abs(row) for row, e in zip(a, groups, strict=True)])
    return value, magnitude * reference.ceil_div(a.shape[1], 16) * (17 * 2.0**-25 + 2.0**-23)


def _expected_ue8m0(problem: GemmProblem) -> tuple[np.ndarray, np.ndarray]:
    """As of MX operands: scales are powers of two, so products are exact in fp32."""
    of_tokens, of_weights = problem.operands
    a, b = (of_tokens.dequantized(problem.a, problem.a_scale), of_weights.dequantized(problem.b, problem.b_scale))
    k = a.shape[1]
    value, magnitude = np.zeros((2, len(a), b.shape[1]))
    for e in range(len(b)):
        rows = problem.groups == e
        value[rows], magnitude[rows] = a[rows] @ b[e].T, abs(a[rows]) @ abs(b[e]).T
    bound = reference.accumulation_bound(reference.Expected(value, magnitude, np.zeros_like(value, bool)), k)
    if problem.on_hopper:
        for e in range(len(b)):
            rows = problem.groups == e
            bound[rows] += reference.cut_on_hopper(a[rows], b[e], min(of_tokens.block, of_weights.block))
    return value, bound


def _expected_fp8(problem: GemmProblem) -> tuple[np.ndarray, np.ndarray]:
    """A step of 32 products cuts them and the sum so far off at 13 bits below the largest; fp32 adds the blocks.
    MXFP4 is nothing where its scale is more than 2^26 below the largest of a block, and with scales up to 2^-113 the
    products of both scales may lie below fp32's normal numbers."""
    m, k = problem.a.shape
    every_weight, mx = weights(problem), problem.format == "fp8_mxfp4"
    n = problem.b.shape[1]
    value, bound, magnitude = (np.zeros((m, n)) for _ in range(3))
    weight_rows = 1 if problem.b_scale.shape[1] == n else BLOCK
    for e, count in enumerate(problem.counts):
        first = sum(problem.counts[:e])
        rows = slice(first, first + count)
        for block in range(reference.ceil_div(k, BLOCK)):
            span = slice(block * BLOCK, min(k, (block + 1) * BLOCK))
            a, b = reference.E4M3[problem.a[rows, span]], every_weight[e, :, span]
            scale = problem.a_scale[rows, block, None].astype(np.float64)
            if not mx:
                scale = scale * np.repeat(problem.b_scale[e, :, block].astype(np.float64), weight_rows)[:n]
            else:
                bound[rows] += scale * (abs(a) @ abs(b * _is_left_out(problem.b_scale[e], block)[:, : a.shape[1]]).T)
            total, cut = a @ b.T, reference.cut_on_hopper(a, b, BLOCK)
            value[rows] += scale * total
            bound[rows] += scale * cut
            magnitude[rows] += scale * (abs(total) + cut)
    sums = reference.ceil_div(k, BLOCK)
    below_normal = 2.0**-150 * BLOCK * 448 * 1.5 * 2.0**15 if mx else 0  # of a product of scales, times the largest sum
    return value, bound + magnitude * (sums + 3) * 2.0**-23 + sums * below_normal


def _is_left_out(scales: np.ndarray, block: int) -> np.ndarray:
    """[N, 128] of a block of K: which elements have a scale too far below the largest of their row's four."""
    of_block = scales[:, block * BLOCK // MX_BLOCK : (block + 1) * BLOCK // MX_BLOCK]
    return np.repeat(of_block < of_block.max(-1, keepdims=True) * 2.0**-26, MX_BLOCK, -1)


def rounded_bound(value: np.ndarray, bound: np.ndarray, out_type: str) -> np.ndarray:
    """The bound of what is stored: one rounding more, or two where alpha or a bias was applied."""
    return (
        bound
        + (abs(value) + bound) * (2.0 ** -reference.PRECISION[out_type] + 2.0**-22)
        + (reference.HALF_SUBNORMAL_STEP[out_type])
    )


# Forms of rows: inputs of a launch, and where in out the rows of the problem are.


def _mn_major(kind: str, scales: np.ndarray, places: np.ndarray, rows: int) -> np.ndarray:
    """Scales [rows, blocks] as GEMMs take them: of a block of K neighbouring rows are neighbours, row i at places[i] of
    ``rows`` rounded up to 4. UE8M0 of four blocks are a word. The rest is NaN."""
    shape = scales.shape[1], reference.round_up(rows, 4)
    if kind == "f32":
        placed = np.full(shape, np.nan, np.float32)
        placed[:, places] = scales.T
        return placed
    codes = np.full((reference.round_up(shape[0], 4), shape[1]), NAN_SCALE, np.uint8)
    numbers = np.isfinite(scales.T)
    codes[: shape[0], places] = np.where(numbers, np.log2(np.where(numbers, scales.T, 1)) + 127, NAN_SCALE)
    return np.ascontiguousarray(codes.reshape(-1, 4, shape[1]).swapaxes(1, 2)).view("<i4")[..., 0]


def _weight_scales(problem: GemmProblem) -> np.ndarray:
    if problem.format == "fp8":
        return problem.b_scale
    n = problem.b.shape[1]
    return np.stack([_mn_major("ue8m0", scales, np.arange(n), n) for scales in problem.b_scale])


def _no_rows(problem: GemmProblem, *rows: int) -> np.ndarray:
    """Of a, NaN."""
    shape, nan = (*rows, problem.a.shape[1]), NAN[problem.operands[0].elements]
    if problem.a.dtype != np.uint8:
        return np.full(shape, nan, problem.a.dtype)
    a = _aligned_bytes(*shape)
    a[:] = nan
    return a


def _placed(problem: GemmProblem, places: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """a and its scales with row i at places[i] of ``rows``; the rest is NaN."""
    of_tokens = problem.operands[0]
    a = _no_rows(problem, rows)
    a[places] = problem.a
    if problem.format == "bf16":
        return {"a": a, "b": problem.b}
    return {"a": a, "a_scale": _mn_major(of_tokens.scales, problem.a_scale, places, rows), "b": problem.b,
            "b_scale": _weight_scales(problem)}  # fmt: skip


def by_offsets(problem: GemmProblem, spare: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Packed, with ``spare`` rows behind the last group."""
    places = np.arange(len(problem.a))
    offsets = np.concatenate([[0], np.cumsum(problem.counts)]).astype(np.int32)
    return {**_placed(problem, places, len(places) + spare), "expert_offsets": offsets}, places


def _aligned(problem: GemmProblem) -> tuple[np.ndarray, np.ndarray]:
    """Where each group begins, then where another one would, and the places of the rows."""
    starts = np.cumsum([0, *(reference.round_up(count, ROW_ALIGNMENT) for count in problem.counts)])
    places = [np.arange(start, start + count) for start, count in zip(starts[:-1], problem.counts, strict=True)]
    return starts, np.concatenate(places)


def by_ends(problem: GemmProblem) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each group at the next multiple of 128."""
    starts, places = _aligned(problem)
    ends = (starts[:-1] + problem.counts).astype(np.int32)
    return {**_placed(problem, places, starts[-1]), "group_ends": ends}, places


def by_labels(problem: GemmProblem, spare: int = ROW_ALIGNMENT + 5) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each group at the next multiple of 128, -1 between, and ``spare`` rows of -1 at the end."""
    starts, places = _aligned(problem)
    labels = np.full(starts[-1] + spare, -1, np.int32)
    labels[places] = problem.groups
    return {**_placed(problem, places, len(labels)), "row_groups": labels}, places


def masked(problem: GemmProblem, max_rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A matrix of ``max_rows`` a group; the places are those in out as [E * max_rows, N]."""
    groups, of_tokens = len(problem.counts), problem.operands[0]
    within = np.concatenate([np.arange(count) for count in problem.counts])
    a = _no_rows(problem, groups, max_rows)
    a[problem.groups, within] = problem.a
    inputs = {"a": a, "b": problem.b, "mask": np.array(problem.counts, np.int32)}
    if problem.format != "bf16":
        of_group = [problem.a_scale[problem.groups == e] for e in range(groups)]
        scales = [_mn_major(of_tokens.scales, scale, np.arange(len(scale)), max_rows) for scale in of_group]
        inputs |= {"a_scale": np.stack(scales), "b_scale": _weight_scales(problem)}
    return inputs, problem.groups * max_rows + within


# What a family's name ends in -> its form, and what becomes of rows that no group has.
FORMS = {
    "": (by_offsets, "as before"),
    "_ends": (by_ends, "zeros"),
    "_labels": (by_labels, "zeros"),
    "_masked": (lambda problem: masked(problem, max(problem.counts) + 3), "as before"),
}


def named(family: str) -> tuple[str, str, str, str]:
    """Schedule, format, majors and form of a family: grouped, bf16, nn and _ends of grouped_bf16_nn_ends; nt where the
    name says no majors."""
    formats = "|".join(sorted(FORMATS, key=len, reverse=True))
    found = re.fullmatch(rf"(\w+?)_({formats})(?:_(nn|nt|tn|tt))?(_\w+)?", family)
    schedule, fmt, letters, form = found.groups("")
    return schedule, fmt, letters or "nt", form


def buffers(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray | RawBuffer]:
    """Inputs as the loader takes them: numpy has no bf16."""
    return {name: RawBuffer.of(value) if value.dtype == np.uint16 else value for name, value in inputs.items()}


def in_majors(inputs: dict[str, np.ndarray], letters: str) -> dict[str, np.ndarray]:
    """Operands by BLAS's letters: n is a as [M, K] or b as [K, N], t the other way."""
    turned = {"a": letters[0] == "t", "b": letters[1] == "n"}
    return {name: np.ascontiguousarray(np.swapaxes(value, -1, -2)) if turned.get(name) else value
            for name, value in inputs.items()}  # fmt: skip


def dense(problem: GemmProblem) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of a problem with one group."""
    inputs = _placed(problem, np.arange(len(problem.a)), len(problem.a))
    return {name: value[0] if name.startswith("b") else value for name, value in inputs.items()}, np.arange(
        len(problem.a)
    )


def columns_of_heads(heads: int, width: int, left: int, gap: int) -> np.ndarray:
    """Those of out that a product has, whose heads have a gap behind their first ``left`` columns."""
    of_head = np.delete(np.arange(width + gap), np.arange(left, left + gap))
    return (np.arange(heads)[:, None] * (width + gap) + of_head).reshape(-1)


def row_scales(scale: np.ndarray) -> np.ndarray:
    """fp32 [rows, blocks] as kernels take it, [blocks, rows up to a multiple of 4], NaN behind."""
    return _mn_major("f32", scale, np.arange(len(scale)), len(scale))


def with_channel_scales(
    problem: GemmProblem, form: Callable[[GemmProblem], tuple[dict[str, np.ndarray], np.ndarray]], tokens: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A form of the rows of a problem whose weights have a scale each row, made the same for all of K; and so of its
    tokens."""
    problem.b_scale[:] = problem.b_scale[..., :1]
    problem.a_scale[:] = problem.a_scale[:, :1] if tokens else problem.a_scale
    inputs, places = form(problem)
    inputs["b_channel_scale"] = np.ascontiguousarray(inputs.pop("b_scale")[..., 0])
    if tokens:
        inputs["a_token_scale"] = np.ascontiguousarray(inputs.pop("a_scale")[0, : len(inputs["a"])])
    return inputs, places


def _aligned_bytes(*shape: int) -> np.ndarray:
    """At a multiple of 64 bytes."""
    raw = np.zeros(int(np.prod(shape)) + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][: int(np.prod(shape))].reshape(shape)


def groups_of_k(problems: list[GemmProblem]) -> dict[str, np.ndarray]:
    """Inputs of problems of one group each that differ in K, one behind the other, and NaN for 128 of K more. Each row
    of both has scales. FP8 with fp32 scales has K inside, the others outside."""
    fmt, ks = problems[0].format, [problem.a.shape[1] for problem in problems]
    m, n = len(problems[0].a), problems[0].b.shape[1]

    def behind(parts: list[np.ndarray], like: np.ndarray) -> np.ndarray:
        """The parts, then NaN where there is nothing."""
        nan = np.nan if like.dtype == np.float32 else NAN[problems[0].operands[0].elements]
        return np.concatenate([*parts, np.full(like.shape, nan, like.dtype)])

    offsets = {"k_offsets": np.cumsum([0, *ks]).astype(np.int32)}
    storage = problems[0].a.dtype
    if fmt != "fp8":
        operands = {"a": behind([p.a.T for p in problems], np.empty((BLOCK, m), storage)),
                    "b": behind([p.b[0].T for p in problems], np.empty((BLOCK, n), storage))}  # fmt: skip
        if fmt == "fp8_ue8m0":  # four of K in a word, wherever a group begins
            for name, scales in ("a", [p.a_scale for p in problems]), ("b", [p.b_scale[0] for p in problems]):
                rows = len(scales[0])
                scale = np.concatenate([*scales, np.full((rows, 1), np.nan)], axis=1)
                operands[f"{name}_scale"] = _mn_major("ue8m0", scale, np.arange(rows), rows)
        return offsets | operands
    a_scales, b_scales = ([row_scales(scale) for scale in scales]
                          for scales in ([p.a_scale for p in problems], [p.b_scale[0] for p in problems]))  # fmt: skip
    return offsets | {
        "a": behind([p.a.reshape(-1) for p in problems], np.empty(BLOCK * m, storage)),
        "b": behind([p.b.reshape(-1) for p in problems], np.empty(BLOCK * n, storage)),
        "a_scale": behind(a_scales, a_scales[0][:1]),
        "b_scale": behind(b_scales, b_scales[0][:1]),
        "maps": _aligned_bytes(132, 256),
    }


def verify(
    problem: GemmProblem, places: np.ndarray, out: reference.GuardedOutput, rows: int, padding: str, context: str,
    known: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:  # fmt: skip
    """Every row of the problem within its bound; other rows of out zeros, or as they were. Returns the largest error
    over its bound. known: what is expected, where several outputs are verified."""
    value, bound = known or expected(problem)
    stored = reference.as_float64(out.array, out.out_type)
    ratio = reference.check_within(stored[places], value, rounded_bound(value, bound, out.out_type), context)
    rest = np.delete(out.array[:rows], places, axis=0).view(np.uint8)
    assert (rest == (0 if padding == "zeros" else out.POISON)).all(), f"{context}: rows of padding are not {padding}"
    assert out.intact(rows), f"{context}: wrote outside of out"
    return ratio
