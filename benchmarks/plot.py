"""Picture of a recorded result: ``python benchmarks/plot.py results/grouped_fp4.json docs/grouped_fp4.svg``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


class Picture(NamedTuple):
    """How the rows of a benchmark are drawn: one panel for all rows that agree in ``panel``."""

    panel: tuple[str, ...]
    title: str  # format over a row
    x: str
    x_label: str
    contenders: dict[str, tuple[str, str, str]]  # key of microseconds: label, color, style


PICTURES = {
    "grouped_fp4": Picture(
        ("N", "K"), "N = {N}, K = {K}, E = {experts}", "m", "rows of each expert",
        {
            "floor": ("floor: NVFP4 bytes / read bandwidth", "0.6", "--"),
            "grouped_mm": ("torch grouped_mm, bf16 weights", "tab:orange", "-"),
            "triton": ("Triton by hand, W4A16", "tab:green", "-"),
            "grouped_fp4": ("grouped_fp4", "tab:blue", "-"),
            "best tile": ("grouped_fp4, best tile", "tab:blue", ":"),
            "grouped_bf16_nvfp4": ("grouped_bf16_nvfp4", "tab:red", "-"),
        },
    ),
    "peers": Picture(
        ("N", "K", "routing"), "N = {N}, K = {K}, E = {experts}, {routing}", "m", "rows of each expert, on average",
        {
            "floor": ("floor: bytes / read bandwidth", "0.6", "--"),
            "grouped_mm": ("torch grouped_mm, bf16 weights", "tab:orange", "-"),
            "Triton": ("Triton by hand", "tab:green", "-"),
            "Marlin": ("vLLM's Marlin", "tab:red", "-"),
            "Humming indexed": ("Humming, indexed", "tab:purple", "-"),
            "Humming grouped": ("Humming, grouped", "tab:purple", ":"),
            "DeepGEMM FP8": ("DeepGEMM, FP8 by FP8", "tab:brown", ":"),
            "grouped_fp4": ("grouped_fp4, tokens in FP4", "tab:blue", ":"),
            "grouped_bf16_nvfp4": ("grouped_bf16_nvfp4", "tab:blue", "-"),
        },
    ),
    "moe": Picture(
        ("kernel", "layer"), "{kernel}, {layer}", "tokens", "tokens",
        {
            "floor": ("floor: bytes of weights / read bandwidth", "0.6", "--"),
            "torch": ("torch, bf16 weights", "tab:orange", "-"),
            "DeepGEMM": ("DeepGEMM, other steps in Triton", "tab:green", "-"),
            "Marlin": ("vLLM's Marlin, W4A16", "tab:red", "-"),
            "unfused": ("kernels here, activation apart", "tab:blue", ":"),
            "ours": ("here, one call", "tab:blue", "-"),
        },
    ),
    "model": Picture(
        ("record",), "{record}", "measured", "measured, microseconds",
        {"measured": ("equal", "0.6", "--"), "predicted": ("predicted", "tab:blue", ".")},
    ),
}  # fmt: skip


def plot(record: dict, path: Path) -> None:
    """Time over size, both logarithmic, two panels a line."""
    picture = PICTURES[record["benchmark"]]

    def panel_of(row: dict) -> tuple:
        return tuple(row[key] for key in picture.panel)

    panels = sorted(set(map(panel_of, record["rows"])))
    lines, columns = -(-len(panels) // 2), min(2, len(panels))
    figure, axes = plt.subplots(lines, columns, figsize=(5 * columns, 4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        rows = sorted((row for row in record["rows"] if panel_of(row) == panel), key=lambda row: row[picture.x])
        for key, (label, color, style) in picture.contenders.items():
            points = [(row[picture.x], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), ".-" if style == "-" else style, color=color, label=label)
        axis.set_xscale("log", base=2)
        axis.set(yscale="log", xlabel=picture.x_label, title=picture.title.format_map(rows[0]))
        axis.set_ylabel("microseconds")
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(fontsize=8)
    found = record["environment"]
    named = [found["device"], *(f"{name} {found[name]}" for name in ("driver", "torch") if name in found)]
    figure.suptitle(", ".join([*named, found["date"]]), fontsize=8)
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = record["benchmark"]  # the same record gives the same file
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help=f"JSON of benchmarks/{{{','.join(PICTURES)}}}.py")
    parser.add_argument("picture", type=Path, help="the .svg or .png to write")
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text())
    if record["benchmark"] not in PICTURES:
        parser.error(f"{arguments.record} is a record of {record['benchmark']}; drawn are {', '.join(PICTURES)}")
    plot(record, arguments.picture)


if __name__ == "__main__":
    main()
