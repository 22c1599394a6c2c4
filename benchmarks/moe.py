"""MoE layers beside what else computes them: ``python benchmarks/moe.py --json benchmarks/results/moe-h200.json``.

MoE layers of real models in NVFP4, with tokens in that or in bf16, in FP8, and in MXFP4, with tokens in MXFP8 or in
bf16; routed at random, bf16 in and out, L2 cold, median of CUDA-graph replays in turn. Ours is one call; unfused are
this registry's kernels of moe_fp4 one by one, L1 and its activation apart; torch is sort, index_select, two grouped_mm,
SwiGLU and index_add on dequantised bf16 weights, without quantisation of activations; DeepGEMM are its grouped FP8
GEMMs between the same steps, which are moe_route and one Triton kernel each; Marlin is vLLM's layer of FP4 weights,
whose tokens stay in bf16, too. Libraries lie in --peers DIR, as benchmarks/peers.py says; one that is not there is left
out, and the environment says so. The floor is the bytes of the experts that have tokens over the measured read
bandwidth. Each step of the layer is timed alone, with a cold L2 of its own, so the steps add up to more than the whole.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from gemm_peers import unpack
from moe_peers import LIBRARIES, in_torch, libraries
from moe_problem import FORMATS, LAYERS, SIZES, STEPS, Layer, Way, steps, unfused, whole
from timing import Timer, begin

import loader

TOKENS = [1, 8, 64, 512, 4096]
REPLAYS = 128  # of a layer: at the limit of power single ones differ by 2 %
COLUMNS = ["layer", "kernel", "tokens", "active experts", "floor", "ours", "unfused", "torch", *LIBRARIES]


def launcher(plans: list[tuple[str, loader.Plan]]) -> Callable[[], None]:
    """All of them in order, on torch's current stream."""

    def launch() -> None:
        for _, plan in plans:
            plan.launch()

    return launch


def check(layer: Layer, results: dict[str, torch.Tensor], context: str) -> dict[str, float]:
    """How far each result is from torch's, relative; raises where it is too far, or not the same bytes unfused."""
    if "unfused" in results and not torch.equal(results["ours"], results["unfused"]):
        raise RuntimeError(f"{context}: moe_fp4 and its unfused kernels differ")
    expected, limit = results["torch"].double(), layer.format.max_error
    errors = {name: float((result.double() - expected).norm() / expected.norm()) for name, result in results.items()}
    for name, error in errors.items():
        if not error <= limit:
            raise RuntimeError(f"{context}: relative difference {error:.3g} of {name} from torch exceeds {limit}")
    return errors


def compare(layer: Layer, peers: dict[str, Way], count: int, timer: Timer) -> dict[str, object]:
    """Microseconds of each way, whose results have been compared."""
    tokens = layer.tokens(count)
    outs = [torch.full_like(tokens["x"], torch.nan) for _ in range(2)]
    plan = whole(layer, tokens, outs[0])
    ways = {"ours": (plan.launch, outs[0])} | {name: way(tokens) for name, way in peers.items()}
    apart = unfused(layer, tokens, outs[1]) if layer.composite == "moe_fp4" else []
    if apart:
        ways["unfused"] = launcher(apart), outs[1]
    for launch, _ in ways.values():
        launch()
    results = {name: result for name, (_, result) in ways.items()}
    errors = check(layer, results, f"{layer.composite}, {count} tokens")
    times = timer.in_turn([launch for launch, _ in ways.values()], REPLAYS)
    return {
        "tokens": count,
        "active experts": len(tokens["topk_ids"].unique()),
        "difference from torch": errors,
        "kernels": list(plan.steps),
        "bytes": layer.least_bytes(tokens),
        **dict(zip(ways, times, strict=True)),
        "steps": {what: timer(launch) for what, launch in steps(plan).items()},
        "unfused steps": {what: timer(step.launch) for what, step in apart},
    }


def tables(rows: list[dict[str, object]]) -> str:
    """The one to read, and the one for the README; a dash where a way has no such layer or is not there."""
    cells = [[*(row.get(column) for column in COLUMNS), *row["steps"].values()] for row in rows]
    title = "microseconds, bf16 in and out; steps each alone"
    return "\n".join([record.table(title, [*COLUMNS, *STEPS], cells),
                      record.markdown("benchmarks/moe.py", COLUMNS, [line[: len(COLUMNS)] for line in cells])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--kernels", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="of libraries, see peers.py")
    arguments = record.parse(parser, list(FORMATS))

    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place), arguments.peers.resolve()]
        unpack(folders[1], folders[0])
        found, said = libraries(folders)
        measure(arguments, found, said)


def measure(arguments: argparse.Namespace, libraries: dict[str, Any], said: dict[str, str]) -> None:
    """All layers that are asked for, each format beside the libraries that compute it."""
    environment, timer, bandwidth = begin(**said)
    rows = []
    for name, kernel in LAYERS:
        if name not in arguments.layers or kernel not in arguments.kernels:
            continue
        layer = Layer(kernel, SIZES[name])
        peers = {"torch": in_torch(layer)} | {
            column: LIBRARIES[column].way(layer, library) for column, library in libraries.items()
            if LIBRARIES[column].takes(kernel)
        }  # fmt: skip
        for count in arguments.tokens:
            row = {"layer": name, "kernel": kernel, **compare(layer, peers, count, timer)}
            row["floor"] = row["bytes"] / bandwidth * 1e6
            rows.append(row)
            print(row, flush=True)
        del layer, peers
        torch.cuda.empty_cache()
    print(tables(rows))
    record.finish(arguments.json, "moe", environment, timer.facts(), {"read_bandwidth": bandwidth, "rows": rows})


if __name__ == "__main__":
    main()
