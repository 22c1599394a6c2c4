"""The layer ``moe_fp4`` in float64, and how far a result may be off: with torch, on whatever device its tensors lie.

Nothing here comes from the code under test. x is quantised to the bit, with exact division. What follows is only known
up to the order of fp32 sums, and between the GEMMs the result of L1 is quantised once more, which makes a step of the
smallest difference. So the activations are followed as intervals: the ends of what accumulation and approximate
instructions allow, each rounded as the kernels round (rounding never reverses an order), then quantised under every
scale that the interval of the block's amax allows. L2 multiplies the middle of what may come out; half the width times
|w2| goes into the bound.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from device_problem import TORCH_TYPES, expand, random_scales, to_scale_layout
from reference import (
    E2M1,
    GROUP,
    HALF_SUBNORMAL_STEP,
    NAN_SCALE,
    NVFP4,
    PRECISION,
    UE4M3,
    Expected,
    Formats,
    accumulation_bound,
    check_within,
    error_bound,
    round_up,
)
from torch import Tensor

FLT_MAX = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scalars of ``moe_fp4``. The model knows exact division only."""

    global_scale_kind: str = "encode"
    first_expert: int = 0
    division: str = "ieee"
    intermediate: str = "bf16"
    rounding: str = "activation_type"
    weighting: str = "combine"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float = FLT_MAX
    activation: str = "silu"  # or gelu_tanh; relu2 makes it those of ``moe_fp4_relu2``, which has no gate

    def arguments(self) -> dict[str, Any]:
        """Of the composite, by name."""
        given = dataclasses.asdict(self)
        if self.activation == "relu2":
            given = {name: given[name] for name in ("global_scale_kind", "first_expert", "division", "rounding",
                                                    "weighting")}  # fmt: skip
        return given


