"""moe_fp4 on MoE layers of real models: every element against float64, and CUDA graphs that see new routing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

import moe_reference as moe  # noqa: E402
from device_problem import Output  # noqa: E402
from moe_reference import Layer, Settings, Tokens  # noqa: E402

import loader  # noqa: E402

DEVICE = "cuda"


@dataclasses.dataclass(frozen=True)
class Model:
    """The MoE layer of a model: sizes as its published configuration has them."""

    experts: int
    top_k: int
    hidden: int
    between: int
    settings: Settings = Settings()

    def layer(self, generator: torch.Generator) -> Layer:
        return moe.random_layer(generator, self.experts, self.hidden, self.between, self.settings)

    def draw(self, generator: torch.Generator, tokens: int) -> Tokens:
        """Random tokens, of which some have slots for experts elsewhere."""
        drawn = moe.random_tokens(generator, tokens, self.top_k, self.experts, self.hidden)
        elsewhere = torch.rand(drawn.topk_ids.shape, device=DEVICE, generator=generator) < 1 / 64
        return drawn._replace(topk_ids=drawn.topk_ids.masked_fill(elsewhere, -1))


GPT_OSS = Settings(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)
MODELS = {
    "deepseek_v3": (Model(256, 8, 7168, 2048), (1, 8, 64, 512, 4096)),
    "gpt_oss_120b": (Model(128, 4, 2880, 2880, GPT_OSS), (1, 8, 64)),
    "qwen3_235b": (Model(128, 8, 4096, 1536), (1, 8, 64)),
}
MANY_EXPERTS = Model(1024, 4, 256, 128)
TAILS = Model(12, 3, 2912, 1440, Settings(weighting="activation", global_scale_kind="decode", intermediate="f32"))
SMALL = Model(16, 4, 512, 256)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def run(layer: Layer, tokens: Tokens, out_type: str = "bf16", **others: torch.Tensor | None) -> torch.Tensor:
    """An eager launch into a poisoned output, with ``others`` in place of the layer's; nothing else is written."""
    count, hidden = tokens.x.shape
    out = Output(count, hidden, out_type, tokens.x.device)
    loader.launch(layer.composite, **tokens._asdict(), **layer.arguments | others, out=out.array)
    assert out.intact(count), "wrote outside the output"
    return out.array


def workspace(model: Model, tokens: int) -> torch.Tensor:
    size = loader.workspace_bytes(
        "moe_fp4", T=tokens, TOPK=model.top_k, E=model.experts, H=model.hidden, I=model.between, x="bf16",
        topk_ids="i32", out="bf16", global_scale_kind="encode",
    )  # fmt: skip
    return torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE)


@pytest.fixture(scope="module", params=MODELS)
def model_layer(request: pytest.FixtureRequest, seed: int) -> Iterator[tuple[Model, tuple[int, ...], Layer]]:
    model, counts = MODELS[request.param]
    yield model, counts, model.layer(torch.Generator(DEVICE).manual_seed(seed))
    torch.cuda.empty_cache()


