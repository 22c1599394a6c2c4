factories = {}


def register_moe_runner_core(backend_name, factory):
    if backend_name in factories:
        raise ValueError(f"Runner core for {backend_name!r} is already registered")
    factories[backend_name] = factory


class MoeRunner:
    def __init__(self, runner_backend, config):
        self.config, self.runner_core = config, factories[runner_backend.value](config)

    def run(self, dispatch_output, quant_info, lora_info=None):
        return self.runner_core.run_from_dispatch(dispatch_output, quant_info, self.config, hooks=lora_info)
