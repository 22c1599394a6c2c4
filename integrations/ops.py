"""The kernels as torch custom ops, ``torch.ops.block_scaled.<kernel>``, so that torch.compile traces calls of them.

An op takes the buffers of the kernel in the loader's order, outputs last, and its scalars by name. It writes its
outputs and returns nothing; shapes and types are checked by the loader at the call. The scalar `prefetch` is left out:
what torch.compile launches before an op, nobody can promise.
"""

from __future__ import annotations

import torch

import loader

NAMESPACE = "block_scaled"


def _register(family: str, inputs: str, outputs: str, scalars: str = "") -> torch.library.CustomOpDef:
    """An op whose arguments are those of ``family``; ``scalars`` as in a schema of torch."""
    mutated = outputs.split()
    names = inputs.split() + mutated
    tensors = [f"Tensor {name}" for name in inputs.split()]
    tensors += [f"Tensor({alias}!) {name}" for alias, name in zip("abcdef", mutated, strict=False)]
    schema = f"({', '.join(tensors)}{', *, ' + scalars if scalars else ''}) -> ()"

    def launch(*buffers: torch.Tensor, **values: object) -> None:
        loader.launch(family, **dict(zip(names, buffers, strict=True)), **values)

    op = torch.library.custom_op(f"{NAMESPACE}::{family}", launch, mutates_args=mutated, schema=schema)
    op.register_fake(lambda *buffers, **values: None)
    return op


_QUANTIZE = 'str global_scale_kind, str division="approximate"'
_LAYOUT = ', str scale_layout="blocks_128x4"'
_SWIGLU = (
    ', str rounding="activation_type", float swiglu_alpha=1.0, float swiglu_beta=0.0,'
    " float swiglu_limit=3.4028234663852886e+38"
)

amax = _register("amax", "x", "partial")
nvfp4_global_scale = _register(
    "nvfp4_global_scale", "partial weight_scale", "encode_scale alpha", "float amax_floor=1e-8"
)
nvfp4_quantize = _register("nvfp4_quantize", "x global_scale", "out out_scale", _QUANTIZE + _LAYOUT)
nvfp4_quantize_grouped = _register(
    "nvfp4_quantize_grouped", "x global_scale expert_offsets scale_offsets", "out out_scale", _QUANTIZE + _LAYOUT
)
nvfp4_quantize_masked = _register("nvfp4_quantize_masked", "x global_scale mask", "out out_scale", _QUANTIZE)
silu_mul_nvfp4_quantize = _register(
    "silu_mul_nvfp4_quantize",
    "x row_weight global_scale expert_offsets scale_offsets",
    "out out_scale",
    _QUANTIZE + _SWIGLU,
)
silu_mul_nvfp4_quantize_masked = _register(
    "silu_mul_nvfp4_quantize_masked", "x global_scale mask", "out out_scale", _QUANTIZE + _SWIGLU
)
moe_route = _register(
    "moe_route", "topk_ids", "expert_offsets scale_offsets row_of_slot slot_of_row", "int first_expert=0"
)
moe_combine = _register("moe_combine", "rows row_of_slot topk_weights", "out", 'str weighting="combine"')
grouped_fp4 = _register("grouped_fp4", "a b a_scale b_scale alpha expert_offsets scale_offsets", "out")
grouped_fp4_swiglu = _register(
    "grouped_fp4_swiglu",
    "a b a_scale b_scale alpha expert_offsets scale_offsets row_weight global_scale",
    "out out_scale",
    _QUANTIZE + ", str intermediate" + _SWIGLU,
)
