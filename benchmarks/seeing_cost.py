"""What it costs the host to see launches, and what a call inside jax.jit costs beside torch's.

    data=tests/build/data
    python build.py --matrix $data/kernels.yaml --templates $data/templates --kernel nop9 --out build/nop9
    LOADER_ARTIFACTS=artifacts:build/nop9 python benchmarks/seeing_cost.py --json results/seeing_cost.json

One run has, in turn, ``plan.launch`` and ``loader.launch`` of the same buffers with nobody watching, with each way to
see launches, and with the loader's question whether anybody watches taken out; and the bare driver call. An audit hook
stays for the rest of a process, so it comes last, beside launches without one before it. Then a program of JAX, jitted
and in command buffers, beside ``loader.launch`` and a CUDA graph of torch: time a step, waited for.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import record
import torch
from launch_cost import bare_launches, in_fresh_process
from moe_problem import Layer, Size, whole_arguments
from problem import DEVICE, make_problem

import loader

LAUNCHES = 400  # of kernels in a batch; below the depth of the driver's queue, so that no launch waits for the device
BATCHES = 40
KERNELS = {"nop9": 1, "grouped_fp4": 1, "moe_fp4": 5}  # name -> kernels of one launch
OFF, WITHOUT, AUDIT = "nobody watches", "without the question", "an audit hook"
STEPS = 10  # of a program of JAX, and of a graph
REPEATS = 200
Mode = Callable[[], Any]  # makes a context in which launches are seen


@contextmanager
def unasked() -> Iterator[None]:
    """Slots that launch without asking whether anybody watches: what a launch was before it could be seen."""

    def launch(slot: Any, stream: int, told: bool = False) -> None:
        if stream != slot._stream:
            slot._config.stream = slot._stream = stream
        status = slot._driver.launch_kernel(slot._config_address, slot._function, slot._parameters_address, None)
        if status:
            slot._launch_in_context(status)

    slots = sys.modules[loader.Plan.__module__].Slot
    kept, slots.launch = slots.launch, launch
    try:
        yield
    finally:
        slots.launch = kept


@contextmanager
def calling(callback: Callable[[Any], object]) -> Iterator[None]:
    remove = loader.on_launch(callback)
    try:
        yield
    finally:
        remove()


@contextmanager
def asked(variable: str, value: str) -> Iterator[None]:
    """What the environment asks for, read as the first call of a process reads it."""
    os.environ[variable] = value
    try:
        loader.observers.from_environment()
        yield
    finally:
        del os.environ[variable]
        loader.observers.from_environment()


def modes(folder: Path) -> dict[str, Mode]:
    """Every way to see launches; lines of the log go to a file in ``folder``. NVTX where its package is."""
    logger = logging.getLogger("loader")
    logger.propagate = False
    logger.addHandler(logging.FileHandler(folder / "log"))
    ways = {
        WITHOUT: unasked,
        OFF: nullcontext,
        "on_launch": partial(calling, lambda launch: None),
        "LOADER_LOG=select": partial(asked, "LOADER_LOG", "select"),
        "LOADER_LOG=launch": partial(asked, "LOADER_LOG", "launch"),
        "LOADER_LOG=dump": partial(asked, "LOADER_LOG", "dump"),
        "LOADER_TRACE_DIR": partial(asked, "LOADER_TRACE_DIR", str(folder / "traces")),
    }
    try:
        import nvtx  # noqa: F401
    except ImportError:
        return ways
    return ways | {"LOADER_NVTX=1": partial(asked, "LOADER_NVTX", "1")}


def in_turn(
    ways: Mapping[str, Callable[[], object]], seen: Mapping[str, Mode], batch: int, batches: int, spread: record.Spread
) -> dict[str, dict[str, float]]:
    """Mode -> way -> microseconds of one call, the median over batches; each batch has every mode and way once, so that
    all see the same machine."""
    times: dict[tuple[str, str], list[float]] = {(mode, way): [] for mode in seen for way in ways}
    warm = min(3, batches)
    for number in range(batches + warm):
        for mode, enter in seen.items():
            with enter():
                for way, launch in ways.items():
                    taken = _batch(launch, batch)
                    if number >= warm:
                        times[mode, way].append(taken)
    return {mode: {way: spread.median(times[mode, way]) for way in ways} for mode in seen}


def _batch(launch: Callable[[], object], batch: int) -> float:
    _wait()
    begin = time.perf_counter()
    for _ in range(batch):
        launch()
    return (time.perf_counter() - begin) / batch * 1e6


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def calls(names: Mapping[str, int] = KERNELS) -> dict[str, dict[str, Any]]:
    """Arguments of a small problem of each kernel. Of a layer a pack says how large its workspace is."""

    def gemm() -> dict[str, Any]:
        problem = make_problem([1], 128, 256)
        return {**problem.inputs, "out": problem.output()}

    def layer() -> dict[str, Any]:
        made = Layer("moe_fp4", Size(4, 2, 256, 128))
        tokens = made.tokens(1)
        return whole_arguments(made, tokens, torch.empty_like(tokens["x"]))

    made = {
        "nop9": lambda: {name: torch.empty(1024, device=DEVICE) for name in [*"abcdefgh", "out"]},
        "grouped_fp4": gemm,
        "moe_fp4": layer,
    }
    return {name: made[name]() for name in names}


def costs(
    name: str, arguments: Mapping[str, Any], seen: Mapping[str, Mode], batches: int, spread: record.Spread
) -> dict[str, Any]:
    """Mode -> way -> microseconds, and those of a bare driver call where there is a device and one kernel."""
    plan, batch = loader.plan(name, **arguments), LAUNCHES // KERNELS[name] if DEVICE == "cuda" else 1
    ways = {"plan.launch": partial(plan.launch, 0), "loader.launch": partial(loader.launch, name, **arguments)}
    found: dict[str, Any] = in_turn(ways, seen, batch, batches, spread)
    if DEVICE == "cuda" and KERNELS[name] == 1:
        bare = {"bare": bare_launches(plan, 0)["bare, ctypes"]}
        found["bare driver call"] = in_turn(bare, {OFF: nullcontext}, batch, batches, spread)[OFF]
    return found


# A program of JAX and what stands beside it; XLA reads its flags once, so each of them has a process.
STEPPED = """
import sys, time; sys.path[:0] = {paths!r}
import os; os.environ.update(XLA_FLAGS={flags!r}, XLA_PYTHON_CLIENT_PREALLOCATE="false")  # torch has the device, too
import jax, json, statistics, torch, loader
import integrations.jax as kernels
from problem import make_problem

