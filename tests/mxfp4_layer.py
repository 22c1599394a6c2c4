"""Layers of ``moe_blocks`` in MXFP4 as gpt-oss has them, with weights as engines hold them in torch, for either
composite: the reference of tokens in 16 bits is ``moe_fragments``'."""

from __future__ import annotations

import dataclasses

import moe_blocks
import moe_fragments
import moe_reference as moe
import torch
from moe_blocks import Layer, Settings, Weights
from reference import MXFP4

from integrations.expert_preparation import Mxfp4

GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
SCALES_OF_ZEROS = 1 / 16  # the share of blocks of zeros, whose scale is the byte 0


def drawn(generator: torch.Generator, experts: int, hidden: int, between: int, bias: bool = True) -> Layer:
    """Without factors of products, with biases in bf16; every scale is another one, and that of zeros the smallest."""
    layer = moe_blocks.random_layer(generator, moe_blocks.MXFP8_MXFP4, experts, hidden, between, Settings(**GPT_OSS))

    def stored(weights: Weights, columns: int) -> Weights:
        codes, scales = weights.codes[..., :columns].clone(), weights.scales[..., : columns // 32].clone()
        zero = torch.rand(scales.shape, generator=generator, device=generator.device) < SCALES_OF_ZEROS
        codes[zero.repeat_interleave(32, dim=2)] = 0
        scales[zero] = 2.0**-127
        biases = torch.randn(codes.shape[:2], generator=generator, device=generator.device).bfloat16().float()
        return Weights(codes, scales, torch.ones_like(weights.alpha), biases if bias else None)

    return dataclasses.replace(layer, w13=stored(layer.w13, hidden), w2=stored(layer.w2, between))


def reference(arch: str, layer: Layer) -> moe.AnyLayer:
    """What float64 makes of it on an arch."""
    if not arch.startswith("90"):
        return layer
    experts, hidden, _ = layer.shape
    fields = {field.name for field in dataclasses.fields(moe.Settings)} & set(vars(layer.settings))
    settings = moe.Settings(**{name: getattr(layer.settings, name) for name in fields})
    ones = torch.ones(experts, device=layer.w2.codes.device)
    w13, w2 = (moe.Weights(each.packed, each.scales, ones, each.bias, formats=MXFP4) for each in engine(layer))
    return moe_fragments.Layer(moe.Layer(w13, w2, ones, ones, settings, layer.expert_map))


def engine(layer: Layer, alternate: bool = True) -> tuple[Mxfp4, Mxfp4]:
    """Gate and up, in turn as in a checkpoint of gpt-oss or one above the other, and down."""
    found = []
    for weights, in_turn in ((layer.w13, alternate), (layer.w2, False)):
        packed = weights.codes[..., 0::2] | weights.codes[..., 1::2] << 4
        tensors = [packed, (weights.scales.log2() + 127).to(torch.uint8), weights.bias]
        if in_turn:
            tensors = [rows if rows is None else rows.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).contiguous()
                       for rows in tensors]  # fmt: skip
        found.append(Mxfp4(*tensors))
    return found[0], found[1]


def of_experts(layer: Layer, chosen: list[int]) -> Layer:
    """The layer of these experts alone, which keep their ids by a map."""

    def taken(weights: Weights) -> Weights:
        return Weights(*(None if tensor is None else tensor[chosen] for tensor in vars(weights).values()))

    expert_map = torch.full((layer.shape[0],), -1, dtype=torch.int32)
    expert_map[chosen] = torch.arange(len(chosen), dtype=torch.int32)
    return dataclasses.replace(layer, w13=taken(layer.w13), w2=taken(layer.w2), expert_map=expert_map)


def of_rank(layer: Layer, begin: int, end: int) -> Layer:
    """Some of I; the bias of down is with its first values."""
    w13 = Weights(*(None if tensor is None else tensor.unflatten(1, (2, -1))[:, :, begin:end].flatten(1, 2)
                    for tensor in vars(layer.w13).values()))  # fmt: skip
    w2 = dataclasses.replace(layer.w2, codes=layer.w2.codes[..., begin:end],
                             scales=layer.w2.scales[..., begin // 32 : end // 32])  # fmt: skip
    if begin and w2.bias is not None:
        w2 = dataclasses.replace(w2, bias=torch.zeros_like(w2.bias))
    return dataclasses.replace(layer, w13=w13, w2=w2)
