"""The layers moe_fp4 and moe_fp4_relu2 as a whole, executed from their kernels' PTX on the emulated device, all checks
on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import moe_reference as moe  # noqa: E402
from device_problem import TORCH_TYPES  # noqa: E402
from layer_runner import Runner  # noqa: E402
from moe_reference import Layer, Settings, Tokens  # noqa: E402

ARCHS = ("90a", "100a", "120a")
GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_arch = pytest.mark.parametrize("arch", ARCHS)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Experts whose weights are given, and all that tokens are routed to."""

    tokens: int
    top_k: int
    experts: int
    hidden: int
    between: int
    routed: int = 0  # experts everywhere; as many as here if 0

    def layer(self, generator: torch.Generator, settings: Settings) -> Layer:
        return moe.random_layer(generator, self.experts, self.hidden, self.between, settings)

    def draw(self, generator: torch.Generator, **options: Any) -> Tokens:
        routed = self.routed or self.experts
        return moe.random_tokens(generator, self.tokens, self.top_k, routed, self.hidden, **options)


SMALL = Shape(tokens=9, top_k=2, experts=5, hidden=96, between=64)


CASES = {
    "tails_of_all_dimensions": (Shape(21, 3, 9, 160, 96), Settings(), {}, "bf16"),
    "weights_in_the_activation": (
        Shape(13, 2, 4, 64, 32),
        Settings(weighting="activation", global_scale_kind="decode", intermediate="f32", **GPT_OSS),
        {"dtype": "f16", "ids": torch.int64},
        "f32",
    ),
    "part_of_the_experts": (
        Shape(17, 3, 4, 96, 64, routed=12),
        Settings(first_expert=5, intermediate="f16", rounding="none"),
        {"dtype": "f32"},
        "f16",
    ),
    "weights_in_the_input": (Shape(15, 3, 4, 64, 96), Settings(weighting="input", activation="gelu_tanh"), {}, "bf16"),
    "no_gate": (Shape(13, 2, 5, 96, 160), Settings(activation="relu2"), {}, "bf16"),
    "no_gate_in_fp32": (
        Shape(9, 2, 4, 64, 32),
        Settings(activation="relu2", rounding="none", weighting="activation", global_scale_kind="decode"),
        {"dtype": "f32", "ids": torch.int64},
        "f32",
    ),
}


def bounded_problem(generator: torch.Generator, case: str) -> tuple[Layer, Tokens, moe.Result]:
    """Layer and tokens of a case, and its result, whose bound is narrow: hundredths of the results."""
    shape, settings, options, out_type = CASES[case]
    layer, tokens = shape.layer(generator, settings), shape.draw(generator, **options)
    expected = moe.moe(layer, tokens, out_type)
    assert expected.bound.median() < 0.02 * expected.value.square().mean().sqrt()
    return layer, tokens, expected


