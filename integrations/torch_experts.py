"""The experts of a layer as engines hold them in torch, as calls of one composite with weights in NVFP4.

Tokens stay in 16 bits on Hopper (``moe_bf16_nvfp4``) and are quantised elsewhere (``moe_fp4``). Weights are prepared
once, on the device where they lie; a call reads no device memory on the host, and may be captured and compiled.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import pad

from . import loader, nvfp4, ops
from .nvfp4_layouts import LAYOUTS, Layout
from .weight_fragments import to_fragments

LARGEST = 6 * 448  # times a decode scale, the largest value
SMALLEST_AMAX = 1e-8
COMPOSITES = {9: "moe_bf16_nvfp4", 10: "moe_fp4", 12: "moe_fp4"}  # by the major version of a device
NEWEST = max(COMPOSITES)
WORDS = {torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclasses.dataclass(frozen=True)
class Nvfp4:
    """Matrices of E experts in NVFP4, scales in plain order: gate above up, [E, 2 I, H], or down, [E, H, I].

    packed: uint8 [E, N, K / 2], even k in the low nibble. scales: [E, N, K / 16], float8_e4m3fn or its bytes. decode:
    float32, by which results are multiplied: [E], or of gate and up [E, 2].
    """

    packed: torch.Tensor
    scales: torch.Tensor
    decode: torch.Tensor

    def __post_init__(self) -> None:
        experts, n, width = self.packed.shape
        for name, tensor, dtypes, shapes in (
            ("packed", self.packed, (torch.uint8,), [(experts, n, width)]),
            ("scales", self.scales, (torch.uint8, nvfp4.SCALE), [(experts, n, width * 2 // nvfp4.GROUP)]),
            ("decode", self.decode, (torch.float32,), [(experts,), (experts, 2)]),
        ):
            if tensor.dtype not in dtypes or tuple(tensor.shape) not in shapes:
                raise ValueError(f"{name} of NVFP4 weights expects {dtypes[-1]} {' or '.join(map(str, shapes))}, got "
                                 f"{tensor.dtype} {tuple(tensor.shape)}")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experts:
    """``composite`` with its weights: a function of tokens and their routing.

    buffers, scalars: of the composite, by name. x_decode: whether the decode scale of tokens is among the buffers and
    in ``w13_alpha``; where it is not, it is measured in each call.
    """

    composite: str
    buffers: Mapping[str, torch.Tensor]
    scalars: Mapping[str, Any]
    x_decode: bool = True

    def __call__(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        expert_map: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [T, H] in bf16 or f16, experts [T, TOPK] in int32 or int64 and their weights -> [T, H], as x.

        expert_map: int32 [G], the place of each id among these experts; one outside of them adds nothing. Raises
        ValueError for other types of tokens, and what the loader raises.
        """
        if x.dtype not in WORDS:
            raise ValueError(f"tokens expect bfloat16 or float16, got {x.dtype}")
        given = {**self.buffers, "x": x, "topk_ids": topk_ids, "topk_weights": topk_weights.float()}
        given |= self.scalars
        if expert_map is not None:
            given["expert_map"] = expert_map
        if not self.x_decode:
            decode = (x.abs().amax().float().clamp(min=SMALLEST_AMAX) / LARGEST).expand_as(self.buffers["w2_alpha"])
            given["x_global_scale"] = decode.contiguous()
            given |= {name: given[name] * decode for name in ("w13_alpha", "w13_up_alpha")}
        return getattr(ops, self.composite).functional(**given, out=WORDS[x.dtype])


def composite_of(device: torch.device) -> str:
    """The composite of experts on ``device``; of a CPU that of ``LOADER_EMULATED_ARCH``, or what runs on all archs.

    Raises NotImplementedError for a device that no kernel is for.
    """
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
    else:
        named = os.environ.get("LOADER_EMULATED_ARCH")
        major = loader.arch.parse(named).major if named else NEWEST
    if major not in COMPOSITES:
        raise NotImplementedError(f"experts in NVFP4 run on devices of compute capability {sorted(COMPOSITES)}, "
                                  f"{device} has {major}")  # fmt: skip
    return COMPOSITES[major]


