"""Experts of engines in NVFP4, on CPU tensors: weights arranged for either composite, and the layer they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import moe_fragments  # noqa: E402
import moe_reference as moe  # noqa: E402
import nvfp4_layer  # noqa: E402
from moe_reference import Settings  # noqa: E402

from integrations import torch_experts  # noqa: E402
from integrations.expert_preparation import Nvfp4, prepare  # noqa: E402
from integrations.torch_experts import Experts  # noqa: E402

EXACT = {"90a": {}, "120a": {"division": "ieee"}}  # scalars, since the reference knows exact division alone

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@pytest.fixture(params=EXACT)
def arch(request: pytest.FixtureRequest, emulate: Callable[[str], None]) -> str:
    """Launches of this test go to the emulated device of an arch."""
    emulate(request.param)
    return request.param


def drawn(generator: torch.Generator, experts: int, hidden: int, between: int) -> moe_fragments.Layer:
    """With a decode scale of its own for up, and without biases."""
    layer = moe_fragments.random_layer(generator, experts, hidden, between, Settings(), extras=True)
    weights = {name: dataclasses.replace(getattr(layer.plain, name), bias=None) for name in ("w13", "w2")}
    return dataclasses.replace(layer, plain=dataclasses.replace(layer.plain, **weights))


def prepared(arch: str, layer: moe.Layer) -> Experts:
    """From what an engine has of it: decode scales of the activations are the inverse of the layer's."""
    return torch_experts.of_nvfp4(*nvfp4_layer.engine(layer), 1 / layer.x_encode, 1 / layer.h_encode, **EXACT[arch])


def expected(arch: str, layer: moe_fragments.Layer) -> moe.AnyLayer:
    """With tokens as they are on Hopper, else quantised: alphas of GEMMs are then products of both decode scales."""
    if arch == "90a":
        return layer
    w13, w2, x, h = layer.plain.w13, layer.plain.w2, 1 / layer.plain.x_encode, 1 / layer.plain.h_encode
    return dataclasses.replace(
        layer.plain, w2=dataclasses.replace(w2, alpha=w2.alpha * h), x_encode=1 / x, h_encode=1 / h,
        w13=dataclasses.replace(w13, alpha=w13.alpha * x, up_alpha=w13.up_alpha * x))  # fmt: skip


@pytest.mark.parametrize("between", [64, 48])
def test_every_element_is_within_the_bound(arch: str, between: int, generator: torch.Generator) -> None:
    """Scales of gate and of up differ; I is padded where the kernels ask for more."""
    layer, tokens = drawn(generator, 4, 96, between), moe.random_tokens(generator, 9, 2, 4, 96)
    out = prepared(arch, layer.plain)(*tokens)
    moe.moe(expected(arch, layer), tokens, "bf16").check(out, arch)


def test_experts_of_a_rank(arch: str, generator: torch.Generator) -> None:
    """By a map in any order, with ids that are elsewhere: what two ranks add up to has every expert once."""
    layer, tokens = drawn(generator, 5, 64, 64), moe.random_tokens(generator, 7, 3, 5, 64)
    total = torch.zeros(tokens.x.shape)
    for chosen in ([3, 0], [4, 2, 1]):
        part = dataclasses.replace(layer, plain=nvfp4_layer.of_experts(layer.plain, chosen))
        out = prepared(arch, part.plain)(*tokens, expert_map=part.expert_map)
        moe.moe(expected(arch, part), tokens, "bf16").check(out, f"{arch} {chosen}")
        total += out
    whole = prepared(arch, layer.plain)(*tokens).float()
    assert (total - whole).abs().max() <= 2.0**-6 * whole.abs().max()


def test_scales_of_tokens_that_are_measured(arch: str, generator: torch.Generator) -> None:
    """Without one in the checkpoint it is amax / 2688, as if that had been given; the scale between is then 1."""
    layer, tokens = drawn(generator, 3, 64, 64), moe.random_tokens(generator, 5, 2, 3, 64)
    weights, ones = nvfp4_layer.engine(layer.plain), torch.ones(3)
    amax = tokens.x.abs().amax().float() / torch_experts.LARGEST
    given = torch_experts.of_nvfp4(*weights, amax * ones, ones, **EXACT[arch])
    measured = torch_experts.of_nvfp4(*weights, **EXACT[arch])
    assert torch.equal(measured(*tokens), given(*tokens))


def test_matrices_become_nvfp4(arch: str, generator: torch.Generator) -> None:
    """Each element within half a step of its block's scale, under the scale of its own matrix; zeros stay zeros."""
    matrices = torch.randn(3, 6, 64, generator=generator, dtype=torch.float64).bfloat16()
    matrices *= torch.tensor([1.0, 2.0**-9, 0.0])[:, None, None]
    found = torch_experts.quantized(matrices)
    blocks = matrices.double().unflatten(2, (4, 16))
    step = blocks.abs().amax(dim=3, keepdim=True) / 6  # of the largest elements, whose neighbours are 2 apart
    error = (nvfp4_layer.values(found).unflatten(2, (4, 16)) - blocks).abs()
    assert (error <= 1.1 * step).all() and not error[2].any()
    assert (error[:2].amax(dim=(1, 2, 3)) > 0).all()


def test_up_has_an_alpha_where_it_needs_one(generator: torch.Generator) -> None:
    """Of its own where some expert's scale of up is another one, and none that is the gate's."""
    gate_up, down = nvfp4_layer.engine(drawn(generator, 3, 64, 64).plain)
    one = gate_up.decode[:, :1]
    for decode, there in ((gate_up.decode, True), (one.expand(3, 2), False), (one[:, 0], False)):
        given = dataclasses.replace(gate_up, decode=decode)
        assert ("w13_up_alpha" in prepare("moe_bf16_nvfp4", given, down)) is there


def test_what_does_not_fit_is_refused(generator: torch.Generator) -> None:
    """With what was expected and what was found."""
    gate_up, down = nvfp4_layer.engine(drawn(generator, 2, 64, 64).plain)
    with pytest.raises(ValueError, match=r"scales of NVFP4 weights expects torch.float8_e4m3fn \(2, 128, 4\), got"):
        Nvfp4(gate_up.packed, down.scales[:, :, :2], gate_up.decode)
    with pytest.raises(ValueError, match="decode of NVFP4 weights expects torch.float32"):
        Nvfp4(gate_up.packed, gate_up.scales, gate_up.decode[:1])
    with pytest.raises(ValueError, match=r"takes gate and up .* got \[2, 128, 32\] and \[2, 128, 32\]"):
        torch_experts.of_nvfp4(gate_up, gate_up)
    for n, k, said in ((128, 48, "moe_fp4: hidden size 48 is no multiple of 32"),
                       (2 * 24, 64, "moe_fp4: intermediate size 24 of a rank is no multiple of 16")):  # fmt: skip
        first, second = (Nvfp4(torch.zeros(2, rows, width // 2, dtype=torch.uint8),
                               torch.zeros(2, rows, width // 16, dtype=torch.uint8), torch.ones(2))
                         for rows, width in ((n, k), (k, n // 2)))  # fmt: skip
        with pytest.raises(ValueError, match=said):
            torch_experts.of_nvfp4(first, second)
    with pytest.raises(ValueError, match="tokens expect bfloat16 or float16, got torch.float32"):
        torch_experts.of_nvfp4(gate_up, down)(torch.zeros(1, 64), torch.zeros(1, 1).int(), torch.ones(1, 1))
