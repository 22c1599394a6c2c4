"""Every variant of the sparse MQA logits, and sparse_mqa_table, executed from their PTX on the emulated device."""

from __future__ import annotations

from collections.abc import Callable

import mqa_mx
import mqa_sparse
import numpy as np
import pytest
import reference
import shipped_matrix
from packs import ARCHS

import loader
from generator.matrix import Variant

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family in mqa_sparse.FAMILIES and v.arch in ARCHS]
DENSE = [v for v in VARIANTS if v.family == "sparse_mqa_logits_mxfp4"]
PAGED = [v for v in VARIANTS if v.family == "paged_sparse_mqa_logits_mxfp8"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


class Run:
    """Makes a table, launches one variant under a fresh schedule of warps, and verifies every cell of both."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule = packs, reschedule

    def __call__(
        self, variant: Variant, problem: mqa_sparse.Sparse, out: str = "bf16", table: np.ndarray | None = None
    ) -> np.ndarray:
        options = {"device": f"emulated:{variant.arch}", "packs": self.packs}
        table = problem.make_table(**options) if table is None else table
        context = f"{variant.label} {out} {self.reschedule()}"
        return problem.run(table, out, 5, context, variant=variant.variant, **options)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


def problem(
    rng: np.random.Generator, variant: Variant, lengths: list[int], width: int, **options: int | bool
) -> mqa_sparse.Sparse:
    """Of blocks of 8 or 16 keys, in pages that hold them where there are pages."""
    block = int(options.pop("block", rng.choice([8, 16])))
    page = block * int(rng.integers(1, 5)) if variant.family.startswith("paged") else 0
    return mqa_sparse.Sparse.random(rng, variant.family, np.array(lengths), 32 - int(rng.integers(8)) * 4, width, block,
                                    page, **options)  # fmt: skip


@shipped_matrix.each(VARIANTS)
def test_formats(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Lists of some blocks, of all, of one, and empty ones; ranges that end within a block; more columns than a stage
    has keys; weights of bf16, behind which is NaN."""
    unaligned = not variant.family.startswith("paged") and bool(rng.integers(2))
    data = problem(rng, variant, [150, 0, 700, 1, 347], 20, unaligned=unaligned, exact=bool(rng.integers(2)), spare=3)
    run(variant, data, str(rng.choice(["f32", "bf16"])))


@shipped_matrix.each([*DENSE, *PAGED])
def test_any_list(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Blocks in any order, more than once, behind the keys, in front of them: what is no key of the query is -inf, and
    so is what is in a page that does not exist."""
    data = problem(rng, variant, [130, 90], 12)
    for row, count in zip(data.blocks, data.counts(), strict=True):
        row[:count] = rng.permutation(row[:count])
        row[: count // 2] = rng.choice(np.array([-1, 0, 1, 2**31 - 1, -(2**31), 9]), count // 2)
        row[count - 2 : count] = row[count - 3]
    if variant in PAGED:
        data.data.block_table[0, 0], data.data.block_table[1, 1] = -1, len(data.data.kv_cache)
    run(variant, data)


@shipped_matrix.each(DENSE)
def test_ranges_beyond_the_keys(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Ends behind the last key, starts in front of the first one, and backwards; starts within a block, whose blocks
    begin there or not."""
    data = problem(rng, variant, [300, 300, 70, 70], 32, unaligned=bool(rng.integers(2)))
    data.data.starts[:] = -7, 211, 90, 13
    data.data.ends[:] = 2**31 - 1, len(data.data.kv) + 9, 50, 90
    run(variant, data)


@shipped_matrix.each([*DENSE, *PAGED])
def test_keys_that_nobody_sees(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """They are NaN, also those of blocks that a query has a part of; and a query sees a NaN of its own."""
    data = problem(rng, variant, [100, 43], 8, block=16)
    plain, paged = data.data, variant in PAGED
    key, seen, _ = data.keys()
    if paged:
        scales = plain.kv_cache[:, plain.page * 128 : plain.page * 132].reshape(-1, 4)
        place = np.take_along_axis(plain.block_table, key // plain.page % plain.block_table.shape[1], 1)
        place = place.astype(np.int64) * plain.page + key % plain.page
    else:
        scales, place = plain.kv_scale, key
    unseen = np.setdiff1d(np.arange(len(scales)), place[seen])
    poisoned = np.r_[unseen, place[0, np.flatnonzero(seen[0])[3]]]
    scales[poisoned, int(rng.integers(4))] = mqa_mx.UE8M0_NAN
    if paged:
        plain.kv_cache[:, plain.page * 128 : plain.page * 132] = scales.reshape(len(plain.kv_cache), -1)
    run(variant, data, "f32")


@shipped_matrix.each([*DENSE, *PAGED])
def test_tables_of_others(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Whatever a table says, nothing else is read or written."""
    data = problem(rng, variant, [200, 100], 12)
    table = rng.integers(-300, 900, (2, data.blocks.shape[1] * data.block // 8 + 1, 2)).astype(np.int32)
    table[rng.random(table.shape) < 0.3] = rng.choice(np.array([-(2**31), 2**31 - 1]))
    table[0, 0], value = rng.choice(np.array([-5, 2**31 - 1])), data.logits()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mqa_sparse.mqa, "verify", lambda out, *_, **__: _written_within(out, value.shape[1]))
        run(variant, data, table=table)


def _written_within(out: reference.GuardedOutput, columns: int) -> None:
    assert out.intact(len(out.array)) and (out.array[:, columns:].view(np.uint8) == out.POISON).all()


@shipped_matrix.each(DENSE)
def test_bytes_of_the_full_kernel(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """As DeepGEMM's own test has it, but in fp32: each logit is that of its key among the full logits, to the bit."""
    data = problem(rng, variant, [130, 75], 12, exact=False)
    found, full = run(variant, data, "f32"), np.zeros((2, len(data.data.kv)), np.float32)
    options = {"device": f"emulated:{variant.arch}", "packs": run.packs}
    loader.launch("mqa_logits_mxfp4", **data.data.inputs(), out=full, **options)
    key, seen, _ = data.keys()
    assert np.array_equal(found[:, : key.shape[1]][seen], np.take_along_axis(full, np.where(seen, key, 0), 1)[seen])


@shipped_matrix.each(PAGED)
def test_the_same_bytes_every_time(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Whatever the order in which warps go on; of more keys than a ring of stages has room for."""
    data = problem(rng, variant, [2300, 1100], 280, exact=False, block=8)
    first, second = [run(variant, data).tobytes() for _ in range(2)]
    assert first == second
