"""Every variant of moe_gather, executed from its PTX on the emulated device, byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import block_cases
import numpy as np
import pytest
import shipped_matrix
from packs import ARCHS
from quantization import EMULATED, Case
from raw_buffer import RawBuffer
from routing import random_ids

import loader
from generator.matrix import Variant

VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family == "moe_gather" and v.arch in ARCHS]
Run = Callable[[Variant, Case], None]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    """Launches a case under a fresh schedule and compares every byte."""

    def launch(variant: Variant, case: Case) -> None:
        context = f"{variant.label} {reschedule()}"
        outputs = {name: array.copy() for name, array in case.outputs.items()}
        buffers = {name: RawBuffer.of(array) for name, array in (case.inputs | outputs).items()}
        loader.launch("moe_gather", **buffers, **case.scalars, variant=variant.variant,
                      device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
        case.verify(outputs, EMULATED, context)

    return launch


@shipped_matrix.each(VARIANTS)
@pytest.mark.parametrize("weighting", block_cases.WEIGHTINGS)
def test_many_awkward_things_at_once(variant: Variant, weighting: str, run: Run, rng: np.random.Generator) -> None:
    """Empty experts, slots and tokens without rows, more values than the grid has threads; NaN and infinities."""
    ids = random_ids(rng, 19, 4, 12)
    ids[5], ids[ids == 2] = -1, 3
    run(variant, block_cases.plain_gather(rng, variant.axes["x"], ids, 9, 1008, weighting=weighting))


SMALL = {
    "one_row": ([[0]], 1, 16),
    "all_rows_in_one_expert": ([[2]] * 131, 4, 32),
    "no_row_at_all": ([[7, -1], [9, 8]], 3, 64),
    "last_of_most_experts": ([[1023, 0], [511, 1023]], 1024, 64),
}


@shipped_matrix.each(VARIANTS)
@pytest.mark.parametrize("name", SMALL)
def test_small_problems(variant: Variant, name: str, run: Run, rng: np.random.Generator) -> None:
    """Fewer values than a CTA takes, none, and as many experts as there can be."""
    ids, experts, k = SMALL[name]
    run(variant, block_cases.plain_gather(rng, variant.axes["x"], np.array(ids), experts, k))


@pytest.mark.usefixtures("unchecked_values")
def test_slots_that_do_not_exist_stay_in_the_buffers(packs: list[str] | None, rng: np.random.Generator) -> None:
    """Whatever slot_of_row and the offsets hold, no access leaves a buffer."""
    case = block_cases.plain_gather(rng, "f16", np.array([[0, 1], [2, 2], [0, 2]]), 3, 64)
    wild = np.array([-(2**31), -1, 2**31 - 1, 8], np.int32)
    case.inputs["slot_of_row"][:] = rng.choice(wild, 6)
    case.inputs["expert_offsets"][:] = [0, 3, 2**31 - 1, 2**31 - 1]
    buffers = {name: RawBuffer.of(array) for name, array in (case.inputs | case.outputs).items()}
    loader.launch("moe_gather", **buffers, device="emulated:90a", packs=packs)  # the emulator refuses such an access
