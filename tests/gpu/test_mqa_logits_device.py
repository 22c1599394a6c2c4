"""MQA logits on a GPU, sparse ones too: all variants against float64, 20 launches alike, and DeepGEMM's functions."""

from __future__ import annotations

import hardware
import mqa
import mqa_mx
import mqa_sparse
import numpy as np
import packs
import pytest

torch = pytest.importorskip("torch")

import loader  # noqa: E402
from integrations import deep_gemm  # noqa: E402

LAUNCHES = 20
GUARD = 4096  # bytes before and after the output
POISON = 0xFF


def to_device(inputs: dict[str, object]) -> dict[str, object]:
    return {name: torch.from_numpy(x).cuda() if isinstance(x, np.ndarray) else x for name, x in inputs.items()}


class Output:
    """Poisoned fp32 [rows, columns] inside a larger buffer."""

    def __init__(self, rows: int, columns: int) -> None:
        self.memory = torch.full((2 * GUARD + rows * columns * 4,), POISON, dtype=torch.uint8, device="cuda")
        self.array = self.memory[GUARD:-GUARD].view(torch.float32).view(rows, columns)

    def verify(self, value: np.ndarray, seen: np.ndarray, unseen: np.ndarray | None = None) -> None:
        """Exact where it is seen, else ``unseen``, or untouched; and nothing around."""
        expected = np.full(self.array.shape, POISON, np.uint8).repeat(4, 1).view(np.float32)
        expected[:, : value.shape[1]][seen] = value[seen]
        if unseen is not None:
            expected[:, : value.shape[1]][~seen] = unseen
        assert np.array_equal(self.array.cpu().numpy().view(np.uint32), expected.view(np.uint32))
        assert bool((self.memory[:GUARD] == POISON).all() and (self.memory[-GUARD:] == POISON).all())


def variants(family: str, *others: str) -> list:
    """Of the arch of device 0; of the first family at least one."""
    found = packs.artifacts(family, hardware.runs_here)
    assert found, f"no {family} for this device"
    return found + [artifact for other in others for artifact in packs.artifacts(other, hardware.runs_here)]


@pytest.mark.parametrize("form", ["full", "cleaned"])
def test_dense(form: str, rng: np.random.Generator) -> None:
    """#229: ranges in any order, more tiles than multiprocessors; 20 launches give the same bytes."""
    for artifact in variants("mqa_logits_fp8", *mqa_mx.DENSE):
        sizes = 131, artifact.axes["heads"] - 4, artifact.axes["head_dim"], 3001
        problem = mqa_mx.dense(rng, artifact.family, *sizes, spare=4)
        value, _ = problem.logits(True)
        inputs = to_device(problem.inputs())
        for _ in range(LAUNCHES):
            out = Output(131, 3005)
            loader.launch(artifact.family, **inputs, out=out.array, form=form, variant=artifact.variant)
            out.verify(value.astype(np.float32), problem.seen(), -np.inf if form == "cleaned" else None)


@pytest.mark.parametrize("next_n", [1, 2, 3, 8])
def test_paged(next_n: int, rng: np.random.Generator) -> None:
    """#229: 20 launches give the same bytes; lengths of zero, pages of any size, some of which do not exist."""
    for artifact in variants("paged_mqa_logits_fp8", *mqa_mx.PAGED):
        lengths = rng.integers(0, 3000, (67, next_n))
        lengths[rng.random(67) < 0.3] = 0
        page = mqa.page_of(artifact.axes, rng)
        sizes = artifact.axes["heads"], artifact.axes["head_dim"], page
        problem = mqa_mx.paged(rng, artifact.family, lengths, *sizes, spare=32)
        problem.block_table[rng.random(problem.block_table.shape) < 0.02] = -1
        value, _, seen = problem.logits(True)
        inputs = to_device(problem.inputs())
        ctas = torch.cuda.get_device_properties(0).multi_processor_count
        table = torch.empty(ctas + 1, 2, dtype=torch.int32, device="cuda")
        loader.launch("paged_mqa_schedule", context_lens=inputs["context_lens"], schedule=table)
        assert np.array_equal(table.cpu().numpy(), problem.shares(ctas))
        for _ in range(LAUNCHES):
            out = Output(*value.shape)
            loader.launch(artifact.family, **inputs, schedule=table, out=out.array, variant=artifact.variant)
            out.verify(value.astype(np.float32), seen)


def test_sparse(rng: np.random.Generator) -> None:
    """Lists of blocks of every length, in a matrix from any key on, and in pages; 20 launches give the same bytes."""
    for artifact in variants(*mqa_sparse.FAMILIES):
        block, page = int(rng.choice([8, 16])), 48 if artifact.family.startswith("paged") else 0
        problem = mqa_sparse.Sparse.random(rng, artifact.family, rng.integers(0, 3000, 67), 28, 200, block, page,
                                           unaligned=not page, spare=4)  # fmt: skip
        value, _, own = problem.logits()
        table = torch.full(problem.table().shape, -1, dtype=torch.int32, device="cuda")
        loader.launch("sparse_mqa_table", **to_device(problem.table_inputs()), table=table)
        assert np.array_equal(table.cpu().numpy(), problem.table())
        inputs = to_device(problem.inputs())
        inputs["weights"] = inputs["weights"].view(torch.bfloat16)
        for _ in range(LAUNCHES):
            out = Output(*value.shape)
            loader.launch(artifact.family, **inputs, table=table, out=out.array, variant=artifact.variant)
            out.verify(value.astype(np.float32), own)


def test_shares_of_many_requests(rng: np.random.Generator) -> None:
    """#322, #346: 16,384 of them."""
    lengths = rng.integers(0, 9000, (16384, 1)).astype(np.int32)
    problem = mqa.Paged(*[np.zeros(0)] * 3, lengths, np.zeros(0), 64, True)
    table = deep_gemm.get_paged_mqa_logits_metadata(torch.from_numpy(lengths).cuda(), 64, 132)
    assert np.array_equal(table.cpu().numpy(), problem.shares(132))


def test_prefill(rng: np.random.Generator) -> None:
    """DeepGEMM's function at a size of its own tests, against products in float64 of some queries."""
    queries, keys = 2048, 8192
    problem = mqa.Dense.random(rng, queries, 64, 128, keys)
    problem.starts[:], problem.ends[:] = 0, np.arange(queries) + keys - queries
    given = to_device(problem.inputs())
    q, kv = (given[name].view(torch.float8_e4m3fn) for name in ("q", "kv"))
    logits = deep_gemm.fp8_mqa_logits(q, (kv, given["kv_scale"]), given["weights"], given["starts"], given["ends"])
    for first in range(0, queries, 256):
        some = slice(first, first + 256)
        heads = torch.einsum("shd,td->sht", q[some].double(), kv.double()).relu_()
        value = (heads * given["weights"][some, :, None].double()).sum(1) * given["kv_scale"].double()
        unseen = torch.arange(keys, device="cuda") >= given["ends"][some, None]
        assert torch.equal(logits[some], value.masked_fill(unseen, -torch.inf).float())
