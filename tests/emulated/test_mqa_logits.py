"""Every variant of mqa_logits_fp8, executed from its PTX on the emulated device. Numbers are those of issues
of DeepGEMM."""

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

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family == "mqa_logits_fp8" and v.arch in ARCHS]
WIDEST = [v for v in VARIANTS if v.axes["heads"] == 64 and v.axes["head_dim"] == 128]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


class Run:
    """Launches one variant under a fresh schedule and verifies every cell of out."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule = packs, reschedule

    def __call__(self, variant: Variant, problem: mqa.Dense, form: str, out: str, columns: int) -> np.ndarray:
        result = reference.GuardedOutput(len(problem.q), columns, out)
        context = f"{variant.label} {form} {out} {self.reschedule()}"
        loader.launch("mqa_logits_fp8", **problem.inputs(), out=RawBuffer.of(result.array), form=form,
                      variant=variant.variant, device=f"emulated:{variant.arch}", packs=self.packs)  # fmt: skip
        value, bound = problem.logits(variant.arch == "90a")
        seen, cleaned = problem.seen(), None
        if form == "cleaned":
            cleaned = np.zeros(result.array.shape, bool)
            cleaned[:, : len(problem.kv)] = ~seen
        mqa.verify(result, value, bound, seen, problem.columns(form), cleaned, context)
        return result.array


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


def queries_of(variant: Variant) -> int:
    return variant.constants["columns"] // variant.axes["heads"]


@shipped_matrix.each(VARIANTS)
def test_heads_and_ranges(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#379, #433, #434: heads of every width. Ranges in any order, empty, backwards, beyond the keys.
    What lies behind weights is NaN."""
    heads = variant.axes["heads"] - int(rng.integers(2)) * 4
    queries, dim, exact = queries_of(variant) + 1, variant.axes["head_dim"], bool(rng.integers(2))
    problem = mqa.Dense.random(rng, queries, heads, dim, 300, spare=3, exact=exact)
    form, out = [str(rng.choice(words)) for words in (["full", "cleaned"], ["f32", "bf16"])]
    run(variant, problem, form, out, 307)


@shipped_matrix.each(VARIANTS)
def test_columns_from_the_first_key(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Compressed logits begin in column 0, and those that do not fit are dropped."""
    queries = max(queries_of(variant) - 1, 1)
    problem = mqa.Dense.random(rng, queries, variant.axes["heads"], variant.axes["head_dim"], 200)
    longest = int(problem.seen().sum(1).max())
    run(variant, problem, "compressed", str(rng.choice(["f32", "bf16"])), max(longest - int(rng.integers(9)), 1))


@shipped_matrix.each(WIDEST)
@pytest.mark.parametrize("form", ["full", "cleaned", "compressed"])
def test_several_shares_of_keys(variant: Variant, form: str, run: Run, rng: np.random.Generator) -> None:
    """Tiles of queries by shares of keys, of which some have no key that anybody sees, and a CTA has several."""
    problem = mqa.Dense.random(rng, queries_of(variant) + 2, 64, 128, 1111)
    problem.starts[:2], problem.ends[:2] = 0, 40
    problem.starts[2 : queries_of(variant)], problem.ends[2 : queries_of(variant)] = 9, -3
    run(variant, problem, form, "f32", 1111)


@shipped_matrix.each(WIDEST)
def test_keys_that_nobody_sees(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """vllm#49896: a NaN key, or a NaN scale, is in the logits of those alone that see it, and in these it is."""
    problem = mqa.Dense.random(rng, queries_of(variant), 64, 128, 200)
    problem.starts[:], problem.ends[:] = rng.integers(30, 60, len(problem.q)), rng.integers(100, 140, len(problem.q))
    problem.kv[::7, int(rng.integers(128))] = mqa.E4M3_NAN
    problem.kv_scale[3::11] = np.nan
    run(variant, problem, "cleaned", "f32", 200)


@shipped_matrix.each(WIDEST)
def test_nobody_sees_a_key(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Every range is empty or backwards: the smallest end of a tile is far below its largest start."""
    problem = mqa.Dense.random(rng, 9, 64, 128, 300)
    problem.starts[:] = rng.integers(0, 400, 9)
    problem.ends[:] = problem.starts - rng.integers(0, 400, 9)
    for form in ("full", "cleaned"):
        run(variant, problem, form, "bf16", 301)


@shipped_matrix.each([v for v in VARIANTS if (v.axes["heads"], v.axes["head_dim"]) == (32, 64)])
def test_many_keys(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """130,560 keys, once too many for DeepGEMM, take no more shared memory than a few."""
    problem = mqa.Dense.random(rng, 3, 32, variant.axes["head_dim"], 130560)
    problem.starts[:], problem.ends[:] = [130300, 130440, 130559], 130560
    run(variant, problem, "compressed", "f32", 300)


@shipped_matrix.each(WIDEST)
def test_the_same_bytes_every_time(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#229, #285, #384, #392: whatever the order in which warps go on."""
    problem = mqa.Dense.random(rng, 6, 64, 128, 600)
    first, second = [run(variant, problem, "cleaned", "f32", 600).tobytes() for _ in range(2)]
    assert first == second


@shipped_matrix.each(WIDEST)
def test_variants_of_other_heads(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """A variant that is named, and whose heads or whose width are not those of the call, is refused."""
    for heads, dim, needed in ((68, 128, "H <= 64"), (64, 64, "D == 128")):
        with pytest.raises(loader.NoKernelError, match=f"{variant.variant} .*requires {needed}"):
            run(variant, mqa.Dense.random(rng, 2, heads, dim, 100), "full", "f32", 100)
