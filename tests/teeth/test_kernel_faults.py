"""Every fault planted in a kernel ends in a fault of the emulator, a deadlock or a wrong result.

Each is compiled, so a run plants one in six, its seed says which; TESTS_FAULTS=all plants all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import kernel_fault
import kernel_faults
import planting
import pytest

import emulator

TURN = int(os.environ["TESTS_SEED"]) % 6  # which tests/conftest.py sets
PLANTED = kernel_faults.CAUGHT if os.environ.get("TESTS_FAULTS") == "all" else kernel_faults.CAUGHT[TURN::6]

pytestmark = pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")


@pytest.fixture(scope="session")
def passed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Where this run's workers tell each other which kernels pass as they are."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "passed"
    folder.mkdir(exist_ok=True)
    return folder


def assert_passes_without(kernel: planting.Kernel, problem: planting.Problem, passed: Path) -> None:
    """The kernel as it is gives the right result for the problem: what a fault changes is the fault's doing."""
    mark = passed / hashlib.sha256(repr((kernel, problem)).encode()).hexdigest()
    if not mark.exists():
        planting.run(planting.build(kernel), kernel, problem)
        mark.touch()


def caught(fault: kernel_fault.Fault, passed: Path) -> str | None:
    """What caught the fault; None where nothing did."""
    folder = planting.build(fault.kernel, (fault.file, fault.old, fault.new))
    assert_passes_without(fault.kernel, fault.problem, passed)
    try:
        planting.run(folder, fault.kernel, fault.problem)
    except emulator.EmulatorFault as error:
        return f"{type(error).__name__}: {error.message.splitlines()[0]}"
    except AssertionError:
        return "wrong result"
    return None


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.id)
def test_fault_is_caught(fault: kernel_fault.Fault, passed: Path, record_property: Callable) -> None:
    """By a check, a deadlock report or a wrong result, under the default schedules."""
    by = caught(fault, passed)
    record_property("teeth", ("kernel", fault.id, by or ""))
    assert by is not None


@pytest.mark.parametrize("fault", kernel_faults.NOT_CAUGHT, ids=lambda fault: fault.id)
def test_known_gap(fault: kernel_fault.Fault, passed: Path, record_property: Callable) -> None:
    """What nothing notices yet, and why; a fault that something has come to notice belongs to the other list."""
    by = caught(fault, passed)
    record_property("teeth", ("gap", fault.id, f"caught now: {by}" if by else f"not caught: {fault.reason}"))
    if by is None:
        pytest.xfail(fault.reason)


def test_enough_faults() -> None:
    """At least 40, on every generation, and no name twice."""
    assert len(kernel_faults.CAUGHT) >= 40
    names = [fault.id for fault in [*kernel_faults.CAUGHT, *kernel_faults.NOT_CAUGHT]]
    assert len(names) == len(set(names))
    assert {fault.kernel.arch for fault in kernel_faults.CAUGHT} == {"90a", "100a", "120a"}


def test_no_fault_is_out_of_date() -> None:
    """Also of those that this run does not plant, the text that a fault replaces stands exactly once in its file."""
    for fault in [*kernel_faults.CAUGHT, *kernel_faults.NOT_CAUGHT]:
        planting.replaced(planting.ROOT / "templates" / fault.file, fault.old, fault.new)
