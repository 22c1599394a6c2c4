"""Every variant of moe_route, executed from its PTX on the emulated device, against a sort in plain Python."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shipped_matrix
from routing import STORAGE, Guarded, Routing, random_ids, route

import loader
from generator.matrix import Variant

ARCHS = ("90a", "100a", "120a")
VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family == "moe_route" and v.arch in ARCHS]
SCHEDULES = 3
OUTPUTS = ("expert_offsets", "scale_offsets", "row_of_slot", "slot_of_row")

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.arch}-{v.variant}")
Runner = Callable[..., None]


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Runner:
    """Launches under a fresh schedule and compares every output with the reference."""

    def launch(
        variant: Variant, ids: np.ndarray, num_experts: int, first_expert: int = 0,
        expert_map: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        schedule = reschedule()
        ids = ids.astype(STORAGE[variant.axes["ids"]], copy=False)
        expected: Routing = route(ids, num_experts, first_expert, expert_map)
        outputs = {name: Guarded(getattr(expected, name).shape, "i32") for name in OUTPUTS}
        loader.launch(
            "moe_route",
            topk_ids=ids,
            **{name: output.array for name, output in outputs.items()},
            first_expert=first_expert,
            expert_map=expert_map,
            variant=variant.variant,
            device=f"emulated:{variant.arch}",
            packs=packs,
        )
        context = f"{variant.label} ids {ids.shape} E {num_experts} first {first_expert} {schedule}"
        for name, output in outputs.items():
            np.testing.assert_array_equal(output.array, getattr(expected, name), f"{name}: {context}")
            assert output.intact(), f"{context}: wrote outside of {name}"

    return launch


@every_variant
def test_rows_are_sorted_by_expert_and_then_by_slot(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Zipf popularity, some ids without a row, a number of slots that is no multiple of anything; every schedule."""
    ids = random_ids(rng, 83, 7, 40)
    ids[rng.random(ids.shape) < 0.1] = -1
    for _ in range(SCHEDULES):
        run(variant, ids, 32, first_expert=5)


@every_variant
def test_a_cta_takes_several_rounds(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """More slots a CTA than threads, and more experts than one warp scans."""
    run(variant, random_ids(rng, 309, 7, 200), 200)


@every_variant
def test_as_many_experts_as_there_can_be(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """1024 experts, the last one with rows."""
    ids = rng.integers(0, 1024, (40, 4))
    ids[17, 2] = 1023
    run(variant, ids, 1024)


@every_variant
def test_scale_rows_are_rounded_up_to_128(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Experts of 0, 1, 127, 128 and 129 rows."""
    ids = np.repeat([0, 2, 3, 4, 5], [1, 127, 128, 129, 1])
    run(variant, rng.permutation(ids)[:, None], 7)


SMALL = {
    "no_tokens": (np.empty((0, 8)), 5, 0),
    "one_slot": (np.array([[0]]), 1, 0),
    "all_in_one_expert": (np.full((50, 2), 3), 6, 0),
    "no_local_expert": (np.array([[0, 1, 9], [-1, 2**31 - 1, -(2**31)]]), 4, 2),
    "ids_beside_the_local_ones": (np.array([[6, 7, 8, 9, 10, 11]]), 3, 7),
    "first_expert_far_out": (np.array([[2**31 - 1, -(2**31), 0, -1]]), 4, 2**31 - 1),
}


@every_variant
@pytest.mark.parametrize("name", SMALL)
def test_small_problems(variant: Variant, run: Runner, name: str) -> None:
    """No tokens, one slot, one expert, no expert, ids just outside and of any 32-bit value."""
    run(variant, *SMALL[name])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.axes["ids"] == "i64"], ids=lambda v: v.arch)
def test_ids_beyond_32_bits_are_no_expert(variant: Variant, run: Runner) -> None:
    """An id is compared with all of its 64 bits."""
    far = [2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63), -(2**63) + 3]
    run(variant, np.array([far, [0, 1, 2, 3, 4, 5]]), 4, first_expert=1)
    run(variant, np.array([far, [0, 1, 2, 3, 4, 5]]), 4)


@every_variant
def test_ids_may_start_anywhere(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """The chunks of a larger call begin at any multiple of an id."""
    ids = random_ids(rng, 12, 3, 8).astype(STORAGE[variant.axes["ids"]])
    for first in range(4):
        run(variant, ids[first:], 8)


@every_variant
def test_a_map_says_where_an_expert_is(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Any one: in no order, two ids on one expert, experts that no id has, ids that are not here or are beyond it."""
    for experts, ids_in_map in ((6, 40), (1024, 1500), (3, 1)):
        expert_map = rng.permutation(np.resize(np.arange(-1, experts + 1), ids_in_map)).astype(np.int32)
        expert_map[rng.random(ids_in_map) < 0.1] = rng.choice([-1, -(2**31), 2**31 - 1, experts])
        ids = rng.integers(-2, ids_in_map + 2, (83, 3))
        ids[0] = -(2**31), 2**31 - 1, ids_in_map
        run(variant, ids, experts, expert_map=expert_map)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("first_expert", "size"), [(1, 8), (0, 0)])
def test_a_map_is_no_offset(arch: str, first_expert: int, size: int, packs: list[str] | None) -> None:
    """With a map the first expert is 0; and no map is not an empty one."""
    outputs = {name: np.empty_like(getattr(route(np.zeros((1, 1), np.int32), 2), name)) for name in OUTPUTS}
    with pytest.raises(loader.ConstraintError, match=f"first_expert = {first_expert}"):
        loader.launch(
            "moe_route", np.zeros((1, 1), np.int32), **outputs, expert_map=np.zeros(size, np.int32),
            first_expert=first_expert, device=f"emulated:{arch}", packs=packs,
        )  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
def test_selection_follows_the_type_of_the_ids(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """numpy arrays without a variant."""
    for dtype in ("i32", "i64"):
        ids = random_ids(rng, 3, 2, 4).astype(STORAGE[dtype])
        expected = route(ids, 4)
        outputs = [np.empty_like(getattr(expected, name)) for name in OUTPUTS]
        loader.launch("moe_route", ids, *outputs, device=f"emulated:{arch}", packs=packs)
        for name, output in zip(OUTPUTS, outputs, strict=True):
            np.testing.assert_array_equal(output, getattr(expected, name), name)
