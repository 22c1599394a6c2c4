from abc import ABC, abstractmethod


class QuantizeMethodBase(ABC):
    @abstractmethod
    def apply(self, layer, *args, **kwargs): ...


class FusedMoEMethodBase(QuantizeMethodBase):
    runner = None

    @abstractmethod
    def apply(self, layer, dispatch_output): ...
