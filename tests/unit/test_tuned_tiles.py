"""What benchmarks/tune.py times, and what it is compared with before."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import problem  # noqa: E402
import swiglu_problem  # noqa: E402
import tune  # noqa: E402

from generator.schema import Recording  # noqa: E402

COUNTS, N, K = (3, 0, 2), 256, 128
pytestmark = pytest.mark.skipif(problem.DEVICE != "cpu", reason="problems would be on the device")


@pytest.mark.parametrize("types", [[{}], tune.HALVES])
def test_every_type_is_timed_with_equal_rows_and_one_draw_at_least(types):
    """Of one type both draws; rows are as many in all."""
    cells = tune.cells(16, 8, types)
    assert [(cell.routing, cell.axes) for cell in cells] == [
        ("routed", types[0]), ("routed", types[-1]), *[("equal", axes) for axes in types]]  # fmt: skip
    assert {sum(cell.counts) for cell in cells} == {128} and cells[0].counts != cells[1].counts


@pytest.mark.parametrize("rows", tune.ROWS)
def test_tiles_around_the_mean_rows_are_timed(rows):
    """The one that just holds them, the next ones, and never one whose rows are mostly absent."""
    timed = [m for m in (8, 16, 32, 64, 128, 256) if tune.may_win(m, rows)]
    assert min(max(rows, 8), 256) in timed and len(timed) >= 2
    assert all(rows / 8 <= m <= 16 * rows for m in timed)


def test_a_choice_is_compared_with_the_best_of_each_cell():
    """The mean chooses, among equals the first name."""
    assert tune.regrets({"b": 2.0, "a": 2.0}, [{"a": 3.0, "b": 2.0}, {"a": 1.0, "b": 2.0}]) == [1.5, 1.0]


def test_a_record_is_what_the_matrix_reads(monkeypatch):
    """Means of all cells, of the tiles that may win, and how far behind the best of each cell the chosen one is."""
    times = {("m8", "routed", "bf16"): 4.0, ("m8", "routed", "f16"): 6.0, ("m8", "equal", "bf16"): 2.0,
             ("m8", "equal", "f16"): 2.0}  # fmt: skip
    artifacts = {element: {f"m{m}": SimpleNamespace(arch="90a", axes={"block_m": m, "element": element})
                           for m in (8, 16, 256)} for element in tune.DTYPES}  # fmt: skip

    def time(timer: None, counts: list[int], artifact: SimpleNamespace) -> float:
        routing = "equal" if len(set(counts)) == 1 else "routed"
        return times.get((f"m{artifact.axes['block_m']}", routing, artifact.axes["element"]), 3.0)

    monkeypatch.setattr(tune, "runnable", lambda name, capability, element: artifacts[element])
    monkeypatch.setattr(tune, "make_problem", lambda counts, n, k: counts)
    monkeypatch.setitem(tune.FAMILIES, "f", tune.Family([], tune.HALVES, time))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H")
    row, cells = tune.measure(None, "f", 4, 128, 256, 8)
    assert row["microseconds"] == {"m8": 3.5, "m16": 3.0}  # 256 rows of which 4 are there were not timed
    assert [cell["regret"] for cell in cells] == [1, 1, 1.5, 1.5]
    written = json.dumps({"family": "f", "rows": [row], "cells": cells})
    assert Recording.model_validate_json(written).rows[0].features == {"rows_per_expert": 4, "N": 128, "K": 256, "E": 8}


def test_gates_and_ups_are_64_rows_each_in_turn(rng):
    """Of the bytes that a kernel reads, element by element."""
    given = problem.make_problem(COUNTS, N, K)
    half = swiglu_problem.HalfSwigluProblem(given, torch.float16)
    assert half.arguments["a"].dtype == half.arguments["out"].dtype == torch.float16
    (rows, sums), _ = given.reference
    activated = swiglu_problem.activated(sums)
    weights = given.weights()[0].double()
    for _ in range(20):
        m, column = int(rng.integers(COUNTS[0])), int(rng.integers(N // 2))
        gate_row = column // 64 * 128 + column % 64
        gate, up = (float(given.activations()[m].double() @ weights[gate_row + i]) / 64 for i in (0, 64))
        expected = gate / (1 + np.exp(-gate)) * up
        assert float(activated[rows][m, column]) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    exact = torch.zeros(sum(COUNTS), N // 2, dtype=torch.float64)
    for of_rows, of_sums in given.reference:
        exact[of_rows] = swiglu_problem.activated(of_sums)
    assert half.error(exact) == 0
    exact[0, 5] = torch.nan
    assert not half.error(exact) <= swiglu_problem.MAX_ERROR_OF_16_BITS
