"""Every variant of grouped_fp4, executed from its PTX on the emulated device with all checks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import quantization
import reference
import shipped_matrix
from raw_buffer import RawBuffer

import loader
from emulator.tools.command import profile_kernel
from generator.matrix import Variant

ARCHS = ("90a", "100a", "120a")
VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family == "grouped_fp4" and v.arch in ARCHS]
# Of one schedule each.
PREFETCH = ("none", "weights")

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_variant, every_tile = (
    pytest.mark.parametrize("variant", found, ids=lambda v: f"{v.arch}-{v.variant}")
    for found in (VARIANTS, shipped_matrix.one_output(VARIANTS))
)


class Runner:
    """Launches through the loader on an emulated device, each time under a fresh schedule."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self._packs, self._reschedule = packs, reschedule

    def __call__(
        self,
        variant: Variant,
        problem: reference.GroupedProblem,
        expected: reference.Expected,
        prefetch: str = "none",
    ) -> bytes:
        """A checked launch; returns the bytes of the output."""
        schedule = self._reschedule()
        out = reference.GuardedOutput(problem.shape[0], problem.shape[1], variant.axes["out"])
        loader.launch(
            "grouped_fp4",
            **problem.inputs(),
            out=RawBuffer.of(out.array),
            prefetch=prefetch,
            variant=variant.variant,
            device=f"emulated:{variant.arch}",
            packs=self._packs,
        )
        context = f"{variant.label} (M, N, K, E) = {problem.shape} prefetch={prefetch} {schedule}"
        reference.verify(problem, expected, out, context)
        return out.array.tobytes()


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Runner:
    return Runner(packs, reschedule)


@every_variant
def test_many_awkward_things_at_once(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Empty experts, one row, a row tile and three rows, a row tile less one; tails of N and K, and of K inside a word
    of scales; unused scale blocks, rows without an expert, NaN in all padding. Every schedule gives the same bytes, and
    so do weights that are loaded ahead."""
    rows = variant.axes["block_m"]
    counts = [0, 1, rows + 3, 0, rows - 1, 0]
    n, k = variant.axes["block_n"] + 8, 2 * variant.axes["block_k"] + 96
    problem = reference.grouped_problem(rng, counts, n, k, gaps=True, unowned_rows=2)
    expected = reference.grouped_reference(problem)
    outputs = {run(variant, problem, expected, prefetch) for prefetch in PREFETCH}
    assert len(outputs) == 1, "the result depends on the schedule"


SMALL = {
    "all_rows_in_one_expert": ([0, 0, 9, 0], 24, 96),
    "smallest": ([1], 8, 32),
    "one_row_each": ([1] * 5, 136, 64),
    "no_scale_padding": ([3, 0, 2], 128, 256),
}


@every_tile
def test_small_problems_with_wide_scales(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Every scale byte from 0 to 0x7E, subnormal ones too, on two of the shapes smaller than any tile."""
    for name, prefetch in zip(rng.permutation(list(SMALL)), PREFETCH, strict=False):
        counts, n, k = SMALL[name]
        problem = reference.grouped_problem(rng, counts, n, k, wide=True)
        run(variant, problem, reference.grouped_reference(problem, halves=variant.arch == "90a"), prefetch)


@every_tile
def test_a_bias_is_added_in_fp32(
    variant: Variant, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """To the product with alpha, each rounded on its own, before the result is rounded once more; every byte. Columns
    beyond the last tile, and rows without an expert, get none."""
    n = variant.axes["block_n"] + 24
    problem = reference.grouped_problem(rng, [3, 0, variant.axes["block_m"] + 1], n, 96, unowned_rows=1)
    products = reference.grouped_reference(problem)
    assert products.exact.all()
    bias = (rng.standard_normal((3, n)) * np.abs(products.value).mean()).astype(np.float32)
    bias[:, ::7], bias[:, 1::7] = -0.0, 2.0**-140
    expert = np.repeat(np.arange(3), np.diff(problem.expert_offsets))
    expected = quantization.store(products.value.astype(np.float32) + bias[expert], variant.axes["out"])
    schedule, out = reschedule(), reference.GuardedOutput(len(expected) + 1, n, variant.axes["out"])
    prefetch = str(rng.choice(PREFETCH))
    loader.launch("grouped_fp4", **problem.inputs(), bias=bias, out=RawBuffer.of(out.array), prefetch=prefetch,
                  variant=variant.variant, device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    assert (out.array[:-1] == expected).all() and out.intact(len(expected)), f"{variant.label} {prefetch} {schedule}"


@every_variant
def test_the_largest_alpha(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """No product overflows that the result holds."""
    problem = reference.grouped_problem(rng, [3, 2], 24, 64)
    largest = np.abs(reference.grouped_reference(problem).value).max()
    top = {"f16": 2.0**15, "bf16": 2.0**127, "f32": 2.0**127}[variant.axes["out"]]
    factor = np.float32(2.0 ** np.floor(np.log2(top / largest)))
    small = dataclasses.replace(problem, alpha=problem.alpha * factor)
    run(variant, small, reference.grouped_reference(small))


@pytest.mark.parametrize("arch", ARCHS)
def test_no_rows_is_no_launch(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """M = 0 computes nothing and is no error."""
    problem = reference.grouped_problem(rng, [0, 0], 64, 64)
    out = np.empty((0, 64), np.float32)
    loader.launch("grouped_fp4", **problem.inputs(), out=out, device=f"emulated:{arch}", packs=packs)


@pytest.mark.parametrize("arch", ARCHS)
def test_selection_without_a_variant(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """numpy arrays without a variant: selection finds one for any output type that numpy has."""
    problem = reference.grouped_problem(rng, [0, 5, 2], 72, 160)
    expected = reference.grouped_reference(problem)
    for out_type in ("f16", "f32"):
        out = reference.GuardedOutput(problem.shape[0], 72, out_type)
        loader.launch("grouped_fp4", **problem.inputs(), out=out.array, device=f"emulated:{arch}", packs=packs)
        reference.verify(problem, expected, out, f"{arch} {out_type}")


@pytest.mark.parametrize("arch", ARCHS)
def test_no_scan_finds_the_expert_of_a_tile(
    arch: str, packs: list[str] | None, reschedule: Callable[[], str]
) -> None:
    """The last of 1,024 experts has the only row. Against 32, no warp executes one instruction more for each expert."""

    smallest = "m16n128k256_f16" if arch == "100a" else "m8n128k256_f16"

    def longest(experts: int) -> int:
        reschedule()
        counts = [0] * (experts - 1) + [1]
        found = profile_kernel("grouped_fp4", arch, smallest, counts, 8, 32, "f16", 0, packs)
        return max(sum(count * len(block.instructions) for block, count in executed.items())
                   for executed in found.executed.values())  # fmt: skip

    assert longest(1024) - longest(32) < 1024 - 32
