"""What bounds a few cells of 16-bit tokens by NVFP4 weights: ``python benchmarks/counters.py --json FILE``.

The best tile of grouped_bf16_nvfp4 and torch's grouped_mm on the same weights in bf16, equal rows. Of each, launched
one behind the other for a second: microseconds, the clock and the power that nvidia-smi reads in the second half, and
so the energy of an operation. Then, in a process under ncu, which replays a launch with a cold L2 for each group of
counters: how much of the time issue slots and pipes are busy, bytes from memory and over the crossbar, bank conflicts,
and for what a warp waits, cycles of each instruction. A counter that this ncu does not have is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import record
import torch
from gemm_peers import BEST, Launch, Weights, find_torch, in_torch, make_problem, ours
from timing import Timer, begin, capture

LAYERS, ROWS, EXPERTS = [(6144, 7168), (7168, 3072)], [64, 256, 1024], 32
OURS, TORCH = "grouped_bf16_nvfp4", "grouped_mm"
SECONDS, PERIOD = 1.0, 20  # of a run, and milliseconds from one reading to the next
REPLAYS, PER_GRAPH = 10, 10
# Label -> what of the raw page of ncu: the first name that is there.
COUNTERS = {
    "ns under ncu": ["gpu__time_duration.sum"],
    "GHz under ncu": ["sm__cycles_elapsed.avg.per_second"],
    "issue %": ["smsp__issue_active.avg.pct_of_peak_sustained_active",
                "sm__inst_issued.avg.pct_of_peak_sustained_active"],
    "tensor %": ["sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",
                 "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active",
                 "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"],
    "ALU %": ["sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active"],
    "FMA %": ["sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active"],
    "DRAM %": ["dram__throughput.avg.pct_of_peak_sustained_elapsed"],
    "DRAM bytes read": ["dram__bytes_read.sum"],
    "L2 %": ["lts__t_sectors.avg.pct_of_peak_sustained_elapsed"],
    "crossbar bytes read": ["l1tex__m_xbar2l1tex_read_bytes.sum"],
    "shared-memory wavefronts": ["l1tex__data_pipe_lsu_wavefronts_mem_shared.sum"],
    "bank conflicts": ["l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"],
}  # fmt: skip
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats")
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
SMI = ["nvidia-smi", "--id=0", "--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader,nounits"]

Cell = tuple[int, int, int, str]  # N, K, rows of each expert, our tile


def readings(text: str) -> list[tuple[float, float]]:
    """MHz and watts of each line that has both."""
    found = []
    for line in text.splitlines():
        values = line.split(", ")
        if len(values) == 2 and all(re.fullmatch(r"\d+(\.\d+)?", value) for value in values):
            found.append((float(values[0]), float(values[1])))
    return found


def sustained(call: Callable[[], object], operations: float) -> dict[str, float]:
    """Of launches for ``SECONDS``, each of so many operations."""
    graph, _ = capture(lambda: [call() for _ in range(PER_GRAPH)])
    with subprocess.Popen([*SMI, f"--loop-ms={PERIOD}"], stdout=subprocess.PIPE, text=True) as smi:
        try:
            smi.stdout.readline()  # it takes a while to start
            launches, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < SECONDS:
                graph.replay()
                torch.cuda.synchronize()
                launches += PER_GRAPH
            seconds = (time.perf_counter() - begun) / launches
        finally:
            smi.terminate()
        found = readings(smi.communicate()[0])
    if len(found) < 4:
        raise RuntimeError(f"nvidia-smi gave {len(found)} readings in {SECONDS} s")
    clocks, watts = zip(*found[len(found) // 2 :], strict=True)
    clock, power = statistics.median(clocks), statistics.median(watts)
    return {"microseconds": seconds * 1e6, "MHz": clock, "W": power, "TFLOPS": operations / seconds / 1e12,
            "pJ/FLOP": power * seconds / operations * 1e12}  # fmt: skip


def launches_of(weights: Weights, rows: int, n: int, k: int, tile: str | None = None) -> tuple[list[Launch], Launch]:
    """Our tiles, or the one of this name, and torch's kernel."""
    given = make_problem([rows] * EXPERTS, n, k)
    tiles = [launch for launch in ours(None, weights)(given) if launch.column == BEST and tile in (None, launch.label)]
    return tiles, in_torch(find_torch(())[0], weights)(given)[0]


