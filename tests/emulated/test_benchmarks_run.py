"""What benchmarks launch, at small sizes on the emulated device: so that a session on a GPU does not find it wrong."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import moe_peers  # noqa: E402
import moe_problem  # noqa: E402
import quantize  # noqa: E402
from moe_problem import GPT_OSS, Layer, Size  # noqa: E402

import loader  # noqa: E402

SIZES = {"moe_fp4": Size(3, 2, 128, 128), "moe_bf16_nvfp4": Size(3, 2, 128, 128), "moe_fp8": Size(3, 2, 256, 128),
         "moe_mxfp8_mxfp4": Size(3, 2, 160, 96, GPT_OSS), "moe_bf16_mxfp4": Size(3, 2, 160, 160, GPT_OSS)}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
    pytest.mark.skipif(moe_problem.DEVICE != "cpu", reason="layers would be on the device"),
]


@pytest.fixture
def emulated(packs: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "plan", functools.partial(loader.plan, device="emulated:90a", packs=packs))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("composite", SIZES)
def test_layers_are_as_near_to_torch_as_the_benchmark_asks(composite: str, seed: int) -> None:
    """And not nearer by much; its steps are those of the plan, and one by one moe_fp4 gives the same bytes."""
    layer = Layer(composite, SIZES[composite], seed)
    tokens = layer.tokens(5, seed)
    out = torch.full_like(tokens["x"], torch.nan)
    plan = loader.plan(composite, **layer.arguments, **tokens, out=out)  # host memory is not aligned as a workspace is
    plan.launch()
    launch, expected = moe_peers.in_torch(layer)(tokens)
    launch()
    error = float((out.double() - expected.double()).norm() / expected.double().norm())
    assert layer.format.max_error / 10 < error < layer.format.max_error
    assert list(moe_problem.steps(plan)) == list(moe_problem.STEPS)
    if composite == "moe_fp4":
        apart = torch.full_like(out, torch.nan)
        for _, step in moe_problem.unfused(layer, tokens, apart):
            step.launch()
        assert torch.equal(out, apart)


@pytest.mark.usefixtures("emulated")
def test_every_call_of_the_quantisers_is_accepted() -> None:
    """With its scalars; and their bytes are those that are read and written."""
    layer = quantize.Layer(8, 3)
    calls = layer.calls()
    for family, buffers in calls.items():
        assert loader.plan(family, **buffers, **quantize.scalars(buffers)).steps, family
    m, k = 24, quantize.HIDDEN
    assert layer.bytes(calls["mxfp8_quantize"]) == m * k * 3 + m * k // 32
    assert layer.bytes(calls["add_rms_norm_fp8_quantize"]) == m * k * 7 + 2 * k + m * k // 128 * 4
    assert layer.bytes(calls["fp8_ue8m0_quantize"]) == m * k * 3 + m * k // 128
