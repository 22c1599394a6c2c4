"""The emulated device against the record of a real Hopper GPU (`h200.npz`; `hopper.record` makes it again)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from packs import CACHE, need_kernels

import emulator
from hopper import emulated, shipped
from hopper.case import Case, row_digest
from hopper.cases import CASES
from hopper.cases import about as description

RECORD = Path(__file__).with_name("h200.npz")
SEEDS = (1, 2)
HOPPER = ("H100", "H200")
EXECUTED = [case for case in CASES if not case.refused]
REFUSED = [case for case in CASES if case.refused]

pytestmark = pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")


@pytest.fixture(scope="session")
def record() -> dict[str, np.ndarray]:
    with np.load(RECORD) as data:
        return dict(data)


@pytest.fixture(scope="session")
def about(record: dict[str, np.ndarray]) -> dict:
    return description(record)


def compare(case: Case, record: dict[str, np.ndarray], seed: int, lazy: bool) -> None:
    assert case.name in record, f"{case.name} is not recorded: run hopper.record on a Hopper GPU"
    lines = emulated.differences(case, emulated.run(case, seed, lazy), record[case.name])
    assert not lines, "the emulated device differs from the GPU:\n" + "\n".join(lines)


def test_the_record_is_of_these_cases(about: dict) -> None:
    """Kernels, arguments and inputs are those that a Hopper GPU ran."""
    stale = [case.name for case in CASES if about["fingerprints"].get(case.name) != case.fingerprint()]
    if about["fingerprints"].get(shipped.PREFIX) != shipped.fingerprint():
        stale.append(shipped.PREFIX)
    assert not stale, f"not recorded as they are: {', '.join(stale)}; run hopper.record on a Hopper GPU again"
    for run in (about, *about["later"]):
        assert any(gpu in run["gpu"] for gpu in HOPPER) and run["driver"] and run["date"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", EXECUTED, ids=lambda case: case.name)
def test_the_emulated_device_answers_as_the_gpu(
    case: Case, seed: int, record: dict[str, np.ndarray], about: dict
) -> None:
    """Every byte under two schedules, late and at once, or the units in the last place that a row allows.

    Where the GPU stopped the kernel, the emulated device stops it too.
    """
    if case.name in about["faulted"]:
        with pytest.raises(emulator.EmulatorFault):
            emulated.run(case, seed, lazy=seed == SEEDS[0])
        return
    compare(case, record, seed, lazy=seed == SEEDS[0])


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_is_not_emulated_is_refused(case: Case, record: dict[str, np.ndarray]) -> None:
    """An instruction that the GPU has and the emulated device has not is an error that names the line."""
    assert record[case.name].any()
    with pytest.raises(emulator.UnsupportedInstruction, match="PTX line"):
        emulated.run(case, SEEDS[0])


@pytest.fixture(scope="session")
def packs() -> list[str] | None:
    """The pack of LOADER_ARTIFACTS, or one that is built here and kept."""
    if os.environ.get("LOADER_ARTIFACTS"):
        return None
    need_kernels(["90a"])
    return [str(CACHE)]


@pytest.mark.parametrize("out_type", ["bf16", "f16", "f32"])
def test_shipped_kernels(out_type: str, packs: list[str] | None, record: dict[str, np.ndarray]) -> None:
    """Each recorded variant of an output type writes the bytes that it wrote on the GPU."""
    names = [name for name in record if name.startswith(shipped.PREFIX) and name.endswith(f"_{out_type}")]
    assert names
    for name in names:
        output = shipped.emulated(out_type, name.removeprefix(shipped.PREFIX), packs)
        assert row_digest(output) == record[name].tobytes(), f"{name} differs from the GPU"


def test_differences_are_seen(record: dict[str, np.ndarray]) -> None:
    """One flipped bit of an output is found and shown with both values; one unit beyond the allowed is too."""
    for case in EXECUTED:
        if case.name not in record:  # the GPU stopped it, or another test says that it is not recorded
            continue
        output = record[case.name].copy()
        if case.digest:
            output[0, 0] ^= 1
            assert emulated.differences(case, emulated.run(case, SEEDS[0]), output)
            continue
        row = case.rows[0]
        bits = emulated.row_bytes(row, output).view(f"u{np.dtype(row.dtype).itemsize}")
        index = 0
        if row.ulps:
            values = np.abs(bits.view(row.dtype))
            index = int(np.flatnonzero((values > 0.25) & (values < 1e5))[0])
            bits[index] += 2 * row.ulps + 1
        else:
            bits[0] ^= 1
        (line,) = emulated.differences(dataclasses.replace(case, rows=(row,)), record[case.name], output)
        assert row.label in line and f"[{index}] 0x" in line