def test_every_element_is_within_the_bound(
    model_layer: tuple[Model, tuple[int, ...], Layer], generator: torch.Generator
) -> None:
    """fp32 sums and the stated roundings explain every difference, at 1 to 4096 tokens; the kernels one by one, L1 and
    its activation unfused, give the same bytes."""
    model, counts, layer = model_layer
    for count in counts:
        tokens = model.draw(generator, count)
        expected = moe.moe(layer, tokens, "bf16")
        assert expected.bound.median() < 0.05 * expected.value.square().mean().sqrt()
        whole = run(layer, tokens)
        expected.check(whole, f"{count} tokens")
        steps = torch.full_like(whole, torch.nan)
        moe.launch_steps(loader.launch, layer, tokens, steps, fused=False)
        assert torch.equal(whole, steps), f"{count} tokens: fused and unfused differ"


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_a_nan_reaches_the_tokens_it_has_a_part_in(activation: str, generator: torch.Generator) -> None:
    """And changes no byte of the others, whatever the tile: 1 to 1024 tokens."""
    limit = {"swiglu_limit": 7.0} if activation == "silu" else {}
    model = dataclasses.replace(SMALL, settings=Settings(activation=activation, **limit))
    layer = model.layer(generator)
    for count in (1, 40, 1024):
        tokens = model.draw(generator, count)
        clean = run(layer, tokens)
        assert not clean.isnan().any()
        for name, changed, reached in moe.with_nan(layer, tokens, expert=5, token=count // 2):
            out = run(*changed)
            assert torch.equal(out[~reached], clean[~reached]), f"{count} tokens, {name}"
            here = reached & (tokens.topk_ids >= 0).any(dim=1)
            assert out[here].isnan().any(dim=1).all(), f"{count} tokens, {name}"


@pytest.mark.parametrize("given", [False, True], ids=["pool", "workspace"])
def test_a_graph_replays_on_new_routing(given: bool, generator: torch.Generator) -> None:
    """Captured once, replayed with other tokens and other experts in the same buffers: what an eager launch gives."""
    loader.preload("moe_fp4")
    model, _ = MODELS["qwen3_235b"]
    layer = model.layer(generator)
    for count in (1, 3, 64, 500, 4096):
        static = model.draw(generator, count)
        out = torch.full_like(static.x, torch.nan)
        memory = workspace(model, count) if given else None
        plan = loader.plan("moe_fp4", **static._asdict(), **layer.arguments, out=out, workspace=memory)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plan.launch(torch.cuda.current_stream())
        everything_on_one = model.draw(generator, count)
        everything_on_one.topk_ids.fill_(model.experts - 1)
        for tokens in (model.draw(generator, count), everything_on_one, model.draw(generator, count)):
            for buffer, new in zip(static, tokens, strict=True):
                buffer.copy_(new)
            out.fill_(torch.nan)
            graph.replay()
            assert torch.equal(out, run(layer, tokens)), f"{count} tokens"


def test_layers_follow_one_another(generator: torch.Generator) -> None:
    """Each with its routing and alphas, in one workspace and without a pause; weights are loaded while the step before
    still runs: what each gives alone."""
    model, _ = MODELS["qwen3_235b"]
    layer = model.layer(generator)
    for count in (1, 20, 300):
        many = [model.draw(generator, count) for _ in range(40)]
        alphas = [layer.arguments["w13_alpha"] * 2.0 ** (i % 3) for i in range(len(many))]
        alone = [run(layer, tokens, w13_alpha=alpha) for tokens, alpha in zip(many, alphas, strict=True)]
        outs = [torch.full_like(tokens.x, torch.nan) for tokens in many]
        memory, shared, stream = workspace(model, count), alphas[0].clone(), torch.cuda.current_stream()
        plans = [
            loader.plan("moe_fp4", **tokens._asdict(), **layer.arguments | {"w13_alpha": shared}, out=out,
                        workspace=memory)
            for tokens, out in zip(many, outs, strict=True)
        ]  # fmt: skip
        for plan, alpha in zip(plans, alphas, strict=True):
            shared.copy_(alpha)
            plan.launch(stream)
        assert all(map(torch.equal, outs, alone)), f"{count} tokens"


@pytest.mark.parametrize(("model", "count"), [(MANY_EXPERTS, 700), (TAILS, 70)], ids=["most_experts", "tails"])
def test_unusual_layers(model: Model, count: int, generator: torch.Generator) -> None:
    """1,024 experts of which some have no token; H and I that end inside a tile and inside a word of scales."""
    layer, tokens = model.layer(generator), model.draw(generator, count)
    for out_type in ("bf16", "f16", "f32"):
        moe.moe(layer, tokens, out_type).check(run(layer, tokens, out_type), out_type)


def test_chunks_of_a_small_workspace_change_nothing(generator: torch.Generator) -> None:
    """Equal bytes."""
    layer, tokens = SMALL.layer(generator), SMALL.draw(generator, 300)
    whole = run(layer, tokens)
    for count in (300, 77, 1):
        assert torch.equal(run(layer, tokens, workspace=workspace(SMALL, count)), whole), f"{count} tokens a chunk"


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
@pytest.mark.parametrize("weighting", ["combine", "input"])
def test_all_that_may_be_left_out(activation: str, weighting: str, generator: torch.Generator) -> None:
    """Biases, an alpha of up and a map of experts, with each activation: within the bound, and the bytes of the kernels
    one by one."""
    model = Model(16, 4, 512, 256, Settings(activation=activation, weighting=weighting))
    layer, tokens = moe.with_biases(generator, model.layer(generator)), model.draw(generator, 300)
    here = torch.randperm(24, device=DEVICE, generator=generator)[:16].int()
    layer = dataclasses.replace(layer, expert_map=torch.where(here < 16, here, -1))
    out = run(layer, tokens)
    moe.moe(layer, tokens, "bf16").check(out, activation)
    steps = torch.full_like(out, torch.nan)
    moe.launch_steps(loader.launch, layer, tokens, steps)
    assert torch.equal(out, steps)


def test_a_graph_replays_with_another_map(generator: torch.Generator) -> None:
    """What was captured with optional buffers reads them at every replay."""
    loader.preload("moe_fp4")
    layer, tokens = moe.with_biases(generator, SMALL.layer(generator)), SMALL.draw(generator, 40)
    expert_map = torch.arange(16, dtype=torch.int32, device=DEVICE)
    layer, out = dataclasses.replace(layer, expert_map=expert_map), torch.full_like(tokens.x, torch.nan)
    plan, graph = loader.plan("moe_fp4", **tokens._asdict(), **layer.arguments, out=out), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.launch(torch.cuda.current_stream())
    for _ in range(3):
        expert_map.copy_(torch.randperm(16, device=DEVICE, generator=generator))
        layer.w13.bias.neg_()
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, run(layer, tokens))


@pytest.mark.parametrize("weights", ["w13", "w2"])
def test_a_scale_byte_of_zero_is_zero(weights: str, generator: torch.Generator) -> None:
    """Whatever the elements: of all scales of a weight, and of tokens that are zero."""
    layer, tokens = SMALL.layer(generator), SMALL.draw(generator, 40)
    assert not run(layer, tokens._replace(x=torch.zeros_like(tokens.x))).any()
    getattr(layer, weights).groups.zero_()
    layer.__dict__.pop("arguments", None)
    assert not run(layer, tokens).any()
