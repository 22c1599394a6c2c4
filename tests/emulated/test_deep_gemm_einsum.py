"""DeepGEMM's einsums on CPU tensors: each against float64, strides of slices, and what they refuse."""

from __future__ import annotations

import gemm_problem
import numpy as np
import pytest
import reference
import torch
from test_deep_gemm import launch_on

from integrations import deep_gemm, deep_gemm_einsum

ARCHS = ("90a", "100a", "120a")
pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
# Axes of a [h, rows, K] and of b [h, N, K] as the expression has them, and of d [h, rows, N].
ORDERS = {
    "bhr,hdr->bhd": ((1, 0, 2), (0, 1, 2), (1, 0, 2)),
    "bhd,hdr->bhr": ((1, 0, 2), (0, 2, 1), (1, 0, 2)),
    "bhd,bhr->hdr": ((2, 0, 1), (2, 0, 1), (0, 1, 2)),
}


@pytest.fixture(params=ARCHS)
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, packs: list[str] | None) -> str:
    launch_on(request.param, monkeypatch, packs)
    return request.param


def tensor(x: np.ndarray, order: tuple[int, ...] = (0, 1, 2), spare: int = 0) -> torch.Tensor:
    """x with its axes in that order, a slice of rows that are ``spare`` longer, with NaN in there."""
    x = x.transpose(order)
    nan = gemm_problem.NAN["bf16" if x.dtype == np.uint16 else "e4m3"]
    memory = np.full((*x.shape[:2], x.shape[2] + spare), nan, x.dtype)
    memory[..., : x.shape[2]] = x
    found = (torch.from_numpy(memory.view(np.int16)).view(torch.bfloat16) if x.dtype == np.uint16
             else torch.from_numpy(memory).view(torch.float8_e4m3fn))  # fmt: skip
    return found[..., : x.shape[2]]


def operands(problem: gemm_problem.GemmProblem, expr: str, spare: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    matrices, rows = len(problem.counts), problem.counts[0]
    of_a, of_b, _ = ORDERS[expr]
    return tensor(problem.a.reshape(matrices, rows, -1), of_a, spare), tensor(problem.b, of_b, spare)


def result(problem: gemm_problem.GemmProblem, expr: str) -> torch.Tensor:
    shape = (len(problem.counts), problem.counts[0], problem.b.shape[1])
    dtype = torch.float32 if expr == "bhd,bhr->hdr" else torch.bfloat16
    return torch.full([shape[axis] for axis in ORDERS[expr][2]], torch.nan, dtype=dtype)


def verify(problem: gemm_problem.GemmProblem, d: torch.Tensor, expr: str, before: float = 0) -> None:
    value, bound = gemm_problem.expected(problem)
    value = value + before
    bound = gemm_problem.rounded_bound(value, bound, "f32" if d.dtype == torch.float32 else "bf16")
    found = d.permute(ORDERS[expr][2]).reshape(value.shape)  # its own inverse
    reference.check_within(found.double().numpy(), value, bound, expr)


@pytest.mark.parametrize("spare", [0, 24])
@pytest.mark.parametrize("expr", ORDERS)
def test_bf16(arch: str, expr: str, spare: int, rng: np.random.Generator) -> None:
    """Tails in every dimension, whole and as slices; what lies behind a slice is not read."""
    problem = gemm_problem.gemm_problem(rng, "bf16", [40] * 3, 136, 72)
    d = result(problem, expr)
    deep_gemm.einsum(expr, *operands(problem, expr, spare), d)
    verify(problem, d, expr)


@pytest.mark.parametrize("expr", ORDERS)
def test_one_of_each(expr: str, on_hopper: None, rng: np.random.Generator) -> None:
    """One row and one matrix, whose strides mean nothing; what is the inner dimension fills 16 bytes."""
    problem = gemm_problem.gemm_problem(rng, "bf16", [8 if expr == "bhd,bhr->hdr" else 1], 8, 8)
    a, b = operands(problem, expr)
    a = a.as_strided(a.shape, [1 if size == 1 else step for size, step in zip(a.shape, a.stride(), strict=True)])
    d = result(problem, expr)
    deep_gemm.einsum(expr, a, b, d)
    verify(problem, d, expr)


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch, packs: list[str] | None) -> None:
    launch_on("90a", monkeypatch, packs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [64, 40])
