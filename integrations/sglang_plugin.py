"""A plug-in of SGLang: its NVFP4 and MXFP4 MoE layers by one call of these kernels, for ``--moe-runner-backend
block_scaled``.

SGLang calls ``register`` in each of its processes, by the entry point ``sglang.srt.plugins``. That adds a name to the
choices of the option and a runner to its registry, and stands around methods of ModelOpt's NVFP4 layers and of those in
MXFP4: the former refuse Hopper for every runner but Marlin, and both know no runner that is not their own. Where the
option names another runner, they are called as they are. Weights are loaded, split over ranks and mapped to local
experts by SGLang.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.arg_groups.choices import add_moe_runner_backend_choices
from sglang.srt.layers.moe.moe_runner.base import DispatchMoeRunnerCore, MoeQuantInfo, MoeRunnerConfig
from sglang.srt.layers.moe.moe_runner.runner import MoeRunner, register_moe_runner_core
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.topk import TopKOutputChecker
from sglang.srt.layers.moe.utils import get_moe_a2a_backend, get_moe_runner_backend, resolve_moe_runner_backend
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_exec

from .expert_preparation import Mxfp4, Nvfp4, padded
from .torch_experts import Experts, composite_of, of_mxfp4, of_nvfp4

NAME = "block_scaled"
METHOD = "sglang.srt.layers.quantization.modelopt_quant.ModelOptNvFp4FusedMoEMethod"
MXFP4_METHOD = "sglang.srt.layers.quantization.mxfp4.Mxfp4MoEMethod"
# What the method's own __init__ leaves behind where neither LoRA nor a runner of FlashInfer's is asked for.
ATTRIBUTES = {
    "_lora_marlin": False, "enable_flashinfer_trtllm_moe": False, "use_flashinfer_trtllm_weight_layout": False,
}  # fmt: skip
EXPERTS = "block_scaled_experts"  # of a layer, once its weights are loaded
# Of a runner's configuration, what is computed in one way alone.
WANTED = {"activation": "silu", "is_gated": True, "no_combine": False}
ELSEWHERE = {"enable_eplb": False, "moe_a2a_backend": "none"}  # and of the server's


def register() -> None:
    """Offer the runner; nothing changes for who does not ask for it by name."""
    add_moe_runner_backend_choices([NAME])
    register_moe_runner_core(NAME, RunnerCore)
    for owner, methods in (
        (METHOD, {"__init__": initialize, "process_weights_after_loading": process, "apply": apply}),
        (MXFP4_METHOD, {"create_weights": create_mxfp4, "create_moe_runner": create_runner,
                        "process_weights_after_loading": process_mxfp4, "apply": apply}),
    ):  # fmt: skip
        for method, around in methods.items():
            HookRegistry.register(f"{owner}.{method}", around, HookType.AROUND)


@dataclasses.dataclass
class QuantInfo(MoeQuantInfo):
    """What the layer hands to the runner."""

    experts: Experts


class RunnerCore(DispatchMoeRunnerCore):
    """Tokens of the standard dispatcher, whose ids are local, -1 for experts of other ranks.

    Raises NotImplementedError, when the model is built, for layers that compute something else.
    """

    def __init__(self, config: MoeRunnerConfig) -> None:
        super().__init__(config)
        found = {name: getattr(config, name) for name in WANTED} | {
            "enable_eplb": get_exec().moe.enable_eplb, "moe_a2a_backend": get_moe_a2a_backend().value}  # fmt: skip
        for name, wanted in (WANTED | ELSEWHERE).items():
            if found[name] != wanted:
                raise NotImplementedError(f"--moe-runner-backend {NAME}: {name} is {found[name]!r}, "
                                          f"only {wanted!r} is there")  # fmt: skip

    @property
    def runner_backend(self) -> Any:
        return resolve_moe_runner_backend(NAME)

    def run_from_dispatch(
        self, dispatch_output: Any, quant_info: QuantInfo, runner_config: MoeRunnerConfig, hooks: Any = None
    ) -> StandardCombineInput:
        """Hidden states [T, H] in bf16 or f16 -> the sum over the local experts, as a tensor of its own."""
        if hooks is not None:
            raise NotImplementedError(f"--moe-runner-backend {NAME}: LoRA of experts is not there")
        topk = dispatch_output.topk_output
        if not TopKOutputChecker.format_is_standard(topk):
            raise NotImplementedError(f"--moe-runner-backend {NAME}: experts of tokens come as {type(topk).__name__}")
        out = quant_info.experts(dispatch_output.hidden_states, topk.topk_ids, topk.topk_weights)
        return StandardCombineInput(hidden_states=out)


def initialize(original: Callable[..., None], self: Any, quant_config: Any) -> None:
    """``__init__`` of the method, without its check of the device: the kernels are there for Hopper, too."""
    if not asked(self):
        original(self, quant_config)
        return
    vars(self).update(ATTRIBUTES, quant_config=quant_config, _cache_permute_indices={})


def process(original: Callable[..., None], self: Any, layer: torch.nn.Module) -> None:
    """``process_weights_after_loading``: the weights as the kernels have them take the place of the checkpoint's."""
    if not asked(self):
        original(self, layer)
        return
    gate_up, down = (Nvfp4(getattr(layer, f"{name}_weight").data, getattr(layer, f"{name}_weight_scale").data,
                           getattr(layer, f"{name}_weight_scale_2").data) for name in ("w13", "w2"))  # fmt: skip
    decode = [local(layer, scale.data) for scale in (layer.w13_input_scale, layer.w2_input_scale)]
    install(layer, of_nvfp4(gate_up, down, *decode, **scalars(layer.moe_runner_config)))
    for name in ("w13", "w2"):
        setattr(layer, f"{name}_blockscale_swizzled", getattr(layer, f"{name}_weight_scale"))  # frees what it was
    layer.dispatcher.set_quant_config({"input_global_scale": None})  # tokens are dispatched as they are


