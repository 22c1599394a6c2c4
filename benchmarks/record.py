"""What every benchmark needs first and writes last: the checkout on the path, a device and kernels; a table and a JSON
file that say where it ran."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks import this module before the loader


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


def finish(path: Path | None, benchmark: str, found: dict[str, str], results: dict[str, Any]) -> None:
    """Writes the JSON record, if a path was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"benchmark": benchmark, "environment": found, **results}, indent=1, sort_keys=True)
        path.write_text(text + "\n")