def test_sum_of_products(arch: str, k: int, dtype: torch.dtype, rng: np.random.Generator) -> None:
    """bmk,bnk->mn: over the batch and K; fp32 is added to where c is d."""
    problem = gemm_problem.gemm_problem(rng, "bf16", [40], 136, 5 * k)
    a, b = (tensor(x.reshape(len(x), 5, k), (1, 0, 2)) for x in (problem.a, problem.b[0]))
    d = torch.full((40, 136), torch.nan, dtype=dtype)
    deep_gemm.einsum("bmk,bnk->mn", a, b, d)
    value, bound = gemm_problem.expected(problem)
    rounded = gemm_problem.rounded_bound(value, bound, "f32" if dtype == torch.float32 else "bf16")
    reference.check_within(d.double().numpy(), value, rounded)
    if dtype == torch.float32:
        d.fill_(3)
        deep_gemm.einsum("bmk,bnk->mn", a, b, d, c=d)
        reference.check_within(d.double().numpy(), value + 3, rounded + 2.0**-20)


def fp8_problem(rng: np.random.Generator, arch: str, rows: int, n: int, k: int) -> gemm_problem.GemmProblem:
    """Scales of b are those of 128 x 128, on Blackwell powers of two."""
    fmt = "fp8" if arch == "90a" else "fp8_ue8m0"
    problem = gemm_problem.gemm_problem(rng, fmt, [rows] * 2, n, k)
    if fmt != "fp8":
        blocks = problem.b_scale[:, ::128]
        problem.b_scale = np.repeat(blocks, 128, 1)[:, :n]
    problem.on_hopper = arch == "90a"
    return problem


