"""What every benchmark prints and writes: where it ran, a table, and a JSON file of the same."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def environment(packages: Sequence[str] = ("torch", "triton", "numpy")) -> dict[str, str]:
    """Device, driver, versions and date."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return {"device": name, "driver": driver} | host(packages)


def host(packages: Sequence[str]) -> dict[str, str]:
    """Processor, versions and date."""
    found = {
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Right-aligned columns; numbers with three significant digits, None as a dash."""
    cells = [list(headers), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(source: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same for the README, between the marks of the program that made it."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *[[_cell(value) for value in row] for row in rows]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"<!-- {source}: begin -->\n{table}\n<!-- {source}: end -->"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")


def finish(path: Path | None, benchmark: str, found: dict[str, str], results: dict[str, Any]) -> None:
    """Writes the JSON record, if a path was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"benchmark": benchmark, "environment": found, **results}, indent=1, sort_keys=True)
        path.write_text(text + "\n")
