"""GEMMs of experts on Hopper beside what a user would pick instead, in one run:

    python benchmarks/peers.py --peers DIR --json benchmarks/results/peers-h200.json

16-bit tokens by NVFP4 weights: grouped_bf16_nvfp4 as selected and its best tile, vLLM's Marlin and Humming on the same
weights, a Triton kernel by hand, of equal counts alone, and torch's grouped_mm on weights in bf16. Beside them are what
other tokens need, in no ratio: grouped_fp4 on FP4, which these tokens are exact in and an engine's are not, and
DeepGEMM on FP8, for which tokens and weights are rounded once more. All multiply the same numbers, of as many rows for
each expert or, routed, of tokens that pick at random. A result, written over NaN by the replay of a graph, is compared
with fp64 sums first; then all are timed in turn, with a cold L2. The floor is the bytes of 16-bit tokens, results and
NVFP4 weights over the measured read bandwidth. What cannot be imported is left out, and the environment says so; what
fails is named in its row.

DIR has what peers are made of, for a machine that reaches nothing; more packages may lie unpacked in it (deep_gemm):

    pip download --no-deps humming-kernels==0.1.19 -d DIR
    pip download --no-deps vllm==0.26.0 --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64

The second wheel, for torch 2.11, is too large to carry. Of its vllm/ take _moe_C_stable_libtorch.abi3.so as
DIR/moe.so, or gzipped as DIR/moe.so.gz, and marlin_utils.py, marlin_utils_fp4.py and marlin_utils_test.py of
model_executor/layers/quantization/utils/ into DIR/vllm_src/; third_party/deep_gemm/ is a DIR/deep_gemm. What compiles
at its first use does so before anything is timed, in processes side by side.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import record
import torch
from gemm_peers import (
    BEST,
    COLUMNS,
    OF_FP4,
    OURS,
    PEERS,
    Launch,
    Part,
    Way,
    Weights,
    attempt,
    find,
    judge,
    make_problem,
    ours,
    unpack,
)
from problem import Problem, routed_counts
from timing import Timer, begin, capture

LAYERS = [(6144, 7168), (7168, 3072)]  # N, K: gate and up together, down
ROWS, ROUTED, EXPERTS = [1, 4, 16, 64, 256, 1024], [64, 256], 32
REPLAYS = 20
PROCESSES = 12  # that compile; each has the weights of a layer on the device
TABLE = ["N", "K", "routing", "m", "floor", OURS, BEST, OF_FP4, *COLUMNS]


def compile_for(name: str, folders: Sequence[Path], experts: int, part: Part) -> None:
    """Launches a peer on equal counts, in a process of its own, so that what it compiles is kept where it keeps it."""
    rows, shapes = part
    found, said = find([name], folders)
    if name not in found:
        raise RuntimeError(said[name])
    for n, k in shapes:
        way = PEERS[name].prepare(found[name], Weights(experts, n, k))
        for m in rows:
            for launch in way(make_problem([m] * experts, n, k)):
                launch.call()
    torch.cuda.synchronize()


def compile_ahead(names: Sequence[str], folders: Sequence[Path], experts: int, rows: list[int]) -> None:
    """All that ``names`` compile. What fails here fails again where it is timed, and is named there."""
    parts = [(name, part) for name in names for part in PEERS[name].compiled(rows, LAYERS)]
    if not parts:
        return
    # Not by fork: a process with a context of CUDA has no usable copy.
    with ProcessPoolExecutor(min(PROCESSES, len(parts)), multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(compile_for, name, folders, experts, part) for name, part in parts]
        for (name, part), future in zip(parts, futures, strict=True):
            error = future.exception()
            print(f"compiled {name} for rows {part[0]} of {part[1]}" + (f": {error!r}" if error else ""), flush=True)


def error_of(launch: Launch, expected: torch.Tensor) -> float:
    """``judge`` of what a replay writes over NaN."""
    graph, written = capture(launch.call)
    written.fill_(torch.nan)
    graph.replay()
    return judge(launch, written, expected)


def compare(ways: dict[str, Way], given: Problem, expected: torch.Tensor, timer: Timer) -> dict[str, Any]:
    """Microseconds by column of what is right, which kernel each is and its error, and why others failed. Of our own
    kernels all must be right."""
    right: list[tuple[Launch, float]] = []
    failed: dict[str, str] = {}
    for name, way in ways.items():
        launches, reason = attempt(way, given)
        if reason:
            failed[name] = reason
        for launch in launches or []:
            error, reason = attempt(error_of, launch, expected)
            if reason:
                failed[f"{launch.column}, {launch.label}"] = reason
            else:
                right.append((launch, error))
        if name == OURS and failed:
            raise RuntimeError(f"{given.shape}: {failed}")
    times = timer.in_turn([launch.call for launch, _ in right], REPLAYS)
    row: dict[str, Any] = {"kernels": {}, "errors": {}, "failed": failed}
    for microseconds, (launch, error) in zip(times, right, strict=True):
        if microseconds < row.get(launch.column, math.inf):
            row[launch.column] = microseconds
            row["kernels"][launch.column], row["errors"][launch.column] = launch.label, error
    return row


def least_bytes(given: Problem) -> int:
    """What must move: tokens and results of 16 bits, and weights of experts that have rows."""
    m, n, k, _ = given.shape
    return 2 * m * (n + k) + sum(count > 0 for count in given.counts) * n * k * 9 // 16


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Of all rows, to read and for the README; and what failed."""
    cells = [[row.get(column) for column in TABLE] for row in rows]
    failed = [f"{row['N']} x {row['K']}, {row['m']} rows, {row['routing']}: {row['failed']}"
              for row in rows if row["failed"]]  # fmt: skip
    return "\n\n".join([record.table("microseconds, bf16 in and out", TABLE, cells), *failed,
                        record.markdown("benchmarks/peers.py", TABLE, cells)])  # fmt: skip


