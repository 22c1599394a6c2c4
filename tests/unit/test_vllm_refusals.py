"""What the plug-in for vLLM takes and what it refuses, before a weight is read; over stand-ins for vLLM's modules."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import contracts  # noqa: E402
import vllm_layer  # noqa: E402
import vllm_stubs  # noqa: E402

NAME, MXFP4 = "block_scaled_nvfp4", "block_scaled_mxfp4"
NEWEST = contracts.recorded("vllm")[-1]
ACTIVATION = vllm_layer.ACTIVATION
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
NESTED = {"quant_method": "modelopt_fp4", "quantization": {"quant_algo": "w4a16_nvfp4"}}


@pytest.fixture(scope="module")
def vllm() -> Iterator[dict[str, types.ModuleType]]:
    with vllm_stubs.installed(NEWEST) as modules:
        yield modules


def test_the_name_is_registered(vllm: dict[str, types.ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once and again, in each of vLLM's processes."""
    found: list[tuple[str, type]] = []
    monkeypatch.setattr(vllm["plugin"], "register_quantization_config",
                        lambda name: lambda config: found.append((name, config)))  # fmt: skip
    vllm["plugin"].register()
    vllm["plugin"].register()
    assert found == [(NAME, vllm["plugin"].Nvfp4), (MXFP4, vllm["plugin"].Mxfp4)] * 2


@pytest.mark.parametrize("checkpoint", [MODELOPT, NESTED, {"quant_method": "fp8"}, None], ids=str)
@pytest.mark.parametrize("asked", [None, "modelopt", "modelopt_fp4", "humming"])
def test_nobody_gets_it_unasked(vllm: dict[str, types.ModuleType], checkpoint: Any, asked: str | None) -> None:
    """vLLM asks custom methods first, of every model on the machine."""
    assert vllm["plugin"].Nvfp4.override_quantization_method(checkpoint, asked, hf_config=None) is None


@pytest.mark.parametrize("checkpoint", [MODELOPT, NESTED], ids=str)
def test_who_asks_gets_it(vllm: dict[str, types.ModuleType], checkpoint: dict[str, Any]) -> None:
    """Of a checkpoint in NVFP4, in both places where ModelOpt says so."""
    assert vllm["plugin"].Nvfp4.override_quantization_method(checkpoint, NAME, hf_config=None) == NAME


@pytest.mark.parametrize(("checkpoint", "said"), [
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "this one has FP8"),
    ({"quant_method": "compressed-tensors", "quant_algo": "NVFP4"}, "this one has compressed-tensors"),
    ({"quant_method": "modelopt"}, "this one has modelopt"),
    ({}, "this one has no quantization"),
    (None, "this one has no quantization"),
])  # fmt: skip
def test_another_checkpoint_is_an_error(vllm: dict[str, types.ModuleType], checkpoint: Any, said: str) -> None:
    """That says what it is."""
    with pytest.raises(ValueError, match=said):
        vllm["plugin"].Nvfp4.override_quantization_method(checkpoint, NAME)


