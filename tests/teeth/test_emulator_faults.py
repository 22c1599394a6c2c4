"""Every fault planted in the emulator's semantics is noticed by a test that passes without it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import emulator_faults
import planting
import pytest
from emulator_faults import Check

pytestmark = pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")


def perform(check: Check) -> None:
    """Runs a check with the emulator that `import emulator` gives now."""
    if check.kernel is not None:
        planting.run(planting.build(check.kernel), check.kernel, check.problem)
        return
    module = planting.load_tests(check.file)
    function = getattr(module, check.function)
    function(**{name: _argument(module, name, check.arguments) for name in inspect.signature(function).parameters})


def _argument(module: Any, name: str, given: dict[str, Any]) -> Any:
    """A given argument, else what the fixture of that name returns."""
    return given[name] if name in given else inspect.unwrap(getattr(module, name))()


passed: set[tuple] = set()  # checks seen to pass without a fault


def noticed(fault: emulator_faults.Fault) -> bool:
    """Whether the fault's check fails; an error that is no verdict of a test or of the emulator is raised."""
    if fault.test.key not in passed:
        perform(fault.test)  # without the fault
        passed.add(fault.test.key)
    with planting.planted_emulator(fault.file, fault.old, fault.new):
        import emulator
        from emulator.checks.faults import IllegalInstruction

        try:
            perform(fault.test)
        except (AssertionError, emulator.EmulatorError, IllegalInstruction):
            return True
    return False


@pytest.mark.parametrize("fault", emulator_faults.FAULTS, ids=lambda fault: fault.id)
def test_fault_is_noticed(fault: emulator_faults.Fault, record_property: Callable) -> None:
    """The test passes on the emulator as it is, and fails on the one with the fault."""
    seen = noticed(fault)
    record_property("teeth", ("semantic", fault.id, "noticed" if seen else ""))
    assert seen


def test_enough_faults() -> None:
    """At least 40, and no name twice."""
    names = [fault.id for fault in emulator_faults.FAULTS]
    assert len(names) == len(set(names)) >= 40
