"""Dimensions from shapes: what an extent gives, and what gives nothing."""

import numpy as np
import pytest
import sample_pack

import loader
from loader.errors import ExpressionError
from loader.expression import evaluate, solvable, solve

KNOWN = {"a": 3, "b": -4, "z": 0}


def around(rng, entry):
    """The entry under one more operator, at a random side of a random operand."""
    name = rng.choice(["+", "-", "*", "/", "neg"])
    other = [int(rng.integers(1, 6)), "a", "b", ["+", "a", 2]][rng.integers(4)]
    if name == "neg":
        return ["neg", entry]
    return [name, entry, other] if rng.integers(2) else [name, other, entry]


def test_solving_undoes_evaluating(rng):
    """Under `+ - * /` and `neg`, on either side, the value of an entry gives back the one dimension in it."""
    solved = 0
    for _ in range(2000):
        entry = "M"
        for _ in range(rng.integers(1, 5)):
            entry = around(rng, entry)
        size = int(rng.integers(1, 400))
        assert solvable(entry, "M")
        try:
            result = evaluate(entry, {**KNOWN, "M": size})
        except ExpressionError:  # not divisible
            continue
        if result != 0:  # 0 = 3 * (M - 5) gives M, 0 = 3 / M does not
            assert solve(entry, "M", result, KNOWN) == size, (entry, result)
            solved += 1
    assert solved > 500


@pytest.mark.parametrize(("entry", "result", "reason"), [
    (["*", "M", 4], 6, "6 / 4 is not a whole number"),
    (["*", 4, "M"], 6, "6 / 4 is not a whole number"),
    (["/", 12, "M"], 5, "12 / 5 is not a whole number"),
    (["*", "M", "z"], 0, "M * z = 0 does not give M"),
    (["*", "z", "M"], 5, "z * M = 5 does not give M"),
    (["/", "M", "z"], 5, "M / z = 5 does not give M"),
    (["/", 12, "M"], 0, "12 / M = 0 does not give M"),
    (["+", "M", "N"], 5, "'N' has no value"),
])
def test_an_extent_that_gives_nothing(entry, result, reason):
    """No dimension is rounded or guessed."""
    with pytest.raises(ExpressionError) as caught:
        solve(entry, "M", result, KNOWN)
    assert reason in str(caught.value)


@pytest.mark.parametrize("entry", [["+", "M", "M"], ["//", "M", 2], ["%", "M", 2], ["ceil_div", "M", 2], 3, "N",
                                   ["min", "M", 2], ["round_up", "M", 2], ["+", "N", 1], ["*", 2, ["//", "M", 2]]])
def test_what_cannot_be_solved(entry):
    """A dimension that occurs twice, not at all, or under an operator that loses it."""
    assert not solvable(entry, "M")


def test_an_extent_that_gives_no_dimension(tmp_path):
    """The call is told which extent, what it gives, and what the kernel requires."""
    manifest, _ = sample_pack.build()
    manifest["families"]["scale_rows"]["arguments"][0]["shape"] = ["M", ["*", "K", 2]]
    sample_pack.write(tmp_path, manifest)
    buffers = {"a": np.zeros((96, 63), np.uint8), "scale": np.zeros((3, 4), np.uint8), "offsets": np.zeros(4, np.int32)}
    with pytest.raises(loader.ShapeError, match=r"scale_rows: a dimension 1 \(K \* 2\) cannot be 63: 63 / 2 is not a "
                                                r"whole number \(with .*; it requires K % 32 == 0"):
        loader.plan("scale_rows", **buffers, out=np.zeros((96, 64), np.float32), top=1, packs=str(tmp_path))
