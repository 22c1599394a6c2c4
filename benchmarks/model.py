"""Microseconds that the performance model predicts, beside recorded and published ones.

    python benchmarks/model.py --json benchmarks/results/model.json --document docs/model.md
    python benchmarks/model.py --launch grouped_fp4/m16n256k256_bf16 --chip H200 --rows 4 --experts 32 --n 6144 --k 7168

No device is needed: a prediction comes from the SASS and the manifest of a variant in a pack (LOADER_ARTIFACTS or
artifacts/), which nvdisasm reads, and from the constants in chips.py, a few of which were fitted to the rows named
there. Those rows are not among what is compared. docs/model.md tells the terms.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import chips
import kernel_facts
import model_cells
import published
import record
from chips import RATES, Rates
from kernel_facts import Facts
from model_cells import Cell
from model_terms import Prediction, Problem, memory_bytes, predict

from loader.registry import registry

FAR = 0.25  # relative error that no cell should have
KERNELS = ("grouped_fp4", "grouped_fp4_swiglu")
MEASURED = ("H100", "H200")
CELLS = ("record", "chip", "kernel", "problem", "measured", "predicted", "error", "bound")
PUBLISHED = ("who", "chip", "tile", "problem", "published", "predicted", "error", "bound")
FORECAST = ("chip", "problem", "tile", "predicted", "TFLOP/s", "TB/s", "bound")
FORECAST_ROWS, EXPERTS, N, K = (1, 4, 16, 64, 256, 1024), 32, 6144, 7168  # as benchmarks/grouped_fp4.py measures
CONSTANTS = ("constant", "chips", "value", "source")
SUMMARY = ("cells", "number", "median error", "worst error", f"over {FAR:.0%}")


TITLES = {
    "constants": "constants",
    "forecasts": "predicted for chips that were not at hand, microseconds",
    "published": "published, microseconds",
    "rows": "the fastest tile of each problem that was recorded, microseconds",
    "summary": "absolute errors",
}


@cache
def facts(family: str, variant: str, arch: str) -> Facts:
    """Of a variant in the packs in use; errors as of ``kernel_facts.find`` and ``read``."""
    return kernel_facts.read(*kernel_facts.find(registry(), family, arch, variant))


def time_of(cell: Cell, chip: chips.Chip, rates: Rates = RATES) -> tuple[float, str]:
    """Microseconds of a cell, a mean where it has several problems, and what the first of them is bound by."""
    of_variant = facts(cell.family, cell.variant, chip.arch)
    found = [predict(chip, of_variant, problem, rates) for problem in cell.problems]
    return statistics.fmean(one.microseconds for one in found), found[0].bound


def compared(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Rows of what was measured, with predictions."""
    rows = []
    for cell in cells:
        time, bound = time_of(cell, chips.chip(cell.chip))
        values = (cell.record, cell.chip, f"{cell.family}/{cell.variant}", cell.what, cell.microseconds, time,
                  time / cell.microseconds - 1, bound)  # fmt: skip
        rows.append(dict(zip(CELLS, values, strict=True)))
    return rows


def beside_published() -> list[dict[str, Any]]:
    """Rows of what others published, with predictions."""
    rows = []
    for row in published.everything():
        found = predict(row.chip, row.facts, row.problem)
        values = (row.who, row.chip_name, row.facts.name, row.what, row.microseconds, found.microseconds,
                  found.microseconds / row.microseconds - 1, found.bound)  # fmt: skip
        rows.append(dict(zip(PUBLISHED, values, strict=True)))
    return rows


def forecasts() -> list[dict[str, Any]]:
    """Of chips on which nothing here was timed: grouped_fp4 of equal counts, by the tile that is predicted to be the
    fastest."""
    rows = []
    for name, chip in chips.CHIPS.items():
        variants = [one.artifact.variant for one in registry().candidates("grouped_fp4")
                    if one.artifact.arch == chip.arch and one.artifact.axes["out"] == "bf16"]  # fmt: skip
        if name in MEASURED or not variants:
            continue
        for m in FORECAST_ROWS:
            problem = Problem((m,) * EXPERTS, N, K)
            found = {variant: predict(chip, facts("grouped_fp4", variant, chip.arch), problem) for variant in variants}
            tile = min(found, key=lambda variant: found[variant].microseconds)
            time, moved = found[tile].microseconds, memory_bytes(problem, facts("grouped_fp4", tile, chip.arch))
            values = (name, f"{EXPERTS} x {m}, {N} x {K}", tile, time, 2 * m * EXPERTS * N * K / time / 1e6,
                      moved / time / 1e6, found[tile].bound)  # fmt: skip
            rows.append(dict(zip(FORECAST, values, strict=True)))
    return rows


