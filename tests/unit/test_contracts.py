"""Plug-ins against what was recorded of the packages that they are for, and records against moved names."""

from __future__ import annotations

import ast
import copy
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import contracts
import pytest
import vllm_rules
from contract_names import ENGINES
from contract_reader import Reader, Record, signature

from generator import wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "integrations" / "sglang_plugin.py"
METHOD = "sglang.srt.layers.quantization.modelopt_quant.ModelOptNvFp4FusedMoEMethod"
MXFP4_METHOD = "sglang.srt.layers.quantization.mxfp4.Mxfp4MoEMethod"
# Functions of the plug-in by what they are around: class and method.
HOOKS = {
    (METHOD, "__init__"): "initialize",
    (METHOD, "process_weights_after_loading"): "process",
    (METHOD, "apply"): "apply",
    (MXFP4_METHOD, "create_weights"): "create_mxfp4",
    (MXFP4_METHOD, "create_moe_runner"): "create_runner",
    (MXFP4_METHOD, "process_weights_after_loading"): "process_mxfp4",
    (MXFP4_METHOD, "apply"): "apply",
}
# The groups of entry points by the name that each engine has for its own.
GROUPS = {"vllm": "vllm.plugins.DEFAULT_PLUGINS_GROUP", "sglang": "sglang.srt.plugins.GENERAL_PLUGINS_GROUP"}
# Of an engine that is recorded in whole classes, what the plug-in asks of them; of others nothing may move.
RULES = {"vllm": vllm_rules.check}


def sources(*packages: str) -> dict[str, Callable[[], Record]]:
    """Records, what stands for SGLang in tests, and what ``CONTRACTS`` names: read when a test asks."""
    records = [record for package in packages for record in contracts.recorded(package)]
    found = {f"{record['package']} {record['version']}": lambda record=record: record for record in records}
    places = {str(place): contracts.opened(place) for place in (contracts.STAND_IN, *contracts.named())}
    return found | {name: lambda opened=opened: contracts.record_of(*opened)
                    for name, opened in places.items() if opened[0] in packages}  # fmt: skip


@pytest.mark.parametrize("source", sources(*ENGINES))
def test_the_plugin_fits(source: str) -> None:
    """Each name that it relies on is there, and is as it was recorded or as the plug-in needs it."""
    record = sources(*ENGINES)[source]()
    assert contracts.missing(record) == []
    was = contracts.nearest(record["package"], record["version"])
    if rule := RULES.get(record["package"]):
        rule(record)
    if rule is None or was["version"] == record["version"]:
        assert contracts.differences(was, record) == []


@pytest.mark.parametrize("source", sources(*GROUPS))
def test_entry_points_are_in_the_group_that_is_loaded(source: str) -> None:
    """In a checkout and, by the name that a wheel has for it, there; each names a function of ours."""
    record = sources(*GROUPS)[source]()
    group = record["definitions"][GROUPS[record["package"]]]["default"]
    checkout = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(checkout["entry-points"]) == len(GROUPS)
    ((name, place),) = checkout["entry-points"][group].items()
    assert wheel.entry_points(checkout)[group] == {"block_scaled": f"block_scaled.{place}"} and name == "block_scaled"
    module, _, function = place.partition(":")
    assert function in functions(ROOT / f"{module.replace('.', '/')}.py")


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def value(path: Path, name: str) -> ast.expr:
    """What a name of a file is assigned."""
    statements = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
    return next(node.value for node in statements if ast.unparse(node.targets[0]) == name)


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
    ("../quantization/mxfp4.py", '"w13_weight_scale"', '"w13_scale"', "Mxfp4MoEMethod.create_weights: registers"),
    ("../quantization/mxfp4.py", '"w13_weight_bias"', '"w13_bias"', "create_weights: registers_at_times"),
    ("../quantization/mxfp4.py", "with_bias=False", "with_bias=True", "Mxfp4MoEMethod.create_weights: parameters"),
    ("../quantization/mxfp4.py", "def create_moe_runner", "def create_runner", "create_moe_runner is not there"),
    ("moe_runner/base.py", "interleaved: bool = True", "interleaved: bool = False", "Config.gate_up_interleaved"),
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
    moved = (contracts.STAND_IN / "sglang/srt/layers/moe" / file).resolve()
    package, version, read = contracts.opened(contracts.STAND_IN)

    def edited(name: str) -> str | None:
        text = read(name)
        if (contracts.STAND_IN / name).resolve() != moved:
            return text
        assert old in text
        return text.replace(old, new)

    now = contracts.record_of(package, version, edited)
    lines = contracts.missing(now) + contracts.differences(contracts.recorded(package)[-1], now)
    assert any(said in line for line in lines), lines


def test_hooks_have_the_parameters_of_what_they_are_around() -> None:
    """With their defaults, since SGLang calls them so; and ``__init__`` leaves behind what theirs does."""
    assert [ast.literal_eval(value(PLUGIN, name)) for name in ("METHOD", "MXFP4_METHOD")] == [METHOD, MXFP4_METHOD]
    definitions, ours = contracts.recorded("sglang")[-1]["definitions"], functions(PLUGIN)
    for (owner, method), hook in HOOKS.items():
        assert signature(ours[hook].args) == ["original", *definitions[owner]["methods"][method]["parameters"]]
    text = ast.unparse(ours["initialize"]) + ast.unparse(value(PLUGIN, "ATTRIBUTES"))
    assert all(attribute in text for attribute in definitions[METHOD]["methods"]["__init__"]["sets"])


