"""DeepGEMM's MQA logits of MX operands on CPU tensors, against float64."""

from __future__ import annotations

import functools

import mqa_mx
import numpy as np
import pytest
import torch

import loader
from integrations import deep_gemm

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "on_each_generation"),
]


@pytest.fixture(params=["90a", "120a"])
def on_each_generation(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, packs: list[str] | None
) -> None:
    device = f"emulated:{request.param}"
    monkeypatch.setattr(loader, "launch", functools.partial(loader.launch, packs=packs, device=device))


def data_of(codes: np.ndarray, family: str) -> torch.Tensor:
    """As DeepGEMM has it: int8 are two E2M1."""
    stored = torch.from_numpy(codes)
    return stored.view(torch.float8_e4m3fn) if family.endswith("mxfp8") else stored.view(torch.int8)


@pytest.mark.parametrize("family", mqa_mx.DENSE)
def test_dense(family: str, rng: np.random.Generator) -> None:
    """What an exact problem gives, to the bit."""
    problem = mqa_mx.Dense.of(rng, family, 5, 32, 128, 150)
    given = problem.inputs()
    q, kv = ((data_of(given[name], family), torch.from_numpy(given[f"{name}_scale"])) for name in ("q", "kv"))
    weights, starts, ends = (torch.from_numpy(given[name]) for name in ("weights", "starts", "ends"))
    value, _ = problem.logits(False)
    logits = deep_gemm.fp8_fp4_mqa_logits(q, kv, weights, starts, ends, logits_dtype=torch.bfloat16)
    assert torch.equal(logits, torch.from_numpy(np.where(problem.seen(), value, -np.inf)).to(torch.bfloat16))


@pytest.mark.parametrize("family", mqa_mx.PAGED)
def test_paged(family: str, rng: np.random.Generator) -> None:
    """The same, of a cache whose scales lie behind the keys of a page."""
    problem = mqa_mx.Paged.of(rng, family, np.array([[0, 0], [129, 130], [5, 6]], np.int32), 64, 128, 64)
    given = {name: torch.from_numpy(value) for name, value in problem.inputs().items() if isinstance(value, np.ndarray)}
    q = data_of(given["q"].numpy(), family), given["q_scale"]
    cache = given["kv_cache"].view(-1, 64, 1, problem.row_bytes + 4)
    metadata = deep_gemm.get_paged_mqa_logits_metadata(given["context_lens"], 64, 5)
    value, _, seen = problem.logits(False)
    logits = deep_gemm.fp8_fp4_paged_mqa_logits(q, cache, given["weights"], given["context_lens"], given["block_table"],
                                                metadata, value.shape[1])  # fmt: skip
    seen = torch.from_numpy(seen)
    assert torch.equal(logits[seen], torch.from_numpy(value).float()[seen])
