"""Layers whose operands have scales in blocks of 32 or 128, in float64, and how far a result may be off, as of ``moe``:
``moe_fp8``, ``moe_fp8_channel``, of whose weights rows have scales, ``moe_fp8_ue8m0``, ``moe_mxfp8`` and
``moe_mxfp8_mxfp4``.

Tokens are such that their quantisation, and in nearly all blocks the sums of L1, are exact, also in the tensor core of
sm_90, which cuts FP8 products: so the bound is narrow.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import moe_reference as moe
import numpy as np
import torch
from block_quantization import SMALLEST_AMAX
from device_problem import TORCH_TYPES, to_scale_layout
from moe_reference import Interval, Tokens, rounded
from reference import (
    E2M1,
    E4M3,
    FRACTION,
    HALF_SUBNORMAL_STEP,
    NAN_SCALE,
    PRECISION,
    STEP,
    UE4M3,
    Expected,
    accumulation_bound,
    ceil_div,
    round_up,
)
from torch import Tensor

NAN_POWER = 0xFF  # of UE8M0
AT_ONCE = 1 << 26  # sums of blocks that the reference has in memory, several times


FP8_MAGNITUDES, FP4_MAGNITUDES = UE4M3[:NAN_SCALE], E2M1[:8]


@dataclasses.dataclass(frozen=True)
class Format:
    """Of a layer: elements in blocks of K that share a scale."""

    composite: str
    block: int
    weights: np.ndarray  # values of the codes
    power: bool  # scales are powers of two
    rules: tuple[str, ...]  # words for scale_rounding; none where there is one rule
    tokens: np.ndarray  # magnitudes of their elements, and of what L1 hands to L2
    rows: int = 128  # of weights that share a scale, where it is no power of two

    @property
    def is_mx(self) -> bool:
        return self.block == 32

    @property
    def is_packed(self) -> bool:
        """Weights are two in a byte."""
        return self.weights is E2M1

    @property
    def of_channels(self) -> bool:
        """A row of weights has one scale, for all of K."""
        return self.rows == 1

    @property
    def gates_in_turn(self) -> bool:
        """Of the rows of w13, or all gates first."""
        return self.is_mx

    def k(self, columns: int) -> int:
        """Columns of weights for as many of the tokens."""
        return round_up(columns, 128) if self.is_packed and self.tokens is FP8_MAGNITUDES else columns

    def quantized(self, values: Interval, rule: str) -> Blocks:
        """What values in intervals [rows, columns] may become, as tokens."""
        return quantized(values, self.block, rule, self.tokens)


FP8 = Format("moe_fp8", 128, E4M3, False, ("none", "power_of_two"), FP8_MAGNITUDES)
FP8_CHANNEL = Format("moe_fp8_channel", 128, E4M3, False, ("none", "power_of_two"), FP8_MAGNITUDES, rows=1)
FP8_UE8M0 = Format("moe_fp8_ue8m0", 128, E4M3, True, (), FP8_MAGNITUDES)
MXFP8_MXFP4 = Format("moe_mxfp8_mxfp4", 32, E2M1, True, ("up", "ocp"), FP8_MAGNITUDES)
MXFP8 = Format("moe_mxfp8", 32, E4M3, True, ("up", "ocp"), FP8_MAGNITUDES)
MXFP4 = Format("moe_mxfp4", 32, E2M1, True, ("up", "ocp"), FP4_MAGNITUDES)
FORMATS = {fmt.composite: fmt for fmt in (FP8, FP8_CHANNEL, FP8_UE8M0, MXFP8_MXFP4, MXFP8, MXFP4)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scalars of these layers."""

    scale_rounding: str = ""  # the first rule of the format
    first_expert: int = 0
    intermediate: str = "bf16"
    rounding: str = "activation_type"
    weighting: str = "combine"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float = moe.FLT_MAX
    activation: str = "silu"

    def rule(self, fmt: Format) -> str:
        return self.scale_rounding or (*fmt.rules, "power_of_two")[0]

    def arguments(self, fmt: Format) -> dict[str, Any]:
        """Of the composite, by name."""
        given = dataclasses.asdict(self) | {"scale_rounding": self.rule(fmt)}
        if fmt.of_channels:  # what is between the GEMMs has the type of the tokens
            del given["intermediate"]
        return given if fmt.rules else {name: value for name, value in given.items() if name != "scale_rounding"}


