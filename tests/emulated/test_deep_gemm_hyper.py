"""DeepGEMM's function of hyper-connections on CPU tensors."""

from __future__ import annotations

import functools

import pytest
import torch
from hc_prenorm import BLOCK, Problem

import loader
from integrations import deep_gemm

pytestmark = pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")


@pytest.fixture
def on_hopper(monkeypatch, packs):
    monkeypatch.setattr(loader, "launch", functools.partial(loader.launch, packs=packs, device="emulated:90a"))


def tensors(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(problem.a.view("i2")).view(torch.bfloat16), torch.from_numpy(problem.b)


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("num_splits", [None, 1, 5])
def test_with_and_without_splits(num_splits, rng):
    """d and sqr_sum, of all of K or of each share; more shares than blocks leave zeros in the last ones."""
    problem = Problem.random(rng, 13, 24, 3 * BLOCK, num_splits)
    outputs = problem.outputs()
    lead = () if num_splits is None else (num_splits,)
    d, sqr_sum = (torch.from_numpy(output.array).view(*lead, 13, -1) for output in outputs)
    deep_gemm.tf32_hc_prenorm_gemm(*tensors(problem), d, sqr_sum[..., 0], num_splits=num_splits)
    problem.verify(*outputs, f"num_splits {num_splits}")


def test_no_rows():
    """Nothing is launched, and nothing is asked of a device."""
    a, b = torch.empty(0, 128, dtype=torch.bfloat16), torch.empty(24, 128)
    deep_gemm.tf32_hc_prenorm_gemm(a, b, torch.empty(0, 24), torch.empty(0))
    deep_gemm.tf32_hc_prenorm_gemm(a, b, torch.empty(16, 0, 24), torch.empty(16, 0), num_splits=16)


@pytest.mark.usefixtures("on_hopper")
def test_refusals(rng):
    """Another number of shares than d has, and a K that is no multiple of 64."""
    a, b = tensors(Problem.random(rng, 3, 24, 2 * BLOCK))
    with pytest.raises(ValueError, match=r"d: expected \[2, M, N\] for num_splits 2, got \[3, 3, 24\]"):
        deep_gemm.tf32_hc_prenorm_gemm(a, b, torch.empty(3, 3, 24), torch.empty(3, 3), num_splits=2)
    a, b = a[:, :96].contiguous(), b[:, :96].contiguous()
    with pytest.raises(loader.errors.ConstraintError, match="K % 64 == 0"):
        deep_gemm.tf32_hc_prenorm_gemm(a, b, torch.empty(3, 24), torch.empty(3))
