"""The layers ``moe_bf16_nvfp4`` and ``moe_bf16_mxfp4`` in float64, and how far a result may be off, as of
``moe_reference``: with torch, on whatever device its tensors lie. Nothing is quantised but weights; activations are
rounded to the type of tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import moe_reference as moe
import torch
from fragment_problem import WEIGHT_STEP
from moe_reference import Interval, Settings, Tokens, Weights
from reference import MXFP4, NVFP4, Formats
from torch import Tensor

from integrations.weight_fragments import to_fragments

FORMATS = {"moe_bf16_nvfp4": NVFP4, "moe_bf16_mxfp4": MXFP4}
GATES = 64  # rows of gates, and then as many of their ups
SCALARS = ("first_expert", "intermediate", "weighting", "swiglu_alpha", "swiglu_beta", "swiglu_limit", "activation")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer whose weights are those of a plain one, with gate and up in turn; its encode scales do not count."""

    plain: moe.Layer

    @property
    def settings(self) -> Settings:
        return self.plain.settings

    @property
    def expert_map(self) -> Tensor | None:
        return self.plain.expert_map

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, H, I."""
        return self.plain.shape

    @property
    def composite(self) -> str:
        return "moe_bf16_nvfp4" if self.plain.w2.formats is NVFP4 else "moe_bf16_mxfp4"

    @property
    def scalars(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in SCALARS}

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """Of the composite, but for the tokens and the output."""
        tensors = {"expert_map": self.expert_map, "w13_up_alpha": self.plain.w13.up_alpha}
        for name, weights in (("w13", in_turns_of_64(self.plain.w13)), ("w2", self.plain.w2)):
            fragments = torch.stack([to_fragments(packed) for packed in weights.packed])
            tensors |= {name: fragments, f"{name}_scale": weights.scale(), f"{name}_alpha": weights.alpha,
                        f"{name}_bias": weights.bias}  # fmt: skip
        return tensors | self.scalars

    def rows_of(self, expert: int, x: Tensor, row_weight: Tensor, out: str) -> tuple[Tensor, Tensor]:
        """As ``AnyLayer``; ``out`` is the type of tokens, too."""
        w13, w2, settings = self.plain.w13, self.plain.w2, dataclasses.replace(self.settings, rounding="none")
        products = moe.first_gemm(
            x, multiplied(w13, expert), w13.alphas(expert), w13.biases(expert), settings.intermediate
        )
        gate, up = (products.map(lambda end, part=part: end[:, part::2]) for part in (0, 1))
        activated: Interval = moe.activate(gate, up, row_weight, settings).rounded(out)
        return moe.second_gemm(activated, multiplied(w2, expert), w2.alphas(expert), w2.biases(expert), out)


def multiplied(weights: Weights, expert: int) -> Tensor:
    """Float64 [N, K] without alpha: of MXFP4 multiples of a step, as bf16 holds them."""
    values = weights.values(expert)
    return values if weights.formats is NVFP4 else (values / WEIGHT_STEP).round() * WEIGHT_STEP


def in_turns_of_64(weights: Weights) -> Weights:
    """Rows that are gate and up in turn as 64 gates and their 64 ups in turn."""

    def order(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        blocks = rows.unflatten(1, (rows.shape[1] // (2 * GATES), GATES, 2))
        return blocks.transpose(2, 3).flatten(1, 3).contiguous()

    return dataclasses.replace(weights, packed=order(weights.packed), groups=order(weights.groups),
                               bias=order(weights.bias))  # fmt: skip


def random_layer(
    generator: torch.Generator, experts: int, hidden: int, between: int, settings: Settings,
    extras: bool = False, formats: Formats = NVFP4,
) -> Layer:  # fmt: skip
    """As ``moe.random_layer``, for tokens of size 1 as they are. extras: with biases and an alpha of up."""
    plain = moe.random_layer(generator, experts, hidden, between, settings)
    if formats is MXFP4:
        plain = dataclasses.replace(plain, w13=with_powers(generator, plain.w13, 0, 1),
                                    w2=with_powers(generator, plain.w2, -1, 1))  # fmt: skip
    plain = moe.with_biases(generator, plain) if extras else plain
    up_alpha = None if plain.w13.up_alpha is None else plain.w13.up_alpha * plain.x_encode
    w13 = dataclasses.replace(plain.w13, alpha=plain.w13.alpha * plain.x_encode, up_alpha=up_alpha)
    w2 = dataclasses.replace(plain.w2, alpha=plain.w2.alpha * plain.h_encode)
    return Layer(dataclasses.replace(plain, w13=w13, w2=w2))


def with_powers(generator: torch.Generator, weights: Weights, lowest: int, highest: int) -> Weights:
    """The weights in MXFP4, with scales that are powers of two in this range, some of them the byte 0."""
    experts, n, blocks = weights.groups.shape
    shape, options = (experts, n, blocks // 2), {"device": generator.device, "generator": generator}
    powers = torch.randint(127 + lowest, 128 + highest, shape, dtype=torch.uint8, **options)
    powers[torch.rand(shape, **options) < 1 / 16] = 0
    return dataclasses.replace(weights, groups=powers, formats=MXFP4)


def with_nan(
    layer: Layer, tokens: Tokens, expert: int, token: int
) -> Iterator[tuple[str, tuple[Layer, Tokens], Tensor]]:
    """As ``moe.with_nan``, but for scales of activations, of which there are none."""
    for name, (plain, changed), reached in moe.with_nan(layer.plain, tokens, expert, token):
        if "encode" not in name:
            yield name, (Layer(plain), changed), reached
