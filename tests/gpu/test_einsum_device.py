"""Einsums on a GPU: every variant right, and equal in every byte over 20 launches; DeepGEMM's calls as well."""

from __future__ import annotations

import einsum_problem
import gemm_problem
import numpy as np
import pytest
import reference
from test_gemm_rows_device import TORCH_TYPES, cases, problem_of

torch = pytest.importorskip("torch")

import loader  # noqa: E402
from integrations import deep_gemm  # noqa: E402

OF_MATRICES = ["einsum_bf16", "einsum_bf16_nn", "einsum_bf16_tn", "einsum_fp8", "einsum_fp8_ue8m0",
               "einsum_fp8_ue8m0_nn", "einsum_fp8_ue8m0_tn"]  # fmt: skip
TIMES = 20


def to_device(value: object) -> object:
    """Arrays and buffers of them; numbers stay."""
    value = getattr(value, "owner", value)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.uint16:
        return torch.from_numpy(value.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(value).cuda()


def equal_bytes(outs: list[torch.Tensor]) -> np.ndarray:
    """Of the first, as bytes; all of them have these."""
    first = outs[0].view(torch.uint8)
    assert all(torch.equal(out.view(torch.uint8), first) for out in outs)
    return first.cpu().numpy()


def poisoned(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    return torch.full(shape, -1, dtype=torch.int32 if dtype == "f32" else torch.int16,
                      device="cuda").view(TORCH_TYPES[dtype])  # fmt: skip


@pytest.mark.parametrize(("family", "name", "dtype"), cases(OF_MATRICES))
@pytest.mark.parametrize(("rows", "matrices"), [(1, 5), (301, 3)])
def test_matrices(family: str, name: str, dtype: str, rows: int, matrices: int, rng: np.random.Generator) -> None:
    """Tails of rows, N and K; rows and matrices with pitches of their own, of NaN in between."""
    problem, letters = problem_of(rng, family, [rows] * matrices, 392, 1115), gemm_problem.named(family)[2]
    inputs = {key: to_device(value) for key, value in einsum_problem.inputs(problem, letters).items()}
    outs = [poisoned(einsum_problem.shape(rows, matrices, 392, letters), dtype) for _ in range(TIMES)]
    for out in outs:
        loader.launch(family, **inputs, out=out, variant=name)
    held = reference.GuardedOutput(rows * matrices, 392, dtype)
    held.array[:] = equal_bytes(outs).view(reference.STORAGE[dtype]).reshape(held.array.shape)
    places = einsum_problem.places(rows, matrices, letters)
    gemm_problem.verify(problem, places, held, rows * matrices, "as before", f"{family} {name}")


# The last one is of one stage, the one before of fewer stages than a share has.
SUMS = [(129, 128, 384, 128), (37, 131, 136, 72), (3, 384, 128, 64), (1, 1, 8, 8)]


@pytest.mark.parametrize(("s", "m", "n", "k"), SUMS)
@pytest.mark.parametrize("out_type", ["f32", "bf16"])
def test_sum_of_products(s: int, m: int, n: int, k: int, out_type: str, rng: np.random.Generator) -> None:
    """bmk,bnk->mn: the same bytes every time, and within the bound of sums in any order; with c = d added to d."""
    a, b = (torch.from_numpy(rng.standard_normal((s, rows, k), np.float32)).cuda().bfloat16() for rows in (m, n))
    outs = [poisoned((m, n), out_type) for _ in range(TIMES)]
    for out in outs:
        deep_gemm.einsum("bmk,bnk->mn", a, b, out)
    found = reference.as_float64(equal_bytes(outs).view(reference.STORAGE[out_type]).reshape(m, n), out_type)
    value, magnitude = (torch.einsum("bmk,bnk->mn", *each).cpu().numpy()
                        for each in ((a.double(), b.double()), (a.double().abs(), b.double().abs())))  # fmt: skip
    bound = magnitude * (reference.ceil_div(s * k, 16) * (17 * 2.0**-25 + 2.0**-23) + 200 * 2.0**-24)
    reference.check_within(found, value, gemm_problem.rounded_bound(value, bound, out_type))
    if out_type == "f32":
        outs = [torch.ones(m, n, device="cuda") for _ in range(TIMES)]
        for out in outs:
            deep_gemm.einsum("bmk,bnk->mn", a, b, out, out)
        added = equal_bytes(outs).view(np.float32).reshape(m, n).astype(np.float64)
        reference.check_within(added, value + 1, bound + (abs(value) + 1) * 2.0**-22)
