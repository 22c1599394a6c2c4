"""moe_fp4 beside the same layer in pieces: ``python benchmarks/moe.py --json benchmarks/results/moe-h100.json``.

MoE layers of real models, tokens routed at random, bf16 in and out, L2 cold, median of CUDA-graph replays. moe_fp4 is
one call; unfused are this registry's kernels one by one, L1 and its activation apart; torch is sort, index_select, two
grouped_mm, SiLU and index_add on bf16 weights, four times the memory and no quantisation of activations. The floor is
the bytes of the experts that have tokens over the measured read bandwidth. Each step of the layer is timed alone, with
a cold L2 of its own, so the steps add up to more than the whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import record
import torch
from moe_layer import SIZES, Layer, in_torch, steps, whole
from timing import Timer, begin

import loader

TOKENS = [1, 8, 64, 512, 4096]
REPLAYS = 128  # of a layer: at the limit of power single ones differ by 2 %
# Root mean square, relative, to torch on unquantised activations: the quantisations of x and of h make about a sixth.
MAX_ERROR = 0.25


def launcher(plans: list[tuple[str, loader.Plan]]) -> Callable[[], None]:
    """All of them in order, on torch's current stream."""

    def launch() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for _, plan in plans:
            plan.launch(stream)

    return launch


def compare(layer: Layer, weights: tuple[torch.Tensor, torch.Tensor], count: int, timer: Timer) -> dict[str, object]:
    """Microseconds of each way, whose results have been compared."""
    tokens = layer.tokens(count)
    outs = [torch.full_like(tokens["x"], torch.nan) for _ in range(3)]
    plan = whole(layer, tokens, outs[0])
    apart = {name: steps(layer, tokens, outs[1], fused) for name, fused in (("fused", True), ("unfused", False))}
    ways = {
        "moe_fp4": launcher([("", plan)]),
        "unfused": launcher(apart["unfused"]),
        "torch": in_torch(*weights, tokens, outs[2]),
    }
    for launch in ways.values():
        launch()
    torch.cuda.synchronize()
    if not torch.equal(outs[0], outs[1]):
        raise RuntimeError(f"{count} tokens: moe_fp4 and its unfused kernels differ")
    error = float((outs[0].double() - outs[2].double()).norm() / outs[2].double().norm())
    if not error <= MAX_ERROR:
        raise RuntimeError(f"{count} tokens: relative difference {error:.3g} from torch exceeds {MAX_ERROR}")
    launcher(apart["fused"])()  # so that each step below finds what the ones before it write
    return {
        "tokens": count,
        "active experts": len(tokens["topk_ids"].unique()),
        "difference from torch": error,
        "kernels": list(plan.steps),
        "bytes": layer.least_bytes(tokens),
        **dict(zip(ways, timer.in_turn(list(ways.values()), REPLAYS), strict=True)),
        "steps": {what: timer(launcher([(what, step)])) for what, step in apart["fused"]},
        "unfused steps": {what: timer(launcher([(what, step)])) for what, step in apart["unfused"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    arguments = record.parse(parser, ["moe_fp4"])

    found, timer, bandwidth = begin()
    rows = []
    for name in arguments.layers:
        layer = Layer(SIZES[name])
        weights = layer.gate_up.bf16(), layer.w2.bf16()
        for count in arguments.tokens:
            row = {"layer": name, **compare(layer, weights, count, timer)}
            row["floor"] = row["bytes"] / bandwidth * 1e6
            rows.append(row)
            print(row, flush=True)
        del layer, weights
        torch.cuda.empty_cache()
    columns = ["layer", "tokens", "active experts", "floor", "moe_fp4", "unfused", "torch"]
    each = list(rows[0]["steps"])
    table = [[*[row[column] for column in columns], *row["steps"].values()] for row in rows]
    print(record.table("microseconds, bf16 in and out; steps each alone", [*columns, *each], table))
    print(record.markdown("benchmarks/moe.py", [*columns, *each], table))
    record.finish(arguments.json, "moe", found, {"read_bandwidth": bandwidth, "rows": rows})


if __name__ == "__main__":
    main()
