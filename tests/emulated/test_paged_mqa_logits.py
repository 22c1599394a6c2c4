"""Every variant of paged_mqa_logits_fp8, and paged_mqa_schedule, executed from their PTX on the emulated device.
Numbers are those of issues of DeepGEMM."""

from __future__ import annotations

from collections.abc import Callable

import mqa
import numpy as np
import pytest
import reference
import shipped_matrix
from packs import ARCHS
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family == "paged_mqa_logits_fp8" and v.arch in ARCHS]
WIDEST = [v for v in VARIANTS if v.axes["heads"] == 64 and v.axes["head_dim"] == 128]
OF_ANY_PAGE = [v for v in WIDEST if v.axes.get("part", 16) == 16]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


class Run:
    """Makes a schedule, launches one variant under a fresh schedule of warps, and verifies every cell of out."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule = packs, reschedule

    def schedule(self, problem: mqa.Paged, ctas: int, arch: str) -> np.ndarray:
        table = np.full((ctas + 1, 2), -7, np.int32)
        indices = {} if problem.indices is None else {"indices": problem.indices}
        loader.launch("paged_mqa_schedule", context_lens=problem.context_lens, schedule=table, **indices,
                      device=f"emulated:{arch}", packs=self.packs)  # fmt: skip
        return table

    def __call__(
        self, variant: Variant, problem: mqa.Paged, out: str = "f32", width: int = 0, ctas: int = 3,
        table: np.ndarray | None = None, verify: bool = True,
    ) -> reference.GuardedOutput:  # fmt: skip
        width = width or problem.block_table.shape[1] * problem.page
        result = reference.GuardedOutput(problem.context_lens.size, width, out)
        context = f"{variant.label} {out} {self.reschedule()}"
        table = self.schedule(problem, ctas, variant.arch) if table is None else table
        loader.launch("paged_mqa_logits_fp8", **problem.inputs(), schedule=table, out=RawBuffer.of(result.array),
                      variant=variant.variant, device=f"emulated:{variant.arch}", packs=self.packs)  # fmt: skip
        if verify:
            value, bound, seen = problem.logits(variant.arch == "90a")
            columns = np.broadcast_to(np.arange(value.shape[1]), value.shape)
            mqa.verify(result, value, bound, seen, columns, context=context)
        return result


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


def lengths(rng: np.random.Generator, requests: int, next_n: int, most: int) -> np.ndarray:
    """The last query sees most; some requests have no key."""
    longest = rng.integers(next_n, most, requests)
    found = np.maximum(longest[:, None] - np.arange(next_n)[::-1], 0)
    found[rng.random(requests) < 0.3] = 0
    return found.astype(np.int32)


@shipped_matrix.each(VARIANTS)
def test_heads_and_pages(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Requests of no key, of parts of a page and of several; tiles of queries and one more; a padded page stride."""
    queries = variant.constants["columns"] // variant.axes["heads"]
    next_n = int(rng.integers(1, min(queries + 1, 8) + 1))
    page = mqa.page_of(variant.axes, rng)
    heads = variant.axes["heads"] - int(rng.integers(2)) * 4
    problem = mqa.Paged.random(rng, lengths(rng, 4, next_n, 300), heads, variant.axes["head_dim"], page,
                               int(rng.integers(3)) * 16, bool(rng.integers(2)))  # fmt: skip
    run(variant, problem, str(rng.choice(["f32", "bf16"])))


@shipped_matrix.each(WIDEST)
@pytest.mark.parametrize("next_n", range(1, 9))
def test_queries_of_a_request(variant: Variant, next_n: int, run: Run, rng: np.random.Generator) -> None:
    """#222, #314, #324, #340, vllm#43457: any number of queries, odd ones too, is shared out and multiplied alike."""
    run(variant, mqa.Paged.random(rng, lengths(rng, 3, next_n, 400), 64, 128, 64), ctas=2)


@shipped_matrix.each(OF_ANY_PAGE)
@pytest.mark.parametrize("page", range(16, 129, 16))
def test_sizes_of_pages(variant: Variant, page: int, run: Run, rng: np.random.Generator) -> None:
    """#311, vllm#53635: any multiple of 16, odd numbers of pages, lengths that end a page, padded strides;
    behind the last page of a row of the table, and of the cache, there is nothing."""
    ends = np.array([[3 * page], [page], [2 * page - 1], [1]], np.int32)
    run(variant, mqa.Paged.random(rng, ends, 64, 128, page, spare=int(rng.integers(3)) * 16))


