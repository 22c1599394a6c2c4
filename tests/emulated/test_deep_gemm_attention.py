"""DeepGEMM's MQA logits on CPU tensors, against float64, and what they refuse. Numbers are those of its issues."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import mqa
import numpy as np
import pytest
import torch

import loader
from integrations import deep_gemm

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "on_hopper"),
]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch, packs: list[str] | None) -> Iterator[None]:
    monkeypatch.setattr(loader, "launch", functools.partial(loader.launch, packs=packs, device="emulated:90a"))


def e4m3(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)


def verify(logits: torch.Tensor, value: np.ndarray, seen: np.ndarray, unseen: float | None = None) -> None:
    """Exact problems: fp32 as it is, bf16 rounded once."""
    expected = torch.from_numpy(np.where(seen, value, unseen or 0)).to(logits.dtype)
    assert torch.equal(logits if unseen is not None else torch.where(torch.from_numpy(seen), logits, 0), expected)
    assert logits.stride(0) * logits.itemsize % 1024 == 0


def dense_call(problem: mqa.Dense) -> tuple:
    """Weights are some columns of a matrix."""
    weights = torch.from_numpy(problem.weights)[:, : problem.q.shape[1]]
    ranges = torch.from_numpy(problem.starts), torch.from_numpy(problem.ends)
    return (e4m3(problem.q), (e4m3(problem.kv), torch.from_numpy(problem.kv_scale)), weights, *ranges)


@pytest.mark.parametrize("out", DTYPES)
def test_dense(out: str, rng: np.random.Generator) -> None:
    """Cleaned, as it is, and compressed to the longest range, of either type."""
    problem = mqa.Dense.random(rng, 5, 32, 64, 150, spare=8)
    value, _ = problem.logits(True)
    q, *others = dense_call(problem)
    cleaned = deep_gemm.fp8_fp4_mqa_logits((q, None), *others, logits_dtype=DTYPES[out])
    verify(cleaned, value, problem.seen(), -np.inf)
    full = deep_gemm.fp8_fp4_mqa_logits((q, None), *others, clean_logits=False, logits_dtype=DTYPES[out])
    verify(full, value, problem.seen())
    longest = int(problem.seen().sum(1).max())
    compressed = deep_gemm.fp8_fp4_mqa_logits((q, None), *others, False, longest, DTYPES[out])
    assert compressed.shape == (5, longest)
    for row, seen in enumerate(problem.seen()):
        assert torch.equal(compressed[row, : seen.sum()], cleaned[row, torch.from_numpy(seen)])


def test_old_names(rng: np.random.Generator) -> None:
    """Without a pair, in fp32."""
    problem = mqa.Dense.random(rng, 3, 32, 64, 70)
    verify(deep_gemm.fp8_mqa_logits(*dense_call(problem)), problem.logits(True)[0], problem.seen(), -np.inf)
    paged, call = paged_problem(rng, np.array([[60, 61]], np.int32))
    value, _, seen = paged.logits(True)
    verify(deep_gemm.fp8_paged_mqa_logits(*call, clean_logits=False), value, seen)


def paged_problem(rng: np.random.Generator, lengths: np.ndarray, spare: int = 0) -> tuple[mqa.Paged, tuple]:
    """The cache is a view of pages that lie apart, of which the last one ends the memory; lengths and the table are
    columns of larger matrices."""
    problem = mqa.Paged.random(rng, lengths, 64, 128, 64, spare)
    pages, stride = problem.kv_cache.shape
    cache = torch.from_numpy(problem.inputs()["kv_cache"])
    cache = cache.as_strided((pages, 64, 1, 132), (stride, 132, 132, 1))
    wider = torch.full((len(lengths), 9), -9, dtype=torch.int32)
    wider[:, 2 : 2 + lengths.shape[1]] = torch.from_numpy(problem.context_lens)
    context_lens = wider[:, 2 : 2 + lengths.shape[1]]
    width = problem.block_table.shape[1]
    table = torch.full((len(lengths), width + 3), 2**30, dtype=torch.int32)
    table[:, :width] = torch.from_numpy(problem.block_table)
    metadata = deep_gemm.get_paged_mqa_logits_metadata(context_lens, 64, 5)
    weights = torch.from_numpy(problem.weights)
    return problem, (e4m3(problem.q), cache, weights, context_lens, table[:, :width], metadata, width * 64)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("spare", [0, 48])
def test_paged(out: str, spare: int, rng: np.random.Generator) -> None:
    """#311, vllm#40987: lengths that are not contiguous, and pages that lie apart."""
    problem, (q, *others) = paged_problem(rng, np.array([[0, 0], [129, 130], [5, 6]], np.int32), spare)
    value, _, seen = problem.logits(True)
    verify(deep_gemm.fp8_fp4_paged_mqa_logits((q, None), *others, logits_dtype=DTYPES[out]), value, seen)