def padded(between: int, composite: str) -> int:
    """I with the zeros that the composite asks for behind it."""
    unit = LAYOUTS[composite].intermediate
    return -(-between // unit) * unit


def of_nvfp4(
    gate_up: Nvfp4,
    down: Nvfp4,
    input_decode: torch.Tensor | None = None,
    between_decode: torch.Tensor | None = None,
    **scalars: Any,
) -> Experts:
    """Experts of a checkpoint in NVFP4.

    input_decode, between_decode: float32 [E], amax / 2688 of the tokens and of what ``down`` multiplies, as calibrated;
    where tokens stay in 16 bits they are not used. Without the first the scale of tokens is measured in each call,
    without the other it is 1, a range of 2688. scalars: of the composite, as ``activation``, ``swiglu_limit``.

    Raises ValueError where sizes do not fit one another or the kernels.
    """
    composite = composite_of(gate_up.packed.device)
    layout, (experts, rows, width) = LAYOUTS[composite], gate_up.packed.shape
    hidden, between = 2 * width, rows // 2
    if down.packed.shape != (experts, hidden, between // 2) or rows % 2 or hidden % layout.inputs:
        raise ValueError(f"{composite} takes gate and up [E, 2 I, H / 2] and down [E, H, I / 2], H % {layout.inputs} "
                         f"== 0, got {list(gate_up.packed.shape)} and {list(down.packed.shape)}")  # fmt: skip
    alphas = gate_up.decode.reshape(experts, -1)
    alpha, up_alpha = alphas[:, 0].contiguous(), alphas[:, -1].contiguous()
    size = padded(between, composite)
    buffers = {
        "w13": _stored(_in_turn(gate_up.packed, layout.turn, size), layout),
        "w13_scale": _blocks(_in_turn(gate_up.scales.view(torch.uint8), layout.turn, size)),
        "w2": _stored(pad(down.packed, (0, (size - between) // 2)), layout),
        "w2_scale": _blocks(pad(down.scales.view(torch.uint8), (0, (size - between) // nvfp4.GROUP))),
    } | {"w13_alpha": alpha, "w13_up_alpha": up_alpha, "w2_alpha": down.decode}
    if composite != "moe_fp4":
        return Experts(composite, buffers, scalars)
    between_decode = torch.ones_like(alpha) if between_decode is None else between_decode
    buffers |= {"h_global_scale": between_decode, "w2_alpha": down.decode * between_decode}
    if input_decode is not None:
        buffers |= {"x_global_scale": input_decode, "w13_alpha": alpha * input_decode,
                    "w13_up_alpha": up_alpha * input_decode}  # fmt: skip
    return Experts(composite, buffers, {**scalars, "global_scale_kind": "decode"}, input_decode is not None)


def quantized(matrices: torch.Tensor) -> Nvfp4:
    """Matrices [E, N, K] in 16 or 32 bits, K a multiple of 16, rounded to NVFP4 with a decode scale for each."""
    decode = matrices.abs().amax(dim=(1, 2)).float().clamp(min=SMALLEST_AMAX) / LARGEST
    each = [nvfp4.quantize(matrix, scale, linear=True) for matrix, scale in zip(matrices, 1 / decode, strict=True)]
    packed, scales = (torch.stack(parts) for parts in zip(*each, strict=True))
    return Nvfp4(packed, scales, decode)


def _in_turn(rows: torch.Tensor, turn: int, size: int) -> torch.Tensor:
    """[E, 2 I, C], gate above up, as ``turn`` rows of gate and as many of up in turn, I padded to ``size``."""
    halves = rows.unflatten(1, (2, rows.shape[1] // 2))
    halves = pad(halves, (0, 0, 0, size - halves.shape[2]))
    return halves.unflatten(2, (size // turn, turn)).transpose(1, 2).flatten(1, 3).contiguous()


def _stored(packed: torch.Tensor, layout: Layout) -> torch.Tensor:
    return torch.stack([to_fragments(matrix) for matrix in packed]) if layout.fragments else packed


def _blocks(scales: torch.Tensor) -> torch.Tensor:
    return nvfp4.to_blocks(scales).view(nvfp4.SCALE)
