"""Experts of vLLM's modular kernels that are one composite: routing's tables, both GEMMs, the weighted sum.

A call allocates nothing: its memory is the workspace that vLLM hands to experts. It waits for nothing and reads no
device memory on the host, and all kernels that it may choose from are loaded with the weights, so that it may be
captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vllm.model_executor.layers.fused_moe import modular_kernel
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.prepare_finalize import make_moe_prepare_and_finalize_no_dp_ep
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp4Static, kNvfp4Dynamic, kNvfp4Static
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform

from . import expert_preparation, loader
from .expert_preparation import WORDS
from .fp4_layouts import GLOBAL_SCALES, LAYOUTS, WEIGHTS

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, FusedMoEQuantConfig
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

SCHEMES = (kNvfp4Static, None), (kNvfp4Static, kNvfp4Dynamic), (kMxfp4Static, None)  # of weights and activations


class Activation(NamedTuple):
    """One of vLLM's as ours: its name, the fields of a configuration that vLLM's own kernels apply with it, and scalars
    that these have for all."""

    name: str
    fields: tuple[str, ...] = ()
    scalars: Mapping[str, float] = {}


# By the format of the weights. Of MXFP4 the one of gpt-oss, where gate and up are in turn.
ACTIVATIONS = {
    "NVFP4": {
        MoEActivation.SILU: Activation("silu", ("swiglu_limit",)),
        MoEActivation.GELU_TANH: Activation("gelu_tanh"),
        MoEActivation.SWIGLUOAI_UNINTERLEAVE: Activation("silu", ("swiglu_alpha", "swiglu_beta", "swiglu_limit")),
    },
    "MXFP4": {
        MoEActivation.SWIGLUOAI: Activation(
            "silu", scalars={"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
        ),
    },
}
IN_CALLS = ("w13", "w2", "w13_scale", "w2_scale")  # arguments that a layer has under vLLM's names
# Tokens go to ranks that have their experts, and come back, by means that experts take part in.
ALL_TO_ALL = ("use_all2all_kernels", "use_passthrough_all2all")


def composite_here(weights: str) -> str:
    """The composite of the current GPU for this format. Raises ValueError where there is none for it."""
    composites, capability = WEIGHTS[weights].composites, current_platform.get_device_capability()
    major = capability.major if capability is not None else None
    if major not in composites:
        known = ", ".join(map(str, composites))
        raise ValueError(f"{weights} experts run on compute capability {known}, this is {major}")
    return composites[major]


def refusal(composite: str, moe_config: FusedMoEConfig, weight_key: object, activation_key: object) -> str | None:
    """Why such layers cannot be computed, by the composite or by vLLM's own checks of experts, None where they can. The
    keys are vLLM's of weights and of activations."""
    parallel, weights = moe_config.moe_parallel_config, LAYOUTS[composite].weights
    activations, dtypes = ACTIVATIONS[weights], WEIGHTS[weights].tokens
    # vLLM rounds I of gpt-oss up as our method asks it to, once that is there.
    between = moe_config.intermediate_size_per_partition
    sizes = moe_config.hidden_dim, between if weights == "NVFP4" else expert_preparation.padded(between, composite)
    reasons = {
        f"activation {moe_config.activation.value} is none of {', '.join(known.value for known in activations)}":
            moe_config.activation not in activations,
        f"tokens of {moe_config.in_dtype} are none of {', '.join(dtypes)}":
            WORDS.get(moe_config.in_dtype) not in dtypes,
        "experts with biases": moe_config.has_bias and weights == "NVFP4",
        "a checkpoint in W4A16_NVFP4 has no scales of activations, which Blackwell's kernels quantise":
            composite == "moe_fp4" and activation_key is None,
        f"data parallelism, over {parallel.dp_size} ranks": parallel.dp_size > 1,
        f"an all-to-all between ranks ({parallel.all2all_backend})": not _supports(parallel),
    }  # fmt: skip
    found = next((reason for reason, applies in reasons.items() if applies), None)
    if found := found or expert_preparation.refusal(composite, *sizes):
        return found
    return Experts.is_supported_config(Experts, moe_config, weight_key, activation_key, Experts.activation_format())[1]


def _supports(parallel: FusedMoEParallelConfig) -> bool:
    return not any(getattr(parallel, name, False) for name in ALL_TO_ALL)


@functools.cache
def workspace_bytes(composite: str, dtype: torch.dtype, **dimensions: int) -> int:
    """Bytes for T, TOPK, E, H and I; vLLM asks before each call."""
    word = WORDS[dtype]
    scalars = GLOBAL_SCALES.get(composite, {})
    return loader.workspace_bytes(composite, x=word, topk_ids="i64", out=word, **scalars, **dimensions)


def install(method: FusedMoEMethodBase, layer: torch.nn.Module, parameters: Mapping[str, str | None],
            prepared: Callable[[torch.nn.Module], dict[str, torch.Tensor]]) -> None:  # fmt: skip
    """Once: a layer's ``parameters``, as vLLM loaded them, give way to arguments of ``method.composite``, or to none;
    those that are ``prepared`` beside them become parameters, too. Then the layer is computed by ``Experts``."""
    if method.moe_kernel is not None:
        raise RuntimeError("block_scaled: weights are loaded once; they cannot be loaded anew over converted ones")
    arguments = prepared(layer)
    for name, argument in parameters.items():
        replace_parameter(layer, name, None if argument is None else arguments[argument])
    # Of each expert one, so that parameters moved between ranks take them along.
    for name in (name for name in arguments if name not in parameters.values()):
        layer.register_parameter(name, torch.nn.Parameter(arguments[name], requires_grad=False))
    method.moe_quant_config = method.get_fused_moe_quant_config(layer)
    of_layer = {name: getattr(layer, name) for name in arguments if name not in IN_CALLS}
    experts = Experts(method.moe, method.moe_quant_config, method.composite, of_layer)
    experts.process_weights_after_loading(layer)
    prepare_finalize = make_moe_prepare_and_finalize_no_dp_ep(use_monolithic=False)
    method.moe_kernel = modular_kernel.FusedMoEKernel(prepare_finalize, experts)


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
        activation = ACTIVATIONS[LAYOUTS[composite].weights][moe_config.activation]
        scalars: dict[str, Any] = {"activation": activation.name, "intermediate": WORDS[moe_config.in_dtype]}
        scalars |= activation.scalars
        given = {field: getattr(moe_config, field) for field in activation.fields}
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
        return capability is not None and all(capability.major in known.composites for known in WEIGHTS.values())

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_quant_scheme(weight_key: object, activation_key: object) -> bool:
        return (weight_key, activation_key) in SCHEMES

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return any(activation in known for known in ACTIVATIONS.values())

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