def prepared(libraries: dict[str, Any], weights: Weights) -> tuple[dict[str, Way], dict[str, str]]:
    """Ways of all, ours first; and why some have none."""
    ways, failed = {OURS: ours(None, weights)}, {}
    for name, library in libraries.items():
        way, reason = attempt(PEERS[name].prepare, library, weights)
        if reason:
            failed[name] = reason
        else:
            ways[name] = way
    return ways, failed


def measure(
    libraries: dict[str, Any], n: int, k: int, routings: Sequence[tuple[str, int, list[int]]], timer: Timer,
    bandwidth: float,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row of the record for each of (routing, mean rows of an expert, rows of each)."""
    weights = Weights(len(routings[0][2]), n, k)
    ways, without_way = prepared(libraries, weights)
    for routing, m, counts in routings:
        given = make_problem(counts, n, k)
        row = compare(ways, given, weights.expected(given.activations(), counts), timer)
        failed = "; ".join(f"{what}: {why}" for what, why in {**without_way, **row["failed"]}.items())
        yield {"N": n, "K": k, "routing": routing, "m": m, "experts": len(counts),
               "floor": least_bytes(given) / bandwidth * 1e6, **row, "failed": failed or None}  # fmt: skip


def main() -> None:
    # What the driver compiles of a library's PTX is kept for the next process only while there is room.
    os.environ.setdefault("CUDA_CACHE_MAXSIZE", str(4 << 30))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of libraries, see above")
    parser.add_argument("--contenders", nargs="*", choices=PEERS, default=list(PEERS), help="beside the kernels here")
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="of each expert")
    parser.add_argument("--routed", type=int, nargs="*", default=ROUTED, help="rows of each expert on average")
    arguments = record.parse(parser, [OURS, OF_FP4])

    experts = arguments.experts
    routings = [("equal", m, [m] * experts) for m in arguments.rows]
    routings += [("routed", m, routed_counts(m, experts)) for m in arguments.routed]
    if not routings:
        parser.error("neither --rows nor --routed has a number")

    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place), arguments.peers.resolve()]
        unpack(folders[1], folders[0])
        libraries, said = find(arguments.contenders, folders)
        compile_ahead(list(libraries), folders, experts, sorted({m for _, m, _ in routings}))
        environment, timer, bandwidth = begin(**said)
        rows: list[dict[str, Any]] = []
        for n, k in LAYERS:
            for row in measure(libraries, n, k, routings, timer, bandwidth):
                rows.append(row)
                print(row, flush=True)
                results = {"read_bandwidth": bandwidth, "rows": rows}  # written after each row: a library may end us
                record.finish(arguments.json, "peers", environment, timer.facts(), results)
            torch.cuda.empty_cache()
    print(tables(rows))


if __name__ == "__main__":
    main()
