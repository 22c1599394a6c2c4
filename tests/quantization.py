"""The meaning of the kernels that quantise to NVFP4, bit by bit in numpy, and problems for them.

Every fp32 operation is rounded on its own, in the order that the kernels promise. What hardware approximates (a
reciprocal, a power of two) is a parameter: the emulator rounds it correctly, a GPU has to be asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from reference import (
    E2M1,
    GROUP,
    NAN_SCALE,
    STORAGE,
    UE4M3,
    as_float64,
    ceil_div,
    pack_e2m1,
    round_up,
    scale_offset,
)

F32 = np.float32
LARGEST = np.finfo(F32).max
NO_LIMIT = float(LARGEST)


def flush(values: np.ndarray) -> np.ndarray:
    """Subnormals to zero of their sign, as ``.ftz`` takes and leaves them."""
    return np.where(np.abs(values) < np.finfo(F32).tiny, np.copysign(F32(0), values), values)


def _rounded(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def apply(values: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return flush(function(flush(np.asarray(values, F32)).astype(np.float64)).astype(F32))

    return apply


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of f32, rounded once to f32.

    The product is exact in float64, the sum is not: it is rounded to odd, after which rounding to f32 is as if from the
    exact sum.
    """
    product, c = np.float64(a) * np.float64(b), np.float64(c)
    total = product + c
    c_part = total - product
    error = (product - (total - c_part)) + (c - c_part)  # product + c = total + error, exactly
    bits = total.view(np.int64)
    towards_error = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits % 2 == 0) & np.isfinite(total), bits + towards_error, bits)
    return odd.view(np.float64).astype(F32)


@dataclasses.dataclass(frozen=True)
class Approximations:
    """rcp.approx.ftz.f32 and ex2.approx.ftz.f32 of some machine, on fp32 arrays."""

    reciprocal: Callable[[np.ndarray], np.ndarray]
    exp2: Callable[[np.ndarray], np.ndarray]


EMULATED = Approximations(_rounded(lambda values: 1 / values), _rounded(np.exp2))


def to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 rounded to nearest even, as 16 bits; a NaN stays one."""
    bits = np.asarray(values, F32).view(np.uint32).astype(np.uint64)
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return np.where(np.isnan(values), 0x7FC0, rounded >> 16).astype(np.uint16)


def store(values: np.ndarray, dtype: str) -> np.ndarray:
    """fp32 as the elements of a buffer; bf16 as its 16 bits."""
    with np.errstate(over="ignore"):
        return to_bf16(values) if dtype == "bf16" else np.asarray(values, STORAGE[dtype])


def load(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Elements of a buffer as fp32."""
    return as_float64(stored, dtype).astype(F32)


