"""Every variant of moe_combine, executed from its PTX on the emulated device, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shipped_matrix
from quantization import fused_multiply_add, store
from raw_buffer import RawBuffer
from routing import STORAGE, Guarded, combine, random_ids, route

import loader
from generator.matrix import Variant

ARCHS = ("90a", "100a", "120a")
VARIANTS = [v for v in shipped_matrix.VARIANTS if v.family == "moe_combine" and v.arch in ARCHS]
SCHEDULES = 3
NAN = {"bf16": 0x7FFF, "f16": np.nan, "f32": np.nan}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.arch}-{v.variant}")
Runner = Callable[..., None]


def random_rows(rng: np.random.Generator, num_rows: int, h: int, dtype: str) -> np.ndarray:
    """Values of all magnitudes that cancel and that round, subnormal ones too, stored as ``dtype``."""
    values = rng.standard_normal((num_rows, h)) * 2.0 ** rng.integers(-12, 3, (num_rows, h))
    values[rng.random(values.shape) < 0.05] *= 2.0 ** (-14 if dtype == "f16" else -130)
    return store(values.astype(np.float32), dtype)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Runner:
    """Launches under a fresh schedule and compares every bit with the reference."""

    def launch(
        variant: Variant, rows: np.ndarray, row_of_slot: np.ndarray, weights: np.ndarray, **weighting: str
    ) -> None:
        schedule = reschedule()
        out_type = variant.axes["out"]
        out = Guarded((row_of_slot.shape[0], rows.shape[1]), out_type)
        loader.launch(
            "moe_combine",
            rows=RawBuffer.of(rows),
            row_of_slot=row_of_slot,
            topk_weights=weights,
            out=RawBuffer.of(out.array),
            **weighting,
            variant=variant.variant,
            device=f"emulated:{variant.arch}",
            packs=packs,
        )
        used = None if weighting.get("weighting") in ("activation", "input") else weights
        expected = combine(rows, variant.axes["rows"], row_of_slot, used, out_type)
        context = f"{variant.label} rows {rows.shape} {weighting} {schedule}"
        bits = f"u{out.array.itemsize}"
        np.testing.assert_array_equal(out.array.view(bits), expected.view(bits), context)
        assert out.intact(), f"{context}: wrote outside of out"

    return launch


@every_variant
def test_sums_of_routed_rows(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Slots without rows, tokens without any, NaN in rows that nobody owns, a tail of columns; every schedule."""
    ids = random_ids(rng, 9, 6, 16)
    ids[3] = -1
    routing = route(ids, 10, first_expert=2)
    rows = random_rows(rng, ids.size, 1096, variant.axes["rows"])
    rows[routing.owned :] = NAN[variant.axes["rows"]]
    weights = rng.uniform(-1, 1, ids.shape).astype(np.float32)
    weights[routing.row_of_slot < 0] = np.nan
    for _ in range(SCHEDULES):
        run(variant, rows, routing.row_of_slot, weights)


@every_variant
@pytest.mark.parametrize("top_k", [1, 4, 7, 37])
def test_any_number_of_experts_a_token(variant: Variant, run: Runner, rng: np.random.Generator, top_k: int) -> None:
    """One vector of columns, weights here and before, in the activation or in the input."""
    ids = random_ids(rng, 3, top_k, 40)
    routing = route(ids, 40)
    rows = random_rows(rng, ids.size, 8, variant.axes["rows"])
    weights = rng.uniform(0, 1, ids.shape).astype(np.float32)
    run(variant, rows, routing.row_of_slot, weights)
    run(variant, rows, routing.row_of_slot, weights, weighting="combine")
    run(variant, rows, routing.row_of_slot, weights, weighting="activation")
    run(variant, rows, routing.row_of_slot, weights, weighting="input")


@every_variant
@pytest.mark.usefixtures("unchecked_values")
def test_only_rows_of_the_buffer_are_read(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Any negative row adds nothing, and neither does one that is too large."""
    rows = random_rows(rng, 6, 16, variant.axes["rows"])
    slots = np.array([[1, -2], [-(2**31), 3], [6, 2**31 - 1]], np.int32)
    run(variant, rows, slots, rng.uniform(0, 1, slots.shape).astype(np.float32))


@pytest.mark.parametrize("arch", ARCHS)
def test_no_tokens_is_no_launch(arch: str, packs: list[str] | None) -> None:
    """T = 0 computes nothing and is no error."""
    rows, slots, weights = np.empty((0, 16), np.float16), np.empty((0, 2), np.int32), np.empty((0, 2), np.float32)
    loader.launch("moe_combine", rows, slots, weights, np.empty_like(rows), device=f"emulated:{arch}", packs=packs)


@pytest.mark.parametrize("arch", ARCHS)
def test_selection_follows_both_types(arch: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """numpy arrays without a variant, every pair of types that numpy has and a kernel takes."""
    for rows_type, out_type in (("f16", "f16"), ("f32", "f16"), ("f32", "f32")):
        rows = random_rows(rng, 2, 8, rows_type)
        slots, weights = np.array([[1, 0]], np.int32), np.ones((1, 2), np.float32)
        out = np.empty((1, 8), STORAGE[out_type])
        loader.launch("moe_combine", rows, slots, weights, out, device=f"emulated:{arch}", packs=packs)
        np.testing.assert_array_equal(out, combine(rows, rows_type, slots, weights, out_type))


def test_the_reference_rounds_once(rng: np.random.Generator) -> None:
    """fused_multiply_add against exact integers, where rounding through float64 goes wrong and where it does not."""
    a, b, c = (rng.integers(1 << 23, 1 << 24, 4000) for _ in range(3))
    shifts = rng.integers(0, 56, 4000)
    # Half a unit in the last place of the sum, and a little more or less.
    a[:2], b[:2], c[:2], shifts[:2] = 1 << 23, (1 << 23) + 1, 1 << 23, 47
    signs = rng.choice([-1, 1], 4000)
    got = fused_multiply_add(a.astype(np.float32), b.astype(np.float32), np.ldexp(c * signs, shifts).astype(np.float32))
    for i, value in enumerate(got.tolist()):
        exact = int(a[i]) * int(b[i]) + (int(signs[i]) * int(c[i]) << int(shifts[i]))
        unit = 1 << max(0, abs(exact).bit_length() - 24)
        quotient, rest = divmod(abs(exact), unit)
        quotient += 2 * rest > unit or (2 * rest == unit and quotient % 2)
        assert value == (quotient * unit if exact >= 0 else -quotient * unit), (a[i], b[i], c[i], shifts[i], signs[i])
