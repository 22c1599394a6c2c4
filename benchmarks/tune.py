"""Times every tile on this device for ``select.measured``:

    python benchmarks/tune.py --family grouped_fp4_swiglu --json benchmarks/results/tune_swiglu-h100.json

The file is what ``families.<family>.select.measured`` of kernels.yaml names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import grouped_fp4
import record
import swiglu_problem
import torch
from problem import make_problem, routed_counts
from timing import Timer
from variants import runnable


class Family(NamedTuple):
    """What is timed, on which problems."""

    layers: list[tuple[int, int]]  # N, K
    axes: dict[str, str]  # of the variants: the tiles of one output type
    time: Callable[..., float]  # (timer, problem, variant, replays) -> microseconds


LAYERS = [(6144, 7168), (7168, 3072), (4096, 1536), (1536, 2048), (128, 7168)]
FAMILIES = {
    "grouped_fp4": Family(LAYERS, {"out": "bf16"}, grouped_fp4.time_plan),
    "grouped_bf16_nvfp4": Family(LAYERS, {"element": "bf16"}, grouped_fp4.time_bf16),
    "grouped_fp4_swiglu": Family(
        [(6144, 7168), (4096, 7168), (3072, 4096), (1536, 2048), (128, 7168)], {}, swiglu_problem.time_plan
    ),
}
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024]  # of each expert on average
EXPERTS = [8, 32, 128]
MAX_ROWS = 32768  # of all experts together
REPLAYS = 10


def measure(timer: Timer, family: str, rows: int, n: int, k: int, experts: int) -> dict:
    """One row of ``select.measured``: what a tile takes on average, with rows that are routed at random, twice since
    real routing is uneven and one draw may suit a tile, and with as many for each expert."""
    tiles = runnable(family, torch.cuda.get_device_capability(), **FAMILIES[family].axes)
    times = dict.fromkeys(tiles, 0.0)
    routings = [routed_counts(rows, experts, seed=0), routed_counts(rows, experts, seed=1), [rows] * experts]
    for counts in routings:
        problem = make_problem(counts, n, k)
        for tile, artifact in tiles.items():
            times[tile] += FAMILIES[family].time(timer, problem, artifact.variant, REPLAYS) / len(routings)
    return {
        "arch": next(iter(tiles.values())).arch,
        "device": torch.cuda.get_device_name(),
        "features": {"rows_per_expert": rows, "N": n, "K": k, "E": experts},
        "microseconds": {tile: round(time, 1) for tile, time in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="grouped_fp4")
    arguments = record.parse(parser, list(FAMILIES))
    found, timer = record.environment(), Timer()
    print(found)
    rows = []
    for n, k in FAMILIES[arguments.family].layers:
        for experts in EXPERTS:
            for m in ROWS:
                if m * experts <= MAX_ROWS:
                    rows.append(measure(timer, arguments.family, m, n, k, experts))
                    print(rows[-1], flush=True)
    tiles = list(rows[0]["microseconds"])
    table = [[*row["features"].values(), *[row["microseconds"][tile] for tile in tiles]] for row in rows]
    print(record.table("microseconds", ["m", "N", "K", "E", *tiles], table))
    record.finish(arguments.json, "tune", found, timer.facts(), {"family": arguments.family, "rows": rows})


if __name__ == "__main__":
    main()