def scales(problem: gemm_problem.GemmProblem, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a [h, rows, blocks], of b [h, blocks of N, blocks]."""
    of_a = problem.a_scale.reshape(2, rows, -1)
    return of_a, problem.b_scale if problem.format == "fp8" else problem.b_scale[:, ::128]


@pytest.mark.parametrize("expr", ["bhr,hdr->bhd", "bhd,hdr->bhr"])
def test_fp8(arch: str, expr: str, rng: np.random.Generator) -> None:
    """Scales as quantisers leave them; sm_90 has no FP8 whose inner dimension is not K's, and says so."""
    rows = 37
    problem = fp8_problem(rng, arch, rows, 144, 272)
    of_a, of_b = scales(problem, rows)
    turned = expr != "bhr,hdr->bhd"
    a, b = operands(problem, expr)
    of_a = torch.from_numpy(of_a.swapaxes(0, 1).copy())
    of_b = torch.from_numpy((of_b.swapaxes(1, 2) if turned else of_b).copy())
    d = result(problem, expr)
    if turned and arch == "90a":
        with pytest.raises(NotImplementedError, match="bhd,hdr->bhr: on Hopper FP8 is covered as bhr,hdr->bhd alone"):
            deep_gemm.fp8_einsum(expr, (a, of_a), (b, of_b), d)
        return
    deep_gemm.fp8_einsum(expr, (a, of_a), (b, of_b), d)
    verify(problem, d, expr)


@pytest.mark.parametrize("arch", ["100a", "120a"])
def test_fp8_gradients(arch: str, monkeypatch: pytest.MonkeyPatch, packs: list, rng: np.random.Generator) -> None:
    """bhd,bhr->hdr: scales of each column of both; c is added once (batched c was added twice elsewhere)."""
    launch_on(arch, monkeypatch, packs)
    expr, rows = "bhd,bhr->hdr", 48
    problem = gemm_problem.gemm_problem(rng, "fp8_ue8m0", [rows] * 2, 144, 272)
    a, b = operands(problem, expr)
    of_a = torch.from_numpy(problem.a_scale.reshape(2, rows, -1).transpose(2, 0, 1).copy())
    of_b = torch.from_numpy(problem.b_scale.transpose(2, 0, 1).copy())
    d = result(problem, expr)
    deep_gemm.fp8_einsum(expr, (a, of_a), (b, of_b), d, recipe=(1, 1, 128))
    verify(problem, d, expr)
    d.fill_(2.0**30)  # as large as the products are
    deep_gemm.fp8_einsum(expr, (a, of_a), (b, of_b), d, d, recipe=(1, 1, 128))
    verify(problem, d, expr, 2.0**30)


def test_32_rows_stay_within_out(arch: str, rng: np.random.Generator) -> None:
    """FP8 einsums of b = 32 wrote out of bounds elsewhere, where operands were swapped for few rows."""
    problem = fp8_problem(rng, arch, 32, 72, 144)
    of_a, of_b = scales(problem, 32)
    a, b = operands(problem, "bhr,hdr->bhd")
    memory = torch.full((3 * 32, 2, 72), 7, dtype=torch.bfloat16)
    d = memory[32:64]
    deep_gemm.fp8_einsum("bhr,hdr->bhd", (a, torch.from_numpy(of_a.swapaxes(0, 1).copy())),
                         (b, torch.from_numpy(of_b.copy())), d)  # fmt: skip
    verify(problem, d, "bhr,hdr->bhd")
    assert (memory[:32] == 7).all()
    assert (memory[64:] == 7).all()


def test_cublaslt_and_empty(on_hopper: None) -> None:
    """By torch where the caller asks for cuBLASLt; of no K zeros, or what was there; of no row nothing."""
    a, b = torch.randn(4, 3, 16, dtype=torch.bfloat16), torch.randn(3, 8, 16, dtype=torch.bfloat16)
    d = torch.empty(4, 3, 8, dtype=torch.bfloat16)
    deep_gemm.einsum("bhr,hdr->bhd", a, b, d, use_cublaslt=True)
    assert torch.allclose(d.float(), torch.einsum("bhr,hdr->bhd", a.float(), b.float()), atol=0.1)
    deep_gemm.einsum("bhr,hdr->bhd", a[..., :0], b[..., :0], d)
    assert (d == 0).all()
    sums = torch.ones(3, 16, 16)
    deep_gemm.einsum("bhd,bhr->hdr", a[:0], a[:0], sums, c=sums)
    assert (sums == 1).all()
    deep_gemm.einsum("bhr,hdr->bhd", a[:0], b, d[:0])


def test_refusals(on_hopper: None) -> None:
    """Other expressions, sizes that differ, types, strides, results with gaps, a c that is not d, recipes."""
    a, b = torch.zeros(4, 3, 16, dtype=torch.bfloat16), torch.zeros(3, 8, 16, dtype=torch.bfloat16)
    d, sums = torch.empty(4, 3, 8, dtype=torch.bfloat16), torch.zeros(3, 16, 16)
    with pytest.raises(NotImplementedError, match=r"expr: expected bhr,hdr->bhd or .*, got 'ij,jk->ik'"):
        deep_gemm.einsum("ij,jk->ik", a, b, d)
    with pytest.raises(ValueError, match=r"b: of bhr,hdr->bhd expected \[h = 3, d, r = 16\], got \(3, 8, 8\)"):
        deep_gemm.einsum("bhr,hdr->bhd", a, b[..., :8], d)
    with pytest.raises(NotImplementedError, match="d: of bhr,hdr->bhd expected torch.bfloat16, got torch.float32"):
        deep_gemm.einsum("bhr,hdr->bhd", a, b, d.float())
    with pytest.raises(NotImplementedError, match=r"a: expected an inner stride of 1, got strides \(96, 32, 2\)"):
        deep_gemm.einsum("bhr,hdr->bhd", a.new_zeros(4, 3, 32)[..., ::2], b, d)
    with pytest.raises(NotImplementedError, match=r"a: expected outer strides .* of 8, 16 bytes, got \(51, 17, 1\)"):
        deep_gemm.einsum("bhr,hdr->bhd", a.new_zeros(4, 3, 17)[..., :16], b, d)
    with pytest.raises(NotImplementedError, match=r"d: expected no gaps, got strides \(48, 16, 1\)"):
        deep_gemm.einsum("bhr,hdr->bhd", a, b, a.clone()[..., :8])
    with pytest.raises(NotImplementedError, match="c: expected None with d in torch.bfloat16"):
        deep_gemm.einsum("bhr,hdr->bhd", a, b, d, c=d)
    with pytest.raises(NotImplementedError, match="c: expected d itself, got another tensor"):
        deep_gemm.einsum("bhd,bhr->hdr", a, a, sums, c=sums.clone())
    with pytest.raises(NotImplementedError, match="use_cublaslt: expected bhr,hdr->bhd or bhd,hdr->bhr, got bhd"):
        deep_gemm.einsum("bhd,bhr->hdr", a, a, sums, use_cublaslt=True)
    x, y = (each.to(torch.float8_e4m3fn) for each in (a, b))
    with pytest.raises(NotImplementedError, match=r"recipe: of bhr,hdr->bhd expected \(1, 128, 128\), got"):
        deep_gemm.fp8_einsum("bhr,hdr->bhd", (x, a), (y, b), d, recipe=(1, 1, 128))
    assert deep_gemm.einsum is deep_gemm_einsum.einsum
