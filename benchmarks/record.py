"""What every benchmark needs first and writes last: the checkout on the path, a device and kernels; a table and a JSON
file that say where it ran."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks import this module before the loader


# What nvidia-smi calls it -> the key of a record. A clock is that of the moment; idle devices have a low one.
DEVICE = {
    "name": "device", "driver_version": "driver", "clocks.sm": "SM clock", "clocks.max.sm": "highest SM clock",
    "clocks.mem": "memory clock", "clocks.max.mem": "highest memory clock", "power.limit": "power limit",
}  # fmt: skip
SOURCES = ("benchmarks", "emulator", "integrations", "loader")  # kernels are those of the pack


def environment(packages: Sequence[str] = ("torch", "triton", "numpy")) -> dict[str, str]:
    """Device, its driver and clocks, and what ``host`` says."""
    query = ["nvidia-smi", f"--query-gpu={','.join(DEVICE)}", "--format=csv,noheader", "--id=0"]
    values = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return dict(zip(DEVICE.values(), values, strict=True)) | host(packages)


def host(packages: Sequence[str]) -> dict[str, str]:
    """Processor, versions, date, the sources that run and the digests of the packs in use."""
    import loader

    found = {
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "sources": sources(ROOT),
        "packs": ", ".join(pack.digest for pack in loader.packs()),
    }
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def sources(root: Path) -> str:
    """The commit of a checkout; with the sha256 of the Python that runs where that has changes, and this alone where
    git does not know the folder, as of a copy on another machine."""
    files = sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    known = _git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
    if len(known) != 2 or Path(known[0]) != root.resolve():
        return f"no commit, sha256 {digest.hexdigest()}"
    changed = _git(root, "status", "--porcelain", "--", *(f"{folder}/*.py" for folder in SOURCES))
    return f"commit {known[1]}" + (f" and changes, sha256 {digest.hexdigest()}" if changed else "")


def _git(root: Path, *words: str) -> str:
    """What git prints; nothing where there is none, or no checkout."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False).stdout


class Spread:
    """How far the times of a record lie apart: (p90 - p10) / median of each of its cells."""

    def __init__(self) -> None:
        self._cells: list[float] = []

    def median(self, times: Sequence[float]) -> float:
        """Of one cell, whose spread is noted; a single time has none."""
        median = statistics.median(times)
        if len(times) > 1:
            deciles = statistics.quantiles(times, n=10, method="inclusive")
            self._cells.append((deciles[-1] - deciles[0]) / median)
        return median

    def facts(self) -> dict[str, float]:
        """For the record: the median of all cells and the worst one."""
        if not self._cells:
            return {}
        return {"cells": len(self._cells), "median spread": statistics.median(self._cells),
                "worst spread": max(self._cells)}


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


def parse(parser: argparse.ArgumentParser, kernels: Sequence[str], on_device: bool = True) -> argparse.Namespace:
    """The arguments, ``--json`` among them. Ends the program where the device or a pack of ``kernels`` is missing."""
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")
    arguments = parser.parse_args()
    if on_device:
        _need_device()
    _need_kernels(kernels)
    return arguments


def _need_device() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this benchmark measures one")


def _need_kernels(names: Sequence[str]) -> None:
    import loader
    from loader.registry import registry

    try:
        found = registry()
    except loader.PackNotFoundError as error:
        raise SystemExit(f"{error}\nbuild one: python build.py --arch 90a (or the arch of the device)") from None
    missing = [name for name in names if name not in {*found.families, *found.composites}]
    if "nop9" in missing:
        data = "tests/build/data"
        raise SystemExit("no pack has nop9; build it and name both packs:\n"
                         f"  python build.py --matrix {data}/kernels.yaml --templates {data}/templates --kernel nop9 "
                         "--out build/nop9\n  export LOADER_ARTIFACTS=artifacts:build/nop9")
    if missing:
        raise SystemExit(f"no pack has {', '.join(missing)}; build all kernels: python build.py --arch 90a "
                         "(or the arch of the device)")


def finish(path: Path | None, benchmark: str, found: dict[str, str], timing: dict[str, Any],
           results: dict[str, Any]) -> None:  # fmt: skip
    """Writes the JSON record, if a path was asked for. ``timing``: how times were taken, and their ``Spread``."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"benchmark": benchmark, "environment": found, "timing": timing, **results}, indent=1,
                          sort_keys=True)  # fmt: skip
        path.write_text(text + "\n")
