"""Operands for timing: every one is a number, and integers are those that the rules of a kernel allow."""

import random

import numpy as np
import pytest
import random_calls
import reference
import shipped_matrix

from loader import dlpack, operands, signature, values
from loader.errors import ConstraintError, TuningError
from loader.expression import evaluate, round_up

FAMILIES = shipped_matrix.families()
# The bytes of random elements as numbers; those of words of scales are the scales.
NUMBERS = {
    "e4m3": lambda data: np.where(np.frombuffer(data, np.uint8) & 0x7F == 0x7F, np.nan, 1),
    "ue4m3": lambda data: reference.UE4M3[np.frombuffer(data, np.uint8)],
    "ue8m0": lambda data: 2.0 ** (np.frombuffer(data, np.uint8).astype(int) - 127),
    "i32": lambda data: 2.0 ** (np.frombuffer(data, np.uint8).astype(int) - 127),
    "bf16": lambda data: (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32),
    "f16": lambda data: np.frombuffer(data, np.float16),
    "f32": lambda data: np.frombuffer(data, np.float32),
}


@pytest.mark.parametrize("dtype", NUMBERS)
def test_elements_are_numbers(dtype, seed):
    """No NaN, no infinity, and scales around one."""
    data = b"".join(operands.elements(random.Random(seed), dtype, 1 << 16))
    found = np.abs(NUMBERS[dtype](data))
    assert 0.125 <= found.min() <= found.max() <= 2 and len(set(data)) >= 4  # of a NaN none of this is true


@pytest.mark.parametrize("size", [0, 1, operands.PERIOD - 1, operands.PERIOD, 2 * operands.PERIOD + 4])
def test_there_are_as_many_bytes_as_asked_for(size, seed):
    """In pieces that memory holds."""
    pieces = list(operands.elements(random.Random(seed), "u8", size))
    assert sum(map(len, pieces)) == size and all(0 < len(piece) <= operands.PERIOD for piece in pieces)


def random_problem(rng, family):
    """A checked problem, None where what was drawn does not fit."""
    drawn = random_calls.draw(rng, family, {})
    buffers = [dlpack.Buffer((index + 1) << 44, dlpack.CUDA, 0, dlpack.ELEMENT_OF[drawn.buffers[a.name].dtype],
                             drawn.buffers[a.name].shape, None, False) if a.name in drawn.buffers else dlpack.ABSENT
               for index, a in enumerate(family.arguments)]
    given = signature.order(family, (), {**dict.fromkeys(drawn.buffers), **drawn.scalars})
    try:
        return signature.Checker(family).check(buffers, signature.choose(family, given)[len(buffers):])
    except (ConstraintError, signature.ShapeError):
        return None


RULED = [name for name, family in FAMILIES.items() if family.values]
UNKNOWN = {"moe_combine": "row_of_slot"} | {
    name: "slot_of_row" for name in FAMILIES if name.startswith("moe_gather")}


@pytest.mark.parametrize("name", RULED)
def test_integers_follow_the_rules(name, rng, seed):
    """Of every kernel, for random problems; where there is no room for the rows, that is said."""
    family, made, draw = FAMILIES[name], 0, random.Random(seed)
    for _ in range(300):
        if made == 3:
            break
        problem = random_problem(rng, family)
        if problem is None or max(problem.bytes) > 1 << 26:
            continue
        features = {key: evaluate(value, problem.values | {"sm_count": 132}) for key, value in family.features.items()}
        try:
            found = operands.integers(draw, family, problem, features)
        except TuningError as error:
            if name in UNKNOWN:
                assert UNKNOWN[name] in str(error)
                made += 1
            else:
                assert "no room for" in str(error) and round_up(problem.values["M"], 128) > problem.values["S"]
            continue
        names = [argument.name for argument in family.arguments]
        sizes = dict(zip(names, problem.bytes, strict=True))
        assert {key: len(data) for key, data in found.items()} == {key: sizes[key] for key in found}
        pointers = [index if key in found else None for index, key in enumerate(names)]
        values.check(family, problem, pointers, lambda index, size: found[names[index]])  # noqa: B023
        made += 1
    assert made == 3


def test_all_rows_are_routed(seed):
    """Offsets and ends end with the last row, and groups behind padding begin at multiples of 128."""
    draw = random.Random(seed)
    for name, argument in (("grouped_fp8", "expert_offsets"), ("grouped_fp8_ends", "group_ends")):
        size = 4 * (17 if name == "grouped_fp8" else 16)
        problem = signature.Problem({argument: "i32"}, {"M": 1000, "E": 16}, tuple(
            [size if a.name == argument else 0 for a in FAMILIES[name].arguments]))
        data = operands.integers(draw, FAMILIES[name], problem, {})[argument]
        found = np.frombuffer(data, np.int32)
        assert found[-1] == 1000 and len(set(found)) > 4 and (found[0] == 0 or name == "grouped_fp8_ends")
        assert name == "grouped_fp8" or not (found[:-1] % 128).any()


def test_counts_are_those_that_are_expected(seed):
    """Of masks on average, and never more than there is room for."""
    family = FAMILIES["grouped_fp4_masked"]
    problem = signature.Problem({"mask": "i32"}, {"Mmax": 4096, "E": 64}, tuple(
        [256 if a.name == "mask" else 0 for a in family.arguments]))
    for mean in (16, 4096):
        data = operands.integers(random.Random(seed), family, problem, {"rows_per_expert": mean})["mask"]
        found = np.frombuffer(data, np.int32)
        assert 0.9 * mean < found.mean() <= mean and found.max() <= 4096 and len(set(found)) > 3


@pytest.mark.parametrize("name", ["paged_mqa_logits_fp8", "sparse_mqa_logits_mxfp8", "mqa_logits_fp8"])
def test_integers_that_have_no_rule_are_refused(name, rng):
    """Nobody but their producer knows what they may be."""
    problem = None
    while problem is None:
        problem = random_problem(rng, FAMILIES[name])
    with pytest.raises(TuningError, match="no rule of the manifest says what the integers of"):
        operands.integers(random.Random(0), FAMILIES[name], problem, {})