def test_queries_by_index(rng: np.random.Generator) -> None:
    """#425: queries of one request beside each other, on Hopper, too."""
    problem = mqa.Paged.random(rng, np.array([[100], [101], [50]], np.int32), 32, 64, 64)
    problem.block_table[0] = problem.block_table[1]
    indices = torch.tensor([4, 4, 7], dtype=torch.int32)
    lens = torch.from_numpy(problem.context_lens)
    metadata = deep_gemm.get_paged_mqa_logits_metadata(lens, 64, 3, indices)
    cache = torch.from_numpy(problem.kv_cache).view(-1, 64, 1, 68)
    logits = deep_gemm.fp8_fp4_paged_mqa_logits(
        (e4m3(problem.q), None), cache, torch.from_numpy(problem.weights), lens, torch.from_numpy(problem.block_table),
        metadata, 128, indices=indices)  # fmt: skip
    value, _, seen = problem.logits(True)
    verify(logits, value, seen)


def test_no_requests() -> None:
    """A table of ends, and no logits."""
    lens = torch.empty(0, 2, dtype=torch.int32)
    metadata = deep_gemm.get_paged_mqa_logits_metadata(lens, 64, 4)
    assert metadata.tolist() == [[0, 0]] * 5


def test_what_is_refused(rng: np.random.Generator) -> None:
    """vllm#57218, and what has no kernel: cleaning where it cannot be, FP4 without scales, lengths in one dimension,
    gaps in pages."""
    problem = mqa.Dense.random(rng, 3, 32, 64, 70)
    q, *others = dense_call(problem)
    with pytest.raises(ValueError, match="clean_logits: expected False where max_seqlen_k is 9, got True"):
        deep_gemm.fp8_fp4_mqa_logits((q, None), *others, max_seqlen_k=9)
    with pytest.raises(NotImplementedError, match="q is covered in float8_e4m3fn, .*; got torch.int8 without scales"):
        deep_gemm.fp8_fp4_mqa_logits((q.view(torch.int8), None), *others)
    _, (q, cache, *others) = paged_problem(rng, np.array([[60, 61]], np.int32))
    with pytest.raises(ValueError, match="clean_logits: expected False, got True"):
        deep_gemm.fp8_fp4_paged_mqa_logits((q, None), cache, *others, clean_logits=True)
    with pytest.raises(ValueError, match=r"kv_cache: expected pages of \[64, 1, 132\] bytes without gaps"):
        deep_gemm.fp8_fp4_paged_mqa_logits((q, None), cache[..., :-1], *others)
    with pytest.raises(ValueError, match=r"context_lens: expected 2 dimensions \[B, next_n\], got \(4,\)"):
        deep_gemm.get_paged_mqa_logits_metadata(torch.zeros(4, dtype=torch.int32), 64, 4)


def test_rows_that_end_the_memory(rng: np.random.Generator) -> None:
    """The last columns of a matrix, where a row of as many bytes would end behind it."""
    problem = mqa.Dense.random(rng, 3, 32, 64, 70)
    q, kv, weights, *ranges = dense_call(problem)
    wider = torch.full((3, 50), torch.nan)
    wider[:, 18:] = weights
    verify(deep_gemm.fp8_mqa_logits(q, kv, wider[:, 18:], *ranges), problem.logits(True)[0], problem.seen(), -np.inf)
