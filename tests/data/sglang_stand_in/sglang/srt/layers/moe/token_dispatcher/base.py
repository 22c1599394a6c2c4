from abc import ABC, abstractmethod


class BaseDispatcher(ABC):
    @abstractmethod
    def dispatch(self, hidden_states, topk_output): ...

    @abstractmethod
    def combine(self, combine_input): ...

    def set_quant_config(self, quant_config):
        self.quant_config = quant_config
