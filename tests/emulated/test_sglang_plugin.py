"""The plug-in of SGLang on modules that stand for it, whose signatures are the recorded ones: NVFP4 layers as it builds
them, loads them and calls them, on the emulated device."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import contracts
import pytest

torch = pytest.importorskip("torch")

import moe_blocks  # noqa: E402
import moe_fragments  # noqa: E402
import moe_reference as moe  # noqa: E402
import mxfp4_layer  # noqa: E402
import nvfp4_layer  # noqa: E402

from integrations import torch_experts  # noqa: E402
from integrations.expert_preparation import Nvfp4  # noqa: E402

SRT = "sglang.srt"

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "emulated_hopper"),
]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{SRT}.{name}")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Loaded by the engine as a process of it begins, and asked for by name."""
    monkeypatch.syspath_prepend(str(contracts.STAND_IN))
    found = importlib.import_module("integrations.sglang_plugin")
    module("plugins").plugins.append(found.register)
    module("plugins").load_plugins()
    assert found.NAME in module("arg_groups.choices").MOE_RUNNER_BACKEND_CHOICES
    module("runtime_context").moe.runner_backend = found.NAME
    yield found
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        del sys.modules[name]
    del sys.modules["integrations.sglang_plugin"]


@dataclasses.dataclass(frozen=True)
class Rank:
    """Experts of expert parallelism by their numbers, and columns of I of tensor parallelism."""

    experts: list[int]
    rank: int = 0
    columns: tuple[int, int] = (0, 64)

    def weights(self, layer: moe.Layer) -> tuple[Nvfp4, Nvfp4]:
        """What the engine's loader puts into the rank's parameters."""
        gate_up, down = nvfp4_layer.engine(nvfp4_layer.of_experts(layer, self.experts))
        between = down.packed.shape[2] * 2
        begin, end = self.columns
        rows = [tensor.unflatten(1, (2, between))[:, :, begin:end].flatten(1, 2)
                for tensor in (gate_up.packed, gate_up.scales)]  # fmt: skip
        return (
            Nvfp4(*rows, gate_up.decode),
            Nvfp4(down.packed[..., begin // 2 : end // 2], down.scales[..., begin // 16 : end // 16], down.decode),
        )


def built(layer: moe.Layer, rank: Rank, **config: Any) -> Any:
    """A layer of the engine in the order in which it builds and loads one, and how it calls it."""
    weights, count = rank.weights(layer), len(rank.experts)
    its = torch.nn.Module()
    its.num_experts, its.num_local_experts, its.moe_ep_rank = layer.shape[0], count, rank.rank
    its.dispatcher = module("layers.moe.token_dispatcher.standard").StandardDispatcher()
    its.moe_runner_config = module("layers.moe.moe_runner.base").MoeRunnerConfig(**config)
    method = module("layers.quantization.modelopt_quant").ModelOptNvFp4FusedMoEMethod(SimpleNamespace(group_size=16))
    sizes = {"hidden_size": layer.shape[1], "intermediate_size_per_partition": weights[0].packed.shape[1] // 2}
    method.create_weights(layer=its, num_experts=count, params_dtype=torch.bfloat16, **sizes)
    method.create_moe_runner(its, its.moe_runner_config)
    for name, found in zip(("w13", "w2"), weights, strict=True):
        getattr(its, f"{name}_weight").data.copy_(found.packed)
        getattr(its, f"{name}_weight_scale").data.view(torch.uint8).copy_(found.scales.view(torch.uint8))
        getattr(its, f"{name}_weight_scale_2").data.copy_(found.decode)
    its.w13_input_scale.data.copy_((1 / layer.x_encode)[:, None] * torch.tensor([0.7, 1.0]))
    its.w2_input_scale.data.copy_(1 / layer.h_encode)
    method.process_weights_after_loading(its)
    return functools.partial(method.apply, layer=its)


def dispatched(tokens: moe.Tokens, local: torch.Tensor | None = None) -> Any:
    """By the standard dispatcher, which has brought ids to those of the rank, -1 for experts elsewhere."""
    ids = tokens.topk_ids if local is None else local[tokens.topk_ids.long()]
    topk = module("layers.moe.topk").StandardTopKOutput(tokens.topk_weights, ids)
    return module("layers.moe.token_dispatcher.standard").StandardDispatchOutput(tokens.x, None, topk)


def drawn(generator: torch.Generator, experts: int = 4) -> tuple[moe_fragments.Layer, moe.Tokens]:
    """With decode scales of their own for gate and up, no biases, H = 64 and I = 64."""
    layer = moe_fragments.random_layer(generator, experts, 64, 64, moe.Settings(), extras=True)
    plain = dataclasses.replace(layer.plain, **{name: dataclasses.replace(getattr(layer.plain, name), bias=None)
                                                for name in ("w13", "w2")})  # fmt: skip
    return moe_fragments.Layer(plain), moe.random_tokens(generator, 7, 2, experts, 64)


def test_expert_parallel_ranks_compute_their_experts(plugin: ModuleType, generator: torch.Generator) -> None:
    """Any map of experts to ranks: each is within the bound of float64, and what is elsewhere adds nothing."""
    layer, tokens = drawn(generator)
    for number, experts in enumerate(([2, 0], [3, 1])):
        part = moe_fragments.Layer(nvfp4_layer.of_experts(layer.plain, experts))
        out = built(layer.plain, Rank(experts, number))(dispatch_output=dispatched(tokens, part.expert_map))
        moe.moe(part, tokens, "bf16").check(out.hidden_states, f"rank {number}")


def test_tensor_parallel_ranks_add_up(plugin: ModuleType, generator: torch.Generator) -> None:
    """Each has some of I, one of them so much that the kernels want zeros behind it; each result is rounded once."""
    layer, tokens = drawn(generator)
    everything = list(range(layer.shape[0]))
    parts = [built(layer.plain, Rank(everything, columns=columns))(dispatch_output=dispatched(tokens)).hidden_states
             for columns in ((0, 48), (48, 64))]  # fmt: skip
    expected = moe.moe(layer, tokens, "bf16")
    rounding = sum(part.double().abs() for part in parts) * 2.0**-8
    difference = (sum(part.double() for part in parts) - expected.value).abs()
    assert (difference <= expected.bound + rounding).all()


def test_tokens_are_quantised_where_hopper_is_not(
    plugin: ModuleType, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checkpoint's scales: the larger one of gate and up, and of the rank's experts alone."""
    monkeypatch.setenv("LOADER_EMULATED_ARCH", "120a")
    layer, tokens = drawn(generator)
    rank = Rank([2, 3], 1)
    decode = 1 / layer.plain.x_encode[2:], 1 / layer.plain.h_encode[2:]
    experts = torch_experts.of_nvfp4(*rank.weights(layer.plain), *decode)
    part = nvfp4_layer.of_experts(layer.plain, rank.experts)
    out = built(layer.plain, rank)(dispatch_output=dispatched(tokens, part.expert_map)).hidden_states
    assert experts.composite == "moe_fp4" and torch.equal(out, experts(*tokens, expert_map=part.expert_map))


def gpt_oss(layer: moe_blocks.Layer, between: int, alternate: bool = True, **config: Any) -> Any:
    """A layer in MXFP4 as ``built`` makes one, of a rank's I ``between``: what is loaded comes first in parameters."""
    experts, hidden, _ = layer.shape
    its = torch.nn.Module()
    its.num_experts = its.num_local_experts = experts
    config = {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0, "gate_up_interleaved": alternate, **config}
    its.moe_runner_config = module("layers.moe.moe_runner.base").MoeRunnerConfig(**config)
    method = module("layers.quantization.mxfp4").Mxfp4MoEMethod(prefix="experts")
    method.create_weights(layer=its, num_experts=experts, hidden_size=hidden, intermediate_size_per_partition=between,
                          params_dtype=torch.bfloat16, with_bias=True)  # fmt: skip
    method.create_moe_runner(its, its.moe_runner_config)
    for name, found in zip(("w13", "w2"), mxfp4_layer.engine(layer, alternate), strict=True):
        for suffix, stored in (("weight", found.packed), ("weight_scale", found.scales), ("weight_bias", found.bias)):
            getattr(its, f"{name}_{suffix}").data[tuple(map(slice, stored.shape))] = stored
    method.process_weights_after_loading(its)
    return functools.partial(method.apply, layer=its)


@pytest.mark.parametrize(("arch", "alternate"), [("90a", True), ("120a", True), ("90a", False)])
def test_gpt_oss_on_ranks_of_experts(plugin: ModuleType, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch,
                                     arch: str, alternate: bool) -> None:  # fmt: skip
    """Within the bound of float64, biases of experts that are elsewhere left out; gate and up in turn or in halves."""
    monkeypatch.setenv("LOADER_EMULATED_ARCH", arch)
    layer = mxfp4_layer.of_experts(mxfp4_layer.drawn(generator, 5, 96, 128), [3, 0, 4])
    tokens = moe_blocks.random_tokens(generator, layer, 6, 2, experts=5)
    out = gpt_oss(layer, 128, alternate)(dispatch_output=dispatched(tokens, layer.expert_map))
    moe.moe(mxfp4_layer.reference(arch, layer), tokens, "bf16").check(out.hidden_states, arch)


@pytest.mark.parametrize("arch", ["90a", "120a"])
def test_gpt_oss_on_ranks_of_values(plugin: ModuleType, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch,
                                    arch: str) -> None:  # fmt: skip
    """Cut between scales, the first part larger than half of I: each is within its bound, and so is their sum."""
    monkeypatch.setenv("LOADER_EMULATED_ARCH", arch)
    layer = mxfp4_layer.drawn(generator, 3, 96, 96)
    tokens = moe_blocks.random_tokens(generator, layer, 6, 2)
    total, allowed = 0.0, 0.0
    for begin, end in ((0, 64), (64, 96)):
        part = mxfp4_layer.of_rank(layer, begin, end)
        out = gpt_oss(part, 96 // 2)(dispatch_output=dispatched(tokens)).hidden_states
        expected = moe.moe(mxfp4_layer.reference(arch, part), tokens, "bf16")
        expected.check(out, f"{arch} {begin}")
        total, allowed = total + out.double(), allowed + expected.bound
    whole = moe.moe(mxfp4_layer.reference(arch, layer), tokens, "bf16")
    assert ((total - whole.value).abs() <= allowed + whole.bound).all()


def test_gpt_oss_refusals(plugin: ModuleType, generator: torch.Generator) -> None:
    """Another activation when it is built, scales out of range when loaded; another runner is not taken over."""
    layer = mxfp4_layer.drawn(generator, 2, 64, 64)
    with pytest.raises(NotImplementedError, match="activation is 'situ', only 'silu' is there"):
        gpt_oss(layer, 64, activation="situ")
    layer.w13.scales[1, 7, 1] = 2.0**34
    with pytest.raises(ValueError, match=r"moe_bf16_mxfp4: w13 of expert 1 has a scale of 2\^34"):
        gpt_oss(layer, 64)
    module("runtime_context").moe.runner_backend = "triton_kernel"
    with pytest.raises(NotImplementedError, match="Mxfp4MoEMethod has no MoeRunner for backend"):
        gpt_oss(layer, 64)
    theirs = module("layers.quantization.mxfp4").Mxfp4MoEMethod(prefix="")
    with pytest.raises(AssertionError, match="weights of Triton's"):
        theirs.process_weights_after_loading(layer=None)
    with pytest.raises(NotImplementedError, match="kernels of Triton's"):
        theirs.apply(layer=None, dispatch_output=None)


def test_prepared_weights_take_the_place_of_the_checkpoint(plugin: ModuleType, generator: torch.Generator) -> None:
    """What was loaded is not kept, and tokens are dispatched as they are."""
    layer, _ = drawn(generator)
    its = built(layer.plain, Rank([0, 1, 2, 3])).keywords["layer"]
    for name in ("w13", "w2"):
        buffers = getattr(its, plugin.EXPERTS).buffers
        assert getattr(its, f"{name}_weight").data_ptr() == buffers[name].data_ptr()
        assert getattr(its, f"{name}_blockscale_swizzled") is getattr(its, f"{name}_weight_scale")
    assert its.dispatcher.quant_config == {"input_global_scale": None}


def test_scalars_are_those_of_the_model(plugin: ModuleType) -> None:
    """Limits and alphas of SwiGLU, and where router weights apply."""
    config = module("layers.moe.moe_runner.base").MoeRunnerConfig
    assert plugin.scalars(config()) == {"weighting": "combine"}
    assert plugin.scalars(config(apply_router_weight_on_input=True, swiglu_limit=7)) == {
        "weighting": "input", "swiglu_limit": 7.0}  # fmt: skip
    oai = {"weighting": "combine", "swiglu_limit": 7.0, "swiglu_alpha": 1.702}
    assert plugin.scalars(config(gemm1_alpha=1.702, gemm1_clamp_limit=7.0)) == {**oai, "swiglu_beta": 1.0}
    assert plugin.scalars(config(gemm1_alpha=1.702, gemm1_clamp_limit=7.0, gemm1_beta=0.5)) == {
        **oai, "swiglu_beta": 0.5}  # fmt: skip


def test_nobody_else_is_taken_over(plugin: ModuleType, generator: torch.Generator) -> None:
    """With another runner, or for a method that is built on ModelOpt's, theirs is called."""
    theirs = module("layers.quantization.modelopt_quant").ModelOptNvFp4FusedMoEMethod
    with pytest.raises(ValueError, match="use Blackwell and above"):
        type("OnlineMethod", (theirs,), {})(None)
    module("runtime_context").moe.runner_backend = "auto"
    with pytest.raises(ValueError, match="use Blackwell and above"):
        theirs(None)
    module("runtime_context").moe.runner_backend = "marlin"
    method = theirs(None)
    method._moe_runner_backend = module("layers.moe.utils").get_moe_runner_backend()
    with pytest.raises(AssertionError, match="Marlin's weights"):
        method.process_weights_after_loading(layer=None)
    with pytest.raises(NotImplementedError, match="Unsupported moe_runner_backend for NVFP4 MoE"):
        method.apply(layer=None, dispatch_output=None)


@pytest.mark.parametrize(("where", "name", "value", "said"), [
    ("config", "activation", "gelu", "activation is 'gelu', only 'silu' is there"),
    ("config", "is_gated", False, "is_gated is False, only True is there"),
    ("config", "no_combine", True, "no_combine is True, only False is there"),
    ("server", "enable_eplb", True, "enable_eplb is True, only False is there"),
    ("server", "a2a_backend", "deepep", "moe_a2a_backend is 'deepep', only 'none' is there"),
])  # fmt: skip
def test_what_is_not_there_is_said_when_the_model_is_built(
    plugin: ModuleType, generator: torch.Generator, where: str, name: str, value: Any, said: str
) -> None:
    """Before weights are loaded."""
    if where == "server":
        setattr(module("runtime_context").moe, name, value)
    with pytest.raises(NotImplementedError, match=f"--moe-runner-backend block_scaled: {said}"):
        built(drawn(generator)[0].plain, Rank([0, 1, 2, 3]), **({name: value} if where == "config" else {}))


def test_what_is_not_there_in_a_call(plugin: ModuleType, generator: torch.Generator) -> None:
    """LoRA of experts, and tokens whose experts are not chosen yet."""
    layer, tokens = drawn(generator)
    call = built(layer.plain, Rank([0, 1, 2, 3]))
    runner, info = call.func.__self__.runner, plugin.QuantInfo(None)
    with pytest.raises(NotImplementedError, match="LoRA of experts is not there"):
        runner.run(dispatched(tokens), info, lora_info=object())
    with pytest.raises(NotImplementedError, match="experts of tokens come as SimpleNamespace"):
        call(dispatch_output=dispatched(tokens)._replace(topk_output=SimpleNamespace()))