# Quantisation.


def scale_of(amax: Tensor, rule: str, table: np.ndarray) -> Tensor:
    """Of blocks with these largest magnitudes, which are fp32, and elements of these magnitudes."""
    if rule in ("none", "power_of_two"):
        exact = rounded(amax.clamp_min(float(np.float32(SMALLEST_AMAX))) / 448, "f32")
        mantissa, exponent = torch.frexp(exact)
        above = torch.ldexp(torch.ones_like(exact), exponent - (mantissa == 0.5).int())
        return exact if rule == "none" else above
    mantissa, exponent = torch.frexp(amax)
    of_largest, binade = np.frexp(table[-1])
    power = exponent - int(binade) + ((mantissa > of_largest).int() if rule == "up" else 0)
    smallest = torch.full_like(amax, 2.0**-127)
    return torch.where(amax == 0, smallest, torch.ldexp(torch.ones_like(amax), power).maximum(smallest))


def blocks_of(values: Tensor, block: int) -> Tensor:
    """[rows, columns] as [rows, blocks, of a block], zeros behind."""
    blocks = ceil_div(values.shape[1], block)
    return torch.nn.functional.pad(values, (0, blocks * block - values.shape[1])).unflatten(1, (blocks, block))


def elements_of(values: Tensor, scale: Tensor, table: np.ndarray) -> Tensor:
    """Of blocks under scales, as values: a product with the rounded reciprocal, to nearest even, saturated."""
    scaled = rounded(values * rounded(1 / scale, "f32")[..., None], "f32")
    return torch.copysign(torch.from_numpy(table).to(values.device)[moe.nearest(scaled.abs(), table)], scaled)


class Blocks(NamedTuple):
    """Elements times scales of [rows, K], each up to a radius; and the scales [rows, blocks], where it is 0."""

    middle: Tensor
    radius: Tensor
    scale: Tensor

    def padded(self, blocks: int, columns: int) -> Blocks:
        """With zeros behind."""
        pad = torch.nn.functional.pad
        middle, radius = (pad(part, (0, columns - part.shape[1])) for part in (self.middle, self.radius))
        return Blocks(middle, radius, pad(self.scale, (0, blocks - self.scale.shape[1]), value=1.0))


def quantized(values: Interval, block: int, rule: str, table: np.ndarray) -> Blocks:
    """What values in intervals [rows, columns] may become, elements of the magnitudes of a table."""
    columns = values.low.shape[1]
    parts = values.map(lambda end: blocks_of(end, block))
    least, most = parts.magnitude().map(lambda end: end.amax(-1)).map(lambda amax: scale_of(amax, rule, table))
    if rule == "none":  # any scale between the two; of a larger one elements are smaller
        ends = ((least, most), (most, least))
        low, high = ([elements_of(end, scale, table) * other[..., None] for scale, other in ends] for end in parts)
        low, high = torch.minimum(*low), torch.maximum(*high)
    else:
        low, high = (elements_of(end, least, table) * least[..., None] for end in parts)
        while bool((least < most).any()):
            least = torch.minimum(2 * least, most)
            low = torch.minimum(low, elements_of(parts.low, least, table) * least[..., None])
            high = torch.maximum(high, elements_of(parts.high, least, table) * least[..., None])
    low, high = (end.flatten(1)[:, :columns] for end in (low, high))
    return Blocks((low + high) / 2, (high - low) / 2, most)


# The layer.


@dataclasses.dataclass(frozen=True)
class Weights:
    """One weight of E experts. Of w13 all gates come first here."""

    codes: Tensor  # u8 [E, N, K]
    scales: Tensor  # f32 [E, N, blocks of K]
    alpha: Tensor  # f32 [E, N], which has one value for each expert, of w13 for gates and ups of each
    bias: Tensor | None = None  # f32 [E, N]

    def blocks(self, expert: int, fmt: Format) -> Blocks:
        """[N, K], without alpha."""
        elements = torch.from_numpy(fmt.weights).to(self.codes.device)[self.codes[expert].int()]
        scale = self.scales[expert].double()
        values = elements * scale.repeat_interleave(fmt.block, dim=-1)[:, : elements.shape[1]]
        return Blocks(values, torch.zeros_like(values), scale)

    def biases(self, expert: int) -> Tensor:
        """Float64 [N]."""
        return torch.zeros_like(self.alpha[expert]).double() if self.bias is None else self.bias[expert].double()


