"""Layers of 16-bit tokens and FP4 weights on a GPU: their first GEMM in every variant, layers of real models against
float64, and CUDA graphs that see new routing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import hardware
import numpy as np
import packs
import pytest
import reference

torch = pytest.importorskip("torch")

import moe_fragments  # noqa: E402
import moe_reference as moe  # noqa: E402
from device_problem import Output  # noqa: E402
from gated_fragments import FORMATS as GATED  # noqa: E402
from gated_fragments import GPT_OSS, Problem, Settings  # noqa: E402
from moe_fragments import FORMATS, Layer  # noqa: E402
from moe_reference import Tokens  # noqa: E402
from test_grouped_bf16_fp4_device import COUNTS, to_device  # noqa: E402

import loader  # noqa: E402

DEVICE = "cuda"
SETTINGS = [Settings(), GPT_OSS, Settings("f32", activation="gelu_tanh", swiglu_limit=7.0)]


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    if not any(packs.artifacts(family, hardware.runs_here) for family in GATED):
        pytest.skip("these layers are for Hopper")


def every_variant() -> pytest.MarkDecorator:
    """Those that run on device 0."""
    families = GATED if hardware.cuda_devices() else ()
    found = [(family, *each) for family in families for each in packs.output_types(family, hardware.runs_here).items()]
    return pytest.mark.parametrize(("family", "name", "element"), found or [("", "no device", "")])


def repeated(name: str, problem: Problem, settings: Settings, prefetch: str) -> reference.GuardedOutput:
    """``out`` of 20 launches into poisoned outputs, all of them equal."""
    inputs, held = {key: to_device(array) for key, array in problem.inputs().items()}, problem.output()
    outs = [to_device(held.array.copy()) for _ in range(20)]
    for out in outs:
        loader.launch(problem.call, **inputs, out=out, variant=name, prefetch=prefetch,
                      **dataclasses.asdict(settings))  # fmt: skip
    stored = [out.view(torch.int16).cpu() for out in outs]
    assert all(torch.equal(other, stored[0]) for other in stored)
    held.array[:] = stored[0].numpy().view(held.array.dtype)
    return held


@every_variant()
def test_groups(family: str, name: str, element: str, rng: np.random.Generator) -> None:
    """Empty experts, one row, several tiles of rows; half a tile of columns, a tail of K; NaN in padding and in rows of
    no expert; with and without all that may be left out."""
    for settings, extras in zip(SETTINGS, (False, True, True), strict=True):
        problem = Problem.random(rng, element, COUNTS, 448, 1136, extras=extras, unowned_rows=2, formats=GATED[family])
        problem.verify(settings, repeated(name, problem, settings, "weights" if extras else "none"), name)


@dataclasses.dataclass(frozen=True)
class Model:
    """The MoE layer of a model: sizes as its published configuration has them."""

    experts: int
    top_k: int
    hidden: int
    between: int
    settings: moe.Settings = moe.Settings()
    extras: bool = False
    composite: str = "moe_bf16_nvfp4"

    def layer(self, generator: torch.Generator) -> Layer:
        return moe_fragments.random_layer(generator, self.experts, self.hidden, self.between, self.settings,
                                          self.extras, FORMATS[self.composite])  # fmt: skip

    def draw(self, generator: torch.Generator, tokens: int, dtype: str = "bf16") -> Tokens:
        """Random tokens, of which some have slots for experts elsewhere; quarters, so that sums of L1 are exact, and
        what bounds them does not hide what the layer does."""
        drawn = moe.random_tokens(generator, tokens, self.top_k, self.experts, self.hidden, dtype)
        elsewhere = torch.rand(drawn.topk_ids.shape, device=DEVICE, generator=generator) < 1 / 64
        return drawn._replace(x=(drawn.x * 4).round() / 4, topk_ids=drawn.topk_ids.masked_fill(elsewhere, -1))


ACTIVATION = moe.Settings(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)
MX = {"settings": ACTIVATION, "extras": True, "composite": "moe_bf16_mxfp4"}
MODELS = {"deepseek_v3": Model(256, 8, 7168, 2048), "qwen3_235b": Model(128, 8, 4096, 1536),
          "gpt_oss_20b": Model(32, 4, 2880, 2880, **MX), "gpt_oss_120b": Model(128, 4, 2880, 2880, **MX),
          "a_fourth_of_gpt_oss_120b": Model(128, 4, 2880, 768, **MX)}  # fmt: skip
SMALL = {"moe_bf16_nvfp4": Model(16, 4, 528, 320, ACTIVATION, True), "moe_bf16_mxfp4": Model(16, 4, 544, 320, **MX)}
every_layer = pytest.mark.parametrize("composite", FORMATS)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


@pytest.fixture(scope="module", params=MODELS)
def model_layer(request: pytest.FixtureRequest, seed: int) -> Iterator[tuple[Model, Layer]]:
    model = MODELS[request.param]
    yield model, model.layer(torch.Generator(DEVICE).manual_seed(seed))
    torch.cuda.empty_cache()


def run(layer: Layer, tokens: Tokens, dtype: str = "bf16", workspace: torch.Tensor | None = None) -> torch.Tensor:
    """An eager launch into a poisoned output; nothing else is written."""
    out = Output(*tokens.x.shape, dtype, tokens.x.device)
    loader.launch(layer.composite, **tokens._asdict(), **layer.arguments, out=out.array, workspace=workspace)
    assert out.intact(len(tokens.x)), "wrote outside the output"
    return out.array


def test_every_element_is_within_the_bound(model_layer: tuple[Model, Layer], generator: torch.Generator) -> None:
    """fp32 sums and the stated roundings explain every difference, at 1 to 4096 tokens."""
    model, layer = model_layer
    for count in (1, 8, 64, 512, 4096):
        tokens = model.draw(generator, count)
        expected = moe.moe(layer, tokens, "bf16")
        assert expected.bound.median() < 0.05 * expected.value.square().mean().sqrt()
        expected.check(run(layer, tokens), f"{count} tokens")


@pytest.mark.parametrize(("composite", "dtype"), [("moe_bf16_nvfp4", "bf16"), ("moe_bf16_nvfp4", "f16"),
                                                  ("moe_bf16_mxfp4", "bf16")])  # fmt: skip
def test_chunks_of_a_small_workspace_change_nothing(composite: str, dtype: str, generator: torch.Generator) -> None:
    """Within the bound, and equal bytes."""
    model = SMALL[composite]
    layer, tokens = model.layer(generator), model.draw(generator, 300, dtype)
    whole = run(layer, tokens, dtype)
    moe.moe(layer, tokens, dtype).check(whole)
    for count in (77, 1):
        size = loader.workspace_bytes(
            composite, T=count, TOPK=model.top_k, E=model.experts, H=model.hidden, I=model.between, x=dtype,
            topk_ids="i32", out=dtype, **layer.scalars,
        )  # fmt: skip
        memory = torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE)
        assert torch.equal(run(layer, tokens, dtype, memory), whole), f"{count} tokens a chunk"


@every_layer
def test_a_graph_replays_on_new_routing(composite: str, generator: torch.Generator) -> None:
    """Captured once, replayed with other tokens and other experts in the same buffers: what an eager launch gives."""
    loader.preload(composite)
    model = SMALL[composite]
    layer = model.layer(generator)
    for count in (1, 64, 500):
        static = model.draw(generator, count)
        out = torch.full_like(static.x, torch.nan)
        plan = loader.plan(composite, **static._asdict(), **layer.arguments, out=out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plan.launch(torch.cuda.current_stream())
        everything_on_one = model.draw(generator, count)
        everything_on_one.topk_ids.fill_(model.experts - 1)
        for tokens in (model.draw(generator, count), everything_on_one):
            for buffer, new in zip(static, tokens, strict=True):
                buffer.copy_(new)
            out.fill_(torch.nan)
            graph.replay()
            assert torch.equal(out, run(layer, tokens)), f"{count} tokens"


@every_layer
def test_a_nan_reaches_the_tokens_it_has_a_part_in(composite: str, generator: torch.Generator) -> None:
    """And changes no byte of the others."""
    layer, tokens = SMALL[composite].layer(generator), SMALL[composite].draw(generator, 40)
    clean = run(layer, tokens)
    assert not clean.isnan().any()
    for case, changed, reached in moe_fragments.with_nan(layer, tokens, expert=5, token=20):
        out = run(*changed)
        assert torch.equal(out[~reached], clean[~reached]), case
        here = reached & (tokens.topk_ids >= 0).any(dim=1)
        assert out[here].isnan().any(dim=1).all(), case
