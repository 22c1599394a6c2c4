"""The experts of a layer as engines hold them in torch, as calls of one composite with weights in NVFP4 or MXFP4.

Tokens stay in 16 bits on Hopper (``moe_bf16_nvfp4``, ``moe_bf16_mxfp4``) and are quantised elsewhere (``moe_fp4``,
``moe_mxfp8_mxfp4``). Weights are prepared once, on the device where they lie; a call reads no device memory on the
host, and may be captured and compiled.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

from . import loader, nvfp4, ops
from .expert_preparation import WORDS, Mxfp4, Nvfp4, prepare
from .fp4_layouts import GLOBAL_SCALES, LAYOUTS, WEIGHTS

LARGEST = 6 * 448  # times a decode scale, the largest value
SMALLEST_AMAX = 1e-8
ONE_TYPE = ("moe_bf16_mxfp4",)  # of results, so that their type is not asked for


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
        """x [T, H] in bf16 or, of NVFP4, f16, experts [T, TOPK] in int32 or int64 and their weights -> [T, H], as x.

        expert_map: int32 [G], the place of each id among these experts; one outside of them adds nothing. Raises
        ValueError for other types of tokens, and what the loader raises.
        """
        known = [dtype for dtype, word in WORDS.items() if word in WEIGHTS[LAYOUTS[self.composite].weights].tokens]
        if x.dtype not in known:
            names = (str(dtype).removeprefix("torch.") for dtype in known)
            raise ValueError(f"tokens expect {' or '.join(names)}, got {x.dtype}")
        given: dict[str, Any] = {**self.buffers, "x": x, "topk_ids": topk_ids, "topk_weights": topk_weights.float()}
        given |= self.scalars
        if expert_map is not None:
            given["expert_map"] = expert_map
        if not self.x_decode:
            decode = (x.abs().amax().float().clamp(min=SMALLEST_AMAX) / LARGEST).expand_as(self.buffers["w2_alpha"])
            given["x_global_scale"] = decode.contiguous()
            given |= {name: given[name] * decode for name in ("w13_alpha", "w13_up_alpha") if name in given}
        if self.composite not in ONE_TYPE:
            given["out"] = WORDS[x.dtype]
        return getattr(ops, self.composite).functional(**given)


def composite_of(device: torch.device, weights: str = "NVFP4") -> str:
    """The composite of experts on ``device``; of a CPU that of ``LOADER_EMULATED_ARCH``, or of the newest arch.

    Raises NotImplementedError for a device that no kernel is for.
    """
    composites = WEIGHTS[weights].composites
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
    else:
        named = os.environ.get("LOADER_EMULATED_ARCH")
        major = loader.arch.parse(named).major if named else max(composites)
    if major not in composites:
        raise NotImplementedError(f"experts in {weights} run on devices of compute capability {sorted(composites)}, "
                                  f"{device} has {major}")  # fmt: skip
    return composites[major]


def of_nvfp4(
    gate_up: Nvfp4,
    down: Nvfp4,
    input_decode: torch.Tensor | None = None,
    between_decode: torch.Tensor | None = None,
    **scalars: Any,
) -> Experts:
    """Experts of a checkpoint in NVFP4.

    input_decode, between_decode: scales of activations, as ``prepare`` takes them; without the first, that of tokens is
    measured in each call. scalars: of the composite, as ``activation``, ``swiglu_limit``.

    Raises ValueError where sizes do not fit one another or the kernels.
    """
    composite = composite_of(gate_up.packed.device)
    buffers = prepare(composite, gate_up, down, input_decode, between_decode)
    kind = GLOBAL_SCALES.get(composite, {})
    return Experts(composite, buffers, {**scalars, **kind}, x_decode=not kind or input_decode is not None)


def of_mxfp4(gate_up: Mxfp4, down: Mxfp4, alternate: bool = False, **scalars: Any) -> Experts:
    """Experts of a checkpoint in MXFP4, as gpt-oss, whose rows of gate and up alternate.

    scalars: of the composite, as ``activation``, and ``swiglu_alpha``, ``swiglu_beta``, ``swiglu_limit``. Raises
    ValueError as ``prepare`` does.
    """
    composite = composite_of(gate_up.packed.device, "MXFP4")
    return Experts(composite, prepare(composite, gate_up, down, alternate=alternate), scalars)


def quantized(matrices: torch.Tensor) -> Nvfp4:
    """Matrices [E, N, K] in 16 or 32 bits, K a multiple of 16, rounded to NVFP4 with a decode scale for each."""
    decode = matrices.abs().amax(dim=(1, 2)).float().clamp(min=SMALLEST_AMAX) / LARGEST
    each = [nvfp4.quantize(matrix, scale, linear=True) for matrix, scale in zip(matrices, 1 / decode, strict=True)]
    packed, scales = (torch.stack(parts) for parts in zip(*each, strict=True))
    return Nvfp4(packed, scales, decode)
