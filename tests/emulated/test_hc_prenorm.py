"""hc_prenorm_tf32 on the emulated device: products in tf32 beside sums of squares, whole and in shares of K."""

from __future__ import annotations

from collections.abc import Callable

import hc_prenorm
import numpy as np
import pytest
import reference
import shipped_matrix
from hc_prenorm import BLOCK, Problem

from generator.matrix import Variant
from loader import emulated

ARCHS = ("90a", "100a", "120a")
VARIANTS = [variant for variant in shipped_matrix.VARIANTS
            if variant.family.startswith("hc_prenorm_tf32") and variant.arch in ARCHS]  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")
def test_every_variant(
    variant: Variant, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """Two tiles of rows, the second one short, and columns that end within a tile; the last CTAs of a cluster have less
    of K than the others, or nothing. Every schedule gives the same bytes."""
    shares, splits = (3 if variant.family.endswith("_shares") else None), variant.axes["splits"]
    blocks = splits + 3 if shares else 2 * splits + 1
    problem = Problem.random(rng, 141, variant.axes["block_n"] - 8, BLOCK * blocks, shares)
    options = {"variant": variant.variant, "device": f"emulated:{variant.arch}", "packs": packs}
    schedules = 1 if shares else 2
    assert len({problem.run(f"{variant.label} {reschedule()}", **options) for _ in range(schedules)}) == 1


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("m", [1, 13, 70])
@pytest.mark.parametrize(("n", "blocks", "shares"), [(8, 1, None), (24, 5, None), (136, 2, None), (24, 2, 5)])
def test_shapes(
    arch: str, m: int, n: int, blocks: int, shares: int | None, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """As selection has it: few rows, more columns than a tile has, and shares that have no block, whose sums are 0."""
    problem = Problem.random(rng, m, n, BLOCK * blocks, shares)
    problem.run(f"{arch} {m} x {n} x {blocks} blocks", device=f"emulated:{arch}", packs=packs)


@pytest.mark.parametrize("arch", ARCHS)
def test_rings_go_round(
    arch: str, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """More blocks than stages and buffers, in several tiles of a CTA."""
    problem = Problem.random(rng, 300, 24, BLOCK * 19)
    for _ in range(2):
        problem.run(f"{arch} {reschedule()}", device=f"emulated:{arch}", packs=packs, variant="n32")


def test_clusters_of_many_tiles(
    packs: list[str] | None, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cluster has 36 tiles: a warpgroup multiplies while warps of the CTA's other one wait for sums of others."""
    monkeypatch.setattr(emulated, "SM_COUNT", 4)
    problem = Problem.random(rng, 300, 360, BLOCK * 25)
    problem.run("36 tiles", variant="n32s8", device="emulated:90a", packs=packs)


@pytest.mark.parametrize("arch", ARCHS)
def test_rounding(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """A one in each row of a picks an element of b as tf32 has it: to nearest, ties to even, subnormals as they are."""
    n, k = 24, BLOCK
    bits = rng.integers(0, 0x7F000000, (n, k), dtype=np.uint32) | rng.integers(0, 2, (n, k), dtype=np.uint32) << 31
    bits[:, ::3] = bits[:, ::3] & 0xFFFFE000 | 0x1000  # ties
    bits[0] &= 0x807FFFFF
    problem = Problem((np.eye(k, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16),
                      bits.view(np.float32), None)  # fmt: skip
    outputs = problem.outputs()
    problem.launch(outputs, device=f"emulated:{arch}", packs=packs)
    assert (outputs[0].values(k) == hc_prenorm.rounded_to_tf32(problem.b).T).all()
    assert (outputs[1].values(k) == 1).all()


@pytest.mark.parametrize("arch", ARCHS)
def test_nan_stays_in_its_row(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """Of a row of a that has one, all of out and its sum are NaN, and other rows are what they are without it."""
    problem = Problem.random(rng, 70, 24, BLOCK * 3)
    rows = rng.choice(70, 5, replace=False)
    problem.a[rows, rng.integers(0, BLOCK * 3, 5)] = 0x7FC0
    outputs = problem.outputs()
    problem.launch(outputs, device=f"emulated:{arch}", packs=packs)
    for output, (value, bound) in zip(outputs, (problem.expected(), problem.expected_squares()), strict=True):
        stored = output.values(70)
        assert np.isnan(stored[rows]).all()
        others = np.delete(np.arange(70), rows)
        reference.check_within(stored[others], value.reshape(70, -1)[others], bound.reshape(70, -1)[others], arch)