def summary(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst of the absolute errors of rows, and how many are over ``FAR``."""
    errors = [abs(row["error"]) for row in rows]
    values = name, len(errors), statistics.median(errors), max(errors), sum(error > FAR for error in errors)
    return dict(zip(SUMMARY, values, strict=True))


def summaries(rows: Sequence[dict[str, Any]], all_tiles: Sequence[dict[str, Any]],
              others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:  # fmt: skip
    """Of the fastest tile of each problem, by record and, last, of all; of all tiles; of what was published."""
    found = [summary(f"{name}, fastest tiles", [row for row in rows if row["record"] == name])
             for name in dict.fromkeys(row["record"] for row in rows)]  # fmt: skip
    found.append(summary("all tiles of all records", all_tiles))
    found += [summary(who, [row for row in others if row["who"] == who])
              for who in dict.fromkeys(row["who"] for row in others)]  # fmt: skip
    return [*found, summary("fastest tiles of all records", rows)]


def percent(row: dict[str, Any], columns: Sequence[str]) -> list[Any]:
    """Values of a row, errors in percent."""
    return [f"{row[name]:.1%}" if "error" in name else row[name] for name in columns]


def constants() -> list[dict[str, Any]]:
    """Every constant once, with the chips that have it."""
    found: dict[tuple[str, chips.Constant], list[str]] = {}
    for name, chip in chips.CHIPS.items():
        for what, constant in chip._asdict().items():
            if isinstance(constant, chips.Constant):
                found.setdefault((what, constant), []).append(name)
    found |= {(what, constant): ["all"] for what, constant in RATES._asdict().items()}
    return [dict(zip(CONSTANTS, (what.replace("_", " "), ", ".join(names), f"{constant.value:g} {constant.unit}",
                                 constant.source), strict=True))
            for (what, constant), names in found.items()]  # fmt: skip


def tables(results: dict[str, Any]) -> list[tuple[str, Sequence[str], list[dict[str, Any]]]]:
    """Key, columns and rows of what is shown, the summary last."""
    columns = {"constants": CONSTANTS, "forecasts": FORECAST, "published": PUBLISHED, "rows": CELLS, "summary": SUMMARY}
    return [(key, of, results[key]) for key, of in columns.items()]


def markdown(results: dict[str, Any]) -> dict[str, str]:
    """What docs/model.md shows of a record, by key."""
    return {key: record.markdown(f"benchmarks/model.py, {key}", columns, [percent(row, columns) for row in rows])
            for key, columns, rows in tables(results) if key != "rows"}  # fmt: skip


def renew(text: str, results: dict[str, Any]) -> str:
    """A document with the tables of a record between its marks. ``ValueError`` where it has no place for one."""
    for table in markdown(results).values():
        begin, end = table.splitlines()[0], table.splitlines()[-1]
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"expected {begin} and {end} behind it")
        text = f"{before}{table}{after}"
    return text


def told(found: Prediction) -> str:
    """A prediction in words."""
    lines = [f"predicted {found.microseconds:.1f} us; the longest counts, and what a launch takes beside it:"]
    lines += [f"  {name}: {time:.1f} us" for name, time in found.terms.items()]
    lines += [f"  a stage of a whole tile, {name}: {clocks:.0f} clocks" for name, clocks in found.stage.items()]
    return "\n".join(lines)


def launch(arguments: argparse.Namespace) -> str:
    """A prediction for one launch, as asked for."""
    family, _, variant = arguments.launch.partition("/")
    try:
        chip = chips.chip(arguments.chip)
        problem = Problem((arguments.rows,) * arguments.experts, arguments.n, arguments.k)
        return told(predict(chip, facts(family, variant, chip.arch), problem))
    except (chips.UnknownChipError, kernel_facts.UnknownVariantError) as error:
        raise SystemExit(str(error)) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launch", metavar="FAMILY/VARIANT", help="predict this alone")
    parser.add_argument("--document", type=Path, help="put the tables between the marks of this file")
    parser.add_argument("--chip", default="H200", help=f"one of {', '.join(chips.CHIPS)}")
    parser.add_argument("--experts", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1, help="of each expert")
    parser.add_argument("--n", type=int, default=6144)
    parser.add_argument("--k", type=int, default=7168)
    arguments = record.parse(parser, KERNELS, on_device=False)
    if arguments.launch:
        print(launch(arguments))
        return
    cells = [cell for cell in model_cells.everything() if not cell.fitted]
    rows, all_tiles, others = compared(model_cells.fastest(cells)), compared(cells), beside_published()
    results = {"constants": constants(), "rows": rows, "published": others, "forecasts": forecasts(),
               "summary": summaries(rows, all_tiles, others),
               "far": [row for row in all_tiles if abs(row["error"]) > FAR]}  # fmt: skip
    for key, columns, shown in tables(results):
        print(record.table(TITLES[key], columns, [percent(row, columns) for row in shown]))
    found = record.host(["numpy", "torch"]) | {"device": "none: times that were recorded or published before"}
    if arguments.document:
        arguments.document.write_text(renew(arguments.document.read_text(), results))
    record.finish(arguments.json, "model", found, {"predicted": "no launch was timed"}, results)


if __name__ == "__main__":
    main()
