"""grouped_fp4 beside what a user would pick instead: ``python benchmarks/grouped_fp4.py --json results/....json``.

E experts of m rows each, or with ``--routed`` of m on average, by tokens that pick at random; bf16 out, L2 cold, median
of CUDA-graph replays. The contenders multiply the same numbers but do not read the same bytes: torch's grouped_mm takes
weights dequantised to bf16 (four times the memory); the Triton kernel, of equal counts alone, and grouped_bf16_nvfp4,
on Hopper alone, take bf16 activations and NVFP4 weights. The floor is the bytes of grouped_fp4 over the measured read
bandwidth. "best tile" and "best bf16 tile" are the fastest ones for these counts; those selected are chosen for many.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol

import record
import torch
import triton_w4a16
from problem import Problem, make_problem, routed_counts
from timing import REPLAYS, Timer, begin
from variants import runnable

import loader

LAYERS = [(6144, 7168), (7168, 3072)]  # N, K: gate and up together, down
ROWS = [1, 4, 16, 64, 256, 1024]
EXPERTS = 32
# Root mean square, relative. Rounding to bf16 alone is 1.7e-3.
MAX_ERROR = 4e-3


class Judge(Protocol):
    """A problem that knows its result."""

    shape: tuple[int, int, int, int]

    def error(self, out: torch.Tensor) -> float: ...


def time_checked(
    timer: Timer, problem: Judge, out: torch.Tensor, launch: Callable[[], object], name: str, replays: int = REPLAYS,
    max_error: float = MAX_ERROR,
) -> float:  # fmt: skip
    """Microseconds of a launch whose result has been compared first."""
    launch()
    torch.cuda.synchronize()
    error = problem.error(out)
    if not error <= max_error:
        raise RuntimeError(f"{name} on (M, N, K, E) = {problem.shape}: relative error {error:.3g} exceeds {max_error}")
    return timer(launch, replays)


def time_plan(
    timer: Timer, problem: Problem, variant: str | None, replays: int = REPLAYS,
    inputs: dict[str, torch.Tensor] | None = None, dtype: torch.dtype = torch.bfloat16,
) -> float:  # fmt: skip
    """A planned launch of one variant, or of the selected one; its inputs say of which family. dtype: of the result."""
    out = problem.output(dtype)
    plan = loader.plan("grouped_fp4", **(inputs or problem.inputs), out=out, variant=variant)
    name = variant or f"{plan.variant} (selected)"
    return time_checked(timer, problem, out, lambda: plan.launch(torch.cuda.current_stream()), name, replays)


def time_16_bits(
    timer: Timer, problem: Problem, variant: str | None, replays: int = REPLAYS, dtype: torch.dtype = torch.bfloat16,
) -> float:  # fmt: skip
    """The same of tokens and results in 16 bits."""
    inputs = problem.of_16_bits | {"a": problem.of_16_bits["a"].to(dtype)}
    return time_plan(timer, problem, variant, replays, inputs, dtype)


def time_triton(timer: Timer, problem: Problem) -> float:
    """The best tile of the Triton kernel."""
    activations, out = problem.activations(), problem.output()
    operands = (activations, problem.inputs["b"], problem.b_groups, problem.inputs["alpha"], out)
    return min(
        time_checked(timer, problem, out, lambda tile=tile: triton_w4a16.launch(*operands, tile), f"Triton {tile}")
        for tile in triton_w4a16.tiles(problem.counts[0])
    )


def time_grouped_mm(timer: Timer, problem: Problem, weights: torch.Tensor) -> float:
    """torch's bf16 grouped GEMM; alpha, one power of two here, is folded into the activations beforehand."""
    grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    activations = problem.activations() * problem.inputs["alpha"][0].bfloat16()
    ends, out = problem.inputs["expert_offsets"][1:].contiguous(), problem.output()

    def launch() -> None:
        out.copy_(grouped_mm(activations, weights.transpose(1, 2), offs=ends))

    time_checked(timer, problem, out, launch, "grouped_mm")
    return timer(lambda: grouped_mm(activations, weights.transpose(1, 2), offs=ends))


def on_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def measure(timer: Timer, counts: list[int], n: int, k: int, weights: torch.Tensor, bandwidth: float) -> dict:
    """One row of the record."""
    capability, problem = torch.cuda.get_device_capability(), make_problem(counts, n, k)
    times = {
        "floor": problem.bytes(problem.output()) / bandwidth * 1e6,
        "grouped_fp4": time_plan(timer, problem, None),
        "grouped_mm": time_grouped_mm(timer, problem, weights),
    }
    if len(set(counts)) == 1:
        times["triton"] = time_triton(timer, problem)
    tiles = runnable("grouped_fp4", capability, out="bf16")
    times["tiles"] = {name: time_plan(timer, problem, artifact.variant) for name, artifact in tiles.items()}
    times["best tile"] = min(times["tiles"].values())
    if on_hopper():
        times["grouped_bf16_nvfp4"] = time_16_bits(timer, problem, None)
        tiles = runnable("grouped_bf16_nvfp4", capability, element="bf16")
        times["bf16 tiles"] = {name: time_16_bits(timer, problem, artifact.variant) for name, artifact in tiles.items()}
        times["best bf16 tile"] = min(times["bf16 tiles"].values())
    return times | {"teraflops": 2 * sum(counts) * n * k / times["grouped_fp4"] / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of each expert")
    parser.add_argument("--routed", type=int, nargs="*", default=[], help="rows of each expert on average, also timed")
    arguments = record.parse(parser, ["grouped_fp4", *(["grouped_bf16_nvfp4"] if on_hopper() else [])])

    found, timer, bandwidth = begin()
    rows, routed_rows = [], []
    for n, k in LAYERS:
        weights = make_problem([1] * arguments.experts, n, k).weights()
        equal = [(rows, m, [m] * arguments.experts) for m in arguments.rows]
        routed = [(routed_rows, m, routed_counts(m, arguments.experts)) for m in arguments.routed]
        for kept, m, counts in equal + routed:
            row = {"N": n, "K": k, "m": m, "experts": arguments.experts}
            kept.append(row | measure(timer, counts, n, k, weights, bandwidth))
            print(kept[-1], flush=True)
    columns = ["N", "K", "m", "floor", "grouped_fp4", "best tile", "grouped_bf16_nvfp4", "best bf16 tile",
               "grouped_mm", "triton", "teraflops"]  # fmt: skip
    for name, some in (("equal counts", rows), ("routed at random", routed_rows)):
        title = f"microseconds, E = {arguments.experts}, bf16 out, {name}"
        print(record.table(title, columns, [[row.get(column) for column in columns] for row in some]))
    results = {"read_bandwidth": bandwidth, "rows": rows, "routed rows": routed_rows}
    record.finish(arguments.json, "grouped_fp4", found, timer.facts(), results)


if __name__ == "__main__":
    main()
