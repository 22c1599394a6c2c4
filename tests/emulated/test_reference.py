"""The reference itself, held against formulas written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import reference


def test_e2m1_and_ue4m3_values() -> None:
    """The values that the formats' tables name."""
    assert reference.E2M1[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert (reference.E2M1[8:] == -reference.E2M1[:8]).all() and np.signbit(reference.E2M1[8])
    named = {0x00: 0, 0x01: 2**-9, 0x07: 7 * 2**-9, 0x08: 2**-6, 0x38: 1, 0x3C: 1.5, 0x40: 2, 0x7E: 448}
    assert {byte: reference.UE4M3[byte] for byte in named} == named
    assert np.isnan(reference.UE4M3[0x7F]) and not np.isnan(reference.UE4M3[:0x7F]).any()


def test_low_nibble_is_even_k() -> None:
    """0x42 holds code 2 at k = 0 and code 4 at k = 1."""
    packed = np.full((1, 8), 0x42, np.uint8)
    assert reference.dequantize(packed, np.array([[0x38]], np.uint8))[0, :2].tolist() == [1, 2]
    codes = np.arange(16, dtype=np.uint8)
    assert reference.pack_e2m1(codes)[:2].tolist() == [0x10, 0x32]


@pytest.mark.parametrize("groups", [4, 12])
def test_scale_layout_is_32_rows_of_4_words_per_block(groups: int) -> None:
    """The layout as nested reshapes: block of 128 rows, block of 4 groups, row % 32, row // 32, group % 4."""
    scales = np.arange(256 * groups).reshape(256, groups).astype(np.uint8)
    nested = scales.reshape(2, 4, 32, groups // 4, 4).transpose(0, 3, 2, 1, 4).reshape(256, groups)
    assert (reference.to_scale_layout(scales) == nested).all()


@pytest.mark.parametrize("wide", [False, True])
def test_rounded_results_are_within_the_bound_and_wrong_ones_are_not(rng: np.random.Generator, wide: bool) -> None:
    """The bound admits one rounding, and refuses NaN, a swapped element and a write outside."""
    problem = reference.grouped_problem(rng, [0, 3, 129], 24, 96, wide=wide, gaps=True, unowned_rows=2)
    expected = reference.grouped_reference(problem)
    assert wide or expected.exact.mean() > 0.9
    for out_type in ("f16", "f32"):
        out = reference.GuardedOutput(problem.shape[0], 24, out_type)
        out.array[:132] = expected.value
        assert reference.verify(problem, expected, out) <= 1
        furthest = np.abs(expected.value - expected.value[0, 0]).argmax()  # a neighbour may have nearly the same value
        for wrong in (np.nan, out.array.flat[furthest]):
            kept, out.array[0, 0] = out.array[0, 0], wrong
            with pytest.raises(AssertionError, match=r"out\[0, 0\]"):
                reference.verify(problem, expected, out)
            out.array[0, 0] = kept
        out.array[132, 5] = 0
        with pytest.raises(AssertionError, match="outside the rows"):
            reference.verify(problem, expected, out)


def test_one_flipped_nibble_is_seen(rng: np.random.Generator) -> None:
    """With exact sums the bound is half a unit in the last place, so one wrong operand of 1024 shows."""
    problem = reference.grouped_problem(rng, [1], 64, 1024)
    problem.a_groups[problem.a_groups == reference.MAX_SCALE] = 0x38  # several of them would leave sums inexact
    expected = reference.grouped_reference(problem)
    assert expected.exact.all()
    group = np.flatnonzero(problem.a_groups[0])[0]
    problem.a[0, group * 8] ^= 0x07
    wrong = reference.grouped_reference(problem)
    with pytest.raises(AssertionError):
        reference.check(wrong.value, expected, 1024, "f32")