def create_mxfp4(
    original: Callable[..., None],
    self: Any,
    layer: torch.nn.Module,
    num_experts: int,
    hidden_size: int,
    intermediate_size_per_partition: int,
    params_dtype: torch.dtype,
    with_bias: bool = False,
    **extra_weight_attrs: Any,
) -> None:
    """``create_weights``: a rank's I as the kernels take it, which holds what SGLang cuts between scales, too."""
    if asked(self):
        composite = composite_of(torch.get_default_device(), "MXFP4")
        intermediate_size_per_partition = padded(intermediate_size_per_partition, composite)
    original(self, layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, with_bias,
             **extra_weight_attrs)  # fmt: skip


def create_runner(
    original: Callable[..., None], self: Any, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig
) -> None:
    """``create_moe_runner``, which knows SGLang's own alone."""
    if not asked(self):
        original(self, layer, moe_runner_config)
        return
    self.moe_runner_config = moe_runner_config
    self.runner = MoeRunner(get_moe_runner_backend(), moe_runner_config)


def process_mxfp4(original: Callable[..., None], self: Any, layer: torch.nn.Module) -> None:
    """``process_weights_after_loading``, of MXFP4."""
    if not asked(self):
        original(self, layer)
        return
    suffixes, config = ("weight", "weight_scale", "weight_bias"), layer.moe_runner_config
    weights = (Mxfp4(*(getattr(layer, f"{name}_{suffix}").data for suffix in suffixes)) for name in ("w13", "w2"))
    # The flag is set for layers of halves, too: SGLang looks at it where there is an alpha.
    alternate = config.gemm1_alpha is not None and config.gate_up_interleaved
    install(layer, of_mxfp4(*weights, alternate=alternate, **scalars(config)))
    for name in ("w13", "w2"):
        getattr(layer, f"{name}_weight_bias").data = getattr(layer, EXPERTS).buffers[f"{name}_bias"]


def install(layer: torch.nn.Module, experts: Experts) -> None:
    """Prepared weights take the place of those that were loaded."""
    setattr(layer, EXPERTS, experts)
    for name in ("w13", "w2"):
        getattr(layer, f"{name}_weight").data = experts.buffers[name]
        getattr(layer, f"{name}_weight_scale").data = experts.buffers[f"{name}_scale"]


def apply(original: Callable[..., Any], self: Any, layer: torch.nn.Module, dispatch_output: Any) -> Any:
    """``apply``, by the runner that ``create_moe_runner`` has made of ``RunnerCore``."""
    if not asked(self):
        return original(self, layer, dispatch_output)
    return self.runner.run(dispatch_output, QuantInfo(getattr(layer, EXPERTS)))


def asked(method: Any) -> bool:
    """Whether a layer is to run here: the option names the runner, and the method is one of the two itself."""
    backend = getattr(method, "_moe_runner_backend", None) or get_moe_runner_backend()
    names = [name.rpartition(".")[2] for name in (METHOD, MXFP4_METHOD)]
    return backend.value == NAME and type(method).__name__ in names


def local(layer: torch.nn.Module, scale: torch.Tensor) -> torch.Tensor:
    """Of decode scales of all experts, [G] or of gate and up [G, 2], those of the rank."""
    begin = layer.moe_ep_rank * layer.num_local_experts if len(scale) != layer.num_local_experts else 0
    return scale[begin : begin + layer.num_local_experts]


def scalars(config: MoeRunnerConfig) -> dict[str, Any]:
    """SwiGLU's of the composite: with an alpha, up has 1 added unless a beta is given."""
    given: dict[str, Any] = {"weighting": "input" if config.apply_router_weight_on_input else "combine"}
    if (limit := config.gemm1_clamp_limit or config.swiglu_limit) is not None:
        given["swiglu_limit"] = float(limit)
    if config.gemm1_alpha is not None:
        given["swiglu_alpha"] = float(config.gemm1_alpha)
        given["swiglu_beta"] = 1.0 if config.gemm1_beta is None else float(config.gemm1_beta)
    return given
