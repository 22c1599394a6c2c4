"""grouped_fp4 on layers of real models: every variant and output type, every element against float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from device_problem import DeviceProblem, device_problem, routed_counts  # noqa: E402

import loader  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Layer:
    """One grouped GEMM of a layer. ``counts`` gives the rows outright, else ``tokens`` are routed with skew."""

    name: str
    experts: int
    n: int
    k: int
    tokens: int = 0
    top_k: int = 0
    counts: tuple[int, ...] = ()
    wide: bool = False
    unowned_rows: int = 0

    def rows(self, seed: int) -> list[int]:
        return list(self.counts) or routed_counts(seed, self.tokens, self.experts, self.top_k)


# Hidden and intermediate sizes: the models' published configurations.
LAYERS = [
    Layer("deepseek_v3_gate_up", 256, 4096, 7168, tokens=128, top_k=8),
    Layer("deepseek_v3_down", 256, 7168, 2048, tokens=128, top_k=8),
    Layer("deepseek_v4_pro_gate_up", 384, 6144, 7168, tokens=96, top_k=6),
    Layer("deepseek_v4_pro_down", 384, 7168, 3072, tokens=96, top_k=6),
    Layer("qwen3_235b_gate_up", 128, 3072, 4096, tokens=128, top_k=8),
    Layer("qwen3_235b_down", 128, 4096, 1536, tokens=128, top_k=8),
    Layer("qwen3_30b_gate_up", 128, 1536, 2048, tokens=256, top_k=8),
    Layer("qwen3_30b_down", 128, 2048, 768, tokens=256, top_k=8),
    Layer("gpt_oss_120b_gate_up", 128, 5760, 2880, tokens=128, top_k=4),
    Layer("gpt_oss_120b_down", 128, 2880, 2880, tokens=128, top_k=4, wide=True),
    Layer("vllm_small", 40, 2048, 1536, tokens=64, top_k=6),
    Layer("vllm_many_tokens", 64, 1024, 1024, tokens=224, top_k=8),
    Layer("one_token", 256, 4096, 7168, tokens=1, top_k=8),
    Layer("all_rows_in_one_expert", 8, 4096, 2048, counts=(0, 0, 0, 1500, 0, 0, 0, 0)),
    Layer("one_expert_one_row", 1, 8, 32, counts=(1,)),
    Layer("tails", 6, 136, 96, counts=(1, 0, 129, 31, 257, 8), unowned_rows=3),
    Layer("tails_wide", 5, 2056, 7200, counts=(0, 1, 130, 63, 0), wide=True, unowned_rows=1),
    Layer("most_experts", 1024, 264, 224, tokens=512, top_k=4),
]


@pytest.fixture(scope="module", params=LAYERS, ids=lambda layer: layer.name)
def problem(request: pytest.FixtureRequest, seed: int) -> Iterator[DeviceProblem]:
    layer: Layer = request.param
    yield device_problem(
        seed, layer.rows(seed), layer.n, layer.k, wide=layer.wide, unowned_rows=layer.unowned_rows, device="cuda"
    )
    torch.cuda.empty_cache()


def test_the_pack_has_variants_of_every_output_type(variants: dict[str, str]) -> None:
    """Without a pack for this device, the tests below would be empty."""
    assert set(variants.values()) == {"bf16", "f16", "f32"}


def test_every_element_is_within_the_bound(problem: DeviceProblem, variant: str, out_type: str) -> None:
    """fp32 accumulation and one rounding explain every difference, and nothing outside the experts' rows is written;
    weights that are loaded ahead give the same bytes."""
    out, ahead = problem.output(out_type), problem.output(out_type)
    loader.launch("grouped_fp4", **problem.inputs, out=out.array, variant=variant)
    loader.launch("grouped_fp4", **problem.inputs, out=ahead.array, variant=variant, prefetch="weights")
    torch.cuda.synchronize()
    problem.verify(out, variant)
    problem.verify(ahead, f"{variant} prefetch=weights")
    owned = slice(problem.owned)
    assert torch.equal(out.array[owned].view(torch.uint8), ahead.array[owned].view(torch.uint8))


@pytest.mark.parametrize("out_type", ["bf16", "f16", "f32"])
def test_the_selected_variant_computes_the_same(problem: DeviceProblem, out_type: str) -> None:
    """Selection always finds a variant, and a plan launched twice gives the same bytes."""
    first, second = problem.output(out_type), problem.output(out_type)
    loader.launch("grouped_fp4", **problem.inputs, out=first.array)
    plan = loader.plan("grouped_fp4", **problem.inputs, out=second.array)
    plan.launch()
    plan.launch()
    torch.cuda.synchronize()
    problem.verify(first, "selected")
    assert torch.equal(first.bytes(), second.bytes())


def test_no_rows_is_no_launch(variants: dict[str, str]) -> None:
    """M = 0 computes nothing and is no error."""
    inputs = device_problem(0, [0, 0, 0], 64, 128).inputs
    for out_type, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)):
        assert out_type in variants.values()
        loader.launch("grouped_fp4", **inputs, out=torch.empty(0, 64, dtype=dtype, device="cuda"))
    torch.cuda.synchronize()
