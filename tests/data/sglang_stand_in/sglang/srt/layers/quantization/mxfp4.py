"""Layers of gpt-oss in MXFP4 where no kernel asks for other sizes: a rank has what the checkpoint has."""

import torch
from sglang.srt.layers.moe.utils import get_moe_runner_backend
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from torch.nn import Parameter


class Mxfp4MoEMethod(FusedMoEMethodBase):
    def __init__(self, prefix):
        self.prefix = prefix

    def create_weights(
        self, layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, with_bias=False,
        **extra_weight_attrs,
    ):  # fmt: skip
        experts, rows = layer.num_local_experts, 2 * intermediate_size_per_partition
        k = intermediate_size_per_partition
        layer.register_parameter("w13_weight", filled(0, torch.uint8, experts, rows, hidden_size // 2))
        layer.register_parameter("w13_weight_scale", filled(127, torch.uint8, experts, rows, hidden_size // 32))
        layer.register_parameter("w2_weight", filled(0, torch.uint8, experts, hidden_size, k // 2))
        layer.register_parameter("w2_weight_scale", filled(127, torch.uint8, experts, hidden_size, k // 32))
        if with_bias or torch.version.hip is None:
            layer.register_parameter("w13_weight_bias", filled(0, torch.bfloat16, experts, rows))
            layer.register_parameter("w2_weight_bias", filled(0, torch.bfloat16, experts, hidden_size))

    def process_weights_after_loading(self, layer):
        raise AssertionError("weights of Triton's")

    def create_moe_runner(self, layer, moe_runner_config):
        raise NotImplementedError(f"Mxfp4MoEMethod has no MoeRunner for backend={get_moe_runner_backend()}")

    def apply(self, layer, dispatch_output):
        raise NotImplementedError("kernels of Triton's")


def filled(value, dtype, *shape):
    return Parameter(torch.full(shape, value, dtype=dtype), requires_grad=False)
