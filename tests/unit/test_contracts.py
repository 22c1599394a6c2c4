"""Plug-ins against what was recorded of the packages that they are for, and records against moved names."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import contracts
import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = contracts.DATA / "sglang_stand_in"
PLUGIN = ROOT / "integrations" / "sglang_plugin.py"
METHOD = "sglang.srt.layers.quantization.modelopt_quant:ModelOptNvFp4FusedMoEMethod"
MXFP4_METHOD = "sglang.srt.layers.quantization.mxfp4:Mxfp4MoEMethod"
# Functions of the plug-in, and what they are around.
HOOKS = [
    ("initialize", f"{METHOD}.__init__"),
    ("process", f"{METHOD}.process_weights_after_loading"),
    ("apply", f"{METHOD}.apply"),
    ("create_mxfp4", f"{MXFP4_METHOD}.create_weights"),
    ("create_runner", f"{MXFP4_METHOD}.create_moe_runner"),
    ("process_mxfp4", f"{MXFP4_METHOD}.process_weights_after_loading"),
    ("apply", f"{MXFP4_METHOD}.apply"),
]


def places() -> list[Path]:
    """What stands for SGLang in tests, and wheels or folders that ``CONTRACTS`` names, joined as ``PATH`` is."""
    return [STAND_IN, *map(Path, filter(None, os.environ.get("CONTRACTS", "").split(os.pathsep)))]


@pytest.mark.parametrize("place", places(), ids=str)
def test_nothing_has_moved(place: Path) -> None:
    """Each name that a plug-in relies on is as it was recorded."""
    package, _, read = contracts.opened(place)
    assert contracts.differences(contracts.record_of(package), read) == []


MOVES = [
    ("moe_runner/base.py", "runner_config, hooks=None", "hooks=None", "DispatchMoeRunnerCore.run_from_dispatch"),
    ("moe_runner/base.py", 'activation: str = "silu"', 'activation: str = "gelu"', "MoeRunnerConfig.activation"),
    (
        "moe_runner/runner.py",
        "def register_moe_runner_core",
        "def register_core",
        "register_moe_runner_core is not there",
    ),
    ("../../plugins/hook_registry.py", 'AROUND = "around"', 'WRAP = "around"', "HookType.AROUND is not there"),
    ("../quantization/modelopt_quant.py", '"w13_weight_scale_2"', '"w13_global"', "create_weights: registers"),
    ("../quantization/modelopt_quant.py", "self._cache_permute", "self._cache", "__init__: sets"),
    (
        "../quantization/modelopt_quant.py",
        "    @property\n    def load_up",
        "    def load_up",
        "load_up_proj_weight_first",
    ),
    ("token_dispatcher/base.py", "class BaseDispatcher", "class Dispatcher", "BaseDispatcher.set_quant_config"),
]


@pytest.mark.parametrize(("file", "old", "new", "said"), MOVES, ids=[move[3] for move in MOVES])
def test_what_moves_is_named(file: str, old: str, new: str, said: str) -> None:
    """A parameter, a default, a name, a decorator, an attribute or a registered parameter."""
    moved = (STAND_IN / "sglang/srt/layers/moe" / file).resolve()
    _, _, read = contracts.opened(STAND_IN)

    def edited(name: str) -> str | None:
        text = read(name)
        if (STAND_IN / name).resolve() != moved:
            return text
        assert old in text
        return text.replace(old, new)

    lines = contracts.differences(contracts.record_of("sglang"), edited)
    assert any(said in line for line in lines), lines


def test_the_plugin_takes_what_is_recorded() -> None:
    """Every name that it imports of SGLang is in the record, and its target is the class there."""
    names = contracts.record_of("sglang")["facts"]
    tree = ast.parse(PLUGIN.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("sglang"):
            for alias in node.names:
                name = f"{node.module}:{alias.name}"
                assert any(found == name or found.startswith(f"{name}.") for found in names), name
    for constant, target in (("METHOD", METHOD), ("MXFP4_METHOD", MXFP4_METHOD)):
        text = next(node.value.value for node in tree.body if contracts._name(node) == constant)
        assert text == target.replace(":", ".") and target in names


def test_hooks_have_the_parameters_of_what_they_are_around() -> None:
    """By name, since SGLang calls them so; and ``__init__`` leaves behind what theirs does."""
    names = contracts.record_of("sglang")["facts"]
    functions = {node.name: node for node in ast.parse(PLUGIN.read_text()).body if isinstance(node, ast.FunctionDef)}
    for hook, method in HOOKS:
        arguments = functions[hook].args
        for argument in ast.walk(arguments):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        assert ast.unparse(arguments) == f"original, {names[method]['parameters']}"
    text = ast.unparse(functions["initialize"]) + PLUGIN.read_text().partition("ATTRIBUTES = ")[2].partition("}")[0]
    assert all(attribute in text for attribute in names[f"{METHOD}.__init__"]["sets"])


def test_the_function_for_transformers_has_the_recorded_parameters() -> None:
    """Those of transformers' own; and what it asks of a module its decorator takes, under these names."""
    names = contracts.record_of("transformers")["facts"]
    tree = ast.parse((ROOT / "integrations" / "transformers.py").read_text())
    function = next(node for node in tree.body if contracts._name(node) == "experts_forward")
    theirs = names["transformers.integrations.moe:grouped_mm_experts_forward"]["parameters"]
    assert ", ".join(argument.arg for argument in function.args.args) == theirs
    wanted = next(node.value for node in tree.body if contracts._name(node) == "WANTED")
    decorator = names["transformers.integrations.moe:use_experts_implementation"]["parameters"]
    assert all(f"{key.value}=" in decorator for key in wanted.keys)
    weights = names["transformers.models.qwen3_moe.modeling_qwen3_moe:Qwen3MoeExperts.__init__"]["sets"]
    assert {"gate_up_proj", "down_proj", "act_fn"} <= set(weights)


def test_entry_points_name_functions_that_are_there() -> None:
    """Of every group that is an engine's."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    for entries in project["entry-points"].values():
        for value in entries.values():
            module, _, function = value.partition(":")
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
            assert function in {contracts._name(node) for node in tree.body}, value
