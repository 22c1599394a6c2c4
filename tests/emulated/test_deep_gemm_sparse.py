"""DeepGEMM's sparse MQA logits on CPU tensors, against float64, and what they refuse."""

from __future__ import annotations

import functools

import mqa_sparse
import numpy as np
import pytest
import torch

import loader
from integrations import deep_gemm

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "on_blackwell"),
]


@pytest.fixture
def on_blackwell(monkeypatch: pytest.MonkeyPatch, packs: list[str] | None) -> None:
    monkeypatch.setattr(loader, "launch", functools.partial(loader.launch, packs=packs, device="emulated:100a"))


def tensors(problem: mqa_sparse.Sparse) -> dict[str, torch.Tensor]:
    """Data in the dtype that DeepGEMM has for it, weights in bf16, some columns of a matrix."""
    given = {name: torch.from_numpy(value) for name, value in problem.inputs().items() if isinstance(value, np.ndarray)}
    dtype = torch.int8 if problem.family.endswith("mxfp4") else torch.float8_e4m3fn
    heads = problem.data.q.shape[-2]
    given |= {name: given[name].view(dtype) for name in ("q", "kv") if name in given}
    return given | {"weights": given["weights"].view(torch.bfloat16)[:, :heads]}


def verify(logits: torch.Tensor, problem: mqa_sparse.Sparse) -> None:
    """An exact problem's to the bit; rows begin where DeepGEMM's do."""
    value, _, own = problem.logits()
    seen = torch.from_numpy(own)
    assert logits.shape == value.shape and logits.stride(0) * 2 % 1024 == 0
    assert torch.equal(logits[seen], torch.from_numpy(value).to(torch.bfloat16)[seen])


@pytest.mark.parametrize("unaligned", [False, True])
@pytest.mark.parametrize("family", ["sparse_mqa_logits_mxfp4", "sparse_mqa_logits_mxfp8"])
def test_dense(family: str, unaligned: bool, rng: np.random.Generator) -> None:
    """By the names of its arguments."""
    problem = mqa_sparse.Sparse.random(rng, family, np.array([90, 0, 201]), 20, 12, 8, unaligned=unaligned, spare=4)
    given, some = tensors(problem), problem.table_inputs()
    metadata = deep_gemm.get_sparse_mqa_logits_metadata(
        cu_seq_len_k_start=torch.from_numpy(some["starts"]), cu_seq_len_k_end=torch.from_numpy(some["ends"]),
        num_kv_tokens=some["keys"], sparse_kv_block_indices=torch.from_numpy(problem.blocks),
        qk_dtype=given["q"].dtype, sparse_block_kv=8, use_unaligned_ks=unaligned)  # fmt: skip
    logits = deep_gemm.fp8_fp4_sparse_mqa_logits(
        q=(given["q"], given["q_scale"]), kv=(given["kv"], given["kv_scale"]), weights=given["weights"],
        metadata=metadata, num_max_sparse_blocks=12, sparse_block_kv=8, use_unaligned_ks=unaligned)  # fmt: skip
    verify(logits, problem)


@pytest.mark.parametrize("fmt", ["mxfp4", "mxfp8"])
def test_paged(fmt: str, rng: np.random.Generator) -> None:
    """As SGLang calls it: pages of its pool, whose rows of the table are longer than what is shown of them."""
    lengths = np.array([70, 71, 0, 300])
    problem = mqa_sparse.Sparse.random(rng, f"paged_sparse_mqa_logits_{fmt}", lengths, 32, 12, 16, page=64)
    given = tensors(problem)
    data, dtype = problem.data, torch.int8 if fmt == "mxfp4" else torch.float8_e4m3fn
    wide = torch.cat([torch.from_numpy(data.block_table), torch.full((4, 3), -1, dtype=torch.int32)], 1)
    metadata = deep_gemm.get_paged_sparse_mqa_logits_metadata(
        torch.from_numpy(data.context_lens), wide[:, :-3], torch.arange(4, dtype=torch.int32), 64,
        torch.from_numpy(problem.blocks), dtype, 16)  # fmt: skip
    row, stride = data.row_bytes + 4, data.kv_cache.shape[1]
    cache = given["kv_cache"].as_strided((len(data.kv_cache), 64, 1, row), (stride, row, row, 1))
    q = given["q"].view(dtype).unsqueeze(1), given["q_scale"].unsqueeze(1)
    verify(deep_gemm.fp8_fp4_paged_sparse_mqa_logits(q, cache, given["weights"], metadata, 12, 16), problem)


def test_what_is_refused() -> None:
    """Queries without scales; metadata of another width; pages in which blocks end behind; a block of other keys."""
    q = torch.zeros(2, 32, 128, dtype=torch.float8_e4m3fn)
    weights, keys = torch.zeros(2, 32, dtype=torch.bfloat16), (q[0], torch.zeros(32, dtype=torch.int32))
    with pytest.raises(NotImplementedError, match="fp8_fp4_sparse_mqa_logits: q is covered with scales; got torch"):
        deep_gemm.fp8_fp4_sparse_mqa_logits((q, None), keys, weights, weights, 4, 8)
    with pytest.raises(ValueError, match="metadata: expected 80 bytes, of 2 queries with 4 blocks of 8 keys, got 72"):
        deep_gemm.fp8_fp4_sparse_mqa_logits((q, torch.zeros(2, 32, dtype=torch.int32)), keys, weights,
                                            torch.zeros(72, dtype=torch.uint8), 4, 8)  # fmt: skip
    some = torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="page_kv: expected a multiple of sparse_block_kv 16, got 24"):
        deep_gemm.get_paged_sparse_mqa_logits_metadata(some[:, 0], some, some[:, 0], 24, some, q.dtype, 16)
    with pytest.raises(loader.ArgumentError, match="block == 8 or block == 16"):
        deep_gemm.get_sparse_mqa_logits_metadata(some[0, :2], some[0, :2], 9, some, q.dtype, 24)