@shipped_matrix.each(OF_ANY_PAGE)
def test_pages_that_do_not_exist(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Logits of a page with a negative or too large a number are -inf, and no others are."""
    problem = mqa.Paged.random(rng, np.array([[500], [300]], np.int32), 64, 128, 48)
    bad = [-1, -(2**31), len(problem.kv_cache), 2**31 - 1]
    problem.block_table[0, rng.permutation(10)[:4]] = bad
    problem.block_table[1, 6] = -1
    run(variant, problem)


@shipped_matrix.each(OF_ANY_PAGE)
def test_lengths_beyond_the_table_and_out(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Keys behind the last page of a row, and behind the last column, do not count; negative lengths are none."""
    problem = mqa.Paged.random(rng, np.array([[100], [170], [60]], np.int32), 64, 128, 32)
    problem.context_lens[:, 0] = 2**31 - 1, 150, -(2**31)
    run(variant, problem, width=131)


@shipped_matrix.each(WIDEST)
def test_no_keys_at_all(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#353, #354: every length is zero: a table of ends, and no CTA reads or writes anything."""
    problem = mqa.Paged.random(rng, np.zeros((5, 2), np.int32), 64, 128, 64)
    table = run.schedule(problem, 7, variant.arch)
    assert (table == [10, 0]).all()
    assert run(variant, problem, table=table).intact(0)


@shipped_matrix.each(WIDEST)
def test_more_ctas_than_blocks(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#342, #344: a CTA without a share reads no length behind the last one."""
    run(variant, mqa.Paged.random(rng, np.array([[0, 0], [140, 150], [0, 0]], np.int32), 64, 128, 64), ctas=9)


@shipped_matrix.each(WIDEST)
def test_requests_without_keys(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Many of them before, between and behind the others."""
    found = np.zeros((300, 2), np.int32)
    found[[70, 200, 201]] = [[5, 130], [300, 299], [0, 1]]
    run(variant, mqa.Paged.random(rng, found, 64, 128, 64), ctas=3)


@shipped_matrix.each(WIDEST)
def test_queries_by_index(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#425: neighbours with the same index are one request, whose pages are those of its first query."""
    runs = rng.integers(1, 6, 7)
    runs[3] = 33  # more than a warp looks at once
    first = np.cumsum(runs) - runs
    counts = rng.integers(0, 140, len(runs)).repeat(runs) + np.arange(runs.sum()) - first.repeat(runs)
    counts[first[1] : first[2]] = 0
    problem = mqa.Paged.random(rng, counts[:, None], 64, 128, 64)
    problem.block_table[:] = problem.block_table[(first + runs - 1).repeat(runs)]  # the longest one has all pages
    poisoned = problem.block_table.copy()
    poisoned[np.setdiff1d(np.arange(len(counts)), first)] = -1
    problem.indices = (np.arange(len(runs)) * 3 - 5).repeat(runs).astype(np.int32)
    expected, _ = run(variant, problem), setattr(problem, "block_table", poisoned)
    assert np.array_equal(run(variant, problem, ctas=5, verify=False).array, expected.array, equal_nan=True)


@shipped_matrix.each(WIDEST)
def test_tables_of_others(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Whatever a table says, nothing else is read or written, and what is written is right."""
    problem = mqa.Paged.random(rng, lengths(rng, 6, 3, 400), 64, 128, 64)
    right = run(variant, problem).array.view(np.uint32)
    for _ in range(3):
        table = rng.integers(-3, 24, (5, 2)).astype(np.int32)
        table[rng.random((5, 2)) < 0.3] = rng.choice(np.array([-(2**31), 2**31 - 1, 17, 18]))
        found = run(variant, problem, table=table, verify=False)
        written = found.array.view(np.uint32) != 0xFFFFFFFF
        assert (found.array.view(np.uint32)[written] == right[written]).all()


@shipped_matrix.each(WIDEST)
def test_the_same_bytes_every_time(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#229, #285, #392: whatever the order in which warps go on, and however keys are shared out."""
    problem = mqa.Paged.random(rng, lengths(rng, 4, 2, 600), 64, 128, 64)
    first, *others = [run(variant, problem, ctas=ctas).array.tobytes() for ctas in (2, 2, 5)]
    assert others == [first, first]


# The schedule


ARCHED = pytest.mark.parametrize("arch", ARCHS)


@ARCHED
@pytest.mark.parametrize("requests", [1, 31, 513, 4096, 12896, 16384])
def test_shares_of_many_requests(arch: str, requests: int, run: Run, rng: np.random.Generator) -> None:
    """#322, #346, sglang#25855: any number of requests; lengths of zero anywhere, of one key, of 2^31 - 1."""
    next_n = int(rng.integers(1, 9)) if requests < 4096 else 1
    found = rng.integers(0, 2000, (requests, next_n)).astype(np.int32)
    found[rng.random(requests) < 0.5] = 0
    found[int(rng.integers(requests)), -1] = rng.choice(np.array([1, 2**31 - 1]))
    problem = mqa.Paged(*[np.zeros(0)] * 3, found, np.zeros(0), 64, True)
    ctas = int(rng.choice([1, 132, 148]))
    assert np.array_equal(run.schedule(problem, ctas, arch), problem.shares(ctas))


@ARCHED
def test_shares_by_index(arch: str, run: Run, rng: np.random.Generator) -> None:
    """A request of many queries has as large a share as its blocks of all of them."""
    indices = np.arange(90).repeat(rng.integers(1, 30, 90)).astype(np.int32)
    found = rng.integers(0, 2000, (len(indices), 1)).astype(np.int32)
    problem = mqa.Paged(*[np.zeros(0)] * 3, found, np.zeros(0), 64, True, indices)
    assert np.array_equal(run.schedule(problem, 132, arch), problem.shares(132))
