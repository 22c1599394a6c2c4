"""NVFP4 experts in vLLM: the configuration, which is ModelOpt's but for them, and the method of a layer of experts.

vLLM reads the checkpoint, cuts it for ranks, routes and adds up what ranks have; its own methods compute linear layers
and the cache of keys and values. What a layer of experts does between routing and that sum is one composite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig, nvfp4_w4a16_moe_quant_config
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config, ModelOptNvFp4FusedMoE
from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static

from .expert_preparation import Nvfp4, prepare
from .vllm_experts import Experts, composite_here, install, refusal

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig

# Parameters as vLLM loads them -> arguments of the composite, or none.
PARAMETERS = {
    "w13_weight": "w13", "w13_weight_scale": "w13_scale", "w13_weight_scale_2": None, "w13_input_scale": None,
    "w2_weight": "w2", "w2_weight_scale": "w2_scale", "w2_weight_scale_2": None, "w2_input_scale": None,
}  # fmt: skip


class Nvfp4Experts(ModelOptNvFp4FusedMoE):
    """The method of a layer: parameters as ModelOpt's method has them, other kernels behind them.

    Raises ValueError, before a weight is read, for a layer, a split over ranks or a GPU that no composite serves.
    """

    supports_pre_processed_weights = False  # converted ones are not written and read again

    def __init__(self, quant_config: ModelOptNvFp4Config, moe_config: FusedMoEConfig) -> None:
        # Not ModelOpt's own: it would choose among vLLM's kernels, and refuse where none of them fits.
        FusedMoEMethodBase.__init__(self, moe_config)
        self.quant_config = quant_config
        self.use_global_sf = False  # a rank has scales of activations of its own experts
        self.experts_cls = Experts
        self.composite = composite_here("NVFP4")
        dynamic = kNvfp4Dynamic if quant_config.quant_method == "NVFP4" else None
        if reason := refusal(self.composite, moe_config, kNvfp4Static, dynamic):
            raise ValueError(f"block_scaled: {reason}")

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Once: the weights that were loaded give way to those that the composite takes."""
        install(self, layer, PARAMETERS, self._prepared)

    def _prepared(self, layer: torch.nn.Module) -> dict[str, torch.Tensor]:
        suffixes = ("weight", "weight_scale", "weight_scale_2")
        weights = (Nvfp4(*(getattr(layer, f"{name}_{suffix}").data for suffix in suffixes)) for name in ("w13", "w2"))
        # Where tokens stay in 16 bits, scales of activations may not have been loaded: nobody reads them.
        return prepare(self.composite, *weights, layer.w13_input_scale.data, layer.w2_input_scale.data)

    def get_fused_moe_quant_config(self, layer: torch.nn.Module) -> FusedMoEQuantConfig:
        """That tokens come as they are; alphas are for who asks, the experts have their own."""
        return nvfp4_w4a16_moe_quant_config(
            g1_alphas=layer.w13_alpha, g2_alphas=layer.w2_alpha, w1_scale=layer.w13_weight_scale,
            w2_scale=layer.w2_weight_scale,
        )  # fmt: skip

    @property
    def supports_eplb(self) -> bool:
        """Any expert may be anywhere: the map says where, and all of a layer's parameters have one row an expert."""
        return True


class Nvfp4Config(ModelOptNvFp4Config):
    """ModelOpt's configuration of NVFP4, but for layers of experts.

    ``get_name`` stays that of the format, ``modelopt_fp4``: models look at it for what the checkpoint has.
    """

    FusedMoEMethodCls = Nvfp4Experts
