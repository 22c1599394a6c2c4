"""Experts of engines in MXFP4, as gpt-oss has them, on CPU tensors: weights arranged for either composite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import moe_blocks  # noqa: E402
import moe_reference as moe  # noqa: E402
import mxfp4_layer  # noqa: E402
from mxfp4_layer import GPT_OSS  # noqa: E402

from integrations import torch_experts  # noqa: E402
from integrations.expert_preparation import Mxfp4, prepare  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@pytest.fixture(params=["90a", "120a"])
def arch(request: pytest.FixtureRequest, emulate: Callable[[str], None]) -> str:
    """Launches of this test go to the emulated device of an arch."""
    emulate(request.param)
    return request.param


@pytest.mark.parametrize("alternate", [True, False])
def test_every_element_is_within_the_bound(arch: str, alternate: bool, generator: torch.Generator) -> None:
    """gpt-oss's activation and biases; H and I are multiples of 32 alone, so that kernels ask for more."""
    layer = mxfp4_layer.drawn(generator, 4, 160, 96)
    tokens = moe_blocks.random_tokens(generator, layer, 7, 2)
    experts = torch_experts.of_mxfp4(*mxfp4_layer.engine(layer, alternate), alternate=alternate, **GPT_OSS)
    assert experts.composite == {"90a": "moe_bf16_mxfp4", "120a": "moe_mxfp8_mxfp4"}[arch]
    moe.moe(mxfp4_layer.reference(arch, layer), tokens, "bf16").check(experts(*tokens), arch)


def test_a_layer_that_is_another_one_is_seen(arch: str, generator: torch.Generator) -> None:
    """Rows of gate and up taken for halves, one scale doubled, or a bias of the next expert are out of bounds."""
    layer = mxfp4_layer.drawn(generator, 3, 96, 96)
    tokens = moe_blocks.random_tokens(generator, layer, 5, 3)
    expected = moe.moe(mxfp4_layer.reference(arch, layer), tokens, "bf16")
    gate_up, down = mxfp4_layer.engine(layer)
    scales = down.scales.clone()
    scales[0, :, 1] += 1
    for weights, alternate in (
        ((gate_up, down), False),
        ((gate_up, dataclasses.replace(down, scales=scales)), True),
        ((dataclasses.replace(gate_up, bias=gate_up.bias.roll(1, 0)), down), True),
    ):
        with pytest.raises(AssertionError):
            expected.check(torch_experts.of_mxfp4(*weights, alternate=alternate, **GPT_OSS)(*tokens), arch)


def plain(hidden: int, between: int, byte: int = 0x7F, bias: bool = False) -> tuple[Mxfp4, Mxfp4]:
    """One expert, all of whose bytes are the same one."""
    return tuple(
        Mxfp4(*(torch.full((1, n, k // unit), byte, dtype=torch.uint8) for unit in (2, 32)),
              torch.ones(1, n) if bias else None)
        for n, k in ((2 * between, hidden), (hidden, between))
    )  # fmt: skip


@pytest.mark.parametrize("composite", ["moe_bf16_mxfp4", "moe_mxfp8_mxfp4"])
def test_sizes_of_gpt_oss_are_filled_up(composite: str) -> None:
    """To those of docs/weights.md, of one of four ranks; what is behind, or between the turns, is zeros."""
    gate_up, down = plain(2880, 736, bias=True)
    found = prepare(composite, gate_up, down, alternate=True)
    assert found["w13"].shape == (1, 2 * 768, 2944 // 2) and found["w13_scale"].shape == (1, 2 * 768, 92)
    assert found["w2"].shape == (1, 2880, 768 // 2) and found["w2_scale"].shape == (1, 2944, 768 // 32)
    assert found["w13_bias"].shape == (1, 2 * 768) and found["w2_bias"].shape == (1, 2880)
    for name, values in (("w13", gate_up), ("w2", down)):
        assert int((found[f"{name}_scale"] != 0).sum()) == values.scales.numel()
        assert int((found[f"{name}_bias"] != 0).sum()) == values.bias.numel()
        if composite == "moe_mxfp8_mxfp4":
            assert int((found[name] != 0).sum()) == values.packed.numel()


@pytest.mark.parametrize(("composite", "byte", "said"), [
    ("moe_bf16_mxfp4", 26, r"w13 of expert 0 has a scale of 2\^-101, and what is taken is 2\^-100 to 2\^33"),
    ("moe_bf16_mxfp4", 161, r"w13 of expert 0 has a scale of 2\^34, and what is taken is 2\^-100 to 2\^33"),
    ("moe_bf16_mxfp4", 255, "w13 of expert 0 has NaN for a scale"),
    ("moe_mxfp8_mxfp4", 255, "w13 of expert 0 has NaN for a scale"),
])  # fmt: skip
def test_scales_that_are_not_taken_exactly(composite: str, byte: int, said: str) -> None:
    """Are refused by matrix, expert and range; the next one inside of it is taken, and any below it of zeros."""
    gate_up, down = plain(64, 64)
    gate_up.scales[0, 5, 1] = byte
    with pytest.raises(ValueError, match=f"{composite}: {said}"):
        prepare(composite, gate_up, down)
    inside = {26: 27, 161: 160, 255: 254 if composite == "moe_mxfp8_mxfp4" else 160}[byte]
    gate_up.scales[0, 5, 1] = inside
    prepare(composite, gate_up, down)
    gate_up.scales[0, 5, 1] = 0
    gate_up.packed[0, 5, 16:32] = 0x88  # zeros with a sign
    prepare(composite, gate_up, down)


def test_what_does_not_fit_is_refused() -> None:
    """With what was expected and what was found."""
    gate_up, down = plain(64, 64, bias=True)
    with pytest.raises(ValueError, match=r"scales of MXFP4 weights expects torch.uint8 \(1, 128, 2\), got"):
        Mxfp4(gate_up.packed, gate_up.scales[..., :1])
    with pytest.raises(ValueError, match=r"bias of MXFP4 weights expects torch.float32 \(1, 128\), got torch.float16"):
        Mxfp4(gate_up.packed, gate_up.scales, gate_up.bias.half())
    with pytest.raises(ValueError, match="hidden size 48 is no multiple of 32"):
        prepare("moe_bf16_mxfp4", *(Mxfp4(torch.zeros(1, n, k // 2).byte(), torch.zeros(1, n, k // 32).byte())
                                    for n, k in ((64, 48), (48, 32))))  # fmt: skip
    with pytest.raises(ValueError, match="intermediate size 48 of a rank is no multiple of 32"):
        prepare("moe_mxfp8_mxfp4", *(Mxfp4(torch.zeros(1, n, k // 2).byte(), torch.zeros(1, n, k // 32).byte())
                                     for n, k in ((96, 32), (32, 48))))  # fmt: skip
    with pytest.raises(ValueError, match="tokens expect bfloat16, got torch.float16"):
        torch_experts.of_mxfp4(gate_up, down)(torch.zeros(1, 64).half(), torch.zeros(1, 1).int(), torch.ones(1, 1))