steps, repeats = {steps}, {repeats}
problem = make_problem([1], 128, 256)
alphas = [problem.inputs["alpha"] * (1 + step) for step in range(steps)]
of_jax = jax.dlpack.from_dlpack
arrays = {{name: of_jax(value.contiguous()) for name, value in problem.inputs.items() if name != "alpha"}}
each = [of_jax(alpha) for alpha in alphas]

@jax.jit
def program(each, arrays):
    return [kernels.call("grouped_fp4", **arrays, alpha=alpha, outputs={{"out": jax.numpy.bfloat16}})["out"]
            for alpha in each]

outs = program(each, arrays)
for alpha, out in zip(alphas, outs):  # the results are those of the loader
    expected = problem.output()
    loader.launch("grouped_fp4", **problem.inputs | {{"alpha": alpha}}, out=expected)
    found = torch.from_dlpack(jax.block_until_ready(out))
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8)), "JAX gave other bytes"
taken = []
for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(program(each, arrays))
    taken.append((time.perf_counter() - begin) / steps * 1e6)
print(json.dumps(taken[repeats // 10:] or taken))
"""
PROGRAMS = {
    "jax.jit": "--xla_gpu_enable_command_buffer=",
    "jax.jit, command buffers": "--xla_gpu_graph_min_graph_size=1",
}


def jax_steps(flags: str, steps: int = STEPS, repeats: int = REPEATS) -> list[float]:
    """Microseconds a step of each run of a program of ``steps`` grouped_fp4, compared with the loader's bytes."""
    paths = [str(record.ROOT), str(record.ROOT / "benchmarks")]
    values = {"paths": paths, "flags": flags if DEVICE == "cuda" else "", "steps": steps, "repeats": repeats}
    return json.loads(in_fresh_process(STEPPED.format(**values)).splitlines()[-1])


def torch_steps(steps: int = STEPS, repeats: int = REPEATS) -> dict[str, list[float]]:
    """The same steps by ``loader.launch`` from Python, and, on a device, as one CUDA graph."""
    problem = make_problem([1], 128, 256)
    given = [problem.inputs | {"alpha": problem.inputs["alpha"] * (1 + step), "out": problem.output()}
             for step in range(steps)]  # fmt: skip

    def launch() -> None:
        for arguments in given:
            loader.launch("grouped_fp4", **arguments)

    ways: dict[str, Callable[[], object]] = {"loader.launch": launch}
    if DEVICE == "cuda":
        from timing import capture

        ways["loader.launch, a CUDA graph"] = capture(launch)[0].replay
    return {name: [_run(way, steps) for _ in range(repeats)][repeats // 10 :] for name, way in ways.items()}


def _run(way: Callable[[], object], steps: int) -> float:
    begin = time.perf_counter()
    way()
    _wait()
    return (time.perf_counter() - begin) / steps * 1e6


def rows_of(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a kernel and way: microseconds by mode."""
    rows = []
    for name, by_mode in found.items():
        ways = {way: {mode: times[way] for mode, times in by_mode.items() if way in times} for way in by_mode[OFF]}
        bare = by_mode.get("bare driver call", {})
        rows += [{"kernel": name, "way": way, **times, **({"bare driver call": bare["bare"]} if bare else {})}
                 for way, times in ways.items()]  # fmt: skip
    return rows


def measure(
    names: Mapping[str, int] = KERNELS, batches: int = BATCHES, spread: record.Spread | None = None
) -> list[dict[str, Any]]:
    """Rows of every kernel, the audit hook last: it stays."""
    spread, found, given = spread or record.Spread(), {}, calls(names)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        seen = modes(Path(folder))
        stack.callback(_without_handlers)
        for name, arguments in given.items():
            found[name] = costs(name, arguments, seen, batches, spread)
    sys.addaudithook(lambda event, arguments: None)
    for name, arguments in given.items():
        found[name][AUDIT] = costs(name, arguments, {OFF: nullcontext}, batches, spread)[OFF]
    return rows_of(found)


def _without_handlers() -> None:
    logger = logging.getLogger("loader")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments = record.parse(parser, list(KERNELS))
    environment = record.environment(("torch", "triton", "cuda-bindings", "jax", "nvtx"))
    print(environment, flush=True)
    spread = record.Spread()
    rows = measure(spread=spread)
    taken = {name: jax_steps(flags) for name, flags in PROGRAMS.items()} | torch_steps()
    steps = [{"way": name, "microseconds a step": spread.median(times)} for name, times in taken.items()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(record.markdown("benchmarks/seeing_cost.py", columns, [[row.get(key) for key in columns] for row in rows]))
    print(record.table(f"one of {STEPS} steps", ["way", "microseconds"], [list(row.values()) for row in steps]))
    record.finish(arguments.json, "seeing_cost", environment, {"batches": BATCHES, **spread.facts()},
                  {"rows": rows, "steps": steps})  # fmt: skip


if __name__ == "__main__":
    main()
