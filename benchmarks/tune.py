"""Times every tile on this device for ``select.measured``: ``python benchmarks/tune.py --yaml rows.yaml``.

The rows are what kernels.yaml takes under ``families.grouped_fp4.select.measured``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import record
import torch
from grouped_fp4 import time_plan
from problem import make_problem, routed_counts
from timing import Timer
from variants import runnable

LAYERS = [(6144, 7168), (7168, 3072), (4096, 1536), (1536, 2048), (128, 7168)]  # N, K
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024]  # of each expert on average; real routing is uneven
EXPERTS = [8, 32, 128]
MAX_ROWS = 32768  # of all experts together
REPLAYS = 15


def measure(timer: Timer, rows: int, n: int, k: int, experts: int) -> dict:
    """One row of ``select.measured``."""
    problem = make_problem(routed_counts(rows, experts), n, k)
    tiles = runnable("grouped_fp4", torch.cuda.get_device_capability(), out="bf16")
    times = {tile: round(time_plan(timer, problem, a.variant, REPLAYS), 1) for tile, a in tiles.items()}
    return {
        "arch": next(iter(tiles.values())).arch,
        "device": torch.cuda.get_device_name(),
        "features": {"rows_per_expert": rows, "N": n, "K": k, "E": experts},
        "microseconds": times,
    }


def to_yaml(row: dict) -> str:
    """One line, keys in the order of kernels.yaml."""
    features, times = (
        "{" + ", ".join(f"{key}: {value}" for key, value in row[part].items()) + "}"
        for part in ("features", "microseconds")
    )
    return f"- {{arch: {row['arch']}, device: {row['device']}, features: {features}, microseconds: {times}}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--yaml", type=Path, help="write the rows to this file")
    record.add_json_argument(parser)
    arguments = parser.parse_args()
    found, timer = record.environment(), Timer()
    print(found)
    rows = []
    for n, k in LAYERS:
        for experts in EXPERTS:
            for m in ROWS:
                if m * experts <= MAX_ROWS:
                    rows.append(measure(timer, m, n, k, experts))
                    print(to_yaml(rows[-1]), flush=True)
    tiles = list(rows[0]["microseconds"])
    table = [[*row["features"].values(), *[row["microseconds"][tile] for tile in tiles]] for row in rows]
    print(record.table("microseconds", ["m", "N", "K", "E", *tiles], table))
    if arguments.yaml:
        arguments.yaml.write_text("\n".join(map(to_yaml, rows)) + "\n")
    record.finish(arguments.json, "tune", found, {"rows": rows})


if __name__ == "__main__":
    main()
