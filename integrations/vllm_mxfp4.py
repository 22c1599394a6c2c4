"""MXFP4 experts in vLLM, as gpt-oss has them: the configuration, which is vLLM's own but for them, and their method.

vLLM's loader of gpt-oss asks the configuration for its name and the method for ``weight_dtype``; both say what they say
of vLLM's own. Rows of gate and up are as in the checkpoint, in turn, and a rank's part of I may end in zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig, mxfp4_w4a16_moe_quant_config
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.quantization.mxfp4 import GptOssMxfp4Config, GptOssMxfp4MoEMethod
from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp4Static

from .expert_preparation import Mxfp4, padded, prepare
from .vllm_experts import Experts, composite_here, install, refusal

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig

# Parameters as vLLM loads them -> arguments of the composite.
PARAMETERS = {
    "w13_weight": "w13", "w13_weight_scale": "w13_scale", "w13_bias": "w13_bias",
    "w2_weight": "w2", "w2_weight_scale": "w2_scale", "w2_bias": "w2_bias",
}  # fmt: skip


class GptOssExperts(GptOssMxfp4MoEMethod):
    """The method of a layer: parameters as vLLM's method of gpt-oss has them, other kernels behind them.

    Raises ValueError, before a weight is read, for a layer, a split over ranks or a GPU that no composite serves.
    """

    def __init__(self, moe: FusedMoEConfig) -> None:
        # Not the method's own: it would choose among vLLM's kernels, and lay out parameters for one.
        FusedMoEMethodBase.__init__(self, moe)
        self.weight_dtype = "gpt_oss_mxfp4"
        self.mxfp4_backend = None
        self.experts_cls = Experts
        self.composite = composite_here("MXFP4")
        if reason := refusal(self.composite, moe, kMxfp4Static, None):
            raise ValueError(f"block_scaled: {reason}")

    def maybe_roundup_sizes(
        self,
        hidden_size: int,
        intermediate_size_per_partition: int,
        act_dtype: torch.dtype,
        moe_parallel_config: FusedMoEParallelConfig,
    ) -> tuple[int, int]:
        """A rank's I as the composite takes it: vLLM cuts where scales do, at up to 31 values more than I / ranks."""
        return hidden_size, padded(intermediate_size_per_partition, self.composite)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Once: the weights that were loaded give way to those that the composite takes."""
        parameters = {name: argument for name, argument in PARAMETERS.items()
                      if self.moe.has_bias or not name.endswith("_bias")}  # fmt: skip
        install(self, layer, parameters, self._prepared)

    def _prepared(self, layer: torch.nn.Module) -> dict[str, torch.Tensor]:
        suffixes = ("weight", "weight_scale", *(("bias",) if self.moe.has_bias else ()))
        weights = (Mxfp4(*(getattr(layer, f"{name}_{suffix}").data for suffix in suffixes)) for name in ("w13", "w2"))
        return prepare(self.composite, *weights, alternate=True)

    def get_fused_moe_quant_config(self, layer: torch.nn.Module) -> FusedMoEQuantConfig:
        """That tokens come as they are."""
        return mxfp4_w4a16_moe_quant_config(w1_scale=layer.w13_weight_scale, w2_scale=layer.w2_weight_scale)

    @property
    def supports_eplb(self) -> bool:
        """Any expert may be anywhere: the map says where, and all of a layer's parameters have one row an expert."""
        return True


class GptOssConfig(GptOssMxfp4Config):
    """vLLM's configuration of gpt-oss, but for layers of experts; ``get_name`` stays that of the format."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> object:
        if isinstance(layer, RoutedExperts):
            return GptOssExperts(layer.moe_config)
        return super().get_quant_method(layer, prefix)
