"""grouped_fp4_swiglu on a GPU: every variant writes the bytes of grouped_fp4 and silu_mul_nvfp4_quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import hardware
import numpy as np
import packs
import pytest
import reference
import schedules

torch = pytest.importorskip("torch")

from device_problem import TORCH_TYPES, DeviceProblem, device_problem, routed_counts  # noqa: E402
from reference import GROUP, round_up  # noqa: E402

import loader  # noqa: E402

GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
CHOICES = [
    {"intermediate": "bf16", "global_scale_kind": "encode"},
    {"intermediate": "bf16", "global_scale_kind": "decode", "rounding": "none", "prefetch": "weights", **GPT_OSS},
    {"intermediate": "f16", "global_scale_kind": "encode", "division": "ieee"},
    {"intermediate": "f32", "global_scale_kind": "decode", "division": "ieee", "prefetch": "weights", **GPT_OSS},
    {"intermediate": "bf16", "global_scale_kind": "encode", "activation": "gelu_tanh"},  # with a bias
]
# Tokens (routed to 8 experts each) or rows of each expert, experts, I, K.
LAYERS = {
    "qwen3_30b_few_tokens": (4, 128, 768, 2048),
    "qwen3_30b": (512, 128, 768, 2048),
    "tails": ([1, 0, 129, 31, 257, 8], 6, 80, 96),
    "one_row": ([1], 1, 16, 32),
}


def tiles(family: str = "grouped_fp4_swiglu") -> list[str]:
    """The variants that run on device 0."""
    if not hardware.cuda_devices():
        return ["no device"]
    return [artifact.variant for artifact in packs.artifacts(family, hardware.runs_here)]


@pytest.fixture(scope="module", params=LAYERS)
def problem(request: pytest.FixtureRequest, seed: int) -> Iterator[DeviceProblem]:
    rows, experts, between, k = LAYERS[request.param]
    counts = routed_counts(seed, rows, experts, top_k=8) if isinstance(rows, int) else rows
    yield device_problem(seed, counts, 2 * between, k, wide=True, unowned_rows=3)
    torch.cuda.empty_cache()


def unfused_tile(tile: str) -> str:
    """A tile of grouped_fp4 with as many rows; the order of a sum does not depend on its columns and depth."""
    tiles = {artifact.tile for artifact in packs.artifacts("grouped_fp4", hardware.runs_here)}
    return min(other for other in tiles if other.split("n")[0] == tile.split("n")[0])


def both(launch: Callable[..., None], problem: DeviceProblem, tile: str, choices: dict) -> list[list[torch.Tensor]]:
    """out and out_scale of the fused kernel, then of the two it stands for; what nobody writes is 0xFF in all."""
    inputs, device = problem.inputs, problem.inputs["a"].device
    experts, between = len(inputs["alpha"]), problem.n // 2
    generator = torch.Generator(device).manual_seed(problem.rows)

    def uniform(count: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, device=device, generator=generator)

    if choices.get("activation") == "gelu_tanh":
        bias = torch.randn(experts, problem.n, device=device, generator=generator)
        inputs = inputs | {"bias": bias * problem.expected.value.abs().mean().float()}
    activation = {"row_weight": uniform(problem.rows, -1, 1), "global_scale": 2 ** uniform(experts, -12, 12)}
    outputs = []
    for fused in (True, False):
        out = torch.full((problem.rows, between // 2), 0xFF, dtype=torch.uint8, device=device)
        scale_shape = len(inputs["a_scale"]), round_up(between // GROUP, 4)
        out_scale = torch.full(scale_shape, 0xFF, dtype=torch.uint8, device=device)
        outputs.append([out, out_scale])
        if fused:
            launch("grouped_fp4_swiglu", **inputs, **activation, **choices, out=out, out_scale=out_scale, variant=tile)
            continue
        dtype = choices["intermediate"]
        products = torch.zeros(problem.rows, problem.n, dtype=TORCH_TYPES[dtype], device=device)
        launch("grouped_fp4", **inputs, out=products, variant=f"{unfused_tile(tile)}_{dtype}")
        halves = torch.cat([products[:, 0::2], products[:, 1::2]], dim=1)
        route = {name: inputs[name] for name in ("expert_offsets", "scale_offsets")}
        scalars = {name: choice for name, choice in choices.items() if name not in ("intermediate", "prefetch")}
        launch("silu_mul_nvfp4_quantize", x=halves, **activation, **route, **scalars, out=out, out_scale=out_scale)
    return outputs


@pytest.mark.parametrize("tile", tiles())
@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(map(str, choices.values())))
def test_fused_and_unfused_write_the_same_bytes(problem: DeviceProblem, tile: str, choices: dict) -> None:
    """Of all rows, their scales and the padding of these; rows that no expert owns are left alone by both."""
    (out, out_scale), (unfused, unfused_scale) = both(loader.launch, problem, tile, choices)
    assert torch.equal(out, unfused)
    assert torch.equal(out_scale, unfused_scale)
    assert (out[: problem.owned] != 0xFF).any(), "neither wrote anything"
    assert (out[problem.owned :] == 0xFF).all()


@pytest.mark.parametrize("tile", tiles("grouped_fp4_swiglu_masked"))
def test_rows_by_mask_have_the_bytes_of_packed_rows(tile: str, rng: np.random.Generator) -> None:
    """Of masks of 0, of 1, of every row, and their scales; nothing from the mask on is written."""
    counts, max_rows, between = [0, 1, 300, 137, 0, 20, 301], 301, 208
    problem = reference.grouped_problem(rng, counts, 2 * between, 1120, wide=True)
    row_weight = rng.uniform(-1, 1, sum(counts)).astype(np.float32)
    given = {"global_scale": 2.0 ** rng.uniform(-12, 12, len(counts)).astype(np.float32)}
    of_form = {None: {**problem.inputs(), "row_weight": row_weight},
               max_rows: schedules.masked_layer_inputs(problem, rng, max_rows, row_weight)}  # fmt: skip
    found = []
    for rows_of_each, inputs in of_form.items():
        on_device = {name: torch.from_numpy(value).cuda() for name, value in (inputs | given).items()}
        widths = (between // 2, round_up(between // GROUP, 4))
        extents = zip(schedules.extents(problem, rows_of_each), widths, strict=True)
        outputs = [torch.full(extent, 0xFF, dtype=torch.uint8, device="cuda") for extent in extents]
        out, out_scale = (schedules.matrices(buffer, len(counts), rows_of_each) for buffer in outputs)
        loader.launch("grouped_fp4_swiglu", **on_device, **CHOICES[0], out=out, out_scale=out_scale, variant=tile)
        rows, scale_rows = schedules.places(problem, rows_of_each)
        groups = np.arange(outputs[1].shape[1])
        places = reference.scale_offset(scale_rows[:, None], groups, len(groups))
        stored, scales = (buffer.cpu().numpy() for buffer in outputs)
        found.append((stored[rows], scales.reshape(-1)[places]))
        assert (np.delete(stored, rows, axis=0) == 0xFF).all() and (np.delete(scales, places) == 0xFF).all()
    (packed, packed_scales), (masked, masked_scales) = found
    assert (packed == masked).all() and (packed_scales == masked_scales).all() and (masked != 0xFF).any()
