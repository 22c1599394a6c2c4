class BaseDispatcher:
    def set_quant_config(self, quant_config):
        self.quant_config = quant_config
