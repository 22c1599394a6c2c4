"""Calls of the kernels that quantise rows to MXFP8, MXFP4 and FP8, with every byte that they must write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import block_quantization
import numpy as np
import scale_layouts
from block_quantization import FP8, MXFP4, MXFP8, Format
from quantization import Approximations, Case, Swiglu, load, poisoned, sample, store
from reference import ceil_div, pack_e2m1, round_up, scale_offset
from routing import gathered, route

F32 = np.float32
ARITHMETIC_NAN = 0x7FFFFFFF  # bits of it in fp32


@dataclasses.dataclass(frozen=True)
class Target:
    """What a family writes, by its name. MX has scales row after row or in blocks, FP8 MN-major ones, most of the time;
    ``words``: four UE8M0 in one."""

    format: Format
    words: bool = False

    @classmethod
    def of(cls, family: str) -> Target:
        if "mxfp8" in family or "mxfp4" in family:
            return cls(MXFP8 if "mxfp8" in family else MXFP4)
        return cls(FP8, "ue8m0" in family)

    def scale_columns(self, k: int) -> int:
        """Scales, or words of them, of a row."""
        return round_up(k // 32, 4) if self.format.is_mx else ceil_div(k, 512 if self.words else 128)

    def elements(self, rng: np.random.Generator, *lead: int, k: int) -> np.ndarray:
        return poisoned(rng, *lead, k // 2 if self.format is MXFP4 else k)

    def mn_major(self, rng: np.random.Generator, *lead: int, rows: int, k: int) -> np.ndarray:
        shape = (*lead, self.scale_columns(k), round_up(rows, 4))
        return poisoned(rng, *shape, 4).view(np.int32 if self.words else F32)[..., 0]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that a call quantises: where each lies in out, and where its scales lie: of an MN-major out_scale in
    which matrix, too."""

    stored: np.ndarray
    scale: np.ndarray
    matrix: np.ndarray