def _nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Index of the nearest entry of an increasing table, the even one of two; beyond its end the last. NaN too."""
    middles = (table[1:] + table[:-1]) / 2
    down, up = (np.searchsorted(middles, values.astype(np.float64), side) for side in ("left", "right"))
    return np.where(down % 2 == 0, down, up)


def to_ue4m3(values: np.ndarray) -> np.ndarray:
    """Non-negative fp32 to bytes, to nearest even and saturated."""
    return np.where(np.isnan(values), NAN_SCALE, _nearest(values, UE4M3[:NAN_SCALE])).astype(np.uint8)


def to_e2m1(values: np.ndarray) -> np.ndarray:
    """fp32 to 4-bit codes, to nearest even and saturated; NaN is +6."""
    codes = _nearest(np.abs(values), E2M1[:8])
    return np.where(np.isnan(values), 7, codes | np.signbit(values) << 3).astype(np.uint8)


def quantize(
    values: np.ndarray, encode: np.ndarray, division: str, approximations: Approximations
) -> tuple[np.ndarray, np.ndarray]:
    """fp32 [rows, K] with an encode scale a row: bytes of elements [rows, K/2], scales [rows, K/16] in plain order."""
    blocks = values.reshape(len(values), values.shape[1] // GROUP, GROUP)
    encode = np.asarray(encode, F32)[:, None]
    with np.errstate(all="ignore"):
        largest = np.abs(blocks).max(axis=-1, initial=F32(0))  # NaN where one is
        if division == "ieee":
            scales = to_ue4m3(largest * (encode * F32(1 / 6)))
            value = UE4M3[scales].astype(F32)
            multiplier = encode / value
        else:
            scales = to_ue4m3(encode * (largest * approximations.reciprocal(np.full(1, 6, F32))))
            value = UE4M3[scales].astype(F32)
            multiplier = approximations.reciprocal(value * approximations.reciprocal(encode))
        multiplier = np.where(value == 0, F32(0), np.minimum(multiplier, LARGEST))
        codes = to_e2m1(blocks * multiplier[..., None])
    return pack_e2m1(codes.reshape(values.shape)), scales


def encode_scale(global_scale: np.ndarray, kind: str) -> np.ndarray:
    """fp32 encode scales, of which ``decode`` gives the reciprocals; finite."""
    with np.errstate(divide="ignore"):
        return np.minimum(F32(1) / global_scale if kind == "decode" else global_scale, LARGEST)


@dataclasses.dataclass(frozen=True)
class Swiglu:
    """Scalars of the activation."""

    rounding: str = "activation_type"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float = NO_LIMIT
    activation: str = "silu"

    def _exponent(self, gate: np.ndarray) -> np.ndarray:
        """Of two: the sigmoid that gate gets is 1 / (1 + 2^exponent)."""
        if self.activation == "silu":
            return -F32(self.swiglu_alpha) * F32(1.44269504) * gate
        # -2 log2(e) sqrt(2 / pi) (gate + 0.044715 gate^3): each factor rounded once, and one fused multiply-add.
        slope = fused_multiply_add(F32(-0.10294323958) * gate, gate, F32(-2.30220819814))
        return slope * gate

    def apply(
        self, gate: np.ndarray, up: np.ndarray, weight: np.ndarray, dtype: str, approximations: Approximations
    ) -> np.ndarray:
        """gate * sigmoid(alpha gate), or gelu_tanh(gate), times (up + beta) * weight of fp32 [rows, I] and a weight a
        row."""
        beta, limit = F32(self.swiglu_beta), F32(self.swiglu_limit)
        if limit < NO_LIMIT:
            gate, up = np.minimum(gate, limit), np.maximum(np.minimum(up, limit), -limit)
        with np.errstate(all="ignore"):
            exponential = approximations.exp2(self._exponent(gate))
            sigmoid = approximations.reciprocal(F32(1) + exponential)
            result = gate * sigmoid * (up + beta) * weight[:, None]
        return load(store(result, dtype), dtype) if self.rounding == "activation_type" else result


def relu2(values: np.ndarray, weight: np.ndarray, dtype: str, rounding: str = "activation_type") -> np.ndarray:
    """max(x, 0)^2 * weight of fp32 [rows, I] and a weight a row; a NaN stays one."""
    with np.errstate(all="ignore"):
        positive = np.maximum(values, F32(0))
        result = positive * positive * weight[:, None]
    return load(store(result, dtype), dtype) if rounding == "activation_type" else result


def sample(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """fp32 whose blocks of 16 differ in size by up to 2^22. Of the blocks some are zero, and some hold the values where
    E2M1 rounds to even once they are divided by a power of two; some elements are -0, infinite or NaN."""
    blocks = columns // GROUP
    sizes = np.exp2(rng.uniform(-16, 6, (rows, blocks, 1)))
    values = rng.standard_normal((rows, blocks, GROUP)) * sizes
    ties = np.concatenate([[6], rng.integers(-24, 25, GROUP - 1) / 4]) * np.exp2(rng.integers(-8, 7, (rows, blocks, 1)))
    kind = rng.random((rows, blocks, 1))
    values = np.where(kind < 0.2, ties, np.where(kind > 0.95, 0, values))
    chance = rng.random(values.shape)
    for most, special in ((3e-3, -0.0), (2e-3, np.inf), (1e-3, -np.inf), (5e-4, np.nan)):
        values = np.where(chance < most, special, values)
    return values.reshape(rows, columns).astype(F32)


def sample_encode_scale(rng: np.random.Generator, experts: int) -> np.ndarray:
    """fp32 [experts]: powers of two, for ties, and others; the blocks of ``sample`` then reach every scale byte."""
    return np.where(rng.random(experts) < 0.3, F32(1), np.exp2(rng.uniform(-1, 10, experts))).astype(F32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. Outputs are poisoned, and ``expected`` gives them back with what the kernel must write.

    inputs: numpy arrays by name, bf16 as uint16. scalars: of the call. outputs: likewise, as they are before it.
    """

    family: str
    dtype: str
    inputs: dict[str, np.ndarray]
    scalars: dict[str, Any]
    outputs: dict[str, np.ndarray]
    expected: Callable[[Approximations], dict[str, np.ndarray]]

    def verify(self, outputs: dict[str, np.ndarray], approximations: Approximations, context: str = "") -> None:
        """Every byte as expected; ``AssertionError`` names the first that is not."""
        for name, values in self.expected(approximations).items():
            got, expected, before = (a.view(np.uint8) for a in (outputs[name], values, self.outputs[name]))
            wrong = np.argwhere(got != expected)
            if len(wrong):
                at = tuple(map(int, wrong[0]))
                written = ", which nothing should write" if before[at] == expected[at] else ""
                raise AssertionError(
                    f"{self.family} {self.dtype} {self.scalars} {context}: {len(wrong)} of {expected.size} bytes of "
                    f"{name} differ; the first, {list(at)}, is {got[at]:#x}, expected {expected[at]:#x}{written}"
                )


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that a call quantises: where each lies in x and out, where its scales lie, and whose it is."""

    stored: np.ndarray
    scale: np.ndarray
    expert: np.ndarray


def poisoned(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _case(
    rng: np.random.Generator,
    family: str,
    dtype: str,
    rows: Rows,
    lead: tuple[int, ...],
    columns: int,
    scale_shape: tuple[int, ...],
    experts: int,
    arguments: dict[str, np.ndarray],
    scalars: dict[str, Any],
) -> Case:
    """A call whose x and outputs are [*lead, ..]; what is no one's is NaN in x."""
    gated = family.startswith("silu")
    wide = 2 * columns if gated else columns
    x = np.full((int(np.prod(lead)), wide), np.nan, F32)
    x[rows.stored] = sample(rng, len(rows.stored), wide)
    stored = store(x, dtype)
    encode = sample_encode_scale(rng, experts)
    with np.errstate(divide="ignore"):
        global_scale = F32(1) / encode if scalars["global_scale_kind"] == "decode" else encode
    outputs = {"out": poisoned(rng, *lead, columns // 2), "out_scale": poisoned(rng, *scale_shape)}

    def expected(approximations: Approximations) -> dict[str, np.ndarray]:
        values = load(stored, dtype)[rows.stored]
        if gated:
            weight = arguments["row_weight"][rows.stored] if "row_weight" in arguments else np.ones(len(values), F32)
            names = {field.name for field in dataclasses.fields(Swiglu)}
            swiglu = Swiglu(**{name: value for name, value in scalars.items() if name in names})
            values = swiglu.apply(values[:, :columns], values[:, columns:], weight, dtype, approximations)
        elif family.startswith("relu2"):
            weight, rounding = arguments["row_weight"][rows.stored], scalars.get("rounding", "activation_type")
            values = relu2(values, weight, dtype, rounding)
        encode = encode_scale(global_scale, scalars["global_scale_kind"])[rows.expert]
        packed, scales = quantize(values, encode, scalars.get("division", "approximate"), approximations)
        out, out_scale = outputs["out"].copy(), outputs["out_scale"].copy()
        out.reshape(-1, columns // 2)[rows.stored] = packed
        padded = np.zeros((len(scales), out_scale.shape[-1]), np.uint8)
        padded[:, : scales.shape[1]] = scales
        row, group = rows.scale[:, None], np.arange(padded.shape[1])[None]
        linear = scalars.get("scale_layout") == "linear"
        place = row * padded.shape[1] + group if linear else scale_offset(row, group, padded.shape[1])
        out_scale.reshape(-1)[place] = padded
        return {"out": out, "out_scale": out_scale}

    inputs = {"x": stored.reshape(*lead, wide), "global_scale": global_scale, **arguments}
    return Case(family, dtype, inputs, scalars, outputs, expected)


def dense(rng: np.random.Generator, dtype: str, m: int, k: int, extra_scale_rows: int = 0, **scalars: Any) -> Case:
    """nvfp4_quantize of [m, k]."""
    every = np.arange(m)
    linear = scalars.get("scale_layout") == "linear"
    scale_shape = ((m if linear else round_up(m, 128)) + extra_scale_rows, round_up(k // GROUP, 4))
    rows = Rows(every, every, every * 0)
    return _case(rng, "nvfp4_quantize", dtype, rows, (m,), k, scale_shape, 1, {}, scalars)


def packed(
    rng: np.random.Generator,
    family: str,
    dtype: str,
    counts: Sequence[int],
    k: int,
    unowned_rows: int = 0,
    first_row: int = 0,
    **scalars: Any,
) -> Case:
    """Packed rows of experts, after ``first_row`` rows and before ``unowned_rows`` of nobody; unused blocks of scale
    rows between experts. With ``family`` silu_mul_nvfp4_quantize x is gate and up; of it and relu2_nvfp4_quantize rows
    have weights."""
    experts, owned = len(counts), sum(counts)
    offsets = first_row + np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    blocks = [ceil_div(count, 128) for count in counts]
    scale_offsets = 128 * (np.cumsum(rng.integers(0, 2, experts)) + np.cumsum([0, *blocks[:-1]])).astype(np.int32)
    expert = np.repeat(np.arange(experts), counts)
    stored = np.arange(owned) + first_row
    rows = Rows(stored, stored - offsets[expert] + scale_offsets[expert], expert)
    arguments = {"expert_offsets": offsets, "scale_offsets": scale_offsets}
    m = first_row + owned + unowned_rows
    if family.startswith(("silu", "relu2")):
        weight = np.full(m, np.nan, F32)
        weight[stored] = rng.uniform(0.01, 1, owned)
        arguments["row_weight"] = weight
    scale_shape = (int(scale_offsets[-1]) + 128 * max(1, blocks[-1]), round_up(k // GROUP, 4))
    return _case(rng, family, dtype, rows, (m,), k, scale_shape, experts, arguments, scalars)


def masked(
    rng: np.random.Generator, family: str, dtype: str, counts: Sequence[int], max_rows: int, k: int, **scalars: Any
) -> Case:
    """The first ``counts[e]`` of ``max_rows`` rows of each expert."""
    experts = len(counts)
    expert = np.repeat(np.arange(experts), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    padded = round_up(max_rows, 128)
    rows = Rows(expert * max_rows + within, expert * padded + within, expert)
    scale_shape = (experts, padded, round_up(k // GROUP, 4))
    arguments = {"mask": np.asarray(counts, np.int32)}
    return _case(rng, family, dtype, rows, (experts, max_rows), k, scale_shape, experts, arguments, scalars)


PACKED = ("nvfp4_quantize_grouped", "silu_mul_nvfp4_quantize", "relu2_nvfp4_quantize")
MASKED = ("nvfp4_quantize_masked", "silu_mul_nvfp4_quantize_masked")
FAMILIES = ("nvfp4_quantize", *PACKED, *MASKED)
GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}


def scalar_choices(family: str) -> list[dict[str, Any]]:
    """Scalars of a family: both kinds of scale and of division together, the other choices beside them."""
    gated, linear = family.startswith("silu"), family in ("nvfp4_quantize", "nvfp4_quantize_grouped")
    return [
        {"global_scale_kind": "encode"},
        {"global_scale_kind": "encode", "division": "ieee", **({"scale_layout": "linear"} if linear else {})},
        {"global_scale_kind": "decode", **({"rounding": "none"} if gated or family.startswith("relu2") else {}),
         **(GPT_OSS if gated else {})},
        {"global_scale_kind": "decode", "division": "ieee", **(GPT_OSS if gated else {})},
        *([{"global_scale_kind": "encode", "activation": "gelu_tanh", "swiglu_limit": 7.0}] if gated else []),
    ]


def case(
    rng: np.random.Generator, family: str, dtype: str, counts: Sequence[int], k: int, scalars: dict[str, Any]
) -> Case:
    """A call of any family, with rows of nobody where it knows such, and k columns to quantise."""
    if family in MASKED:
        return masked(rng, family, dtype, counts, max(counts) + 2, k, **scalars)
    if family in PACKED:
        return packed(rng, family, dtype, counts, k, unowned_rows=3, first_row=2, **scalars)
    return dense(rng, dtype, sum(counts), k, extra_scale_rows=128, **scalars)


def _with_three_rows_of_one_expert(
    rng: np.random.Generator, family: str, dtype: str, scalars: dict[str, Any]
) -> tuple[Case, np.ndarray]:
    """A call on values of 1 to 2 with global scales of 1, and x of the three rows of the last expert, or of all."""
    call = case(rng, family, dtype, [2, 0, 3], 96, scalars)
    x = call.inputs["x"].reshape(-1, call.inputs["x"].shape[-1])
    x[:] = store(rng.uniform(1, 2, x.shape).astype(F32), dtype)
    call.inputs["global_scale"][:] = 1
    first = 2 + 2 if family in PACKED else 2 * 5 if family in MASKED else 0
    return call, x[first : first + (3 if family in PACKED + MASKED else 5)]


def _assert_changed_scales(call: Case, before: np.ndarray, expected: list[int]) -> None:
    after = call.expected(EMULATED)["out_scale"]
    assert sorted(after[after != before]) == expected


def with_nan_and_infinity(rng: np.random.Generator, family: str, dtype: str, scalars: dict[str, Any]) -> Case:
    """A call in which one block has a NaN and, unless there is a limit, another one an infinity."""
    call, rows = _with_three_rows_of_one_expert(rng, family, dtype, scalars)
    before = call.expected(EMULATED)["out_scale"]
    nan, infinity = rng.permutation(6)[:2] * GROUP + rng.integers(0, GROUP, 2)
    special = store(np.array([np.nan, np.inf], F32), dtype)
    rows[2, nan] = special[0]
    if "swiglu_limit" not in scalars:
        rows[1, infinity] = special[1]
    _assert_changed_scales(call, before, [NAN_SCALE] if "swiglu_limit" in scalars else [0x7E, NAN_SCALE])
    return call


def with_nan_scale(rng: np.random.Generator, family: str, dtype: str, scalars: dict[str, Any]) -> Case:
    """A call with a global scale of NaN."""
    call, rows = _with_three_rows_of_one_expert(rng, family, dtype, scalars)
    before = call.expected(EMULATED)["out_scale"]
    call.inputs["global_scale"][-1] = np.nan
    _assert_changed_scales(call, before, [NAN_SCALE] * (6 * len(rows)))
    return call


def global_scales(rng: np.random.Generator, partials: int, experts: int, **scalars: Any) -> Case:
    """nvfp4_global_scale of ``partials`` maxima."""
    partial = np.exp2(rng.uniform(-30, 10, partials)).astype(F32)
    weight_scale = np.exp2(rng.uniform(-14, 0, experts)).astype(F32)
    outputs = {name: np.full(experts, np.nan, F32) for name in ("encode_scale", "alpha")}

    def expected(_: Approximations) -> dict[str, np.ndarray]:
        amax = max(partial.max(), F32(scalars.get("amax_floor", 1e-8)))
        encode = np.full(experts, F32(2688) / amax, F32)
        return {"encode_scale": encode, "alpha": weight_scale * (amax / F32(2688))}

    inputs = {"partial": partial, "weight_scale": weight_scale}
    return Case("nvfp4_global_scale", "f32", inputs, scalars, outputs, expected)


def spread(rng: np.random.Generator, m: int, k: int, dtype: str) -> tuple[np.ndarray, float]:
    """Elements [m, k], one of which is larger in magnitude than all others, and that magnitude."""
    values = rng.uniform(-1, 1, (m, k)).astype(F32)
    values[rng.integers(m), rng.integers(k)] = rng.choice([-2, 2])
    return store(values, dtype), 2.0