def measure(n: int, k: int, weights: Weights, timer: Timer) -> Iterator[dict[str, Any]]:
    """A row of the record for each number of rows and each contender, but for counters."""
    for rows in ROWS:
        tiles, peer = launches_of(weights, rows, n, k)
        cold = timer.in_turn([launch.call for launch in [*tiles, peer]], REPLAYS)
        best = min(range(len(tiles)), key=cold.__getitem__)
        for name, launch, microseconds in ((OURS, tiles[best], cold[best]), (TORCH, peer, cold[-1])):
            yield {"N": n, "K": k, "m": rows, "contender": name, "kernel": launch.label, "cold": microseconds,
                   "sustained": sustained(launch.call, 2.0 * rows * EXPERTS * n * k)}  # fmt: skip


def profile(cells: Iterable[Cell]) -> None:
    """What ncu sees: a launch of each contender, cell by cell. Preparation is outside of the profile."""
    weights: dict[tuple[int, int], Weights] = {}
    for n, k, rows, tile in cells:
        if (n, k) not in weights:
            weights = {(n, k): Weights(EXPERTS, n, k)}  # those of before are let go
        (launch,), peer = launches_of(weights[n, k], rows, n, k, tile)
        for call in (launch.call, peer.call):
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()


def counted(cells: list[Cell]) -> list[dict[str, float]]:
    """Counters of each contender of each cell, by a process under ncu."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "counters.csv"
        extra = sorted({name for names in COUNTERS.values() for name in names} & available())
        subprocess.run(
            ["ncu", "--profile-from-start=off", "--clock-control=none", "--csv", "--page=raw", "--print-units=base",
             f"--log-file={log}", *(f"--section={name}" for name in SECTIONS), f"--metrics={','.join(extra)}",
             sys.executable, __file__, "--profile", json.dumps(cells)], check=True)  # fmt: skip
        return by_contender(log.read_text())


def available() -> set[str]:
    """Those of ``COUNTERS`` whose base ncu knows on this device."""
    listed = subprocess.run(["ncu", "--query-metrics"], capture_output=True, text=True, check=True).stdout
    bases = {line.split()[0] for line in listed.splitlines() if line.strip()}
    return {name for names in COUNTERS.values() for name in names if name.split(".")[0] in bases}


def by_contender(text: str) -> list[dict[str, float]]:
    """Counters of the raw page of ncu in the order of launches. torch launches small kernels beside its GEMM, so of
    those that follow one of ours the longest counts."""
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith('"ID"'))
    table = list(csv.DictReader(lines[header:]))[1:]  # without the units
    found: list[dict[str, float]] = []
    for row in table:
        values = {name: float(value.replace(",", "")) for name, value in row.items()
                  if name and value and re.fullmatch(r"-?[\d,]+(\.\d+)?", value)}  # fmt: skip
        facts = {label: next((values[name] for name in names if name in values), None)
                 for label, names in COUNTERS.items()}  # fmt: skip
        facts = {label: value for label, value in facts.items() if value is not None}
        stalls = {match[1]: value for name, value in values.items() if (match := STALL.fullmatch(name))}
        facts["stalls"] = dict(sorted(stalls.items(), key=lambda item: -item[1])[:6])
        is_ours = OURS in row["Kernel Name"]
        if is_ours or not found or found[-1]["is ours"]:
            found.append({"is ours": is_ours, **facts})
        elif facts["ns under ncu"] > found[-1]["ns under ncu"]:
            found[-1] = {"is ours": False, **facts}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", type=json.loads, help=argparse.SUPPRESS)
    arguments = record.parse(parser, [OURS])
    if arguments.profile is not None:
        profile(arguments.profile)
        return
    environment, timer, bandwidth = begin()
    rows: list[dict[str, Any]] = []
    for n, k in LAYERS:
        for row in measure(n, k, Weights(EXPERTS, n, k), timer):
            rows.append(row)
            print(row, flush=True)
        torch.cuda.empty_cache()
    results = {"read_bandwidth": bandwidth, "rows": rows}
    record.finish(arguments.json, "counters", environment, timer.facts(), results)  # ncu may be missing
    cells = [(row["N"], row["K"], row["m"], row["kernel"]) for row in rows if row["contender"] == OURS]
    for row, counters in zip(rows, counted(cells), strict=True):
        row["counters"] = counters
        print(*[row[key] for key in ("N", "K", "m", "kernel")], counters, flush=True)
    record.finish(arguments.json, "counters", environment, timer.facts(), results)


if __name__ == "__main__":
    main()
