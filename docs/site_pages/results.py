"""A page for each recorded file of ``benchmarks/results/``: where it ran, what it does not say, and every row, those
first where the kernels here are behind what was measured beside them."""

from __future__ import annotations

import ast
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from site_pages.families import Result
from site_pages.markdown import bullets, code, codes, link, number, plain, table, toctree

Row = Mapping[str, Any]
# What makes a time repeatable -> a word that the name of a recorded value has which says it.
WANTED = {"the card": "device", "the driver": "driver", "clocks": "clock", "the sources": "sources",
          "the digest of the pack": "pack", "the spread of the times": "spread"}  # fmt: skip
# Parts of beside_deep_gemm -> the family that the call of integrations.deep_gemm launches on the recorded device.
PARTS = {
    "FP8 dense": "gemm_fp8", "FP8 gradients of inputs": "gemm_fp8", "FP8 gradients of weights": "gemm_fp8_row_scales",
    "FP8 by labels": "grouped_fp8_labels", "FP8 masked": "grouped_fp8_masked", "FP8 along K": "k_grouped_fp8_nt",
    "bf16 dense": "gemm_bf16", "bf16 gradients of inputs": "gemm_bf16_nn", "bf16 gradients of weights": "gemm_bf16_tn",
    "bf16 by labels": "grouped_bf16_labels", "bf16 masked": "grouped_bf16_masked", "bf16 along K": "k_grouped_bf16_tn",
    "FP8 by MXFP4": "grouped_fp8_mxfp4_masked",
    "einsum bhr,hdr->bhd": "einsum_bf16", "einsum bhd,hdr->bhr": "einsum_bf16_nn",
    "FP8 einsum bhr,hdr->bhd": "einsum_fp8",
    "einsum bmk,bnk->mn in bf16": "einsum_bf16_shares", "einsum bmk,bnk->mn in fp32": "einsum_bf16_shares",
    "MQA logits": "mqa_logits_fp8", "paged MQA logits": "paged_mqa_logits_fp8",
    "hc prenorm": "hc_prenorm_tf32", "hc prenorm in shares": "hc_prenorm_tf32_shares",
}  # fmt: skip


def _rows(record: Mapping[str, Any]) -> list[Row]:
    return record["rows"]


def _launches(record: Mapping[str, Any]) -> list[Row]:
    return [{"kernel": kernel, **times} for kernel, times in record["microseconds"].items()]


def _tiles(record: Mapping[str, Any]) -> list[Row]:
    """Of each problem the fastest tile and the next one."""
    rows = []
    for row in record["rows"]:
        (first, first_us), *others = sorted(row["microseconds"].items(), key=lambda item: item[1])
        second, second_us = others[0] if others else (None, None)
        rows.append({**row["features"], "tile": first, "microseconds": first_us, "next tile": second,
                     "its microseconds": second_us, "tiles": 1 + len(others), "family": record["family"]})  # fmt: skip
    return rows


@dataclass(frozen=True)
class Kind:
    """What the rows of a benchmark hold: names of columns. Times of ``peers`` stand beside those of ``ours``."""

    keys: tuple[str, ...]
    ours: str
    peers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    unit: str = "microseconds"
    rows: Callable[[Mapping[str, Any]], list[Row]] = _rows
    families: Callable[[Row], Sequence[str]] = lambda row: [row["family"]]

    def ratio(self, row: Row) -> float | None:
        """Our time over that of the fastest peer; above 1 we are behind."""
        times = [row[peer] for peer in self.peers if row.get(peer) is not None]
        return row[self.ours] / min(times) if times else None


