"""Layers with scales in blocks of 32 or 128, FP8 and gpt-oss, as a whole, executed from their kernels' PTX on the
emulated device, all checks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch")

import moe_blocks  # noqa: E402
import moe_reference as moe  # noqa: E402
from layer_runner import Runner, poisoned  # noqa: E402
from moe_blocks import FORMATS, Layer, Masked, Settings  # noqa: E402
from moe_reference import Tokens  # noqa: E402

import loader  # noqa: E402

PLACES = [("moe_fp8", "90a"), ("moe_fp8_channel", "90a"), ("moe_fp8_ue8m0", "100a"), ("moe_fp8_ue8m0", "120a"),
          *((name, arch) for name in ("moe_mxfp8_mxfp4", "moe_mxfp8", "moe_mxfp4") for arch in ("90a", "100a", "120a"))]
MASKED = [(name, arch) for name, arch in PLACES if name in ("moe_fp8", "moe_fp8_ue8m0")]
PLAIN = Settings()
CASES = ("tails", "one token of gpt-oss")
GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
everywhere = pytest.mark.parametrize(("name", "arch"), PLACES)
masked = pytest.mark.parametrize(("name", "arch"), MASKED)


def draw(
    generator: torch.Generator, name: str, arch: str, settings: Settings = PLAIN, extras: bool = False,
    experts: int = 4, hidden: int = 160, between: int = 128,
) -> Layer:  # fmt: skip
    """H is no multiple of a block, and K of w13 in MXFP4 128 more than it fills."""
    layer = moe_blocks.random_layer(generator, FORMATS[name], experts, hidden, between, settings, extras)
    return dataclasses.replace(layer, on_hopper=arch == "90a")


def other_rule(name: str) -> dict[str, str]:
    """The format's second rule of scales, if it has one."""
    rules = FORMATS[name].rules
    return {"scale_rounding": rules[1]} if rules else {}


def wide(name: str) -> str:
    """The widest type of results and of what L1 stores, of f16 tokens."""
    return "f16" if FORMATS[name].of_channels else "f32"


def bounded_problem(generator: torch.Generator, name: str, arch: str, case: str) -> tuple[Layer, Tokens, moe.Result]:
    """Layer and tokens, and the result, whose bound is narrow: hundredths of the results."""
    if case == "tails":
        between = {"moe_mxfp8_mxfp4": 128, "moe_mxfp8": 160, "moe_mxfp4": 160}.get(name, 208)
        layer = draw(generator, name, arch, experts=5, hidden=288, between=between)
        tokens, out_type = moe_blocks.random_tokens(generator, layer, 7, 2), "bf16"
    else:
        out_type = wide(name)
        settings = Settings(**other_rule(name), weighting="activation", intermediate=out_type, **GPT_OSS)
        layer = draw(generator, name, arch, settings, extras=True)
        tokens = moe_blocks.random_tokens(generator, layer, 1, 2, dtype="f16")
    expected = moe.moe(layer, tokens, out_type)
    assert expected.bound.median() < 0.05 * expected.value.square().mean().sqrt()
    return layer, tokens, expected


