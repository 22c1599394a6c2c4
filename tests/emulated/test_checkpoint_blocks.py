"""Layers of gpt-oss and DeepSeek from files in their checkpoints' layouts, through the prepared weights, to what the
kernels give, against float64 on what the files say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import moe_blocks  # noqa: E402
import moe_reference as moe  # noqa: E402
from checkpoints import DENSE, PUBLISHED, Experts, bf16, dense, save  # noqa: E402
from layer_runner import Runner  # noqa: E402
from moe_blocks import FORMATS, Layer, Settings, Weights  # noqa: E402

from integrations.checkpoint import prepare  # noqa: E402

GPT_OSS = Settings(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)
# I of gpt-oss is padded here, as 2880 is; I of FP8 ends inside a block of 128.
PLACES = [("gpt-oss", arch, GPT_OSS, 160) for arch in ("90a", "100a", "120a")] + [
    ("FP8 DeepSeek-V3", "90a", Settings(), 208), ("FP8 channel stacked", "90a", Settings(), 208),
    ("FP8 DeepSeek-V3.1", "100a", Settings(), 208), ("FP8 DeepSeek-V3.1", "120a", Settings(), 208),
    ("MXFP8", "90a", Settings(), 96)]  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@dataclasses.dataclass(frozen=True)
class FromFile(Layer):
    """A layer that is launched with what was prepared."""

    arrays: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.arrays


def storable(weights: Weights, parts: int, rows: int) -> Weights:
    """With scales for ``rows`` of each of the parts, no alpha, and biases that are bf16."""
    each = weights.scales.unflatten(1, (parts, -1))
    scales = each[:, :, ::rows].repeat_interleave(rows, dim=2)[:, :, : each.shape[2]].flatten(1, 2)
    bias = None if weights.bias is None else weights.bias.bfloat16().float()
    return dataclasses.replace(weights, scales=scales, alpha=torch.ones_like(weights.alpha), bias=bias)


def as_experts(layer: Layer, form: str, rows: int) -> Experts:
    """The weights as a checkpoint has them."""
    _, hidden, between = layer.shape
    places = {"gate": (layer.w13, 0, between, hidden), "up": (layer.w13, between, 2 * between, hidden),
              "down": (layer.w2, 0, hidden, between)}  # fmt: skip
    values, scale, bias = {}, {}, {}
    for name, (weights, begin, end, k) in places.items():
        values[name] = weights.codes[:, begin:end, :k].numpy()
        columns = 1 if layer.format.of_channels else -(-k // layer.format.block)
        scale[name] = weights.scales[:, begin:end:rows, :columns].numpy()
        if form == "MXFP4":
            values[name] = values[name][..., 0::2] | values[name][..., 1::2] << 4
        if layer.format.is_mx:
            scale[name] = (np.log2(scale[name]) + 127).astype(np.uint8)
        if weights.bias is not None:
            bias[name] = bf16(weights.bias[:, begin:end].numpy())
    return Experts(form, hidden, between, values, scale, bias)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Callable[[str], Runner]:
    return lambda arch: Runner(arch, packs, reschedule)


def check(
    path: Path, rng: np.random.Generator, runner: Runner, name: str, settings: Settings, between: int, experts: int = 3
) -> None:
    """A layer of one expert is a dense MLP."""
    published, arch = PUBLISHED[name], runner.arch
    generator, rows = torch.Generator().manual_seed(int(rng.integers(1 << 62))), 128 if published.form == "FP8" else 1
    drawn = moe_blocks.random_layer(
        generator, FORMATS[published.target], experts, 160, between, settings, extras=name == "gpt-oss"
    )
    layer = FromFile(
        drawn.format, storable(drawn.w13, 2, rows), storable(drawn.w2, 1, rows), settings, on_hopper=arch == "90a"
    )
    stored, prefix = as_experts(layer, published.form, rows), published.prefix if experts > 1 else DENSE[name]
    save(path / "model.safetensors", published.tensors(stored, prefix) if experts > 1 else dense(stored, name))
    prepared = prepare(path, prefix, target=published.target)
    arrays = {key: torch.from_numpy(array) for key, array in prepared.items()}
    if layer.format.is_mx:
        arrays |= {f"{weight}_alpha": torch.ones(experts) for weight in ("w13", "w2")}
    tokens = moe_blocks.random_tokens(generator, layer, 5, min(2, experts))
    out = runner(dataclasses.replace(layer, arrays=arrays), tokens)
    moe.moe(layer, tokens, "bf16").check(out, f"{name} {arch} {runner.schedule}")


@pytest.mark.parametrize(("name", "arch", "settings", "between"), PLACES)
def test_a_layer_from_its_file(
    name: str, arch: str, settings: Settings, between: int, tmp_path: Path, run: Callable[[str], Runner],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Every element is within the bound; weights, scales and biases come from the file alone."""
    check(tmp_path, rng, run(arch), name, settings, between)


@pytest.mark.parametrize(("name", "arch"), [("MXFP8", "90a"), ("FP8 DeepSeek-V3.1", "120a")])
def test_a_dense_mlp_from_its_file(
    name: str, arch: str, tmp_path: Path, run: Callable[[str], Runner], rng: np.random.Generator
) -> None:
    """The layer of one expert to which every token goes."""
    check(tmp_path, rng, run(arch), name, Settings(), 96, experts=1)
