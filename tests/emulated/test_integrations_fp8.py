"""The FP8 and MXFP4 functions that engines call, on CPU tensors: arguments, layouts and results, against float64."""

from __future__ import annotations

import functools

import gemm_problem
import numpy as np
import pytest
import torch
from reference import E2M1, E4M3, check_within, round_up, scale_offset

import loader
from integrations import ops, sglang, vllm

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "hopper", "registered"),
]
E4M3FN = torch.float8_e4m3fn
BOTH = pytest.mark.parametrize("engine", ["vllm", "sglang"])


@pytest.fixture(scope="module")
def registered(packs):
    """Ops of the pack under test, in the place of those of another one that was there at the import."""
    ops.register(packs)


@pytest.fixture
def hopper(monkeypatch, packs, reschedule):
    """Launches go to the emulated device, under a schedule of their own."""
    launch = functools.partial(loader.launch, packs=packs, device="emulated:90a")
    monkeypatch.setattr(loader, "launch", lambda *args, **kwargs: (reschedule(), launch(*args, **kwargs))[1])


def random_values(rng, rows: int, k: int, dtype=torch.bfloat16) -> torch.Tensor:
    """Blocks of very different size."""
    values = rng.standard_normal((rows, k)).reshape(rows, -1, 64) * np.exp2(rng.integers(-6, 5, (rows, k // 64, 1)))
    return torch.from_numpy(values.reshape(rows, k)).to(dtype)


def check_quantized(values: np.ndarray, out: torch.Tensor, scales: torch.Tensor, power: bool = False) -> None:
    """Scales are amax / 448 of 128 values, or the power of two above; elements are within half a step."""
    rows, k = values.shape
    padded = np.zeros((rows, round_up(k, 128)))
    padded[:, :k] = values
    amax = np.maximum(abs(padded).reshape(rows, -1, 128).max(-1), 1e-10)
    wanted = np.exp2(np.ceil(np.log2(amax / 448))) if power else amax / 448
    np.testing.assert_allclose(scales.double().numpy(), wanted, rtol=0 if power else 2.0**-22)
    wide = np.repeat(scales.double().numpy(), 128, 1)[:, :k]
    half_step = np.maximum(2.0**-4 * abs(values / wide), 2.0**-10) * wide * (1 + 1e-6)
    check_within(E4M3[out.view(torch.uint8).numpy()] * wide, values, half_step)


def silu_mul(x: torch.Tensor) -> np.ndarray:
    gate, up = np.split(x.double().numpy(), 2, axis=1)
    return gate / (1 + np.exp(-gate)) * up


def quantizer(engine: str):
    return vllm.per_token_group_quant_fp8 if engine == "vllm" else sglang.sglang_per_token_group_quant_fp8


@BOTH
@pytest.mark.parametrize("rows", [5, 8])
def test_groups_of_128_in_each_layout_of_scales(rng, engine, rows):
    """Row by row, or as columns, which are apart as TMA wants them or follow each other."""
    aligned = {"vllm": "tma_aligned_scales", "sglang": "scale_tma_aligned"}[engine]
    x = random_values(rng, rows, 384)
    for columns, by_tma in ((False, False), (True, False), (True, True)):
        out, scales = quantizer(engine)(x, 128, column_major_scales=columns, **{aligned: by_tma})
        assert (out.dtype, out.shape, scales.shape) == (E4M3FN, x.shape, (rows, 3))
        pitch = (3, 1) if not columns else (1, round_up(rows, 4) if by_tma else rows)
        assert scales.stride() == pitch
        check_quantized(x.double().numpy(), out, scales)


def test_powers_of_two_and_leading_dimensions(rng):
    """vLLM's use_ue8m0, into a tensor of the caller; leading dimensions stay."""
    x = random_values(rng, 6, 256, torch.float16)
    given = torch.empty(6, 256, dtype=E4M3FN)
    out, scales = vllm.per_token_group_quant_fp8(x, 128, out_q=given, use_ue8m0=True)
    assert out is given
    check_quantized(x.double().numpy(), out, scales, power=True)
    out, scales = vllm.per_token_group_quant_fp8(x.view(2, 3, 256), 128)
    assert (out.shape, scales.shape) == ((2, 3, 256), (2, 3, 2))


@BOTH
def test_packed_powers_of_two(rng, engine):
    """Four exponents in an int32, zeros behind the last; padding rows of the caller's tensor become zeros."""
    x = random_values(rng, 5, 640)
    if engine == "vllm":
        given = torch.full((8, 640), 7.0).to(E4M3FN)
        out, words = vllm.per_token_group_quant_fp8_packed_for_deepgemm(x, 128, out_q=given)
        assert not given[5:].view(torch.uint8).any()
    else:
        out, words = sglang.sglang_per_token_group_quant_fp8(
            x, 128, column_major_scales=True, scale_tma_aligned=True, scale_ue8m0=True
        )
    assert (words.dtype, words.shape, words.stride()) == (torch.int32, (5, 2), (1, 8))
    exponents = words.contiguous().view(torch.uint8).numpy().reshape(5, 8).astype(float)
    assert not exponents[:, 5:].any()
    check_quantized(x.double().numpy(), out[:5], torch.from_numpy(np.exp2(exponents[:, :5] - 127)), power=True)


@pytest.mark.parametrize("adds", [False, True])
def test_norm(rng, adds):
    """vLLM's rms_norm_per_block_quant, of rows with a pitch: rounded in each step; the residual becomes the sum."""
    wide, weight = random_values(rng, 5, 768), random_values(rng, 1, 384)[0]
    x = wide[:, :384]
    residual = random_values(rng, 5, 384) if adds else None
    total = x + residual if adds else x.clone()
    out, scales = vllm.rms_norm_per_block_quant(x, weight, 1e-6, E4M3FN, [1, 128], None, residual, True, 4)
    assert scales.stride() == (1, 8)
    normal = total.double() / (total.double().square().mean(1, keepdim=True) + 1e-6).sqrt()
    exact = (normal * weight.double()).numpy()
    stored = E4M3[out.view(torch.uint8).numpy()] * np.repeat(scales.double().numpy(), 128, 1)
    step = np.maximum(2.0**-4 * abs(exact), 2.0**-10 * np.repeat(scales.double().numpy(), 128, 1))
    check_within(stored, exact, step * 1.01 + abs(exact) * 2.0**-7)
    if adds:
        assert torch.equal(residual, total)


@BOTH
def test_activation(rng, engine):
    """SiLU of gates times ups, which lie behind them, with scales row by row or as columns."""
    x = random_values(rng, 5, 512, torch.float16) / 8
    calls = {"vllm": lambda columns: vllm.silu_and_mul_per_block_quant(x, 128, E4M3FN, None, columns),
             "sglang": lambda columns: sglang.sglang_per_token_group_quant_fp8(
                 x, 128, column_major_scales=columns, fuse_silu_and_mul=True)}  # fmt: skip
    for columns in (False, True):
        out, scales = calls[engine](columns)
        assert scales.shape == (5, 2)
        exact, wide = silu_mul(x), np.repeat(scales.double().numpy(), 128, 1)
        stored = E4M3[out.view(torch.uint8).numpy()] * wide
        rounded = abs(exact) * 2.0**-10 + 2.0**-25  # to f16, the smallest numbers too
        check_within(stored, exact, np.maximum(2.0**-4 * abs(exact), 2.0**-10 * wide) * 1.01 + rounded)


def operands(problem) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (torch.from_numpy(part.copy()).view(E4M3FN) for part in (problem.a, problem.b))
    return a, b.transpose(1, 2)  # [K, N] whose columns lie one behind the other


def check_product(problem, out: torch.Tensor, bias: np.ndarray | None = None) -> None:
    value, bound = gemm_problem.expected(problem)
    value = value if bias is None else value + bias
    out_type = {torch.bfloat16: "bf16", torch.float16: "f16"}[out.dtype]
    check_within(out.double().numpy(), value, gemm_problem.rounded_bound(value, bound, out_type))


@BOTH
def test_product_with_scales_in_blocks(rng, engine):
    """Tails of M, N and K; scales of weights in any major."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [21], 136, 272)
    a, b = operands(problem)
    scale_a, scale_b = torch.from_numpy(problem.a_scale), torch.from_numpy(problem.b_scale[0]).T
    multiply = vllm.cutlass_scaled_mm if engine == "vllm" else sglang.fp8_blockwise_scaled_mm
    check_product(problem, multiply(a, b[0], scale_a, scale_b, torch.bfloat16))
    if engine == "vllm":
        lead = multiply(a[:20].view(4, 5, 272), b[0], scale_a[:20], scale_b, torch.float16)
        assert lead.shape == (4, 5, 136)


@BOTH
def test_product_with_scales_of_rows_and_columns(rng, engine):
    """With a bias; one number stands for all."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [21], 136, 272, weight_rows=1)
    gemm_problem.with_channel_scales(problem, gemm_problem.by_offsets, tokens=True)
    a, b = operands(problem)
    scale_a, scale_b = (torch.from_numpy(part.copy()) for part in (problem.a_scale[:, :1], problem.b_scale[0, :, 0]))
    bias = torch.from_numpy(rng.standard_normal(136)).to(torch.float16)
    if engine == "sglang":
        out = sglang.fp8_scaled_mm(a, b[0], scale_a, scale_b, torch.float16, bias)
    else:
        out = vllm.cutlass_scaled_mm(a, b[0], scale_a, scale_b[None], torch.float16, bias)
    check_product(problem, out, bias.double().numpy())
    if engine == "vllm":
        problem.a_scale[:] = problem.a_scale[:1, :1]
        out = vllm.cutlass_scaled_mm(a, b[0], scale_a[:1], scale_b[None], torch.bfloat16)
        check_product(problem, out)


COUNTS = [0, 19, 1, 0, 9]


@pytest.mark.parametrize("scales", ["blocks", "channels", "one"])
def test_grouped_product(rng, scales):
    """Experts without rows, and with one; the last one's end is that of all rows."""
    problem = gemm_problem.gemm_problem(rng, "fp8", COUNTS, 136, 272, 128 if scales == "blocks" else 1)
    a, b = operands(problem)
    offsets = torch.tensor(np.cumsum([0, *COUNTS[:-1]]))
    out = torch.full((sum(COUNTS), 136), torch.nan, dtype=torch.bfloat16)
    if scales == "blocks":
        of_b = torch.from_numpy(problem.b_scale).transpose(1, 2)
        nothing = [torch.empty(0)] * 5
        sglang.fp8_blockwise_scaled_grouped_mm(out, *nothing, a, b, torch.from_numpy(problem.a_scale), of_b,
                                               *[torch.empty(0)] * 6, offsets.int(), torch.empty(0))  # fmt: skip
    else:
        if scales == "one":
            problem.b_scale[:], problem.a_scale[:] = problem.b_scale[:, :1, :1], problem.a_scale[:1, :1]
        gemm_problem.with_channel_scales(problem, gemm_problem.by_offsets, tokens=True)
        of_a, of_b = torch.from_numpy(problem.a_scale[:, :1].copy()), torch.from_numpy(problem.b_scale[..., 0].copy())
        of_a, of_b = (of_a[:1], of_b[:, :1]) if scales == "one" else (of_a, of_b)
        vllm.cutlass_moe_mm(out, a, b, of_a, of_b, offsets, *[torch.empty(0)] * 4, scales != "one", scales != "one")
    check_product(problem, out)


def test_mxfp4_of_experts(rng):
    """vLLM's quantiser of rows and of weights, and its product of what both gave."""
    counts, n, k = [0, 19, 1, 130], 128, 256
    x, weights = random_values(rng, sum(counts), k), random_values(rng, len(counts) * n, k)
    packed, values = [], []
    for rows, of_each in ((x, counts), (weights, [n] * len(counts))):
        padded = [round_up(count, 128) for count in of_each]
        first, first_scale = (torch.tensor(np.cumsum([0, *sizes]), dtype=torch.int32) for sizes in (of_each, padded))
        out, scale = vllm.mxfp4_experts_quant(rows, first, first_scale, len(counts), topk=1)
        places = np.concatenate([int(at) + np.arange(count) for at, count in zip(first_scale, of_each, strict=False)])
        row, column = np.meshgrid(places, np.arange(k // 32), indexing="ij")
        of_row = np.exp2(scale.numpy().ravel()[scale_offset(row, column, scale.shape[1])].astype(float) - 127)
        codes = np.stack([out.numpy() & 15, out.numpy() >> 4], -1).reshape(len(rows), k)
        wide = np.repeat(of_row, 32, 1)
        amax = abs(rows.double().numpy()).reshape(len(rows), -1, 32).max(-1)
        assert ((amax <= 6 * of_row) & (amax > 3 * of_row)).all()
        stored = E2M1[codes] * wide
        check_within(stored, rows.double().numpy(), wide * np.where(abs(stored) >= 4 * wide, 1, 0.5))
        packed.append((out, scale, first, first_scale))
        values.append(stored)
    (a, a_scale, first, first_scale), (b, b_scale, _, _) = packed
    out = torch.full((sum(counts), n), torch.nan, dtype=torch.bfloat16)
    of_b = b_scale[: len(counts) * n].view(len(counts), n, -1)
    sizes = torch.tensor([[count, n, k] for count in counts])
    vllm.cutlass_mxfp4_moe_mm(out, a, b.view(len(counts), n, -1), a_scale, of_b, sizes, first[:-1], first_scale[:-1])
    expert = np.repeat(np.arange(len(counts)), counts)
    of_expert = values[1].reshape(len(counts), n, k)[expert]
    exact, size = (np.einsum("mk,mnk->mn", f(values[0]), f(of_expert)) for f in (np.asarray, abs))
    check_within(out.double().numpy(), exact, abs(exact) * 2.0**-8 + size * 2.0**-11)


def test_what_the_kernels_have_not_is_refused(rng):
    """Other groups, elements, least amounts and bounds; column-major scales of more than a matrix."""
    x = random_values(rng, 4, 256)
    refused = [
        (vllm.per_token_group_quant_fp8, (x, 64), {}, "for 128 values, not for 64"),
        (vllm.per_token_group_quant_fp8, (x, 128), {"dtype": torch.int8}, "not torch.int8"),
        (vllm.per_token_group_quant_fp8, (x, 128, 1e-4), {}, "not 0.0001"),
        (vllm.per_token_group_quant_fp8, (x[None], 128), {"column_major_scales": True}, "not of 3 dimensions"),
        (vllm.silu_and_mul_per_block_quant, (x, 128, E4M3FN, torch.ones(1)), {}, "no upper bound"),
        (sglang.sglang_per_token_group_quant_fp8, (x, 128), {"masked_m": torch.ones(1)}, "masked_m"),
    ]
    for function, arguments, named, words in refused:
        with pytest.raises(NotImplementedError, match=words):
            function(*arguments, **named)
    with pytest.raises(ValueError, match="needs column_major_scales"):
        sglang.sglang_per_token_group_quant_fp8(x, 128, scale_ue8m0=True)
    with pytest.raises(TypeError, match="expected 8 arguments behind scales_b, got 0"):
        sglang.fp8_blockwise_scaled_grouped_mm(*[x] * 10)