KINDS = {
    "beside_deep_gemm": Kind(("part", "cell"), "microseconds", ("deep_gemm",), ("floor", "difference"),
                             families=lambda row: [PARTS[row["part"]]]),
    "grouped_fp4": Kind(("N", "K", "experts", "m"), "grouped_fp4", ("grouped_mm", "triton"),
                        ("floor", "best tile", "grouped_bf16_nvfp4", "best bf16 tile"),
                        families=lambda row: ["grouped_fp4"]),
    "peers": Kind(("N", "K", "routing", "m"), "grouped_bf16_nvfp4",
                  ("Humming indexed", "Humming grouped", "Marlin", "Marlin, best block", "grouped_mm", "Triton"),
                  ("floor", "best bf16 tile", "grouped_fp4", "DeepGEMM FP8", "failed"),
                  families=lambda row: ["grouped_bf16_nvfp4"]),
    "moe": Kind(("layer", "kernel", "tokens", "active experts"), "ours", ("unfused", "torch", "DeepGEMM", "Marlin"),
                ("floor",),
                families=lambda row: [row["kernel"], *(kernel.partition("/")[0] for kernel in row["kernels"])]),
    "engines": Kind(("tokens",), "block_scaled", ("marlin",), ("tokens/s", "marlin tokens/s"),
                    families=lambda row: ["grouped_bf16_nvfp4_swiglu", "grouped_bf16_nvfp4"]),
    "quantize": Kind(("family", "experts", "m"), "microseconds", ("torch.compile", "torch"), ("floor", "TB/s")),
    "launch_cost": Kind(("kernel",), "loader.launch", ("Triton JIT",),
                        ("plan.launch()", "plan.launch(stream)", "bare, ctypes", "bare, cuda.bindings"),
                        rows=_launches, families=lambda row: [row["kernel"]]),
    "counters": Kind(("N", "K", "m", "contender"), "cold", (), ("kernel",),
                     families=lambda row: ["grouped_bf16_nvfp4"]),
    "seeing_cost": Kind(("kernel", "way"), "nobody watches", ("bare driver call",),
                        ("without the question", "on_launch", "LOADER_LOG=select", "LOADER_LOG=launch",
                         "LOADER_LOG=dump", "LOADER_TRACE_DIR", "LOADER_NVTX=1", "an audit hook"),
                        families=lambda row: [row["kernel"]]),
    "tune": Kind(("rows_per_expert", "N", "K", "E", "tile"), "microseconds", (),
                 ("next tile", "its microseconds", "tiles"), rows=_tiles),
    "model": Kind(("record", "chip", "kernel", "problem"), "predicted", (), ("measured", "error", "bound"),
                  families=lambda row: [row["kernel"].partition("/")[0]]),
    "emulation": Kind(("arch", "variant", "checks"), "median_s", (), ("first_s", "limit_s"), unit="seconds",
                      families=lambda row: ["grouped_fp4"]),
}  # fmt: skip


class Record:
    """One file. ``KeyError`` names a benchmark, or a part of one, that has no line above."""

    def __init__(self, path: Path) -> None:
        self.name, self.record = path.stem, json.loads(path.read_text())
        self.benchmark = self.record["benchmark"]
        if self.benchmark not in KINDS:
            raise KeyError(f"{path}: benchmark {self.benchmark!r} has no line in KINDS of {__file__}")
        self.kind = KINDS[self.benchmark]
        self.rows = sorted(self.kind.rows(self.record), key=lambda row: -(self.kind.ratio(row) or 0))
        self.compared = [row for row in self.rows if self.kind.ratio(row) is not None]
        self.behind = sum(self.kind.ratio(row) > 1 for row in self.compared)
        self.environment, self.timing = self.record["environment"], self.record.get("timing", {})

    @property
    def title(self) -> str:
        where = self.environment.get("device", self.environment["cpu"])
        return f"{self.benchmark} on {where}" + (f", {self.record['family']}" if "family" in self.record else "")

    def of(self, family: str) -> Result | None:
        """What it says of a family."""
        rows = [row for row in self.rows if family in self.kind.families(row)]
        if not rows:
            return None
        ratios = [ratio for row in rows if (ratio := self.kind.ratio(row)) is not None]
        behind = sum(ratio > 1 for ratio in ratios) if ratios else None
        mean = statistics.geometric_mean(ratios) if ratios else None
        return Result(self.name, self.title, self.environment["date"], len(rows), behind, mean)

    def page(self, benchmarks: Path, known: set[str]) -> str:
        source = (benchmarks / f"{self.benchmark}.py").read_text()
        about = (ast.get_docstring(ast.parse(source)) or "").replace("``", "`")
        return "\n".join([f"# {self.title}\n", about + "\n", *self._machine(), self._cold(source, benchmarks),
                          *self._behind(), *self._table(), *self._families(known)])  # fmt: skip

    def _machine(self) -> Iterator[str]:
        yield "## Where and when\n"
        rows = {**self.environment, **self.timing,
                **{key: value for key, value in self.record.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool)}}  # fmt: skip
        yield table(["recorded", ""], [[plain(key), plain(number(value))] for key, value in sorted(rows.items())])
        names = " ".join([*rows, *self.record, *(key for row in self.rows for key in row)]).lower()
        missing = [what for what, word in WANTED.items() if word not in names]
        if missing:
            yield f"The record does not name {', '.join(missing)}.\n"

    def _cold(self, source: str, benchmarks: Path) -> str:
        """How the L2 was made cold: what the record says, else the program."""
        if "timing import" not in source and "import timing" not in source:
            return "Times are those of the host; the L2 of a device plays no part.\n"
        if "cold L2" not in self.timing:
            return _cold_now(benchmarks)
        return (f"For a cold L2: {self.timing['cold L2']} of a CUDA graph. A time is the median of so many replays: "
                f"{self.timing['replays']}, of {self.timing['captures']} captures in turn. The spread is (p90 - p10) / "
                "median of the replays of a cell.\n")  # fmt: skip

    def _behind(self) -> Iterator[str]:
        if not self.compared:
            return
        kind = self.kind
        yield f"## Behind in {self.behind} of {len(self.compared)} rows\n"
        peers = f"the fastest of {codes(kind.peers)}" if len(kind.peers) > 1 else code(*kind.peers)
        yield f"The ratio is {code(kind.ours)} over {peers}. Above 1 we are behind, by however little.\n"
        groups: dict[str, list[float]] = {}
        for row in self.compared:
            groups.setdefault(str(row[kind.keys[0]]), []).append(kind.ratio(row))
        lines = [[plain(name), str(len(ratios)), str(sum(ratio > 1 for ratio in ratios)),
                  f"{statistics.geometric_mean(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}"]
                 for name, ratios in groups.items()]  # fmt: skip
        yield table([plain(kind.keys[0]), "rows", "behind", "geometric mean", "least", "most"], lines, right=1)

    def _table(self) -> Iterator[str]:
        kind = self.kind
        yield "## All rows\n"
        worst = ", the worst ratio first" if self.compared else ""
        yield f"Times in {kind.unit}{worst}. Floors, where there are any: see above.\n" if "floor" in kind.others \
            else f"Times in {kind.unit}{worst}.\n"
        columns = [*kind.keys, kind.ours, *kind.peers, *kind.others]
        lines = []
        for row in self.rows:
            ratio = kind.ratio(row)
            mark = [] if not self.compared else ["-"] if ratio is None else [
                f"**{ratio:.3f} behind**" if ratio > 1 else f"{ratio:.3f}"]  # fmt: skip
            lines.append([*(plain(number(row.get(column))) for column in columns), *mark])
        yield table([*map(plain, columns), *["ratio"] * bool(self.compared)], lines, right=len(kind.keys))

    def _families(self, known: set[str]) -> Iterator[str]:
        names = dict.fromkeys(name for row in self.rows for name in self.kind.families(row) if name in known)
        if names:
            yield "## Kernels in it\n"
            yield ", ".join(link(code(name), f"../families/{name}") for name in names) + "\n"


