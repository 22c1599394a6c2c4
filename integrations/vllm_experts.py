"""Experts of vLLM's modular kernels that are one composite: routing's tables, both GEMMs, the weighted sum.

A call allocates nothing: its memory is the workspace that vLLM hands to experts. It waits for nothing and reads no
device memory on the host, and all kernels that it may choose from are loaded with the weights, so that it may be
captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.fused_moe import modular_kernel
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static
from vllm.platforms import current_platform

from . import expert_preparation, loader
from .fp4_layouts import GLOBAL_SCALES, WEIGHTS

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, FusedMoEQuantConfig

COMPOSITES = WEIGHTS["NVFP4"].composites
DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}
# vLLM's activation -> ours, and the fields of its configuration that vLLM's own kernels apply with it.
ACTIVATIONS = {
    MoEActivation.SILU: ("silu", ("swiglu_limit",)),
    MoEActivation.GELU_TANH: ("gelu_tanh", ()),
    MoEActivation.SWIGLUOAI_UNINTERLEAVE: ("silu", ("swiglu_alpha", "swiglu_beta", "swiglu_limit")),
}
# Tokens go to ranks that have their experts, and come back, by means that experts take part in.
ALL_TO_ALL = ("use_all2all_kernels", "use_passthrough_all2all")


def composite_here() -> str:
    """The composite of the current GPU. Raises ValueError where there is none for it."""
    capability = current_platform.get_device_capability()
    major = capability.major if capability is not None else None
    if major not in COMPOSITES:
        raise ValueError(f"NVFP4 experts run on compute capability {', '.join(map(str, COMPOSITES))}, this is {major}")
    return COMPOSITES[major]


def refusal(composite: str, moe_config: FusedMoEConfig, quantised: bool) -> str | None:
    """Why the composite cannot compute such layers, None where it can. ``quantised``: the checkpoint has scales of
    activations."""
    parallel = moe_config.moe_parallel_config
    reasons = {
        f"activation {moe_config.activation.value} is none of {', '.join(known.value for known in ACTIVATIONS)}":
            moe_config.activation not in ACTIVATIONS,
        f"tokens of {moe_config.in_dtype} are neither bfloat16 nor float16": moe_config.in_dtype not in DTYPES,
        "experts with biases": moe_config.has_bias,
        "a checkpoint in W4A16_NVFP4 has no scales of activations, which Blackwell's kernels quantise":
            composite == "moe_fp4" and not quantised,
        f"data parallelism, over {parallel.dp_size} ranks": parallel.dp_size > 1,
        f"an all-to-all between ranks ({parallel.all2all_backend})": not _supports(parallel),
    }  # fmt: skip
    found = next((reason for reason, applies in reasons.items() if applies), None)
    sizes = moe_config.hidden_dim, moe_config.intermediate_size_per_partition
    return found or expert_preparation.refusal(composite, *sizes)


def _supports(parallel: FusedMoEParallelConfig) -> bool:
    return not any(getattr(parallel, name, False) for name in ALL_TO_ALL)


@functools.cache
def workspace_bytes(composite: str, dtype: torch.dtype, **dimensions: int) -> int:
    """Bytes for T, TOPK, E, H and I; vLLM asks before each call."""
    word = DTYPES[dtype]
    scalars = GLOBAL_SCALES.get(composite, {})
    return loader.workspace_bytes(composite, x=word, topk_ids="i64", out=word, **scalars, **dimensions)


class Experts(modular_kernel.FusedMoEExpertsModular):
    """``arguments``: tensors of the layer by argument of the composite, but for w13, w2 and their scales."""

    def __init__(
        self,
        moe_config: FusedMoEConfig,
        quant_config: FusedMoEQuantConfig,
        composite: str,
        arguments: dict[str, torch.Tensor],
    ) -> None:
        super().__init__(moe_config=moe_config, quant_config=quant_config)
        self.composite = composite
        activation, fields = ACTIVATIONS[moe_config.activation]
        scalars: dict[str, Any] = {"activation": activation, "intermediate": DTYPES[moe_config.in_dtype]}
        given = {field: getattr(moe_config, field) for field in fields}
        scalars |= {field: float(value) for field, value in given.items() if value is not None}
        self.constants = {**arguments, **scalars, **GLOBAL_SCALES.get(composite, {})}

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Loads all that the composite may choose from: which kernels follows from the number of tokens."""
        self.constants |= {"w13_scale": layer.w13_weight_scale, "w2_scale": layer.w2_weight_scale}
        if layer.w2_weight.is_cuda:
            loader.preload(self.composite, device=layer.w2_weight.device.index)

    @property
    def expects_unquantized_inputs(self) -> bool:
        return True

    @staticmethod
    def activation_format() -> modular_kernel.FusedMoEActivationFormat:
        return modular_kernel.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_current_device() -> bool:
        capability = current_platform.get_device_capability()
        return capability is not None and capability.major in COMPOSITES

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_quant_scheme(weight_key: object, activation_key: object) -> bool:
        return weight_key == kNvfp4Static and activation_key in (None, kNvfp4Dynamic)

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return activation in ACTIVATIONS

    @staticmethod
    def _supports_parallel_config(moe_parallel_config: FusedMoEParallelConfig) -> bool:
        return _supports(moe_parallel_config)

    def workspace_shapes(
        self,
        M: int,
        N: int,
        K: int,
        topk: int,
        global_num_experts: int,
        local_num_experts: int,
        expert_tokens_meta: Any,
        activation: MoEActivation,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """All of ours is the second: vLLM may lay the output over the first."""
        dtype = self.moe_config.in_dtype
        size = workspace_bytes(self.composite, dtype, T=M, TOPK=topk, E=local_num_experts, H=K, I=N // 2)
        return (0,), (-(-size // dtype.itemsize),), (M, K)

    def finalize_weight_and_reduce_impl(self) -> TopKWeightAndReduceNoOP:
        return TopKWeightAndReduceNoOP()

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: Any,
        apply_router_weight_on_input: bool,
    ) -> None:
        """hidden_states [T, H] -> output [T, H], the weighted sum over a rank's experts of each token."""
        # vLLM multiplies hidden_states itself where the weights are for these.
        weights = torch.ones_like(topk_weights) if apply_router_weight_on_input else topk_weights
        loader.launch(
            self.composite,
            x=hidden_states,
            topk_ids=topk_ids,
            topk_weights=weights.float(),
            w13=w1,
            w2=w2,
            expert_map=expert_map,
            out=output,
            workspace=workspace2.view(torch.uint8),
            **self.constants,
        )
