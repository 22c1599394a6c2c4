"""Times tiles on this device for ``select.measured``:

    python benchmarks/tune.py --family grouped_fp4_swiglu --json benchmarks/results/tune_swiglu-h100.json

The file is what ``families.<family>.select.measured`` of kernels.yaml names. Beside the means that decide there, it has
the times of each routing and type, and how far behind the best tile of these the chosen one is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grouped_fp4
import record
import swiglu_problem
import torch
from problem import Problem, make_problem, routed_counts
from timing import Timer
from variants import runnable

from loader.manifest import Artifact

REPLAYS = 10
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


class Family(NamedTuple):
    """What is timed, on which problems."""

    layers: list[tuple[int, int]]  # N, K
    types: list[dict[str, str]]  # axes of the variants of a type: a row decides for all of them
    time: Callable[[Timer, Problem, Artifact], float]  # microseconds


def of_fp4(time: Callable[..., float]) -> Callable[[Timer, Problem, Artifact], float]:
    return lambda timer, problem, artifact: time(timer, problem, artifact.variant, REPLAYS)


def of_16_bits(time: Callable[..., float]) -> Callable[[Timer, Problem, Artifact], float]:
    return lambda timer, problem, artifact: time(
        timer, problem, artifact.variant, REPLAYS, DTYPES[artifact.axes["element"]]
    )


LAYERS = [(6144, 7168), (7168, 3072), (4096, 1536), (1536, 2048), (128, 7168)]
FIRST_LAYERS = [(6144, 7168), (4096, 7168), (3072, 4096), (1536, 2048), (128, 7168)]
HALVES = [{"element": "bf16"}, {"element": "f16"}]
FAMILIES = {
    "grouped_fp4": Family(LAYERS, [{"out": "bf16"}], of_fp4(grouped_fp4.time_plan)),
    "grouped_fp4_swiglu": Family(FIRST_LAYERS, [{}], of_fp4(swiglu_problem.time_plan)),
    "grouped_bf16_nvfp4": Family(LAYERS, HALVES, of_16_bits(grouped_fp4.time_16_bits)),
    "grouped_bf16_nvfp4_swiglu": Family(FIRST_LAYERS, HALVES, of_16_bits(swiglu_problem.time_16_bits)),
}
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024]  # of each expert on average
EXPERTS = [8, 32, 128]
MAX_ROWS = 32768  # of all experts together
# A tile is timed where it may win: rows of each expert over its own, at least and at most.
LEAST_FILLED, MOST_TILES = 1 / 16, 8


class Cell(NamedTuple):
    """Some of what a row is the mean of: rows of each expert, and the variants of one type."""

    routing: str
    counts: list[int]
    axes: dict[str, str]


def cells(rows: int, experts: int, types: Sequence[dict[str, str]]) -> list[Cell]:
    """Rows that are routed at random, twice since real routing is uneven and one draw may suit a tile, each draw in one
    of the types, and as many for each expert in all types."""
    routed = [Cell("routed", routed_counts(rows, experts, seed), types[seed % len(types)]) for seed in range(2)]
    return [*routed, *[Cell("equal", [rows] * experts, axes) for axes in types]]


def may_win(block_m: int, rows: int) -> bool:
    """Whether a tile of so many rows is timed where experts have ``rows`` on average. Of any two neighbouring powers of
    two from 8 to 128 one is, for all rows up to 1024."""
    return block_m * LEAST_FILLED <= rows <= block_m * MOST_TILES


def regrets(microseconds: dict[str, float], of_cells: Sequence[dict[str, float]]) -> list[float]:
    """Of each cell, the time of the tile that the mean chooses over that of its best one."""
    chosen = min(sorted(microseconds), key=microseconds.__getitem__)  # as the loader does
    return [times[chosen] / min(times.values()) for times in of_cells]


def measure(timer: Timer, name: str, rows: int, n: int, k: int, experts: int) -> tuple[dict, list[dict]]:
    """A row of ``select.measured``, and the cells that it is the mean of."""
    family, capability = FAMILIES[name], torch.cuda.get_device_capability()
    features = {"rows_per_expert": rows, "N": n, "K": k, "E": experts}
    found: list[dict[str, Any]] = []
    for routing, counts, axes in cells(rows, experts, family.types):
        tiles = {tile: artifact for tile, artifact in runnable(name, capability, **axes).items()
                 if may_win(artifact.axes["block_m"], rows)}  # fmt: skip
        problem = make_problem(counts, n, k)
        times = {tile: family.time(timer, problem, artifact) for tile, artifact in tiles.items()}
        found.append({"features": features, "routing": routing, **axes, "microseconds": times})
        arch = next(iter(tiles.values())).arch
    of_cells = [cell["microseconds"] for cell in found]
    means = {tile: round(sum(times[tile] for times in of_cells) / len(of_cells), 1) for tile in of_cells[0]}
    for cell, regret in zip(found, regrets(means, of_cells), strict=True):
        cell["regret"] = round(regret, 4)
    device = torch.cuda.get_device_name()
    return {"arch": arch, "device": device, "features": features, "microseconds": means}, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="grouped_fp4")
    parser.add_argument("--layers", type=int, help="only the first ones")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of each expert on average")
    arguments = record.parse(parser, list(FAMILIES))
    name, found, timer = arguments.family, record.environment(), Timer()
    print(found)
    results: dict[str, Any] = {"family": name, "rows": [], "cells": []}
    for n, k in FAMILIES[name].layers[: arguments.layers]:
        for experts in EXPERTS:
            for m in (m for m in arguments.rows if m * experts <= MAX_ROWS):
                row, of_row = measure(timer, name, m, n, k, experts)
                print(row, [cell["regret"] for cell in of_row], flush=True)
                results["rows"].append(row)
                results["cells"] += of_row
        record.finish(arguments.json, "tune", found, timer.facts(), results)  # what there is, if this is ended
    tiles = list(dict.fromkeys(tile for row in results["rows"] for tile in row["microseconds"]))
    table = [[*row["features"].values(), *map(row["microseconds"].get, tiles)] for row in results["rows"]]
    print(record.table("microseconds", ["m", "N", "K", "E", *tiles], table))
    worst = sorted(results["cells"], key=lambda cell: -cell["regret"])[:10]
    print(*[f"{cell['regret']:.3f} of the best tile's time: {cell}" for cell in worst], sep="\n")


if __name__ == "__main__":
    main()
