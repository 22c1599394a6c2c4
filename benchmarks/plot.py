"""Picture of a recorded result: ``python benchmarks/plot.py results/grouped_fp4.json docs/grouped_fp4.svg``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CONTENDERS = {
    "floor": ("floor: NVFP4 bytes / read bandwidth", "0.6", "--"),
    "grouped_mm": ("torch grouped_mm, bf16 weights", "tab:orange", "-"),
    "triton": ("Triton by hand, W4A16", "tab:green", "-"),
    "grouped_fp4": ("grouped_fp4", "tab:blue", "-"),
    "best tile": ("grouped_fp4, best tile", "tab:blue", ":"),
}


def plot(record: dict, path: Path) -> None:
    """One panel a layer, time over rows of each expert, both logarithmic."""
    layers = sorted({(row["N"], row["K"]) for row in record["rows"]})
    figure, axes = plt.subplots(1, len(layers), figsize=(5 * len(layers), 4), squeeze=False)
    for axis, (n, k) in zip(axes[0], layers, strict=True):
        rows = [row for row in record["rows"] if (row["N"], row["K"]) == (n, k)]
        rows.sort(key=lambda row: row["m"])
        for key, (label, color, style) in CONTENDERS.items():
            points = [(row["m"], row[key]) for row in rows]
            axis.plot(*zip(*points, strict=True), style, color=color, label=label, marker="." if style == "-" else "")
        axis.set_xscale("log", base=2)
        axis.set(yscale="log", xlabel="rows of each expert", title=f"N = {n}, K = {k}, E = {rows[0]['experts']}")
        axis.grid(True, which="both", alpha=0.2)
    axes[0][0].set_ylabel("microseconds")
    axes[0][0].legend(fontsize=8)
    found = record["environment"]
    figure.suptitle(f"{found['device']}, driver {found['driver']}, torch {found['torch']}, {found['date']}", fontsize=8)
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = record["benchmark"]  # the same record gives the same file
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="JSON of benchmarks/grouped_fp4.py")
    parser.add_argument("picture", type=Path, help="the .svg or .png to write")
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text())
    if record["benchmark"] != "grouped_fp4":
        parser.error(f"{arguments.record} is a record of {record['benchmark']}, not of grouped_fp4")
    plot(record, arguments.picture)


if __name__ == "__main__":
    main()
