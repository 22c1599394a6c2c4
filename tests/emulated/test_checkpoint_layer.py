"""A layer of a checkpoint, from its file through the prepared weights to what the kernels give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

import checkpoints  # noqa: E402
import moe_fragments  # noqa: E402
import moe_reference  # noqa: E402
import reference  # noqa: E402
from checkpoints import PUBLISHED  # noqa: E402
from moe_reference import Weights  # noqa: E402

import loader  # noqa: E402
from integrations.checkpoint import prepare  # noqa: E402

PREFIX = "model.layers.0.mlp.experts"
EXPERTS, HIDDEN, INTERMEDIATE, TOKENS = 2, 96, 64, 9
LAYER = "moe_bf16_nvfp4"
WIDER = {"gate": (96, HIDDEN), "up": (96, HIDDEN), "down": (HIDDEN, 96)}  # I is no multiple of 64
SIZES = {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def write(path: Path, packed: dict, scale: dict, weight_global: dict) -> Path:
    """The layer as ModelOpt writes it, every expert with the same global scales."""
    tensors = {}
    for name in SIZES:
        for expert in range(EXPERTS):
            stem = f"{PREFIX}.{expert}.{name}_proj"
            tensors[f"{stem}.weight"] = torch.from_numpy(packed[name][expert])
            tensors[f"{stem}.weight_scale"] = torch.from_numpy(scale[name][expert]).view(torch.float8_e4m3fn)
            tensors[f"{stem}.weight_scale_2"] = torch.tensor(weight_global[name])
            tensors[f"{stem}.input_scale"] = torch.tensor(2.0**-6)
    safetensors_torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
def test_gate_and_up_with_their_own_global_scales_are_exact(
    arch: str, tmp_path: Path, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """A factor of two gives the same bytes in up's global scale, with an alpha of its own, as in up's block scales."""
    packed = {name: rng.integers(0, 256, (EXPERTS, n, k // 2), dtype=np.uint8) for name, (n, k) in SIZES.items()}
    # Normal numbers of E4M3, of which twice is one, too: eight bytes further.
    scale = {name: rng.integers(16, 100, (EXPERTS, n, k // 16), dtype=np.uint8) for name, (n, k) in SIZES.items()}
    common = dict.fromkeys(SIZES, 2.0**-7)
    own = write(tmp_path / "own", packed, scale, common | {"up": 2.0**-6})
    doubled = write(tmp_path / "doubled", packed, scale | {"up": scale["up"] + 8}, common)
    tokens = {
        "x": torch.from_numpy(rng.standard_normal((TOKENS, HIDDEN), dtype=np.float32)).bfloat16(),
        "topk_ids": torch.from_numpy(rng.permuted(np.tile(np.arange(EXPERTS, dtype=np.int32), (TOKENS, 1)), axis=1)),
        "topk_weights": torch.from_numpy(rng.random((TOKENS, EXPERTS), dtype=np.float32)),
    }

    def run(path: Path, up_alpha: bool) -> torch.Tensor:
        weights = {name: torch.from_numpy(array) for name, array in prepare(path, PREFIX).items()}
        alphas = {"w13_alpha": weights["w13_weight_scale"] * weights["w13_input_scale"]}
        if up_alpha:
            alphas["w13_up_alpha"] = weights["w13_up_weight_scale"] * weights["w13_input_scale"]
        out = torch.full((TOKENS, HIDDEN), float("nan"), dtype=torch.bfloat16)
        reschedule()
        loader.launch(
            "moe_fp4", **tokens, **alphas, **{name: weights[name] for name in ("w13", "w13_scale", "w2", "w2_scale")},
            w2_alpha=weights["w2_weight_scale"] * weights["w2_input_scale"], x_global_scale=weights["w13_input_scale"],
            h_global_scale=weights["w2_input_scale"], global_scale_kind="decode", out=out,
            device=f"emulated:{arch}", packs=packs,
        )  # fmt: skip
        return out

    expected = run(doubled, up_alpha=False)
    assert not expected.isnan().any()
    assert expected.count_nonzero()
    assert torch.equal(run(own, up_alpha=True), expected)
    assert torch.equal(run(doubled, up_alpha=True), expected)
    assert not torch.equal(run(own, up_alpha=False), expected)


def in_turn(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """Rows of gate and of up in turn."""
    both = np.stack([arrays["gate"], arrays["up"]], axis=2)
    return torch.from_numpy(both.reshape(EXPERTS, -1, *both.shape[3:]))


def test_the_layer_of_16_bit_tokens_is_that_of_the_checkpoint(
    tmp_path: Path, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """Weights in fragment order, in turns of 64 and with zeros behind I: every element is within its bound."""
    packed = {name: rng.integers(0, 256, (EXPERTS, n, k // 2), dtype=np.uint8) for name, (n, k) in WIDER.items()}
    scale = {name: rng.integers(40, 64, (EXPERTS, n, k // 16), dtype=np.uint8) for name, (n, k) in WIDER.items()}
    factors = {"gate": 2.0**-6, "up": 2.0**-5, "down": 2.0**-4}
    path = write(tmp_path / "model", packed, scale, factors)
    weights = {name: torch.from_numpy(array) for name, array in prepare(path, PREFIX, target=LAYER).items()}

    alpha = {name: torch.full((EXPERTS,), factor) for name, factor in factors.items()}
    w13 = Weights(in_turn(packed), in_turn(scale), alpha["gate"], up_alpha=alpha["up"])
    w2 = Weights(torch.from_numpy(packed["down"]), torch.from_numpy(scale["down"]), alpha["down"])
    layer = moe_fragments.Layer(moe_reference.Layer(w13, w2, alpha["gate"], alpha["gate"], moe_reference.Settings()))
    tokens = moe_reference.random_tokens(torch.Generator().manual_seed(int(rng.integers(1 << 31))), TOKENS, 2, EXPERTS,
                                         HIDDEN)  # fmt: skip
    out = torch.full((TOKENS, HIDDEN), float("nan"), dtype=torch.bfloat16)
    context = reschedule()
    loader.launch(
        LAYER, **tokens._asdict(), **{name: weights[name] for name in ("w13", "w13_scale", "w2", "w2_scale")},
        **{f"{name}_alpha": weights[f"{name}_weight_scale"] for name in ("w13", "w13_up", "w2")}, out=out,
        device="emulated:90a", packs=packs,
    )  # fmt: skip
    moe_reference.moe(layer, tokens, "bf16").check(out, context)


def test_the_layer_of_gpt_oss_in_bf16_is_that_of_the_checkpoint(
    tmp_path: Path, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """Biases and powers of two of its file, rows in turns of 64, zeros behind I: every element is within its bound."""
    published = PUBLISHED["gpt-oss for bf16"]
    experts = published.experts(rng, count=EXPERTS, hidden=HIDDEN, intermediate=96)
    for scale in experts.scale.values():
        scale[:] = rng.integers(121, 125, scale.shape)
    checkpoints.save(tmp_path / "model.safetensors", published.tensors(experts, PREFIX))
    prepared = prepare(tmp_path, PREFIX, target=published.target)
    weights = {name: torch.from_numpy(array) for name, array in prepared.items()}
    bias = {name: checkpoints.as_f32(stored) for name, stored in experts.bias.items()}
    one, swiglu = torch.ones(EXPERTS), {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
    down = (torch.from_numpy(part["down"]) for part in (experts.values, experts.scale))
    w13 = Weights(in_turn(experts.values), in_turn(experts.scale), one, in_turn(bias), formats=reference.MXFP4)
    w2 = Weights(*down, one, torch.from_numpy(bias["down"]), formats=reference.MXFP4)
    layer = moe_fragments.Layer(moe_reference.Layer(w13, w2, one, one, moe_reference.Settings(**swiglu)))
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    tokens = moe_reference.random_tokens(generator, TOKENS, 2, EXPERTS, HIDDEN)
    out = torch.full((TOKENS, HIDDEN), float("nan"), dtype=torch.bfloat16)
    context = reschedule()
    loader.launch(published.target, **tokens._asdict(), **weights, w13_alpha=one, w2_alpha=one, **swiglu, out=out,
                  device="emulated:90a", packs=packs)  # fmt: skip
    moe_reference.moe(layer, tokens, "bf16").check(out, context)