@every_arch
@pytest.mark.parametrize("case", CASES)
def test_every_element_is_within_the_bound(
    arch: str, case: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Whatever the order of fp32 sums, which the bound allows for."""
    layer, tokens, expected = bounded_problem(generator, case)
    run = runner(arch)
    expected.check(run(layer, tokens, CASES[case][3]), f"{arch} {run.schedule}")


@every_arch
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
def test_biases_an_alpha_of_up_and_a_map_of_experts(
    arch: str, activation: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Within the bound, whatever else the call says; in chunks the map stays whole."""
    shape = Shape(17, 2, 4, 96, 64, routed=9)
    layer = moe.with_biases(generator, shape.layer(generator, Settings(activation=activation)))
    expert_map = torch.tensor([3, -1, 0, 4, 2, -7, 1, 2, 1 << 30], dtype=torch.int32)
    layer, tokens = dataclasses.replace(layer, expert_map=expert_map), shape.draw(generator)
    run = runner(arch)
    out = run(layer, tokens)
    moe.moe(layer, tokens, "bf16").check(out, f"{arch} {run.schedule}")
    assert torch.equal(run(layer, tokens, workspace=run.workspace(layer, tokens, 5)), out)


def _awkward(tokens: Tokens) -> dict[str, Tokens]:
    """Routings of 5 experts that leave something out."""
    ids = tokens.topk_ids
    one, holes = torch.full_like(ids, 3), ids.clone()
    holes[0], holes[1, 0], holes[2, 1], holes[3] = -1, -1, 5, 1 << 30
    return {
        "all tokens on one expert": tokens._replace(topk_ids=one),
        "no expert, and tokens without any": tokens._replace(topk_ids=holes),
        "nothing here": tokens._replace(topk_ids=ids - 100),
    }


@every_arch
def test_awkward_routing(arch: str, runner: Callable[[str], Runner], generator: torch.Generator) -> None:
    """Experts without tokens, one with all, ids of no expert; a token without experts gets zeros."""
    layer, tokens = SMALL.layer(generator, Settings()), SMALL.draw(generator)
    run = runner(arch)
    for name, routed in _awkward(tokens).items():
        out = run(layer, routed)
        moe.moe(layer, routed, "bf16").check(out, f"{arch} {name} {run.schedule}")
        nowhere = ~((routed.topk_ids >= 0) & (routed.topk_ids < 5)).any(dim=1)
        assert not out[nowhere].any()


@every_arch
def test_chunks_workspaces_and_schedules_change_nothing(
    arch: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """One pass over the pool's memory, over the caller's, in chunks of it, and again: equal bytes."""
    layer, tokens = SMALL.layer(generator, Settings()), SMALL.draw(generator)
    run = runner(arch)
    first = run(layer, tokens)
    for count in (9, 4, 1):
        out = run(layer, tokens, workspace=run.workspace(layer, tokens, count))
        assert torch.equal(out, first), f"{arch} {count} tokens a chunk, {run.schedule}"


@every_arch
def test_the_layer_is_its_kernels(arch: str, runner: Callable[[str], Runner], generator: torch.Generator) -> None:
    """Five launches, one by one, and six of which none is fused, give the bytes of the one call."""
    settings = Settings(division="approximate", weighting="activation", **GPT_OSS)
    layer, tokens = SMALL.layer(generator, settings), SMALL.draw(generator)
    run = runner(arch)
    whole = run(layer, tokens)
    for fused in (True, False):
        out = torch.full_like(whole, torch.nan)
        moe.launch_steps(run.launch, layer, tokens, out, fused)
        assert torch.equal(out, whole), f"{arch} {'fused' if fused else 'unfused'} {run.schedule}"


@every_arch
def test_the_layer_is_its_kernels_with_all_that_may_be_left_out(
    arch: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """The same with biases, GELU, a map of experts and weights on the input; an alpha of up has only the fused one."""
    settings = Settings(division="approximate", weighting="input", activation="gelu_tanh", swiglu_limit=7.0)
    layer, tokens = moe.with_biases(generator, SMALL.layer(generator, settings)), SMALL.draw(generator)
    layer = dataclasses.replace(layer, expert_map=torch.tensor([4, 2, 0, 1], dtype=torch.int32))
    run = runner(arch)
    without = moe.with_biases(generator, SMALL.layer(generator, Settings(weighting="input", activation="relu2")))
    whole = run(without, tokens)
    out = torch.full_like(whole, torch.nan)
    moe.launch_steps(run.launch, without, tokens, out)
    assert torch.equal(out, whole), f"{arch} without a gate {run.schedule}"
    for fused in (True, False):
        if not fused:
            layer = dataclasses.replace(layer, w13=dataclasses.replace(layer.w13, up_alpha=None))
        whole = run(layer, tokens)
        out = torch.full_like(whole, torch.nan)
        moe.launch_steps(run.launch, layer, tokens, out, fused)
        assert torch.equal(out, whole), f"{arch} {'fused' if fused else 'unfused'} {run.schedule}"


@every_arch
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_a_nan_reaches_the_tokens_it_has_a_part_in(
    arch: str, activation: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Those of the expert whose weights or scales have one, or the token itself; no other byte changes."""
    settings = Settings(activation=activation, **({"swiglu_limit": 7.0} if activation == "silu" else {}))
    layer, tokens = SMALL.layer(generator, settings), SMALL.draw(generator)
    tokens.topk_ids[0, 0], tokens.topk_ids[1] = 2, 3  # some have expert 2, some do not
    run = runner(arch)
    run.check_reach(layer, tokens, moe.with_nan(layer, tokens, expert=2, token=4))


@every_arch
def test_no_tokens_is_no_launch(arch: str, runner: Callable[[str], Runner], generator: torch.Generator) -> None:
    """T = 0 computes nothing and is no error."""
    layer, tokens = SMALL.layer(generator, Settings()), dataclasses.replace(SMALL, tokens=0).draw(generator)
    assert runner(arch)(layer, tokens).shape == (0, SMALL.hidden)


# Of the model itself.


@pytest.mark.parametrize("intermediate", ["bf16", "f16", "f32"])
def test_the_bound_holds_for_sums_in_fp32(intermediate: str, generator: torch.Generator) -> None:
    """The layer with torch in fp32 is within the bound, also where no sum is exact; one code of one block is not."""
    layer = moe.random_layer(generator, 2, 256, 64, Settings(intermediate=intermediate))
    layer.w13.groups[:] = torch.randint(0x30, 0x40, layer.w13.groups.shape, generator=generator, dtype=torch.uint8)
    tokens = moe.random_tokens(generator, 30, 1, 2, 256, dtype="f32")
    expected = moe.moe(layer, tokens, "f32")
    out = torch.zeros(30, 256)
    changed = out.clone()
    for expert in (0, 1):
        mine = tokens.topk_ids[:, 0] == expert
        x = tokens.x[mine].double()
        x = moe.quantized(moe.Interval(x, x), float(layer.x_encode[expert])).low.float()
        products = (x @ layer.w13.values(expert).float().T) * layer.w13.alpha[expert]
        products = products.to(TORCH_TYPES[intermediate]).float()
        gate, up = products[:, 0::2], products[:, 1::2]
        h = (torch.nn.functional.silu(gate) * up).to(TORCH_TYPES[intermediate]).double()
        h = moe.quantized(moe.Interval(h, h), float(layer.h_encode[expert])).low.float()
        weight = tokens.topk_weights[mine]
        out[mine] = weight * (h @ layer.w2.values(expert).float().T) * layer.w2.alpha[expert]
        h[:, :16] *= 1.5
        changed[mine] = weight * (h @ layer.w2.values(expert).float().T) * layer.w2.alpha[expert]
    expected.check(out, intermediate)
    with pytest.raises(AssertionError, match="out of bounds"):
        expected.check(changed, intermediate)
