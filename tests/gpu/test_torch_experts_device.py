"""Experts of engines in FP4 on a GPU: within the bound of float64, and a CUDA graph that sees new routing."""

from __future__ import annotations

import dataclasses

import hardware
import packs
import pytest

torch = pytest.importorskip("torch")

import moe_blocks  # noqa: E402
import moe_fragments  # noqa: E402
import moe_reference as moe  # noqa: E402
import mxfp4_layer  # noqa: E402
import nvfp4_layer  # noqa: E402

from integrations import torch_experts  # noqa: E402

EXPERTS, HIDDEN, BETWEEN, TOP_K, TOKENS = 16, 2048, 704, 4, 96


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    families = ("grouped_bf16_nvfp4_swiglu", "grouped_bf16_mxfp4_swiglu")
    if not all(packs.artifacts(family, hardware.runs_here) for family in families):
        pytest.skip("the reference is of tokens in 16 bits, which are for Hopper")


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator("cuda").manual_seed(seed)


def drawn(generator: torch.Generator, between: int) -> moe_fragments.Layer:
    """With a decode scale of its own for up, and without biases."""
    layer = moe_fragments.random_layer(generator, EXPERTS, HIDDEN, between, moe.Settings(), extras=True)
    weights = {name: dataclasses.replace(getattr(layer.plain, name), bias=None) for name in ("w13", "w2")}
    return dataclasses.replace(layer, plain=dataclasses.replace(layer.plain, **weights))


@pytest.mark.parametrize("between", [BETWEEN, BETWEEN - 32])
def test_every_element_is_within_the_bound(between: int, generator: torch.Generator) -> None:
    """Also where zeros stand behind I."""
    layer, tokens = drawn(generator, between), moe.random_tokens(generator, TOKENS, TOP_K, EXPERTS, HIDDEN)
    experts = torch_experts.of_nvfp4(*nvfp4_layer.engine(layer.plain))
    assert experts.composite == "moe_bf16_nvfp4"
    moe.moe(layer, tokens, "bf16").check(experts(*tokens), f"I = {between}")


@pytest.mark.parametrize("between", [704, 2880 // 4 + 16])
def test_gpt_oss_is_within_the_bound(between: int, generator: torch.Generator) -> None:
    """Its H, activation and biases; of I as it is, and of one of four ranks, behind which zeros stand."""
    layer = mxfp4_layer.drawn(generator, EXPERTS, 2880, between)
    tokens = moe_blocks.random_tokens(generator, layer, TOKENS, TOP_K)
    experts = torch_experts.of_mxfp4(*mxfp4_layer.engine(layer), alternate=True, **mxfp4_layer.GPT_OSS)
    assert experts.composite == "moe_bf16_mxfp4"
    moe.moe(mxfp4_layer.reference("90a", layer), tokens, "bf16").check(experts(*tokens), f"I = {between}")


def test_a_graph_sees_new_routing(generator: torch.Generator) -> None:
    """As engines capture a batch size after a first call of it; the bytes are those of a call."""
    layer, tokens = drawn(generator, BETWEEN), moe.random_tokens(generator, TOKENS, TOP_K, EXPERTS, HIDDEN)
    experts = torch_experts.of_nvfp4(*nvfp4_layer.engine(layer.plain))
    experts(*tokens)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = experts(*tokens)
    for _ in range(20):
        other = moe.random_tokens(generator, TOKENS, TOP_K, EXPERTS, HIDDEN)
        for mine, new in zip(tokens, other, strict=True):
            mine.copy_(new)
        graph.replay()
        assert torch.equal(out, experts(*other))


def test_matrices_are_quantised_as_torch_would(generator: torch.Generator) -> None:
    """Each element within half a step of its block's scale."""
    matrices = torch.randn(3, 64, 256, generator=generator, device="cuda").bfloat16()
    blocks = matrices.double().unflatten(2, (-1, 16))
    error = (nvfp4_layer.values(torch_experts.quantized(matrices)).unflatten(2, (-1, 16)) - blocks).abs()
    assert (error <= 1.1 * blocks.abs().amax(dim=3, keepdim=True) / 6).all()
