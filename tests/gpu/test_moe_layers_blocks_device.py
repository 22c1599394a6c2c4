"""Layers with scales in blocks of 32 or 128 at sizes of real models: every element against float64, and CUDA graphs
that see new routing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

import moe_blocks  # noqa: E402
import moe_reference as moe  # noqa: E402
from device_problem import Output  # noqa: E402
from moe_blocks import FORMATS, Layer, Masked, Settings  # noqa: E402
from moe_reference import Tokens  # noqa: E402

import loader  # noqa: E402

DEVICE = "cuda"
GPT_OSS = Settings(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)
MX = ("moe_mxfp8", "moe_mxfp8_mxfp4", "moe_mxfp4")
ON_HOPPER, ON_BLACKWELL = ("moe_fp8", "moe_fp8_channel", *MX), ("moe_fp8_ue8m0", *MX)


@dataclasses.dataclass(frozen=True)
class Model:
    """The MoE layer of a model: sizes as its published configuration has them, I up to a multiple of 128."""

    experts: int
    top_k: int
    hidden: int
    between: int
    formats: tuple[str, ...]
    settings: Settings = Settings()
    extras: bool = False


FP8 = ("moe_fp8", "moe_fp8_ue8m0")
MODELS = {
    "deepseek_v3": Model(256, 8, 7168, 2048, FP8),
    "qwen3_235b": Model(128, 8, 4096, 1536, FP8),
    "glm_4_5": Model(160, 8, 5120, 1536, (*FP8, "moe_fp8_channel")),
    "gpt_oss_20b": Model(32, 4, 2880, 2944, ("moe_mxfp8_mxfp4",), GPT_OSS, True),
    "gpt_oss_120b": Model(128, 4, 2880, 2944, ("moe_mxfp8_mxfp4",), GPT_OSS, True),
}
SMALL = Model(16, 4, 544, 384, (*FP8, "moe_fp8_channel", *MX), extras=True)


def names(model: Model) -> list[str]:
    """The layers that this device has kernels for."""
    here = ON_HOPPER if torch.cuda.get_device_capability()[0] == 9 else ON_BLACKWELL
    return [name for name in model.formats if name in here]


def draw(generator: torch.Generator, model: Model, name: str) -> Layer:
    layer = moe_blocks.random_layer(generator, FORMATS[name], model.experts, model.hidden, model.between,
                                    model.settings, model.extras)  # fmt: skip
    return dataclasses.replace(layer, on_hopper=name in ON_HOPPER and torch.cuda.get_device_capability()[0] == 9)


def draw_tokens(generator: torch.Generator, layer: Layer, model: Model, count: int) -> Tokens:
    """Of which some have slots for experts elsewhere."""
    drawn = moe_blocks.random_tokens(generator, layer, count, model.top_k)
    elsewhere = torch.rand(drawn.topk_ids.shape, device=DEVICE, generator=generator) < 1 / 64
    return drawn._replace(topk_ids=drawn.topk_ids.masked_fill(elsewhere, -1))


def run(layer: Layer, tokens: Tokens, workspace: torch.Tensor | None = None) -> torch.Tensor:
    """An eager launch into a poisoned output; nothing else is written."""
    out = Output(*tokens.x.shape, "bf16", tokens.x.device)
    loader.launch(layer.composite, **tokens._asdict(), **layer.arguments, out=out.array, workspace=workspace)
    assert out.intact(len(tokens.x)), "wrote outside the output"
    return out.array


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


@pytest.fixture(scope="module", params=MODELS)
def model_layers(request: pytest.FixtureRequest, seed: int) -> Iterator[tuple[Model, list[Layer]]]:
    model = MODELS[request.param]
    yield model, [draw(torch.Generator(DEVICE).manual_seed(seed), model, name) for name in names(model)]
    torch.cuda.empty_cache()


def test_every_element_is_within_the_bound(
    model_layers: tuple[Model, list[Layer]], generator: torch.Generator
) -> None:
    """fp32 sums, what Hopper cuts, and the stated roundings explain every difference, at 1 to 4096 tokens. All together
    they are far less than what a bound allows to each."""
    model, layers = model_layers
    for layer in layers:
        for count in (1, 8, 64, 512, 4096):
            tokens = draw_tokens(generator, layer, model, count)
            expected = moe.moe(layer, tokens, "bf16")
            size = expected.value.square().mean().sqrt()
            assert expected.bound.median() < size / 3  # 0.28 of 7168 products, each rounded to the side that adds up
            out = run(layer, tokens)
            expected.check(out, f"{layer.composite} {count} tokens")
            assert (out - expected.value).square().mean().sqrt() < 0.02 * size


def test_a_graph_replays_on_new_routing(generator: torch.Generator) -> None:
    """Captured once, replayed with other tokens and other experts in the same buffers: what an eager launch gives."""
    for name in names(SMALL):
        loader.preload(name)
        layer = draw(generator, SMALL, name)
        for count in (1, 64, 500):
            static = draw_tokens(generator, layer, SMALL, count)
            out = torch.full_like(static.x, torch.nan)
            plan = loader.plan(name, **static._asdict(), **layer.arguments, out=out)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                plan.launch(torch.cuda.current_stream())
            everything_on_one = draw_tokens(generator, layer, SMALL, count)
            everything_on_one.topk_ids.fill_(SMALL.experts - 1)
            for tokens in (draw_tokens(generator, layer, SMALL, count), everything_on_one):
                for buffer, new in zip(static, tokens, strict=True):
                    buffer.copy_(new)
                out.fill_(torch.nan)
                graph.replay()
                assert torch.equal(out, run(layer, tokens)), f"{name} {count} tokens"


def test_chunks_of_a_small_workspace_change_nothing(generator: torch.Generator) -> None:
    """Equal bytes."""
    for name in names(SMALL):
        layer = draw(generator, SMALL, name)
        tokens = draw_tokens(generator, layer, SMALL, 300)
        whole = run(layer, tokens)
        for count in (77, 1):
            size = loader.workspace_bytes(
                name, T=count, TOPK=SMALL.top_k, E=SMALL.experts, H=SMALL.hidden, I=SMALL.between, x="bf16",
                topk_ids="i32", out="bf16", **layer.scalars,
            )  # fmt: skip
            memory = torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE)
            assert torch.equal(run(layer, tokens, memory), whole), f"{name} {count} tokens a chunk"


def test_a_nan_reaches_the_tokens_it_has_a_part_in(generator: torch.Generator) -> None:
    """And changes no byte of the others."""
    for name in names(SMALL):
        layer = draw(generator, SMALL, name)
        tokens = draw_tokens(generator, layer, SMALL, 40)
        clean = run(layer, tokens)
        assert not clean.isnan().any()
        for case, changed, reached in moe_blocks.with_nan(layer, tokens, expert=5, token=20):
            out = run(*changed)
            assert torch.equal(out[~reached], clean[~reached]), f"{name} {case}"
            here = reached & (tokens.topk_ids >= 0).any(dim=1)
            assert out[here].isnan().any(dim=1).all(), f"{name} {case}"


def test_masked_rows(generator: torch.Generator) -> None:
    """Of matrices that are full, empty, and between: within the bound, and no other row is written."""
    model = MODELS["qwen3_235b"]
    for name in names(model):
        layer = draw(generator, model, name)
        counts = torch.randint(0, 65, (model.experts,), device=DEVICE, generator=generator).tolist()
        call = Masked.random(generator, layer, [0, 64, *counts[2:]], 64, weighted=True)
        out = call.output()
        loader.launch(f"{name}_masked", **call.arguments, out=out, expected_rows=32)
        call.check(out, name)
