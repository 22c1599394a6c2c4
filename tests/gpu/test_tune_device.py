"""Tuning on a GPU: what is kept is faster, and what is tuned twice is tuned alike."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest

import loader
from loader import driver, operands, problems, registry, tune, tuned
from loader.__main__ import main
from loader.expression import round_up

ROWS, EXPERTS, LAYERS = [1, 2, 4, 8, 16, 64, 128, 256], [8, 32], [(4096, 1536), (1536, 2048), (2048, 7168)]
CHANGED, SLOWER = 0.02, 1.03  # share of problems whose tile may change, and by what in time


def shapes() -> list[dict]:
    """Problems of kernels with several tiles, by experts and as one matrix."""
    found = []
    for (n, k), rows in itertools.product(LAYERS, ROWS):
        found.append({"kernel": "gemm_fp4", "problem": {"M": rows, "N": n, "K": k, "out": "bf16"}})
        found.append({"kernel": "gemm_fp8", "problem": {"M": rows, "N": n, "K": k, "out": "bf16"}})
        for experts in EXPERTS:
            m = rows * experts
            problem = {"M": m, "N": n, "K": k, "E": experts, "out": "bf16"}
            found.append({"kernel": "grouped_fp8", "problem": problem})
            room = round_up(m, 128) + 128 * experts
            found.append({"kernel": "grouped_fp4", "problem": {**problem, "S": room}})
    return found


@pytest.fixture(scope="module")
def device() -> driver.Device:
    return driver.get().device(0)


@pytest.fixture(scope="module")
def runs(device: driver.Device, tmp_path_factory: pytest.TempPathFactory) -> list[list[tune.Outcome]]:
    """Two runs that know nothing of each other, with operands and routing of their own."""
    path = tmp_path_factory.mktemp("tune") / "shapes.json"
    path.write_text(json.dumps(shapes()))
    found = registry.load(None, None, ())
    missing = {shape["kernel"] for shape in shapes()} - found.families.keys()
    assert not missing, f"the packs lack {', '.join(missing)}"
    return [list(tune.tune(found, problems.read([str(path)], found), device, [], seed)) for seed in (0, 1)]


def kept(outcome: tune.Outcome) -> str:
    return outcome.row.variant if outcome.row else outcome.task.default


def longer(outcome: tune.Outcome, one: str, other: str) -> float:
    """How much longer a variant takes than another one."""
    return statistics.median(outcome.times[one]) / statistics.median(outcome.times[other])


def test_every_problem_is_timed(runs: list[list[tune.Outcome]]) -> None:
    """By all variants that run it, and each takes some time."""
    for outcome in itertools.chain(*runs):
        assert outcome.error is None, f"{outcome.shape}: {outcome.error}"
        assert len(outcome.times) > 1 and min(map(min, outcome.times.values())) > 0.5
    assert len(runs[0]) == len(runs[1]) == len(shapes())


def test_tuning_twice_gives_the_same_tiles(runs: list[list[tune.Outcome]]) -> None:
    """But for a few, or for tiles that are as fast."""
    changed = []
    for one, two in zip(*runs, strict=True):
        ratio = statistics.geometric_mean(longer(run, kept(one), kept(two)) for run in (one, two))
        if max(ratio, 1 / ratio) > SLOWER:
            changed.append((one.shape, kept(one), kept(two), ratio))
    assert len(changed) < CHANGED * len(runs[0]), changed


def test_no_default_gets_worse(runs: list[list[tune.Outcome]]) -> None:
    """What one run keeps is not slower than the packs' choice in the other."""
    worse = []
    for one, other in (*zip(*runs, strict=True), *zip(*reversed(runs), strict=True)):
        ratio = longer(other, kept(one), one.task.default)
        if ratio > SLOWER:
            worse.append((one.shape, kept(one), one.task.default, ratio))
    assert len(worse) < CHANGED * 2 * len(runs[0]), worse


def test_rows_decide_launches(device: driver.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes them, and a second one leaves their tiles as they are, but for those that are as fast."""
    (tmp_path / "shapes.json").write_text(json.dumps(shapes()[:24]))
    out = str(tmp_path / "tuned.json")
    assert main(["tune", str(tmp_path / "shapes.json"), "--out", out]) == 0
    first = {(row.kernel, tuple(row.features.items())): row for row in tuned.read(out)}
    monkeypatch.setenv(tuned.VARIABLE, out)
    loader.reload()
    found = registry.registry()
    for shape in problems.read([str(tmp_path / "shapes.json")], found):
        selection = tune.task_of(found, shape, device).selection
        row = first.get((shape.kernel, tuple(selection.features.items())))
        assert row is None or (selection.chosen.artifact.variant, selection.reason) == (row.variant, "measured")
    assert main(["tune", str(tmp_path / "shapes.json"), "--out", out, "--seed", "1"]) == 0
    again = {(row.kernel, tuple(row.features.items())): row for row in tuned.read(out)}
    assert sum(again[key].variant != row.variant for key, row in first.items() if key in again) <= 1
    loader.reload()


@pytest.mark.parametrize("size", [16, operands.PERIOD + 12])
def test_memory_is_written_and_cleared(device: driver.Device, size: int) -> None:
    """In the order of the stream."""
    with device.scratch(size, 0) as place:
        device.write(place, bytes(range(256)) * (size // 256) + bytes(range(size % 256)), 0)
        assert device.read(place + 4, 8, 0) == bytes(range(4, 12))
        device.clear(place, size, 0)
        assert not any(device.read(place, size, 0))


def test_events_tell_time(device: driver.Device) -> None:
    """More work takes longer, and nothing takes little."""
    size = 1 << 28
    with device.current(), device.scratch(size, 0) as place, device.events(3) as (begin, middle, end):
        device.clear(place, size, 0)
        device.record(begin, 0)
        device.record(middle, 0)
        device.clear(place, size, 0)
        device.record(end, 0)
        nothing, something = device.microseconds(begin, middle), device.microseconds(middle, end)
    assert 0 <= nothing < 20 < something < 10_000