class AnyLayer(Protocol):
    """A layer in any format."""

    settings: Any  # first_expert, weighting
    expert_map: Tensor | None  # i32 [G]

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, H, I."""

    @property
    def composite(self) -> str:
        """Its name."""

    @property
    def scalars(self) -> dict[str, Any]:
        """Of the composite, by name."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the composite, but for the tokens and the output."""

    def rows_of(self, expert: int, x: Tensor, row_weight: Tensor, out: str) -> tuple[Tensor, Tensor]:
        """Results of an expert as stored in ``out``, float64 [rows, H], for x float64 [rows, H] and a factor of each
        row after the activation; and how far they may be off."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """One weight of E experts."""

    packed: Tensor  # u8 [E, N, K/2]
    groups: Tensor  # u8 [E, N, blocks of K], scales in plain order
    alpha: Tensor  # f32 [E]
    bias: Tensor | None = None  # f32 [E, N]
    up_alpha: Tensor | None = None  # f32 [E], of every second row
    formats: Formats = NVFP4

    def alphas(self, expert: int) -> Tensor:
        """Float64 [N]."""
        alphas = self.alpha[expert].double().repeat(self.packed.shape[1])
        if self.up_alpha is not None:
            alphas[1::2] = self.up_alpha[expert].double()
        return alphas

    def biases(self, expert: int) -> Tensor:
        """Float64 [N]."""
        if self.bias is None:
            return torch.zeros(self.packed.shape[1], dtype=torch.float64, device=self.packed.device)
        return self.bias[expert].double()

    def values(self, expert: int) -> Tensor:
        """Float64 [N, K], without alpha."""
        return expand(self.packed[expert], self.groups[expert], self.formats.weights, self.formats.scales)

    def scale(self) -> Tensor:
        """Scales in the 128x4 layout per expert, NaN in all padding."""
        experts, n, columns = self.groups.shape
        padded = torch.full((experts, round_up(n, 128), round_up(columns, 4)), self.formats.nan_scale,
                            dtype=torch.uint8, device=self.groups.device)  # fmt: skip
        padded[:, :n, :columns] = self.groups
        return to_scale_layout(padded)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Weights of E experts, H features and I between, and how they are to be used."""

    w13: Weights  # gate and up in turn; what is activated, where there is no gate
    w2: Weights
    x_encode: Tensor  # f32 [E], encode scales of x ..
    h_encode: Tensor  # .. and of the activations
    settings: Settings
    expert_map: Tensor | None = None  # i32 [G]

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, H, I."""
        return self.w2.packed.shape[0], self.w2.packed.shape[1], self.w2.packed.shape[2] * 2

    @property
    def composite(self) -> str:
        return "moe_fp4" if self.gated else "moe_fp4_relu2"

    @property
    def gated(self) -> bool:
        return self.settings.activation != "relu2"

    @property
    def scalars(self) -> dict[str, Any]:
        return self.settings.arguments()

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """Of the composite, but for the tokens and the output."""
        invert = (lambda scale: 1 / scale) if self.settings.global_scale_kind == "decode" else (lambda scale: scale)
        tensors = {"x_global_scale": invert(self.x_encode), "h_global_scale": invert(self.h_encode)}
        for name, weights in (("w13" if self.gated else "w1", self.w13), ("w2", self.w2)):
            tensors |= {name: weights.packed, f"{name}_scale": weights.scale(), f"{name}_alpha": weights.alpha,
                        f"{name}_bias": weights.bias}  # fmt: skip
        tensors |= {"expert_map": self.expert_map} | ({"w13_up_alpha": self.w13.up_alpha} if self.gated else {})
        return tensors | self.scalars

    def rows_of(self, expert: int, x: Tensor, row_weight: Tensor, out: str) -> tuple[Tensor, Tensor]:
        """As ``AnyLayer``."""
        settings = self.settings if self.gated else dataclasses.replace(self.settings, intermediate=out)
        x_encode, h_encode = (_encode(scale[expert], settings) for scale in (self.x_encode, self.h_encode))
        products = first_gemm(
            quantized(Interval(x, x), x_encode).low, self.w13.values(expert), self.w13.alphas(expert),
            self.w13.biases(expert), settings.intermediate,
        )  # fmt: skip
        if self.gated:
            gate, up = (products.map(lambda end, part=part: end[:, part::2]) for part in (0, 1))
            activated = activate(gate, up, row_weight, settings)
        else:
            activated = activate_without_gate(products, row_weight, settings)
        w2 = self.w2
        return second_gemm(quantized(activated, h_encode), w2.values(expert), w2.alphas(expert), w2.biases(expert), out)


class Tokens(NamedTuple):
    """What a layer is applied to; the names are arguments of ``moe_fp4``."""

    x: Tensor  # bf16, f16 or f32 [T, H]
    topk_ids: Tensor  # i32 or i64 [T, TOPK]
    topk_weights: Tensor  # f32 [T, TOPK]


# Data. Scales of w13 are 0, 1 and 2, so that nearly all sums of L1 are exact in fp32 and the steps of the second
# quantisation hide nothing; those of w2 vary.


def random_layer(
    generator: torch.Generator, experts: int, hidden: int, between: int, settings: Settings = Settings()
) -> Layer:
    """Gate and up are of size 2 for x of size 1, results of size 1. Encode scales differ by expert; in some experts the
    largest blocks saturate."""
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(experts, device=device, generator=generator)

    def weights(n: int, k: int, scale_of_input: Tensor, size: float) -> Weights:
        packed = torch.randint(0, 256, (experts, n, k // 2), dtype=torch.uint8, device=device, generator=generator)
        scales = random_scales(generator, (experts, n, k // GROUP), wide=False, outliers=0)
        sign = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        # An element has a root mean square of 2.9 and a scale of about 1.5.
        return Weights(packed, scales, sign * size / (4.5 * k**0.5) / scale_of_input)

    x_encode, h_encode = uniform(300, 700), uniform(20, 200)
    rows = between if settings.activation == "relu2" else 2 * between
    w13, w2 = weights(rows, hidden, x_encode, 2.0), weights(hidden, between, h_encode, 0.5)
    w13.groups[w13.groups > 0x3A] = 0x40  # 1.5 and 1.75 become 2 ..
    w13.groups[w13.groups == 0x3A] = 0x38  # .. and 1.25 becomes 1
    return Layer(w13, w2, x_encode, h_encode, settings)


def with_biases(generator: torch.Generator, layer: Layer) -> Layer:
    """The layer with biases of the size of what they are added to, and an alpha of its own for up."""
    device, (experts, hidden, _) = generator.device, layer.shape

    def bias(columns: int, size: float) -> Tensor:
        return size * torch.randn(experts, columns, device=device, generator=generator)

    factor = 0.5 + torch.rand(experts, device=device, generator=generator)
    up_alpha = layer.w13.alpha * factor if layer.gated else None
    w13 = dataclasses.replace(layer.w13, bias=bias(layer.w13.packed.shape[1], 1.0), up_alpha=up_alpha)
    return dataclasses.replace(layer, w13=w13, w2=dataclasses.replace(layer.w2, bias=bias(hidden, 0.5)))


def random_tokens(
    generator: torch.Generator, tokens: int, top_k: int, experts: int, hidden: int, dtype: str = "bf16",
    ids: torch.dtype = torch.int32
) -> Tokens:  # fmt: skip
    """Rows of size 1, in which some blocks of 16 are zero; distinct experts a token, of Zipf popularity over ids
    0 .. ``experts`` - 1; weights with sum 1."""
    device = generator.device
    x = torch.randn(tokens, hidden // GROUP, GROUP, device=device, generator=generator)
    x *= torch.rand(tokens, hidden // GROUP, 1, device=device, generator=generator) > 1 / 32
    popularity = 1.0 / (1 + torch.randperm(experts, device=device, generator=generator))
    # Draws without replacement go in the order of exponential variates over their rates.
    waits = torch.empty(tokens, experts, device=device).exponential_(generator=generator) / popularity
    chosen = waits.argsort(dim=1)[:, :top_k].contiguous()
    weights = torch.rand(tokens, top_k, device=device, generator=generator) + 0.1
    weights /= weights.sum(dim=1, keepdim=True)
    return Tokens(x.reshape(tokens, hidden).to(TORCH_TYPES[dtype]), chosen.to(ids), weights)


# Arithmetic: float64 that holds what the kernels hold in fp32.


def with_nan(
    layer: Layer, tokens: Tokens, expert: int, token: int
) -> Iterator[tuple[str, tuple[Layer, Tokens], Tensor]]:
    """Where a NaN is put, layer and tokens with it, and bool [T], which tokens it has a part in: the token itself, or
    those of the expert, of which a number or some bytes of scales become one."""
    routed = (_local(layer, tokens.topk_ids) == expert).any(dim=1)
    x = tokens.x.clone()
    x[token, ::7] = torch.nan
    yield "x", (layer, tokens._replace(x=x)), torch.arange(len(x), device=x.device) == token
    for name in ("x_encode", "h_encode"):
        scale = getattr(layer, name).clone()
        scale[expert] = torch.nan
        yield name, (dataclasses.replace(layer, **{name: scale}), tokens), routed
    for name in ("w13", "w2"):
        weights = getattr(layer, name)
        alpha, groups = weights.alpha.clone(), weights.groups.clone()
        alpha[expert], groups[expert, ::5, 1] = torch.nan, weights.formats.nan_scale
        for field, value in (("alpha", alpha), ("groups", groups)):
            changed = dataclasses.replace(weights, **{field: value})
            yield f"{field} of {name}", (dataclasses.replace(layer, **{name: changed}), tokens), routed


def rounded(values: Tensor, dtype: str) -> Tensor:
    """To nearest even as fp32, then as ``dtype``."""
    return values.float().to(TORCH_TYPES[dtype]).double()


class Interval(NamedTuple):
    """All values from ``low`` to ``high``."""

    low: Tensor
    high: Tensor

    def map(self, increasing: Callable[[Tensor], Tensor]) -> Interval:
        return Interval(increasing(self.low), increasing(self.high))

    def rounded(self, dtype: str) -> Interval:
        return self.map(lambda end: rounded(end, dtype))

    def times(self, other: Interval) -> Interval:
        corners = [mine * its for mine in self for its in other]
        return Interval(functools.reduce(torch.minimum, corners), functools.reduce(torch.maximum, corners))

    def magnitude(self) -> Interval:
        """Of absolute values."""
        low = torch.maximum(self.low, -self.high).clamp_min(0)
        return Interval(low, torch.maximum(self.low.abs(), self.high.abs()))


def silu(gate: Interval, alpha: float) -> Interval:
    """gate * sigmoid(alpha * gate) as the kernels compute it, alpha > 0.

    It falls to its minimum at alpha * gate = -1.2785 and rises from there. The power of two is approximate, with a
    relative error of 2^-22 (PTX ISA, ex2.approx: 2 ulp). Of its argument, log2 e, that times alpha and the product are
    rounded: 2.3 * 2^-24 of it, so of the power 2.3 * 2^-24 |alpha gate|. The sum rounds once, its reciprocal is
    approximate, with 2^-23 (rcp.approx: 1 ulp), and the product rounds once. A reciprocal that is flushed makes zero of
    what is below |gate| * 2^-126.
    """

    def exact(values: Tensor) -> Tensor:
        return values * torch.sigmoid(alpha * values)

    lowest = torch.full_like(gate.low, -1.2784645427610738 / alpha)
    inside = (gate.low < lowest) & (lowest < gate.high)
    ends = exact(gate.low), exact(gate.high)
    low = torch.where(inside, exact(lowest), torch.minimum(*ends))
    size = gate.magnitude().high
    relative, absolute = (3 * alpha * size + 9) * 2.0**-24, (size + 1) * 2.0**-125
    high = torch.maximum(*ends)
    return Interval(low - low.abs() * relative - absolute, high + high.abs() * relative + absolute)


def gelu_tanh(gate: Interval) -> Interval:
    """gate * sigmoid(2 z), z = sqrt(2 / pi) (gate + 0.044715 gate^3), as the kernels compute it.

    It falls to its minimum of -0.17004 at -0.75246 and rises from there. The exponent of two is a product of which
    three factors, a sum and the product itself are rounded: 4 * 2^-24 of |2 z|, of the power as much times |2 z|; the
    rest is as of ``silu``.
    """

    def twice_z(values: Tensor) -> Tensor:
        return 2 * (2 / math.pi) ** 0.5 * (values + 0.044715 * values**3)

    def exact(values: Tensor) -> Tensor:
        return values * torch.sigmoid(twice_z(values))

    lowest = torch.full_like(gate.low, -0.7524614220710162)
    inside = (gate.low < lowest) & (lowest < gate.high)
    ends = exact(gate.low), exact(gate.high)
    low, high = torch.where(inside, exact(lowest), torch.minimum(*ends)), torch.maximum(*ends)
    size = gate.magnitude().high
    relative, absolute = (5 * twice_z(size) + 9) * 2.0**-24, (size + 1) * 2.0**-125
    return Interval(low - low.abs() * relative - absolute, high + high.abs() * relative + absolute)


def activate(gate: Interval, up: Interval, row_weight: Tensor, settings: Settings) -> Interval:
    """SwiGLU of intervals [rows, I] times a weight a row, rounded as stored; gate and up as stored."""
    limit = settings.swiglu_limit
    gate, up = gate.map(lambda end: end.clamp_max(limit)), up.map(lambda end: end.clamp(-limit, limit))
    up = up.map(lambda end: rounded(end + settings.swiglu_beta, "f32"))
    gated = gelu_tanh(gate) if settings.activation == "gelu_tanh" else silu(gate, settings.swiglu_alpha)
    return weigh(gated.times(up).rounded("f32"), row_weight, settings)


def activate_without_gate(values: Interval, row_weight: Tensor, settings: Settings) -> Interval:
    """max(x, 0)^2 of intervals [rows, I] as stored times a weight a row, rounded as stored."""
    squares = values.map(lambda end: end.clamp_min(0).square()).rounded("f32")
    return weigh(squares, row_weight, settings)


def weigh(result: Interval, row_weight: Tensor, settings: Settings) -> Interval:
    weight = row_weight.double()[:, None]
    result = result.times(Interval(weight, weight)).rounded("f32")
    return result.rounded(settings.intermediate) if settings.rounding == "activation_type" else result


def nearest(values: Tensor, table: np.ndarray) -> Tensor:
    """Index of the nearest entry of an increasing table, the even one of two; beyond its end the last."""
    middles = torch.from_numpy((table[1:] + table[:-1]) / 2).to(values.device)
    down, up = (torch.searchsorted(middles, values.contiguous(), side=side) for side in ("left", "right"))
    return torch.where(down % 2 == 0, down, up)


def quantized(values: Interval, encode_scale: float) -> Interval:
    """What the NVFP4 of fp32 values in intervals [rows, K] may be: elements times scales of blocks, with exact
    division. A point stays one."""
    blocks = values.map(lambda end: end.reshape(len(end), -1, GROUP))
    encode = torch.tensor(encode_scale, dtype=torch.float64, device=values.low.device)
    factor = rounded(encode * float(np.float32(1 / 6)), "f32")
    amax = blocks.magnitude().map(lambda end: end.amax(-1))
    least, most = amax.map(lambda end: nearest(rounded(end * factor, "f32"), UE4M3[:NAN_SCALE]))
    scales = torch.from_numpy(UE4M3[:NAN_SCALE]).to(encode.device)
    elements = torch.from_numpy(E2M1[:8]).to(encode.device)

    def under(byte: Tensor, end: Tensor) -> Tensor:
        scale = scales[byte]
        multiplier = rounded(encode / scale, "f32").clamp_max(FLT_MAX)
        scaled = rounded(end * torch.where(scale == 0, 0, multiplier)[..., None], "f32")
        return torch.copysign(elements[nearest(scaled.abs(), E2M1[:8])] * scale[..., None], scaled)

    low, high = blocks.map(lambda end: under(least, end))
    for step in range(1, int((most - least).max()) + 1 if len(least) else 0):
        byte = torch.minimum(least + step, most)
        low = torch.minimum(low, under(byte, blocks.low))
        high = torch.maximum(high, under(byte, blocks.high))
    return Interval(low, high).map(lambda end: end.reshape(values.low.shape))


def lowest_bit(values: Tensor) -> Tensor:
    """Largest power of two that divides all float64 of a row, as ``reference.quantum``."""
    bits = values.abs().view(torch.int64)
    cleared = (bits & (bits - 1)).view(torch.float64)
    power_of_two = (bits & (1 << 52) - 1) == 0
    lowest = torch.where(power_of_two, values.abs(), values.abs() - cleared)
    return torch.where(values == 0, torch.inf, lowest).amin(-1)


# The layer.


def first_gemm(x: Tensor, weights: Tensor, alpha: Tensor, bias: Tensor, intermediate: str) -> Interval:
    """alpha * x . weights^T + bias as stored, of exactly known x [rows, K] and weights [2 I, K]."""
    sums = x.abs() @ weights.abs().T
    exact = sums < 2.0**24 * torch.outer(lowest_bit(x), lowest_bit(weights))
    expected = Expected(alpha * (x @ weights.T), abs(alpha) * sums, exact)
    error = accumulation_bound(expected, x.shape[1])
    products = Interval(expected.value - error, expected.value + error).rounded("f32")
    return products.map(lambda end: end + bias).rounded(intermediate)


def second_gemm(h: Interval, weights: Tensor, alpha: Tensor, bias: Tensor, out: str) -> tuple[Tensor, Tensor]:
    """alpha * h . weights^T + bias as stored for the middle of h [rows, I], and how far it may be off.

    Product and sum are rounded to fp32, neither larger than the magnitudes of product and bias together.
    """
    middle, radius = (h.low + h.high) / 2, (h.high - h.low) / 2
    value = alpha * (middle @ weights.T)
    moved = abs(alpha) * (radius @ weights.abs().T)
    magnitude = abs(alpha) * (h.magnitude().high @ weights.abs().T)
    furthest = Expected(value.abs() + moved + bias.abs(), magnitude, torch.zeros_like(value, dtype=torch.bool))
    summed = 2.0**-23 * furthest.value * (bias != 0)
    return value + bias, moved + error_bound(furthest, h.low.shape[1], out) + summed


class Result(NamedTuple):
    """Of ``moe_fp4``, float64 [T, H]."""

    value: Tensor
    bound: Tensor  # largest |out - value|

    def check(self, out: Tensor, context: str = "") -> float:
        """Largest |out - value| / bound; ``AssertionError`` names the first element out of bounds."""
        return check_within(out.double(), *self, context)


def moe(layer: AnyLayer, tokens: Tokens, out: str) -> Result:
    """The layer expert by expert, and the bound of a result in ``out``: bf16, f16 or f32.

    The last sum takes TOPK fused multiply-adds, each of which rounds a partial sum of at most the magnitude that is
    summed here to fp32; one TOPK more covers that partial sums are themselves rounded. Then it is stored.
    """
    settings, (experts, hidden, _) = layer.settings, layer.shape
    top_k = tokens.topk_ids.shape[1]
    value, bound, magnitude = (
        torch.zeros(len(tokens.x), hidden, dtype=torch.float64, device=tokens.x.device) for _ in range(3)
    )
    in_combine, in_input = (settings.weighting == place for place in ("combine", "input"))
    local = _local(layer, tokens.topk_ids)
    for expert in range(experts):
        token, slot = torch.nonzero(local == expert, as_tuple=True)
        if not len(token):
            continue
        weight = tokens.topk_weights[token, slot]
        x = tokens.x[token].double()
        if in_input:  # a product of two values of the type of x, rounded once
            x = (x * weight.to(tokens.x.dtype).double()[:, None]).to(tokens.x.dtype).double()
        row_weight = weight if settings.weighting == "activation" else torch.ones_like(weight)
        rows, error = layer.rows_of(expert, x, row_weight, out)
        factor = (weight if in_combine else torch.ones_like(weight)).double()[:, None]
        value.index_add_(0, token, factor * rows)
        bound.index_add_(0, token, factor.abs() * error)
        magnitude.index_add_(0, token, factor.abs() * (rows.abs() + error))
    bound += (top_k + 1) * (2.0**-24 * magnitude + HALF_SUBNORMAL_STEP["f32"])
    bound += (value.abs() + bound) * 2.0 ** -PRECISION[out] + HALF_SUBNORMAL_STEP[out]
    return Result(value, bound)


def _local(layer: AnyLayer, ids: Tensor) -> Tensor:
    """The local expert of each id, none of 0 .. E - 1 where it is not here."""
    if layer.expert_map is None:
        return ids.long() - layer.settings.first_expert
    inside = (ids >= 0) & (ids < len(layer.expert_map))
    return torch.where(inside, layer.expert_map[torch.where(inside, ids, 0).long()].long(), -1)


def _encode(scale: Tensor, settings: Settings) -> float:
    """The encode scale that the kernels see: a decode scale is inverted twice, in fp32."""
    return float(1 / (1 / scale) if settings.global_scale_kind == "decode" else scale)


# The same layer, kernel by kernel.


def launch_steps(
    launch: Callable[..., None], layer: Layer, tokens: Tokens, out: Tensor, fused: bool = True
) -> dict[str, Tensor]:
    """Every kernel of the composite by its own call of ``launch(name, **arguments)``, or, not ``fused``, L1 as
    grouped_fp4 and silu_mul_nvfp4_quantize; without a gate it is never fused. Buffers are poisoned; returns those that
    are handed on."""
    device, settings, arguments = tokens.x.device, layer.settings, layer.arguments
    (experts, hidden, between), (count, top_k) = layer.shape, tokens.topk_ids.shape
    rows = count * top_k
    scale_rows = (rows + 127 * min(experts, rows)) // 128 * 128

    def poisoned(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        buffer = torch.empty(shape, dtype=dtype, device=device)
        buffer.view(torch.uint8).fill_(0xFF)
        return buffer

    def scalars(*names: str) -> dict[str, Any]:
        return {name: getattr(settings, name) for name in names}

    route = {
        "expert_offsets": poisoned(experts + 1, dtype=torch.int32),
        "scale_offsets": poisoned(experts, dtype=torch.int32),
    }
    row_of_slot, slot_of_row = poisoned(count, top_k, dtype=torch.int32), poisoned(rows, dtype=torch.int32)
    row_weight = poisoned(rows, dtype=torch.float32)
    a, a_scale = poisoned(rows, hidden // 2), poisoned(scale_rows, round_up(hidden // GROUP, 4))
    h, h_scale = poisoned(rows, between // 2), poisoned(scale_rows, round_up(between // GROUP, 4))
    results = poisoned(rows, hidden, dtype=out.dtype)

    launch("moe_route", topk_ids=tokens.topk_ids, expert_map=layer.expert_map, **route, row_of_slot=row_of_slot,
           slot_of_row=slot_of_row, **scalars("first_expert"))  # fmt: skip
    launch("moe_gather_quantize", x=tokens.x, slot_of_row=slot_of_row, topk_weights=tokens.topk_weights, **route,
           global_scale=arguments["x_global_scale"], a=a, a_scale=a_scale, row_weight=row_weight,
           **scalars("global_scale_kind", "division", "weighting"))  # fmt: skip
    first = "w13" if layer.gated else "w1"
    gemm = {"a": a, "a_scale": a_scale, "b": arguments[first], "b_scale": arguments[f"{first}_scale"],
            "alpha": arguments[f"{first}_alpha"], "bias": arguments[f"{first}_bias"], **route}  # fmt: skip
    activation = {"row_weight": row_weight, "global_scale": arguments["h_global_scale"], "out": h, "out_scale": h_scale,
                  **scalars("global_scale_kind", "division", "rounding")}  # fmt: skip
    swiglu = scalars("swiglu_alpha", "swiglu_beta", "swiglu_limit", "activation") if layer.gated else {}
    if not layer.gated:
        products = poisoned(rows, between, dtype=out.dtype)
        launch("grouped_fp4", **gemm, out=products)
        launch("relu2_nvfp4_quantize", x=products, **route, **activation)
    elif fused:
        launch("grouped_fp4_swiglu", **gemm, up_alpha=layer.w13.up_alpha, **activation, **swiglu,
               **scalars("intermediate"))  # fmt: skip
    else:
        products = poisoned(rows, 2 * between, dtype=TORCH_TYPES[settings.intermediate])
        launch("grouped_fp4", **gemm, out=products)
        halves = torch.cat([products[:, 0::2], products[:, 1::2]], dim=1)
        launch("silu_mul_nvfp4_quantize", x=halves, **route, **activation, **swiglu)
    launch("grouped_fp4", a=h, a_scale=h_scale, b=arguments["w2"], b_scale=arguments["w2_scale"],
           alpha=arguments["w2_alpha"], bias=arguments["w2_bias"], **route, out=results)  # fmt: skip
    launch("moe_combine", rows=results, row_of_slot=row_of_slot, topk_weights=tokens.topk_weights, out=out,
           **scalars("weighting"))  # fmt: skip
    return {**route, "row_of_slot": row_of_slot, "a": a, "h": h, "rows": results}
