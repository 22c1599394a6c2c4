"""The layers moe_bf16_nvfp4 and moe_bf16_mxfp4, executed from their kernels' PTX on the emulated device, checks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import moe_fragments  # noqa: E402
import moe_reference as moe  # noqa: E402
from layer_runner import Runner  # noqa: E402
from moe_fragments import FORMATS, Layer  # noqa: E402
from moe_reference import Settings, Tokens  # noqa: E402

import loader  # noqa: E402

GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes, and how the layer is used. routed: experts everywhere; as many as here if 0."""

    tokens: int
    top_k: int
    experts: int
    hidden: int
    between: int
    settings: Settings = Settings()
    dtype: str = "bf16"
    ids: torch.dtype = torch.int32
    routed: int = 0
    extras: bool = False
    layer: str = "moe_bf16_nvfp4"

    def draw(self, generator: torch.Generator) -> tuple[Layer, Tokens]:
        layer = moe_fragments.random_layer(generator, self.experts, self.hidden, self.between, self.settings,
                                           self.extras, FORMATS[self.layer])  # fmt: skip
        return layer, moe.random_tokens(generator, self.tokens, self.top_k, self.routed or self.experts, self.hidden,
                                        self.dtype, self.ids)  # fmt: skip


MX, GATED = "moe_bf16_mxfp4", Settings(intermediate="f32", **GPT_OSS)
SMALL = {name: Case(9, 2, 5, 96, 64, layer=name) for name in FORMATS}
CASES = {
    "tails_of_all_dimensions": Case(21, 3, 9, 176, 192),
    "weights_in_the_activation": Case(
        13, 2, 4, 64, 64, Settings(weighting="activation", intermediate="f32", **GPT_OSS), "f16", torch.int64,
        extras=True),
    "part_of_the_experts": Case(17, 3, 4, 96, 128, Settings(first_expert=5, intermediate="f16"), routed=12),
    "weights_in_the_input": Case(15, 3, 4, 80, 64, Settings(weighting="input", activation="gelu_tanh"), "f16"),
    "one_token": Case(1, 2, 3, 272, 320, Settings(swiglu_limit=7.0), extras=True),
    "powers_and_tails": Case(21, 3, 9, 160, 192, ids=torch.int64, layer=MX),
    "powers_in_a_rank_of_gpt_oss": Case(
        17, 3, 4, 96, 128, dataclasses.replace(GATED, first_expert=5), routed=12, extras=True, layer=MX),
    "powers_and_weights_in_the_activation": Case(
        13, 2, 4, 64, 64, dataclasses.replace(GATED, weighting="activation"), layer=MX),
    "powers_and_one_token": Case(1, 2, 3, 288, 320, Settings(weighting="input", intermediate="f16"), layer=MX),
}  # fmt: skip
every_layer = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture
def run(runner: Callable[[str], Runner]) -> Runner:
    return runner("90a")


@pytest.mark.parametrize("case", CASES)
def test_every_element_is_within_the_bound(case: str, run: Runner, generator: torch.Generator) -> None:
    """Whatever the order of fp32 sums, which the bound allows for; it is narrow: hundredths of the results."""
    layer, tokens = CASES[case].draw(generator)
    expected = moe.moe(layer, tokens, CASES[case].dtype)
    assert expected.bound.median() < 0.02 * expected.value.square().mean().sqrt()
    expected.check(run(layer, tokens, CASES[case].dtype), run.schedule)


@every_layer
def test_a_map_of_experts_and_chunks(name: str, run: Runner, generator: torch.Generator) -> None:
    """Biases, an alpha of up and a map: within the bound, and the same bytes in chunks of a small workspace."""
    layer, tokens = dataclasses.replace(SMALL[name], tokens=7, experts=4, routed=9, extras=True).draw(generator)
    expert_map = torch.tensor([3, -1, 0, 4, 2, -7, 1, 2, 1 << 30], dtype=torch.int32)
    layer = Layer(dataclasses.replace(layer.plain, expert_map=expert_map))
    out = run(layer, tokens)
    moe.moe(layer, tokens, "bf16").check(out, run.schedule)
    for count in (7, 3, 1):
        assert torch.equal(run(layer, tokens, workspace=run.workspace(layer, tokens, count)), out), f"{count} a chunk"


@every_layer
def test_awkward_routing(name: str, run: Runner, generator: torch.Generator) -> None:
    """Experts without tokens, one with all, ids of no expert; a token without experts gets zeros."""
    layer, tokens = SMALL[name].draw(generator)
    ids = tokens.topk_ids
    holes = ids.clone()
    holes[0], holes[1, 0], holes[2, 1], holes[3] = -1, -1, 5, 1 << 30
    for routed in (torch.full_like(ids, 3), holes, ids - 100):
        changed = tokens._replace(topk_ids=routed)
        out = run(layer, changed)
        moe.moe(layer, changed, "bf16").check(out, run.schedule)
        assert not out[~((routed >= 0) & (routed < 5)).any(dim=1)].any()


@every_layer
def test_a_nan_reaches_the_tokens_it_has_a_part_in(name: str, run: Runner, generator: torch.Generator) -> None:
    """Those of the expert whose weights have one, or the token itself; no other byte changes."""
    layer, tokens = SMALL[name].draw(generator)
    tokens.topk_ids[0, 0], tokens.topk_ids[1] = 2, 3  # some have expert 2, some do not
    run.check_reach(layer, tokens, moe_fragments.with_nan(layer, tokens, expert=2, token=4))


@every_layer
def test_no_tokens_is_no_launch(name: str, run: Runner, generator: torch.Generator) -> None:
    """T = 0 computes nothing and is no error."""
    assert run(*dataclasses.replace(SMALL[name], tokens=0).draw(generator)).shape == (0, SMALL[name].hidden)


def test_the_result_has_the_type_of_tokens(run: Runner, generator: torch.Generator) -> None:
    """No kernel rounds from one type to the other."""
    with pytest.raises(loader.NoKernelError):
        run(*SMALL["moe_bf16_nvfp4"].draw(generator), "f16")
