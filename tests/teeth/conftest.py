"""Prints, at the end of a run, how many planted faults were noticed, and which are known not to be."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for outcome in ("passed", "failed", "xfailed") for r in terminalreporter.stats.get(outcome, [])]
    found = [value for report in reports for name, value in report.user_properties if name == "teeth"]

    def count(kind: str) -> str:
        noticed = [text for of, _, text in found if of == kind]
        return f"{sum(map(bool, noticed))} of {len(noticed)} {kind} faults"

    if found:
        terminalreporter.write_line(f"teeth: {count('semantic')} noticed, {count('kernel')} caught")
    for kind, fault, outcome in found:
        if kind == "gap":
            terminalreporter.write_line(f"teeth: {fault} {outcome}")
