"""Every variant of moe_gather_quantize, executed from its PTX on the emulated device, byte for byte."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import shipped_matrix
from quantization import EMULATED, encode_scale, sample, sample_encode_scale, store
from raw_buffer import RawBuffer
from reference import round_up
from routing import Guarded, Routing, gather_quantize, random_ids, route

import loader
from generator.matrix import Variant

ARCHS = ("90a", "100a", "120a")
VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family == "moe_gather_quantize" and v.arch in ARCHS]
MODES = [
    {"global_scale_kind": kind, "division": division, "weighting": weighting}
    for kind, division, weighting in itertools.product(
        ("encode", "decode"), ("approximate", "ieee"), ("combine", "activation", "input")
    )
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.arch}-{v.variant}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Tokens and their routing. What nothing may read is NaN, or a slot far outside."""

    x: np.ndarray  # stored, [T, K]
    x_type: str
    routing: Routing
    weights: np.ndarray  # f32 [T, TOPK]
    encode: np.ndarray  # f32 [E]

    @classmethod
    def random(cls, rng: np.random.Generator, ids: np.ndarray, experts: int, k: int, x_type: str) -> Problem:
        routing = route(ids, experts)
        gaps = 128 * np.cumsum(rng.integers(0, 2, experts)).astype(np.int32)
        routing.slot_of_row[routing.owned :] = 2**31 - 1
        x = sample(rng, len(ids), k)
        x[(routing.row_of_slot < 0).all(axis=1)] = np.nan
        weights = rng.uniform(0, 1, ids.shape).astype(np.float32)
        weights[routing.row_of_slot < 0] = np.nan
        routing = dataclasses.replace(routing, scale_offsets=routing.scale_offsets + gaps)
        return cls(store(x, x_type), x_type, routing, weights, sample_encode_scale(rng, experts))

    @property
    def scale_rows(self) -> int:
        last = self.routing.expert_offsets[-1] - self.routing.expert_offsets[-2]
        return int(self.routing.scale_offsets[-1]) + round_up(max(1, int(last)), 128)

    def inputs(self, global_scale_kind: str) -> dict[str, np.ndarray]:
        """The input arguments but x, by name."""
        return {
            "slot_of_row": self.routing.slot_of_row,
            "topk_weights": self.weights,
            "expert_offsets": self.routing.expert_offsets,
            "scale_offsets": self.routing.scale_offsets,
            "global_scale": encode_scale(self.encode, global_scale_kind),  # its own inverse
        }

    def outputs(self) -> dict[str, Guarded]:
        rows, k = self.weights.size, self.x.shape[1]
        return {
            "a": Guarded((rows, k // 2), "u8"),
            "a_scale": Guarded((self.scale_rows, round_up(k // 16, 4)), "u8"),
            "row_weight": Guarded((rows,), "f32"),
        }


Runner = Callable[[Variant, Problem, dict[str, str]], None]


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Runner:
    """Launches under a fresh schedule and compares every byte with the reference."""

    def launch(variant: Variant, problem: Problem, mode: dict[str, str]) -> None:
        schedule = reschedule()
        inputs, outputs = problem.inputs(mode["global_scale_kind"]), problem.outputs()
        expected = gather_quantize(
            {name: output.array for name, output in outputs.items()},
            problem.x, problem.x_type, problem.routing, problem.weights, inputs["global_scale"], mode, EMULATED,
        )  # fmt: skip
        loader.launch(
            "moe_gather_quantize",
            x=RawBuffer.of(problem.x),
            **inputs,
            **{name: output.array for name, output in outputs.items()},
            **mode,
            variant=variant.variant,
            device=f"emulated:{variant.arch}",
            packs=packs,
        )
        context = f"{variant.label} x {problem.x.shape} E {len(problem.encode)} {mode} {schedule}"
        for name, output in outputs.items():
            bits = f"u{output.array.itemsize}"
            np.testing.assert_array_equal(output.array.view(bits), expected[name].view(bits), f"{name}: {context}")
            assert output.intact(), f"{context}: wrote outside of {name}"

    return launch


@every_variant
def test_many_awkward_things_at_once(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Empty experts, slots and tokens without rows, unused blocks of scale rows, a row of blocks that does not fill its
    last word of scales; every mode, each under a schedule of its own."""
    ids = random_ids(rng, 19, 4, 12)
    ids[5] = -1
    ids[ids == 2] = 3
    problem = Problem.random(rng, ids, 9, 208, variant.axes["x"])
    for mode in MODES:
        run(variant, problem, mode)


SMALL = {
    "one_row": ([[0]], 1, 16),
    "all_rows_in_one_expert": ([[2]] * 131, 4, 32),
    "no_row_at_all": ([[7, -1], [9, 8]], 3, 64),
    "last_of_most_experts": ([[1023, 0], [511, 1023]], 1024, 64),
}


@every_variant
@pytest.mark.parametrize("name", SMALL)
def test_small_problems(variant: Variant, run: Runner, rng: np.random.Generator, name: str) -> None:
    """Fewer rows than a CTA takes, more than a block of scales holds, none, and as many experts as there can be."""
    ids, experts, k = SMALL[name]
    run(variant, Problem.random(rng, np.array(ids), experts, k, variant.axes["x"]), MODES[0])


@pytest.mark.parametrize("arch", ARCHS)
def test_equal_to_quantising_gathered_rows(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """Bytes of nvfp4_quantize_grouped on a copy of each row's token, without a variant; routed by moe_route."""
    ids = random_ids(rng, 21, 3, 8).astype(np.int32)
    x, experts, rows = sample(rng, 21, 96), 8, ids.size
    where = {"device": f"emulated:{arch}", "packs": packs}
    offsets, scale_offsets = np.empty(experts + 1, np.int32), np.empty(experts, np.int32)
    row_of_slot, slot_of_row = np.empty_like(ids), np.empty(rows, np.int32)
    loader.launch("moe_route", ids, offsets, scale_offsets, row_of_slot, slot_of_row, **where)
    encode, weights = sample_encode_scale(rng, experts), np.ones(ids.shape, np.float32)
    a, expected_a = np.zeros((2, rows, 48), np.uint8)
    a_scale, expected_a_scale = np.zeros((2, 128 * experts, 8), np.uint8)
    loader.launch(
        "moe_gather_quantize", x, slot_of_row, weights, offsets, scale_offsets, encode, a, a_scale,
        np.empty(rows, np.float32), global_scale_kind="encode", **where,
    )  # fmt: skip
    loader.launch(
        "nvfp4_quantize_grouped", x[slot_of_row // 3], encode, offsets, scale_offsets, expected_a, expected_a_scale,
        global_scale_kind="encode", **where,
    )  # fmt: skip
    np.testing.assert_array_equal(a, expected_a)
    np.testing.assert_array_equal(a_scale, expected_a_scale)


@every_variant
@pytest.mark.usefixtures("unchecked_values")
def test_slots_that_do_not_exist_stay_in_the_buffers(
    variant: Variant, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Whatever slot_of_row, the offsets and the scale offsets hold, no access leaves a buffer."""
    problem = Problem.random(rng, random_ids(rng, 4, 2, 3), 3, 64, variant.axes["x"])
    outputs = problem.outputs()
    wild = np.array([-(2**31), -1, 2**31 - 1, 8], np.int32)
    inputs = problem.inputs("encode") | {
        "slot_of_row": rng.choice(wild, 8), "scale_offsets": rng.choice(wild, 3),
        "expert_offsets": np.array([0, 3, 2**31 - 1, 2**31 - 1], np.int32),
    }  # fmt: skip
    loader.launch(
        "moe_gather_quantize", x=RawBuffer.of(problem.x), **inputs,
        **{name: output.array for name, output in outputs.items()}, **MODES[1], variant=variant.variant,
        device=f"emulated:{variant.arch}", packs=packs,
    )  # fmt: skip
    assert all(output.intact() for output in outputs.values())


@pytest.mark.parametrize("arch", ARCHS)
def test_no_tokens_is_no_launch(arch: str, packs: list[str] | None) -> None:
    """T = 0 computes nothing and is no error."""
    x, slots, weights = np.empty((0, 32), np.float16), np.empty(0, np.int32), np.empty((0, 2), np.float32)
    loader.launch(
        "moe_gather_quantize", x, slots, weights, np.zeros(4, np.int32), np.zeros(3, np.int32), np.ones(3, np.float32),
        np.empty((0, 16), np.uint8), np.empty((0, 4), np.uint8), np.empty(0, np.float32), global_scale_kind="encode",
        device=f"emulated:{arch}", packs=packs,
    )  # fmt: skip
