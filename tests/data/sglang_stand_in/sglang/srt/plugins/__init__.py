from sglang.srt.plugins.hook_registry import HookRegistry

GENERAL_PLUGINS_GROUP = "sglang.srt.plugins"
plugins = []  # functions, where entry points would name them


def load_plugins():
    for function in plugins:
        function()
    HookRegistry.apply_hooks()