def test_the_configuration_is_modelopts(vllm: dict[str, types.ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the method of experts; the class behind the name says no more than where it is."""
    config = vllm["moe"].Nvfp4Config
    monkeypatch.setattr(config, "from_config", classmethod(lambda cls, given: (cls, given)))
    assert vllm["plugin"].Nvfp4.from_config(MODELOPT) == (config, MODELOPT)
    assert config.FusedMoEMethodCls is vllm["moe"].Nvfp4Experts and "get_quant_method" not in vars(config)
    named = vllm["plugin"].Nvfp4()
    assert named.get_name() == NAME and named.get_min_capability() == 90
    with pytest.raises(NotImplementedError, match=NAME):
        named.get_quant_method(torch.nn.Module(), "layers.0")


GPT_OSS = types.SimpleNamespace(model_type="gpt_oss")


@pytest.mark.parametrize("method", ["mxfp4", "gpt_oss_mxfp4"])
def test_gpt_oss_is_taken_from_who_asks(vllm: dict[str, types.ModuleType], method: str) -> None:
    """Under both names that vLLM has for its method; of others it is an error that says what they are."""
    config, named = {"quant_method": method}, vllm["plugin"].Mxfp4
    assert named.override_quantization_method(config, MXFP4, hf_config=GPT_OSS) == MXFP4
    assert named.override_quantization_method(config, method, hf_config=GPT_OSS) is None
    assert named.override_quantization_method(config, NAME, hf_config=GPT_OSS) is None
    with pytest.raises(ValueError, match=f"takes gpt-oss in MXFP4, this one has {method} of a model of type deepseek"):
        named.override_quantization_method(config, MXFP4, types.SimpleNamespace(model_type="deepseek_v4"))
    with pytest.raises(ValueError, match="this one has no quantization of a model of type gpt_oss"):
        named.override_quantization_method(None, MXFP4, GPT_OSS)


def test_the_configuration_is_that_of_gpt_oss(vllm: dict[str, types.ModuleType], monkeypatch: Any) -> None:
    """But for layers of experts."""
    vllm_layer.patched(vllm, "90a")
    config, theirs = vllm["mxfp4"].GptOssConfig, vllm["mxfp4"].GptOssMxfp4Config
    monkeypatch.setattr(config, "from_config", classmethod(lambda cls, given: (cls, given)))
    assert vllm["plugin"].Mxfp4.from_config({}) == (config, {}) and vllm["plugin"].Mxfp4().get_name() == MXFP4
    assert "get_name" not in vars(config)
    monkeypatch.setattr(theirs, "get_quant_method", lambda self, layer, prefix: prefix)
    routed = object.__new__(vllm["mxfp4"].RoutedExperts)
    routed.moe_config = gpt_oss(vllm)
    made = object.__new__(config)
    assert isinstance(made.get_quant_method(routed, "experts"), vllm["mxfp4"].GptOssExperts)
    assert made.get_quant_method(torch.nn.Linear(1, 1), "q_proj") == "q_proj"


def gpt_oss(vllm: dict[str, types.ModuleType], hidden: int = 64, **fields: Any) -> Any:
    """The configuration of its layers."""
    activation = vllm[ACTIVATION].MoEActivation.SWIGLUOAI
    return vllm_layer.config(vllm[ACTIVATION], hidden, 48, **{"activation": activation, "has_bias": True, **fields})


@pytest.mark.parametrize("arch", vllm_layer.ARCHS)
def test_layers_of_gpt_oss_that_are_refused(vllm: dict[str, types.ModuleType], arch: str) -> None:
    """Another activation or type, ranks with an all-to-all, sizes, weights loaded anew; I is what vLLM rounds up."""
    vllm_layer.patched(vllm, arch)
    for fields, said in (
        ({"activation": vllm[ACTIVATION].MoEActivation.SILU}, "activation silu is none of swigluoai"),
        ({"in_dtype": torch.float16}, "tokens of torch.float16 are none of bf16"),
        ({"moe_parallel_config": vllm_layer.parallel(dp_size=2)}, "data parallelism, over 2 ranks"),
        ({"hidden": 48}, "hidden size 48 is no multiple of 32"),
    ):
        with pytest.raises(ValueError, match=f"block_scaled: {said}"):
            vllm["mxfp4"].GptOssExperts(gpt_oss(vllm, **fields))
    made = vllm["mxfp4"].GptOssExperts(gpt_oss(vllm))
    assert made.maybe_roundup_sizes(64, 48, torch.bfloat16, None) == (64, 64 if arch == "90a" else 128)
    made.moe_kernel = object()
    with pytest.raises(RuntimeError, match="cannot be loaded anew"):
        made.process_weights_after_loading(torch.nn.Module())
    vllm["experts"].current_platform.get_device_capability = lambda: types.SimpleNamespace(major=8, minor=0)
    with pytest.raises(ValueError, match="MXFP4 experts run on compute capability 9, 10, 12, this is 8"):
        vllm["mxfp4"].GptOssExperts(gpt_oss(vllm))


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "fp32": ({"in_dtype": torch.float32}, "tokens of torch.float32 are none of bf16, f16"),
    "biases": ({"has_bias": True}, "experts with biases"),
    "data parallel": ({"moe_parallel_config": vllm_layer.parallel(dp_size=2)}, "data parallelism, over 2 ranks"),
    "all-to-all": ({"moe_parallel_config": vllm_layer.parallel(use_all2all_kernels=True, all2all_backend="nixl_ep")},
                   r"an all-to-all between ranks \(nixl_ep\)"),
    "all-to-all in experts": ({"moe_parallel_config": vllm_layer.parallel(use_passthrough_all2all=True)}, "all-to-all"),
    "part of a scale": ({"intermediate_size_per_partition": 72}, "intermediate size 72 of a rank is no multiple of 16"),
}  # fmt: skip


def refused(vllm: dict[str, types.ModuleType], arch: str, algorithm: str = "NVFP4", hidden: int = 64,
            **fields: Any) -> str:  # fmt: skip
    """What the method of such layers says."""
    vllm_layer.patched(vllm, arch)
    moe_config = vllm_layer.config(vllm[ACTIVATION], hidden, 64, **fields)
    with pytest.raises(ValueError) as found:
        vllm["moe"].Nvfp4Experts(types.SimpleNamespace(quant_method=algorithm), moe_config)
    return str(found.value)


@pytest.mark.parametrize("arch", vllm_layer.ARCHS)
@pytest.mark.parametrize("case", FIELDS)
def test_layers_that_are_refused(vllm: dict[str, types.ModuleType], case: str, arch: str) -> None:
    """With the reason."""
    fields, said = FIELDS[case]
    assert re.match(f"block_scaled: .*{said}", refused(vllm, arch, **fields))


@pytest.mark.parametrize("activation", ["GELU", "SWIGLUOAI", "RELU2_NO_MUL", "SITU"])
def test_activations_that_are_refused(vllm: dict[str, types.ModuleType], activation: str) -> None:
    """Those that no composite has, and the one of gpt-oss, whose gate and up are in turn."""
    member = vllm[ACTIVATION].MoEActivation[activation]
    assert f"activation {member.value} is none of silu, gelu_tanh, swigluoai_uninterleave" in refused(
        vllm, "90a", activation=member)  # fmt: skip


def test_what_each_arch_refuses(vllm: dict[str, types.ModuleType]) -> None:
    """Sizes by what its composite takes; Blackwell needs scales of activations; other GPUs have none."""
    assert "hidden size 40 is no multiple of 16" in refused(vllm, "90a", hidden=40)
    assert "hidden size 48 is no multiple of 32" in refused(vllm, "120a", hidden=48)
    assert "W4A16_NVFP4 has no scales of activations" in refused(vllm, "100a", "W4A16_NVFP4")
    vllm["experts"].current_platform.get_device_capability = lambda: types.SimpleNamespace(major=8, minor=0)
    with pytest.raises(ValueError, match="run on compute capability 9, 10, 12, this is 8"):
        vllm["experts"].composite_here("NVFP4")


def test_reasons_of_vllm_are_passed_on(vllm: dict[str, types.ModuleType]) -> None:
    """Of what it checks itself, such as LoRA."""
    vllm_layer.patched(vllm, "90a")
    vllm["experts"].Experts.is_supported_config = staticmethod(lambda *_: (False, "kernel does not support LoRA"))
    moe_config = vllm_layer.config(vllm[ACTIVATION], 64, 64)
    with pytest.raises(ValueError, match="block_scaled: kernel does not support LoRA"):
        vllm["moe"].Nvfp4Experts(types.SimpleNamespace(quant_method="NVFP4"), moe_config)


def test_weights_are_loaded_once(vllm: dict[str, types.ModuleType]) -> None:
    """Loaded anew they would lie over converted ones."""
    vllm_layer.patched(vllm, "90a")
    made = vllm["moe"].Nvfp4Experts(types.SimpleNamespace(quant_method="NVFP4"),
                                    vllm_layer.config(vllm[ACTIVATION], 64, 64))  # fmt: skip
    made.moe_kernel = object()
    with pytest.raises(RuntimeError, match="cannot be loaded anew"):
        made.process_weights_after_loading(torch.nn.Module())
