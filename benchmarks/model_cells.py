"""Recorded times of NVFP4 grouped GEMMs on Hopper as launches that the performance model predicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from chips import FIT_ROWS
from model_terms import Problem
from moe_problem import SIZES
from problem import routed_counts

RESULTS = Path(__file__).resolve().parent / "results"
MOST_SEEDS = 10_000


class Cell(NamedTuple):
    """A time that was recorded, of one launch or the mean of several ``problems``; ``what`` names the problem."""

    record: str
    chip: str
    family: str
    variant: str
    what: str
    problems: tuple[Problem, ...]
    microseconds: float

    @property
    def fitted(self) -> bool:
        """Whether constants of the model were chosen with it in view."""
        return self.what in FIT_ROWS.get(self.record, ())


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def of_equal_counts(name: str = "grouped_fp4-h200") -> Iterator[Cell]:
    """Every tile of grouped_fp4, as many rows for each expert."""
    for row in read(name)["rows"]:
        experts, m, n, k = (row[key] for key in ("experts", "m", "N", "K"))
        for tile, time in row["tiles"].items():
            problems = (Problem((m,) * experts, n, k),)
            yield Cell(name, "H200", "grouped_fp4", f"{tile}_bf16", f"{experts} x {m}, {n} x {k}", problems, time)


def of_mixed_counts(name: str) -> Iterator[Cell]:
    """Every tile; a time is the mean of two draws of random routing and of equal counts."""
    record = read(name)
    suffix = "_bf16" if record["family"] == "grouped_fp4" else ""
    for row in record["rows"]:
        m, n, k, experts = (row["features"][key] for key in ("rows_per_expert", "N", "K", "E"))
        routings = routed_counts(m, experts, 0), routed_counts(m, experts, 1), [m] * experts
        problems = tuple(Problem(tuple(counts), n, k) for counts in routings)
        for tile, time in row["microseconds"].items():
            yield Cell(name, "H100", record["family"], f"{tile}{suffix}", f"{experts} x {m}, {n} x {k}", problems, time)


def routed(tokens: int, experts: int, top_k: int, active: int) -> tuple[int, ...]:
    """Rows of each expert where every token picks distinct ones, equally popular. The draw that was timed is not
    recorded: this is the first one that leaves as many experts with rows. ``ValueError`` where none does."""
    for seed in range(MOST_SEEDS):
        generator = torch.Generator().manual_seed(seed)
        picks = torch.rand(tokens, experts, generator=generator).topk(top_k, dim=1).indices
        counts = torch.bincount(picks.flatten(), minlength=experts)
        if int(counts.count_nonzero()) == active:
            return tuple(counts.tolist())
    raise ValueError(f"no draw of {tokens} tokens leaves {active} of {experts} experts with rows")


def of_layers(name: str = "moe-h200") -> Iterator[Cell]:
    """Both GEMMs of moe_fp4, each timed alone."""
    for row in read(name)["rows"]:
        if row["kernel"] != "moe_fp4":
            continue
        size = SIZES[row["layer"]]
        counts = routed(row["tokens"], size.experts, size.top_k, row["active experts"])
        problems = {"L1": Problem(counts, 2 * size.between, size.hidden),
                    "L2": Problem(counts, size.hidden, size.between)}  # fmt: skip
        for (step, problem), kernel in zip(problems.items(), row["kernels"][2:4], strict=True):
            family, variant = kernel.split("/")
            what = f"{row['layer']} {step}, {row['tokens']} tokens"
            yield Cell(name, "H200", family, variant, what, (problem,), row["steps"][step])


def everything() -> list[Cell]:
    """All recorded cells."""
    tuned = (cell for name in ("tune-h100", "tune_swiglu-h100") for cell in of_mixed_counts(name))
    return [*of_equal_counts(), *of_layers(), *tuned]


def fastest(cells: Sequence[Cell]) -> list[Cell]:
    """Of each problem the variant that was fastest, which is the one to launch."""
    best: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        known = best.setdefault((cell.record, cell.what), cell)
        if cell.microseconds < known.microseconds:
            best[cell.record, cell.what] = cell
    return list(best.values())