@everywhere
@pytest.mark.parametrize("case", CASES)
def test_every_element_is_within_the_bound(
    name: str, arch: str, case: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Whatever the order of fp32 sums, which the bound allows for: of tails of all dimensions; with biases, limit and
    alpha, the other rule of scales and weights in the activation, into fp32."""
    layer, tokens, expected = bounded_problem(generator, name, arch, case)
    run = runner(arch)
    out = run(layer, tokens, "bf16" if case == "tails" else wide(name))
    expected.check(out, f"{name} {arch} {case} {run.schedule}")


@everywhere
def test_weights_in_the_input_and_experts_elsewhere(
    name: str, arch: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Tokens that are rounded as they are weighted, GELU, and the second half of the experts."""
    settings = Settings(first_expert=4, weighting="input", activation="gelu_tanh", rounding="none")
    layer = draw(generator, name, arch, settings)
    tokens = moe_blocks.random_tokens(generator, layer, 5, 2, experts=8, ids=torch.int64)
    run = runner(arch)
    moe.moe(layer, tokens, "bf16").check(run(layer, tokens), f"{name} {arch} {run.schedule}")


@everywhere
def test_a_map_of_experts_and_chunks(
    name: str, arch: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Biases and a map: within the bound, and the same bytes in chunks of a small workspace, poisoned."""
    layer = draw(generator, name, arch, Settings(swiglu_limit=7.0), extras=True, experts=3)
    expert_map = torch.tensor([2, -1, 0, 3, 1, -7, 1 << 30], dtype=torch.int32)
    layer = dataclasses.replace(layer, expert_map=expert_map)
    tokens, run = moe_blocks.random_tokens(generator, layer, 5, 2, experts=7), runner(arch)
    out = run(layer, tokens)
    moe.moe(layer, tokens, "bf16").check(out, f"{name} {arch} {run.schedule}")
    assert torch.equal(run(layer, tokens, workspace=run.workspace(layer, tokens, 2)), out), f"{name} {arch} chunks"


def awkward(tokens: Tokens) -> Iterator[tuple[str, Tokens]]:
    """Routings of 4 experts that leave something out."""
    ids = tokens.topk_ids
    yield "all tokens on one expert", tokens._replace(topk_ids=torch.full_like(ids, 2))
    holes = ids.clone()
    holes[holes == 1], holes[0], holes[1, 0] = 3, -1, 4
    yield "an expert and a token with nothing", tokens._replace(topk_ids=holes)
    yield "nothing here", tokens._replace(topk_ids=ids - 100)


@everywhere
def test_awkward_routing(
    name: str, arch: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Experts without tokens, one with all, ids of no expert; a token without experts gets zeros."""
    layer = draw(generator, name, arch)
    tokens, run = moe_blocks.random_tokens(generator, layer, 5, 2), runner(arch)
    for case, routed in awkward(tokens):
        out = run(layer, routed)
        moe.moe(layer, routed, "bf16").check(out, f"{name} {arch} {case} {run.schedule}")
        assert not out[~((routed.topk_ids >= 0) & (routed.topk_ids < 4)).any(dim=1)].any()


@everywhere
def test_a_nan_reaches_the_tokens_it_has_a_part_in(
    name: str, arch: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Those of the expert whose scales have one, or the token itself; no other byte changes."""
    layer = draw(generator, name, arch, Settings(swiglu_limit=7.0))
    tokens, run = moe_blocks.random_tokens(generator, layer, 5, 2), runner(arch)
    tokens.topk_ids[0, 0], tokens.topk_ids[1] = 2, 3  # some have expert 2, some do not
    run.check_reach(layer, tokens, moe_blocks.with_nan(layer, tokens, expert=2, token=4))


@everywhere
def test_no_tokens_is_no_launch(
    name: str, arch: str, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """T = 0 computes nothing and is no error."""
    layer = draw(generator, name, arch)
    assert runner(arch)(layer, moe_blocks.random_tokens(generator, layer, 0, 2)).shape == (0, 160)


WRONG = {
    "hidden": ({"hidden": 144}, {}, "H % 32 == 0"),
    "between": ({"between": 96}, {}, "I % 128 == 0"),
    "weights without their padding": ({"hidden": 128}, {"H": 160}, "w13"),
    "alpha of GELU": ({"settings": Settings(activation="gelu_tanh", swiglu_alpha=1.702)}, {}, "swiglu_alpha == 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, runner: Callable[[str], Runner], generator: torch.Generator) -> None:
    """Of gpt-oss: the rule that a size breaks, or the argument of another shape."""
    drawn, given, words = WRONG[case]
    layer = draw(generator, "moe_mxfp8_mxfp4", "90a", **drawn)
    tokens = moe_blocks.random_tokens(generator, layer, 2, 1)
    if given:
        tokens = tokens._replace(x=torch.zeros(2, given["H"], dtype=torch.bfloat16))
    with pytest.raises(loader.LoaderError, match=words):
        runner("90a")(layer, tokens)


# By mask.


@masked
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "extras"])
def test_masked_rows(
    name: str, arch: str, extras: bool, runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """Of matrices that are full, empty, and between; the rest is NaN, and of out it stays as it was."""
    settings = Settings(**other_rule(name), intermediate="f32", **GPT_OSS) if extras else PLAIN
    layer = draw(generator, name, arch, settings, extras, hidden=272, between=208)
    call, run = Masked.random(generator, layer, [3, 0, 7, 1], 7, weighted=extras), runner(arch)
    for experts in (4, 3):  # of a chunk, at most
        size = loader.workspace_bytes(
            f"{name}_masked", packs=run.packs, E=experts, Mmax=7, H=272, I=208, x="e4m3", out="bf16", **call.scalars
        )
        out = call.output()
        run.launch(f"{name}_masked", **call.arguments, out=out, workspace=poisoned(size))
        call.check(out, f"{name} {arch} {run.schedule} {experts} a chunk")


def test_a_mask_over_its_matrix_is_refused(runner: Callable[[str], Runner], generator: torch.Generator) -> None:
    """On host buffers, as by the kernels alone; nothing is launched."""
    layer = draw(generator, "moe_fp8", "90a")
    call = Masked.random(generator, layer, [2, 0, 1, 5], 5)
    out = call.output()
    with pytest.raises(loader.ValuesError, match="entry 3 of mask is 6, expected 0 to 5"):
        runner("90a").launch("moe_fp8_masked", **call.arguments | {"mask": call.counts + 1}, out=out)
    assert (out.view(torch.uint8) == 0xFF).all()


@masked
def test_masks_of_nothing(name: str, arch: str, runner: Callable[[str], Runner], generator: torch.Generator) -> None:
    """Without rows nothing is written, and matrices without any are no error."""
    layer, run = draw(generator, name, arch), runner(arch)
    for max_rows in (5, 0):
        call = Masked.random(generator, layer, [0, 0, 0, 0], max_rows)
        out = call.output()
        run.launch(f"{name}_masked", **call.arguments, out=out)
        call.check(out, f"{name} {arch} {run.schedule}")


def test_packed_and_masked_rows_have_the_same_bytes(
    runner: Callable[[str], Runner], generator: torch.Generator
) -> None:
    """A token for each row and a weight of 1: its result is that of the row, wherever it lies."""
    layer, run = draw(generator, "moe_fp8", "90a", between=208), runner("90a")
    counts = [3, 0, 2, 1]
    call = Masked.random(generator, layer, counts, 4)
    by_mask, ids = call.output(), torch.repeat_interleave(torch.arange(4), torch.tensor(counts)).int()
    run.launch("moe_fp8_masked", **call.arguments, out=by_mask)
    tokens = Tokens(call.tokens.bfloat16(), ids[:, None], torch.ones(len(ids), 1))
    assert torch.equal(run(layer, tokens), by_mask[call.expert, call.row])


# Of the model itself.


@pytest.mark.parametrize("name", FORMATS)
def test_the_bound_holds_for_sums_in_fp32(name: str, generator: torch.Generator) -> None:
    """The layer with torch in fp32 is within the bound; one block of activations that is half as large again is not."""
    layer = draw(generator, name, "120a", experts=2, hidden=256, extras=True)
    tokens, fmt = moe_blocks.random_tokens(generator, layer, 30, 1), layer.format
    rule, expected = layer.settings.rule(fmt), moe.moe(layer, tokens, "f32")

    def quantized(values: torch.Tensor) -> torch.Tensor:
        return fmt.quantized(moe.Interval(values.double(), values.double()), rule).middle.float()

    def product(a: torch.Tensor, weights: moe_blocks.Weights, expert: int) -> torch.Tensor:
        sums = a @ weights.blocks(expert, fmt).middle.float().T
        return sums * weights.alpha[expert] + weights.bias[expert]

    out = torch.zeros(30, 256)
    changed = out.clone()
    for expert in (0, 1):
        mine = tokens.topk_ids[:, 0] == expert
        gate, up = product(quantized(tokens.x[mine]), layer.w13, expert).bfloat16().float().chunk(2, dim=1)
        h = quantized((torch.nn.functional.silu(gate) * up).bfloat16())
        weight = tokens.topk_weights[mine]
        out[mine] = weight * product(h, layer.w2, expert)
        h[:, : fmt.block] *= 1.5
        changed[mine] = weight * product(h, layer.w2, expert)
    expected.check(out, name)
    with pytest.raises(AssertionError, match="out of bounds"):
        expected.check(changed, name)
