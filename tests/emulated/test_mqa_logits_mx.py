"""Every variant of mqa_logits_mxfp8 and mqa_logits_mxfp4, executed from its PTX on the emulated device.
Numbers are those of issues of DeepGEMM."""

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

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family in mqa_mx.DENSE and v.arch in ARCHS]
WIDEST = [v for v in VARIANTS if v.axes["heads"] == 64 and v.axes["head_dim"] == 128]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def problem(rng: np.random.Generator, variant: Variant, queries: int, keys: int, **options: int | bool) -> mqa_mx.Dense:
    """With as many heads as the variant has room for, or four less where it is the next one."""
    heads = variant.axes["heads"] - int(rng.integers(2)) * 4
    return mqa_mx.Dense.of(rng, variant.family, queries, heads, variant.axes["head_dim"], keys, **options)


class Run:
    """Launches one variant under a fresh schedule and verifies every cell of out."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule = packs, reschedule

    def __call__(self, variant: Variant, data: mqa_mx.Dense, form: str, out: str, columns: int) -> np.ndarray:
        result = reference.GuardedOutput(len(data.q), columns, out)
        context = f"{variant.label} {form} {out} {self.reschedule()}"
        loader.launch(variant.family, **data.inputs(), out=RawBuffer.of(result.array), form=form,
                      variant=variant.variant, device=f"emulated:{variant.arch}", packs=self.packs)  # fmt: skip
        seen, cleaned = data.seen(), None
        if form == "cleaned":
            cleaned = np.zeros(result.array.shape, bool)
            cleaned[:, : len(data.kv)] = ~seen
        mqa.verify(result, *data.logits(on_hopper=False), seen, data.columns(form), cleaned, context)
        return result.array


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


@shipped_matrix.each(VARIANTS)
def test_heads_and_scales(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """TIRx-kernels#5, #392: each 32 elements of each head and key have a scale of their own. Bytes of a word
    behind those of the width are NaN, and so is what lies behind weights."""
    queries = variant.constants["columns"] // variant.axes["heads"] + 1
    data = problem(rng, variant, queries, 300, spare=3, exact=bool(rng.integers(2)))
    form, out = [str(rng.choice(words)) for words in (["full", "cleaned"], ["f32", "bf16"])]
    run(variant, data, form, out, 307)


@shipped_matrix.each(WIDEST)
@pytest.mark.parametrize("form", ["full", "cleaned", "compressed"])
def test_several_shares_of_keys(variant: Variant, form: str, run: Run, rng: np.random.Generator) -> None:
    """A CTA has several tiles, whose scales are each its own."""
    run(variant, problem(rng, variant, 5, 1111), form, "f32", 1111)


@shipped_matrix.each(WIDEST)
def test_scales_that_are_nan(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """vllm#49896: of a key they are in the logits of those alone that see it, of a head in those of its query."""
    data = problem(rng, variant, 6, 200)
    data.starts[:], data.ends[:] = rng.integers(30, 60, 6), rng.integers(100, 140, 6)
    data.kv_scale[::7, int(rng.integers(4))] = mqa_mx.UE8M0_NAN
    data.q_scale[int(rng.integers(6)), int(rng.integers(data.q.shape[1])), int(rng.integers(4))] = mqa_mx.UE8M0_NAN
    run(variant, data, "cleaned", "f32", 200)


@shipped_matrix.each(WIDEST)
@pytest.mark.parametrize("queries_low", [False, True])
def test_scales_at_the_ends(variant: Variant, queries_low: bool, run: Run, rng: np.random.Generator) -> None:
    """Scales with which bf16 just has the smallest and the largest element: on sm_90 they are exact, too."""
    data = problem(rng, variant, 5, 200, exact=False)
    in_e4m3 = data.elements is reference.E4M3
    bytes_of_scales, codes = ((3, 246), [0x01, 0x7E]) if in_e4m3 else ((0, 252), [0x1, 0x7])
    sign = 0x80 if in_e4m3 else 0x8
    data.q, data.kv = (np.full_like(old, code) | rng.integers(0, 2, old.shape, np.uint8) * np.uint8(sign)
                       for old, code in zip((data.q, data.kv), codes if queries_low else codes[::-1], strict=True))
    data.q_scale[:], data.kv_scale[:] = bytes_of_scales if queries_low else bytes_of_scales[::-1]
    run(variant, data, "cleaned", "f32", 200)


@shipped_matrix.each(WIDEST)
def test_the_same_bytes_every_time(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """#392: whatever the order in which warps go on."""
    data = problem(rng, variant, 6, 600, exact=False)
    first, second = [run(variant, data, "cleaned", "f32", 600).tobytes() for _ in range(2)]
    assert first == second


@shipped_matrix.each(WIDEST)
def test_variants_of_other_heads(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """A variant that is named, and whose heads or whose width are not those of the call, is refused."""
    for heads, dim, needed in ((68, 128, "H <= 64"), (64, 64, "D == 128")):
        with pytest.raises(loader.NoKernelError, match=f"{variant.variant} .*requires {needed}"):
            run(variant, mqa_mx.Dense.of(rng, variant.family, 2, heads, dim, 100), "full", "f32", 100)
