"""Tiles that CTA pairs compute, of grouped_fp4 and of its SwiGLU: orders of CTAs, where tiles end, what they load, and
when they are chosen. What every variant has to do is in test_grouped_fp4 and test_grouped_fp4_swiglu."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import reference
import shipped_matrix
import test_grouped_fp4_swiglu as fused
from raw_buffer import RawBuffer

import emulator
import loader
from emulator.tools.profile import profile
from generator.matrix import Variant
from loader import emulated
from loader.expression import evaluate

FEWEST = {"grouped_fp4": 8, "grouped_fp4_swiglu": 32}  # rows of weights that there can be; all are multiples
PAIRS = [v for v in shipped_matrix.VARIANTS if v.family in FEWEST and v.launch["cluster"][0] == 2]
TILES = [v for v in PAIRS if v.arch == "100a" and v.axes.get("out", "f16") == "f16"]
SCHEDULES = [(seed, lazy) for seed in (1, 2) for lazy in (False, True)]

pytestmark = pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")
every_tile = pytest.mark.parametrize("variant", TILES, ids=lambda v: v.symbol)


@pytest.fixture
def prepared(packs: list[str] | None, rng: np.random.Generator) -> Callable[..., Callable[[], bytes]]:
    """Draws a problem for a variant. What it returns launches it, checks the outputs and returns their bytes."""

    def plain(variant: Variant, problem: reference.GroupedProblem) -> bytes:
        out = reference.GuardedOutput(problem.shape[0], problem.shape[1], variant.axes["out"])
        loader.launch("grouped_fp4", **problem.inputs(), out=RawBuffer.of(out.array), variant=variant.variant,
                      device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
        reference.verify(problem, reference.grouped_reference(problem), out, variant.label)
        return out.array.tobytes()

    def gated(variant: Variant, problem: fused.Problem) -> bytes:
        settings = fused.Settings()
        run = fused.Runner(packs, reschedule=str)  # the schedule is the test's
        return b"".join(run(variant.arch, variant.variant, problem, settings, problem.expected(settings)))

    def prepare(variant: Variant, counts: list[int], columns: int, k: int, **options: object) -> Callable[[], bytes]:
        if variant.family == "grouped_fp4":
            problem = reference.grouped_problem(rng, counts, columns, k, **options)
            return functools.partial(plain, variant, problem)
        return functools.partial(gated, variant, fused.Problem.random(rng, counts, columns // 2, k, **options))

    return prepare


@every_tile
def test_orders_of_the_ctas_of_two_pairs(
    variant: Variant, prepared: Callable[..., Callable[[], bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tiles for the two pairs of five multiprocessors, one with rows of the first half alone; the odd CTA has the
    fewest columns; empty experts. The same bytes under every schedule."""
    monkeypatch.setattr(emulated, "SM_COUNT", 5)
    rows, columns = variant.axes["block_m"], 128 + FEWEST[variant.family]
    launch = prepared(variant, [0, rows // 2 - 3, 0, rows + 9, 0], columns, 800, gaps=True, unowned_rows=1)
    outputs, device = set(), emulator.Device
    for seed, lazy in SCHEDULES:
        monkeypatch.setattr(emulator, "Device", functools.partial(device, seed=seed, lazy=lazy, checks=True))
        outputs.add(launch())
    assert len(outputs) == 1, "the result depends on the schedule"


@every_tile
@pytest.mark.usefixtures("few_multiprocessors")
def test_where_the_tokens_of_a_tile_end(
    variant: Variant, prepared: Callable[..., Callable[[], bytes]], reschedule: Callable[[], str]
) -> None:
    """Each CTA has half of the columns of the instruction, which are as many as there are tokens: a multiple of 16."""
    reschedule()
    prepared(variant, [8, 9, 16, 17, 40, 121], FEWEST[variant.family], 64)()


@every_tile
def test_a_product_takes_few_bytes_from_memory(variant: Variant, prepared: Callable[..., Callable[[], bytes]]) -> None:
    """Of each CTA: 9.7 KB where it is of 256 tokens, and 7.2 of 128; a CTA alone takes 13.8 and 9.2."""
    rows = variant.axes["block_m"]
    with profile() as launches:
        prepared(variant, [rows], 256, 512)()
    counts = launches[0].counts()
    (products,) = [count for name, count in counts["tensor"].items() if name.startswith("tcgen05.mma.cta_group::2")]
    assert products == 512 // 64
    assert counts["bulk_bytes"]["loaded"] / products / 2 <= {128: 7168, 256: 9728}[rows]


@pytest.mark.parametrize("arch", ["100a", "103a", "100f"])
@pytest.mark.parametrize(("family", "k"), [("grouped_fp4", 4096), ("grouped_fp4_swiglu", 7168)])
@pytest.mark.parametrize(("rows", "paired"), [(1, False), (32, False), (256, True), (4096, True)])
def test_pairs_are_for_many_rows(family: str, k: int, arch: str, rows: int, paired: bool) -> None:
    """By the estimates, of eight experts with so many rows each."""
    assert (chosen(family, arch, rows, k) in PAIRS) == paired


def test_pairs_are_for_long_products() -> None:
    """A gated epilogue takes longer than a little of K, however fast that is multiplied."""
    assert chosen("grouped_fp4_swiglu", "100f", 4096, 2048) not in PAIRS


def chosen(family: str, arch: str, rows: int, k: int) -> Variant:
    """Of those for bf16, with 148 multiprocessors."""
    problem = {"M": 8 * rows, "E": 8, "N": 7168, "K": k, "rows_per_expert": rows, "sm_count": 148}
    key = family, arch, "bf16"
    candidates = [v for v in shipped_matrix.VARIANTS if (v.family, v.arch, v.axes.get("out", "bf16")) == key]
    return min(candidates, key=lambda v: evaluate(v.cost, problem))
