"""vLLM's experts by the plug-in on Hopper, over stand-ins for vLLM's modules: results, memory, and CUDA graphs."""

from __future__ import annotations

import types
from collections.abc import Iterator

import hardware
import numpy as np
import packs
import pytest

torch = pytest.importorskip("torch")

import contracts  # noqa: E402
import moe_reference as moe  # noqa: E402
import vllm_layer  # noqa: E402
import vllm_stubs  # noqa: E402
from moe_reference import AnyLayer, Tokens  # noqa: E402

EXPERTS, HIDDEN, BETWEEN, TOP_K = 16, 1024, 416, 4  # I is filled up to 448
ACTIVATION = "vllm.model_executor.layers.fused_moe.activation"
Made = tuple[AnyLayer, object, torch.nn.Module]


@pytest.fixture
def vllm() -> Iterator[dict[str, types.ModuleType]]:
    if not packs.artifacts("grouped_bf16_nvfp4_swiglu", hardware.runs_here):
        pytest.skip("moe_bf16_nvfp4 is for Hopper")
    with vllm_stubs.installed(contracts.recorded("vllm")[-1]) as modules:
        vllm_layer.patched(modules, "90a")
        yield modules


@pytest.fixture
def generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator("cuda").manual_seed(int(rng.integers(1 << 62)))


def made(vllm: dict[str, types.ModuleType], generator: torch.Generator) -> Made:
    """The reference's layer, and method and parameters that vLLM would have."""
    layer, stored = vllm_layer.drawn(generator, "90a", EXPERTS, HIDDEN, BETWEEN, moe.Settings(), up_alpha=True)
    module = vllm_layer.loaded(stored)
    moe_config = vllm_layer.config(vllm[ACTIVATION], HIDDEN, BETWEEN)
    return layer, vllm_layer.method_of(vllm, moe_config, module, "NVFP4"), module


@pytest.mark.parametrize("count", [1, 7, 64, 700])
def test_results_and_memory(count: int, vllm: dict[str, types.ModuleType], generator: torch.Generator) -> None:
    """Within the bound; and once more without an allocation of torch's."""
    layer, method, module = made(vllm, generator)
    tokens = moe.random_tokens(generator, count, TOP_K, EXPERTS, HIDDEN)
    memory = vllm_layer.memory_for(method, module, tokens)
    vllm_layer.apply(method, module, tokens, memory)
    moe.moe(layer, tokens, "bf16").check(memory[2], f"{count} tokens")
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    vllm_layer.apply(method, module, tokens, memory)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_graphs_see_new_routing(vllm: dict[str, types.ModuleType], generator: torch.Generator) -> None:
    """Captured before any call of its size; each replay has the bytes of a call."""
    _, method, module = made(vllm, generator)
    draws = [moe.random_tokens(generator, 48, TOP_K, EXPERTS, HIDDEN) for _ in range(20)]
    tokens = Tokens(*(tensor.clone() for tensor in draws[0]))
    memory = vllm_layer.memory_for(method, module, tokens)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        vllm_layer.apply(method, module, tokens, memory)
    for drawn in draws:
        for held, new in zip(tokens, drawn, strict=True):
            held.copy_(new)
        memory[2].fill_(torch.nan)
        graph.replay()
        assert torch.equal(memory[2], vllm_layer.call(method, module, drawn))
