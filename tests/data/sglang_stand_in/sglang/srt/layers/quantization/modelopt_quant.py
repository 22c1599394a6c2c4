"""Layers in NVFP4 as on a Hopper: no runner but Marlin is taken, and what is done with its weights is not done here."""

import torch
from sglang.srt.layers.moe.moe_runner.runner import MoeRunner
from sglang.srt.layers.moe.utils import get_moe_runner_backend
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from torch.nn import Parameter


class ModelOptNvFp4FusedMoEMethod(FusedMoEMethodBase):
    def __init__(self, quant_config):
        if get_moe_runner_backend().value != "marlin":
            raise ValueError("Please use Blackwell and above, or use moe_runner_backend=marlin on SM80+.")
        self.quant_config = quant_config
        self._lora_marlin = self.enable_flashinfer_trtllm_moe = self.use_flashinfer_trtllm_weight_layout = False
        self._cache_permute_indices = {}

    def create_weights(
        self, layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, **extra_weight_attrs
    ):
        rows, k = 2 * intermediate_size_per_partition, intermediate_size_per_partition
        layer.register_parameter("w13_weight", empty(torch.uint8, num_experts, rows, hidden_size // 2))
        layer.register_parameter("w2_weight", empty(torch.uint8, num_experts, hidden_size, k // 2))
        layer.register_parameter(
            "w13_weight_scale", empty(torch.float8_e4m3fn, num_experts, rows, hidden_size // 16))  # fmt: skip
        layer.register_parameter("w2_weight_scale", empty(torch.float8_e4m3fn, num_experts, hidden_size, k // 16))
        layer.w13_blockscale_swizzled = Parameter(torch.clone(layer.w13_weight_scale), requires_grad=False)
        layer.w2_blockscale_swizzled = Parameter(torch.clone(layer.w2_weight_scale), requires_grad=False)
        layer.register_parameter("w13_weight_scale_2", empty(torch.float32, num_experts, 2))
        layer.register_parameter("w2_weight_scale_2", empty(torch.float32, num_experts))
        layer.register_parameter("w13_input_scale", empty(torch.float32, layer.num_experts, 2))
        layer.register_parameter("w2_input_scale", empty(torch.float32, layer.num_experts))
        if self._uses_serialized_fp8_source():
            layer.register_parameter("w13_weight_scale_inv", empty(torch.float32, 0))
            layer.register_parameter("w2_weight_scale_inv", empty(torch.float32, 0))

    def _uses_serialized_fp8_source(self):
        return False

    def process_weights_after_loading(self, layer):
        raise AssertionError("Marlin's weights")

    @property
    def load_up_proj_weight_first(self):
        return False

    def create_moe_runner(self, layer, moe_runner_config):
        self.moe_runner_config = moe_runner_config
        self._moe_runner_backend = get_moe_runner_backend()
        self.runner = MoeRunner(self._moe_runner_backend, moe_runner_config)

    def get_moe_runner_backend(self, layer):
        return self._moe_runner_backend

    def apply(self, layer, dispatch_output):
        raise NotImplementedError(f"Unsupported moe_runner_backend for NVFP4 MoE: {self._moe_runner_backend}.")


def empty(dtype, *shape):
    return Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
