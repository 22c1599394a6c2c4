"""The rules that hold the plug-in for vLLM to a record: whatever moves in it, they name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import contracts
import pytest
import vllm_rules
from contract_reader import Record
from vllm_rules import Moved

NEWEST = contracts.recorded("vllm")[-1]
LAYERS = "vllm.model_executor.layers"
EXPERTS = f"{LAYERS}.fused_moe.modular_kernel.FusedMoEExpertsModular"
GPT_OSS = f"{LAYERS}.quantization.mxfp4.GptOssMxfp4MoEMethod"
METHOD = f"{LAYERS}.quantization.modelopt.ModelOptNvFp4FusedMoE"


def method(definition: str, name: str) -> Callable[[Record], Any]:
    return lambda record: record["definitions"][definition]["methods"][name]


MOVES: dict[str, tuple[Callable[[Record], Any], str]] = {
    "an argument of apply goes": (
        lambda record: method(EXPERTS, "apply")(record)["parameters"].remove("expert_map"), "Modular.apply is asked"),
    "an argument of apply comes": (
        lambda record: method(EXPERTS, "apply")(record)["parameters"].append("new"), "Modular.apply is asked"),
    "arguments change places": (
        lambda record: method(EXPERTS, "workspace_shapes")(record)["parameters"].reverse(), "workspace_shapes is"),
    "an argument may be left out": (
        lambda record: method(f"{LAYERS}.quantization.base_config.QuantizationConfig", "get_quant_method")(
            record)["parameters"].__setitem__(2, "prefix=None"), "get_quant_method may be asked without prefix"),
    "something more is left to us": (
        lambda record: record["definitions"][EXPERTS]["methods"].update(
            finish={"parameters": ["self"], "kind": ["abstractmethod"]}), "finish is abstract, Experts has none"),
    "a method becomes a property": (
        lambda record: method(EXPERTS, "finalize_weight_and_reduce_impl")(record)["kind"].append("property"),
        "finalize_weight_and_reduce_impl is"),
    "the constructor asks for more": (
        lambda record: method(f"{LAYERS}.fused_moe.modular_kernel.FusedMoEExperts", "__init__")(
            record)["parameters"].append("layer"), "__init__ needs layer"),
    "a function takes something else": (
        lambda record: record["definitions"][f"{LAYERS}.fused_moe.config.nvfp4_w4a16_moe_quant_config"].update(
            parameters=["g1_alphas", "g2_alphas", "w1_scale"]), "takes no w2_scale"),
    "a field is called something else": (
        lambda record: record["definitions"][f"{LAYERS}.fused_moe.config.FusedMoEConfig"]["fields"].pop("has_bias"),
        "FusedMoEConfig has no has_bias"),
    "an activation goes": (
        lambda record: record["definitions"][f"{LAYERS}.fused_moe.activation.MoEActivation"]["fields"].pop("GELU_TANH"),
        "MoEActivation has no GELU_TANH"),
    "what we inherit reads something new": (
        lambda record: method(METHOD, "create_weights")(record)["reads"].append("alignment"), "reads self.alignment"),
    "a layer has one parameter more": (
        lambda record: method(METHOD, "create_weights")(record)["registers"].append("w13_bias"), "differ in w13_bias"),
    "a layer has one parameter more at times": (
        lambda record: method(METHOD, "create_weights")(record).update(registers_at_times=["w13_bias"]),
        "differ in w13_bias"),
    "a layer of gpt-oss has one parameter more": (
        lambda record: method(GPT_OSS, "create_weights")(record)["registers"].append("w13_gate"), "differ in w13_gate"),
    "a layer of gpt-oss has one parameter more at times": (
        lambda record: method(GPT_OSS, "create_weights")(record)["registers_at_times"].append("w13_gate"),
        "differ in w13_gate"),
    "a layer of gpt-oss never has biases": (
        lambda record: method(GPT_OSS, "create_weights")(record).pop("registers_at_times"),
        "differ in w13_bias, w2_bias"),
    "the method of gpt-oss is asked for other sizes": (
        lambda record: method(GPT_OSS, "maybe_roundup_sizes")(record)["parameters"].append("layer"),
        "GptOssMxfp4MoEMethod.maybe_roundup_sizes is asked"),
    "a name that we import is gone": (
        lambda record: record["names"].pop("vllm.model_executor.utils.replace_parameter"),
        "replace_parameter is not there"),
    "a check has another name": (
        lambda record: record["definitions"][f"{LAYERS}.fused_moe.modular_kernel.FusedMoEExperts"]["methods"].pop(
            "is_supported_config"), "Experts has no is_supported_config"),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
def test_a_move_is_named(move: str) -> None:
    """Whatever moves, the error says the version and what it was."""
    change, said = MOVES[move]
    moved = copy.deepcopy(NEWEST)
    change(moved)
    with pytest.raises(Moved, match=said.replace(".", r"\.")) as found:
        vllm_rules.check(moved)
    assert str(found.value).startswith(f"vLLM {NEWEST['version']}: ")
