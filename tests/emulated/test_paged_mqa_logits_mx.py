"""Every variant of paged_mqa_logits_mxfp8 and paged_mqa_logits_mxfp4, executed from its PTX on the emulated
device. Numbers are those of issues of DeepGEMM."""

from __future__ import annotations

from collections.abc import Callable

import mqa
import mqa_mx
import numpy as np
import pytest
import reference
import shipped_matrix
from packs import ARCHS
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family in mqa_mx.PAGED and v.arch in ARCHS]
WIDEST = [v for v in VARIANTS if v.axes["heads"] == 64 and v.axes["head_dim"] == 128]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
Run = Callable[..., np.ndarray]


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    """A launch under a fresh schedule of warps, with every cell of out verified."""

    def launch(variant: Variant, data: mqa_mx.Paged, out: str = "f32", ctas: int = 3) -> np.ndarray:
        value, bound, seen = data.logits(on_hopper=False)
        result = reference.GuardedOutput(*value.shape, out)
        context = f"{variant.label} {out} {reschedule()}"
        loader.launch(variant.family, **data.inputs(), schedule=data.shares(ctas), out=RawBuffer.of(result.array),
                      variant=variant.variant, device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
        columns = np.broadcast_to(np.arange(value.shape[1]), value.shape)
        mqa.verify(result, value, bound, seen, columns, context=context)
        return result.array

    return launch


def lengths(rng: np.random.Generator, requests: int, next_n: int, most: int) -> np.ndarray:
    """The last query sees most; one request has no key."""
    found = np.maximum(rng.integers(next_n, most, requests)[:, None] - np.arange(next_n)[::-1], 0)
    found[int(rng.integers(requests))] = 0
    return found.astype(np.int32)


@shipped_matrix.each(VARIANTS)
def test_heads_and_scales(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """TIRx-kernels#5, #311, #392: each 32 elements have a scale of their own. Bytes of a word behind those of the width
    are NaN, and so is what lies between pages."""
    next_n, page = int(rng.integers(1, 5)), int(rng.integers(1, 9)) * 16
    heads, exact = variant.axes["heads"] - int(rng.integers(2)) * 4, bool(rng.integers(2))
    data = mqa_mx.Paged.of(rng, variant.family, lengths(rng, 3, next_n, 300), heads, variant.axes["head_dim"], page,
                           spare=int(rng.integers(3)) * 16, exact=exact)  # fmt: skip
    run(variant, data, str(rng.choice(["f32", "bf16"])))


@shipped_matrix.each(WIDEST)
@pytest.mark.parametrize("page", range(16, 129, 16))
def test_sizes_of_pages(variant: Variant, page: int, run: Run, rng: np.random.Generator) -> None:
    """vllm#53635: scales of any multiple of 16 keys; behind the last page of the cache there is nothing."""
    ends = np.array([[3 * page], [page], [2 * page - 1], [1]], np.int32)
    run(variant, mqa_mx.Paged.of(rng, variant.family, ends, 60, 128, page))


@shipped_matrix.each(WIDEST)
def test_pages_that_do_not_exist(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Logits of a page with a negative or too large a number are -inf, and no others are."""
    data = mqa_mx.Paged.of(rng, variant.family, np.array([[500], [300]], np.int32), 64, 128, 48)
    data.block_table[0, rng.permutation(10)[:3]] = [-1, len(data.kv_cache), 2**31 - 1]
    run(variant, data)


@shipped_matrix.each(WIDEST)
def test_the_same_bytes_every_time(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#392: whatever the order in which warps go on, and however keys are shared out."""
    data = mqa_mx.Paged.of(rng, variant.family, lengths(rng, 4, 2, 600), 64, 128, 64, exact=False)
    first, *others = [run(variant, data, ctas=ctas).tobytes() for ctas in (2, 2, 5)]
    assert others == [first, first]
