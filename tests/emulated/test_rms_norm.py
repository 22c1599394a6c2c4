"""The norm that quantises, every variant on the emulated device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shipped_matrix
from quantization import store
from raw_buffer import RawBuffer
from rms_norm import FAMILIES, Outputs, Problem, Settings

import loader
from generator.matrix import Variant

ARCHS = ("90a", "100a", "120a")
VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family in FAMILIES and v.arch in ARCHS]
Launch = Callable[[Variant, Problem], Outputs]

pytestmark = pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")


def columns(variant: Variant, least: int) -> int:
    """An odd number of the steps in which K may be, as many columns at least."""
    step = 32 if FAMILIES[variant.family] == "mxfp8" else 16
    return step * (least // step | 1)


@pytest.fixture
def launch(packs: list[str] | None, reschedule: Callable[[], str]) -> Launch:
    """Into poisoned outputs, under a fresh schedule."""

    def run(variant: Variant, problem: Problem) -> Outputs:
        reschedule()
        return Outputs(problem).launch(variant=variant.variant, device=f"emulated:{variant.arch}", packs=packs)

    return run


@every_variant
def test_every_byte_where_fp32_is_exact(variant: Variant, launch: Launch, rng: np.random.Generator) -> None:
    """Five rows, words and blocks that K ends in, every choice of scalars; an eps of its own, or none."""
    for settings in Settings.every(FAMILIES[variant.family], eps=float(rng.integers(2))):
        problem = Problem.exact(rng, FAMILIES[variant.family], variant.axes["x"], 5, columns(variant, 900), settings)
        problem.verify_exactly(launch(variant, problem), str(settings))


@every_variant
def test_one_row(variant: Variant, launch: Launch, rng: np.random.Generator) -> None:
    """As short as a row may be, and without a residual."""
    name, k = FAMILIES[variant.family], columns(variant, 16)
    settings = Settings.every(name, eps=1.0)[int(rng.integers(3))]
    problem = Problem.exact(rng, name, variant.axes["x"], 1, k, settings, adds=False)
    problem.verify_exactly(launch(variant, problem), str(settings))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if FAMILIES[v.family] == "mxfp8"], ids=lambda v: v.label)
def test_more_rows_than_a_block_of_scales(variant: Variant, launch: Launch, rng: np.random.Generator) -> None:
    """Those of the second block lie behind the words of the first."""
    settings = Settings("blocks_128x4", "up", eps=1.0)
    problem = Problem.exact(rng, "mxfp8", variant.axes["x"], 131, 160, settings)
    problem.verify_exactly(launch(variant, problem))


@every_variant
def test_within_the_bound_of_float64(variant: Variant, launch: Launch, rng: np.random.Generator) -> None:
    """Rows of any size; a row that a thread has two parts of, and the same bytes under every schedule."""
    settings = Settings.every(FAMILIES[variant.family])[int(rng.integers(3))]
    for m, k in ((5, 272), (1, 8192 + 128)):
        problem = Problem.random(rng, FAMILIES[variant.family], variant.axes["x"], m, columns(variant, k), settings)
        first, second = (launch(variant, problem) for _ in range(2))
        problem.verify(first, str(settings))
        assert first.written == second.written


@every_variant
def test_what_is_no_number_stays_in_its_row(variant: Variant, launch: Launch, rng: np.random.Generator) -> None:
    """A NaN makes all of its row NaN; an infinity the block that has it, and the rest of the row zeros, since it is
    divided by an infinite size; zeros stay zeros. Other rows are as ever."""
    settings = Settings.every(FAMILIES[variant.family])[0]
    problem = Problem.random(rng, FAMILIES[variant.family], variant.axes["x"], 5, columns(variant, 272), settings)
    at = int(rng.integers(problem.x.shape[1]))
    problem.x[0, at], problem.residual[2, at] = store(np.array([np.nan, np.inf], np.float32), problem.dtype)
    problem.x[3], problem.residual[3] = 0, 0
    outputs = launch(variant, problem)
    written, block = outputs.quantized(), at // problem.format.block
    values = problem.format.elements[written.out]
    assert np.isnan(written.scales[0]).all() and np.isnan(written.scales[2]).nonzero()[0].tolist() == [block]
    rest = np.delete(values[2], slice(block * problem.format.block, (block + 1) * problem.format.block))
    assert (rest == 0).all() and (values[3] == 0).all()
    with np.errstate(all="ignore"):
        problem.verify(outputs, str(settings), slice(1, None, 3))


@pytest.mark.parametrize("argument", ["residual", "weight"])
def test_types_are_one(argument: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """What has another 16 bits than x is refused by name."""
    problem = Problem.random(rng, "fp8", "bf16", 3, 48, Settings("mn_major", "none"))
    outputs = Outputs(problem)
    buffers = {name: RawBuffer.of(array) for name, array in (problem.inputs() | outputs.arrays).items()}
    buffers[argument] = RawBuffer.of(np.zeros(buffers[argument].shape, np.float16))
    with pytest.raises(loader.NoKernelError, match=f"computes {argument} as bf16, the call has f16"):
        loader.launch(problem.family, **buffers, **problem.scalars(), device="emulated:90a", packs=packs)


@pytest.mark.parametrize("eps", [-1e-6, float("nan")])
def test_eps_is_no_less_than_zero(eps: float, packs: list[str] | None, rng: np.random.Generator) -> None:
    """Nor NaN, which would be in every row."""
    problem = Problem.random(rng, "fp8", "bf16", 3, 48, Settings("mn_major", "none"))
    buffers = {name: RawBuffer.of(array) for name, array in (problem.inputs() | Outputs(problem).arrays).items()}
    with pytest.raises(loader.ArgumentError, match="eps >= 0"):
        loader.launch(problem.family, **buffers, **{**problem.scalars(), "eps": eps}, device="emulated:90a",
                      packs=packs)
