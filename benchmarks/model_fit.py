"""Fits the few constants of the performance model that are fitted: ``python benchmarks/model_fit.py``.

Each in turn takes the value that makes the mean error of the rows in chips.FIT_ROWS smallest, until none changes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping

import chips
import model
import model_cells
import record

VALUES = {
    "hand_over": range(0, 401, 25),
    "token_issue": (0, 0.25, 0.5, 0.75, 1),
    "lone_warp": (2, 2.5, 3, 3.3, 3.6, 4, 4.5),
    "between_tiles": (0, 0.5, 1, 1.5, 2, 2.5, 3),
    "start": range(5, 17),
}


def descend(error: Callable[[Mapping[str, float]], float]) -> dict[str, float]:
    """The values at which changing one of them makes no smaller error."""
    found = {name: values[len(values) // 2] for name, values in VALUES.items()}
    before = None
    while found != before:
        before = dict(found)
        for name, values in VALUES.items():
            found[name] = min(values, key=lambda value, name=name: error(found | {name: value}))
    return found


def mean_error(cells: list[model_cells.Cell], values: Mapping[str, float]) -> float:
    """Mean of absolute relative errors of cells, with these values of what is fitted."""
    of_rates = {name: getattr(chips.RATES, name)._replace(value=values[name]) for name in values if name != "start"}
    rates = chips.RATES._replace(**of_rates)

    def one(cell: model_cells.Cell) -> float:
        chip = chips.chip(cell.chip)
        chip = chip._replace(start=chip.start._replace(value=values["start"]))
        return abs(model.time_of(cell, chip, rates)[0] / cell.microseconds - 1)

    return statistics.fmean(map(one, cells))


def main() -> None:
    record.parse(argparse.ArgumentParser(description=__doc__.splitlines()[0]), model.KERNELS, on_device=False)
    cells = [cell for cell in model_cells.everything() if cell.fitted]
    found = descend(lambda values: mean_error(cells, values))
    print(f"{found}: mean error of {len(cells)} cells {mean_error(cells, found):.1%}")


if __name__ == "__main__":
    main()
