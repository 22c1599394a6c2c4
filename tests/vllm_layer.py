"""An NVFP4 layer of experts as vLLM has loaded it, and a call as vLLM makes it, over stand-ins for its modules."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import moe_blocks
import moe_fragments
import moe_reference as moe
import mxfp4_layer
import torch
from moe_reference import AnyLayer, Layer, Settings, Tokens, Weights

ACTIVATION = "vllm.model_executor.layers.fused_moe.activation"
ARCHS = {"90a": 9, "100a": 10, "120a": 12}


def drawn(generator: torch.Generator, arch: str, experts: int, hidden: int, between: int, settings: Settings,
          up_alpha: bool = False) -> tuple[AnyLayer, Layer]:  # fmt: skip
    """A layer of the reference, and the numbers of its checkpoint: on Hopper tokens are not quantised."""
    plain = moe.random_layer(generator, experts, hidden, between, settings)
    factor = 0.5 + torch.rand(experts, generator=generator, device=generator.device)
    alphas = (plain.w13.alpha * plain.x_encode, plain.w2.alpha * plain.h_encode * factor)
    up = alphas[0] * factor if up_alpha else None
    stored = dataclasses.replace(plain, w13=dataclasses.replace(plain.w13, alpha=alphas[0], up_alpha=up),
                                 w2=dataclasses.replace(plain.w2, alpha=alphas[1]))  # fmt: skip
    if arch == "90a":
        return moe_fragments.Layer(stored), stored
    x_scale, h_scale = 1 / plain.x_encode, 1 / plain.h_encode
    w13 = dataclasses.replace(stored.w13, alpha=alphas[0] * x_scale, up_alpha=None if up is None else up * x_scale)
    decoded = dataclasses.replace(settings, global_scale_kind="decode")
    w2 = dataclasses.replace(stored.w2, alpha=alphas[1] * h_scale)
    return dataclasses.replace(stored, w13=w13, w2=w2, settings=decoded), stored


def parallel(**changed: Any) -> types.SimpleNamespace:
    """As vLLM describes what ranks there are."""
    known = {"dp_size": 1, "use_all2all_kernels": False, "all2all_backend": "allgather_reducescatter"}
    return types.SimpleNamespace(**{**known, **changed})


def config(module: types.ModuleType, hidden: int, between: int, **changed: Any) -> types.SimpleNamespace:
    """``FusedMoEConfig`` of layers. ``module``: the stand-in for ``activation``."""
    fields = {
        "activation": module.MoEActivation.SILU, "in_dtype": torch.bfloat16, "has_bias": False,
        "moe_parallel_config": parallel(), "hidden_dim": hidden, "intermediate_size_per_partition": between,
        "swiglu_limit": None, "swiglu_alpha": None, "swiglu_beta": None,
    }  # fmt: skip
    return types.SimpleNamespace(**{**fields, **changed})


def patched(vllm: dict[str, types.ModuleType], arch: str) -> None:
    """What the plug-in goes through of vLLM, as it behaves."""
    capability = types.SimpleNamespace(major=ARCHS[arch], minor=0)
    vllm["experts"].current_platform.get_device_capability = lambda: capability
    vllm["experts"].Experts.is_supported_config = staticmethod(lambda *_: (True, None))
    vllm["experts"].make_moe_prepare_and_finalize_no_dp_ep = lambda use_monolithic: None
    vllm["mxfp4"].mxfp4_w4a16_moe_quant_config = lambda **given: types.SimpleNamespace(**given)
    vllm["moe"].nvfp4_w4a16_moe_quant_config = lambda **given: types.SimpleNamespace(**given)

    kernel = vllm["experts"].modular_kernel.FusedMoEKernel
    kernel.fused_experts = property(lambda self: vars(self)["fused_experts"])

    def replace(layer: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is None:
            setattr(layer, name, None)
        else:
            getattr(layer, name).data = tensor

    vllm["experts"].replace_parameter = replace


def loaded(layer: Layer) -> torch.nn.Module:
    """The layer's parameters by the names and in the shapes that ModelOpt's method gives them: all of gate before all
    of up; global scales multiply what is dequantised."""
    module = torch.nn.Module()
    input_scales = {"w13": 1 / layer.x_encode, "w2": 1 / layer.h_encode}
    for name, weights in (("w13", layer.w13), ("w2", layer.w2)):
        values, scale = ((_halves(rows) if name == "w13" else rows) for rows in (weights.packed, weights.groups))
        gate, up = weights.alpha, weights.alpha if weights.up_alpha is None else weights.up_alpha
        numbers = [torch.stack([gate, up], dim=1), input_scales[name][:, None].repeat(1, 2)]
        if name == "w2":
            numbers = [weights.alpha, input_scales[name]]
        suffixes = ("weight", "weight_scale", "weight_scale_2", "input_scale")
        for suffix, tensor in zip(suffixes, (values, scale.view(torch.float8_e4m3fn), *numbers), strict=True):
            module.register_parameter(f"{name}_{suffix}", torch.nn.Parameter(tensor.clone(), requires_grad=False))
    return module


def gpt_oss(vllm: dict[str, types.ModuleType], layer: moe_blocks.Layer, sizes: tuple[int, int]) -> Any:
    """Method and layer as vLLM builds them for H and a rank's I of ``sizes``, loaded and converted: parameters have the
    sizes that the method asks for, zeros behind what is loaded, and biases are bf16."""
    moe_config = config(vllm[ACTIVATION], *sizes, has_bias=True,
                        activation=vllm[ACTIVATION].MoEActivation.SWIGLUOAI)  # fmt: skip
    made = vllm["mxfp4"].GptOssExperts(moe_config)
    hidden, between = made.maybe_roundup_sizes(*sizes, torch.bfloat16, moe_config.moe_parallel_config)
    module, experts = torch.nn.Module(), layer.shape[0]
    for name, weights, n, k in zip(("w13", "w2"), mxfp4_layer.engine(layer), (2 * between, hidden), (hidden, between),
                                    strict=True):  # fmt: skip
        for suffix, stored, *shape in (("weight", weights.packed, n, k // 2), ("bias", weights.bias.bfloat16(), n),
                                       ("weight_scale", weights.scales, n, k // 32)):  # fmt: skip
            tensor = stored.new_zeros(experts, *shape)
            tensor[tuple(map(slice, stored.shape))] = stored
            module.register_parameter(f"{name}_{suffix}", torch.nn.Parameter(tensor, requires_grad=False))
    made.process_weights_after_loading(module)
    return made, module


def _halves(rows: torch.Tensor) -> torch.Tensor:
    """[E, 2 I, K] in turn as all of gate before all of up."""
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1)


def part(weights: Weights, rows: slice, columns: slice) -> Weights:
    """Some rows, and some columns in units of 16 values that share a scale."""
    values = slice(8 * columns.start, 8 * columns.stop) if columns.stop else slice(None)
    return Weights(weights.packed[:, rows, values].contiguous(), weights.groups[:, rows, columns].contiguous(),
                   weights.alpha, weights.bias, weights.up_alpha)  # fmt: skip


def method_of(vllm: dict[str, types.ModuleType], moe_config: Any, module: torch.nn.Module, algorithm: str) -> Any:
    """The method of a layer, its weights converted."""
    made = vllm["moe"].Nvfp4Experts(types.SimpleNamespace(quant_method=algorithm), moe_config)
    made.process_weights_after_loading(module)
    return made


def call(made: Any, module: torch.nn.Module, tokens: Tokens, expert_map: torch.Tensor | None = None,
         weights_applied: bool = False) -> torch.Tensor:  # fmt: skip
    """As ``FusedMoEKernelModularImpl`` calls experts: NaN in the output, and in a workspace of the shapes asked for."""
    memory = memory_for(made, module, tokens)
    apply(made, module, tokens, memory, expert_map, weights_applied)
    return memory[2]


def memory_for(made: Any, module: torch.nn.Module, tokens: Tokens) -> tuple[torch.Tensor, ...]:
    """Both workspaces and the output of a call, of NaN."""
    experts = made.moe_kernel.fused_experts
    (count, hidden), dtype = tokens.x.shape, tokens.x.dtype
    shapes = experts.workspace_shapes(count, module.w13_weight.shape[1], hidden, tokens.topk_ids.shape[1],
                                      len(module.w13_weight), len(module.w13_weight), None, None)  # fmt: skip
    return tuple(aligned(shape, dtype, tokens.x.device) for shape in shapes)


def apply(made: Any, module: torch.nn.Module, tokens: Tokens, memory: tuple[torch.Tensor, ...],
          expert_map: torch.Tensor | None = None, weights_applied: bool = False) -> None:  # fmt: skip
    """The call alone."""
    workspace13, workspace2, out = memory
    made.moe_kernel.fused_experts.apply(
        output=out, hidden_states=tokens.x, w1=module.w13_weight, w2=module.w2_weight,
        topk_weights=tokens.topk_weights, topk_ids=tokens.topk_ids, activation=None, global_num_experts=0,
        expert_map=expert_map, a1q_scale=None, a2_scale=None, workspace13=workspace13, workspace2=workspace2,
        expert_tokens_meta=None, apply_router_weight_on_input=weights_applied,
    )  # fmt: skip


def aligned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """NaN, from an address that is a multiple of 256 on, as vLLM's workspaces begin."""
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.full((size + 256,), 0xFF, dtype=torch.uint8, device=device)
    return raw[-raw.data_ptr() % 256 :][:size].view(dtype).view(shape)