def quantized(
    out: np.ndarray, out_scale: np.ndarray, target: Target, rows: Rows, values: np.ndarray, layout: str,
    scale_rounding: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Both after fp32 ``values``, one row each of ``rows``, have been quantised into them."""
    out, out_scale = out.copy(), out_scale.copy()
    packed = target.format is MXFP4
    wide = np.zeros((len(values), out.shape[-1] * (2 if packed else 1)), F32)
    wide[:, : values.shape[1]] = values
    result = block_quantization.quantize(wide, target.format, scale_rounding)
    out.reshape(-1, out.shape[-1])[rows.stored] = pack_e2m1(result.out) if packed else result.out
    if target.format.is_mx:
        _place_bytes(out_scale, _codes(result.scales), rows.scale, layout)
    elif layout == "row_major":
        out_scale[rows.scale] = _nan_of_arithmetic(result.scales)
    else:
        out_scale[..., out.shape[-2] :] = 0
        words = scale_layouts.words(_codes(result.scales).T) if target.words else _nan_of_arithmetic(result.scales).T
        matrices = out_scale if out_scale.ndim == 3 else out_scale[None]  # [matrix, word, row]
        matrices[rows.matrix, :, rows.scale] = words.T.view(out_scale.dtype)
    return out, out_scale


def _codes(scales: np.ndarray) -> np.ndarray:
    """UE8M0 of powers of two, the subnormal one among them; of what is none, infinity and NaN, 0xFF."""
    return np.where(np.isfinite(scales), np.frexp(scales)[1] + 126, scale_layouts.NAN).astype(np.uint8)


def _nan_of_arithmetic(scales: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scales), ARITHMETIC_NAN, scales.view(np.uint32)).astype(np.uint32).view(F32)


def _place_bytes(out_scale: np.ndarray, codes: np.ndarray, rows: np.ndarray, layout: str) -> None:
    columns = out_scale.shape[-1]
    padded = np.zeros((len(codes), columns), np.uint8)
    padded[:, : codes.shape[1]] = codes
    row, column = rows[:, None], np.arange(columns)[None]
    place = row * columns + column if layout == "linear" else scale_offset(row, column, columns)
    out_scale.reshape(-1)[place] = padded


def values(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    """As ``quantization.sample``; and in some blocks of 16 the largest one of 32 or of 128 is where scales change: the
    largest element of a format times a power of two, just above it, and a power of two."""
    x = sample(rng, rows, k).reshape(rows, k // 16, 16)
    edges = rng.choice([1.75, 1.7578125, 1.5, 1.5078125, 1, 1.9921875], x.shape[:2]) * rng.choice([-1, 1], x.shape[:2])
    block = rng.uniform(-1, 1, x.shape)
    block[..., 0] = edges
    block *= np.exp2(rng.integers(-8, 14, x.shape[:2]))[..., None]
    return np.where(rng.random(x.shape[:2])[..., None] < 0.3, block, x).reshape(rows, k).astype(F32)


def _case(
    family: str, dtype: str, x: np.ndarray, rows: Rows, outputs: dict[str, np.ndarray],
    arguments: dict[str, np.ndarray], scalars: dict[str, Any],
) -> Case:  # fmt: skip
    """Of the rows of stored ``x`` that lie where they do in out."""
    target = Target.of(family)

    def expected(_: Approximations) -> dict[str, np.ndarray]:
        used = load(x.reshape(-1, x.shape[-1])[rows.stored], dtype)
        return dict(zip(outputs, quantized(*outputs.values(), target, rows, used, *_choices(family, scalars)),
                        strict=True))  # fmt: skip

    return Case(family, dtype, {"x": x, **arguments}, scalars, outputs, expected)


def _choices(family: str, scalars: dict[str, Any]) -> tuple[str, str]:
    """Layout and rounding of scales."""
    mx = Target.of(family).format.is_mx
    rounding = "up" if mx else "power_of_two" if "ue8m0" in family else "none"
    return (scalars.get("scale_layout", "blocks_128x4" if mx else "mn_major"), scalars.get("scale_rounding", rounding))


def dense(
    rng: np.random.Generator, family: str, dtype: str, m: int, k: int, more_columns: int = 0, **scalars: Any
) -> Case:
    """Of [m, k], and into ``more_columns`` than k where the format is MX."""
    target, every = Target.of(family), np.arange(m)
    columns = k + (more_columns if target.format.is_mx else 0)
    layout = scalars.get("scale_layout")
    if target.format.is_mx:
        out_scale = poisoned(rng, (m if layout == "linear" else round_up(m, 128)) + 128, target.scale_columns(columns))
    elif layout == "row_major":
        out_scale = poisoned(rng, m, target.scale_columns(k), 4).view(F32)[..., 0]
    else:
        out_scale = target.mn_major(rng, rows=m, k=k)
    outputs = {"out": target.elements(rng, m, k=columns), "out_scale": out_scale}
    rows = Rows(every, every, every * 0)
    if family in GATED:
        return _gated(rng, family, dtype, rows, outputs, scalars)
    x = store(values(rng, m, k), dtype)
    return _case(family, dtype, x, rows, outputs, {}, scalars)


def _gated(
    rng: np.random.Generator, family: str, dtype: str, rows: Rows, outputs: dict[str, np.ndarray],
    scalars: dict[str, Any],
) -> Case:  # fmt: skip
    """Of gates and ups side by side, of ordinary size but for an infinity and a NaN, and a weight a row."""
    m, k = outputs["out"].shape
    wide = rng.standard_normal((m, 2 * k)) * np.exp2(rng.integers(-6, 4, (m, 1)))
    wide[:: max(1, m // 3), k // 2] = rng.choice([np.inf, np.nan, 0.0])
    x, weight = store(wide.astype(F32), dtype), rng.uniform(-2, 2, m).astype(F32)
    swiglu = Swiglu(**{name: value for name, value in scalars.items() if not name.startswith("scale_")})

    def expected(approximations: Approximations) -> dict[str, np.ndarray]:
        gate, up = np.split(load(x, dtype), 2, axis=1)
        activated = swiglu.apply(gate, up, weight, dtype, approximations)
        return dict(zip(outputs, quantized(*outputs.values(), Target.of(family), rows, activated,
                                           *_choices(family, scalars)), strict=True))  # fmt: skip

    return Case(family, dtype, {"x": x, "row_weight": weight}, scalars, outputs, expected)


def masked(
    rng: np.random.Generator, family: str, dtype: str, counts: Sequence[int], max_rows: int, k: int, **scalars: Any
) -> Case:
    """The first ``counts[e]`` of ``max_rows`` rows of each expert; others are NaN."""
    target, experts = Target.of(family), len(counts)
    expert = np.repeat(np.arange(experts), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    stored = expert * max_rows + within
    x = np.full((experts * max_rows, k), np.nan, F32)
    x[stored] = values(rng, len(stored), k)
    outputs = {
        "out": target.elements(rng, experts, max_rows, k=k),
        "out_scale": target.mn_major(rng, experts, rows=max_rows, k=k),
    }
    arguments = {"mask": np.asarray(counts, np.int32)}
    x = store(x.reshape(experts, max_rows, k), dtype)
    return _case(family, dtype, x, Rows(stored, within, expert), outputs, arguments, scalars)


def gather(
    rng: np.random.Generator, family: str, dtype: str, ids: np.ndarray, experts: int, k: int, more_columns: int = 0,
    **scalars: Any,
) -> Case:  # fmt: skip
    """moe_gather_quantize_.. of tokens that are routed to ``ids``. Tokens and weights of no row are NaN, and slots that
    nothing may read lie far outside."""
    target, routing = Target.of(family), route(ids, experts)
    owned, slots = routing.owned, ids.size
    columns = k + (more_columns if target.format.is_mx else 0)
    x = values(rng, len(ids), k)
    x[(routing.row_of_slot < 0).all(axis=1)] = np.nan
    weights = rng.uniform(0, 1, ids.shape).astype(F32)
    weights[routing.row_of_slot < 0] = np.nan
    routing.slot_of_row[owned:] = 2**31 - 1
    stored, every = store(x, dtype), np.arange(owned)
    arguments = {"slot_of_row": routing.slot_of_row, "topk_weights": weights, "expert_offsets": routing.expert_offsets}
    scale_row = every
    if target.format.is_mx:
        gaps = 128 * np.cumsum(rng.integers(0, 2, experts)).astype(np.int32)  # unused blocks of scale rows
        arguments["scale_offsets"] = scale_offsets = routing.scale_offsets + gaps
        expert = np.repeat(np.arange(experts), np.diff(routing.expert_offsets))
        scale_row = every - routing.expert_offsets[expert] + scale_offsets[expert]
        last = int(np.diff(routing.expert_offsets)[-1])
        scale_rows = int(scale_offsets[-1]) + round_up(max(1, last), 128)
        out_scale = poisoned(rng, scale_rows, target.scale_columns(columns))
    else:
        out_scale = target.mn_major(rng, rows=slots, k=k)
    outputs = {
        "a": target.elements(rng, slots, k=columns), "a_scale": out_scale,
        "row_weight": poisoned(rng, slots, 4).view(F32)[..., 0],
    }  # fmt: skip
    rows = Rows(every, scale_row, every * 0)

    def expected(_: Approximations) -> dict[str, np.ndarray]:
        weighting = scalars.get("weighting", "combine")
        used, weight = gathered(stored, dtype, routing, weights, weighting)
        a, a_scale = quantized(outputs["a"], out_scale, target, rows, used, *_choices(family, scalars))
        row_weight = outputs["row_weight"].copy()
        row_weight[:owned] = weight if weighting == "activation" else 1
        return {"a": a, "a_scale": a_scale, "row_weight": row_weight}

    return Case(family, dtype, {"x": stored, **arguments}, scalars, outputs, expected)


def plain_gather(
    rng: np.random.Generator, dtype: str, ids: np.ndarray, experts: int, k: int, **scalars: Any
) -> Case:
    """moe_gather of tokens that are routed to ``ids``, as ``gather``."""
    case = gather(rng, "moe_gather_quantize_fp8", dtype, ids, experts, k, **scalars)
    owned, row_weight = int(case.inputs["expert_offsets"][-1]), case.outputs["row_weight"]
    a = poisoned(rng, len(row_weight), 2 * k).view(np.float16 if dtype == "f16" else np.uint16)

    def expected(approximations: Approximations) -> dict[str, np.ndarray]:
        routing, weights = route(ids, experts), case.inputs["topk_weights"]
        values, _ = gathered(case.inputs["x"], dtype, routing, weights, scalars.get("weighting", "combine"))
        written, rows = a.copy(), store(values, dtype)
        rows.view(np.uint16)[np.isnan(values)] = 0x7FFF  # that of arithmetic
        written[:owned] = rows
        return {"a": written, "row_weight": case.expected(approximations)["row_weight"]}

    return dataclasses.replace(case, family=PLAIN_GATHER, outputs={"a": a, "row_weight": row_weight}, expected=expected)


DENSE = ("mxfp8_quantize", "mxfp4_quantize", "fp8_quantize", "fp8_ue8m0_quantize")
GATED = ("silu_mul_fp8_quantize",)
MASKED = ("fp8_quantize_masked", "fp8_ue8m0_quantize_masked")
GATHERS = tuple(f"moe_gather_quantize_{name}" for name in ("mxfp8", "mxfp4", "fp8", "fp8_ue8m0"))
PLAIN_GATHER = "moe_gather"
WEIGHTINGS = ("combine", "activation", "input")
GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}


def scalar_choices(family: str) -> list[dict[str, str]]:
    """Both roundings and both layouts of scales, where there are two; all weightings, with the roundings in turn."""
    if family == PLAIN_GATHER:
        return [{"weighting": weighting} for weighting in WEIGHTINGS]
    mx, powers = Target.of(family).format.is_mx, "ue8m0" in family
    roundings = [{}] if powers else [{"scale_rounding": r} for r in (("up", "ocp") if mx else ("none", "power_of_two"))]
    if family in GATHERS:
        return [r | {"weighting": w} for r, w in zip(roundings * 3, WEIGHTINGS, strict=False)]
    if family in GATED:
        return [{"scale_layout": "row_major", "rounding": "none", **GPT_OSS}, {"activation": "gelu_tanh"}, *roundings]
    layouts = [{}] if family in MASKED or powers else [{}, {"scale_layout": "linear" if mx else "row_major"}]
    return [rounding | layout for rounding in roundings for layout in layouts]


def case(
    rng: np.random.Generator, family: str, dtype: str, counts: Sequence[int], k: int, scalars: dict[str, Any]
) -> Case:
    """A call of any family with rows of these counts an expert where it knows experts; MX in longer rows."""
    if family in MASKED:
        return masked(rng, family, dtype, counts, max(counts) + 2, k, **scalars)
    if family in (PLAIN_GATHER, *GATHERS):
        ids = np.repeat(np.arange(len(counts)), counts)
        ids = rng.permutation(np.append(ids, [-1] * (-len(ids) % 3 + 3))).reshape(-1, 3)  # tokens without a row
        if family == PLAIN_GATHER:
            return plain_gather(rng, dtype, ids, len(counts), k, **scalars)
        return gather(rng, family, dtype, ids, len(counts), k, 96, **scalars)
    return dense(rng, family, dtype, sum(counts), k, 96, **scalars)