def _cold_now(benchmarks: Path) -> str:
    """How the L2 is made cold, from the program that measures, as it is now."""
    timing = benchmarks / "timing.py"
    mib, replays, instances = (_stated(timing, line) for line in (
        r"FLUSH_BYTES = (\d+) << 20", r"REPLAYS = (\d+)", r"INSTANCES = (\d+)"))  # fmt: skip
    return (f"L2 is made cold by writing {mib} MiB before each replay of a CUDA graph. A time is the median of "
            f"{replays} replays, where the program asks for no other number, of {instances} captures in turn. So says "
            "[timing.py](../../../benchmarks/timing.py) now; the record does not.\n")  # fmt: skip


def _stated(path: Path, line: str) -> str:
    found = re.search(f"^{line}\\b", path.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path}: expected a line {line}")
    return found[1]


def read(folder: Path) -> list[Record]:
    return [Record(path) for path in sorted(folder.glob("*.json"))]


def of_family(records: Sequence[Record], family: str) -> list[Result]:
    return [result for record in records if (result := record.of(family)) is not None]


def pages(records: Sequence[Record], benchmarks: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    for record in records:
        yield f"benchmarks/{record.name}", record.page(benchmarks, known)
    lines = [[link(plain(record.title), record.name), record.environment["date"], str(len(record.rows)),
              str(record.behind) if record.compared else "-"] for record in records]  # fmt: skip
    losses = sum(record.behind for record in records)
    compared = sum(len(record.compared) for record in records)
    yield "benchmarks/index", "\n".join([
        "# Benchmarks\n",
        f"Every recorded row. In {losses} of {compared} rows that have something beside them the kernels here are "
        "behind. What was tried and what came of it: [notes](../notes.md).\n",
        table(["record", "date", "rows", "behind in"], lines, right=2),
        bullets(["`python benchmarks/<name>.py --json FILE` records one anew, on a machine with a GPU."]),
        toctree(record.name for record in records)])  # fmt: skip
