"""Layers of ``moe_reference`` with their weights as engines hold them in torch."""

from __future__ import annotations

import dataclasses

import moe_reference as moe
import torch
from device_problem import expand
from reference import E2M1, UE4M3

from integrations.expert_preparation import Nvfp4


def engine(layer: moe.Layer) -> tuple[Nvfp4, Nvfp4]:
    """Gate above up, and down, of a layer with gate and up in turn."""
    w13, w2 = layer.w13, layer.w2
    decode = w13.alpha if w13.up_alpha is None else torch.stack([w13.alpha, w13.up_alpha], dim=1)
    gate_up = [torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1) for rows in (w13.packed, w13.groups)]
    return Nvfp4(*gate_up, decode), Nvfp4(w2.packed, w2.groups, w2.alpha)


def values(matrices: Nvfp4) -> torch.Tensor:
    """Float64 [E, N, K]."""
    scales = matrices.scales.view(torch.uint8)
    plain = torch.stack([expand(*pair, E2M1, UE4M3) for pair in zip(matrices.packed, scales, strict=True)])
    decode = matrices.decode.double().reshape(len(plain), -1, 1, 1)
    return (plain.unflatten(1, (decode.shape[1], -1)) * decode).flatten(1, 2)


def of_experts(layer: moe.Layer, chosen: list[int]) -> moe.Layer:
    """The layer of these experts alone, which keep their ids by a map."""

    def taken(weights: moe.Weights) -> moe.Weights:
        tensors = {name: value[chosen] for name, value in vars(weights).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(weights, **tensors)

    expert_map = torch.full((layer.shape[0],), -1, dtype=torch.int32)
    expert_map[chosen] = torch.arange(len(chosen), dtype=torch.int32)
    return dataclasses.replace(layer, w13=taken(layer.w13), w2=taken(layer.w2), x_encode=layer.x_encode[chosen],
                               h_encode=layer.h_encode[chosen], expert_map=expert_map)  # fmt: skip