@dataclasses.dataclass(frozen=True)
class Layer:
    """Weights of E experts, H features and I between, and how they are to be used."""

    format: Format
    w13: Weights
    w2: Weights
    settings: Settings
    expert_map: Tensor | None = None  # i32 [G]
    on_hopper: bool = False  # the tensor core cuts FP8 products

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, H, I."""
        return self.w2.codes.shape[0], self.w2.codes.shape[1], self.w13.codes.shape[1] // 2

    @property
    def composite(self) -> str:
        return self.format.composite

    @property
    def weights(self) -> dict[str, Tensor | None]:
        """Of the composite, by name."""
        experts, _, between = self.shape
        tensors = {}
        for name, weight in (("w13", self.w13), ("w2", self.w2)):
            halves = (2,) if name == "w13" and not self.format.of_channels else ()
            codes, scales, bias = (part if part is None or not halves else part.unflatten(1, (2, between))
                                   for part in (weight.codes, weight.scales, weight.bias))  # fmt: skip
            if self.format.is_mx:
                codes, scales, bias = (_in_turn(part) if halves and part is not None else part
                                       for part in (codes, scales, bias))  # fmt: skip
                tensors[f"{name}_alpha"] = weight.alpha[:, 0].contiguous()
            tensors |= {name: _stored(codes, self.format), f"{name}_scale": _stored_scales(scales, self.format),
                        f"{name}_bias": bias}  # fmt: skip
        if self.format.is_mx and bool((self.w13.alpha[:, 0] != self.w13.alpha[:, -1]).any()):
            tensors["w13_up_alpha"] = self.w13.alpha[:, -1].contiguous()
        return tensors

    @property
    def scalars(self) -> dict[str, Any]:
        """Of the composite, by name."""
        return self.settings.arguments(self.format)

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """Of the composite, but for the tokens and the output."""
        return {**self.weights, "expert_map": self.expert_map, **self.scalars}

    def rows_of(self, expert: int, x: Tensor, row_weight: Tensor, out: str) -> tuple[Tensor, Tensor]:
        """As ``moe_reference.AnyLayer``."""
        stored = self.format.quantized(Interval(x, x), self.settings.rule(self.format))
        return self.rows_of_quantized(expert, stored, row_weight, out)

    def rows_of_quantized(self, expert: int, x: Blocks, row_weight: Tensor, out: str) -> tuple[Tensor, Tensor]:
        """The same of what x was quantised to."""
        settings, fmt, between = self.settings, self.format, self.shape[2]
        products = self._product(x, self.w13, expert).rounded("f32")
        products = products.map(lambda end: end + self.w13.biases(expert)).rounded(settings.intermediate)
        gate, up = (products.map(lambda end, part=part: end[:, part : part + between]) for part in (0, between))
        h = fmt.quantized(moe.activate(gate, up, row_weight, settings), settings.rule(fmt))
        rows, bias = self._product(h, self.w2, expert), self.w2.biases(expert)
        middle, radius = (rows.low + rows.high) / 2, (rows.high - rows.low) / 2
        # Product and sum are rounded to fp32 before the result is.
        furthest = middle.abs() + radius + bias.abs()
        radius = radius + 2.0**-22 * furthest
        return middle + bias, radius + (furthest + radius) * 2.0 ** -PRECISION[out] + HALF_SUBNORMAL_STEP[out]

    def _product(self, a: Blocks, weights: Weights, expert: int) -> Interval:
        """alpha * a . weights^T as fp32 sums in any order give it."""
        b, alpha = weights.blocks(expert, self.format), weights.alpha[expert].double()
        a = a.padded(b.scale.shape[1], b.middle.shape[1])
        value, moved = a.middle @ b.middle.T, a.radius @ b.middle.abs().T
        magnitude = (a.middle.abs() + a.radius) @ b.middle.abs().T
        cut = cut_on_hopper(a, b, self.format.block) if self.on_hopper else torch.zeros_like(value)
        if self.format.power:
            exact = magnitude < 2.0**24 * torch.outer(moe.lowest_bit(a.middle), moe.lowest_bit(b.middle))
            exact &= (a.radius == 0).all(-1)[:, None]
            error = accumulation_bound(Expected(value, magnitude, exact, cut), b.middle.shape[1])
        else:  # a product of scales, a block's sum times that, and the sum of these
            error = cut + (b.scale.shape[1] + 3) * 2.0**-23 * (magnitude + cut)
        error = alpha.abs() * (moved + error)
        return Interval(alpha * value - error, alpha * value + error)


def cut_on_hopper(a: Blocks, b: Blocks, block: int) -> Tensor:
    """``reference.cut_on_hopper`` of a in intervals and b that is known; nothing where all elements of a block are
    multiples of units, and products and sums of these have no bit to be cut."""
    values = (a.middle, a.radius, b.middle, a.scale, b.scale)
    of_blocks = [_by_blocks(part, block) for part in values[:3]] + [part.T[..., None] for part in values[3:]]
    bound = torch.zeros(len(a.scale), len(b.scale), dtype=torch.float64, device=a.scale.device)
    at_once = max(1, AT_ONCE // max(1, bound.numel()))
    for parts in zip(*(part.split(at_once) for part in of_blocks), strict=True):
        bound += _cut_of_blocks(*parts).sum(0)
    return bound * ((block // STEP) * (STEP + 1) * 2.0**-FRACTION * 1.05)


def _by_blocks(values: Tensor, block: int) -> Tensor:
    """[rows, K] as [blocks, rows, of a block]."""
    return blocks_of(values, block).transpose(0, 1)


def _cut_of_blocks(middle: Tensor, radius: Tensor, weights: Tensor, scale: Tensor, of_weights: Tensor) -> Tensor:
    """[blocks, rows, N]: the largest that the tensor core has at hand in each block, or 0 where it cuts nothing."""
    total, moved, largest = (torch.zeros((), dtype=torch.float64, device=middle.device) for _ in range(3))
    for step in range(0, middle.shape[2], STEP):
        its, off, others = (part[..., step : step + STEP] for part in (middle, radius, weights))
        total = total + its @ others.mT
        moved = moved + off @ others.abs().mT
        product = (its.abs() + off).amax(-1)[:, :, None] * others.abs().amax(-1)[:, None]
        largest = torch.maximum(largest, torch.maximum(product, total.abs() + moved))
    elements, numbers = middle / scale, weights / of_weights
    units = moe.lowest_bit(elements)[:, :, None] * moe.lowest_bit(numbers)[:, None]
    sums = elements.abs() @ numbers.abs().mT
    return largest * ((sums >= 2.0**FRACTION * units) | (radius > 0).any(-1)[:, :, None])


def _in_turn(halves: Tensor) -> Tensor:
    """[E, 2, I, ..] as [E, 2 I, ..], of the two one row each."""
    return halves.transpose(1, 2).flatten(1, 2).contiguous()


def _stored(codes: Tensor, fmt: Format) -> Tensor:
    """Bytes of elements, at a multiple of 64."""
    packed = codes[..., 0::2] | codes[..., 1::2] << 4 if fmt.is_packed else codes
    raw = torch.empty(packed.numel() + 64, dtype=torch.uint8, device=codes.device)
    stored = raw[-raw.data_ptr() % 64 :][: packed.numel()].view(packed.shape)
    return stored.copy_(packed)


def _stored_scales(scales: Tensor, fmt: Format) -> Tensor:
    """Of [.., rows, blocks] as kernels take them; NaN in padding."""
    if fmt.of_channels:
        return scales[..., 0].contiguous()
    if not fmt.power:
        return scales[..., ::128, :].contiguous()
    powers = torch.where(scales.isnan(), NAN_POWER, scales.log2() + 127).to(torch.uint8)
    if fmt.is_mx:
        *lead, rows, blocks = powers.shape
        shape = *lead, round_up(rows, 128), round_up(blocks, 4)
        padded = torch.full(shape, NAN_POWER, dtype=torch.uint8, device=scales.device)
        padded[..., :rows, :blocks] = powers
        return to_scale_layout(padded)
    return words_of(powers).transpose(-1, -2).contiguous()


def words_of(powers: Tensor) -> Tensor:
    """i32 [.., words] of bytes [.., blocks], the first in the lowest; zeros fill up the last."""
    padded = torch.nn.functional.pad(powers, (0, -powers.shape[-1] % 4))
    return padded.contiguous().view(torch.int32)


# Rows by mask.


@dataclasses.dataclass(frozen=True)
class Masked:
    """A call of the masked form: matrices of [Mmax, H] for each expert, of which the first rows are there."""

    layer: Layer
    tokens: Tensor  # float64 [rows, H], by expert
    expert: Tensor  # i64 [rows], ..
    row: Tensor  # .. and the place in its matrix
    counts: Tensor  # i32 [E]
    max_rows: int
    weight: Tensor | None  # f32 [rows]

    @classmethod
    def random(
        cls, generator: torch.Generator, layer: Layer, counts: list[int], max_rows: int, weighted: bool = False
    ) -> Masked:
        tokens = random_tokens(generator, layer, sum(counts), 1).x.double()
        many, device = torch.tensor(counts, device=generator.device), generator.device
        expert = torch.repeat_interleave(torch.arange(len(counts), device=device), many)
        row = torch.cat([torch.arange(count, device=device) for count in counts])
        weight = 0.5 + torch.rand(len(row), device=device, generator=generator) if weighted else None
        return cls(layer, tokens, expert, row, many.int(), max_rows, weight)

    @property
    def stored(self) -> Blocks:
        fmt = self.layer.format
        return fmt.quantized(Interval(self.tokens, self.tokens), self.layer.settings.rule(fmt))

    @property
    def scalars(self) -> dict[str, Any]:
        """Of the composite, by name."""
        return {name: value for name, value in self.layer.scalars.items() if name not in ("first_expert", "weighting")}

    @property
    def arguments(self) -> dict[str, Any]:
        """All but the output. Rows that are not there are NaN."""
        (experts, hidden, _), device, stored = self.layer.shape, self.tokens.device, self.stored
        x = torch.full((experts, self.max_rows, hidden), NAN_SCALE, dtype=torch.uint8, device=device)
        scale = stored.scale.repeat_interleave(self.layer.format.block, dim=1)[:, :hidden]
        elements = stored.middle / scale
        codes = moe.nearest(elements.abs(), UE4M3[:NAN_SCALE]) + 128 * torch.signbit(elements)
        x[self.expert, self.row] = codes.byte()
        scales = stored.scale.float()
        if self.layer.format.power:
            scales = words_of((scales.log2() + 127).byte())
        shape = experts, round_up(self.max_rows, 4), scales.shape[1]
        x_scale = torch.full(shape, -1, dtype=torch.int32, device=device).view(scales.dtype)
        x_scale[self.expert, self.row] = scales
        weight = None
        if self.weight is not None:
            weight = torch.full((experts, self.max_rows), torch.nan, device=device)
            weight[self.expert, self.row] = self.weight
        return {"x": x, "x_scale": x_scale.transpose(1, 2).contiguous(), "mask": self.counts, "row_weight": weight,
                **self.layer.weights, **self.scalars}  # fmt: skip

    def output(self) -> Tensor:
        """bf16 [E, Mmax, H], poisoned."""
        experts, hidden, _ = self.layer.shape
        poison = torch.full((experts, self.max_rows, 2 * hidden), 0xFF, dtype=torch.uint8, device=self.tokens.device)
        return poison.view(torch.bfloat16)

    def check(self, out: Tensor, context: str) -> None:
        """Rows within their bound, and no other written."""
        weight = torch.ones(len(self.row), device=out.device) if self.weight is None else self.weight
        for expert in range(len(self.counts)):
            mine = self.expert == expert
            blocks = Blocks(*(part[mine] for part in self.stored))
            expected = self.layer.rows_of_quantized(expert, blocks, weight[mine], "bf16")
            moe.Result(*expected).check(out[expert, : int(mine.sum())], f"{context} expert {expert}")
        others = torch.ones(out.shape[:2], dtype=torch.bool, device=out.device)
        others[self.expert, self.row] = False
        assert (out[others].view(torch.uint8) == 0xFF).all(), f"{context}: wrote rows that are not there"


# Data.


def with_nan(
    layer: Layer, tokens: Tokens, expert: int, token: int
) -> Iterator[tuple[str, tuple[Layer, Tokens], Tensor]]:
    """As ``moe_reference.with_nan``."""
    routed = (tokens.topk_ids == expert).any(dim=1)
    x = tokens.x.clone()
    x[token, ::7] = torch.nan
    yield "x", (layer, tokens._replace(x=x)), torch.arange(len(x), device=x.device) == token
    for name in ("w13", "w2"):
        weights = getattr(layer, name)
        scales = weights.scales.clone()
        scales[expert, :, 0] = torch.nan
        changed = dataclasses.replace(weights, scales=scales)
        yield f"scales of {name}", (dataclasses.replace(layer, **{name: changed}), tokens), routed


def random_layer(
    generator: torch.Generator, fmt: Format, experts: int, hidden: int, between: int, settings: Settings = Settings(),
    extras: bool = False,
) -> Layer:  # fmt: skip
    """Gate and up are of size 2 for tokens of ``random_tokens``, results of size 1; every scale is another one. extras:
    with biases, and in MX with an alpha of its own for ups."""
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    def weights(rows: int, k: int, size: float, parts: int) -> Weights:
        """``parts`` of w13 have scales for 128 rows of their own."""
        drawn = range(16 if fmt.is_packed else 15)
        numbers = drawn if fmt.is_packed else [int(np.flatnonzero(E4M3 == n - 7)[0]) for n in drawn]  # -7 to 7
        table = torch.tensor(numbers, dtype=torch.uint8, device=device)
        codes = torch.stack([table[torch.randint(0, len(drawn), (rows, k), device=device, generator=generator)]
                             for _ in range(experts)])  # fmt: skip
        blocks, size = ceil_div(k, fmt.block), size / (3.0 * k**0.5)
        if fmt.power:
            scales = torch.exp2((uniform(experts, rows, blocks) * 3 - 1 + math.log2(size)).floor())
        else:
            columns = 1 if fmt.of_channels else blocks
            of_blocks = size * (0.5 + uniform(experts, parts, ceil_div(rows // parts, fmt.rows), columns))
            scales = of_blocks.repeat_interleave(fmt.rows, dim=2)[:, :, : rows // parts].flatten(1, 2)
            scales = scales.expand(-1, -1, blocks).contiguous()
        alpha = torch.ones(experts, parts, device=device)
        if fmt.is_mx:
            alpha = (0.5 + uniform(experts, parts if extras else 1)).expand(experts, parts)
        bias = torch.randn(experts, rows, device=device, generator=generator) if extras else None
        return Weights(codes, scales, alpha.repeat_interleave(rows // parts, dim=1), bias)

    w13 = weights(2 * between, fmt.k(hidden), 2.0, 2)
    return Layer(fmt, w13, weights(hidden, between, 0.5, 1), settings)


def random_tokens(
    generator: torch.Generator, layer: Layer, tokens: int, top_k: int, experts: int = 0, dtype: str = "bf16",
    ids: torch.dtype = torch.int32,
) -> Tokens:  # fmt: skip
    """Rows of size 1 whose elements are, in each block, a few bits times another scale, so that nothing is rounded;
    some blocks are zero. Routing is that of ``moe.random_tokens``, to ``experts``, or those of the layer."""
    fmt, (here, hidden, _), device = layer.format, layer.shape, generator.device
    drawn = moe.random_tokens(generator, tokens, top_k, experts or here, round_up(hidden, 16), dtype, ids)
    blocks = ceil_div(hidden, fmt.block)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, device=device, generator=generator)

    codes = integers(-15, 16, tokens, blocks, fmt.block)
    scales = torch.exp2(integers(-5, -2, tokens, blocks).float())
    if layer.settings.rule(fmt) == "none":  # 448 is 14 times a power of two: such a largest element needs no rounding
        codes = codes.clamp(-14, 14)
        codes[..., 0] = 14
        scales *= integers(8, 16, tokens, blocks) / 8
    scales *= integers(0, 16, tokens, blocks) > 0
    x = (codes * scales[..., None]).flatten(1)[:, :hidden].contiguous()
    return drawn._replace(x=x.to(TORCH_TYPES[dtype]))
