"""The plug-in for vLLM and what vLLM's wheels have, as recorded and, where VLLM_WHEEL names one, as it is."""

from __future__ import annotations

import copy
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vllm_contract
import vllm_rules
from vllm_contract import Moved, Record

from generator import wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
RECORDS = json.loads(vllm_contract.RECORD.read_text())
NEWEST = RECORDS[-1]
LAYERS = "vllm.model_executor.layers"
EXPERTS = f"{LAYERS}.fused_moe.modular_kernel.FusedMoEExpertsModular"
GPT_OSS = f"{LAYERS}.quantization.mxfp4.GptOssMxfp4MoEMethod"
METHOD = f"{LAYERS}.quantization.modelopt.ModelOptNvFp4FusedMoE"


def sources() -> dict[str, Callable[[], Record]]:
    """Records by what they are of: made when a test asks."""
    found = {record["version"]: lambda record=record: record for record in RECORDS}
    if place := os.environ.get("VLLM_WHEEL"):
        found["VLLM_WHEEL"] = lambda: vllm_contract.record(Path(place))
    return found


@pytest.mark.parametrize("source", sources())
def test_the_plugin_fits(source: str) -> None:
    """All that it takes from vLLM is there, is called with what it takes, and calls ours with what ours take."""
    vllm_rules.check(sources()[source]())


@pytest.mark.parametrize("source", sources())
def test_the_entry_point_is_in_the_group_that_is_loaded(source: str) -> None:
    """In a checkout and, by the name that a wheel has for it, there."""
    group = sources()[source]()["definitions"]["vllm.plugins.DEFAULT_PLUGINS_GROUP"]["value"]
    checkout = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert checkout["entry-points"][group] == {"block_scaled": "integrations.vllm_plugin:register"}
    assert wheel.entry_points(checkout)[group] == {"block_scaled": "block_scaled.integrations.vllm_plugin:register"}


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
            function=["g1_alphas", "g2_alphas", "w1_scale"]), "takes no w2_scale"),
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
    "a layer of gpt-oss has one parameter more": (
        lambda record: method(GPT_OSS, "create_weights")(record)["registers"].append("w13_gate"), "differ in w13_gate"),
    "the method of gpt-oss is asked for other sizes": (
        lambda record: method(GPT_OSS, "maybe_roundup_sizes")(record)["parameters"].append("layer"),
        "GptOssMxfp4MoEMethod.maybe_roundup_sizes is asked"),
    "a name that we import is gone": (
        lambda record: record["names"].pop("vllm.model_executor.utils.replace_parameter"), "no replace_parameter"),
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


def test_reading_a_wheel_and_a_folder(tmp_path: Path) -> None:
    """The same record of both; a name that is not there is told with its module, and a folder without vLLM, too."""
    files = {
        "vllm-9.0.dist-info/METADATA": "Name: vllm\n",
        "vllm/plugins/__init__.py": 'DEFAULT_PLUGINS_GROUP = "a group"\n',
        "vllm/platforms/interface.py": "class Platform:\n    def get(cls, x, *, y=1, **z):\n        self.a = self.b\n"
                                       "class DeviceCapability(Base):\n    major: int\n",
    }  # fmt: skip
    folder, wheel = tmp_path / "folder", tmp_path / "vllm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            archive.writestr(name, text)
    for place in (folder, wheel):
        with pytest.raises(Moved, match="there is no module vllm"):
            vllm_contract.record(place)
    readers = [vllm_contract.Reader(vllm_contract.opened(place)[1]) for place in (folder, wheel)]
    for reader in readers:
        for module, name in vllm_contract.BESIDES:
            assert reader.find(module, name) == f"{module}.{name}"
        with pytest.raises(Moved, match="vllm.plugins has no register"):
            reader.find("vllm.plugins", "register")
    assert readers[0].definitions == readers[1].definitions
    get = readers[0].definitions["vllm.platforms.interface.Platform"]["methods"]["get"]
    assert get == {"parameters": ["cls", "x", "*", "y=1", "**z"], "kind": [], "reads": ["b"], "sets": ["a"]}
    with pytest.raises(FileNotFoundError, match="no wheel of vLLM"):
        vllm_contract.opened(tmp_path)
