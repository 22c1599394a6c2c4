from typing import NamedTuple

import torch
from sglang.srt.layers.moe.token_dispatcher.base import BaseDispatcher
from sglang.srt.layers.moe.topk import StandardTopKOutput


class StandardDispatchOutput(NamedTuple):
    hidden_states: torch.Tensor
    hidden_states_scale: torch.Tensor | None
    topk_output: StandardTopKOutput


class StandardCombineInput(NamedTuple):
    hidden_states: torch.Tensor


class StandardDispatcher(BaseDispatcher):
    def dispatch(self, hidden_states, topk_output):
        return StandardDispatchOutput(hidden_states, None, topk_output)

    def combine(self, combine_input):
        return combine_input.hidden_states
