"""Which names of an engine our plug-in for it relies on: those that it imports, and those that no import has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

INTEGRATIONS = Path(__file__).resolve().parents[1] / "integrations"


class Engine(NamedTuple):
    """``besides``: names by module, and of a class the members that are relied on; where there are none it is recorded
    whole, with its bases, so that a class can be made of it. ``objects``: imported names that have no definition."""

    files: tuple[str, ...]
    besides: dict[str, dict[str, str]]
    objects: frozenset[str] = frozenset()

    @property
    def paths(self) -> list[Path]:
        return [INTEGRATIONS / f"{name}.py" for name in self.files]


MOE, QUANTIZATION = "sglang.srt.layers.moe", "sglang.srt.layers.quantization"
ENGINES = {
    "vllm": Engine(
        ("vllm_plugin", "vllm_moe", "vllm_mxfp4", "vllm_experts"),
        {
            "vllm.model_executor.layers.fused_moe": {"RoutedExperts": "__init__"},
            "vllm.plugins": {"DEFAULT_PLUGINS_GROUP": ""},
            "vllm.platforms.interface": {"Platform": "", "DeviceCapability": ""},
        },
        frozenset({"current_platform"}),
    ),
    "sglang": Engine(
        ("sglang_plugin",),
        {
            "sglang.srt.plugins": {"GENERAL_PLUGINS_GROUP": "", "load_plugins": ""},
            "sglang.srt.plugins.hook_registry": {"HookRegistry": "register apply_hooks", "HookType": "AROUND"},
            "sglang.srt.arg_groups.choices": {"MOE_RUNNER_BACKEND_CHOICES": ""},
            f"{MOE}.moe_runner.base": {
                "DispatchMoeRunnerCore": "__init__ runner_backend run_from_dispatch",
                "MoeRunnerConfig": "activation is_gated apply_router_weight_on_input no_combine gemm1_alpha gemm1_beta"
                " gemm1_clamp_limit swiglu_limit gate_up_interleaved",
            },
            f"{MOE}.moe_runner.runner": {"MoeRunner": "run"},
            f"{MOE}.token_dispatcher.standard": {
                "StandardDispatchOutput": "hidden_states topk_output",
                "StandardCombineInput": "hidden_states",
            },
            f"{MOE}.token_dispatcher.base": {"BaseDispatcher": "set_quant_config"},
            f"{MOE}.topk": {"StandardTopKOutput": "topk_weights topk_ids", "TopKOutputChecker": "format_is_standard"},
            f"{MOE}.utils": {"RegisteredMoeRunnerBackend": "value", "MoeA2ABackend": "NONE"},
            f"{QUANTIZATION}.modelopt_quant": {
                "ModelOptNvFp4FusedMoEMethod": "__init__ create_weights process_weights_after_loading"
                " create_moe_runner get_moe_runner_backend load_up_proj_weight_first apply"
            },
            f"{QUANTIZATION}.mxfp4": {
                "Mxfp4MoEMethod": "create_weights create_moe_runner process_weights_after_loading apply"
            },
            f"{QUANTIZATION}.base_config": {"FusedMoEMethodBase": "apply"},
        },
    ),
    "transformers": Engine(
        ("transformers",),
        {
            "transformers.integrations.moe": {
                "ExpertsInterface": "get_interface",
                "ALL_EXPERTS_FUNCTIONS": "",
                "grouped_mm_experts_forward": "",
                "_default_apply_gate": "",
                "use_experts_implementation": "",
            },
            "transformers.utils.generic": {"GeneralInterface": "register"},
            "transformers.models.qwen3_moe.modeling_qwen3_moe": {"Qwen3MoeExperts": "__init__"},
            "transformers.activations": {"SiLUActivation": "", "GELUTanh": ""},
        },
    ),
}


def imported(package: str) -> Iterator[tuple[str, str]]:
    """Module and name of all that the plug-in imports; of a module that it imports, what it uses of it."""
    engine = ENGINES[package]
    for path in engine.paths:
        tree = ast.parse(path.read_text())
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level or node.module.partition(".")[0] != package:
                continue
            for name in {alias.name for alias in node.names} - engine.objects:
                used = {attribute.attr for attribute in attributes if ast.unparse(attribute.value) == name}
                if name.islower() and used:
                    yield from ((f"{node.module}.{name}", member) for member in used)
                else:
                    yield node.module, name


def relied_on(package: str) -> dict[tuple[str, str], set[str]]:
    """By module and name the members, none for all that the name has."""
    besides = ENGINES[package].besides
    members = {(module, name): set(words.split()) for module, names in besides.items() for name, words in names.items()}
    return dict(sorted((dict.fromkeys(imported(package), set()) | members).items()))