def test_the_function_for_transformers_has_the_recorded_parameters() -> None:
    """Those of transformers' own; and what it asks of a module its decorator takes, under these names."""
    definitions = contracts.recorded("transformers")[-1]["definitions"]
    path = ROOT / "integrations" / "transformers.py"
    theirs = definitions["transformers.integrations.moe.grouped_mm_experts_forward"]["parameters"]
    assert [argument.arg for argument in functions(path)["experts_forward"].args.args] == theirs
    wanted = [key.value for key in value(path, "WANTED").keys]
    decorator = definitions["transformers.integrations.moe.use_experts_implementation"]["parameters"]
    assert wanted and all(any(word.startswith(f"{key}=") for word in decorator) for key in wanted)
    experts = definitions["transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts"]["methods"]["__init__"]
    assert {"gate_up_proj", "down_proj", "act_fn"} <= set(experts["sets"])


INTERFACE = """
class Root:
    def name(self): ...

class Platform(Root):
    def get(cls, x, /, *, y=1, **z):
        self.a = self.b

    @property
    def size(self): ...

    @size.setter
    def size(self, value): ...

    def create_weights(self, layer):
        if layer.bias:
            layer.register_parameter("bias", None)
        layer.register_parameter("weight", None)

class DeviceCapability(Platform, Base):
    major: int
    minor: int = None
"""
FILES = {
    "vllm-9.0.dist-info/METADATA": "Name: vllm\n",
    "vllm/plugins/__init__.py": 'try:\n    import more\nexcept ImportError:\n    DEFAULT_PLUGINS_GROUP = "a group"\n',
    "vllm/platforms/__init__.py": "if True:\n    pass\nelse:\n    from .interface import Platform as Other\n",
    "vllm/platforms/interface.py": INTERFACE,
}


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_reading_a_wheel_and_a_folder(unpacked: Path) -> None:
    """The same of both: names below conditions, behind imports, bases in the package; what is neither is said."""
    with zipfile.ZipFile(unpacked / "vllm.whl", "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    records = []
    for place in (unpacked, unpacked / "vllm.whl"):
        package, version, read = contracts.opened(place)
        assert Reader(read, {}).define("vllm.platforms", "Other") == "vllm.platforms.interface.Platform"
        records.append(contracts.record_of(package, version, read))
    assert records[0] == records[1] and records[0]["version"] == "9.0"
    assert "vllm.model_executor.utils.replace_parameter is not there" in contracts.missing(records[0])
    plain = {"parameters": ["self"], "kind": []}
    methods = {
        "get": {"parameters": ["cls", "x", "/", "*", "y=1", "**z"], "kind": [], "reads": ["b"], "sets": ["a"]},
        "size": plain | {"kind": ["property"]},
        "create_weights": {"parameters": ["self", "layer"], "kind": [], "registers": ["weight"],
                           "registers_at_times": ["bias"]},
    }  # fmt: skip
    interface = "vllm.platforms.interface"
    assert records[0]["definitions"] == {
        f"{interface}.DeviceCapability": {"bases": [f"{interface}.Platform", "Base"], "methods": {},
                                          "fields": {"major": {}, "minor": {"default": None}}},
        f"{interface}.Platform": {"bases": [f"{interface}.Root"], "methods": methods, "fields": {}},
        f"{interface}.Root": {"bases": [], "methods": {"name": plain}, "fields": {}},
        "vllm.plugins.DEFAULT_PLUGINS_GROUP": {"default": "a group"},
    }  # fmt: skip
    with pytest.raises(FileNotFoundError, match="no wheel and no folder of one of vllm, sglang, transformers"):
        contracts.opened(unpacked / "vllm")


def test_moves_of_a_class_are_named() -> None:
    """What it is made of, a method that is left to us, where it is defined; a member that goes is missed, too."""
    was = contracts.recorded("sglang")[-1]
    now = copy.deepcopy(was)
    place = "sglang.srt.layers.moe.moe_runner.base.DispatchMoeRunnerCore"
    core = now["definitions"][place]
    core["methods"] |= {"finish": {"parameters": ["self"], "kind": ["abstractmethod"]},
                        "help": {"parameters": ["self"], "kind": []}}  # fmt: skip
    core["bases"] = ["Protocol"]
    assert contracts.missing(now) == []
    assert contracts.differences(was, now) == [
        f"{place}: bases was ['ABC'], is ['Protocol']",
        f"{place}.finish is abstract, and was not there",
    ]
    del core["methods"]["runner_backend"]
    assert contracts.missing(now) == [f"{place}.runner_backend is not there"]
    now = copy.deepcopy(was)
    now["names"][place] = "sglang.elsewhere.DispatchMoeRunnerCore"
    assert contracts.differences(was, now) == [f"{place} is at sglang.elsewhere.DispatchMoeRunnerCore, was at {place}"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes a record that nothing differs from, says what has moved, and records nothing where a name is gone."""
    monkeypatch.setattr(contracts, "RECORDS", tmp_path)
    place = shutil.copytree(contracts.STAND_IN, tmp_path / "wheel")
    assert contracts.main(["record", str(place)]) == 0 and contracts.main(["check", str(place)]) == 0
    (record,) = tmp_path.glob("*.json")
    text = record.read_text()
    assert record.name == "sglang-0.json" and json.loads(text)["definitions"]
    file = place / "sglang/srt/runtime_context.py"
    file.write_text(file.read_text().replace("get_exec", "get_execution"))
    capsys.readouterr()
    assert contracts.main(["check", str(place)]) == 1 and contracts.main(["record", str(place)]) == 1
    said = capsys.readouterr().out
    assert "sglang.srt.runtime_context.get_exec is not there" in said and "not recorded" in said
    assert record.read_text() == text
