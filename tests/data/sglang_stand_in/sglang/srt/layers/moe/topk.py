from typing import NamedTuple

import torch


class StandardTopKOutput(NamedTuple):
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    router_logits: torch.Tensor | None = None


class TopKOutputChecker:
    @staticmethod
    def format_is_standard(topk_output):
        return isinstance(topk_output, StandardTopKOutput)
