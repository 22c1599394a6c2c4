from typing import NamedTuple

import torch
from sglang.srt.layers.moe.topk import StandardTopKOutput


class StandardDispatchOutput(NamedTuple):
    hidden_states: torch.Tensor
    hidden_states_scale: torch.Tensor | None
    topk_output: StandardTopKOutput


class StandardCombineInput(NamedTuple):
    hidden_states: torch.Tensor
